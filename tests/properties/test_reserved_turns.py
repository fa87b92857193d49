"""Whoever is served out of turn costs nobody a turn: who waits for a slot that is nobody else's keeps its place."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from callback_priority.core.accounting import clocks
from callback_priority.core.classes import CLASS_ORDER, Level
from callback_priority.core.fair_queue import FairQueue
from callback_priority.core.flows import FlowState
from callback_priority.core.policies import Policy
from callback_priority.core.quotas import Quota
from callback_priority.core.slot_loop import decide
from callback_priority.core.snapshot import Backlog, Candidate, PoolSlots, Snapshot, TaskAnswer
from callback_priority.core.units import MICROSECONDS, MILLI
from callback_priority.policy.settings import PoolShare, Settings
from callback_priority.simulation.arrivals import Storms
from callback_priority.simulation.engine import Treatment
from callback_priority.simulation.holds import Fixed, LogNormal
from callback_priority.simulation.results import run
from callback_priority.simulation.scenario import Scenario, Stream
from tests.properties.snapshots import Case, Rules, cases
from tests.properties.waits import Onlooker, world
from tests.properties.worlds import DAG_CALLBACK, DEADLINE, POOL, TASK, pool_key, scheduler_key, waiting


def backlog(service_class, holds):
    return Stream(
        name=str(service_class),
        service_class=service_class,
        holds=holds,
        arrivals=Storms(at_seconds=(0.0,)),
        batch=3_000,
    )


def shares(streams, *, pooled, reserve, slots=3, both=False, decider=decide):
    """Slots that each class holds on average where deadlines have a reserve; with `both`, pool and scheduler are short."""
    quota = Quota(reserve_slots=reserve)
    scenario = Scenario(
        name="reserved",
        seconds=4_000,
        streams=streams,
        slots=50 if pooled and not both else slots,
        pools={POOL: slots if pooled or both else None},
    )
    rules = Settings(
        slot_quotas={} if pooled else {DEADLINE: quota},
        pool_quotas={POOL: {DEADLINE: PoolShare(quota=quota)}} if pooled else {},
    )
    found = run(scenario, Treatment(name="x", settings=rules, decide=decider), seed=1)
    return {cls: each.slot_seconds / scenario.seconds for cls, each in found.classes.items()}


def away_while_reserved(snapshot, entitlements):
    """The control: whoever others' reserves stopped counts as away, and is clamped when it is looked at again."""
    flows = {key: attrs.evolve(state, eligible=False) for key, state in snapshot.flows.items()}
    clocks = {}
    for key, state in flows.items():
        clocks[key[:2]] = max(clocks.get(key[:2], 0), state.clock, state.tag * (key[2] is DEADLINE))
    dragged = {key: attrs.evolve(state, clock=clocks[key[:2]]) for key, state in flows.items()}
    return decide(attrs.evolve(snapshot, flows=dragged), entitlements)


BUSY = (
    backlog(DEADLINE, Fixed(seconds=5)),
    backlog(DAG_CALLBACK, Fixed(seconds=20)),
    backlog(TASK, Fixed(seconds=20)),
)


@pytest.mark.parametrize("pooled", [False, True])
def test_a_reserve_above_its_classs_share_does_not_starve_the_others(pooled):
    """Two of three slots are the deadlines'; the third is shared by turns, though the deadlines' tag runs ahead."""
    found = shares(BUSY, pooled=pooled, reserve=2)
    assert found[DEADLINE] == pytest.approx(2, abs=0.02)
    assert found[TASK] == pytest.approx(found[DAG_CALLBACK], abs=0.02)


@pytest.mark.parametrize("pooled", [False, True])
def test_nor_where_both_the_pool_and_the_scheduler_are_short(pooled):
    found = shares(BUSY, pooled=pooled, reserve=2, both=True)
    assert found[DEADLINE] == pytest.approx(2, abs=0.02)
    assert found[TASK] == pytest.approx(found[DAG_CALLBACK], abs=0.02)


def test_dragging_the_clock_along_with_a_reserve_is_caught():
    assert shares(BUSY, pooled=False, reserve=2, decider=away_while_reserved)[TASK] < 0.1


@pytest.mark.parametrize("pooled", [False, True])
def test_a_reserve_that_nobody_uses_costs_nobody_what_it_is_owed(pooled):
    """Holds that vary are charged too much and given back; what is given back must not be lost with each pass."""
    streams = (
        backlog(DAG_CALLBACK, Fixed(seconds=10)),
        backlog(TASK, LogNormal(median_seconds=10, sigma=1.5)),
    )
    found = shares(streams, pooled=pooled, reserve=1, slots=5)
    assert found[TASK] == pytest.approx(2, abs=0.01)


@given(st.integers(0, 10**6))
@example(80)
@example(1193)
@example(2975)
@example(2985)
@settings(max_examples=25, deadline=None)
def test_nobody_first_in_line_waits_longer_than_the_bound_whatever_the_reserves(seed):
    part, service_class, basis = world(seed).worst(seed)
    assert part <= 1, (service_class, basis)


