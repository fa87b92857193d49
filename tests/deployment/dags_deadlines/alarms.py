"""One deadline for each way in which its callback can end."""

from __future__ import annotations

import datetime as dt

from airflow.sdk import DAG, DeadlineAlert, DeadlineReference, SyncCallback, task
from odd_alerts import comes_round, is_killed, raises, reads

with DAG(
    "alarms",
    schedule=None,
    deadline=[
        DeadlineAlert(
            reference=DeadlineReference.DAGRUN_QUEUED_AT,
            interval=dt.timedelta(seconds=1),
            callback=SyncCallback(each),
        )
        for each in (reads, raises, comes_round, is_killed)
    ],
):

    @task
    def sleeps() -> None:
        """Only to have something in it."""

    sleeps()
