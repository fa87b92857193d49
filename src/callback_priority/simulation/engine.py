"""Schedulers under a virtual clock, run by the same slot loop and the same accounting as the real ones.

A discrete-event simulation. Between two loops of a scheduler, workloads arrive and end; a slot that became free is granted again in the
loop after, which is what *hold* means in this library. Each loop does what Airflow's scheduler does with this library in
it: collect and settle, decide, let the task selection answer, decide again, enter the grants. A loop that
could change nothing is not run: nothing has arrived, ended or been granted since one that granted nothing.

Nothing here reads a clock or an unseeded random number: the same arguments give the same outcome.

What it leaves out: Airflow's limits on active tasks and Dag runs, executors of different sizes, and the time that a loop takes.
"""

from __future__ import annotations

import gc
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from heapq import heappop, heappush, heapreplace
from operator import attrgetter
from typing import Final, NamedTuple

import attrs

from callback_priority.core.accounting import settle
from callback_priority.core.classes import (
    CLASS_ORDER,
    SCHEDULER_FLOWS,
    SCHEDULER_SCOPE,
    FlowKey,
    Level,
    ServiceClass,
)
from callback_priority.core.flows import FlowState
from callback_priority.core.ledger import Ledger, Settlement
from callback_priority.core.slot_loop import decide
from callback_priority.core.snapshot import Candidate, Decision, Entitlements, PoolSlots, Snapshot
from callback_priority.core.units import SlotMicros, seconds_to_micros
from callback_priority.errors import ConfigurationError, Problem
from callback_priority.policy.settings import Settings
from callback_priority.simulation.backlog import Line, Turns, Waiting, anonymous, task_rank
from callback_priority.simulation.meter import Meter
from callback_priority.simulation.scenario import Arriving, Crash, Scenario
from callback_priority.simulation.selection import select
from callback_priority.simulation.watch import Watcher

__all__ = ["Accounting", "Decider", "Simulation", "Treatment"]

EXECUTOR: Final = "simulated"
_TASK: Final = ServiceClass.TASK
_NEVER: Final = 1 << 62
# A named tuple, made in a third of the time: there are two for each workload.
_make: Final = tuple.__new__
_NOTHING: Final = Settlement(amounts={}, holds={})
_number_of: Final = attrgetter("number")

Decider = Callable[[Snapshot, Entitlements], Decision]
"""What decides a pass: the production slot loop, or something to compare it with."""


class Accounting(str, Enum):
    """What a class is charged for.

    ``STARTS`` never settles and never learns how long a class holds its slots: every start costs the same.
    It is the obvious way to be fair, and the wrong one; it is here to be compared with.
    """

    SLOT_TIME = "slot_time"
    STARTS = "starts"

    __str__ = str.__str__


@attrs.frozen(kw_only=True)
class Treatment:
    """One way of sharing the slots, to be tried on a scenario.

    Args:
        name: What to call it.
        settings: The settings at the start.
        changes: Other settings, from a time on, in seconds.
        accounting: What a class is charged for.
        shared_tags: Whether all schedulers share the flows, as the real ones do; else each has its own, to be compared with.
        decide: What decides a pass.
    """

    name: str
    settings: Settings = attrs.field(factory=Settings)
    changes: tuple[tuple[float, Settings], ...] = ()
    accounting: Accounting = Accounting.SLOT_TIME
    shared_tags: bool = True
    decide: Decider = decide


class _Running(NamedTuple):
    """A workload that holds a slot; sorts by its end."""

    until: int
    number: int
    place: int
    pool: str
    granted_at: int
    entry: Waiting
    charge: SlotMicros


class _Replica:
    """One scheduler."""

    def __init__(
        self,
        number: int,
        slots: int,
        offset: int,
        loops: Sequence[int] | None,
        flows: dict[FlowKey, FlowState],
    ) -> None:
        self.number = number
        self.slots = slots
        self.offset = offset
        self.loops = loops
        self.flows = flows
        self.ledger = Ledger()
        self.running: list[_Running] = []
        self.held: dict[ServiceClass, int] = dict.fromkeys(CLASS_ORDER, 0)
        self.stale = False
        self.at = offset
        self.down_until = 0


@contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """Without Python's collector of cycles: a run makes none, and to look for them in all that waits takes a tenth of it."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _refuse_endless_callbacks(scenario: Scenario) -> None:
    problems = [
        Problem(
            key=f"streams[{stream.name!r}].arrivals",
            value=None,
            remedy="only tasks have a backlog without end; write arrivals, such as a storm larger than what can be served",
        )
        for stream in scenario.streams
        if stream.endless and stream.service_class is not _TASK
    ]
    if problems:
        raise ConfigurationError(problems, f"scenario {scenario.name!r}")


class Simulation:
    """One run of a scenario under a treatment.

    Args:
        scenario: What wants slots, and what there is.
        treatment: How they are shared.
        seed: Which random numbers.
        bins: Into how many stretches of equal length what is told over time is divided.
        watch: Is told of everything that happens.

    Raises:
        ConfigurationError: If callbacks are to have a backlog without end.
    """

    def __init__(
        self,
        scenario: Scenario,
        treatment: Treatment,
        *,
        seed: int,
        bins: int = 120,
        watch: Watcher | None = None,
    ) -> None:
        self._watch = watch
        self._scenario = scenario
        self._treatment = treatment
        self._settings = treatment.settings
        self._until = seconds_to_micros(scenario.seconds)
        self._step = seconds_to_micros(scenario.loop_seconds)
        _refuse_endless_callbacks(scenario)
        taking_part = {stream.service_class for stream in scenario.streams}
        classes = [cls for cls in CLASS_ORDER if cls in taking_part]
        self.meter = Meter(
            classes,
            {cls: self._settings.weight(Level.SCHEDULER, SCHEDULER_SCOPE, cls) for cls in CLASS_ORDER},
            warm_up=seconds_to_micros(scenario.warm_up_seconds),
            until=self._until,
            bins=bins,
        )
        self.decisions = 0
        self._turns = Turns(self._settings)
        self._lines: dict[tuple[ServiceClass, str], Line] = {}
        self._task_lines: dict[str, Line] = {}
        self._wanting: list[Line] = []
        self._total = dict(scenario.pools)
        self._open = {pool: total for pool, total in scenario.pools.items() if total is not None}
        self._held_of: dict[str, dict[ServiceClass, int]] = {
            pool: dict.fromkeys(CLASS_ORDER, 0) for pool in scenario.pools
        }
        self._without_end = PoolSlots(open_slots=None)
        self._number = 0
        flows: dict[FlowKey, FlowState] = {}
        self._replicas = [
            _Replica(
                number,
                scenario.slots,
                number * self._step // scenario.schedulers,
                scenario.loops[number] if scenario.loops else None,
                flows if treatment.shared_tags else {},
            )
            for number in range(scenario.schedulers)
        ]
        self._are_several = scenario.schedulers > 1
        self._dag_of: list[int] = []
        self._line_of: list[Line] = []
        self.dags = 0
        self._coming: list[tuple[int, int, Arriving]] = []
        self._arrivals = [stream.arriving(seed) for stream in scenario.streams]
        for at, stream in enumerate(scenario.streams):
            self._dag_of.append(self.dags)
            self.dags += stream.dags
            line = self._line(stream.service_class, stream.pool)
            self._line_of.append(line)
            if stream.endless:
                holds = (each.hold for each in self._arrivals[at])
                if not line.is_waiting:
                    self._wanting.append(line)
                line.never_ends(stream, holds, self._dag_of[at])
            elif (first := next(self._arrivals[at], None)) is not None and first.at < self._until:
                heappush(self._coming, (first.at, at, first))
        self._events: list[tuple[int, int, Crash | Settings | tuple[_Running, ...]]] = []
        for each in scenario.crashes:
            self._schedule(seconds_to_micros(each.at_seconds), each)
        for seconds, settings in treatment.changes:
            self._schedule(seconds_to_micros(seconds), settings)

    # The clock --------------------------------------------------------------------------------------------

    def run(self, progress: Callable[[float], None] = lambda _part: None) -> Meter:
        """Run to the end.

        Python's collector of cycles is off meanwhile: what a decider or a watcher leaves in cycles is found afterwards.

        Args:
            progress: Is told now and then which part of the time has passed, from 0 to 1.

        Complexity: O(loops in which something changed + workloads log workloads).
        """
        with _no_search_for_cycles():
            self._run(progress)
        self.meter.advance(self._until)
        self._arrive(self._until - 1)
        return self.meter

    def _run(self, progress: Callable[[float], None]) -> None:
        told, every = 0, max(1, self._until // 100)
        replicas = self._replicas
        alone = replicas[0] if len(replicas) == 1 else None
        while True:
            if alone is not None:
                replica, now = alone, self._next_loop(alone)
            else:
                # Where no time is between loops, several have theirs at once: first those that woke up, of the
                # others whoever had its last the longest ago.
                now, _, _, _, replica = min(
                    (self._next_loop(each), each.stale, each.at, each.number, each) for each in replicas
                )
            if now >= self._until:
                break
            if self._events and self._events[0][0] <= now:
                self._happen(*heappop(self._events))
                continue
            replica.at = now + (self._step if replica.loops is None else 1)
            replica.stale = not self._loop(replica, now)
            if now - told >= every:
                told = now
                progress(now / self._until)

    def left_waiting(self, service_class: ServiceClass) -> list[int]:
        """When those of a class arrived that wait at the end, in microseconds from the start."""
        return [
            entry.at for line in self._lines.values() if line.service_class is service_class for entry in line
        ]

    def longest_holds(self) -> list[int]:
        """The longest hold of each class, in microseconds; of what still runs at the end, until then."""
        longest = list(self.meter.longest_hold)
        for replica in self._replicas:
            for each in replica.running:
                longest[each.place] = max(longest[each.place], self._until - each.granted_at)
        return longest

    def _next_loop(self, replica: _Replica) -> int:
        """When the next loop of a scheduler is that can change something."""
        if not replica.stale:
            return replica.at if replica.loops is None else _first_from(replica.loops, replica.at)
        coming = self._coming[0][0] if self._coming else _NEVER
        for each in self._replicas:
            if each.running and each.running[0][0] < coming:
                coming = each.running[0][0]
        if self._events and self._events[0][0] < coming:
            coming = self._events[0][0]
        return self._loop_from(replica, coming)

    def _loop_from(self, replica: _Replica, at: int) -> int:
        """When the next loop of a scheduler is from a time on."""
        if replica.loops is not None:
            return _first_from(replica.loops, max(at, replica.at))
        if at <= replica.at:
            return replica.at
        return at + (replica.offset - at) % self._step if self._step else at

    # What comes -------------------------------------------------------------------------------------------

    def _line(self, service_class: ServiceClass, pool: str) -> Line:
        key = (service_class, pool)
        if key not in self._lines:
            place = self.meter.place[service_class]
            line = self._lines[key] = Line(service_class, pool, number=len(self._lines), place=place)
            if service_class is _TASK:
                self._task_lines[pool] = line
        return self._lines[key]

    def _arrive(self, now: int) -> bool:
        coming = self._coming
        if not coming or coming[0][0] > now:
            return False
        streams, arrived = self._scenario.streams, self.meter.arrived
        while coming and coming[0][0] <= now:
            at, number, arriving = coming[0]
            then = next(self._arrivals[number], None)
            if then is not None and then.at < self._until:
                heapreplace(coming, (then.at, number, then))
            else:
                heappop(coming)
            stream = streams[number]
            line = self._line_of[number]
            arrived[line.place] += 1
            dag = self._dag_of[number] + arriving.dag
            priority = stream.priority if arriving.priority is None else arriving.priority
            self._wait(at, line, dag, at, arriving.hold, stream.width, priority)
        return True

    def _wait(self, now: int, line: Line, dag: int, at: int, hold: int, width: int, priority: int) -> None:
        self._number += 1
        number, cls = self._number, line.service_class
        if cls is _TASK:
            rank = task_rank(at, priority)
            candidate = anonymous(width)
        else:
            rank = self._turns.rank(dag, priority, at)
            candidate = Candidate(id=number, rank=rank)
        self._add(now, line, _make(Waiting, (rank, number, at, hold, dag, width, priority, candidate)))

    def _add(self, now: int, line: Line, entry: Waiting) -> None:
        if not line.is_waiting:
            insort(self._wanting, line, key=_number_of)
        line.add(entry)
        if self._watch is not None:
            self._watch.waits(now, line.service_class, line.pool, entry)

    def _wake(self, now: int) -> None:
        """The next loop of each scheduler can change something again; those that it left out are over."""
        for each in self._replicas:
            each.stale = False
            each.at = self._loop_from(each, now)

    # The loop ---------------------------------------------------------------------------------------------

    def _loop(self, replica: _Replica, now: int) -> bool:
        """One loop of one scheduler; whether another of its loops could change something at once."""
        if now < replica.down_until:
            if not self._step:
                replica.at = replica.down_until
            return True
        self.meter.advance(now)
        arrived = self._arrive(now)
        released = self._release(replica, now)
        free = replica.slots - len(replica.running)
        granted = 0
        if free > 0 and self._wanting:
            granted = self._grant(replica, now, free)
        elif released:
            # What ended, ended now: settled with the next grant, as the holds that they were.
            replica.ledger.collect(now)
        if self._are_several and (arrived or released or granted):
            self._wake(now)
        waiting = 0
        for line in self._wanting:
            waiting |= 1 << line.place
        if waiting != self.meter.waiting:
            self.meter.leave_waiting(waiting)
        # With no slot left, or nothing waiting, a loop grants nothing before something ends or arrives.
        return 0 < granted < free and bool(self._wanting)

    def _release(self, replica: _Replica, now: int) -> bool:
        running = replica.running
        released = False
        release = replica.ledger.release
        while running and running[0][0] <= now:
            done = heappop(running)
            release(done.number)
            self._leave(replica, done, now)
            released = True
        return released

    def _leave(self, replica: _Replica, done: _Running, now: int) -> None:
        cls = self.meter.classes[done.place]
        replica.held[cls] -= 1
        self._held_of[done.pool][cls] -= done.entry.width
        if done.pool in self._open:
            self._open[done.pool] += done.entry.width
        self.meter.released(done.place, now - done.granted_at)
        if self._watch is not None:
            self._watch.ended(now, cls, done.pool, done.entry, done.number)

    def _grant(self, replica: _Replica, now: int, free: int) -> int:
        settlement = replica.ledger.collect(now)
        if self._treatment.accounting is Accounting.STARTS:
            settlement = _NOTHING
        flows = replica.flows
        if settlement.amounts or settlement.holds:
            flows.update(settle(flows, settlement, self._settings, now))
        pools: dict[str, PoolSlots] = {}
        backlogs = []
        for line in self._wanting:
            pool = line.pool
            if pool in pools:
                slots = pools[pool]
            else:
                slots = pools[pool] = self._pool(pool)
            backlogs.append(line.shown(free, slots.open_slots))
        snapshot = Snapshot(
            now=now,
            free_slots=free,
            held=replica.held,
            pools=pools,
            backlogs=backlogs,
            flows=flows,
            asks=True,
        )
        decide = self._treatment.decide
        decision = decide(snapshot, self._settings)
        self.decisions += 1
        started = 0
        if decision.task_slots:
            found, answer = select(decision, self._task_lines, now, self._scenario.tasks_per_query)
            snapshot = attrs.evolve(snapshot, answer=answer)
            decision = decide(snapshot, self._settings)
            charge = self._charge(flows, _TASK)
            for line, entry in found:
                self._start(replica, line, entry, now, charge)
            started = len(found)
        replica.ledger.settled()
        charges: dict[ServiceClass, SlotMicros] = {}
        for cls, pool, candidate in decision.grants:
            if candidate.id is not None:
                if cls not in charges:
                    charges[cls] = self._charge(flows, cls)
                line = self._lines[cls, pool]
                entry = line.take_candidate(candidate, now)
                self._turns.left(entry.dag, entry.priority)
                self._start(replica, line, entry, now, charges[cls])
                started += 1
        flows.update(decision.flows)
        if started:
            self._wanting = [line for line in self._wanting if line.is_waiting]
        if self._watch is not None:
            self._watch.decided(now, replica.number, snapshot, decision)
        return started

    def _charge(self, flows: Mapping[FlowKey, FlowState], service_class: ServiceClass) -> SlotMicros:
        """What the slot loop charged for a grant of a class, given these flows."""
        flow = flows.get(SCHEDULER_FLOWS[service_class])
        return flow.estimate if flow else self._settings.initial_estimate

    def _pool(self, pool: str) -> PoolSlots:
        total = self._total.get(pool)
        if total is None:
            return self._without_end
        return PoolSlots(open_slots=self._open[pool], total_slots=total, held=self._held_of[pool])

    def _start(self, replica: _Replica, line: Line, entry: Waiting, now: int, charge: SlotMicros) -> None:
        cls, pool = line.service_class, line.pool
        number, place = entry.number, line.place
        if number < 0:
            self._number += 1
            number = self._number
            self.meter.grant_endless(place)
        else:
            self.meter.granted(place, entry.at, now, entry.dag)
        replica.ledger.grant(
            number,
            service_class=cls,
            pool=pool,
            executor=EXECUTOR,
            now=now,
            charge=charge,
            width=entry.width,
        )
        replica.held[cls] += 1
        self._held_of[pool][cls] += entry.width
        if pool in self._open:
            self._open[pool] -= entry.width
        running = _make(_Running, (now + entry.hold, number, place, pool, now, entry, charge))
        heappush(replica.running, running)
        if self._watch is not None:
            self._watch.started(now, replica.number, cls, pool, entry, number)

    # What happens besides ---------------------------------------------------------------------------------

    def _schedule(self, at: int, what: Crash | Settings | tuple[_Running, ...]) -> None:
        self._number += 1
        heappush(self._events, (at, self._number, what))

    def _happen(self, at: int, _number: int, what: Crash | Settings | tuple[_Running, ...]) -> None:
        self.meter.advance(at)
        if isinstance(what, Settings):
            self._settings = what
        elif isinstance(what, Crash):
            self._crash(at, what)
        else:
            self._take_over(at, what)
        if self._watch is not None and not isinstance(what, tuple):
            self._watch.happened(at, what)
        self._wake(at)

    def _crash(self, at: int, crash: Crash) -> None:
        """A scheduler dies with what it knew of its holds; its tasks run on, its callbacks are taken over later."""
        replica = self._replicas[crash.scheduler]
        held, replica.running = replica.running, []
        replica.ledger = Ledger()
        replica.down_until = at + seconds_to_micros(crash.down_seconds)
        adopter = self._living(at) or replica
        lost = []
        for each in held:
            cls = self.meter.classes[each.place]
            if cls is not _TASK:
                lost.append(each)
                continue
            replica.held[cls] -= 1
            adopter.held[cls] += 1
            # As Airflow's own adoption: nobody knows any more what it was charged.
            adopter.ledger.grant(
                each.number, service_class=cls, pool=None, executor=EXECUTOR, now=at, charge=SlotMicros(0)
            )
            heappush(adopter.running, each)
        for each in lost:
            replica.held[self.meter.classes[each.place]] -= 1
        if lost:
            self._schedule(at + seconds_to_micros(crash.takeover_seconds), tuple(lost))

    def _take_over(self, at: int, lost: tuple[_Running, ...]) -> None:
        """The callbacks of a dead scheduler wait again as they did before, and what they held is settled by a living one."""
        replica = self._living(at) or self._replicas[0]
        for each in lost:
            cls = self.meter.classes[each.place]
            replica.ledger.grant(
                each.number,
                service_class=cls,
                pool=each.pool,
                executor=EXECUTOR,
                now=each.granted_at,
                charge=each.charge,
                width=each.entry.width,
            )
            replica.ledger.release(each.number)
            replica.held[cls] += 1
            self._leave(replica, each, at)
            self._turns.back(each.entry)
            self._add(at, self._lines[cls, each.pool], each.entry)
        replica.ledger.collect(at)

    def _living(self, at: int) -> _Replica | None:
        return next((each for each in self._replicas if each.down_until <= at), None)


def _first_from(loops: Sequence[int], at: int) -> int:
    place = bisect_left(loops, at)
    return loops[place] if place < len(loops) else _NEVER
