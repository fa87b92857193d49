"""A Dag for each producer of callback requests; `tests/deployment/producers.py` provokes them one by one."""

from __future__ import annotations

import datetime as dt
import os
import time
from pathlib import Path

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, task
from callback_recorder import callback, note
from ending_trigger import EndedByTrigger

HOUR = dt.timedelta(hours=1)
TASK_CALLBACKS = {
    "on_failure_callback": [callback("task_failure"), callback("second_task_failure")],
    "on_retry_callback": callback("task_retry"),
    "on_success_callback": callback("task_success"),
}
DAG_CALLBACKS = {
    "on_failure_callback": [callback("dag_failure"), callback("second_dag_failure")],
    "on_success_callback": callback("dag_success"),
}
MAIL = {"email": ["someone@example.com"], "email_on_failure": True, "email_on_retry": True}
PARAMS = {"colour": "blue"}


def no_work():
    """Never called: nothing gets that far."""
    raise AssertionError


# The executor says failed while the task instance waits: its log directory cannot be made.
for name, more in {
    "mismatch_failure": TASK_CALLBACKS,
    "mismatch_retry": {"retries": 1, "retry_delay": HOUR, **TASK_CALLBACKS},
    "mail_failure": MAIL,
    "mail_retry": {"retries": 1, "retry_delay": HOUR, **MAIL},
}.items():
    with DAG(name, schedule=None, params=PARAMS):
        task(task_id="cannot_start", **more)(no_work)()

with DAG("stuck_in_queued", schedule=None, params=PARAMS):
    task(task_id="nobody_listens", queue="nobody", **TASK_CALLBACKS)(no_work)()


def sleep_for_ever():
    note("task", task=os.environ["AIRFLOW_CTX_DAG_ID"], parent=os.getppid())
    time.sleep(3600)


# Killed or frozen together with their supervisors.
for name, more in {
    "heartbeat_failure": TASK_CALLBACKS,
    "heartbeat_retry": {"retries": 1, "retry_delay": HOUR, **TASK_CALLBACKS},
    "worker_lost": TASK_CALLBACKS,
}.items():
    with DAG(name, schedule=None, params=PARAMS):
        task(task_id="endless", **more)(sleep_for_ever)()

with DAG("dag_success", schedule=None, params=PARAMS, **DAG_CALLBACKS):
    EmptyOperator(task_id="first") >> EmptyOperator(task_id="last")


def fail():
    raise ValueError("on purpose")


with DAG("dag_failure", schedule=None, params=PARAMS, **DAG_CALLBACKS):
    task(task_id="failing")(fail)()

# A closed pool keeps a task from starting: what becomes of it is up to others.
with DAG("dag_deadlocked", schedule=None, params=PARAMS, **DAG_CALLBACKS):
    EmptyOperator(task_id="gate", pool="closed", on_execute_callback=print) >> EmptyOperator(
        task_id="never", trigger_rule="all_skipped"
    )

with DAG(
    "dag_timed_out",
    schedule=None,
    params=PARAMS,
    dagrun_timeout=dt.timedelta(seconds=2),
    **DAG_CALLBACKS,
):
    EmptyOperator(task_id="late", pool="closed", on_execute_callback=print)


def wait_for_release():
    note("task", task=os.environ["AIRFLOW_CTX_DAG_ID"], parent=os.getppid())
    while not Path(os.environ["CALLBACK_RECORDER_FILE"]).with_name("release").exists():
        time.sleep(0.1)


with DAG("dag_paused", schedule=None, params=PARAMS, **DAG_CALLBACKS):
    task(task_id="released")(wait_for_release)()

for name, outcome, retries in (
    ("trigger_failure", "failed", 0),
    ("trigger_retry", "failed", 1),
    ("trigger_success", "success", 0),
):
    with DAG(name, schedule=None, params=PARAMS):
        EndedByTrigger(
            task_id="deferred", outcome=outcome, retries=retries, retry_delay=HOUR, **TASK_CALLBACKS
        )
