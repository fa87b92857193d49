"""An empty database with our tables and the two of Airflow's that are read, on each backend."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone

import pytest
from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, Text, Uuid, create_engine, event
from sqlalchemy.dialects import mysql
from sqlalchemy.dialects.postgresql import JSONB

from callback_priority.persistence.tables import UtcDateTime, metadata
from tests.support.airflow_env import Backend

airflow = MetaData()
callback = Table(
    "callback",
    airflow,
    Column("id", Uuid, primary_key=True),
    Column("type", String(20), nullable=False),
    Column("state", String(10)),
    Column("data", Text().with_variant(JSONB, "postgresql"), nullable=False),
    Column("priority_weight", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)
job = Table(
    "job",
    airflow,
    Column("id", Integer, primary_key=True),
    Column("state", String(20)),
    Column("latest_heartbeat", UtcDateTime),
)


@pytest.fixture
def now() -> datetime:
    """The present of a test."""
    return datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone.utc)


@pytest.fixture
def conn(backend: Backend, request: pytest.FixtureRequest) -> Iterator[Connection]:
    """A connection in a transaction; every statement on it is compiled for MySQL too."""
    url = "sqlite://" if backend == "sqlite" else request.getfixturevalue("fresh_database")
    engine = create_engine(url)
    with engine.connect() as connection:
        metadata.create_all(connection)
        airflow.create_all(connection)
        event.listen(connection, "before_execute", _compile_for_mysql)
        yield connection
    engine.dispose()


def _compile_for_mysql(_conn: object, statement: object, *_rest: object) -> None:
    # Upserts are written per dialect; MySQL's own have a test of their own.
    if not getattr(statement, "is_insert", False) and hasattr(statement, "compile"):
        statement.compile(dialect=mysql.dialect())


@pytest.fixture
def sent(conn: Connection) -> list[str]:
    """The statements that reach the database."""
    texts: list[str] = []

    def record(_conn: object, _cursor: object, statement: str, *_rest: object) -> None:
        texts.append(statement)

    event.listen(conn, "before_cursor_execute", record)
    return texts
