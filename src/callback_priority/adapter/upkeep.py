"""What is done now and then: sweeps, what was set aside, history, and slots whose end was missed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from airflow.executors.local_executor import LocalExecutor
from airflow.models.callback import Callback, CallbackKey
from airflow.models.connection_test import ConnectionTestKey, ConnectionTestRequest
from airflow.models.taskinstance import TaskInstance
from airflow.models.taskinstancekey import TaskInstanceKey
from airflow.utils.net import get_hostname
from airflow.utils.state import CallbackState, TaskInstanceState
from sqlalchemy import Connection, select, union_all

from callback_priority.adapter import callbacks
from callback_priority.adapter.inflight import InFlight
from callback_priority.adapter.routing import fallback
from callback_priority.adapter.routing.units import batched
from callback_priority.adapter.settlement import Settlement
from callback_priority.persistence import items, references, requests, settling, sweep
from callback_priority.persistence.enqueueing import NewItem, enqueue
from callback_priority.persistence.tables import item_table
from callback_priority.policy.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["Upkeep"]

log = logging.getLogger(__name__)

BATCH: Final = 1_000
"""The most rows that one step of upkeep changes, so that no transaction grows long."""

_TASK_HOLDS: Final = frozenset(
    {TaskInstanceState.QUEUED, TaskInstanceState.RUNNING, TaskInstanceState.RESTARTING}
)
_CALLBACK_HOLDS: Final = frozenset({CallbackState.QUEUED, CallbackState.RUNNING})
_TEST_HOLDS: Final = frozenset({"queued", "running"})


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


class Upkeep:
    """The timers of one scheduler.

    Args:
        settings: The intervals.
        in_flight: What this scheduler's executors hold.
        settlement: Settles runs whose end was missed, and what cannot run here.
        clock: Seconds of a clock that never goes back.
        job_id: The job of this scheduler, whose grants it looks after; ``None`` where it makes none.
        living: Age of the last heartbeat from which a scheduler is taken for dead.
    """

    def __init__(
        self,
        settings: Settings,
        in_flight: InFlight,
        settlement: Settlement,
        clock: Callable[[], float],
        job_id: int | None = None,
        living: timedelta = timedelta(seconds=30),
    ) -> None:
        self.settings = settings
        self.in_flight = in_flight
        self.settlement = settlement
        self.clock = clock
        self.job_id = job_id
        self.living = living
        self.roused = 0
        self._sweep_at = clock()
        self._retry_at = clock()
        self._reconcile_at = clock() + settings.reconcile_interval_seconds

    def is_due(self) -> bool:
        """Whether `run` has something to do."""
        return self.clock() >= min(self._sweep_at, self._retry_at)

    def sweep_soon(self) -> None:
        """Something was found that a sweep puts right: do it in this loop."""
        self._sweep_at = self.clock()

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
            time_to_live = timedelta(seconds=self.settings.executor_time_to_live_seconds)
            expired = items.expired(connection, parked_before=now - time_to_live, limit=BATCH)
            if expired:
                prefix = f"expired after {self.settings.executor_time_to_live_seconds:g} s: "
                reasons = {each: prefix + why.removeprefix(prefix) for each, why in expired.items()}
                self.settlement.give_up(session, reasons, now).tell()
            self.roused += items.unpark_due(connection, now, limit=BATCH)
            if items.any_triggered(connection):
                self.roused += self.settlement.reroute_triggered(session, now, BATCH)
        if clock >= self._sweep_at:
            self._sweep_at = clock + self.settings.sweep_interval_seconds
            if self._sweep(session, now):
                self._sweep_at = clock

    def _sweep(self, session: Session, now: datetime) -> bool:
        """Bring items in line with Airflow's rows; returns whether there is more to do."""
        connection = session.connection()
        self._take_back_lost(session, now)
        removed = sweep.remove_orphans(connection, limit=BATCH)
        settled = sweep.settle_foreign(connection, now=now, limit=BATCH)
        found = sweep.callbacks_without_item(connection, BATCH)
        self._enqueue(session, self._items_of(connection, found), now)
        self.roused += settled.requeued + len(found)
        horizon = now - timedelta(seconds=self.settings.history_seconds)
        trimmed = sweep.trim_history(connection, finished_before=horizon, limit=BATCH)
        forgotten = requests.trim(connection, received_before=horizon, limit=BATCH)
        unknown = references.forget_unknown_dags(connection, limit=BATCH)
        return max(removed, settled.done + settled.requeued, len(found), trimmed, forgotten, unknown) >= BATCH

    def _items_of(self, connection: Connection, found: Sequence[sweep.PendingCallback]) -> list[NewItem]:
        """The items of callbacks without one; a routed callback's is what routing gave it."""
        if not found:
            return []
        bodies = requests.bodies_of(connection, [each.callback_id for each in found])
        new = []
        for each in found:
            item = callbacks.swept_item(each, self.settings)
            if (body := bodies.get(each.callback_id)) is not None:
                try:
                    item = batched(item, fallback.request_of(body), self.settings)
                except ValueError:
                    log.debug("The request of callback %s cannot be read", each.callback_id, exc_info=True)
            new.append(item)
        return new

    def _take_back_lost(self, session: Session, now: datetime) -> None:
        """Take up callbacks that were granted and are with no executor.

        Those whose worker was reported gone, though what became of them could not be written then, are settled
        now. So are runs that outlast their limits by far, or that no worker can take any more: their worker died
        and nobody said so, or what was to reach one was lost. Any other reached no executor, since the hand-over failed, and is set back to pending: what reached one is in the
        ledger until its end was reported, and that is written before this runs. So is what a scheduler that has
        died left behind.
        """
        if self.job_id is None:
            return
        connection = session.connection()
        with_leaders = {
            item.callback_id: item.leader_id or item.callback_id
            for item in items.granted_items(connection, self.job_id)
        }
        away = {
            leader
            for leader in with_leaders.values()
            if CallbackKey(str(leader)) not in self.in_flight.ledger
        }
        ended = (away & self.settlement.owed) | self._abandon_lost(connection, now)
        if ended:
            self.settlement.settle(session, ended, now)
        self.settlement.owed.clear()
        lost = [each for each, leader in with_leaders.items() if leader in away - ended]
        stranded = settling.stranded(
            connection, living_since=now - self.living, own_job_id=self.job_id, limit=BATCH
        )
        if stranded:
            log.warning("%d callback(s) wait again: the scheduler that granted them is gone", len(stranded))
        if lost or stranded:
            callbacks.to_pending(connection, [*lost, *stranded])

    def _abandon_lost(self, connection: Connection, now: datetime) -> set[UUID]:
        """Free the slots of runs whose end nobody will report; returns the callbacks that led them."""
        overdue = settling.overdue_runs(
            connection,
            claimed_before=now - self.settlement.longest_run,
            granted_before=now - self.settlement.longest_way,
            living_since=now - self.living,
            own_job_id=self.job_id or 0,
            limit=BATCH,
        )
        killed = self._of_killed_workers(connection)
        if overdue:
            log.error("%d run(s) are lost: no worker took them, or has told of them, in time", len(overdue))
        if killed:
            log.error("%d run(s) are lost: their worker processes were killed", len(killed))
        for each in {*overdue, *killed}:
            try:
                self.in_flight.abandon(CallbackKey(str(each)))
            except Exception as error:  # noqa: BLE001 - an executor's own code; its rows are settled all the same
                self.settlement.failed("abandon", error)
        return {*overdue, *killed}

    def _of_killed_workers(self, connection: Connection) -> list[UUID]:
        """The runs that processes of a LocalExecutor of this scheduler took and that are gone, of which none tells.

        A process that ends by itself has reported how its run ended before.
        """
        workers: dict[UUID, Mapping[int, object]] = {}
        for hold in self.in_flight.ledger:
            executor = self.in_flight.by_label.get(hold.executor)
            if hold.key in self.in_flight.routed and isinstance(executor, LocalExecutor):
                workers[UUID(str(getattr(hold.key, "id", "")))] = executor.workers
        if not workers:
            return []
        here = get_hostname()
        killed = []
        for leader, worker in settling.workers_of(connection, workers).items():
            host, _, pid = worker.rpartition(":")
            if host == here and pid.isdigit() and int(pid) not in workers[leader] and not _is_alive(int(pid)):
                killed.append(leader)
        return killed

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
        tasks = [key for key in keys if isinstance(key, TaskInstanceKey)]
        called = {UUID(key.id): key for key in keys if isinstance(key, CallbackKey)}
        tests = {UUID(key.id): key for key in keys if isinstance(key, ConnectionTestKey)}
        held: set[Hashable] = set()
        if tasks:
            wanted: Any = TaskInstance.filter_for_tis(tasks)
            rows: Any = session.execute(
                select(
                    TaskInstance.dag_id,
                    TaskInstance.task_id,
                    TaskInstance.run_id,
                    TaskInstance.try_number,
                    TaskInstance.map_index,
                ).where(wanted, TaskInstance.state.in_(_TASK_HOLDS))
            )
            held.update(TaskInstanceKey(*row) for row in rows)
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
        if tests:
            request = ConnectionTestRequest
            query = select(request.id).where(request.id.in_(tests), request.state.in_(_TEST_HOLDS))
            held.update(tests[each] for each in session.scalars(query))
        return held
