"""One scheduler under a virtual clock, run by the same slot loop and the same accounting as the real one.

A discrete-event simulation with one kind of event that matters: the scheduler's loop, every so many seconds.
Between two loops, workloads arrive and finish; a slot that became free is granted again in the next loop,
which is what *hold* means in this library. Each loop does what Airflow's scheduler does with this library in
it: collect and settle, decide, let the task selection answer, decide again, enter the grants.

Nothing here reads a clock or an unseeded random number: the same arguments give the same outcome.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import Enum
from heapq import heappop, heappush
from itertools import islice
from typing import Final, NamedTuple

import attrs

from callback_priority.core.accounting import settle
from callback_priority.core.classes import CLASS_ORDER, SCHEDULER_SCOPE, FlowKey, Level, ServiceClass
from callback_priority.core.flows import FlowState
from callback_priority.core.ledger import Ledger, Settlement
from callback_priority.core.slot_loop import decide
from callback_priority.core.snapshot import (
    Backlog,
    Candidate,
    Decision,
    Entitlements,
    PoolSlots,
    Snapshot,
    TaskAnswer,
)
from callback_priority.core.units import SlotMicros, seconds_to_micros
from callback_priority.simulation.outcome import ClassOutcome, Outcome, to_seconds
from callback_priority.simulation.workload import Stream, Workload

__all__ = ["Accounting", "simulate"]

POOL: Final = "default_pool"
EXECUTOR: Final = "simulated"

_ANY: Final = Candidate()


class Accounting(str, Enum):
    """What a class is charged for.

    ``STARTS`` never settles and never learns how long a class holds its slots: every start costs the same.
    It is the obvious way to be fair, and the wrong one; it is here to be compared with.
    """

    SLOT_TIME = "slot_time"
    STARTS = "starts"

    __str__ = str.__str__


def simulate(
    workload: Workload,
    entitlements: Entitlements,
    *,
    slots: int,
    seed: int,
    loop_seconds: float = 2.0,
    accounting: Accounting = Accounting.SLOT_TIME,
) -> Outcome:
    """Run one scheduler on a workload.

    Args:
        workload: What wants slots, and for how long to watch.
        entitlements: Weights, quotas and policy.
        slots: The scheduler's slots. The pool is without end.
        seed: Which random numbers.
        loop_seconds: From one loop of the scheduler to the next.
        accounting: What a class is charged for.

    Returns:
        Waits and slot-time by class.

    Complexity: O(loops + workloads log slots).
    """
    end = seconds_to_micros(workload.seconds)
    scheduler = _Scheduler(workload, entitlements, slots=slots, seed=seed, accounting=accounting)
    step = seconds_to_micros(loop_seconds)
    for now in range(0, end, step):
        scheduler.loop(now)
    return scheduler.outcome(end)


class _Workload(NamedTuple):
    """One workload; one of an endless backlog arrives when it is started."""

    number: int
    arrived_at: int
    duration: int


class _Source:
    """A stream at work: what has arrived and waits, and what is yet to come."""

    def __init__(self, stream: Stream, seed: int, until: int) -> None:
        self.service_class = stream.service_class
        self.endless = stream.rate_per_second is None
        self._holds = stream.holds(seed)
        self._coming = deque(
            _Workload(number, at, next(self._holds)) for number, at in enumerate(stream.arrivals(seed, until))
        )
        self._waiting: deque[_Workload] = deque()
        self._candidates: deque[Candidate] = deque()
        self._taken = 0

    def arrive(self, now: int) -> None:
        while self._coming and self._coming[0].arrived_at <= now:
            workload = self._coming.popleft()
            self._waiting.append(workload)
            self._candidates.append(Candidate(id=workload.number, rank=workload.arrived_at))

    def candidates(self, most: int) -> Sequence[Candidate]:
        return [_ANY] * most if self.endless else list(islice(self._candidates, most))

    def take(self, now: int) -> _Workload:
        """The first that waits starts."""
        self._taken += 1
        if self.endless:
            return _Workload(self._taken, now, next(self._holds))
        self._candidates.popleft()
        return self._waiting.popleft()

    def left_waiting(self, now: int) -> int:
        self.arrive(now)
        return len(self._waiting)


class _Scheduler:
    """The state of the scheduler between two loops."""

    def __init__(
        self,
        workload: Workload,
        entitlements: Entitlements,
        *,
        slots: int,
        seed: int,
        accounting: Accounting,
    ) -> None:
        self._entitlements = entitlements
        self._slots = slots
        self._accounting = accounting
        self._seconds = workload.seconds
        until = seconds_to_micros(workload.seconds)
        by_class = {stream.service_class: stream for stream in workload.streams}
        self._sources = {cls: _Source(by_class[cls], seed, until) for cls in CLASS_ORDER if cls in by_class}
        self._flows: dict[FlowKey, FlowState] = {}
        self._ledger = Ledger()
        self._running: list[tuple[int, tuple[ServiceClass, int]]] = []
        self._waits: dict[ServiceClass, list[float]] = {cls: [] for cls in self._sources}
        self._started = dict.fromkeys(self._sources, 0)
        self._slot_micros = dict.fromkeys(self._sources, 0)

    def loop(self, now: int) -> None:
        while self._running and self._running[0][0] <= now:
            hold = self._ledger.release(heappop(self._running)[1])
            if hold is not None:
                self._slot_micros[hold.service_class] += now - hold.granted_at
        free = self._slots - len(self._ledger)
        if free <= 0:
            return
        settlement = self._ledger.collect(now)
        if self._accounting is Accounting.STARTS:
            settlement = Settlement(amounts={}, holds={})
        self._flows.update(settle(self._flows, settlement, self._entitlements, now))
        decision = self._decide(now, free)
        self._flows.update(decision.flows)
        self._ledger.settled()
        for grant in decision.grants:
            self._start(grant.service_class, now)

    def _decide(self, now: int, free: int) -> Decision:
        for source in self._sources.values():
            source.arrive(now)
        snapshot = Snapshot(
            now=now,
            free_slots=free,
            held=self._ledger.held(),
            pools={POOL: PoolSlots(open_slots=None)},
            backlogs=[
                Backlog(service_class=cls, pool=POOL, candidates=source.candidates(free + 1))
                for cls, source in self._sources.items()
            ],
            flows=self._flows,
        )
        decision = decide(snapshot, self._entitlements)
        if not decision.task_slots:
            return decision
        # The backlog of tasks is endless, so the selection fills whatever it is asked for.
        answer = TaskAnswer(started={POOL: [1] * decision.task_slots}, waiting=True)
        return decide(attrs.evolve(snapshot, answer=answer), self._entitlements)

    def _start(self, service_class: ServiceClass, now: int) -> None:
        source = self._sources[service_class]
        workload = source.take(now)
        key = (service_class, workload.number)
        flow = FlowKey(Level.SCHEDULER, SCHEDULER_SCOPE, service_class)
        self._ledger.grant(
            key,
            service_class=service_class,
            pool=None,
            executor=EXECUTOR,
            now=now,
            charge=SlotMicros(self._flows[flow].estimate),
        )
        heappush(self._running, (now + workload.duration, key))
        self._started[service_class] += 1
        if not source.endless:
            self._waits[service_class].append(to_seconds(now - workload.arrived_at))

    def outcome(self, end: int) -> Outcome:
        slot_micros = dict(self._slot_micros)
        for hold in self._ledger:
            slot_micros[hold.service_class] += end - hold.granted_at
        return Outcome(
            classes={
                cls: ClassOutcome(
                    waits_seconds=tuple(self._waits[cls]),
                    started=self._started[cls],
                    waiting=source.left_waiting(end),
                    slot_seconds=to_seconds(slot_micros[cls]),
                )
                for cls, source in self._sources.items()
            },
            slots=self._slots,
            seconds=self._seconds,
        )
