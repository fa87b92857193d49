"""The demo's promise: kept by a fair run, broken by what stock does, and never kept by numbers that are missing."""

from __future__ import annotations

import attrs
import pytest

from callback_priority.demo.load import LONE_DAG, make_load
from callback_priority.demo.measure import Run
from callback_priority.demo.promise import make_promise
from callback_priority.demo.records import DEADLINE, TASK
from callback_priority.demo.summary import make_summary, table

LOAD = make_load(7)
PROMISE = make_promise(LOAD)
END = LOAD.duration_seconds


def _waiting(service_class: str) -> Run:
    """One workload that never starts, so that its class waits the whole time."""
    return Run(service_class=service_class, dag_id="x", waiting_at=0.0)


def _held(service_class: str, started_at: float, ended_at: float) -> Run:
    return Run(
        service_class=service_class, dag_id="x", waiting_at=0.0, started_at=started_at, ended_at=ended_at
    )


def _alerted(wait_seconds: float) -> Run:
    """An alert of the Dag that does not flood."""
    return Run(
        service_class=DEADLINE,
        dag_id=LONE_DAG,
        waiting_at=20.0,
        started_at=20.0 + wait_seconds,
        ended_at=20.0 + wait_seconds,
    )


FAIR = [
    _waiting(TASK),
    _waiting(DEADLINE),
    *(_held(TASK, 0.0, END) for _ in range(3)),
    *(_held(DEADLINE, 0.0, END) for _ in range(3)),
    _alerted(1.0),
]


def _broken(runs: list[Run]) -> list[str]:
    return [text[0] for text in PROMISE.broken(make_summary(runs, LOAD, END, PROMISE.stretch_seconds))]


def test_an_even_run_keeps_it():
    assert _broken(FAIR) == []


def test_a_run_in_which_each_class_has_its_turn_for_half_a_minute_breaks_it():
    """Stock's shares are even over the whole, which is why the promise speaks of stretches as well."""
    middle = (LOAD.flood_at_seconds + LOAD.deadline_seconds + END) / 2
    runs = [_waiting(TASK), _waiting(DEADLINE), _alerted(1.0)]
    runs += [_held(TASK, 0.0, middle) for _ in range(6)] + [_held(DEADLINE, middle, END) for _ in range(6)]
    assert _broken(runs) == ["2", "2"]


@pytest.mark.parametrize("starved", [TASK, DEADLINE])
def test_a_starved_class_breaks_it(starved):
    fed = DEADLINE if starved == TASK else TASK
    runs = [_waiting(TASK), _waiting(DEADLINE), _alerted(1.0)] + [_held(fed, 0.0, END) for _ in range(6)]
    assert _broken(runs) == ["1", "2"]


def test_alerts_that_drown_in_others_floods_break_it():
    runs = [run for run in FAIR if run.dag_id != LONE_DAG]
    assert _broken([*runs, _alerted(PROMISE.lone_wait_seconds + 1)]) == ["3"]


def test_nothing_measured_is_nothing_kept():
    assert set(_broken([])) == {"1", "2", "3"}


def test_it_asks_for_less_where_work_is_longer():
    coarse = make_promise(make_load(7, task_seconds=(10.0, 20.0)))
    assert coarse.share < PROMISE.share
    assert coarse.lone_wait_seconds > PROMISE.lone_wait_seconds


def test_it_never_asks_for_more_than_the_fair_half():
    assert 0 < PROMISE.stretch_share < PROMISE.share < 0.5


def test_the_table_has_a_line_for_each_class_and_marks_waits_that_are_not_over():
    summary = make_summary(FAIR, LOAD, END, PROMISE.stretch_seconds)
    lines = table([("Fair", summary)], PROMISE.stretch_seconds).splitlines()
    task, deadline, lone = lines[2:5]
    assert task.split()[:4] == ["task", "3", "of", "4"]
    assert "> 85.0 s" in task
    assert deadline.split()[0] == "deadline"
    assert deadline.count("50%") == 2
    assert lone.split()[:2] == ["of", LONE_DAG]


def test_the_lone_dag_counts_as_part_of_its_class():
    summary = make_summary(FAIR, LOAD, END, PROMISE.stretch_seconds)
    assert summary.deadline.arrived == sum(run.service_class == DEADLINE for run in FAIR)
    assert attrs.astuple(summary.lone)[1:3] == (1, 1)
