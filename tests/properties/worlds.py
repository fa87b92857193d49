"""A small world around the core for tests: schedulers that can be right, and schedulers that must be caught."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import attrs
from hypothesis import strategies as st

from callback_priority.core.accounting import settle
from callback_priority.core.classes import CLASS_ORDER, SCHEDULER_SCOPE, FlowKey, Level, ServiceClass
from callback_priority.core.flows import FlowState
from callback_priority.core.ledger import Ledger, Settlement
from callback_priority.core.quotas import Quota
from callback_priority.core.slot_loop import decide
from callback_priority.core.snapshot import (
    Backlog,
    Candidate,
    Decision,
    Entitlements,
    Grant,
    PoolSlots,
    Snapshot,
)
from callback_priority.core.units import MICROSECONDS, MILLI
from callback_priority.policy.settings import Settings

Decider = Callable[[Snapshot, Entitlements], Decision]

POOL = "default_pool"
TASK, DEADLINE, TASK_CALLBACK, DAG_CALLBACK = (
    ServiceClass.TASK,
    ServiceClass.DEADLINE,
    ServiceClass.TASK_CALLBACK,
    ServiceClass.DAG_CALLBACK,
)

weights = st.one_of(st.integers(1, 20_000), st.sampled_from([1, 333, 1_000, 3_000, 7_000, 1_000_000_000]))
"""In thousandths."""


def scheduler_key(service_class: ServiceClass) -> FlowKey:
    return FlowKey(Level.SCHEDULER, SCHEDULER_SCOPE, service_class)


def pool_key(service_class: ServiceClass, pool: str = POOL) -> FlowKey:
    return FlowKey(Level.POOL, pool, service_class)


def waiting(
    service_class: ServiceClass, count: int, *, pool: str = POOL, width: int = 1, first: int = 0, **more
) -> Backlog:
    """A backlog of equal candidates; the first of them has this number."""
    return Backlog(
        service_class=service_class,
        pool=pool,
        candidates=[
            Candidate(
                id=None if service_class is TASK else f"{service_class}-{n}", width=width, rank=n, **more
            )
            for n in range(first, first + count)
        ],
    )


def granted_by_class(decision: Decision) -> dict[ServiceClass, int]:
    counts = dict.fromkeys(CLASS_ORDER, 0)
    for grant in decision.grants:
        counts[grant.service_class] += 1
    return counts


# Schedulers that must be caught ------------------------------------------------------------------------


def first_come_first_served(snapshot: Snapshot, entitlements: Entitlements) -> Decision:
    """The control that knows no classes: one line for everyone, by rank."""
    everyone = sorted(
        (
            Grant(backlog.service_class, backlog.pool, candidate)
            for backlog in snapshot.backlogs
            for candidate in backlog.candidates
        ),
        key=lambda grant: (grant.candidate.rank, CLASS_ORDER.index(grant.service_class)),
    )
    grants = tuple(everyone[: max(0, snapshot.free_slots)])
    flows = dict(decide(attrs.evolve(snapshot, free_slots=0), entitlements).flows)
    return Decision(grants=grants, task_slots=0, task_pool_slots={}, refusals=(), flows=flows, unused_slots=0)


def never_clamped(snapshot: Snapshot, entitlements: Entitlements) -> Decision:
    """The control that keeps credit: as if nobody had ever been away or blocked."""
    always = {key: attrs.evolve(state, eligible=True) for key, state in snapshot.flows.items()}
    return decide(attrs.evolve(snapshot, flows=always), entitlements)


# Fairness of starts ------------------------------------------------------------------------------------


@attrs.frozen
class Round:
    """One pass: free slots, who waits, and who of them is stopped by its limit."""

    slots: int
    present: frozenset[ServiceClass]
    blocked: frozenset[ServiceClass]

    @property
    def eligible(self) -> frozenset[ServiceClass]:
        return self.present - self.blocked


@attrs.frozen
class Starts:
    """Passes in which a grant costs a class always the same, and that is what it is charged.

    Where `pooled`, a pool is short of slots, not the scheduler.
    """

    weights: Mapping[ServiceClass, int]
    costs: Mapping[ServiceClass, int]
    rounds: Sequence[Round]
    pooled: bool = False


@st.composite
def starts(draw: st.DrawFn, *, always: bool = False, one_at_a_time: bool = False) -> Starts:
    """Scenarios for the fairness of starts; with `always`, everyone waits all the time."""
    classes = draw(st.permutations(CLASS_ORDER))[: draw(st.integers(2, 4))]
    some = st.frozensets(st.sampled_from(classes))
    rounds = st.builds(
        Round,
        slots=st.just(1) if one_at_a_time else st.integers(-1, 7),
        present=st.just(frozenset(classes)) if always else some,
        blocked=st.just(frozenset()) if always else some,
    )
    return Starts(
        weights={cls: draw(weights) for cls in classes},
        costs={cls: draw(st.integers(1, 40)) * MICROSECONDS for cls in classes},
        rounds=draw(st.lists(rounds, min_size=5, max_size=40)),
        pooled=draw(st.booleans()),
    )


def run_starts(scenario: Starts, decider: Decider = decide) -> list[list[ServiceClass]]:
    """The classes granted, in order, by round."""
    settings = Settings(weights=scenario.weights)
    flows = {
        scheduler_key(cls): FlowState(key=scheduler_key(cls), weight=scenario.weights[cls], estimate=cost)
        for cls, cost in scenario.costs.items()
    }
    limited = _Limited(settings, Level.POOL if scenario.pooled else Level.SCHEDULER)
    granted: list[list[ServiceClass]] = []
    for number, each in enumerate(scenario.rounds):
        limited.stopped = each.blocked
        snapshot = Snapshot(
            now=number,
            free_slots=50 if scenario.pooled else each.slots,
            pools={POOL: PoolSlots(open_slots=each.slots if scenario.pooled else None)},
            backlogs=[
                waiting(cls, max(0, each.slots) + 1, first=number * 10)
                for cls in CLASS_ORDER
                if cls in each.present
            ],
            flows=dict(flows),
        )
        decision = decider(snapshot, limited)
        flows.update(decision.flows)
        granted.append([grant.service_class for grant in decision.grants])
    return granted


class _Limited:
    """Entitlements under which some classes may hold nothing for a while, at one of the levels."""

    def __init__(self, settings: Settings, level: Level) -> None:
        self.settings = settings
        self.level = level
        self.stopped: frozenset[ServiceClass] = frozenset()

    def __getattr__(self, name: str) -> object:
        return getattr(self.settings, name)

    def quotas(self, level, scope):
        stopped = self.stopped if level is self.level else ()
        return {**self.settings.quotas(level, scope), **dict.fromkeys(stopped, Quota(limit_slots=0))}


def worst_unfairness(scenario: Starts, decider: Decider = decide) -> Fraction:
    """The largest |N_f/w_f - N_g/w_g| over its bound, for any two classes and any stretch of common waiting.

    The bound is c_f/w_f + c_g/w_g, and one virtual microsecond, the grain in which tags are compared.
    """
    granted = run_starts(scenario, decider)
    classes = list(scenario.weights)
    worst = Fraction(0)
    for at, f in enumerate(classes):
        for g in classes[at + 1 :]:
            step_f = Fraction(scenario.costs[f] * MILLI, scenario.weights[f])
            step_g = Fraction(scenario.costs[g] * MILLI, scenario.weights[g])
            lead = lowest = highest = Fraction(0)
            for each, grants in zip(scenario.rounds, granted, strict=True):
                if each.slots > 0 and not {f, g} <= each.eligible:
                    lead = lowest = highest = Fraction(0)
                    continue
                for cls in grants:
                    lead += step_f if cls is f else -step_g if cls is g else 0
                    lowest, highest = min(lowest, lead), max(highest, lead)
            worst = max(worst, (highest - lowest) / (step_f + step_g + 1))
    return worst


# Fairness of slot-time ---------------------------------------------------------------------------------


@attrs.frozen
class Holding:
    """A few slots, classes that always wait, and holds that nobody knows beforehand."""

    slots: int
    weights: Mapping[ServiceClass, int]
    holds: Mapping[ServiceClass, Sequence[int]]
    steps: Sequence[int]
    pooled: bool = False


@st.composite
def holdings(draw: st.DrawFn) -> Holding:
    """Scenarios for the fairness of slot-time; where `pooled`, a pool is short of slots, not the scheduler."""
    classes = draw(st.permutations(CLASS_ORDER))[: draw(st.integers(2, 3))]
    few_seconds = st.lists(st.integers(1, 60), min_size=1, max_size=5)
    return Holding(
        slots=draw(st.integers(1, 6)),
        weights={cls: draw(st.integers(200, 5_000)) for cls in classes},
        holds={cls: draw(few_seconds) for cls in classes},
        steps=draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)),
        pooled=draw(st.booleans()),
    )


def worst_slot_time_unfairness(
    scenario: Holding, *, decider: Decider = decide, settled: bool = True, seconds: int = 900
) -> Fraction:
    """The largest |S_f/w_f - S_g/w_g| over (K + 1) (d_f/w_f + d_g/w_g), at any loop.

    S is slot-time as it was held, K the slots, d the longest hold that came up, in steps of the loop.
    """
    settings = Settings(weights=scenario.weights)
    classes = [cls for cls in CLASS_ORDER if cls in scenario.weights]
    flows: dict[FlowKey, FlowState] = {}
    ledger = Ledger()
    ends: dict[tuple[ServiceClass, int], int] = {}
    counts = dict.fromkeys(classes, 0)
    used = dict.fromkeys(classes, 0)
    longest = dict.fromkeys(classes, 1)
    now = number = 0
    worst = Fraction(0)
    while now < seconds:
        for key in [key for key, end in ends.items() if end <= now]:
            del ends[key]
            hold = ledger.release(key)
            longest[hold.service_class] = max(
                longest[hold.service_class], now - hold.granted_at // MICROSECONDS
            )
        clock = now * MICROSECONDS
        settlement = ledger.collect(clock)
        flows.update(
            settle(flows, settlement if settled else Settlement(amounts={}, holds={}), settings, clock)
        )
        ledger.settled()
        ledger.check_invariants()
        free = scenario.slots - len(ledger)
        snapshot = Snapshot(
            now=clock,
            free_slots=50 if scenario.pooled else free,
            pools={POOL: PoolSlots(open_slots=free if scenario.pooled else None, total_slots=scenario.slots)},
            backlogs=[waiting(cls, 51 if scenario.pooled else free + 1, first=now * 10) for cls in classes],
            flows=dict(flows),
        )
        decision = decider(snapshot, settings)
        flows.update(decision.flows)
        for grant in decision.grants:
            cls = grant.service_class
            durations = scenario.holds[cls]
            key = (cls, counts[cls])
            ends[key] = now + durations[counts[cls] % len(durations)]
            state = flows.get(scheduler_key(cls))
            charge = state.estimate if state else settings.initial_estimate
            ledger.grant(key, service_class=cls, pool=POOL, executor="e", now=clock, charge=charge)
            counts[cls] += 1
        step = scenario.steps[number % len(scenario.steps)]
        number += 1
        for hold in ledger:
            used[hold.service_class] += step
        now += step
        for hold in ledger:
            longest[hold.service_class] = max(
                longest[hold.service_class], now - hold.granted_at // MICROSECONDS
            )
        for at, f in enumerate(classes):
            for g in classes[at + 1 :]:
                w_f, w_g = scenario.weights[f], scenario.weights[g]
                apart = abs(Fraction(used[f], w_f) - Fraction(used[g], w_g))
                bound = (scenario.slots + 1) * (Fraction(longest[f], w_f) + Fraction(longest[g], w_g))
                worst = max(worst, apart / bound)
    return worst
