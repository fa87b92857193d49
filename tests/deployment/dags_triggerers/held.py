"""Four asynchronous callbacks for each run: two of the Dag, which fails, and two of deadlines that it misses."""

from __future__ import annotations

import datetime as dt

import held_alerts
from airflow.sdk import DAG, AsyncCallback, DeadlineAlert, DeadlineReference
from started_by_trigger import StartedByTrigger

with DAG(
    "held",
    schedule=None,
    max_active_runs=32,
    on_failure_callback=[held_alerts.of_dag, held_alerts.also_of_dag],
    deadline=[
        DeadlineAlert(
            reference=DeadlineReference.DAGRUN_QUEUED_AT,
            interval=dt.timedelta(seconds=1),
            callback=AsyncCallback(held_alerts.of_deadline, kwargs={"number": number}),
        )
        for number in range(2)
    ],
):
    StartedByTrigger(task_id="fails", outcome="failed")
