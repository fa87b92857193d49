"""Tasks that keep coming: every run of this Dag is a handful of independent steps, and none has a deadline."""

from __future__ import annotations

import time

from airflow.sdk import DAG, get_current_context, task

STEPS = 8

with DAG(
    "ingest",
    schedule=None,
    max_active_runs=100,
    max_active_tasks=1000,
    doc_md=__doc__,
):

    @task
    def step(number: int) -> None:
        """Work for as long as the run's configuration says."""
        time.sleep((get_current_context()["dag_run"].conf or {})["seconds"][number])

    for number in range(STEPS):
        step.override(task_id=f"step_{number}")(number)
