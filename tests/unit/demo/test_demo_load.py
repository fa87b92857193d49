"""The load is the same for the same seed, and says of the Dags what their files say."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path
from typing import Any

from callback_priority import demo
from callback_priority.demo import load as load_module
from callback_priority.demo.load import FLOOD_DAGS, LONE_DAG, TASK_DAG, make_load, warm_up_runs

DAGS = Path(demo.__file__).parent / "dags"


def _constant(file: str, name: str) -> Any:
    for node in ast.parse((DAGS / file).read_text()).body:
        if isinstance(node, ast.Assign) and [target.id for target in node.targets] == [name]:
            return node.value
    raise AssertionError(f"{file} has no {name}")


def test_the_numbers_are_those_of_the_dag_files():
    alerts = ast.literal_eval(_constant("reports.py", "ALERTS"))
    assert alerts == {**dict.fromkeys(FLOOD_DAGS, load_module.ALERTS_PER_RUN), LONE_DAG: 1}
    assert ast.literal_eval(_constant("ingest.py", "STEPS")) == load_module.STEPS_PER_RUN
    deadline = _constant("reports.py", "DEADLINE")
    assert ast.unparse(deadline) == f"timedelta(seconds={load_module.DEADLINE_SECONDS:g})"


def test_every_run_has_a_length_for_each_of_its_tasks():
    load = make_load(3)
    for run in [*load.runs, *warm_up_runs(load)]:
        assert len(run.seconds) == (load_module.STEPS_PER_RUN if run.dag_id == TASK_DAG else 1)


def test_runs_are_in_order_and_within_the_phase():
    load = make_load(3)
    times = [run.at_seconds for run in load.runs]
    assert times == sorted(times)
    assert times[0] == 0
    assert times[-1] < load.duration_seconds


def test_the_flood_is_spread_evenly_over_its_dags():
    runs = Counter(run.dag_id for run in make_load(3).runs)
    assert len({runs[dag_id] for dag_id in FLOOD_DAGS}) == 1


def test_whatever_has_a_deadline_works_longer_than_it():
    """A run that ends in time misses nothing."""
    load = make_load(3)
    assert all(run.seconds[0] > load.deadline_seconds for run in load.runs if run.dag_id != TASK_DAG)


def test_both_classes_have_more_to_do_than_half_of_the_slots_can():
    """Else there would be nothing to share."""
    load = make_load(3)
    rest = load.duration_seconds - load.flood_at_seconds - load.deadline_seconds
    half = load.slots / 2 * rest
    assert sum(sum(run.seconds) for run in load.runs) > half
    assert load.flood_callbacks * sum(load.callback_seconds) / 2 > 0.7 * half
