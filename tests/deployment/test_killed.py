"""Tasks whose process is killed: the callbacks that nobody is left to call are called."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.deployment.shared import HERE
from tests.support.smtp import MailSink

DAG_FILE = HERE / "dags_killed" / "killed.py"
RUN_ID = "provoked"
FAILURE = {"task_failure": 1, "second_task_failure": 1}
CALLED: dict[str, dict[str, int]] = {
    "killed": FAILURE,
    "killed_once": {"task_retry": 1},
    "exits": FAILURE,
    "fails": FAILURE,
    # The first was killed in its own process, and is called again; the second was never reached there.
    "killed_in_callback": {"killed_in_it": 2, "task_failure": 1},
    "killed_with_mail": {},
    "left_alone": {},
}
"""How often each callable of each Dag is called."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("executor", ["LocalExecutor", "CeleryExecutor"])
def test_the_callbacks_of_killed_tasks_are_called(deploy, mail_sink: MailSink, executor):
    """Once if the task had not ended, again if it was killed in its callbacks, never where the options say so."""
    airflow = deploy(
        executor=executor,
        dags=[DAG_FILE],
        callback_priority={
            "mode": "active",
            "use_worker_callbacks": "task",
            "worker_callbacks_exclude": "left_alone",
        },
        environment={"AIRFLOW_CONN_SMTP_DEFAULT": mail_sink.connection_uri},
    )
    airflow.start()
    airflow.wait_for_dags(*CALLED)
    for dag_id in CALLED:
        airflow.trigger(dag_id, RUN_ID)
    for dag_id in CALLED:
        airflow.wait_for_run(dag_id, RUN_ID, "success" if dag_id == "killed_once" else "failed", seconds=120)

    def called() -> dict[str, Counter[str]]:
        return {
            dag_id: Counter(each["name"] for each in airflow.records(event="callback", dag_id=dag_id))
            for dag_id in CALLED
        }

    airflow.wait_until(lambda: called() == CALLED and len(mail_sink.mails()) == 1, "everything is called")
    airflow.wait_until(
        lambda: airflow.value("SELECT count(*) FROM callback_priority_item WHERE state != 'done'") == 0,
        "nothing waits",
    )

    assert called() == CALLED, "nothing more is called"
    assert "Airflow alert" in mail_sink.mails()[0].subject
    ran_in = {each["component"] for each in airflow.records(event="callback", dag_id="killed")}
    assert ran_in == {"scheduler" if executor == "LocalExecutor" else "celery-worker"}
    requests = airflow.rows("SELECT dag_id, kind, outcome, units FROM callback_priority_request")
    assert {tuple(row) for row in requests} == {
        ("killed", "task_failure", "routed", 2),
        ("killed_once", "task_retry", "routed", 1),
        ("exits", "task_failure", "routed", 2),
        ("killed_in_callback", "task_failure", "routed", 2),
        ("killed_with_mail", "email_failure", "routed", 1),
        ("killed_with_mail", "task_failure", "empty", 0),
    }
