"""Tasks whose process is gone before, or while, it calls its callbacks."""

from __future__ import annotations

import datetime as dt
import os
import signal
from pathlib import Path

from airflow.sdk import DAG, get_current_context, task
from callback_recorder import callback, record

AT_ONCE = dt.timedelta(seconds=0)
CALLBACKS = {
    "on_failure_callback": [callback("task_failure"), callback("second_task_failure")],
    "on_retry_callback": callback("task_retry"),
}


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def killed_once():
    if get_current_context()["ti"].try_number == 1:
        killed()


def fails():
    raise ValueError("on purpose")


def killed_in_it(context):
    """End the process in which it is called first."""
    record("killed_in_it", context)
    marker = Path(os.environ["CALLBACK_RECORDER_FILE"]).with_name(f"{context['run_id']}.called")
    if not marker.exists():
        marker.touch()
        killed()


for dag_id, callable_, more in (
    ("killed", killed, CALLBACKS),
    ("killed_once", killed_once, {"retries": 1, "retry_delay": AT_ONCE, **CALLBACKS}),
    ("left_alone", killed, CALLBACKS),
    ("fails", fails, CALLBACKS),
    ("killed_in_callback", fails, {"on_failure_callback": [killed_in_it, callback("task_failure")]}),
    ("exits", lambda: os._exit(3), CALLBACKS),
    ("killed_with_mail", killed, {"email": ["someone@example.com"], "email_on_failure": True}),
):
    with DAG(dag_id, schedule=None):
        task(task_id="gone", **more)(callable_)()
