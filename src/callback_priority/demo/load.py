"""The load: which Dag run is triggered when, and how long each of its workloads takes. Pure and seeded.

Steps of `ingest` arrive as fast as all slots together could run them, after a start with four runs' worth, so tasks
always wait. A few seconds in, the reports are late together: their alerts want half a minute of all slots. Runs of `billing` miss their
deadline one by one the whole time, with one alert each.
"""

from __future__ import annotations

import random
from typing import Final

import attrs

__all__ = ["FLOOD_DAGS", "LONE_DAG", "TASK_DAG", "Load", "PlannedRun", "make_load", "warm_up_runs"]

TASK_DAG: Final = "ingest"
FLOOD_DAGS: Final = ("report_amer", "report_apac", "report_emea")
LONE_DAG: Final = "billing"

ALERTS_PER_RUN: Final = 8
"""Of a report; `dags/reports.py` says the same."""
DEADLINE_SECONDS: Final = 2.0
"""Of reports and `billing`, from the trigger; `dags/reports.py` says the same."""
STEPS_PER_RUN: Final = 8
"""Of `ingest`; `dags/ingest.py` says the same."""


@attrs.frozen(kw_only=True)
class PlannedRun:
    """A Dag run to trigger.

    Args:
        at_seconds: When, from the load's start.
        dag_id: Of which Dag.
        seconds: How long each of its tasks works.
    """

    at_seconds: float
    dag_id: str
    seconds: tuple[float, ...]


@attrs.frozen(kw_only=True)
class Load:
    """What one phase is put under.

    Args:
        seed: Of the lengths.
        slots: The scheduler's `parallelism`.
        duration_seconds: From the first run to the end of the phase.
        flood_at_seconds: When the reports are triggered.
        flood_callbacks: How many alerts they send.
        deadline_seconds: How long after its trigger a run with a deadline misses it.
        task_seconds: The shortest and the longest that a task works.
        callback_seconds: The shortest and the longest that a callback works.
        runs: In order of time.
    """

    seed: int
    slots: int
    duration_seconds: float
    flood_at_seconds: float
    flood_callbacks: int
    deadline_seconds: float
    task_seconds: tuple[float, float]
    callback_seconds: tuple[float, float]
    runs: tuple[PlannedRun, ...]

    @property
    def tasks(self) -> int:
        """How many task instances the runs have."""
        return sum(len(run.seconds) for run in self.runs)


def make_load(
    seed: int,
    *,
    slots: int = 6,
    duration_seconds: float = 85.0,
    flood_at_seconds: float = 8.0,
    flood_runs: int = 6,
    task_seconds: tuple[float, float] = (3.0, 5.0),
    callback_seconds: tuple[float, float] = (2.5, 4.5),
    ingest_every_seconds: float = 6.0,
    lone_every_seconds: float = 6.0,
) -> Load:
    """The load for a seed; the same seed gives the same load.

    Args:
        seed: Of the lengths.
        slots: The scheduler's `parallelism`.
        duration_seconds: How long runs are triggered.
        flood_at_seconds: When the reports are triggered.
        flood_runs: How many runs of reports there are, spread evenly over their Dags.
        task_seconds: The shortest and the longest that a task works.
        callback_seconds: The shortest and the longest that a callback works.
        ingest_every_seconds: Between two runs of `ingest`; the first comes fourfold, so that tasks wait at once.
        lone_every_seconds: Between two runs of `billing`.

    >>> load = make_load(7)
    >>> load == make_load(7), load == make_load(8)
    (True, False)
    >>> load.flood_callbacks
    48
    """
    lengths = random.Random(seed)  # noqa: S311 - a load, not a secret

    def works(count: int) -> tuple[float, ...]:
        return tuple(round(lengths.uniform(*task_seconds), 2) for _ in range(count))

    ingest_times = [0.0, 0.0, 0.0, *_every(ingest_every_seconds, 0.0, duration_seconds)]
    lone_times = _every(lone_every_seconds, flood_at_seconds / 2, duration_seconds)
    runs = [PlannedRun(at_seconds=at, dag_id=TASK_DAG, seconds=works(STEPS_PER_RUN)) for at in ingest_times]
    runs += [PlannedRun(at_seconds=at, dag_id=LONE_DAG, seconds=works(1)) for at in lone_times]
    runs += [
        PlannedRun(at_seconds=flood_at_seconds, dag_id=FLOOD_DAGS[number % len(FLOOD_DAGS)], seconds=works(1))
        for number in range(flood_runs)
    ]
    return Load(
        seed=seed,
        slots=slots,
        duration_seconds=duration_seconds,
        flood_at_seconds=flood_at_seconds,
        flood_callbacks=flood_runs * ALERTS_PER_RUN,
        deadline_seconds=DEADLINE_SECONDS,
        task_seconds=task_seconds,
        callback_seconds=callback_seconds,
        runs=tuple(sorted(runs, key=lambda run: run.at_seconds)),
    )


def warm_up_runs(load: Load) -> tuple[PlannedRun, ...]:
    """Runs that come before the load: the first task and the first callback of an Airflow take many times as long.

    One of `ingest` with steps of no length, one of `billing` that just misses its deadline.
    """
    return (
        PlannedRun(at_seconds=0.0, dag_id=TASK_DAG, seconds=(0.0,) * STEPS_PER_RUN),
        PlannedRun(at_seconds=0.0, dag_id=LONE_DAG, seconds=(load.deadline_seconds + 1.0,)),
    )


def _every(step_seconds: float, start_seconds: float, end_seconds: float) -> list[float]:
    count = int((end_seconds - start_seconds) / step_seconds)
    return [start_seconds + number * step_seconds for number in range(count)]
