"""Loses a task and a Dag once it has been parsed: `test_failure_modes.py` changes two words in it."""

from __future__ import annotations

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG
from started_by_trigger import StartedByTrigger


def never_called(context):
    raise AssertionError


with DAG("task_removed", schedule=None):
    StartedByTrigger(task_id="there_for_now", outcome="failed", on_failure_callback=never_called)

with DAG("dag_for_now", schedule=None, on_success_callback=never_called):
    EmptyOperator(task_id="empty")
