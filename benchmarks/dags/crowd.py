"""A Dag that ends at once and has many callbacks."""

from __future__ import annotations

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

CALLBACKS = 48


def called(context: dict[str, object]) -> str:
    """Return something that was looked up, as an alert would."""
    return f"{context['run_id']}: {context['reason']}"


with DAG("crowd", schedule=None, on_success_callback=[called] * CALLBACKS):
    EmptyOperator(task_id="nothing")
