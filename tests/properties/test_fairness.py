"""What the fair queue promises, with controls that must break each promise."""

from __future__ import annotations

from fractions import Fraction

import attrs
import pytest
from hypothesis import Phase, example, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from callback_priority.core.classes import CLASS_ORDER
from callback_priority.core.slot_loop import decide
from callback_priority.core.units import MICROSECONDS, MILLI
from tests.properties.worlds import (
    DEADLINE,
    TASK,
    Holding,
    Round,
    Starts,
    first_come_first_served,
    holdings,
    never_clamped,
    run_starts,
    starts,
    worst_slot_time_unfairness,
    worst_unfairness,
)

SEARCH = settings(derandomize=True, database=None, deadline=None, max_examples=500, phases=[Phase.generate])
BOTH = frozenset({DEADLINE, TASK})


def caught(strategy, breaks) -> bool:
    """Whether a search finds a case that breaks the promise."""
    try:
        find(strategy, breaks, settings=SEARCH)
    except NoSuchExample:
        return False
    return True


BLOCKED_THEN_BACK = Starts(
    weights={DEADLINE: MILLI, TASK: MILLI},
    costs={DEADLINE: MICROSECONDS, TASK: MICROSECONDS},
    rounds=[Round(6, BOTH, frozenset({DEADLINE}))] * 5 + [Round(6, BOTH, frozenset())] * 3,
)
"""A class is stopped by its limit for a while: nothing of that may be made up for afterwards."""


@given(starts())
@example(BLOCKED_THEN_BACK)
@example(attrs.evolve(BLOCKED_THEN_BACK, pooled=True))
@settings(max_examples=200)
def test_any_two_classes_that_wait_get_starts_in_proportion(scenario):
    """|N_f/w_f - N_g/w_g| <= c_f/w_f + c_g/w_g over any stretch in which both could be granted a slot.

    Whoever was away or stopped by a limit in between has no credit from it: stretches begin anywhere.
    """
    assert worst_unfairness(scenario) <= 1


def test_first_come_first_served_is_caught():
    assert caught(starts(always=True), lambda each: worst_unfairness(each, first_come_first_served) > 1)


def test_keeping_credit_while_blocked_is_caught():
    assert worst_unfairness(BLOCKED_THEN_BACK, never_clamped) > 1
    assert worst_unfairness(attrs.evolve(BLOCKED_THEN_BACK, pooled=True), never_clamped) > 1
    assert caught(starts(), lambda each: worst_unfairness(each, never_clamped) > 1)


@given(starts(always=True))
@settings(max_examples=80)
def test_a_class_that_waits_is_granted_again_within_its_gap_bound(scenario):
    """Between two grants of f, each other class g gets at most w_g (c_f/w_f + c_g/w_g) of slot-time."""
    grants = [cls for granted in run_starts(scenario) for cls in granted]
    for f in scenario.weights:
        since = dict.fromkeys(CLASS_ORDER, 0)
        for cls in grants:
            if cls is f:
                since = dict.fromkeys(CLASS_ORDER, 0)
                continue
            since[cls] += 1
            step_f = Fraction(scenario.costs[f] * MILLI, scenario.weights[f])
            step_g = Fraction(scenario.costs[cls] * MILLI, scenario.weights[cls])
            assert since[cls] * step_g <= step_f + step_g + 1


@given(starts(always=True), st.sampled_from(CLASS_ORDER), st.integers(1, 30))
@settings(max_examples=80)
def test_whoever_arrives_is_granted_before_anyone_else_twice(scenario, newcomer, before):
    """A fresh class starts at the clock, so only those that stand exactly there go first, once each."""
    others = frozenset(scenario.weights) - {newcomer}
    if newcomer not in scenario.weights or not others:
        return
    rounds = [Round(1, others, frozenset())] * before + [
        Round(1, frozenset(scenario.weights), frozenset())
    ] * 8
    granted = run_starts(Starts(scenario.weights, scenario.costs, rounds))
    after = [classes[0] for classes in granted[before:]]
    assert newcomer in after[: len(others) + 1]


@given(holdings())
@example(Holding(2, {DEADLINE: 1_000, TASK: 1_000}, {DEADLINE: [1], TASK: [60]}, steps=[2]))
@settings(max_examples=60)
def test_any_two_classes_that_wait_get_slot_time_in_proportion(scenario):
    """|S_f/w_f - S_g/w_g| <= (K + 1) (d_f/w_f + d_g/w_g), though no hold is known beforehand.

    At the scheduler's slots and at a pool's, for K slots and longest holds d.
    """
    assert worst_slot_time_unfairness(scenario) <= 1


LONG_AND_SHORT = Holding(4, {DEADLINE: 1_000, TASK: 1_000}, {DEADLINE: [2], TASK: [40]}, steps=[1])


@pytest.mark.parametrize(
    "control",
    [
        pytest.param({"settled": False}, id="fair by starts"),
        pytest.param({"decider": first_come_first_served}, id="first come, first served"),
    ],
)
def test_equal_starts_are_caught_where_holds_differ(control):
    assert worst_slot_time_unfairness(LONG_AND_SHORT, **control) > 1
    assert worst_slot_time_unfairness(LONG_AND_SHORT, decider=decide) <= 1
