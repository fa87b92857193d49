"""Any snapshot at all, entitlements that are easy to change, and a naive account of what a decision leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import inf

import attrs
from hypothesis import strategies as st

from callback_priority.core.classes import CALLBACK_CLASSES, CLASS_ORDER, FlowKey, Level, ServiceClass
from callback_priority.core.flows import FlowState
from callback_priority.core.policies import Policy
from callback_priority.core.quotas import NO_QUOTA, Quota
from callback_priority.core.snapshot import Backlog, Candidate, Decision, PoolSlots, Snapshot
from callback_priority.core.units import MICROSECONDS, MILLI
from tests.properties.worlds import TASK, pool_key, scheduler_key

POOLS = ("default_pool", "etl", "reports")
EXECUTORS = ("local", "remote")
WEIGHTS = {
    ServiceClass.DEADLINE: 2 * MILLI,
    ServiceClass.TASK_CALLBACK: MILLI,
    ServiceClass.DAG_CALLBACK: 333,
    TASK: 3 * MILLI,
}


@attrs.frozen(kw_only=True)
class Rules:
    """Entitlements as plain mappings."""

    policy: Policy = Policy.FAIR
    wide_bypass_limit: int = 4
    initial_estimate: int = MICROSECONDS
    weights: Mapping[ServiceClass, int] = attrs.field(factory=lambda: dict(WEIGHTS))
    slot_quotas: Mapping[ServiceClass, Quota] = attrs.field(factory=dict)
    pool_quotas: Mapping[tuple[str, ServiceClass], Quota] = attrs.field(factory=dict)

    def quotas(self, level, scope):
        if level is Level.SCHEDULER:
            return self.slot_quotas
        return {cls: quota for (pool, cls), quota in self.pool_quotas.items() if pool == scope}

    def weight(self, level, scope, service_class):
        return self.weights[service_class]


@attrs.frozen(kw_only=True)
class Case:
    """A snapshot and the entitlements it is decided under."""

    snapshot: Snapshot
    rules: Rules


def quotas(most: int) -> st.SearchStrategy[Quota]:
    reserves = st.sampled_from([0, 0, 1, 2])
    limits = st.one_of(st.none(), st.none(), st.integers(0, most))
    return st.builds(Quota, reserve_slots=reserves, limit_slots=limits)


@st.composite
def flow_states(draw: st.DrawFn, key: FlowKey) -> FlowState:
    return FlowState(
        key=key,
        weight=draw(st.sampled_from([WEIGHTS[key.service_class], 500])),
        estimate=draw(st.integers(1, 900)) * MICROSECONDS,
        tag=draw(st.integers(-(10**9), 10**10)),
        clock=draw(st.integers(0, 10**9)),
        eligible=draw(st.booleans()),
        bypassed=draw(st.integers(0, 5)),
    )


@st.composite
def cases(draw: st.DrawFn, *, widths: bool = True) -> Case:
    """Any snapshot: pools overdrawn and endless, quotas that contradict each other, executors full or not."""
    names = draw(st.lists(st.sampled_from(POOLS), min_size=1, max_size=3, unique=True))
    small = st.integers(0, 3)
    pools = {}
    for name in names:
        held = {cls: draw(small) for cls in CLASS_ORDER}
        total = draw(st.one_of(st.none(), st.integers(0, 14)))
        open_slots = None if total is None else total - sum(held.values())
        pools[name] = PoolSlots(open_slots=open_slots, total_slots=total, held=held)
    backlogs = []
    for name in [*names, *draw(st.sampled_from([[], ["gone"]]))]:
        for cls in draw(st.permutations(CLASS_ORDER)):
            wide = st.sampled_from([1, 1, 2, 4]) if cls is TASK and widths else st.just(1)
            candidates = [
                Candidate(
                    id=None if cls is TASK else f"{name}-{cls}-{number}",
                    width=draw(wide),
                    executor=None if cls is TASK else draw(st.sampled_from([None, *EXECUTORS])),
                    rank=draw(st.integers(0, 3)) + number * 4,
                )
                for number in range(draw(st.integers(0, 9)))
            ]
            backlogs.append(Backlog(service_class=cls, pool=name, candidates=candidates))
    keys = [scheduler_key(cls) for cls in CLASS_ORDER] + [
        pool_key(cls, name) for name in names for cls in CLASS_ORDER
    ]
    flows = {key: draw(flow_states(key)) for key in keys if draw(st.booleans())}
    snapshot = Snapshot(
        now=draw(st.integers(0, 10**15)),
        free_slots=draw(st.integers(-2, 12)),
        pools=pools,
        backlogs=backlogs,
        held={cls: draw(small) for cls in CLASS_ORDER},
        executor_slots={name: draw(st.integers(-1, 5)) for name in EXECUTORS if draw(st.booleans())},
        flows=flows,
    )
    rules = Rules(
        policy=draw(st.sampled_from([Policy.FAIR, Policy.FAIR, *Policy])),
        wide_bypass_limit=draw(st.sampled_from([0, 2, 16])),
        slot_quotas={cls: draw(quotas(8)) for cls in CLASS_ORDER if draw(st.booleans())},
        pool_quotas={
            (name, cls): draw(quotas(8)) for name in names for cls in CLASS_ORDER if draw(st.booleans())
        },
    )
    return Case(snapshot=snapshot, rules=rules)


@attrs.frozen(kw_only=True)
class Slots:
    """A place of contention after a decision, by plain counting.

    Args:
        left: Slots left.
        took: Slots granted, by class.
        unmet: Slots lacking to each class's reserve before the decision.
        room: Slots below each class's limit before the decision.
    """

    left: float
    took: Counter[ServiceClass]
    unmet: Mapping[ServiceClass, int]
    room: Mapping[ServiceClass, float]

    def fits(self, service_class: ServiceClass, width: int) -> bool:
        """Whether one more of this width could be granted without taking from anyone."""
        others = sum(
            max(0, unmet - self.took[cls]) for cls, unmet in self.unmet.items() if cls is not service_class
        )
        return width <= self.left - others and width <= self.room[service_class] - self.took[service_class]


def _slots(free: float, took: Counter[ServiceClass], held: Mapping, quota_of) -> Slots:
    unmet, room = {}, {}
    for cls in CLASS_ORDER:
        quota = quota_of(cls)
        unmet[cls] = max(0, quota.reserve_slots - held.get(cls, 0))
        room[cls] = inf if quota.limit_slots is None else quota.limit_slots - held.get(cls, 0)
    return Slots(left=free - sum(took.values()), took=took, unmet=unmet, room=room)


def scheduler_slots(case: Case, decision: Decision) -> Slots:
    took = Counter(grant.service_class for grant in decision.grants)
    quota_of = lambda cls: case.rules.slot_quotas.get(cls, NO_QUOTA)  # noqa: E731
    kept = case.snapshot.answer.kept_slots if case.snapshot.answer else 0
    return _slots(case.snapshot.free_slots - kept, took, case.snapshot.held, quota_of)


def pool_slots(case: Case, decision: Decision, pool: str) -> Slots:
    took: Counter[ServiceClass] = Counter()
    for grant in decision.grants:
        if grant.pool == pool:
            took[grant.service_class] += grant.candidate.width
    state = case.snapshot.pools[pool]
    quota_of = lambda cls: case.rules.pool_quotas.get((pool, cls), NO_QUOTA)  # noqa: E731
    return _slots(inf if state.open_slots is None else state.open_slots, took, state.held, quota_of)


def waits_after(case: Case, decision: Decision) -> dict[tuple[ServiceClass, str], list[Candidate]]:
    """What was not granted, by backlog."""
    taken = Counter((grant.service_class, grant.pool, id(grant.candidate)) for grant in decision.grants)
    left = {}
    for backlog in case.snapshot.backlogs:
        place = (backlog.service_class, backlog.pool)
        left[place] = [each for each in backlog.candidates if not taken[(*place, id(each))]]
    return left


CALLBACKS = frozenset(CALLBACK_CLASSES)
