"""Nobody starves under the library, and whoever would under the obvious ways of sharing is found.

The long run of the same search is ``python -m callback_priority.testing --examples 100000``.
"""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callback_priority.core.classes import ServiceClass
from callback_priority.core.quotas import Quota
from callback_priority.core.slot_loop import decide
from callback_priority.core.snapshot import Decision
from callback_priority.core.units import MILLI
from callback_priority.policy.settings import PoolShare, Settings
from callback_priority.simulation.arrivals import Poisson, Regular, Storms
from callback_priority.simulation.engine import Treatment
from callback_priority.simulation.holds import Exponential, Fixed
from callback_priority.simulation.scenario import Crash, Scenario, Stream
from callback_priority.testing import (
    Case,
    Promise,
    assert_nobody_starves,
    cases,
    find_starvation,
    judge,
    search,
)
from callback_priority.testing.__main__ import main
from callback_priority.testing.controls import CONTROLS, FAIR, FAIR_BY_STARTS, FIFO, LOCAL_TAGS
from callback_priority.testing.search import DEFAULT_EXAMPLES
from tests.properties.waits import overcharged

DEADLINE, TASK, TASK_CALLBACK = ServiceClass.DEADLINE, ServiceClass.TASK, ServiceClass.TASK_CALLBACK


def test_nobody_starves():
    assert_nobody_starves(FAIR, max_examples=200)


@pytest.mark.parametrize("control", CONTROLS, ids=lambda each: each.name)
def test_who_starves_others_is_caught_within_hypothesis_own_budget(control):
    found = search(control, max_examples=DEFAULT_EXAMPLES, shrink=False)
    assert found.starvation is not None
    assert found.starvation.promise in {Promise.SLOT_TIME, Promise.TURNS}


def flood(cls, *, hold=4.0, batch=60, **kwargs):
    return Stream(
        name=str(cls),
        service_class=cls,
        holds=Fixed(seconds=hold),
        arrivals=Storms(at_seconds=(0.0,)),
        batch=batch,
        **kwargs,
    )


def case(*streams, settings=None, changes=(), **kwargs):
    defaults = {"name": "by hand", "seconds": 240.0, "slots": 2}
    scenario = Scenario(**(defaults | kwargs), streams=streams)
    return Case(scenario=scenario, settings=settings or Settings(initial_hold_seconds=4.0), changes=changes)


@pytest.mark.parametrize("reserve", [1, 2])
def test_a_reserve_that_is_in_use_starves_nobody_of_the_rest(reserve):
    """A class that is served by its reserve, out of turn, takes nobody else's turn with it."""
    three = [flood(cls, batch=100) for cls in (DEADLINE, TASK, TASK_CALLBACK)]
    settings = Settings(slot_quotas={TASK_CALLBACK: Quota(reserve_slots=reserve)}, initial_hold_seconds=4.0)
    assert judge(FAIR, case(*three, settings=settings, slots=2 * reserve)) is None


def test_a_crash_starves_nobody():
    streams = flood(DEADLINE, hold=2.0), flood(TASK, hold=10.0)
    crashes = (Crash(at_seconds=20.0, scheduler=1, takeover_seconds=20.0),)
    assert judge(FAIR, case(*streams, schedulers=2, crashes=crashes)) is None


def test_what_a_crash_took_along_waits_where_it_waited():
    """Not behind what has come since, of its own Dag or another's."""
    two_dags = Stream(
        name="deadline 0",
        service_class=DEADLINE,
        holds=Exponential(mean_seconds=10.0),
        arrivals=Poisson(rate_per_second=0.5),
        dags=2,
    )
    crashes = (Crash(at_seconds=20.0, takeover_seconds=6.0),)
    pools = {"default_pool": 2, "etl": 2}
    others = flood(TASK_CALLBACK, hold=2.0, batch=30, pool="etl")
    crashed = case(two_dags, others, slots=9, pools=pools, schedulers=2, crashes=crashes, seconds=60.0)
    assert judge(FAIR, attrs.evolve(crashed, settings=Settings(), seed=1)) is None


