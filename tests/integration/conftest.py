"""What the tests with Airflow's real scheduler share."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from callback_priority import compat
from callback_priority.cli.main import main


@pytest.fixture(autouse=True)
def quiet_airflow() -> Iterator[None]:
    """Airflow tells of every task it looks at; most of a loop's time would go into that."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    yield
    root.setLevel(before)


@pytest.fixture
def stock_ends_callbacks(airflow_database) -> None:
    """For tests in which Airflow by itself, without the library, has to settle callbacks."""
    if compat.series() == "3.2" and airflow_database.startswith("sqlite"):
        pytest.skip("the scheduler of Airflow 3.2 by itself ends on SQLite when a callback does")


@pytest.fixture
def configure(monkeypatch):
    """Set options of the section for this process."""
    # Where the mode is on when this is imported, the hook is installed, for all tests to come.
    import airflow.jobs.scheduler_job_runner  # noqa: F401

    def configure(**options):
        for name, value in options.items():
            monkeypatch.setenv(f"AIRFLOW__CALLBACK_PRIORITY__{name.upper()}", value)

    return configure


@pytest.fixture
def call(capsys):
    """Run a command in this process; returns its exit status and the JSON that it printed."""

    def call(*arguments):
        capsys.readouterr()
        status = main([*arguments, "--json"])
        return status, json.loads(capsys.readouterr().out)

    return call


@pytest.fixture
def doctor(call):
    """Run it; returns its exit status and its checks by name."""

    def doctor():
        status, report = call("doctor")
        return status, {each["check"]: each for each in report["checks"]}

    return doctor


@pytest.fixture
def database(airflow_database):
    """A connection whose every statement is committed at once."""
    engine = sa.create_engine(airflow_database, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection
    engine.dispose()
