"""Scenarios as files."""

from __future__ import annotations

import copy
import json

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callback_priority.core.classes import ServiceClass
from callback_priority.core.policies import Policy
from callback_priority.errors import ConfigurationError
from callback_priority.simulation import scenario_file
from callback_priority.simulation.arrivals import Diurnal, Poisson, Regular, Storms
from callback_priority.simulation.engine import Accounting
from callback_priority.simulation.holds import Empirical, Exponential, Fixed, LogNormal
from callback_priority.simulation.library import named_scenario, scenario_names, scenario_text
from callback_priority.simulation.results import run
from callback_priority.simulation.scenario import Crash
from callback_priority.simulation.scenario_file import load_scenario, parse_scenario, read_scenario

EVERYTHING = """
description = "Everything there is."
seconds = 7200
warm_up_seconds = 600.5
slots = 8
schedulers = 2
loop_seconds = 0
max_tis_per_query = 16

[pools]
default_pool = -1
etl = 12

[[work]]
name = "backlog"
class = "task"
pool = "etl"
width = 3
priority = 7
arrivals = { kind = "endless" }
holds = { kind = "empirical", seconds = [1, 2.5] }

[[work]]
name = "mapped"
class = "task"
batch = 50
spread_seconds = 10
arrivals = { kind = "regular", every_seconds = 600, from_seconds = 5 }
holds = { kind = "log_normal", median_seconds = 30, sigma = 0.5 }

[[work]]
name = "alerts"
class = "deadline"
dags = 20
priority = -3
arrivals = { kind = "poisson", per_second = 0.2, from_seconds = 60 }
holds = { kind = "exponential", mean_seconds = 6 }

[[work]]
name = "failures"
class = "task_callback"
arrivals = { kind = "diurnal", per_second = 0.1, swing = 0.5, peak_seconds = 1000, period_seconds = 3600 }
holds = { kind = "fixed", seconds = 4 }

[[work]]
name = "runs"
class = "dag_callback"
arrivals = { kind = "storms", at_seconds = [100, 200] }
holds = { kind = "fixed", seconds = 4 }

[[crashes]]
at_seconds = 1200
scheduler = 1
down_seconds = 30
takeover_seconds = 45

[settings.first]
policy = "callbacks_first"

[settings."by starts"]
accounting = "starts"
shared_tags = false
weights = '{"task": 3}'

[[settings."by starts".changes]]
at_seconds = 3600
slot_quotas = '{"deadline": {"reserve": 1}}'
"""


def small(**changes):
    """A valid document, with changes."""
    work = {
        "name": "alerts",
        "class": "deadline",
        "arrivals": {"kind": "poisson", "per_second": 1},
        "holds": {"kind": "fixed", "seconds": 1},
    }
    work |= changes.pop("work", {})
    work = {key: value for key, value in work.items() if value is not None}
    return {"seconds": 60, "slots": 4, "work": [work]} | changes


def problems(document):
    with pytest.raises(ConfigurationError) as caught:
        parse_scenario(document, "mine")
    return {each.key: each.remedy for each in caught.value.problems}


def test_everything_that_can_be_written_is_read():
    file = load_scenario(EVERYTHING, "all")
    scenario = file.scenario
    assert scenario.name == "all"
    assert scenario.description == "Everything there is."
    assert (scenario.seconds, scenario.warm_up_seconds, scenario.loop_seconds) == (7200, 600.5, 0)
    assert (scenario.slots, scenario.schedulers, scenario.tasks_per_query) == (8, 2, 16)
    assert dict(scenario.pools) == {"default_pool": None, "etl": 12}
    backlog, mapped, alerts, failures, runs = scenario.streams
    assert backlog.endless
    assert (backlog.pool, backlog.width, backlog.priority) == ("etl", 3, 7)
    assert backlog.holds == Empirical(seconds=(1, 2.5))
    assert (mapped.batch, mapped.spread_seconds) == (50, 10)
    assert mapped.arrivals == Regular(every_seconds=600, from_seconds=5)
    assert mapped.holds == LogNormal(median_seconds=30, sigma=0.5)
    assert (alerts.service_class, alerts.dags, alerts.priority) == (ServiceClass.DEADLINE, 20, -3)
    assert alerts.arrivals == Poisson(rate_per_second=0.2, from_seconds=60)
    assert alerts.holds == Exponential(mean_seconds=6)
    assert failures.arrivals == Diurnal(
        rate_per_second=0.1, swing=0.5, peak_seconds=1000, period_seconds=3600
    )
    assert failures.holds == Fixed(seconds=4)
    assert runs.arrivals == Storms(at_seconds=(100, 200))
    assert scenario.crashes == (Crash(at_seconds=1200, scheduler=1, down_seconds=30, takeover_seconds=45),)
    first, starts = file.treatments
    assert (first.name, first.settings.policy) == ("first", Policy.CALLBACKS_FIRST)
    assert (starts.accounting, starts.shared_tags) == (Accounting.STARTS, False)
    ((at, changed),) = starts.changes
    assert at == 3600
    assert changed.weights == starts.settings.weights
    assert changed.slot_quotas[ServiceClass.DEADLINE].reserve_slots == 1