def test_new_weights_starve_nobody():
    streams = flood(DEADLINE, hold=2.0), flood(TASK, hold=10.0)
    later = Settings(weights={TASK: 10 * MILLI}, initial_hold_seconds=4.0)
    assert judge(FAIR, case(*streams, changes=((60.0, later),))) is None


def test_a_limit_that_is_raised_starves_nobody():
    """What a limit has kept from tasks is not owed to them."""
    limited = Settings(
        pool_quotas={"default_pool": {TASK: PoolShare(quota=Quota(limit_slots=1))}}, initial_hold_seconds=2.0
    )
    changes = ((10.0, Settings(initial_hold_seconds=2.0)),)
    streams = flood(DEADLINE, hold=2.0), flood(TASK, hold=2.0)
    assert judge(FAIR, case(*streams, settings=limited, changes=changes, slots=3, seconds=60.0)) is None


def test_what_failed_tasks_are_paid_back_starves_nobody():
    """From a later moment on a class may get nearly twice as much more as from a fresh start."""
    world = overcharged()
    assert judge(FAIR, Case(scenario=world.scenario, settings=world.settings)) is None


def test_who_pays_for_a_reserve_is_not_starved():
    """What a class had of its reserve above its share is owed, when others go as well as when the reserve does."""
    streams = flood(DEADLINE, batch=900), flood(TASK, batch=900), flood(TASK_CALLBACK, batch=200)
    weights = {DEADLINE: 2 * MILLI, TASK_CALLBACK: 10 * MILLI}
    reserve = Settings(
        weights=weights, slot_quotas={DEADLINE: Quota(reserve_slots=2)}, initial_hold_seconds=4.0
    )
    without = attrs.evolve(reserve, slot_quotas={})
    assert judge(FAIR, case(*streams, settings=reserve, slots=6, seconds=900.0)) is None
    assert (
        judge(FAIR, case(*streams, settings=reserve, slots=6, seconds=900.0, changes=((60.0, without),)))
        is None
    )


def test_what_is_passed_while_it_is_wide_is_paid_back_when_it_is_narrow():
    """Others go past wide work out of turn, so nothing is proven of who gets how much in its pool."""
    narrow = [flood(DEADLINE, hold=hold, batch=300) for hold in (2.0, 3.0, 5.0)]
    tasks = flood(TASK, hold=2.0, batch=6, width=3, priority=1), flood(TASK, hold=2.0, batch=900)
    settings = Settings(weights={TASK: 10 * MILLI}, wide_bypass_limit=64, initial_hold_seconds=2.0)
    pool = {"slots": 9, "pools": {"default_pool": 3}, "seconds": 600.0}
    assert judge(FAIR, case(*narrow, *tasks, settings=settings, **pool)) is None


def test_tasks_of_two_pools_keep_their_turn():
    """Those of one pool start in each loop, and take all that was offered: those of the other wait all the same."""
    one_each_loop = Stream(
        name="one each loop",
        service_class=TASK,
        holds=Fixed(seconds=2.0),
        arrivals=Regular(every_seconds=2.0),
        priority=1,
    )
    callbacks = [flood(cls, hold=2.0, batch=30) for cls in (DEADLINE, TASK_CALLBACK)]
    settings = Settings(
        weights={TASK: 2 * MILLI}, slot_quotas={DEADLINE: Quota(reserve_slots=1)}, initial_hold_seconds=2.0
    )
    pools = {"default_pool": None, "etl": None}
    streams = one_each_loop, flood(TASK, hold=2.0, pool="etl"), *callbacks
    assert judge(FAIR, case(*streams, settings=settings, slots=3, pools=pools, seconds=60.0)) is None


def test_equal_starts_are_unequal_slot_time():
    found = judge(FAIR_BY_STARTS, case(flood(DEADLINE, hold=2.0), flood(TASK, hold=20.0)))
    assert found.promise is Promise.SLOT_TIME
    assert found.service_class is DEADLINE


def test_three_schedulers_that_share_nothing_go_round_three_times():
    streams = flood(DEADLINE), flood(TASK)
    found = judge(LOCAL_TAGS, case(*streams, slots=1, schedulers=3))
    assert found.promise is Promise.TURNS
    assert judge(FAIR, case(*streams, slots=1, schedulers=3)) is None


