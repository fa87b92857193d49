"""Tasks that do next to nothing and write down each try of theirs."""

from __future__ import annotations

import datetime as dt

from airflow.sdk import DAG, get_current_context, task
from callback_recorder import note

SIZE = 25


def herded(context):
    note("called", name="herded", run_id=context["run_id"])


with DAG("herd", schedule=None, max_active_runs=100, max_active_tasks=1000, on_success_callback=herded):
    # A worker that is killed costs a try. Nothing may cost the task instance.
    @task(retries=50, retry_delay=dt.timedelta(0))
    def graze(number: int) -> None:
        ti = get_current_context()["ti"]
        note("task", run_id=ti.run_id, map_index=ti.map_index, try_number=ti.try_number, id=str(ti.id))

    graze.expand(number=list(range(SIZE)))