def test_json_says_the_same_as_toml(tmp_path):
    toml, as_json = tmp_path / "mine.toml", tmp_path / "mine.json"
    toml.write_text(EVERYTHING)
    as_json.write_text(json.dumps(scenario_file.tomllib.loads(EVERYTHING)))
    assert read_scenario(toml) == read_scenario(as_json)


def test_without_settings_there_are_the_defaults():
    (treatment,) = parse_scenario(small(), "mine").treatments
    assert treatment.name == "default"
    assert treatment.accounting is Accounting.SLOT_TIME


@pytest.mark.parametrize(
    ("changes", "key", "says"),
    [
        ({"secnds": 1}, "secnds", "did you mean 'seconds'?"),
        ({"seconds": "60"}, "seconds", "write a number of seconds from 1"),
        ({"seconds": True}, "seconds", "write a number of seconds"),
        ({"seconds": float("nan")}, "seconds", "write a number of seconds"),
        ({"slots": 2.5}, "slots", "write a whole number from 1"),
        ({"slots": 0}, "slots", "write a whole number from 1"),
        ({"warm_up_seconds": 60}, "warm_up_seconds", "leaves nothing to measure"),
        ({"pools": {"default_pool": -2}}, "pools['default_pool']", "or -1 for no end"),
        ({"pools": {"default_pool": True}}, "pools['default_pool']", "or -1 for no end"),
        ({"pools": {}}, "pools", "names no pool"),
        ({"pools": {"default_pools": 3}}, "work[0].pool", "did you mean 'default_pools'?"),
        ({"work": {"class": "deadlin"}}, "work[0].class", "did you mean 'deadline'?"),
        ({"work": {"class": None}}, "work[0].class", "write one of deadline"),
        ({"work": {"width": 2}}, "work[0].width", "a callback takes one slot"),
        (
            {"pools": {"default_pool": 3}, "work": {"class": "task", "width": 4}},
            "work[0].width",
            "the pool has 3 slots",
        ),
        ({"work": {"name": ""}}, "work[0].name", "write a name"),
        ({"work": {"holds": None}}, "work[0].holds", "write a table with a kind"),
        ({"work": {"hold": {}}}, "work[0].hold", "did you mean 'holds'?"),
        ({"work": {"holds": {"kind": "lognormal"}}}, "work[0].holds.kind", "did you mean 'log_normal'?"),
        (
            {"work": {"holds": {"kind": "fixed", "mean_seconds": 3, "seconds": 3}}},
            "work[0].holds.mean_seconds",
            "no such key",
        ),
        (
            {"work": {"holds": {"kind": "empirical", "seconds": []}}},
            "work[0].holds.seconds",
            "write a list of numbers",
        ),
        ({"work": {"arrivals": {"kind": "endless"}}}, "work[0].arrivals", "only tasks have a backlog"),
        (
            {"work": {"class": "task", "batch": 3, "arrivals": {"kind": "endless"}}},
            "work[0].batch",
            "has no meaning",
        ),
        (
            {"work": {"arrivals": {"kind": "poisson", "per_second": 0}}},
            "work[0].arrivals.per_second",
            "write a number from 1e-06",
        ),
        ({"work": {"arrivals": {"kind": "poisson"}}}, "work[0].arrivals.per_second", "write a number"),
        ({"crashes": [{"at_seconds": 3, "scheduler": 1}]}, "crashes[0].scheduler", "from 0 to 0"),
        ({"crashes": {"at_seconds": 3}}, "crashes", "write a list of tables"),
        ({"settings": {"a": {"polcy": "fair"}}}, "settings['a'].polcy", "did you mean 'policy'?"),
        ({"settings": {"a": {"weights": 3}}}, "settings['a'].weights", "write it in quotes"),
        ({"settings": {"a": {"weights": '{"taks": 3}'}}}, "settings['a'].weights['taks']", "did you mean"),
        (
            {"settings": {"a": {"slot_quotas": '{"task": {"reserve": 5}}'}}},
            "settings['a'].slot_quotas, reserves together",
            "is more than the 4 slot(s)",
        ),
        (
            {"settings": {"a": {"pool_quotas": '{"etl": {"task": {"reserve": 5}}}'}}},
            "settings['a'].pool_quotas['etl']",
            "pool",
        ),
        ({"settings": {"a": {"accounting": "start"}}}, "settings['a'].accounting", "did you mean 'starts'?"),
        ({"settings": {"a": {"shared_tags": "no"}}}, "settings['a'].shared_tags", "write true or false"),
        (
            {"settings": {"a": {"changes": [{"policy": "fair"}]}}},
            "settings['a'].changes[0].at_seconds",
            "write a number of seconds",
        ),
        (
            {"settings": {"a": {"changes": [{"at_seconds": 9}, {"at_seconds": 3}]}}},
            "settings['a'].changes[1].at_seconds",
            "in the order of their times",
        ),
        (
            {
                "pools": {"default_pool": 4, "alerts": 2},
                "settings": {"a": {"callback_pool": '{"deadline": "alerts"}'}},
            },
            "settings['a'].callback_pool",
            "let both name the same pool",
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_place_and_a_remedy(changes, key, says):
    found = problems(small(**changes))
    assert key in found, found
    assert says in found[key]


SCRAPS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["endless", "task", "deadline", "fixed", "fair"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.sampled_from(["kind", "seconds", "a"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(st.data())
def test_whatever_stands_in_a_file_is_read_or_refused_with_its_problems(data):
    document = copy.deepcopy(scenario_file.tomllib.loads(EVERYTHING))
    for _ in range(data.draw(st.integers(1, 3))):
        place = document
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = data.draw(st.sampled_from(keys))
            if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
                break
            place = place[key]
        place[key] = data.draw(SCRAPS)
    found = ()
    try:
        parse_scenario(document, "mine")
    except ConfigurationError as error:
        found = error.problems
    assert all(each.key and each.remedy for each in found)


def test_all_problems_are_told_at_once():
    found = problems(
        {"slots": 0, "work": [{"name": "a"}, {"name": "a", "class": "task"}], "settings": {"x": 3}}
    )
    assert len(found) >= 7
    with pytest.raises(ConfigurationError, match=r"scenario 'mine' has \d+ problem\(s\)"):
        parse_scenario({}, "mine")


def test_two_kinds_of_work_have_two_names_and_a_pool_has_one_backlog():
    document = small()
    document["work"] *= 2
    assert "is the name of more than one" in problems(document)["work"]
    endless = small(work={"class": "task", "arrivals": {"kind": "endless"}})
    endless["work"].append({**endless["work"][0], "name": "more"})
    assert "more than one backlog" in problems(endless)["work"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.toml", "slots = [", "is not TOML"),
        ("a.toml", "slots = 1\nslots = 2", "is not TOML"),
        ("a.json", '{"slots": 1, "slots": 2}', "'slots' is there more than once"),
        ("a.json", '{"slots": NaN}', "NaN is no number"),
        ("a.json", "[]", "write one JSON object"),
        ("a.json", "[" * 100_000, "is not JSON"),
        ("a.toml", b"\xff", "is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path, name, text, says):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigurationError, match=says):
        read_scenario(path)


@pytest.mark.parametrize("name", scenario_names())
def test_every_scenario_of_the_library_runs_and_says_what_it_is_about(name):
    file = named_scenario(name)
    assert file.scenario.name == name
    assert file.scenario.description.endswith((".", "?"))
    assert scenario_text(name).startswith(("#", "description"))
    assert len({each.name for each in file.treatments}) == len(file.treatments) > 1
    for treatment in file.treatments:
        found = run(attrs.evolve(file.scenario, seconds=120.0), treatment, seed=1)
        assert found.utilisation > 0
