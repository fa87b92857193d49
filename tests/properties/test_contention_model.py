"""The model that the choice of algorithm rests on, through the production core (see docs/explanation)."""

from __future__ import annotations

import attrs
import pytest

from callback_priority.core.classes import ServiceClass
from callback_priority.core.policies import Policy
from callback_priority.policy.settings import Settings
from callback_priority.simulation.contention import CONTENDERS, contend
from callback_priority.simulation.scheduler import simulate
from callback_priority.simulation.workload import Stream, Workload

BY_NAME = {contender.name: contender for contender in CONTENDERS}
MIXED = Workload(
    streams=(
        Stream(service_class=ServiceClass.TASK, mean_hold_seconds=30),
        Stream(service_class=ServiceClass.DEADLINE, mean_hold_seconds=3, rate_per_second=0.7),
    ),
    seconds=900,
)


@pytest.fixture(scope="module")
def rows():
    """The contenders that something is promised of: five seeds, six hours; fewer floods, which differ little."""
    floods = {"callbacks first": 1, "fair by slot-time": 5, "fair by slot-time, 2 reserved": 2}
    return {name: contend(BY_NAME[name], flood_seeds=range(seeds)) for name, seeds in floods.items()}


def test_callbacks_wait_little_longer_than_if_they_always_went_first(rows):
    fair, first = rows["fair by slot-time"], rows["callbacks first"]
    assert fair.wait_p95_seconds <= 1.4 * first.wait_p95_seconds


def test_two_reserved_slots_cut_the_wait_of_callbacks_to_a_third(rows):
    reserved, first = rows["fair by slot-time, 2 reserved"], rows["callbacks first"]
    assert reserved.wait_p95_seconds <= 0.3 * first.wait_p95_seconds


@pytest.mark.parametrize("name", ["fair by slot-time", "fair by slot-time, 2 reserved"])
def test_tasks_keep_half_of_the_slot_time_in_a_flood_of_callbacks(rows, name):
    assert 0.48 <= rows[name].flood_task_share <= 0.57


def test_callbacks_first_starves_tasks_in_the_flood(rows):
    """The control: the workload is one in which the policy matters."""
    assert rows["callbacks first"].flood_task_share < 0.1


def test_fair_by_starts_starves_callbacks():
    """The control: what is charged matters, not only that turns are taken."""
    row = contend(BY_NAME["fair by starts"], seeds=range(1))
    assert row.never_started > 4_000
    assert row.flood_task_share > 0.95


def test_tasks_first_starves_callbacks():
    """The control: Airflow's outcome where tasks see the free slot first."""
    row = contend(BY_NAME["tasks first"], seeds=range(1))
    assert row.wait_p95_seconds is None or row.never_started > 4_000


def test_the_same_seed_gives_the_same_outcome():
    outcomes = [simulate(MIXED, Settings(), slots=4, seed=7) for _ in range(2)]
    assert outcomes[0] == outcomes[1]
    assert outcomes[0] != simulate(MIXED, Settings(), slots=4, seed=8)


def test_every_policy_gets_the_same_arrivals_and_the_same_holds():
    """Common random numbers: with slots enough for everyone, the policy makes no difference."""
    streams = tuple(attrs.evolve(stream, rate_per_second=0.7) for stream in MIXED.streams)
    workload = attrs.evolve(MIXED, streams=streams)
    first, *others = (simulate(workload, Settings(policy=policy), slots=500, seed=3) for policy in Policy)
    assert first.classes[ServiceClass.TASK].started > 500
    assert all(other == first for other in others)


def test_no_slot_stays_empty_while_tasks_wait():
    assert simulate(MIXED, Settings(), slots=4, seed=1).utilisation > 0.999
