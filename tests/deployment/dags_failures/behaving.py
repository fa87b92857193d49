"""Does nothing wrong; its Dag is named as its file, of which there are several copies."""

from __future__ import annotations

from pathlib import Path

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG
from callback_recorder import note


def behaves(context):
    note("called", name=context["dag"].dag_id)


with DAG(Path(__file__).stem, schedule=None, on_success_callback=behaves):
    EmptyOperator(task_id="empty")
