"""The slot loop inside Airflow's scheduler: one allocator for each scheduler, owner of both of its steps.

In each scheduler loop the hook calls, in this order:

1. `SlotAllocator.select` from the critical section, in its transaction and under its lock. It reads what
   waits, decides, lets Airflow's own selection of task instances run with the slots that are theirs, decides
   again with its answer, and writes: callbacks granted become QUEUED.
2. `SlotAllocator.hand_over` after the commit: granted callbacks reach their executors.
3. `SlotAllocator.process_events`: what ended frees its slot, and callbacks that shared a worker are settled.
4. `SlotAllocator.callback_step` in place of Airflow's step: callbacks whose deadline was missed in this
   transaction get their items, and what is due of upkeep is done.

Whatever fails in here is rolled back to a savepoint, logged once per cause and counted. Task selection then
runs in that loop as Airflow wrote it, and callbacks wait for the next. After several failures in a row the
allocator steps aside for a while, and both steps run as Airflow wrote them.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import attrs
from airflow.utils.session import create_session
from sqlalchemy import event
from sqlalchemy.exc import OperationalError, ProgrammingError

from callback_priority.adapter import callbacks, metrics
from callback_priority.adapter.breaker import Breaker
from callback_priority.adapter.handover import HandOver
from callback_priority.adapter.inflight import ENDED_NOT, InFlight
from callback_priority.adapter.journal import Journal
from callback_priority.adapter.planning import Aside, PlanInput, Router, offered_pools, snapshot_of, without
from callback_priority.adapter.recovery import Recovery
from callback_priority.adapter.savepoints import roll_back_if_lost, savepoint
from callback_priority.adapter.settlement import GivenUp, Settlement
from callback_priority.adapter.shadow import Shadow
from callback_priority.adapter.turn import Turn
from callback_priority.adapter.upkeep import Upkeep
from callback_priority.compat.keys import callback_of, is_callback
from callback_priority.compat.rows import forgets_data, keep_data
from callback_priority.compat.selection import Selection
from callback_priority.core.accounting import flow_state, settle
from callback_priority.core.classes import CLASS_ORDER, SCHEDULER_SCOPE, FlowKey, Level, ServiceClass
from callback_priority.core.slot_loop import decide
from callback_priority.core.snapshot import TaskAnswer
from callback_priority.core.units import MICROSECONDS, SlotMicros
from callback_priority.errors import InternalError, TransactionLostError
from callback_priority.persistence import items, waiting
from callback_priority.persistence.flows import read_state, write_flows
from callback_priority.policy.settings import Mode, Settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["NEW_ITEMS", "SlotAllocator"]

log = logging.getLogger(__name__)

NEW_ITEMS: Final = "callback_priority_new_items"
"""Where a session keeps the callbacks that became pending in its transaction."""

HURRIED_IDLE_SLEEP_SECONDS: Final = 0.1
"""How long an idle scheduler sleeps when callbacks may be waiting for its next loop."""

_WRITES: Final = frozenset({"done", "enqueue", "keep_data"})
"""What writes before it reads."""


class SlotAllocator:
    """Owner of the slots of one scheduler.

    Args:
        runner: Airflow's ``SchedulerJobRunner``.
        settings: Valid settings; the mode is `Mode.SHADOW` or `Mode.ACTIVE`.
        living_seconds: Age of the last heartbeat from which Airflow takes a scheduler for dead.
        clock: Seconds of a clock that never goes back.
        utcnow: The present.
    """

    def __init__(
        self,
        runner: Any,
        settings: Settings,
        *,
        living_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        utcnow: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self.runner = runner
        self.settings = settings
        self.living = timedelta(seconds=living_seconds)
        self.clock = clock
        self.utcnow = utcnow
        self.in_flight = InFlight(runner.executors, clock)
        self.ledger = self.in_flight.ledger
        self.router = Router(runner, self.in_flight)
        self.settlement = Settlement(self.in_flight, settings, self._failed, runner.job.id)
        self.hand = HandOver(self.in_flight, self.router, self.settlement, utcnow, self._failed)
        self.journal = Journal(settings, runner.job.id)
        self.shadow = Shadow(self.in_flight, settings, runner.job.id, self.journal)
        self.breaker = Breaker(settings.failure_threshold, settings.failure_back_off_seconds)
        self.recovery = Recovery(
            settings, self.in_flight, self.settlement, self.router, clock, runner.job.id, self.living
        )
        self.upkeep = Upkeep(
            settings, self.in_flight, self.settlement, clock, self.recovery if self.active else None
        )
        self.tables_in_doubt = False
        """Whether a statement failed as it would if a table, or a column of one, were not there any more."""
        self.turn: Turn | None = None
        self.charges: dict[ServiceClass, SlotMicros] = {}
        self.idle_sleep_seconds: float = runner._scheduler_idle_sleep_time
        for executor in runner.executors:
            executor._callback_priority_ledger = self.ledger

    @property
    def active(self) -> bool:
        """Whether decisions are carried out."""
        return self.settings.mode is Mode.ACTIVE

    @property
    def aside(self) -> bool:
        """Whether the allocator has stepped aside after failures."""
        return self.breaker.is_open(self.clock())

    # The critical section ---------------------------------------------------------------------------------

    def select(self, selection: Selection, session: Session) -> list[Any]:
        """Grant slots to callbacks and task instances.

        Args:
            selection: Airflow's own selection of task instances.
            session: The critical section's session.

        Returns:
            The task instances that Airflow's selection set to queued.

        Raises:
            OperationalError: Another scheduler is in the critical section, as in Airflow's own code.
        """
        self.turn = None
        if self.aside:
            return selection.unchanged()
        try:
            pools = selection.enter()
        except OperationalError:
            self.hurry()
            raise
        connection = session.connection()
        try:
            with savepoint(connection, "callback_priority_plan", reads_first=True):
                turn = self._plan(session, pools, asks=self.active and selection.max_tis > 0)
        except TransactionLostError:
            raise
        except Exception as error:
            self._failed("plan", error)
            return selection.unchanged()
        if not self.active:
            found = selection.unchanged()
            try:
                with savepoint(connection, "callback_priority_shadow"):
                    self.shadow.record(connection, turn, found)
                turn.recorded = True
                self.turn = turn
            except TransactionLostError:
                raise
            except Exception as error:
                self._failed("shadow", error)
            return found
        try_again = True
        while try_again:
            asked = min(turn.offer.task_slots, selection.max_tis - len(turn.task_instances))
            if asked <= 0:
                break
            with self._room_for_tasks(turn):
                found = selection.among(offered_pools(turn.pools, turn.offer), asked)
            turn.task_instances += found
            try:
                self._take_answer(session, turn, found, asked)
                try_again = len(found) == asked == turn.offer.task_slots and self._offer_rest(turn)
            except TransactionLostError:
                raise
            except Exception as error:
                self._failed("answer", error)
                return turn.task_instances
        try:
            if turn.changes_something():
                with savepoint(connection, "callback_priority_grant"):
                    given_up = self._record(session, turn)
                self._tell(turn, given_up)
            turn.recorded = True
        except TransactionLostError:
            raise
        except Exception as error:
            self._failed("grant", error)
            return turn.task_instances
        self.turn = turn
        return turn.task_instances

    def _plan(self, session: Session, pools: Mapping[str, Any], *, asks: bool) -> Turn:
        """Read, settle and decide; writes nothing."""
        connection = session.connection()
        now, monotonic_us = self.utcnow(), self.in_flight.now_us()
        epoch_us = round(now.timestamp() * MICROSECONDS)
        self.upkeep.reconcile(session)
        state = read_state(connection, living_since=now - self.living, own_job_id=self.runner.job.id)
        settlement = self.ledger.collect(monotonic_us)
        changed = settle(state.flows, settlement, self.settings, epoch_us)
        flows = {**state.flows, **changed}
        occupancy = self.in_flight.occupancy()
        plan = PlanInput(
            epoch_us=epoch_us,
            pools=pools,
            held=state.held,
            occupancy=occupancy,
            parallelism=self.runner._parallelism,
            flows=flows,
            pairs=waiting.waiting_pairs(connection),
            batch_size=self.settings.callback_batch_size,
            # In shadow mode none expires.
            alive_since=self.settings.alive_since(now) if self.active else {},
            asks=asks,
        )
        planned = snapshot_of(session, plan, self.router)
        if planned.outlived:
            self.upkeep.sweep_soon()
        self.charges = {
            cls: flow_state(FlowKey(Level.SCHEDULER, SCHEDULER_SCOPE, cls), flows, 0, self.settings).estimate
            for cls in CLASS_ORDER
        }
        turn = Turn(
            now=now,
            monotonic_us=monotonic_us,
            pools=pools,
            read=state.flows,
            settlement=settlement,
            flows=flows,
            changed=changed,
            snapshot=planned.snapshot,
            aside=planned.aside,
            unfit=planned.never,
            charges=self.charges,
            unreported=occupancy.unreported,
            decision=decide(planned.snapshot, self.settings),
        )
        if self.active:
            self._make_good(session, turn)
        turn.offer = turn.decision
        return turn

    def _make_good(self, session: Session, turn: Turn) -> None:
        """Decide again until every callback that is granted a slot was locked, read and found fit to run."""
        while True:
            wanted = [
                (grant.candidate.id, self.in_flight.by_label[grant.candidate.executor])  # type: ignore[index]
                for grant in turn.decision.grants
                if grant.candidate.id is not None and grant.candidate.id not in turn.workloads
            ]
            if not wanted:
                return
            loaded = callbacks.load(
                session,
                wanted,  # type: ignore[arg-type]
                self.settings.callback_queue,
                valid_seconds=self.recovery.valid_seconds,
            )
            turn.workloads |= loaded.workloads
            turn.batches |= loaded.batches
            turn.attempts |= loaded.attempts
            turn.unfit |= loaded.unfit
            turn.elsewhere |= loaded.elsewhere
            turn.missing |= loaded.missing
            turn.aside += [Aside(callback_id=each, reason=why) for each, why in loaded.later.items()]
            lost = loaded.unfit.keys() | loaded.later.keys() | loaded.elsewhere | loaded.missing
            if not lost:
                return
            turn.snapshot = without(turn.snapshot, lost)
            turn.decision = decide(turn.snapshot, self.settings)

    @contextmanager
    def _room_for_tasks(self, turn: Turn) -> Iterator[None]:
        """Let Airflow's selection see those slots of the executors that are the tasks', and no others."""
        taken = Counter(turn.unreported)
        for grant in turn.decision.grants:
            if grant.candidate.executor is not None:
                taken[grant.candidate.executor] += 1
        for label, slots in taken.items():
            self.in_flight.by_label[label].parallelism -= slots
        try:
            yield
        finally:
            for label, slots in taken.items():
                self.in_flight.by_label[label].parallelism += slots

    def _take_answer(self, session: Session, turn: Turn, found: Sequence[Any], asked: int) -> None:
        """Decide again, now that Airflow's selection has said what it did with the tasks' slots.

        Filling all that was asked for while more was due is Airflow's cap on one selection: the rest stays
        the tasks'. A shorter answer gives the rest away, and an empty one says that nothing could run. Filling all
        that was due says nothing of pools from which nothing was taken: tasks wait there for slots, as in the others.
        """
        before = turn.snapshot.answer
        started = {pool: list(widths) for pool, widths in before.started.items()} if before else {}
        if len(found) < turn.offer.task_slots:
            for pool in turn.offer.task_pool_slots:
                started.setdefault(pool, [])
        for task_instance in found:
            started.setdefault(task_instance.pool, []).append(task_instance.pool_slots)
        capped = len(found) == asked < turn.offer.task_slots
        answer = TaskAnswer(
            started=started,
            kept_slots=turn.offer.task_slots - asked if capped else 0,
            waiting=bool(turn.task_instances),
        )
        turn.snapshot = attrs.evolve(turn.snapshot, answer=answer)
        turn.decision = decide(turn.snapshot, self.settings)
        if set(turn.granted) - turn.workloads.keys():
            with savepoint(session.connection(), "callback_priority_answer", reads_first=True):
                self._make_good(session, turn)

    def _offer_rest(self, turn: Turn) -> bool:
        """Whether tasks are asked once more: callbacks fell away at the last moment, and slots would stay empty."""
        free = turn.decision.unused_slots
        if free <= 0:
            return False
        granted: Counter[tuple[str, ServiceClass]] = Counter()
        for grant in turn.decision.grants:
            granted[grant.pool, grant.service_class] += grant.candidate.width
        slots = Counter(grant.service_class for grant in turn.decision.grants)
        pools = {}
        for name, pool in turn.snapshot.pools.items():
            taken = {cls: granted[name, cls] for cls in CLASS_ORDER}
            pools[name] = attrs.evolve(
                pool,
                open_slots=None if pool.open_slots is None else pool.open_slots - sum(taken.values()),
                held={cls: pool.held.get(cls, 0) + taken[cls] for cls in CLASS_ORDER},
            )
        rest = attrs.evolve(
            turn.snapshot,
            free_slots=free,
            held={cls: turn.snapshot.held.get(cls, 0) + slots[cls] for cls in CLASS_ORDER},
            pools=pools,
            backlogs=[each for each in turn.snapshot.backlogs if each.service_class is ServiceClass.TASK],
            answer=None,
        )
        turn.offer = decide(rest, self.settings)
        return turn.offer.task_slots > 0

    def _record(self, session: Session, turn: Turn) -> GivenUp | None:
        """Write what was decided: all of it or, if anything fails, nothing.

        Returns:
            What became of callbacks that can never run here; ``None`` if there are none.
        """
        connection = session.connection()
        granted = turn.granted
        if granted:
            turn.companions = self._companions(connection, turn)
            together = [*granted, *(each for riding in turn.companions.values() for each in riding)]
            if (queued := callbacks.queue(connection, together)) != len(together):
                raise InternalError(f"{len(together)} locked callbacks were granted, {queued} were pending")
            job_id = self.runner.job.id
            items.mark_granted(connection, granted, now=turn.now, job_id=job_id, charges=turn.charges)
            if turn.companions:
                items.mark_companions(connection, turn.companions, now=turn.now, job_id=job_id)
        given_up = self._set_aside(session, turn)
        if flows := {**turn.changed, **turn.decision.flows}:
            write_flows(connection, flows.values())
            self.journal.note(connection, turn)
        return given_up

    def _companions(self, connection: Any, turn: Turn) -> dict[UUID, dict[UUID, int]]:
        """Find what can share the runs of callbacks that are granted slots; no statement if nothing can."""
        most = self.settings.callback_batch_size - 1
        leaders = [(each, turn.batches[each]) for each in turn.granted if each in turn.batches]
        if not leaders or most < 1:
            return {}
        cannot = {*turn.unfit, *turn.elsewhere, *(each.callback_id for each in turn.aside)}
        return waiting.companions(connection, leaders, most, apart_from={*turn.granted, *cannot})

    def _set_aside(self, session: Session, turn: Turn) -> GivenUp | None:
        """Take what cannot run out of the way of what can."""
        connection = session.connection()
        given_up = self.settlement.give_up(session, turn.unfit, turn.now) if turn.unfit else None
        if turn.elsewhere:
            items.mark_done(connection, turn.elsewhere, turn.now, "ended or taken outside of this library")
        for reason, ids in turn.aside_by_reason().items():
            items.park(connection, ids, now=turn.now, retry_at=self._retry_at(turn), reason=reason)
        return given_up

    def _retry_at(self, turn: Turn) -> datetime:
        return turn.now + timedelta(seconds=self.settings.executor_retry_seconds)

    def _tell(self, turn: Turn, given_up: GivenUp | None) -> None:
        """Log and count what was set aside, now that it is written."""
        if given_up is not None:
            given_up.tell()
        if turn.missing:
            self.upkeep.sweep_soon()
        for reason, ids in turn.aside_by_reason().items():
            log.warning("%d callback(s) set aside until %s: %s", len(ids), self._retry_at(turn), reason)

    # After the commit -------------------------------------------------------------------------------------

    def hand_over(self, session: Session) -> int:
        """Give granted callbacks to their executors, now that the grant is committed.

        Returns:
            How many callbacks were granted: they count as work, so that a busy loop does not sleep.
        """
        turn, self.turn = self.turn, None
        handed = 0
        try:
            if turn is not None and turn.recorded:
                self.ledger.settled()
                self.shadow.committed()
                self.journal.committed()
                self.breaker.succeeded()
                handed = self.hand.give(session, turn)
                metrics.count("callbacks_granted", handed)
            self.hand.adopt_queued()
        except Exception as error:
            roll_back_if_lost(session, error)
            self._failed("hand over", error)
            self.upkeep.sweep_soon()
        return handed

    @contextmanager
    def following(self, session: Session) -> Iterator[None]:
        """Forget the turn if its transaction is rolled back: nothing was granted then.

        Airflow passes over some errors (a row that somebody else has locked): it rolls back and goes on.
        """

        def forget(_: Session) -> None:
            self.turn = None

        event.listen(session, "after_rollback", forget)
        try:
            yield
        except BaseException:
            self.turn = None
            raise
        finally:
            event.remove(session, "after_rollback", forget)

    # Events and upkeep ------------------------------------------------------------------------------------

    def process_events(self, original: Callable[[], int], executor: Any, session: Session) -> int:
        """Free the slots of what an executor reports as ended, and count finished callbacks as work.

        Airflow's method is not shown what this library knows better: how its own callbacks ended.

        Args:
            original: Airflow's ``_process_executor_events``, bound to executor and session.
            executor: The executor.
            session: The transaction in which Airflow writes the states.
        """
        routed = self.settlement.take_events(session, executor) if self.active else []
        told = dict(executor.event_buffer)
        put_back = partial(_put_back, executor, told)
        ended = [key for key, (state, _) in executor.event_buffer.items() if state not in ENDED_NOT]
        try:
            count = original()
        finally:
            self.in_flight.ended([*ended, *routed])
        finished = [callback_of(key) for key in ended if is_callback(key)]
        if finished:
            now = self.utcnow()
            self._guarded(session, "done", lambda: self._mark_done(session, finished, now), put_back)
        if routed:
            leaders = [callback_of(key) for key in routed]
            settle = partial(self.settlement.settle, session, leaders, self.utcnow())
            if not self._guarded(session, "settle", settle, put_back):
                self.upkeep.sweep_soon()
        return count + len(finished) + len(routed)

    def take_over(self) -> None:
        """Look after what dead schedulers have granted: at start, and whenever Airflow does so for task instances."""
        if not self.active or self.aside:
            return
        try:
            with create_session(scoped=False) as session:
                found = self.recovery.take_over(session, self.utcnow())
            if found:
                self.hurry()
        except Exception as error:
            self._failed("take over", error)

    def callback_step(self, original: Callable[[], None], session: Session) -> None:
        """Do in place of Airflow's callback step what is left to do there.

        Args:
            original: Airflow's ``_enqueue_executor_callbacks``, bound to the session.
            session: The transaction in which deadlines were found missed.
        """
        new = session.info.pop(NEW_ITEMS, [])
        if new and self.active and forgets_data():
            kept = self._guarded(session, "keep_data", lambda: keep_data(session.connection(), new))
            new = new if kept else []
        if new and not self._guarded(
            session, "enqueue", lambda: self.upkeep.enqueue(session, new, self.utcnow())
        ):
            self.upkeep.sweep_soon()
        roused = len(new)
        if self.upkeep.is_due():
            self._guarded(session, "upkeep", lambda: self.upkeep.run(session, self.utcnow()))
            roused += self.upkeep.roused
        if not self.active or self.aside:
            original()
            if not self.active:
                self._guarded(session, "shadow", lambda: self._note_queued(session))
        elif roused:
            self.hurry()

    @staticmethod
    def _mark_done(session: Session, finished: list[UUID], now: datetime) -> None:
        items.mark_done(session.connection(), finished, now)

    def _note_queued(self, session: Session) -> None:
        self.shadow.note_queued(session.connection(), self.utcnow(), self.charges)

    def _guarded(
        self,
        session: Session,
        what: str,
        action: Callable[[], None],
        undone: Callable[[], None] = lambda: None,
    ) -> bool:
        """Do something that may fail without harm.

        Args:
            session: Airflow's, in its transaction.
            what: What is done, for the log.
            action: Does it.
            undone: Is called if all of the transaction had to be rolled back.

        Returns:
            Whether it went well.
        """
        try:
            with savepoint(
                session.connection(), f"callback_priority_{what}", reads_first=what not in _WRITES
            ):
                action()
        except Exception as error:
            if roll_back_if_lost(session, error):
                undone()
            self._failed(what, error)
            return False
        return True

    def hurry(self) -> None:
        """Callbacks may be waiting for the next loop: an idle scheduler should not sleep for long."""
        self.runner._scheduler_idle_sleep_time = min(self.idle_sleep_seconds, HURRIED_IDLE_SLEEP_SECONDS)

    def calm(self) -> None:
        """A new loop begins: its idle sleep is Airflow's own again."""
        self.breaker.begin()
        self.runner._scheduler_idle_sleep_time = self.idle_sleep_seconds

    # Failures ---------------------------------------------------------------------------------------------

    def step_aside(self, why: str) -> None:
        """Let Airflow's own steps run for a while, however well the rest goes."""
        self.breaker.open(self.clock())
        log.error("callback-priority steps aside for %g s: %s", self.breaker.back_off_seconds, why)

    def _failed(self, where: str, error: Exception) -> None:
        now = self.clock()
        self.tables_in_doubt |= isinstance(error, (OperationalError, ProgrammingError))
        opened = self.breaker.failed(now)
        cause = f"{where}: {type(error).__name__}"
        if self.breaker.first_time(cause):
            log.error(
                "callback-priority failed (%s); task selection goes on as in Airflow", cause, exc_info=error
            )
        else:
            log.debug("callback-priority failed again (%s): %s", cause, error)
        if opened:
            log.error(
                "callback-priority failed %d times in a row and steps aside for %g s: Airflow's own steps run. Last: %s",
                self.breaker.failures,
                self.breaker.back_off_seconds,
                cause,
            )
        metrics.count("failures")


def _put_back(executor: Any, told: Mapping[Any, Any]) -> None:
    """Have an executor tell once more what Airflow had written down, and what was undone."""
    for key, what in told.items():
        executor.event_buffer.setdefault(key, what)
