"""What all tests share. Airflow's environment is set here, before anything can import Airflow."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.airflow_env import (
    AirflowHome,
    Backend,
    DatabaseTemplates,
    enter_airflow_home,
    use_database,
)
from tests.support.postgres import PostgresServer, running_postgres

_SESSION_DIRECTORY = Path(tempfile.mkdtemp(prefix="callback-priority-tests-"))
_HOME = AirflowHome.create(_SESSION_DIRECTORY / "airflow")
enter_airflow_home(_HOME)

_FRESH_NAMES = (f"fresh_{number}" for number in itertools.count(1))

# `ci` is what `make test` runs: the same examples every time, and no failing because a machine is busy.
settings.register_profile(
    "ci", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", deadline=None, max_examples=2_000)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nothing behind."""
    shutil.rmtree(_SESSION_DIRECTORY, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the fixtures they ask for, so that ``-m 'not airflow'`` leaves the quick ones."""
    for item in items:
        names = getattr(item, "fixturenames", ())
        if "airflow_database" in names or "migrated_database" in names:
            item.add_marker(pytest.mark.airflow)
        backend = getattr(item, "callspec", None) and item.callspec.params.get("backend")
        if "postgres" in names or backend == "postgresql":
            item.add_marker(pytest.mark.postgres)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A private PostgreSQL server; its absence is a failure, never a skip."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_url(postgres: PostgresServer) -> str:
    """The URL of the server's own database; for data, ask for `fresh_database`."""
    return postgres.url()


@pytest.fixture
def fresh_database(postgres: PostgresServer) -> Iterator[str]:
    """The URL of an empty PostgreSQL database, dropped after the test."""
    name = next(_FRESH_NAMES)
    yield postgres.create_database(name)
    postgres.drop_database(name)


@pytest.fixture(scope="session")
def airflow_home() -> AirflowHome:
    """The home that this process's Airflow lives in."""
    return _HOME


@pytest.fixture(scope="session")
def database_templates(airflow_home: AirflowHome) -> DatabaseTemplates:
    """Migrated databases by the copy."""
    directory = _SESSION_DIRECTORY / "databases"
    directory.mkdir()
    return DatabaseTemplates(home=airflow_home, directory=directory)


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each database that tests run on.

    For one only: ``@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)``.
    """
    return request.param


@pytest.fixture
def migrated_database(
    request: pytest.FixtureRequest, backend: Backend, database_templates: DatabaseTemplates
) -> Iterator[str]:
    """The URL of a metadata database as ``airflow db migrate`` leaves it, the test's own."""
    server = request.getfixturevalue("postgres") if backend == "postgresql" else None
    with database_templates.copy(backend, server) as url:
        yield url


@pytest.fixture
def airflow_database(migrated_database: str) -> Iterator[str]:
    """The same, with this process's Airflow pointed at it for the test."""
    with use_database(migrated_database):
        yield migrated_database
