"""The core's small parts: terms, ranks, and charging what somebody else granted."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

import callback_priority.simulation
from callback_priority.core.accounting import recent, serve
from callback_priority.core.classes import CALLBACK_CLASSES, CLASS_ORDER, FlowKey, Level, ServiceClass
from callback_priority.core.flows import FlowState
from callback_priority.core.observed import charge_observed
from callback_priority.core.ranking import head_start_us, next_turn_us, rank_us
from callback_priority.core.units import MICROSECONDS
from callback_priority.policy.settings import Settings

KEY = FlowKey(Level.SCHEDULER, "", ServiceClass.TASK)
AGING, TURN = 600 * MICROSECONDS, 10 * MICROSECONDS
SIMULATION = [
    module.name
    for module in pkgutil.walk_packages(
        callback_priority.simulation.__path__, "callback_priority.simulation."
    )
]


@pytest.mark.parametrize("name", SIMULATION)
def test_examples_in_the_simulators_docstrings_hold(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_callbacks_go_before_tasks_where_tags_are_equal():
    assert CLASS_ORDER[-1] is ServiceClass.TASK
    assert set(CALLBACK_CLASSES) == set(ServiceClass) - {ServiceClass.TASK}


@pytest.mark.parametrize("term", [*ServiceClass, *Level])
def test_a_term_is_its_text(term):
    """Rows come back from a database as text; they find their flow."""
    assert str(term) == term.value
    assert {term: 1}[term.value] == 1


@given(st.integers(-1_000, 1_000), st.integers(-1_000, 1_000))
def test_more_important_work_is_never_ranked_behind_equally_old_work(one, other):
    low, high = sorted((one, other))
    assert rank_us(0, high, AGING) <= rank_us(0, low, AGING)


@given(st.integers(0, 2**31 - 1))
def test_priority_ages_within_31_periods(priority):
    """Nothing waits for ever below a steady stream of more important work."""
    assert 0 <= head_start_us(priority, AGING) <= 31 * AGING


@given(st.integers(1, 400), st.integers(1, 400))
def test_a_dags_backlog_does_not_hold_back_another_dag(backlog, late):
    """Behind any number of one Dag's callbacks, another Dag's goes in after those of its age, one per turn."""
    turns: list[int] = []
    for _ in range(backlog):
        turns.append(next_turn_us(0, turns[-1] if turns else None, TURN))
    newcomer = next_turn_us(late * MICROSECONDS, None, TURN)
    assert sum(turn < newcomer for turn in turns) <= late * MICROSECONDS // TURN + 1


def test_what_a_class_was_given_counts_half_after_ten_minutes():
    state = serve(FlowState(key=KEY, weight=1_000, estimate=1), 1_000, 0)
    assert recent(state, 0, 600 * MICROSECONDS) == 500
    assert recent(state, 0, 0) == 1_000


def test_grants_of_others_advance_a_flow_and_keep_no_credit():
    """Shadow mode: what Airflow started is charged, from the clock on."""
    ahead = FlowState(
        key=KEY._replace(service_class=ServiceClass.DEADLINE), weight=1_000, estimate=1, clock=500
    )
    behind = FlowState(key=KEY, weight=1_000, estimate=1, tag=20, remainder=7)
    flows = {state.key: state for state in (ahead, behind)}
    (after,) = charge_observed(flows, {KEY: [10, 30]}, Settings(), 0).values()
    assert (after.tag, after.remainder, after.clock, after.granted) == (540, 0, 500, 2)
