"""A callback that begins and waits to be let go; its Dag is named as its file, of which there are several copies."""

from __future__ import annotations

import os
import time
from pathlib import Path

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG
from callback_recorder import note


def holds(context):
    about = {"dag_id": context["dag"].dag_id, "run_id": context["run_id"]}
    note("began", **about)
    release = Path(os.environ["CALLBACK_RECORDER_FILE"]).with_name(f"release-{context['run_id']}")
    while not (release / about["dag_id"]).exists():
        time.sleep(0.1)
    note("called", **about)


with DAG(Path(__file__).stem, schedule=None, on_success_callback=holds):
    EmptyOperator(task_id="empty")
