"""The test bed itself: a private PostgreSQL, and an Airflow whose databases are migrated."""

from __future__ import annotations

from pathlib import Path

import psycopg2
import pytest
import sqlalchemy as sa

from tests.support.airflow_env import run_airflow


def test_postgres_answers_as_the_version_that_the_wheel_names(postgres, postgres_url):
    engine = sa.create_engine(postgres_url)
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SHOW server_version")) == postgres.version
    engine.dispose()
    assert postgres.version.startswith("17.")


def test_postgres_does_not_run_as_root(postgres):
    assert Path(f"/proc/{postgres.process_id}").stat().st_uid != 0


def test_a_fresh_database_is_empty_and_its_own(fresh_database):
    engine = sa.create_engine(fresh_database)
    assert sa.inspect(engine).get_table_names() == []
    engine.dispose()


def test_a_dropped_database_takes_open_connections_along(postgres):
    postgres.create_database("doomed")
    connection = postgres.connect("doomed")
    postgres.drop_database("doomed")
    with pytest.raises(psycopg2.OperationalError), connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    connection.close()


@pytest.mark.parametrize("pool", ["first", "second"])
def test_a_migrated_database_is_each_tests_own(airflow_database, pool):
    """Each of the two finds Airflow's default pool and nothing of the other's."""
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session

    with create_session() as session:
        session.add(Pool(pool=pool, slots=1, description="", include_deferred=False))
        session.flush()
        assert set(session.scalars(sa.select(Pool.pool))) == {"default_pool", pool}
    with create_session() as session:
        assert session.get_bind().url.render_as_string(hide_password=False) == airflow_database


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_an_airflow_process_sees_the_same_database(airflow_home, migrated_database):
    environment = airflow_home.subprocess_environment(migrated_database)
    assert migrated_database in run_airflow(
        ["config", "get-value", "database", "sql_alchemy_conn"], environment
    )