def test_a_backlog_ahead_of_everyone_is_seen():
    late = Stream(
        name="late", service_class=TASK, holds=Fixed(seconds=4.0), arrivals=Regular(every_seconds=4.0)
    )
    assert judge(FIFO, case(flood(DEADLINE), late)).service_class is TASK


def nothing_at_all(snapshot, entitlements):
    return Decision(
        grants=(), task_slots=0, task_pool_slots={}, refusals=(), flows={}, unused_slots=snapshot.free_slots
    )


def test_idle_slots_are_seen():
    assert judge(nothing_at_all, case(flood(DEADLINE))).promise is Promise.CONSERVATION


def blind_to_reserves(snapshot, entitlements):
    return decide(snapshot, Settings(weights=entitlements.weights))


def test_a_reserve_that_is_lent_is_seen():
    settings = Settings(slot_quotas={DEADLINE: Quota(reserve_slots=1)})
    found = judge(blind_to_reserves, case(flood(TASK), settings=settings))
    assert found.promise is Promise.RESERVE
    assert found.service_class is DEADLINE


def last_come_first_served(snapshot, entitlements):
    backwards = [
        type(each)(service_class=each.service_class, pool=each.pool, candidates=each.candidates[::-1])
        for each in snapshot.backlogs
    ]
    return decide(type(snapshot)(**{**_fields(snapshot), "backlogs": backwards}), entitlements)


def _fields(snapshot):
    return {each.name: getattr(snapshot, each.name) for each in type(snapshot).__attrs_attrs__}


def test_a_dag_that_waits_behind_another_dags_backlog_is_seen():
    streams = [
        Stream(
            name=f"{at}",
            service_class=DEADLINE,
            holds=Fixed(seconds=4.0),
            arrivals=Regular(every_seconds=1.0, from_seconds=at),
        )
        for at in (0.0, 0.5)
    ]
    assert judge(last_come_first_served, case(*streams)).promise is Promise.ORDER


def test_the_same_search_finds_the_same():
    first, again = (find_starvation(FAIR_BY_STARTS, seed=3) for _ in range(2))
    assert first == again
    assert first is not None


def test_no_case_is_tried_twice():
    one = case(flood(DEADLINE))
    assert search(FAIR, max_examples=50, strategy=st.sampled_from([one, one, one])).examples == 1
    found = search(FAIR, max_examples=50)
    assert found.examples == len(found.tried) == 50


@settings(max_examples=100, deadline=None)
@given(cases())
def test_a_case_prints_as_the_code_that_makes_it_again(generated):
    made = {}
    exec(generated.code, made)  # noqa: S102 - our own
    assert made["case"] == generated


def test_what_was_found_is_told():
    with pytest.raises(AssertionError, match="slot-time, "):
        assert_nobody_starves(Treatment(name="mine", decide=FIFO.decide))


def test_the_long_run_says_how_many_it_tried(capsys):
    assert main(["--examples", "20"]) == 0
    assert "nobody starves in 20 examples" in capsys.readouterr().out
    assert main(["--examples", "20", "--policy", "FIFO"]) == 1
    assert "somebody starves" in capsys.readouterr().out


def test_the_long_run_makes_up_for_cases_that_come_again(capsys, monkeypatch):
    """In batches of five, each of which begins with the simplest case there is."""
    monkeypatch.setattr("callback_priority.testing.__main__._BATCH", 5)
    monkeypatch.setattr("callback_priority.testing.__main__._AT_LEAST", 5)
    assert main(["--examples", "20"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert "nobody starves in 2" in told[-1]
    assert len(told) > 5


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        ("best", "one of fair, FIFO"),
        ("no_such_module:best", "No module named 'no_such_module'"),
        ("callback_priority.testing:best", "has no attribute 'best'"),
    ],
)
def test_an_unknown_policy_is_refused(policy, why, capsys):
    with pytest.raises(SystemExit) as refused:
        main(["--policy", policy])
    assert refused.value.code == 2
    assert why in capsys.readouterr().err
