"""A whole deployment with two of each: one scheduler is killed in the middle of the work, and nothing is missing."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.deployment.shared import HERE, PATIENCE
from tests.support.deployment import Deployment
from tests.support.smtp import MailSink

RUNS = tuple(f"run_{number}" for number in range(4))
CALLBACKS = ("dag_failure", "second_dag_failure", "killed", "strayed", "late_0", "late_1", "late_2")
SHEEP = 3
WORKERS = {"celery-worker", "celery-worker-2"}
TRIGGERERS = {"triggerer", "triggerer-2"}
THRESHOLD_SECONDS = 10


def called(airflow: Deployment) -> Counter[tuple[str, str]]:
    """How often each callback of each run was called."""
    return Counter((each["run_id"], each["name"]) for each in airflow.records(event="called"))


@pytest.mark.timeout(600)
def test_a_scheduler_is_killed_amid_two_of_each_and_nothing_is_missing(deploy, mail_sink: MailSink):
    """Each task and callback runs; one runs again only where the scheduler that had granted it was killed."""
    airflow = deploy(
        executor="CeleryExecutor",
        dags=[HERE / "dags_replicas" / "flock.py"],
        replicas={"scheduler": 2, "triggerer": 2, "celery-worker": 2},
        concurrency=2,
        callback_priority={
            "mode": "active",
            "use_worker_callbacks": "all",
            "sweep_interval_seconds": 2,
            "reconcile_interval_seconds": 2,
        },
        options={
            **PATIENCE,
            "scheduler": {
                "scheduler_health_check_threshold": THRESHOLD_SECONDS,
                "scheduler_heartbeat_sec": 2,
                "orphaned_tasks_check_interval": 5,
            },
        },
        environment={"AIRFLOW_CONN_SMTP_DEFAULT": mail_sink.connection_uri},
    )
    airflow.start()
    airflow.wait_for_dags("flock")
    for run_id in RUNS:
        airflow.trigger("flock", run_id)

    wanted = {(run_id, name) for run_id in RUNS for name in CALLBACKS}
    airflow.wait_until(lambda: len(called(airflow)) >= len(wanted) // 4, "a quarter is called", 120)
    granted_by = (
        "SELECT count(*) FROM callback_priority_item"
        " WHERE state = 'granted' AND scheduler_job_id = (SELECT min(id) FROM job WHERE job_type = 'SchedulerJob')"
    )
    in_flight = airflow.value(granted_by)
    airflow.kill("scheduler")
    airflow.start("scheduler")

    for run_id in RUNS:
        airflow.wait_for_run("flock", run_id, "failed", seconds=200)
    airflow.wait_until(lambda: called(airflow).keys() == wanted, "everything is called", 200)
    airflow.wait_until(
        lambda: not airflow.value("SELECT count(*) FROM callback_priority_item WHERE state != 'done'"),
        "nothing waits or is held",
    )

    states = airflow.rows("SELECT state, count(*) AS count FROM callback GROUP BY state")
    assert {row.state for row in states} == {"success"}, states
    assert called(airflow).keys() == wanted
    again = sum(called(airflow).values()) - len(wanted)
    assert again <= in_flight, called(airflow)
    attempts = airflow.value("SELECT sum(attempts) - count(*) FROM callback_priority_item WHERE attempts > 0")
    assert again <= attempts
    components = {each["component"] for each in airflow.records(event="called")}
    assert components <= WORKERS | TRIGGERERS

    tries = Counter(
        (each["run_id"], each["number"], each["try_number"]) for each in airflow.records(event="task")
    )
    assert tries == Counter((run_id, number, 1) for run_id in RUNS for number in range(SHEEP))
    assert len(mail_sink.mails()) == len(RUNS)
