"""What is done now and then: sweeps, what was set aside, history, and slots whose end was missed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from datetime import datetime, timedelta
from math import inf
from typing import TYPE_CHECKING, Final
from uuid import UUID

from airflow.models.callback import Callback
from airflow.utils.state import CallbackState
from sqlalchemy import Connection, select, union_all

from callback_priority.adapter import callbacks, metrics
from callback_priority.adapter.inflight import InFlight
from callback_priority.adapter.recovery import BATCH, CLOCKS_DIFFER_SECONDS, Recovery
from callback_priority.adapter.routing import fallback
from callback_priority.adapter.routing.units import batched
from callback_priority.adapter.savepoints import savepoint
from callback_priority.adapter.settlement import Settlement
from callback_priority.compat.keys import (
    callback_of,
    connection_tests_held,
    is_callback,
    task_instances_held,
)
from callback_priority.errors import TransactionLostError
from callback_priority.persistence import items, journal, references, requests, sweep, units
from callback_priority.persistence.enqueueing import NewItem, enqueue, record_granted
from callback_priority.persistence.tables import item_table
from callback_priority.policy.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["FORGOTTEN", "Upkeep"]

log = logging.getLogger(__name__)

FORGOTTEN: Final = "what it was to call is not known any more: the tables of callback-priority were removed"
"""Why a routed callback fails of which there is no unit: our tables were removed and made again."""

_CALLBACK_HOLDS: Final = frozenset({CallbackState.QUEUED, CallbackState.RUNNING})


class Upkeep:
    """The timers of one scheduler.

    Args:
        settings: The intervals.
        in_flight: What this scheduler's executors hold.
        settlement: Settles what cannot run here.
        clock: Seconds of a clock that never goes back.
        recovery: Settles what came to nothing; ``None`` where no slots are handed out.
    """

    def __init__(
        self,
        settings: Settings,
        in_flight: InFlight,
        settlement: Settlement,
        clock: Callable[[], float],
        recovery: Recovery | None = None,
    ) -> None:
        self.settings = settings
        self.in_flight = in_flight
        self.settlement = settlement
        self.clock = clock
        self.recovery = recovery
        self.roused = 0
        self._sweep_at = clock()
        self._retry_at = clock()
        self._unpark_at = inf
        self._reconcile_at = clock() + settings.reconcile_interval_seconds

    def is_due(self) -> bool:
        """Whether `run` has something to do."""
        clock = self.clock()
        self._unpark_at = min(self._unpark_at, clock + self.settlement.next_retry_seconds)
        self.settlement.next_retry_seconds = inf
        return clock >= min(self._sweep_at, self._retry_at, self._unpark_at)

    def sweep_soon(self) -> None:
        """Something was found that a sweep puts right: do it in this loop; and look which slots are held, in the next."""
        self._sweep_at = self._reconcile_at = self.clock()

    def enqueue(self, session: Session, new: Sequence[tuple[UUID, object, int]], now: datetime) -> None:
        """Give items to callbacks that became pending in this transaction.

        Args:
            session: That transaction.
            new: Identifier, data and Airflow's priority of each.
            now: The present.
        """
        self._enqueue(session, [callbacks.new_item(*each, self.settings) for each in new], now)

    def run(self, session: Session, now: datetime) -> None:
        """Do what is due. A step that finds more than one batch comes again in the next loop.

        How many callbacks began to wait by it is left in ``roused``.
        """
        self.roused = 0
        clock = self.clock()
        connection = session.connection()
        if clock >= self._retry_at:
            self._retry_at = clock + self.settings.executor_retry_seconds
            if self.recovery is not None:
                self._give_up(session, now)
            items.advance_retries(connection, now + self._longest_delay, now)
            self._unpark_at = min(self._unpark_at, clock)
            if items.any_triggered(connection):
                self.roused += self.settlement.reroute_triggered(session, now, BATCH)
        if clock >= self._unpark_at:
            unparked = items.unpark_due(connection, now, limit=BATCH)
            next_at = items.next_retry(connection)
            self._unpark_at = inf if next_at is None else clock + max(0.0, (next_at - now).total_seconds())
            self.roused += unparked
        if clock >= self._sweep_at:
            self._sweep_at = clock + self.settings.sweep_interval_seconds
            if self._sweep(session, now):
                self._sweep_at = clock

    @property
    def _longest_delay(self) -> timedelta:
        """How far ahead a retry can be, by clocks that differ."""
        settings = self.settings
        longest = max(settings.callback_retry_max_delay_seconds, settings.executor_retry_seconds)
        return timedelta(seconds=longest + CLOCKS_DIFFER_SECONDS)

    def _give_up(self, session: Session, now: datetime) -> None:
        """Give up what has been set aside for too long."""
        time_to_live = timedelta(seconds=self.settings.executor_time_to_live_seconds)
        expired = items.expired(session.connection(), parked_before=now - time_to_live, limit=BATCH)
        if expired:
            prefix = f"expired after {self.settings.executor_time_to_live_seconds:g} s: "
            reasons = {each: prefix + why.removeprefix(prefix) for each, why in expired.items()}
            self.settlement.give_up(session, reasons, now).tell()

    def _sweep(self, session: Session, now: datetime) -> bool:
        """Do all that a sweep does; returns whether there is more to do."""
        steps = [self._bring_in_line]
        if self.recovery is not None:
            steps = [self.recovery.take_over, self.recovery.look_after_own, self._expire, *steps]
        return max([self._step(session, now, each) for each in steps]) >= BATCH

    def _step(self, session: Session, now: datetime, step: Callable[[Session, datetime], int]) -> int:
        """Do one step, and the next even if this one fails each time; returns how much was dealt with."""
        try:
            with savepoint(session.connection(), "callback_priority_sweep", reads_first=True):
                return step(session, now)
        except TransactionLostError:
            raise
        except Exception as error:  # noqa: BLE001 - such as a row that a later release understands
            self.settlement.failed("sweep", error)
            return 0

    def _bring_in_line(self, session: Session, now: datetime) -> int:
        """Bring items in line with Airflow's rows; returns the most that was dealt with of a kind."""
        connection = session.connection()
        removed = sweep.remove_orphans(connection, limit=BATCH)
        settled = sweep.settle_foreign(connection, now=now, limit=BATCH)
        found = sweep.callbacks_without_item(connection, BATCH)
        self._enqueue(session, self._items_of(connection, found), now)
        units.renew(connection, [each.callback_id for each in found])
        foreign = sweep.callbacks_granted_without_item(connection, BATCH)
        record_granted(connection, self._items_of(connection, foreign), now=now)
        self.roused += settled.requeued + len(found)
        horizon = now - timedelta(seconds=self.settings.history_seconds)
        trimmed = sweep.trim_history(connection, finished_before=horizon, limit=BATCH)
        forgotten = requests.trim(connection, received_before=horizon, limit=BATCH)
        told = journal.trim(connection, written_before=horizon, limit=BATCH)
        unknown = references.forget_unknown_dags(connection, limit=BATCH)
        changed = settled.done + settled.requeued
        return max(removed, changed, len(found), len(foreign), trimmed, forgotten, told, unknown)

    def _expire(self, session: Session, now: datetime) -> int:
        """Fail what has waited longer than its time to live; returns how many there were."""
        lives = self.settings.callback_time_to_live_seconds
        found = items.outlived(session.connection(), self.settings.alive_since(now), limit=BATCH)
        reasons = {each: f"has waited longer than {lives[cls]:g} s" for each, cls in found.items()}
        self.settlement.expire(session, reasons, now)
        return len(found)

    def _items_of(self, connection: Connection, found: Sequence[sweep.PendingCallback]) -> list[NewItem]:
        """The items of callbacks without one; a routed callback's is what routing gave it.

        One of which that is not known any more is failed.
        """
        if not found:
            return []
        bodies = requests.bodies_of(connection, [each.callback_id for each in found])
        new = []
        forgotten = []
        for each in found:
            item = callbacks.swept_item(each, self.settings)
            if (body := bodies.get(each.callback_id)) is not None:
                try:
                    item = batched(item, fallback.request_of(body), self.settings)
                except ValueError:
                    log.debug("The request of callback %s cannot be read", each.callback_id, exc_info=True)
            elif self.recovery is not None and callbacks.is_routed(each):
                forgotten.append(each.callback_id)
                continue
            new.append(item)
        if forgotten:
            callbacks.fail(connection, dict.fromkeys(forgotten, FORGOTTEN))
            log.error("%d callback(s) have failed, e.g. %s: %s", len(forgotten), forgotten[0], FORGOTTEN)
            metrics.count("callbacks_failed", len(forgotten))
        return new

    def _enqueue(self, session: Session, new: Sequence[NewItem], now: datetime) -> None:
        enqueue(
            session.connection(),
            new,
            now=now,
            turn_length_us=self.settings.dag_turn_us,
            aging_us=self.settings.priority_aging_us,
        )

    def reconcile(self, session: Session) -> None:
        """Free slots that are held on our word alone and whose workload has ended by its row.

        An event can be missed: a worker process of LocalExecutor that dies says nothing. At most three
        statements, at an interval.
        """
        if self.clock() < self._reconcile_at:
            return
        self._reconcile_at = self.clock() + self.settings.reconcile_interval_seconds
        keys = self.in_flight.unreported_keys()
        if not keys:
            return
        held = self._held(session, keys)
        ended = [key for key in keys if key not in held]
        self.in_flight.ended(ended)
        if ended:
            log.info("%d slot(s) were held by workloads that have ended; they are free again", len(ended))

    @staticmethod
    def _held(session: Session, keys: Sequence[Hashable]) -> set[Hashable]:
        called = {callback_of(key): key for key in keys if is_callback(key)}
        held = task_instances_held(session, keys) | connection_tests_held(session, keys)
        if called:
            # A callback that leads a run holds its slot until the last that shares the run has ended.
            leader = item_table.c.leader_id
            leading = select(Callback.id).where(Callback.id.in_(called), Callback.state.in_(_CALLBACK_HOLDS))
            riding = (
                select(leader)
                .join(Callback, Callback.id == item_table.c.callback_id)
                .where(leader.in_(called), Callback.state.in_(_CALLBACK_HOLDS))
            )
            held.update(called[each] for each in session.scalars(union_all(leading, riding)))
        return held