def test_a_class_that_reserves_leave_nothing_does_not_hold_the_clock():
    """It waits for no turn; a class that arrives later is not sent back to where it stands."""
    rules = Settings(slot_quotas={DEADLINE: Quota(reserve_slots=3), TASK: Quota(limit_slots=1)})
    scenario = Scenario(name="nothing", seconds=200, streams=BUSY, slots=3)
    found = run(scenario, Treatment(name="x", settings=rules), seed=1)
    assert found.classes[DEADLINE].slot_seconds == pytest.approx(600, rel=0.02)
    assert found.classes[TASK].started == found.classes[DAG_CALLBACK].started == 0


def test_tasks_stopped_by_their_limit_save_up_no_turns():
    """Airflow's answer says that more of them wait; what they wait for is their limit, not their turn."""
    backlog_of_tasks = Stream(name="tasks", service_class=TASK, holds=Fixed(seconds=10))
    scenario = Scenario(
        name="limited",
        seconds=2_000,
        streams=(
            backlog_of_tasks,
            backlog(DAG_CALLBACK, Fixed(seconds=10)),
            Stream(
                name="late",
                service_class=DEADLINE,
                holds=Fixed(seconds=10),
                arrivals=Storms(at_seconds=(1_000.0,)),
                batch=100,
            ),
        ),
        slots=4,
    )
    watched = Onlooker()
    rules = Settings(slot_quotas={TASK: Quota(limit_slots=1)})
    run(scenario, Treatment(name="x", settings=rules, decide=watched), seed=1)
    assert watched.longest[DEADLINE] <= 2 * 12 * MICROSECONDS


# The clock waits for whoever waits ---------------------------------------------------------------------------


def passed_over(case: Case) -> list[FlowState]:
    """The flows that are owed a turn after a pass in which the clock has passed them."""
    before = clocks(case.snapshot.flows.values())
    flows = {**case.snapshot.flows, **decide(case.snapshot, case.rules).flows}
    after = clocks(flows.values())
    return [
        state
        for key, state in flows.items()
        if state.eligible and after[key[:2]] > max(before.get(key[:2], 0), state.tag)
    ]


@given(cases().filter(lambda case: case.rules.policy is Policy.FAIR))
@settings(max_examples=400, deadline=None)
def test_the_clock_passes_nobody_who_is_owed_a_turn(case):
    """At both levels, whatever reserves, limits, drains, executors and second attempts there are."""
    assert not passed_over(case)


def by_reserve(*, free: int, open_slots: int | None, slot_reserve: int, pool_reserve: int, **more) -> Case:
    """A callback whose tag is small waits beside deadlines that have a reserve, and have run far ahead on it."""
    flows = {}
    for cls, ahead in ((DEADLINE, 1_000), (DAG_CALLBACK, 1)):
        for key in (scheduler_key(cls), pool_key(cls)):
            tag = ahead * MICROSECONDS
            flows[key] = FlowState(key=key, weight=MILLI, estimate=MICROSECONDS, tag=tag, eligible=True)
    snapshot = Snapshot(
        now=0,
        free_slots=free,
        pools={POOL: PoolSlots(open_slots=open_slots, total_slots=open_slots and open_slots + 8)},
        backlogs=[waiting(DEADLINE, 9), waiting(DAG_CALLBACK, 9)],
        held={DAG_CALLBACK: 8},
        flows=flows,
    )
    rules = Rules(
        weights=dict.fromkeys(CLASS_ORDER, MILLI),
        slot_quotas={DEADLINE: Quota(reserve_slots=slot_reserve)},
        pool_quotas={(POOL, DEADLINE): Quota(reserve_slots=pool_reserve)},
    )
    return Case(snapshot=attrs.evolve(snapshot, **more), rules=rules)


@pytest.mark.parametrize(
    ("case", "scope"),
    [
        (by_reserve(free=2, open_slots=None, slot_reserve=1, pool_reserve=0), scheduler_key),
        (by_reserve(free=9, open_slots=2, slot_reserve=0, pool_reserve=1), pool_key),
        # The pool admits two of the callbacks first; a second attempt finds that one of them is for a deadline.
        (by_reserve(free=2, open_slots=2, slot_reserve=1, pool_reserve=0), scheduler_key),
        (by_reserve(free=1, open_slots=2, slot_reserve=1, pool_reserve=0), scheduler_key),
        # The pool admits two deadlines, the scheduler has a slot for one of them.
        (by_reserve(free=2, open_slots=3, slot_reserve=0, pool_reserve=2), pool_key),
    ],
)
def test_a_class_that_others_reserves_hold_back_keeps_its_turn(case, scope):
    decision = decide(case.snapshot, case.rules)
    assert DEADLINE in {grant.service_class for grant in decision.grants}
    assert scope is pool_key or not decision.unused_slots
    after = {**case.snapshot.flows, **decision.flows}
    waits, ahead = after[scope(DAG_CALLBACK)], after[scope(DEADLINE)]
    assert waits.eligible
    assert max(waits.clock, ahead.clock) <= waits.tag < ahead.tag


