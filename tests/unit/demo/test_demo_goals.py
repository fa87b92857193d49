"""The goals that a demo's outcome is held against: what is counted, and what is given on the command line."""

from __future__ import annotations

import pytest

from callback_priority.demo.__main__ import main
from callback_priority.demo.goals import missed_goals, value_text
from callback_priority.demo.load import make_load
from callback_priority.demo.measure import Run
from callback_priority.demo.records import DEADLINE, TASK
from callback_priority.demo.surroundings import Home, free_ports
from callback_priority.simulation.goals import parse_goals

END = 100.0


def _run(service_class: str, waiting_at: float, *times: float) -> Run:
    named = dict(zip(("started_at", "ended_at"), times, strict=False))
    return Run(service_class=service_class, dag_id="x", waiting_at=waiting_at, **named)


# Two slots. A task runs from 0 to 50 and another one waits for it; nothing waits for the rest of the time.
RUNS = [
    _run(TASK, 0.0, 0.0, 50.0),
    _run(TASK, 10.0, 50.0, 60.0),
    _run(DEADLINE, 10.0, 12.0, 15.0),
    _run(DEADLINE, 10.0, 16.0, 20.0),
    _run(DEADLINE, 60.0),
]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("deadline p50 <= 6 s", "6.0 s"),
        # What still waits has waited to the end.
        ("deadline max <= 40 s", "40.0 s"),
        ("deadline mean <= 16 s", "16.0 s"),
        # From 10 to 50 one task waited, and one of the two slots was held.
        ("task keeps >= 50%", "50%"),
        ("dag_callback p95 <= 1 s", "nothing came"),
    ],
)
def test_a_goal_is_held_against_what_was_seen(text, value):
    [goal] = parse_goals(text)
    assert value_text(goal, RUNS, slots=2, end_seconds=END) == value
    is_missed = value == "nothing came"
    assert missed_goals([goal], RUNS, slots=2, end_seconds=END) == ([goal] if is_missed else [])


@pytest.mark.parametrize("text", ["deadline p50 <= 5 s", "deadline max <= 39 s", "task keeps >= 51%"])
def test_a_goal_that_is_missed_by_a_little_is_missed(text):
    [goal] = parse_goals(text)
    assert missed_goals([goal], RUNS, slots=2, end_seconds=END) == [goal]


def test_a_class_that_never_waited_kept_what_it_wanted():
    [goal] = parse_goals("task keeps >= 90%")
    runs = [_run(TASK, 1.0, 1.0, 2.0)]
    assert missed_goals([goal], runs, slots=2, end_seconds=END) == []


def test_settings_reach_airflow_and_the_mode_stays_the_demos(tmp_path):
    options = {"weights": '{"deadline": 3}', "mode": "shadow"}
    environment = Home(path=tmp_path).environment(
        "fair", "active", make_load(1), ports=free_ports(), options=options
    )
    assert environment["AIRFLOW__CALLBACK_PRIORITY__WEIGHTS"] == '{"deadline": 3}'
    assert environment["AIRFLOW__CALLBACK_PRIORITY__MODE"] == "active"


@pytest.mark.parametrize(
    ("section", "goal", "word"),
    [
        ('weights = {"deadline": -1}', "task keeps >= 5%", "weights"),
        ('slot_quotas = {"deadline": {"reserve": 7}}', "task keeps >= 5%", "reserve"),
        ("", "deadline quick", "is not a goal"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_started(tmp_path, capsys, section, goal, word):
    path = tmp_path / "tuned.cfg"
    path.write_text(f"[callback_priority]\n{section}\n")
    with pytest.raises(SystemExit) as refused:
        main(["--settings", str(path), "--goal", goal, "--output", str(tmp_path / "out")])
    assert refused.value.code == 2
    assert word in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
