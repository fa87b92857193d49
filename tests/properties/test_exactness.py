"""Numbers over years: no drift, no overflow, the same answer in every process."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from callback_priority.core.accounting import flow_state, move_average, rebase, serve, settle
from callback_priority.core.classes import CLASS_ORDER
from callback_priority.core.fair_queue import FairQueue, Flow
from callback_priority.core.flows import FlowState
from callback_priority.core.ledger import Settlement
from callback_priority.core.slot_loop import decide
from callback_priority.core.snapshot import PoolSlots, Snapshot
from callback_priority.core.units import MICROSECONDS, MILLI
from callback_priority.errors import InternalError
from tests.properties.snapshots import Rules
from tests.properties.worlds import DEADLINE, POOL, TASK, scheduler_key, waiting

INT64 = range(-(1 << 63), 1 << 63)
YEAR = 365 * 24 * 3600 * MICROSECONDS


def fits_the_columns(state):
    numbers = (state.tag, state.remainder, state.clock, state.service, state.recent, state.estimate)
    return all(number in INT64 for number in numbers)


def endless(flows, *, free=4, rules=None):
    snapshot = Snapshot(
        now=0,
        free_slots=free,
        pools={POOL: PoolSlots(open_slots=None)},
        backlogs=[waiting(DEADLINE, free + 1), waiting(TASK, free + 1)],
        flows=flows,
    )
    return decide(snapshot, rules or Rules())


def test_a_million_charges_and_settlements_do_not_drift():
    """Weights that divide nothing, estimates that are always wrong: at the end the tags are exact."""
    flow = Flow()
    flow.start(FlowState(key=scheduler_key(TASK), weight=333, estimate=1), 0, 0, 7_919)
    queue = FairQueue([flow], 0)
    for _ in range(1_000_000):
        queue.grant()
    queue.check_invariants()
    state = attrs.evolve(flow.state, tag=flow.tag, remainder=flow.remainder)
    exact = Fraction(1_000_000 * 7_919 * MILLI, 333)
    assert state.tag + Fraction(state.remainder, 333) == exact
    settlement = Settlement(amounts={state.key: -13}, holds={})
    rules = Rules(weights=dict.fromkeys(CLASS_ORDER, 333))
    for _ in range(20_000):
        state = settle({state.key: state}, settlement, rules, 0)[state.key]
    assert state.tag + Fraction(state.remainder, 333) == exact - Fraction(20_000 * 13 * MILLI, 333)


@given(
    st.integers(-(10**12), 10**12),
    st.lists(st.integers(1, 10**9), min_size=1, max_size=8),
    st.integers(0, 10**12),
)
def test_new_weights_leave_what_a_class_owes_as_it_is(debt, changes, clock):
    """Weights may change between restarts, to and fro: slot-time owed stays the same to the last fraction."""
    key = scheduler_key(TASK)
    state = serve(FlowState(key=key, weight=MILLI, estimate=1, tag=clock, clock=clock), debt, 0)
    for weight in [*changes, MILLI]:
        state = flow_state(key, {key: state}, clock, Rules(weights=dict.fromkeys(CLASS_ORDER, weight)))
        assert (state.tag - clock) * state.weight + state.remainder == debt * MILLI
    assert state.tag == clock + debt


def test_tags_are_rebased_before_they_leave_their_columns():
    """Near 2**60 the whole scope moves to zero at once, and the next decisions are those without the move."""
    start = dict(endless({}).flows)
    high = (1 << 60) - 1_000
    moved = {
        key: attrs.evolve(state, tag=state.tag + high, clock=state.clock + high)
        for key, state in start.items()
    }
    for _ in range(20):
        near, far = endless(start), endless(moved)
        assert near.grants == far.grants
        start.update(near.flows)
        moved.update(far.flows)
    clocks = max(state.clock for key, state in moved.items() if key.level.value == "scheduler")
    assert clocks < 1 << 59
    offsets = {moved[key].tag - start[key].tag for key in moved if key.level.value == "scheduler"}
    assert len(offsets) == 1


@given(st.integers(-(1 << 80), 1 << 80), st.integers(1, 10**9))
@example(100 * YEAR * (1 << 31), 1)
def test_hostile_sizes_stay_within_the_columns(amount, weight):
    """A hold of a hundred years, two billion slots wide, at the smallest weight."""
    rules = Rules(weights=dict.fromkeys(CLASS_ORDER, weight))
    flows = dict(endless({}, rules=rules).flows)
    key = scheduler_key(TASK)
    settlement = Settlement(amounts={key: amount}, holds={key: (min(abs(amount), 1 << 62),)})
    flows.update(settle(flows, settlement, rules, YEAR))
    assert all(map(fits_the_columns, flows.values()))
    for _ in range(3):
        flows.update(endless(flows, rules=rules).flows)
        assert all(map(fits_the_columns, flows.values()))


def test_rebasing_what_is_in_range_changes_nothing():
    assert rebase(endless({}).flows) == {}


@pytest.mark.parametrize("hold", [1, 900 * MICROSECONDS, YEAR])
def test_the_estimate_comes_to_a_steady_hold_and_stays_there(hold):
    estimate = MICROSECONDS
    for _ in range(400):
        estimate = move_average(estimate, hold)
    assert 0 <= abs(estimate - hold) < 8


def test_a_broken_queue_says_so():
    flow = Flow()
    flow.start(FlowState(key=scheduler_key(TASK), weight=10, estimate=1), 0, 0, 5)
    queue = FairQueue([flow], 0)
    queue.check_invariants()
    flow.tag += 1
    with pytest.raises(InternalError, match="is queued at"):
        queue.check_invariants()


ANSWER = """
import hashlib
from callback_priority.core.classes import ServiceClass
from callback_priority.core.quotas import Quota
from callback_priority.core.slot_loop import decide
from callback_priority.core.snapshot import Backlog, Candidate, PoolSlots, Snapshot
from callback_priority.policy.settings import PoolShare, Settings
from callback_priority.simulation.arrivals import Poisson
from callback_priority.simulation.engine import Treatment
from callback_priority.simulation.holds import Exponential
from callback_priority.simulation.results import run
from callback_priority.simulation.scenario import Scenario, Stream

