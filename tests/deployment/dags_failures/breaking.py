"""Breaks once it has been parsed: `test_failure_modes.py` adds a line to it."""

from __future__ import annotations

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG


def never_called(context):
    raise AssertionError


with DAG("no_longer_parses", schedule=None, on_success_callback=never_called):
    EmptyOperator(task_id="empty")
