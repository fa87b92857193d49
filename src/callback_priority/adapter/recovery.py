"""Callbacks whose attempt came to nothing, without anybody saying so: found, and settled.

Four things can go missing, and each has its sign:

- **The scheduler.** Its job sends no heartbeat, by Airflow's own rule for adopting task instances. Its callbacks are
  taken over (`Recovery.take_over`): an executor that can tell what became of them adopts them, those whose worker is
  heard of are watched, and of all others the attempt is lost.
- **The worker.** It reports every few seconds (`callback_priority.persistence.units`); one that has been silent for
  too long is gone. Of a LocalExecutor's it is seen at once, since its process is on this machine.
- **What was on its way.** Nobody took it in time: a broker lost it, or no worker serves its queue.
- **The event.** The executor's report of an end was lost with a transaction or a process; the rows tell it.

By which clock. Whether a scheduler is dead is judged as Airflow does, by times in the database and the present. All else
is judged by the clock of this process that never goes back: a silent worker is one whose last sign has not *changed*
for too long, and what was on its way is timed from the grant as this process saw it. A clock that is set, here or
elsewhere, so gives nobody up.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final
from uuid import UUID

from airflow.configuration import conf
from airflow.executors.local_executor import LocalExecutor
from airflow.utils.net import get_hostname
from sqlalchemy import Connection

from callback_priority.adapter import adoption, callbacks, metrics
from callback_priority.adapter.inflight import InFlight
from callback_priority.adapter.planning import Router
from callback_priority.adapter.settlement import Settlement
from callback_priority.compat.keys import callback_key, callback_of, is_callback
from callback_priority.core.units import MICROSECONDS, SlotMicros
from callback_priority.persistence import items, settling, units
from callback_priority.persistence.settling import Orphan, Pulse
from callback_priority.policy.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["BATCH", "CLOCKS_DIFFER_SECONDS", "Recovery"]

log = logging.getLogger(__name__)

BATCH: Final = 1_000
"""The most runs that are taken over at once, so that no transaction grows long."""

CLOCKS_DIFFER_SECONDS: Final = 60.0
"""By how much the clocks of machines may differ."""

SCHEDULER_GONE: Final = "the scheduler that had granted it is gone"


class Recovery:
    """Finds what one scheduler's callbacks, and those of dead schedulers, came to.

    Args:
        settings: How long things may take.
        in_flight: What this scheduler's executors hold.
        settlement: Settles runs that are over.
        router: Finds executors.
        clock: Seconds of a clock that never goes back.
        job_id: The job of this scheduler.
        living: Age of the last heartbeat from which a scheduler is taken for dead.
    """

    def __init__(
        self,
        settings: Settings,
        in_flight: InFlight,
        settlement: Settlement,
        router: Router,
        clock: Callable[[], float],
        job_id: int,
        living: timedelta,
    ) -> None:
        self.settings = settings
        self.in_flight = in_flight
        self.settlement = settlement
        self.router = router
        self.clock = clock
        self.job_id = job_id
        self.living = living
        self._heard: dict[UUID, tuple[Pulse, float]] = {}
        self._looked_at = clock()

    @property
    def queued_seconds(self) -> float:
        """How long a callback may be on its way to a worker: as long as a task instance, and a margin."""
        own = self.settings.callback_queued_timeout_seconds
        return own or conf.getfloat("scheduler", "task_queued_timeout") + CLOCKS_DIFFER_SECONDS

    @property
    def valid_seconds(self) -> float:
        """How long a worker's token is to be valid: none is turned away before its attempt is given up."""
        return self.queued_seconds + self.settings.sweep_interval_seconds + CLOCKS_DIFFER_SECONDS

    @property
    def silence_seconds(self) -> float:
        """How long a worker may be silent: as long as one that runs a task."""
        own = self.settings.callback_heartbeat_timeout_seconds
        return own or conf.getfloat("scheduler", "task_instance_heartbeat_timeout")

    # Of schedulers that are dead ----------------------------------------------------------------------------

    def take_over(self, session: Session, now: datetime) -> int:
        """Look after what dead schedulers have granted.

        Args:
            session: A transaction that is to be committed.
            now: The present.

        Returns:
            How many runs were found; `BATCH` if there may be more.
        """
        connection = session.connection()
        found = settling.orphans(
            connection, living_since=now - self.living, own_job_id=self.job_id, limit=BATCH
        )
        if not found:
            return 0
        pulses = settling.pulses(connection, [each.callback_id for each in found])
        labels, _, _ = self.router.route(session, found)
        adopted = self._adopt(found, labels)
        local = [each for each, label in labels.items() if self._is_local(label) and each in pulses]
        gone = self._of_dead_processes(connection, local)
        watched = {
            each
            for each, pulse in pulses.items()
            if now - pulse.heard_at <= timedelta(seconds=self._patience_seconds(pulse)) and each not in gone
        } - adopted
        items.take_over(connection, [each.callback_id for each in found], self.job_id)
        for each in found:
            if each.callback_id in adopted:
                self.in_flight.hold(
                    callback_key(each.callback_id),
                    each.service_class,
                    labels[each.callback_id],
                    charge=SlotMicros(0),
                    pool=each.pool,
                )
        lost = {each.callback_id for each in found} - adopted - watched
        if lost:
            self.settlement.settle(session, lost, now, lost=SCHEDULER_GONE)
        log.warning(
            "%d run(s) of callbacks had no scheduler any more: %d are adopted, %d are watched, %d are settled",
            *(len(found), len(adopted), len(watched), len(lost)),
        )
        metrics.count("callbacks_recovered", len(found))
        return len(found)

    def _adopt(self, found: Iterable[Orphan], labels: Mapping[UUID, str]) -> set[UUID]:
        """Have executors look after those of which they can tell what became."""
        names: dict[str, dict[Hashable, str]] = {}
        for each in found:
            label = labels.get(each.callback_id)
            if each.external_id and label and adoption.can_tell(self.in_flight.by_label[label]):
                names.setdefault(label, {})[callback_key(each.callback_id)] = each.external_id
        adopted: set[UUID] = set()
        for label, of_label in names.items():
            try:
                keys = adoption.adopt(self.in_flight.by_label[label], of_label)
            except Exception as error:  # noqa: BLE001 - an executor's own code; without its word they are settled by rows
                self.settlement.failed("adopt", error)
            else:
                adopted |= {callback_of(key) for key in keys}
        return adopted

    def _is_local(self, label: str) -> bool:
        return isinstance(self.in_flight.by_label[label], LocalExecutor)

    # Of this scheduler --------------------------------------------------------------------------------------

    def look_after_own(self, session: Session, now: datetime) -> int:
        """Settle those of this scheduler's callbacks of which nothing more will be heard.

        Those whose worker was reported gone, though what became of them could not be written then, are settled
        now. So are those whose worker is silent or was killed, and those that no worker took in time. What is with no
        executor, since the hand-over failed, is set back to pending: what reached one is in the ledger until its end
        was reported, and that is written before this runs.

        Args:
            session: A transaction that is to be committed.
            now: The present.
        """
        connection = session.connection()
        led_by = {
            item.callback_id: item.leader_id or item.callback_id
            for item in items.granted_items(connection, self.job_id)
        }
        leaders = set(led_by.values())
        self._forget_all_but(leaders)
        self._own(connection, leaders)
        pulses = settling.pulses(connection, leaders)
        away = {each for each in leaders if callback_key(each) not in self.in_flight.ledger}
        silent = self._silent(pulses)
        killed = self._of_dead_processes(connection, self._in_local_workers(pulses))
        late = self._late(pulses)
        untaken = late & leaders
        over = (away & self.settlement.owed) | silent | killed | untaken
        for each in silent | killed | late:
            self._abandon(each, silenced=each in killed)
        self._tell(silent - killed, "their workers have not been heard of in time")
        self._tell(killed, "their worker processes were killed")
        self._tell(untaken, "no worker took them in time, or one without this library takes too long")
        unowned = self._unowned(connection, now)
        if over | unowned:
            self.settlement.settle(session, over | unowned, now)
        self.settlement.owed.clear()
        self.settlement.succeeded.clear()
        # What a worker has, though no executor here knows of it, was taken over and is watched.
        nowhere = away - over - pulses.keys()
        back = [each for each, leader in led_by.items() if leader in nowhere]
        if back:
            # A worker that takes one at this moment does not keep the next from it.
            units.release(connection, back)
            callbacks.to_pending(connection, back)
            items.requeue(connection, back, "no executor had it")
        return len(unowned)

    def _patience_seconds(self, pulse: Pulse) -> float:
        """How long after its last sign a worker may still be there."""
        return self.silence_seconds if pulse.beats else self.settings.callback_running_timeout_seconds

    def _silent(self, pulses: Mapping[UUID, Pulse]) -> set[UUID]:
        """The runs whose worker's last sign has not changed for too long, as this process has watched it.

        Time in which nobody could look is no silence: the database was away, and then workers could not tell either.
        """
        present = self.clock()
        missed = max(0.0, present - self._looked_at - 2 * self.settings.sweep_interval_seconds)
        self._looked_at = present
        self._heard = {
            each: (pulse, min(present, kept[1] + missed))
            if (kept := self._heard.get(each)) and kept[0] == pulse
            else (pulse, present)
            for each, pulse in pulses.items()
        }
        return {
            each
            for each, (pulse, since) in self._heard.items()
            if present - since >= self._patience_seconds(pulse)
        }

    def _in_local_workers(self, pulses: Mapping[UUID, Pulse]) -> list[UUID]:
        return [
            callback_of(hold.key)
            for hold in self.in_flight.ledger
            if is_callback(hold.key)
            and hold.executor in self.in_flight.by_label
            and self._is_local(hold.executor)
            and callback_of(hold.key) in pulses
        ]

    def _of_dead_processes(self, connection: Connection, leaders: Collection[UUID]) -> set[UUID]:
        """Of runs that worker processes of a LocalExecutor took, those whose process is not there any more.

        A process that ends by itself has reported how its run ended before.
        """
        if not leaders:
            return set()
        here = get_hostname()
        gone = set()
        for leader, worker in settling.workers_of(connection, leaders).items():
            host, _, pid = worker.rpartition(":")
            if host == here and pid.isdigit() and not _is_alive(int(pid)):
                gone.add(leader)
        return gone

    def _forget_all_but(self, leaders: Collection[UUID]) -> None:
        longest = self.settings.callback_running_timeout_seconds
        self.in_flight.forget_all_but(
            (callback_key(each) for each in leaders),
            abandoned_before=self.in_flight.now_us() - round(longest * MICROSECONDS),
        )

    def _own(self, connection: Connection, leaders: Collection[UUID]) -> None:
        """Look after what Airflow's own step gave to this scheduler's executors, which know whether it runs."""
        strangers = {
            callback_of(hold.key) for hold in self.in_flight.ledger if is_callback(hold.key)
        }.difference(leaders)
        if strangers:
            items.own(connection, strangers, self.job_id)

    def _late(self, pulses: Mapping[UUID, Pulse]) -> set[UUID]:
        """Callbacks that were given to an executor long ago, and that no worker which reports has.

        Among them may be some that another scheduler has taken over meanwhile: their slots here are kept for nothing.
        """
        present = self.in_flight.now_us()
        late = present - round(self.queued_seconds * MICROSECONDS)
        too_late = present - round(self.settings.callback_running_timeout_seconds * MICROSECONDS)
        found = set()
        for hold in self.in_flight.ledger:
            if not is_callback(hold.key) or hold.granted_at > late:
                continue
            leader = callback_of(hold.key)
            if leader in pulses:
                continue
            if hold.granted_at <= too_late or not self._runs(hold.key, hold.executor):
                found.add(leader)
        return found

    def _runs(self, key: Hashable, label: str) -> bool:
        """Whether a worker which does not report has a callback, by its executor's word."""
        if key in self.in_flight.running:
            return True
        try:
            executor = self.in_flight.by_label.get(label)
            return executor is not None and adoption.is_started(executor, key)
        except Exception as error:  # noqa: BLE001 - an executor's own code; who cannot be asked is given more time
            self.settlement.failed("ask", error)
            return True

    def _unowned(self, connection: Connection, now: datetime) -> set[UUID]:
        """What a scheduler without this library has granted, and of which nothing was heard for too long."""
        found = settling.unowned(
            connection,
            queued_before=now - timedelta(seconds=self.queued_seconds),
            running_before=now - timedelta(seconds=self.settings.callback_running_timeout_seconds),
            limit=BATCH,
        )
        watched = settling.pulses(connection, found)
        items.take_over(connection, watched, self.job_id)
        return set(found) - watched.keys()

    def _abandon(self, leader: UUID, *, silenced: bool) -> None:
        try:
            self.in_flight.abandon(callback_key(leader), silenced=silenced)
        except Exception as error:  # noqa: BLE001 - an executor's own code; its rows are settled all the same
            self.settlement.failed("abandon", error)

    @staticmethod
    def _tell(runs: Collection[UUID], why: str) -> None:
        if runs:
            log.error("%d run(s) of callbacks are lost, e.g. %s: %s", len(runs), min(runs), why)
            metrics.count("callbacks_lost", len(runs))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
