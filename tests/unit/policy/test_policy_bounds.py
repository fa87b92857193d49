"""What settings are said to guarantee, on cases worked out by hand."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callback_priority.core.classes import CLASS_ORDER, Level, ServiceClass
from callback_priority.policy.bounds import Basis, Deployment, bounds, classes_in_use, max_min
from callback_priority.policy.parse import parse_settings

DEADLINE, TASK_CALLBACK, DAG_CALLBACK, TASK = CLASS_ORDER
HOLDS = {DEADLINE: 29.0, TASK_CALLBACK: 29.0, DAG_CALLBACK: 59.0, TASK: 899.0}
SMALL = Deployment(slots=16, pools={"default_pool": 128}, loop_seconds=1, hold_seconds=HOLDS)


def found(deployment=SMALL, classes=(DEADLINE, TASK), **raw):
    return bounds(parse_settings(raw), deployment, classes=classes)


def waits(*args, **raw):
    return {(each.service_class, each.pool): each for each in found(*args, **raw).waits}


def slots(deployment=SMALL, classes=(DEADLINE, TASK), level=Level.SCHEDULER, scope="", **raw):
    return {
        each.service_class: each.slots
        for each in found(deployment, classes, **raw).guarantees
        if (each.level, each.scope) == (level, scope)
    }


def keys(*args, **raw):
    return [problem.key for problem in found(*args, **raw).problems]


def test_slots_are_shared_by_weight():
    assert slots(weights='{"task": 3}') == {DEADLINE: 4, TASK: 12}


def test_a_reserve_is_part_of_the_share_and_the_rest_is_shared_by_the_others():
    both = (DEADLINE, DAG_CALLBACK, TASK)
    assert slots(classes=both, slot_quotas='{"deadline": {"reserve": 8}}') == {
        DEADLINE: 8,
        DAG_CALLBACK: 4,
        TASK: 4,
    }
    assert slots(slot_quotas='{"deadline": {"reserve": 2}}') == {DEADLINE: 8, TASK: 8}


def test_the_reserve_of_a_class_without_work_stays_empty():
    assert slots(slot_quotas='{"dag_callback": {"reserve": 4}}') == {DEADLINE: 6, TASK: 6}


def test_what_a_limit_or_a_small_pool_leaves_is_shared_by_the_others():
    assert slots(slot_quotas='{"deadline": {"limit": 2}}') == {DEADLINE: 2, TASK: 14}
    # Tasks may draw on the small pool as well, and then have half of it; what they may never have is not theirs.
    narrow = attrs.evolve(SMALL, pools={"default_pool": 128, "alerts": 3})
    assert slots(narrow, callback_pool='{"deadline": "alerts"}') == {DEADLINE: 1.5, TASK: 13}


def test_pools_are_shared_by_their_own_weights():
    shares = '{"default_pool": {"deadline": {"weight": 3}}}'
    assert slots(level=Level.POOL, scope="default_pool", pool_quotas=shares) == {DEADLINE: 96, TASK: 32}


def test_a_strict_policy_leaves_the_second_only_its_reserve():
    assert slots(policy="callbacks_first", slot_quotas='{"task": {"reserve": 1}}') == {DEADLINE: 15, TASK: 1}


@given(
    st.integers(0, 40),
    st.fixed_dictionaries({cls: st.integers(1, 9) for cls in CLASS_ORDER}),
    st.fixed_dictionaries({cls: st.integers(0, 5) for cls in CLASS_ORDER}),
    st.fixed_dictionaries({cls: st.integers(0, 20) for cls in CLASS_ORDER}),
)
def test_shares_are_max_min(total, weights, least, more):
    """Within bounds, nothing left over that anyone could take, and nobody above its least has more by weight than one below its most."""
    most = {cls: least[cls] + more[cls] for cls in CLASS_ORDER}
    shares = max_min(total, weights, least, most)
    assert all(least[cls] <= shares[cls] <= most[cls] for cls in CLASS_ORDER)
    can_be_used = min(total, sum(most.values()))
    assert sum(shares.values()) == pytest.approx(max(can_be_used, sum(least.values())))
    for f in CLASS_ORDER:
        for g in CLASS_ORDER:
            if shares[f] > least[f] + 1e-9 and shares[g] < most[g] - 1e-9:
                assert shares[f] / weights[f] <= shares[g] / weights[g] + 1e-9


def test_the_wait_for_a_turn_is_the_others_two_rounds_and_what_it_owes():
    """16 slots, holds with a loop of 30 s and 900 s: 2 * 900 after quiet; its own 30 s come thrice: owed, repaid, held."""
    wait = waits()[DEADLINE, "default_pool"]
    assert wait.basis is Basis.TURN
    assert wait.after_quiet_seconds == pytest.approx(1 + 1_800, abs=1e-3)
    assert wait.seconds == pytest.approx(1 + 1_800 + 30 + 30, abs=1e-3)
    assert waits()[TASK, "default_pool"].seconds == pytest.approx(1 + 60 + 900 + 900, abs=1e-3)


def test_what_a_class_owes_is_repaid_by_weight():
    wait = waits(weights='{"task": 3}')[DEADLINE, "default_pool"]
    assert wait.seconds == pytest.approx(1 + 1_800 + 3 * 30 + 30, abs=1e-3)


def test_a_reserve_of_a_contender_leaves_fewer_slots_to_work_off_the_line():
    """Deadlines may hold all 16 slots, but only 8 of them have to wait for a turn: 2 * 16 * 30 / 8."""
    settings = {"slot_quotas": '{"deadline": {"reserve": 8}}'}
    assert waits(**settings)[TASK, "default_pool"].after_quiet_seconds == pytest.approx(1 + 120, abs=1e-3)


def test_a_reserve_bounds_the_wait_by_the_hold_of_the_class_itself():
    wait = waits(slot_quotas='{"deadline": {"reserve": 1}}')[DEADLINE, "default_pool"]
    assert (wait.basis, wait.seconds, wait.after_quiet_seconds) == (Basis.RESERVE, 31, 1)


def test_where_a_pool_can_be_short_too_it_takes_a_reserve_at_both():
    narrow = attrs.evolve(SMALL, pools={"default_pool": 8, "etl": 128})
    assert waits(narrow)[DEADLINE, "default_pool"].basis is Basis.NONE
    assert "both" in waits(narrow)[DEADLINE, "default_pool"].why
    at_one = {"slot_quotas": '{"deadline": {"reserve": 1}}'}
    assert waits(narrow, **at_one)[DEADLINE, "default_pool"].basis is Basis.NONE
    at_both = {**at_one, "pool_quotas": '{"default_pool": {"deadline": {"reserve": 1}}}'}
    assert waits(narrow, **at_both)[DEADLINE, "default_pool"].seconds == 31


def test_a_pool_that_alone_is_short_is_shared_by_turn():
    pool = Deployment(slots=64, pools={"default_pool": 8}, loop_seconds=1, hold_seconds=HOLDS)
    wait = waits(pool)[DEADLINE, "default_pool"]
    assert wait.after_quiet_seconds == pytest.approx(1 + 1_800, abs=1e-3)
    wide = attrs.evolve(pool, widest_tasks={"default_pool": 2})
    assert "wider" in waits(wide)[DEADLINE, "default_pool"].why


def test_several_schedulers_learn_of_overruns_a_loop_later():
    two = attrs.evolve(SMALL, schedulers=2)
    assert waits(two)[DEADLINE, "default_pool"].after_quiet_seconds == pytest.approx(1 + 2 * 901, abs=1e-3)


def test_a_cap_on_the_selection_keeps_slots_empty():
    capped = attrs.evolve(SMALL, tasks_per_query=4)
    after = waits(capped)[DEADLINE, "default_pool"].after_quiet_seconds
    assert after == pytest.approx(1 + 1_800 * 16 / 4, abs=1e-3)


def test_an_estimate_above_every_hold_counts_as_the_longest():
    first = waits(initial_hold_seconds="3600")[DEADLINE, "default_pool"].after_quiet_seconds
    assert first == pytest.approx(1 + 7_200, abs=1e-3)


def test_a_strict_policy_bounds_only_the_wait_of_the_first():
    first, second = (waits(policy="tasks_first")[cls, "default_pool"] for cls in (TASK, DEADLINE))
    assert (first.basis, first.seconds, first.after_quiet_seconds) == (Basis.ORDER, 901, 31)
    assert (second.basis, second.seconds) == (Basis.NONE, None)


def test_without_the_holds_there_is_no_bound_but_a_reason():
    wait = waits(attrs.evolve(SMALL, hold_seconds={DEADLINE: 3}))[DEADLINE, "default_pool"]
    assert (wait.seconds, wait.why) == (None, "the longest hold of task is not given")


def test_what_can_never_run_is_a_problem_and_no_wait():
    shut_out = {"slot_quotas": '{"deadline": {"limit": 0}}'}
    assert waits(**shut_out)[DEADLINE, "default_pool"].basis is Basis.NEVER
    assert keys(**shut_out) == ["slot_quotas.deadline.limit"]
    wide = attrs.evolve(SMALL, pools={"default_pool": 128, "etl": 4}, widest_tasks={"etl": 6})
    assert keys(wide) == ["pool 'etl', widest task instance"]
    assert keys(attrs.evolve(wide, widest_tasks={"etl": 4})) == []


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ({"slot_quotas": '{"dag_callback": {"reserve": 1}}'}, "slot_quotas.dag_callback.reserve"),
        (
            {"slot_quotas": '{"deadline": {"reserve": 6}}', "callback_pool": '{"deadline": "alerts"}'},
            "slot_quotas.deadline.reserve",
        ),
        (
            {
                "slot_quotas": '{"deadline": {"limit": 2}}',
                "pool_quotas": '{"alerts": {"deadline": {"reserve": 3}}}',
                "callback_pool": '{"deadline": "alerts"}',
            },
            "pool_quotas['alerts'].deadline.reserve",
        ),
        (
            {"pool_quotas": '{"alerts": {"dag_callback": {"reserve": 1}}}', "callback_pool": '{"dag_callback": "alerts"}'},
            "pool_quotas['alerts'].dag_callback.reserve",
        ),
    ],
)  # fmt: skip
def test_a_reserve_out_of_reach_is_a_problem(raw, key):
    """No work of the class comes; its pools are smaller; the scheduler lets it hold less."""
    deployment = attrs.evolve(SMALL, pools={"default_pool": 128, "alerts": 4})
    assert keys(deployment, **raw) == [key]


def test_reserves_over_the_slots_bound_nothing():
    raw = {"slot_quotas": '{"deadline": {"reserve": 9}, "task": {"reserve": 9}}'}
    assert keys(**raw) == ["slot_quotas, reserves together"]
    assert all(wait.seconds is None for wait in waits(**raw).values())


def test_the_classes_in_use_follow_what_leaves_the_dag_processor():
    using = {
        value: classes_in_use(parse_settings({"use_worker_callbacks": value}))
        for value in ("none", "task", "dag", "all")
    }
    assert using["none"] == (DEADLINE, TASK)
    assert using["task"] == (DEADLINE, TASK_CALLBACK, TASK)
    assert using["dag"] == (DEADLINE, DAG_CALLBACK, TASK)
    assert using["all"] == tuple(ServiceClass)
