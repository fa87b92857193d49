"""After the commit: granted callbacks reach their executors, and every slot taken is entered in the ledger."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from datetime import datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID

from callback_priority.adapter import callbacks
from callback_priority.adapter.inflight import InFlight
from callback_priority.adapter.planning import Router
from callback_priority.adapter.savepoints import savepoint
from callback_priority.adapter.settlement import Settlement
from callback_priority.adapter.turn import Turn
from callback_priority.compat.executors import queued_callbacks, queued_tasks
from callback_priority.compat.keys import callback_key, task_keys
from callback_priority.core.classes import ServiceClass
from callback_priority.core.snapshot import Grant
from callback_priority.core.units import MICROSECONDS, SlotMicros
from callback_priority.persistence import items

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["HandOver"]

log = logging.getLogger(__name__)

HELD_UP_US: Final = MICROSECONDS
"""After how long since its decision a scheduler makes sure that what it granted is still its own."""


class HandOver:
    """Gives workloads to executors, in the order in which they were granted slots.

    Args:
        in_flight: The executors and what they hold.
        router: Is told of executors that turn out not to run callbacks.
        settlement: Settles what cannot run here.
        utcnow: The present.
        failed: Is told of what an executor raises.
    """

    def __init__(
        self,
        in_flight: InFlight,
        router: Router,
        settlement: Settlement,
        utcnow: Callable[[], datetime],
        failed: Callable[[str, Exception], None],
    ) -> None:
        self.in_flight = in_flight
        self.router = router
        self.settlement = settlement
        self.utcnow = utcnow
        self.failed = failed

    def give(self, session: Session, turn: Turn) -> int:
        """Give the callbacks of a committed turn to their executors; Airflow has queued the task instances.

        Args:
            session: A transaction that begins: Airflow's critical section has been committed.
            turn: The turn.

        Returns:
            How many callbacks were granted, those that share runs included.
        """
        on_their_way = {each: callback_key(each) for each in turn.granted}
        try:
            return self._give(session, turn, on_their_way)
        except Exception:
            # They are with no executor; out of the ledger, a sweep takes them back at once.
            self.in_flight.ended(on_their_way.values())
            raise

    def _give(self, session: Session, turn: Turn, on_their_way: dict[UUID, Hashable]) -> int:
        refused: dict[UUID, str] = {}
        returned: list[UUID] = []
        try:
            self._enter(turn)
        except Exception as error:  # noqa: BLE001 - who is not entered by now is entered below, or by `adopt_queued`
            self.failed("enter", error)
        try:
            overtaken = self._overtaken(session, turn)
        except Exception:
            # No executor has any of them: the sweep finds that, and sets them back to pending.
            self.in_flight.ended(callback_key(each) for each in turn.granted)
            raise
        for grant in turn.decision.grants:
            callback_id = grant.candidate.id
            if not isinstance(callback_id, UUID):
                continue
            if callback_id in overtaken:
                self.in_flight.forget(callback_key(callback_id))
                continue
            label = str(grant.candidate.executor)
            try:
                if on_their_way[callback_id] not in self.in_flight.ledger:
                    self._enter_callback(turn, grant)
                self.in_flight.by_label[label].queue_workload(turn.workloads[callback_id], session=session)
            except NotImplementedError as error:
                self.router.unsupported.add(label)
                refused[callback_id] = f"its executor does not run callbacks: {error}"
            except Exception as error:  # noqa: BLE001 - an executor's failure costs this callback a loop, no more
                self.failed("queue workload", error)
                returned.append(callback_id)
            else:
                del on_their_way[callback_id]
        if refused or returned:
            self.in_flight.ended(callback_key(each) for each in (*refused, *returned))
            self._take_back(session, turn, refused, returned)
        return len(turn.granted) + sum(len(riding) for riding in turn.companions.values())

    def _overtaken(self, session: Session, turn: Turn) -> set[UUID]:
        """Callbacks that another scheduler has taken over since they were granted.

        A process that was stopped after its commit may be taken for dead meanwhile; its last heartbeat may be long
        ago by then. That is only looked for where time has passed.
        """
        if self.in_flight.now_us() - turn.monotonic_us < HELD_UP_US:
            return set()
        mine = {
            item.callback_id for item in items.granted_items(session.connection(), self.settlement.job_id)
        }
        overtaken = set(turn.granted) - mine
        if overtaken:
            log.warning("%d callback(s) were taken over while this scheduler was held up", len(overtaken))
        return overtaken

    def _enter(self, turn: Turn) -> None:
        """Enter the turn's grants in the ledger, task instances in the places that were granted to tasks."""
        queued_in = {
            key: label
            for label, executor in self.in_flight.by_label.items()
            for key in queued_tasks(executor)
        }
        task_instances = iter(turn.task_instances)
        for grant in turn.decision.grants:
            if grant.candidate.id is not None:
                self._enter_callback(turn, grant)
                continue
            task_instance = next(task_instances)
            keys = task_keys(task_instance)
            key = next((each for each in keys if each in queued_in), keys[0])
            self.in_flight.hold(
                key,
                ServiceClass.TASK,
                queued_in.get(key, ""),
                charge=turn.charges[ServiceClass.TASK],
                pool=task_instance.pool,
                width=task_instance.pool_slots,
                at=turn.monotonic_us,
            )
            if key not in queued_in:
                # Airflow selected it and did not queue it (its Dag run has ended): the charge goes back.
                self.in_flight.ended([key])

    def _enter_callback(self, turn: Turn, grant: Grant) -> None:
        self.in_flight.hold(
            callback_key(grant.candidate.id),
            grant.service_class,
            str(grant.candidate.executor),
            charge=turn.charges[grant.service_class],
            pool=grant.pool,
            at=turn.monotonic_us,
        )

    def _take_back(
        self, session: Session, turn: Turn, refused: dict[UUID, str], returned: list[UUID]
    ) -> None:
        """Undo grants that an executor did not take.

        Companions only wait again: what becomes of them is decided when they come to lead a run.
        """
        connection = session.connection()
        keys = [callback_key(each) for each in (*refused, *returned)]
        self.in_flight.routed.difference_update(keys)
        riding = [each for leader in (*refused, *returned) for each in turn.companions.get(leader, ())]
        given_up = None
        with savepoint(connection, "callback_priority_return"):
            if returned or riding:
                callbacks.to_pending(connection, [*returned, *riding])
                items.requeue(connection, [*returned, *riding], "its executor did not take it")
            if refused:
                given_up = self.settlement.give_up(session, refused, self.utcnow())
        if given_up is not None:
            given_up.tell()

    def adopt_queued(self) -> None:
        """Enter what reached an executor by other ways, so that it is not lost from sight once dispatched."""
        for label, executor in self.in_flight.by_label.items():
            for key in queued_tasks(executor):
                if key not in self.in_flight.ledger:
                    self.in_flight.hold(key, ServiceClass.TASK, label, charge=SlotMicros(0))
            for key, workload in queued_callbacks(executor).items():
                if key not in self.in_flight.ledger:
                    service_class = callbacks.kind_of(workload.callback.data).service_class
                    self.in_flight.hold(key, service_class, label, charge=SlotMicros(0))
