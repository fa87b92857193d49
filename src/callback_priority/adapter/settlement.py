"""When a worker is gone: what becomes of the callbacks that it was handed.

A routed callback's row says what the worker reported of it, and an executor's event says no more than that the
worker has ended. Airflow's own method would write the event's state into the row of the callback that led the
run, over a failure that was reported honestly, and would know nothing of its companions. So those events are
taken out of the executor's buffer before Airflow sees them, and each callback of the run is settled by what its
own row says:

====================================  ==========================================================================
it ended                              its item is done
it was started and did not end        it has failed: the worker died in it, and calling it again could do harm
it was taken and not started          it waits again; after three workers it has failed
no worker took the run                workers without this library fail like that, and so does a queue that no
                                      worker serves: the Dag processor runs it, unless a part of its request has
                                      been called already; then it is set aside and tried again, until its time
                                      to live has passed
====================================  ==========================================================================
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import attrs
from airflow.configuration import conf
from airflow.models.callback import CallbackKey
from sqlalchemy.exc import SQLAlchemyError

from callback_priority.adapter import callbacks, metrics
from callback_priority.adapter.inflight import ENDED_NOT, InFlight
from callback_priority.adapter.routing import fallback
from callback_priority.adapter.savepoints import savepoint
from callback_priority.persistence import items, requests, settling, units
from callback_priority.policy.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["MOST_WORKERS", "GivenUp", "Settlement", "Withdrawal"]

log = logging.getLogger(__name__)

MOST_WORKERS: Final = 3
"""How many workers may end before a callback was called; one that kills them does not get a fourth."""

MARGIN_SECONDS: Final = 120.0
"""What a run may take beyond its time limits before it is taken for lost."""

WAY_MARGIN_SECONDS: Final = 60.0
"""How much longer than its token is valid a workload may be on its way, by clocks that differ."""

NOT_TAKEN: Final = (
    "no worker took it: none serves its queue, or the one that was to run it ended first or is without "
    "callback-priority"
)
DIED: Final = "the worker ended while it ran"


class Withdrawal(Enum):
    """What came of giving a request back to the Dag processor."""

    DONE = "done"
    """The Dag processor runs it."""
    IMPOSSIBLE = "impossible"
    """A part of it has been called already, or what it was cannot be read any more."""
    FAILED = "failed"
    """The database failed: it may be possible later."""


@attrs.frozen(kw_only=True)
class GivenUp:
    """What became of callbacks that cannot run here.

    Args:
        failed: Those that are failed, each with the reason.
        withdrawn: Those that the Dag processor runs instead, each with the reason.
        parked: Those of which it is not known, since the database failed, each with the reason; for later.
    """

    failed: Mapping[UUID, str]
    withdrawn: Mapping[UUID, str]
    parked: Mapping[UUID, str]

    def tell(self) -> None:
        """Log and count it, once it was written; who withdraws counts that."""
        metrics.count("callbacks_failed", len(self.failed))
        for reason, ids in _by_reason(self.failed).items():
            log.error("%d callback(s) cannot run and are failed, e.g. %s: %s", len(ids), ids[0], reason)
        for reason, ids in _by_reason(self.withdrawn).items():
            log.warning("%d callback(s) go back to the Dag processor, e.g. %s: %s", len(ids), ids[0], reason)
        for reason, ids in _by_reason(self.parked).items():
            log.warning("%d callback(s) are set aside, e.g. %s: %s", len(ids), ids[0], reason)


def _by_reason(reasons: Mapping[UUID, str]) -> dict[str, list[UUID]]:
    by_reason: dict[str, list[UUID]] = {}
    for callback_id, reason in reasons.items():
        by_reason.setdefault(reason, []).append(callback_id)
    return by_reason


class Settlement:
    """Settles the runs of one scheduler's callbacks.

    Args:
        in_flight: What its executors hold.
        settings: Limits and intervals.
        failed: Is told of failures of ours.
    """

    def __init__(
        self, in_flight: InFlight, settings: Settings, failed: Callable[[str, Exception], None]
    ) -> None:
        self.in_flight = in_flight
        self.settings = settings
        self.failed = failed
        self.owed: set[UUID] = set()
        """Runs that have ended and may not be settled: the transaction may yet be rolled back."""

    @property
    def longest_run(self) -> timedelta:
        """How long a worker can take for a run, if its limits work: each unit that is killed costs a new load."""
        settings = self.settings
        each = settings.callback_load_limit_seconds + settings.callback_time_limit_seconds
        return timedelta(seconds=MARGIN_SECONDS + each * settings.callback_batch_size)

    @property
    def longest_way(self) -> timedelta:
        """How long a workload can be on its way to a worker: as long as Airflow has made its token valid."""
        return timedelta(seconds=conf.getfloat("scheduler", "task_queued_timeout") + WAY_MARGIN_SECONDS)

    def take_events(self, executor: Any) -> list[CallbackKey]:
        """Take the events of routed callbacks out of an executor's buffer, before Airflow's method reads it.

        Returns:
            Those whose worker has ended. That one runs is dropped: the worker says so itself, when it is true.
        """
        found = [key for key in executor.event_buffer if key in self.in_flight.routed]
        ended = []
        for key in found:
            state, info = executor.event_buffer.pop(key)
            if state in ENDED_NOT:
                continue
            self.in_flight.routed.discard(key)
            log.debug("The worker of callback %s has ended: %s %s", key.id, state, info)
            ended.append(key)
        self.owed.update(UUID(key.id) for key in ended)
        return ended

    def settle(self, session: Session, leaders: Iterable[UUID], now: datetime) -> None:
        """Write what became of the callbacks of runs whose worker has ended.

        Up to eleven statements for any number of runs, and a few for each request that no worker took.

        Args:
            session: A transaction that is to be committed.
            leaders: The callbacks that led the runs.
            now: The present.
        """
        connection = session.connection()
        leaders = set(leaders)
        ridden = settling.runs(connection, leaders)
        taken = {each.leader_id for each in ridden if each.claimed}
        done = [each.callback_id for each in ridden if each.ended]
        again: list[UUID] = []
        failed: dict[UUID, str] = {}
        left: dict[UUID, list[UUID]] = {}
        for each in ridden:
            if each.ended:
                continue
            if each.started:
                failed[each.callback_id] = DIED
            elif each.leader_id not in taken:
                left.setdefault(each.request_id, []).append(each.callback_id)
            elif each.workers_lost + 1 >= MOST_WORKERS:
                failed[each.callback_id] = f"the worker ended {each.workers_lost + 1} times before it ran"
            else:
                again.append(each.callback_id)
        for unknown in leaders - {each.callback_id for each in ridden}:
            failed[unknown] = "nothing is known of how it ran"
        items.mark_done(connection, done, now)
        if failed:
            callbacks.fail(connection, failed)
            units.end_units(connection, failed, now)
            items.mark_done(connection, failed, now, "failed: its output says why")
            metrics.count("callbacks_failed", len(failed))
        self._set_back(connection, again, worker_lost=True)
        items.requeue(connection, again, "its worker ended before it ran")
        parked = [
            callback_id
            for request_id, ids in left.items()
            if self.withdraw(session, request_id, NOT_TAKEN) is not Withdrawal.DONE
            for callback_id in ids
        ]
        self._set_back(connection, parked)
        self._park(connection, parked, now, NOT_TAKEN)

    def _park(self, connection: Any, ids: list[UUID], now: datetime, reason: str) -> None:
        retry_at = now + timedelta(seconds=self.settings.executor_retry_seconds)
        items.park(connection, ids, now=now, retry_at=retry_at, reason=reason)

    @staticmethod
    def _set_back(connection: Any, ids: list[UUID], *, worker_lost: bool = False) -> None:
        if ids:
            units.release(connection, ids, worker_lost=worker_lost)
            callbacks.to_pending(connection, ids, even_running=True)

    def give_up(self, session: Session, reasons: Mapping[UUID, str], now: datetime) -> GivenUp:
        """Have the Dag processor run those of the callbacks that it can; fail the others.

        Where the database fails, whether it can is not known: these are set aside and looked at again.

        Args:
            session: A transaction that is to be committed.
            reasons: The callbacks that cannot run here, each with the reason.
            now: The present.
        """
        connection = session.connection()
        withdrawn: dict[UUID, str] = {}
        parked: dict[UUID, str] = {}
        requested: dict[UUID, list[UUID]] = {}
        for callback_id, request_id in requests.requests_of(connection, reasons).items():
            requested.setdefault(request_id, []).append(callback_id)
        settling.lock_requests(connection, [each for ids in requested.values() for each in ids])
        for request_id, ids in requested.items():
            withdrawal = self.withdraw(session, request_id, reasons[ids[0]])
            if withdrawal is Withdrawal.DONE:
                withdrawn |= {each: reasons[each] for each in ids}
            elif withdrawal is Withdrawal.FAILED:
                parked |= {each: reasons[each] for each in ids}
        failed = {
            each: reason for each, reason in reasons.items() if each not in withdrawn and each not in parked
        }
        if failed:
            callbacks.fail(connection, failed)
            items.mark_done(connection, failed, now, "can never run: its output says why")
        if requested and failed:
            units.end_units(connection, failed, now)
        if parked:
            callbacks.to_pending(connection, parked)
            for reason, ids in _by_reason(parked).items():
                self._park(connection, ids, now, reason)
        return GivenUp(failed=failed, withdrawn=withdrawn, parked=parked)

    def reroute_triggered(self, session: Session, now: datetime, limit: int) -> int:
        """Close what has ended on the triggerer, and have workers run what it could not.

        Args:
            session: A transaction that is to be committed.
            now: The present.
            limit: The most to take in one call.

        Returns:
            How many wait for a slot now.
        """
        try:
            with savepoint(session.connection(), "callback_priority_reroute", reads_first=True):
                return fallback.reroute_triggered(session, now, limit)
        except Exception as error:  # noqa: BLE001 - the rest of upkeep must not suffer from it
            self.failed("reroute", error)
            return 0

    def withdraw(self, session: Session, request_id: UUID, reason: str) -> Withdrawal:
        """Give a request back to the Dag processor; a failure of ours is told of and raises nothing."""
        try:
            with savepoint(session.connection(), "callback_priority_withdraw", reads_first=True):
                done = fallback.withdraw(session, request_id, reason)
        except Exception as error:  # noqa: BLE001 - one request that cannot be taken back must not stop the rest
            self.failed("withdraw", error)
            return Withdrawal.FAILED if isinstance(error, SQLAlchemyError) else Withdrawal.IMPOSSIBLE
        return Withdrawal.DONE if done else Withdrawal.IMPOSSIBLE
