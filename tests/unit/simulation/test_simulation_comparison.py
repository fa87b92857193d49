"""Treatments side by side."""

from __future__ import annotations

import json
from statistics import fmean

import pytest

from callback_priority.core.classes import ServiceClass
from callback_priority.core.policies import Policy
from callback_priority.core.quotas import Quota
from callback_priority.policy.settings import Settings
from callback_priority.simulation.arrivals import Poisson
from callback_priority.simulation.comparison import compare, set_options
from callback_priority.simulation.engine import Treatment
from callback_priority.simulation.holds import Exponential
from callback_priority.simulation.results import run
from callback_priority.simulation.scenario import Scenario, Stream

TASK, DEADLINE = ServiceClass.TASK, ServiceClass.DEADLINE
SEEDS = (3, 4, 5)
SCENARIO = Scenario(
    name="short",
    description="Short.",
    slots=4,
    seconds=600,
    pools={"default_pool": 6},
    streams=(
        Stream(name="tasks", service_class=TASK, holds=Exponential(mean_seconds=30)),
        Stream(
            name="alerts",
            service_class=DEADLINE,
            dags=8,
            holds=Exponential(mean_seconds=3),
            arrivals=Poisson(rate_per_second=0.3),
        ),
    ),
)
TREATMENTS = (
    Treatment(name="tasks first", settings=Settings(policy=Policy.TASKS_FIRST)),
    Treatment(
        name="fair",
        settings=Settings(slot_quotas={DEADLINE: Quota(reserve_slots=1)}),
        changes=((300.0, Settings()),),
    ),
    Treatment(name="twin", settings=Settings(slot_quotas={DEADLINE: Quota(reserve_slots=1)})),
)


@pytest.fixture(scope="module")
def found():
    return compare(SCENARIO, TREATMENTS, seeds=SEEDS)


def test_a_mean_is_the_mean_of_the_runs(found):
    runs = [run(SCENARIO, TREATMENTS[1], seed=seed) for seed in SEEDS]
    alerts = found["fair"].classes[DEADLINE]
    assert alerts.wait_seconds[0.95].mean == fmean(each.classes[DEADLINE].wait_seconds[0.95] for each in runs)
    assert alerts.share.mean == fmean(each.share(DEADLINE) for each in runs)
    assert found["fair"].utilisation.mean == fmean(each.utilisation for each in runs)
    assert alerts.slots_over_time[7] == fmean(each.classes[DEADLINE].slots[7] for each in runs)


def test_the_number_of_processes_changes_nothing(found):
    """Settings and scenarios hold mappings that cannot be changed; they reach the other processes all the same."""
    assert compare(SCENARIO, TREATMENTS, seeds=SEEDS, jobs=2).to_json() == found.to_json()


def test_progress_ends_at_one_and_never_goes_back():
    told = []
    compare(SCENARIO, TREATMENTS[:2], seeds=(1, 2), progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1
    assert len(told) > 20


def test_where_nothing_was_started_there_is_no_wait(found):
    """Tasks never end to wait and go first."""
    alerts = found["tasks first"].classes[DEADLINE]
    assert set(alerts.wait_seconds.values()) == {None}
    assert alerts.waiting.mean == alerts.arrived.mean > 100
    assert found["fair"].differences[DEADLINE].wait_seconds[0.5] is None


def test_differences_are_paired_by_seed():
    """The same work under settings that do the same: no spread is left, however far the seeds lie apart."""
    same = (*TREATMENTS[2:], Treatment(name="once more", settings=TREATMENTS[2].settings))
    difference = compare(SCENARIO, same, seeds=SEEDS)["once more"].differences[DEADLINE]
    wait = difference.wait_seconds[0.95]
    assert (wait.mean, wait.low, wait.high) == (0, 0, 0)
    assert not wait.excludes_zero


def test_the_first_treatment_is_what_the_others_are_held_against(found):
    assert found["tasks first"].differences is None
    share = found["fair"].differences[DEADLINE].share
    assert share.mean == pytest.approx(found["fair"].classes[DEADLINE].share.mean)
    assert share.excludes_zero


def test_dags_are_named_after_their_stream_and_those_that_waited_longest_come_first(found):
    dags = found["fair"].classes[DEADLINE].dags
    assert 1 < len(dags) <= 5
    assert all(each.name.startswith("alerts ") for each in dags)
    assert [each.p95_seconds for each in dags] == sorted((each.p95_seconds for each in dags), reverse=True)


def test_lags_are_the_furthest_of_all_seeds(found):
    runs = [run(SCENARIO, TREATMENTS[0], seed=seed) for seed in SEEDS]
    (lag,) = found["tasks first"].lags
    assert lag.seconds == max(each.lags[0].seconds for each in runs)
    assert lag.bound == min(each.lags[0].bound for each in runs)


def test_json_holds_all_of_it_in_plain_values(found):
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document == found.to_json()
    assert document["scenario"]["pools"] == {"default_pool": 6}
    assert document["seeds"] == [3, 4, 5]
    fair = document["treatments"][1]
    assert fair["settings"] == {"slot_quotas": '{"deadline": {"reserve": 1, "limit": null}}'}
    assert fair["changes"] == [{"at_seconds": 300.0, "settings": {}}]
    assert list(fair["classes"]["deadline"]["wait_seconds"]) == ["0.5", "0.95", "0.99", "1.0"]
    assert fair["contention"][0]["entitlement"] == {"deadline": 0.5, "task": 0.5}
    assert fair["contention"][0]["seconds"] > 0


def test_only_options_that_are_not_the_defaults_are_told():
    assert set_options(Settings()) == {}
