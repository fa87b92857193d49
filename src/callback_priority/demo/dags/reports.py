"""Dags with deadlines that a busy Airflow misses, and the callbacks that tell people so.

Three reports alert eight people per run, `billing` one: when the reports are late together, theirs is the
flood, and the alert of `billing` is the one that must not drown in it.
"""

from __future__ import annotations

import os
import random
import sqlite3
import time
from contextlib import closing
from datetime import timedelta
from uuid import UUID

import psutil  # type: ignore[import-untyped]

# The type stub of airflow.sdk leaves out what deadlines need.
from airflow.sdk import (  # type: ignore[attr-defined]
    DAG,
    DeadlineAlert,
    DeadlineReference,
    SyncCallback,
    get_current_context,
    task,
)

DEADLINE = timedelta(seconds=2)
ALERTS = {"report_amer": 8, "report_apac": 8, "report_emea": 8, "billing": 1}
SEED = int(os.environ.get("CALLBACK_PRIORITY_DEMO_SEED", "0"))
SHORTEST_SECONDS = float(os.environ.get("CALLBACK_PRIORITY_DEMO_SHORTEST_CALLBACK", "1"))
LONGEST_SECONDS = float(os.environ.get("CALLBACK_PRIORITY_DEMO_LONGEST_CALLBACK", "1"))


def notify(person: int, seconds: float, context: dict[str, dict[str, str]]) -> None:
    """Tell a person, which takes a while, and leave a record of when.

    A callback's row has no start and no end, so the callback writes them beside it. It counts as started when its
    process was, as a task instance does.
    """
    started_at = psutil.Process().create_time()
    deadline = UUID(context["deadline"]["id"]).hex
    _record("INSERT INTO demo_callback_run (deadline_id, started_at) VALUES (?, ?)", deadline, started_at)
    time.sleep(seconds)
    print(f"Told person {person} of deadline {deadline}")
    _record("UPDATE demo_callback_run SET ended_at = ? WHERE deadline_id = ?", time.time(), deadline)


def _record(statement: str, *values: object) -> None:
    path = os.environ["CALLBACK_PRIORITY_DEMO_DATABASE"]
    with closing(sqlite3.connect(path, timeout=60)) as connection, connection:
        connection.execute(statement, values)


def _alerts(dag_id: str) -> list[DeadlineAlert]:
    seconds = random.Random(f"{SEED} {dag_id}")  # noqa: S311 - a load, not a secret
    return [
        DeadlineAlert(
            reference=DeadlineReference.DAGRUN_QUEUED_AT,
            interval=DEADLINE,
            callback=SyncCallback(
                notify,
                kwargs={
                    "person": person,
                    "seconds": round(seconds.uniform(SHORTEST_SECONDS, LONGEST_SECONDS), 2),
                },
            ),
        )
        for person in range(ALERTS[dag_id])
    ]


for dag_id in ALERTS:
    with DAG(
        dag_id,
        schedule=None,
        max_active_runs=100,
        max_active_tasks=1000,
        deadline=_alerts(dag_id),
        doc_md=__doc__,
    ):

        @task
        def build() -> None:
            """Work for as long as the run's configuration says, which is longer than the deadline."""
            time.sleep((get_current_context()["dag_run"].conf or {})["seconds"][0])

        build()
