"""When a run is over, or is taken for lost: what becomes of the callbacks that it was about.

Of a callback that a worker took, its own row says how it ended: the worker reported it. An executor's event says no
more than that the worker has ended. Airflow's own method would write the event's state into the row of the callback
that led the run, over a failure that was reported honestly, and would know nothing of its companions. So those
events are taken out of the executor's buffer before Airflow sees them, and each callback is settled by its rows:

====================================  ==========================================================================
it ended                              its item is done
it failed and is to be tried again    it waits for its next attempt
it was started and did not end        the attempt is lost: it waits for its next, or has failed if that was its last
it was taken and not started          the same, but it need not wait before it is tried again, and may be tried three
                                      times in any case: it has not been called
no worker took the run                of a routed callback: workers without this library fail like that, and so does a
                                      queue that no worker serves: the Dag processor runs it, unless a part of its
                                      request has been called already; then it is set aside and tried again, until its
                                      time to live has passed. Of any other the attempt is lost
====================================  ==========================================================================

A callback that was never taken by a worker that reports is Airflow's to settle, by the executor's event. In either
case an event counts only for the scheduler that holds the callback's slot: one that was taken for dead, and wakes up,
does not overrule the scheduler that took its callbacks over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import attrs
from airflow.utils.state import CallbackState
from sqlalchemy import Connection

from callback_priority.adapter import callbacks, metrics
from callback_priority.adapter.adoption import can_tell
from callback_priority.adapter.inflight import ENDED_NOT, InFlight
from callback_priority.adapter.routing import fallback
from callback_priority.adapter.savepoints import roll_back_if_lost, savepoint
from callback_priority.compat.keys import callback_of, is_callback
from callback_priority.errors import TransactionLostError
from callback_priority.persistence import items, requests, settling, units
from callback_priority.policy.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["DIED", "GivenUp", "Settlement", "Withdrawal"]

log = logging.getLogger(__name__)

NOT_TAKEN: Final = (
    "no worker took it: none serves its queue, or the one that was to run it ended first or is without "
    "callback-priority"
)
DIED: Final = "the worker ended while it ran"
UNBEGUN: Final = "its worker ended before it ran"

MOST_UNBEGUN: Final = 3
"""How often a callback is granted anew that has certainly not been called, whatever its attempts are limited to."""


class Withdrawal(Enum):
    """What came of giving a request back to the Dag processor."""

    DONE = "done"
    """The Dag processor runs it."""
    IMPOSSIBLE = "impossible"
    """A part of it has been called already, or what it was cannot be read any more."""
    FAILED = "failed"
    """The database failed, or we did: it may be possible later."""


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


@attrs.frozen
class _Attempt:
    """An attempt that came to nothing.

    Args:
        ridden: How far it came.
        reason: Why it came no further.
        waits: Whether a delay is due before the next.
        begun: Whether the callback may have been called.
    """

    ridden: settling.Ridden
    reason: str
    waits: bool = attrs.field(default=True, kw_only=True)
    begun: bool = attrs.field(default=True, kw_only=True)


class Settlement:
    """Settles the runs of one scheduler's callbacks.

    Args:
        in_flight: What its executors hold.
        settings: Limits and intervals.
        failed: Is told of failures of ours.
        job_id: The scheduler's job.
    """

    def __init__(
        self,
        in_flight: InFlight,
        settings: Settings,
        failed: Callable[[str, Exception], None],
        job_id: int,
    ) -> None:
        self.in_flight = in_flight
        self.settings = settings
        self.failed = failed
        self.job_id = job_id
        self.owed: set[UUID] = set()
        """Runs that have ended and may not be settled: the transaction may yet be rolled back."""
        self.succeeded: set[UUID] = set()
        """Of these, those that ended well by their executor's word, while their rows say that they still run."""
        self.next_retry_seconds = inf
        """In how many seconds the first of those is to be tried again that were set aside since this was last read."""

    def take_events(self, session: Session, executor: Any) -> list[Hashable]:
        """Take the events of callbacks out of an executor's buffer of which Airflow's method knows too little.

        Args:
            session: The transaction in which Airflow writes the states.
            executor: The executor.

        Returns:
            Those whose worker has ended, and whose rows say how they ended.
        """
        told = {key: event for key, event in executor.event_buffer.items() if is_callback(key)}
        if not told:
            return []
        standings = self._standings(session, told)
        running: list[UUID] = []
        names: dict[UUID, str] = {}
        ended = []
        for key, (state, info) in told.items():
            standing = standings.get(callback_of(key))
            if standing is None and key not in self.in_flight.routed:
                continue  # nothing of it is known here: Airflow's alone
            if standing is not None and not standing.is_with(self.job_id):
                executor.event_buffer.pop(key)
                if state not in ENDED_NOT:
                    self.in_flight.forget(key)
                    log.info(
                        "Callback %s is not held by this scheduler any more; its event %s is late",
                        key,
                        state,
                    )
            elif state in ENDED_NOT:
                executor.event_buffer.pop(key)
                if state == CallbackState.RUNNING and key not in self.in_flight.routed:
                    running.append(callback_of(key))
                    self.in_flight.running.add(key)
                elif state == CallbackState.QUEUED and isinstance(info, str):
                    names[callback_of(key)] = info
            elif self.in_flight.is_late(key):
                executor.event_buffer.pop(key)
                log.info("An earlier attempt of callback %s has ended: %s", key, state)
            elif (
                key in self.in_flight.routed
                or (standing is not None and standing.claimed)
                or self._is_unsent(executor, standing, state)
            ):
                executor.event_buffer.pop(key)
                if state == CallbackState.SUCCESS and key not in self.in_flight.routed:
                    self.succeeded.add(callback_of(key))
                self.in_flight.routed.discard(key)
                log.debug("The worker of callback %s has ended: %s %s", key, state, info)
                ended.append(key)
        self.owed.update(callback_of(key) for key in ended)
        if running or names:
            self._note(session, running, names)
        return ended

    @staticmethod
    def _is_unsent(executor: Any, standing: settling.Standing | None, state: object) -> bool:
        """Whether a broker did not take a callback: Celery's name of what it took comes before it can end."""
        return (
            state == CallbackState.FAILED
            and can_tell(executor)
            and standing is not None
            and standing.job_id is not None
            and standing.external_id is None
        )

    def _standings(self, session: Session, told: Iterable[Hashable]) -> dict[UUID, settling.Standing]:
        """Where callbacks stand; of none if the database fails, and then memory has to do."""
        try:
            with savepoint(session.connection(), "callback_priority_events", reads_first=True):
                return settling.standings(session.connection(), [callback_of(key) for key in told])
        except Exception as error:  # noqa: BLE001 - Airflow's own events must go on
            roll_back_if_lost(session, error)
            self.failed("events", error)
            return {}

    def _note(self, session: Session, running: Sequence[UUID], names: Mapping[UUID, str]) -> None:
        """Note what executors tell of callbacks on their way; losing it costs no more than a detail."""
        try:
            with savepoint(session.connection(), "callback_priority_underway"):
                callbacks.to_running(session.connection(), running)
                items.name_externally(session.connection(), names, self.job_id)
        except Exception as error:  # noqa: BLE001 - as above
            roll_back_if_lost(session, error)
            self.failed("events", error)

    def settle(
        self, session: Session, leaders: Iterable[UUID], now: datetime, *, lost: str | None = None
    ) -> None:
        """Write what became of the callbacks of runs that are over.

        Up to a dozen statements for any number of runs, and a few for each request that no worker took.

        Args:
            session: A transaction that is to be committed.
            leaders: The callbacks that led the runs.
            now: The present.
            lost: Why nothing more will be heard of them, where that is not the worker's doing; they then wait for
                nothing before they are tried again.
        """
        connection = session.connection()
        leaders = set(leaders)
        # A scheduler that was taken for dead, and goes on, finds the next attempt here, which is another's.
        ridden = [
            self._told(connection, each, now)
            for each in settling.runs(connection, leaders)
            if each.is_with(self.job_id)
        ]
        taken = {each.leader_id for each in ridden if each.claimed}
        done = [each.callback_id for each in ridden if each.ended]
        attempts: list[_Attempt] = []
        left: dict[UUID, list[UUID]] = {}
        for each in ridden:
            if each.ended:
                continue
            if each.failed:
                attempts.append(_Attempt(each, "it failed: its output says why"))
            elif each.started:
                attempts.append(_Attempt(each, lost or DIED, waits=lost is None))
            elif each.leader_id in taken or (lost and each.request_id):
                attempts.append(_Attempt(each, lost or UNBEGUN, waits=False, begun=False))
            elif each.request_id is not None:
                left.setdefault(each.request_id, []).append(each.callback_id)
            else:
                attempts.append(_Attempt(each, lost or NOT_TAKEN, waits=lost is None))
        items.mark_done(connection, done, now)
        self._try_again(connection, attempts, now)
        parked = [
            callback_id
            for request_id, ids in left.items()
            if self.withdraw(session, request_id, NOT_TAKEN) is not Withdrawal.DONE
            for callback_id in ids
        ]
        if parked:
            units.release(connection, parked)
            callbacks.to_pending(connection, parked, even_running=True)
            self._park(connection, parked, now, NOT_TAKEN)

    def _told(self, connection: Connection, ridden: settling.Ridden, now: datetime) -> settling.Ridden:
        """End a callback of Airflow's own whose worker could not tell that it ended well, though its executor does."""
        if ridden.callback_id not in self.succeeded or not ridden.started or ridden.ended or ridden.failed:
            return ridden
        success = CallbackState.SUCCESS.value
        units.mark_ended(connection, ridden.callback_id, state=success, output=None, log=None, now=now)
        return attrs.evolve(ridden, ended=True)

    def _try_again(self, connection: Connection, attempts: Iterable[_Attempt], now: datetime) -> None:
        """Let callbacks wait for their next attempt; fail those that have had their last."""
        again: list[items.Lost] = []
        failed: dict[UUID, str] = {}
        for each in attempts:
            callback_id, service_class = each.ridden.callback_id, each.ridden.service_class
            failures = each.ridden.failures + 1
            may = self.settings.tries_again(service_class, failures) or (
                not each.begun and failures < MOST_UNBEGUN
            )
            if not may:
                failed[callback_id] = f"{each.reason} (attempt {failures} was its last)"
                continue
            delay = self.settings.retry_delay_seconds(service_class, failures, callback_id)
            retry_at = now + timedelta(seconds=delay) if each.waits and delay else None
            if retry_at is not None:
                self.next_retry_seconds = min(self.next_retry_seconds, delay)
            again.append(items.Lost(callback_id=callback_id, reason=each.reason, retry_at=retry_at))
        if again:
            ids = [each.callback_id for each in again]
            units.release(connection, ids, even_started=True)
            callbacks.to_pending(connection, ids, even_running=True)
            items.try_again(connection, again)
            metrics.count("callbacks_retried", len(again))
        if failed:
            callbacks.fail(connection, failed)
            units.end_units(connection, failed, now)
            items.mark_done(connection, failed, now, "failed: its output says why")
            metrics.count("callbacks_failed", len(failed))

    def _park(self, connection: Any, ids: list[UUID], now: datetime, reason: str) -> None:
        retry_at = now + timedelta(seconds=self.settings.executor_retry_seconds)
        items.park(connection, ids, now=now, retry_at=retry_at, reason=reason)

    def expire(self, session: Session, reasons: Mapping[UUID, str], now: datetime) -> None:
        """Fail callbacks that have become worthless, each with the reason; those that run by now are left alone.

        Args:
            session: A transaction that is to be committed.
            reasons: The callbacks that wait, each with the reason.
            now: The present.
        """
        connection = session.connection()
        waiting = callbacks.lock_pending(connection, reasons)
        if not waiting:
            return
        callbacks.fail(connection, {each: f"expired: it {reasons[each]}" for each in waiting})
        units.end_units(connection, waiting, now)
        items.mark_done(connection, waiting, now, "expired: its output says why")
        metrics.count("callbacks_expired", len(waiting))
        log.error("%d callback(s) have expired, e.g. %s: %s", len(waiting), waiting[0], reasons[waiting[0]])

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
        except TransactionLostError:
            raise
        except Exception as error:  # noqa: BLE001 - the rest of upkeep must not suffer from it
            self.failed("reroute", error)
            return 0

    def withdraw(self, session: Session, request_id: UUID, reason: str) -> Withdrawal:
        """Give a request back to the Dag processor; a failure of ours is told of and raises nothing."""
        try:
            with savepoint(session.connection(), "callback_priority_withdraw", reads_first=True):
                done = fallback.withdraw(session, request_id, reason)
        except TransactionLostError:
            raise
        except Exception as error:  # noqa: BLE001 - one request that cannot be taken back must not stop the rest
            self.failed("withdraw", error)
            return Withdrawal.IMPOSSIBLE if isinstance(error, ValueError) else Withdrawal.FAILED
        return Withdrawal.DONE if done else Withdrawal.IMPOSSIBLE