quota = {cls: PoolShare(quota=Quota(reserve_slots=1, limit_slots=3)) for cls in ServiceClass}
settings = Settings(pool_quotas={"*": quota}, slot_quotas={ServiceClass.TASK: Quota(limit_slots=4)})
pools = {name: PoolSlots(open_slots=5, total_slots=8) for name in ("etl", "reports", "alerts", "default_pool")}
backlogs = [
    Backlog(service_class=cls, pool=pool, candidates=[
        Candidate(id=f"{pool}{cls}{n}", executor=f"executor_{n % 3}", rank=n) for n in range(9)])
    for pool in pools for cls in ServiceClass]
flows, answers = {}, []
for now in range(20):
    decision = decide(Snapshot(now=now, free_slots=9, pools=pools, backlogs=backlogs, flows=dict(flows),
        executor_slots={"executor_0": 2, "executor_1": 3}), settings)
    flows.update(decision.flows)
    answers.append(repr(decision))
streams = tuple(
    Stream(name=cls, service_class=cls, holds=Exponential(mean_seconds=3), arrivals=Poisson(rate_per_second=0.5))
    for cls in ServiceClass)
scenario = Scenario(name="all", streams=streams, seconds=300, slots=6)
answers.append(repr(run(scenario, Treatment(name="all", settings=settings), seed=1)))
print(hashlib.sha256("".join(answers).encode()).hexdigest())
"""


def test_every_process_decides_the_same():
    """Hash seeds differ from process to process, decisions do not: not even in their order."""
    digests = set()
    for seed in ("0", "1", "4242"):
        result = subprocess.run(
            [sys.executable, "-c", ANSWER],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path("src").resolve())},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(result.stdout)
    assert len(digests) == 1
