"""What tests with a whole deployment lean on: it comes up, tells of what ends by itself, and leaves nothing behind."""

from __future__ import annotations

import contextlib

import psutil
import psycopg2
import pytest

from tests.deployment.producers import DAG_FILE
from tests.support.deployment import DeploymentError, deployed
from tests.support.postgres import running_postgres
from tests.support.redis import running_redis


def test_a_deployment_on_sqlite_runs_a_dag_and_leaves_nothing_behind(tmp_path, database_templates):
    with deployed(
        tmp_path / "airflow", databases=database_templates, backend="sqlite", dags=[DAG_FILE]
    ) as airflow:
        airflow.start()
        airflow.wait_for_dags("dag_success")
        airflow.trigger("dag_success", "one")
        airflow.wait_for_run("dag_success", "one", "success")
        airflow.wait_until(lambda: airflow.records(name="dag_success"), "the callback is called")
        processes = {name: airflow.processes(name) for name in airflow.components}
        assert all(processes.values())

        airflow.kill("dag-processor")
        assert not any(each.is_running() for each in processes["dag-processor"])
        airflow.check()
        airflow.start("dag-processor")

        processes["triggerer"][0].kill()
        with pytest.raises(DeploymentError, match="triggerer ended with status -9"):
            airflow.wait_until(lambda: False, "nothing")
    left = [each for some in processes.values() for each in some if each.is_running()]
    assert [each for each in left if each.status() != psutil.STATUS_ZOMBIE] == []


def test_what_does_not_happen_is_told_with_the_logs(tmp_path, database_templates):
    with deployed(tmp_path / "airflow", databases=database_templates, backend="sqlite") as airflow:
        (airflow.logs / "scheduler.log").write_text("what the scheduler said last\n")
        with pytest.raises(
            DeploymentError, match=r"a run: not within 0 s(.|\n)*what the scheduler said last"
        ):
            airflow.wait_until(lambda: airflow.run_state("no", "run"), "a run", 0)


def test_celery_needs_a_broker(tmp_path, database_templates):
    with (
        pytest.raises(ValueError, match="Redis"),
        deployed(tmp_path / "airflow", databases=database_templates, executor="CeleryExecutor"),
    ):
        pass


def test_redis_hands_out_empty_databases(redis):
    first, second = redis.fresh_database(), redis.fresh_database()
    assert first != second
    number = int(second.rsplit("/", 1)[1])
    with redis.connect(number) as client:
        client.set("left", "over")
    redis._handed_out = number
    redis.fresh_database()
    with redis.connect(number) as client:
        assert client.dbsize() == 0


def test_killed_servers_come_back_where_they_were():
    """PostgreSQL with what was committed, Redis with nothing."""
    with running_postgres({"synchronous_commit": "on"}) as postgres, running_redis() as redis:
        with contextlib.closing(postgres.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE kept AS SELECT 1 AS number")
            first, port = postgres.process_id, postgres.port
            postgres.kill()
            with pytest.raises(psycopg2.OperationalError):
                cursor.execute("SELECT 1")
        postgres.start()
        assert (postgres.port, postgres.process_id != first) == (port, True)
        with contextlib.closing(postgres.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT number FROM kept")
            assert cursor.fetchall() == [(1,)]

        with redis.connect() as client:
            client.set("kept", "no")
            redis.kill()
            redis.start()
            assert client.dbsize() == 0
