"""In a bundle with versions."""

from __future__ import annotations

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG


def never_called(context):
    raise AssertionError


with DAG("version_gone", schedule=None, on_success_callback=never_called):
    EmptyOperator(task_id="empty")
