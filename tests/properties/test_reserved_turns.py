"""Others' reserves cost nobody a turn: who waits for a slot that is nobody's keeps its place while reserves are served."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from callback_priority.core.classes import ServiceClass
from callback_priority.core.quotas import Quota
from callback_priority.core.slot_loop import decide
from callback_priority.core.units import MICROSECONDS
from callback_priority.policy.settings import PoolShare, Settings
from callback_priority.simulation.arrivals import Storms
from callback_priority.simulation.engine import Treatment
from callback_priority.simulation.holds import Fixed, LogNormal
from callback_priority.simulation.results import run
from callback_priority.simulation.scenario import Scenario, Stream
from tests.properties.waits import Onlooker, world
from tests.properties.worlds import DEADLINE, POOL, TASK

DAG_CALLBACK = ServiceClass.DAG_CALLBACK


def backlog(service_class, holds):
    return Stream(
        name=str(service_class),
        service_class=service_class,
        holds=holds,
        arrivals=Storms(at_seconds=(0.0,)),
        batch=3_000,
    )


def shares(streams, *, pooled, reserve, slots=3, decider=decide):
    """Slots that each class holds on average where deadlines have a reserve."""
    quota = Quota(reserve_slots=reserve)
    scenario = Scenario(
        name="reserved",
        seconds=4_000,
        streams=streams,
        slots=50 if pooled else slots,
        pools={POOL: slots if pooled else None},
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
