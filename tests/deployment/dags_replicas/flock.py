"""Everything at once: tasks that work, one whose process is killed, one that a trigger fails, deadlines that are missed."""

from __future__ import annotations

import datetime as dt
import os
import signal

from airflow.sdk import (
    DAG,
    AsyncCallback,
    DeadlineAlert,
    DeadlineReference,
    SyncCallback,
    get_current_context,
    task,
)
from callback_recorder import note
from late_alerts import late, late_in_the_triggerer
from started_by_trigger import StartedByTrigger

SHEEP = 3
ALERTS = 2


def called(name: str):
    """A callback that only writes down that it was called."""

    def call(context):
        note("called", name=name, run_id=context["run_id"])

    call.__name__ = call.__qualname__ = name
    return call


def deadlines() -> list[DeadlineAlert]:
    callbacks = [SyncCallback(late, kwargs={"number": number}) for number in range(ALERTS)]
    return [
        DeadlineAlert(
            reference=DeadlineReference.DAGRUN_QUEUED_AT, interval=dt.timedelta(seconds=1), callback=each
        )
        for each in (*callbacks, AsyncCallback(late_in_the_triggerer, kwargs={"number": ALERTS}))
    ]


with DAG(
    "flock",
    schedule=None,
    max_active_runs=32,
    deadline=deadlines(),
    on_failure_callback=[called("dag_failure"), called("second_dag_failure")],
):

    @task
    def graze(number: int) -> None:
        context = get_current_context()
        note("task", run_id=context["run_id"], number=number, try_number=context["ti"].try_number)

    for number in range(SHEEP):
        graze.override(task_id=f"graze_{number}")(number)

    @task(email=["shepherd@example.com"], email_on_failure=True, on_failure_callback=called("killed"))
    def wolf() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    wolf()
    StartedByTrigger(task_id="strays", outcome="failed", on_failure_callback=called("strayed"))