def test_a_slot_reserved_for_a_class_reaches_it_through_a_pool_with_reserves_of_others():
    """Others are admitted to the pool first, and the scheduler stops them: what they leave there is for it."""
    snapshot = Snapshot(
        now=0,
        free_slots=1,
        pools={POOL: PoolSlots(open_slots=4, total_slots=4)},
        backlogs=[waiting(cls, 3) for cls in CLASS_ORDER],
    )
    rules = Rules(
        slot_quotas={DAG_CALLBACK: Quota(reserve_slots=1)}, pool_quotas={(POOL, TASK): Quota(reserve_slots=2)}
    )
    assert [grant.service_class for grant in decide(snapshot, rules).grants] == [DAG_CALLBACK]


def test_nor_does_a_drain_take_the_clock_along():
    """Deadlines are served from their reserve while the pool is held empty for a wide task."""
    case = by_reserve(free=9, open_slots=3, slot_reserve=0, pool_reserve=1)
    flows = dict(case.snapshot.flows)
    flows[pool_key(TASK)] = FlowState(
        key=pool_key(TASK), weight=MILLI, estimate=MICROSECONDS, eligible=True, bypassed=10**6
    )
    wide = Backlog(service_class=TASK, pool=POOL, candidates=[Candidate(width=3)])
    snapshot = attrs.evolve(case.snapshot, flows=flows, backlogs=[*case.snapshot.backlogs, wide])
    decision = decide(snapshot, case.rules)
    assert [grant.service_class for grant in decision.grants] == [DEADLINE]
    assert clocks({**flows, **decision.flows}.values())[Level.POOL, POOL] == 0


def test_a_queue_that_drops_whom_it_should_hold_back_is_caught(monkeypatch):
    monkeypatch.setattr(FairQueue, "hold_back", FairQueue.drop)
    assert passed_over(by_reserve(free=2, open_slots=None, slot_reserve=1, pool_reserve=0))
    assert passed_over(by_reserve(free=9, open_slots=2, slot_reserve=0, pool_reserve=1))


# Who is owed nothing -----------------------------------------------------------------------------------------


def after_answer(tasks: int, started: int, *, open_slots: int | None = None) -> Callable[..., FlowState]:
    """Where flows stand after a pass in which Airflow started some of the tasks that waited."""
    snapshot = Snapshot(
        now=0,
        free_slots=4,
        pools={POOL: PoolSlots(open_slots=open_slots, total_slots=open_slots)},
        backlogs=[waiting(DEADLINE, 5), waiting(TASK, tasks)],
        answer=TaskAnswer(started={POOL: [1] * started}, waiting=True),
    )
    flows = decide(snapshot, Rules(weights=dict.fromkeys(CLASS_ORDER, MILLI))).flows
    return lambda key: flows[key(TASK)]


def test_tasks_of_which_all_have_started_wait_no_more():
    """One that comes with every loop is served at once: it is owed nothing for what it does not want."""
    assert not after_answer(1, 1)(scheduler_key).eligible
    assert after_answer(5, 2)(scheduler_key).eligible
    assert not after_answer(1, 1, open_slots=3)(pool_key).eligible


def test_tasks_that_their_pool_stops_wait_there_and_not_at_the_scheduler():
    state = after_answer(5, 1, open_slots=2)
    assert state(pool_key).eligible
    assert not state(scheduler_key).eligible


@pytest.mark.parametrize("pooled", [False, True])
def test_an_order_leaves_no_debts_to_those_it_starved(pooled):
    """After ten thousand starts in the order's name, sharing begins where it is, not where the order began."""
    rules = Rules(policy=Policy.TASKS_FIRST, weights=dict.fromkeys(CLASS_ORDER, MILLI))
    flows = {}
    for now in range(100):
        snapshot = Snapshot(
            now=now,
            free_slots=200 if pooled else 100,
            pools={POOL: PoolSlots(open_slots=100 if pooled else None)},
            backlogs=[waiting(DEADLINE, 101), waiting(TASK, 101)],
            flows=flows,
        )
        flows = {**flows, **decide(snapshot, rules).flows}
        assert flows[scheduler_key(TASK)].granted == 100 * (now + 1)
    decision = decide(attrs.evolve(snapshot, flows=flows), attrs.evolve(rules, policy=Policy.FAIR))
    # The order left a hundred tasks' charges on the tag; these are caught up with, and no more.
    counted = [grant.service_class for grant in decision.grants].count(DEADLINE)
    assert 50 <= counted <= 100
    flows = {**flows, **decision.flows}
    decision = decide(attrs.evolve(snapshot, flows=flows), attrs.evolve(rules, policy=Policy.FAIR))
    assert [grant.service_class for grant in decision.grants].count(TASK) >= 49
