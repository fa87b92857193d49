"""The model that the choice of algorithm rests on, through the production core (see docs/explanation)."""

from __future__ import annotations

import attrs
import pytest

from callback_priority.core.classes import ServiceClass
from callback_priority.core.policies import Policy
from callback_priority.policy.settings import Settings
from callback_priority.simulation.arrivals import Poisson
from callback_priority.simulation.comparison import compare
from callback_priority.simulation.engine import Treatment
from callback_priority.simulation.holds import Exponential
from callback_priority.simulation.library import named_scenario
from callback_priority.simulation.results import run
from callback_priority.simulation.scenario import Scenario, Stream

TASK, DEADLINE = ServiceClass.TASK, ServiceClass.DEADLINE
MIXED = Scenario(
    name="mixed",
    slots=4,
    seconds=900,
    streams=(
        Stream(name="tasks", service_class=TASK, holds=Exponential(mean_seconds=30)),
        Stream(
            name="alerts",
            service_class=DEADLINE,
            holds=Exponential(mean_seconds=3),
            arrivals=Poisson(rate_per_second=0.7),
        ),
    ),
)


def contend(name, *treatments, seeds):
    """The treatments of a named scenario that are asked for, over some seeds."""
    file = named_scenario(name)
    chosen = [each for each in file.treatments if each.name in treatments]
    assert len(chosen) == len(treatments)
    return compare(file.scenario, chosen, seeds=range(seeds))


@pytest.fixture(scope="module")
def quiet():
    """Those that something is promised of."""
    return contend("contention", "callbacks first", "fair by slot-time", "fair, 2 slots reserved", seeds=5)


@pytest.fixture(scope="module")
def flood():
    return contend(
        "contention-flood", "callbacks first", "fair by slot-time", "fair, 2 slots reserved", seeds=1
    )


def wait(comparison, name, fraction=0.95):
    return comparison[name].classes[DEADLINE].wait_seconds[fraction].mean


def test_callbacks_wait_little_longer_than_if_they_always_went_first(quiet):
    assert wait(quiet, "fair by slot-time") <= 1.4 * wait(quiet, "callbacks first")


def test_two_reserved_slots_cut_the_wait_of_callbacks_to_a_third(quiet):
    assert wait(quiet, "fair, 2 slots reserved") <= 0.3 * wait(quiet, "callbacks first")


@pytest.mark.parametrize("name", ["fair by slot-time", "fair, 2 slots reserved"])
def test_tasks_keep_half_of_the_slot_time_in_a_flood_of_callbacks(flood, name):
    assert 0.48 <= flood[name].classes[TASK].share.mean <= 0.57


@pytest.mark.parametrize("name", ["fair by slot-time", "fair, 2 slots reserved"])
def test_classes_that_both_wait_never_drift_further_apart_than_the_bound(quiet, flood, name):
    for comparison in (quiet, flood):
        assert all(lag.seconds <= lag.bound for lag in comparison[name].lags)


def test_callbacks_first_starves_tasks_in_the_flood(flood):
    """The control: the workload is one in which the policy matters."""
    starved = flood["callbacks first"]
    assert starved.classes[TASK].share.mean < 0.1
    assert any(lag.seconds > lag.bound for lag in starved.lags)


def test_fair_by_starts_starves_callbacks():
    """The control: what is charged matters, not only that turns are taken."""
    found = contend("contention", "fair by starts", seeds=1)["fair by starts"]
    assert found.classes[DEADLINE].waiting.mean > 4_000
    assert (
        contend("contention-flood", "fair by starts", seeds=1)["fair by starts"].classes[TASK].share.mean
        > 0.95
    )


def test_tasks_first_starves_callbacks():
    """The control: Airflow's outcome where tasks see the free slot first."""
    found = contend("contention", "tasks first", seeds=1)["tasks first"].classes[DEADLINE]
    assert found.wait_seconds[0.95] is None
    assert found.waiting.mean > 4_000


def test_the_same_seed_gives_the_same_outcome():
    treatment = Treatment(name="fair")
    outcomes = [run(MIXED, treatment, seed=7) for _ in range(2)]
    assert outcomes[0] == outcomes[1]
    assert outcomes[0].classes != run(MIXED, treatment, seed=8).classes


def test_every_policy_gets_the_same_arrivals_and_the_same_holds():
    """Common random numbers: with slots enough for everyone, the policy makes no difference."""
    streams = tuple(attrs.evolve(stream, arrivals=Poisson(rate_per_second=0.7)) for stream in MIXED.streams)
    scenario = attrs.evolve(MIXED, streams=streams, slots=500)
    first, *others = (
        run(scenario, Treatment(name="any", settings=Settings(policy=policy)), seed=3).classes
        for policy in Policy
    )
    assert first[TASK].started > 500
    assert all(other == first for other in others)


def test_no_slot_stays_empty_while_tasks_wait():
    assert run(MIXED, Treatment(name="fair"), seed=1).utilisation > 0.999
