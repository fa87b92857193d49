"""Dags that fail at once, with a callback of the Dag and one of its task."""

from __future__ import annotations

from airflow.sdk import DAG
from callback_recorder import note
from started_by_trigger import StartedByTrigger


def of_task(context):
    note("called", name="of_task", dag_id=context["dag"].dag_id, run_id=context["run_id"])


def of_dag(context):
    note("called", name="of_dag", dag_id=context["dag"].dag_id, run_id=context["run_id"])


for name in ("moved", "moved_but_kept", "other"):
    with DAG(name, schedule=None, max_active_runs=32, on_failure_callback=of_dag):
        StartedByTrigger(task_id="fails", outcome="failed", on_failure_callback=of_task)
