"""The bounds of ``docs/explanation/bounds.md``, on the engine, with schedulers that must break them."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from callback_priority.core.policies import Policy
from callback_priority.core.slot_loop import decide
from callback_priority.policy.bounds import Basis
from callback_priority.simulation.engine import Accounting
from tests.properties.waits import drifts, overcharged, world
from tests.properties.worlds import DEADLINE, TASK, first_come_first_served

FEW = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 10**6)


def callbacks_first(snapshot, entitlements):
    """The control that follows an order, whatever the tags say."""
    strict = attrs.evolve(entitlements, policy=Policy.CALLBACKS_FIRST)
    return decide(snapshot, strict)


@given(seeds)
@example(7)
@example(128)
@FEW
def test_nobody_first_in_line_waits_longer_than_the_bound(seed):
    """By turn, reserve or order; one scheduler or several; at the schedulers' slots or at a pool's."""
    part, service_class, basis = world(seed, reserves=False).worst(seed)
    assert part <= 1, (service_class, basis)


@pytest.mark.parametrize("slots", [4, 16])
def test_the_bound_of_a_newcomer_can_be_met(slots):
    """All but two loops and one part in K of it: no smaller bound is true of every workload."""
    case = overcharged(slots)
    bound = next(wait.after_quiet_seconds for wait in case.bounds.waits if wait.service_class is DEADLINE)
    waited = case.longest_waits(0)[DEADLINE]
    assert (1 - 1 / slots) * bound - 2 * slots <= waited <= bound


@given(seeds)
@FEW
def test_two_classes_that_wait_never_drift_further_apart(seed):
    """|S_f/w_f - S_g/w_g| <= 2 K (d_f/w_f + d_g/w_g), between any two moments of a stretch in which both wait."""
    for pair, (drifted, bound) in drifts(world(seed, quotas_at_all=False), seed).items():
        assert drifted <= bound, pair


def test_from_a_later_moment_on_the_drift_can_be_nearly_twice_that_from_a_fresh_start():
    """What tags promise from a fresh start, (K + 1) (d_f/w_f + d_g/w_g), is no bound for any two moments."""
    case = overcharged(16)
    drifted, bound = drifts(case, 0)[DEADLINE, TASK]
    assert 1.7 * 17 * (101 + 2) < drifted <= bound


CONTROLS = [
    pytest.param({"decider": first_come_first_served}, id="first come, first served"),
    pytest.param({"decider": callbacks_first}, id="callbacks first"),
    pytest.param({"accounting": Accounting.STARTS}, id="fair by starts"),
]


@pytest.mark.parametrize("control", CONTROLS)
def test_schedulers_without_the_bound_are_caught(control):
    caught = []
    for seed in range(150):
        case = world(seed, quotas_at_all=False)
        part, _, basis = case.worst(seed, **control)
        if part > 1 and basis is Basis.TURN:
            caught.append(seed)
            break
    assert caught
