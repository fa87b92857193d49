"""Tasks whose mails are asked of the Dag processor: the executor says failed before any of them has begun."""

from __future__ import annotations

import datetime as dt

from airflow.sdk import DAG, task


def no_work():
    """Never called: its log directory cannot be made."""
    raise AssertionError


for name, more in {
    "mail_failure": {},
    "mail_retry": {"retries": 1, "retry_delay": dt.timedelta(hours=1)},
}.items():
    with DAG(name, schedule=None):
        task(
            task_id="cannot_start",
            email=["someone@example.com", "another@example.com"],
            email_on_failure=True,
            email_on_retry=True,
            **more,
        )(no_work)()
