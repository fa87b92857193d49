"""What a grant costs, next to what a heap costs, and how that grows with the number of flows."""

from __future__ import annotations

import gc
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from time import perf_counter

from callback_priority.cli.comparison_text import comparison_text
from callback_priority.core.classes import CLASS_ORDER, FlowKey, Level, ServiceClass
from callback_priority.core.flows import FlowState
from callback_priority.core.quotas import Quota
from callback_priority.core.slot_loop import decide
from callback_priority.core.snapshot import Backlog, Candidate, PoolSlots, Snapshot
from callback_priority.core.units import MICROSECONDS
from callback_priority.policy.settings import PoolShare, Settings
from callback_priority.simulation.comparison import TreatmentSummary, compare
from callback_priority.simulation.library import named_scenario

GRANTS = 10_000
HEAP_SIZE = 200
ROUNDS = 40
SETTINGS = Settings()
WITH_QUOTAS = Settings(
    pool_quotas={
        "*": {cls: PoolShare(quota=Quota(reserve_slots=1, limit_slots=10_000)) for cls in CLASS_ORDER}
    }
)


def contested(pools: int, settings: Settings, grants: int = GRANTS) -> Snapshot:
    """All classes waiting in each pool, every pool short of slots, flows that have a past."""
    open_slots = grants // pools
    names = [f"pool_{number}" for number in range(pools)]
    wanted = open_slots + 1
    snapshot = Snapshot(
        now=MICROSECONDS,
        free_slots=grants,
        pools={name: PoolSlots(open_slots=open_slots, total_slots=grants) for name in names},
        backlogs=[
            Backlog(
                service_class=cls,
                pool=name,
                candidates=[Candidate(id=(name, cls, number), rank=number) for number in range(wanted)],
            )
            for name in names
            for cls in CLASS_ORDER
        ],
    )
    flows: dict[FlowKey, FlowState] = dict(decide(snapshot, settings).flows)
    assert sum(key.level is Level.POOL for key in flows) == pools * len(CLASS_ORDER)
    return Snapshot(
        now=2 * MICROSECONDS,
        free_slots=grants,
        pools=snapshot.pools,
        backlogs=snapshot.backlogs,
        flows=flows,
    )


def push_and_pop() -> None:
    """The measure: as many push-pop pairs as there are grants, on a heap as large as there are flows."""
    heap = [number * 7919 % 10_007 for number in range(HEAP_SIZE)]
    heapify(heap)
    for number in range(GRANTS):
        heappush(heap, number * 7919 % 10_007)
        heappop(heap)


def minima(*works: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """The shortest of many runs of each, in alternating rounds, in seconds."""
    best = [float("inf")] * len(works)
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for place, work in enumerate(works):
                began = perf_counter()
                work()
                best[place] = min(best[place], perf_counter() - began)
    finally:
        gc.enable()
    return best


def test_a_grant_costs_a_few_heap_operations(benchmark, claim):
    snapshot = contested(50, SETTINGS)
    with_quotas = contested(50, WITH_QUOTAS)
    heap, loop, quotas = minima(
        push_and_pop, lambda: decide(snapshot, SETTINGS), lambda: decide(with_quotas, WITH_QUOTAS)
    )
    claim("10,000 grants, 4 classes x 50 pools / 10,000 heap push-pop pairs", loop / heap, 25)
    claim("the same, every class with a quota in every pool", quotas / heap, 25)
    decision = benchmark(decide, snapshot, SETTINGS)
    assert len(decision.grants) == GRANTS


def test_a_grant_hardly_costs_more_with_ten_times_the_flows(benchmark, claim):
    few, many = contested(50, SETTINGS), contested(500, SETTINGS)
    as_busy = contested(500, SETTINGS, grants=10 * GRANTS)
    short, long = minima(lambda: decide(few, SETTINGS), lambda: decide(many, SETTINGS))
    claim("cost of a grant, 4 classes x 500 pools / 4 classes x 50 pools, the same grants", long / short, 1.6)
    short, long = minima(lambda: decide(few, SETTINGS), lambda: decide(as_busy, SETTINGS), rounds=8)
    claim("the same, with as many grants for each flow", long / 10 / short, 1.6)
    decision = benchmark(decide, many, SETTINGS)
    assert len(decision.grants) == GRANTS


def wait_p95_seconds(found: TreatmentSummary) -> float:
    wait = found.classes[ServiceClass.DEADLINE].wait_seconds[0.95]
    assert wait is not None
    return wait.mean


def test_the_model_that_the_algorithm_was_chosen_by(benchmark, claim):
    names = "contention", "contention-flood"
    quiet, flood = benchmark.pedantic(
        lambda: [
            compare(each.scenario, each.treatments, seeds=range(5)) for each in map(named_scenario, names)
        ],
        rounds=1,
        iterations=1,
    )
    print()
    print(comparison_text(quiet), comparison_text(flood), sep="\n\n")
    first = wait_p95_seconds(quiet["callbacks first"])
    fair, reserved = "fair by slot-time", "fair, 2 slots reserved"
    claim("model: callbacks' p95 wait, fair / callbacks first", wait_p95_seconds(quiet[fair]) / first, 1.4)
    claim(
        "model: callbacks' p95 wait, fair with 2 reserved / callbacks first",
        wait_p95_seconds(quiet[reserved]) / first,
        0.3,
    )
    for name in (fair, reserved):
        share = flood[name].classes[ServiceClass.TASK].share.mean
        claim(f"model: tasks' share in the flood, {name}", share, 0.57)
        claim(f"model: what tasks lack of all in the flood, {name}", 1 - share, 0.52)
