"""The revisions make the tables that the code declares, and Airflow's commands make and drop them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, MetaData, String, Table, Uuid, create_engine, inspect
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import CreateIndex, CreateTable

from callback_priority import persistence
from callback_priority.persistence.tables import VERSION_TABLE, metadata
from tests.support.airflow_env import AirflowHome, Backend, run_airflow

OURS = {*metadata.tables, VERSION_TABLE}
HOME = Path(persistence.__file__).parent
REVISIONS = [
    each.revision for each in reversed(list(ScriptDirectory(str(HOME / "migrations")).walk_revisions()))
]
"""Oldest first."""


def tables(url: str) -> set[str]:
    engine = create_engine(url)
    try:
        return {name for name in inspect(engine).get_table_names() if name.startswith("callback_priority")}
    finally:
        engine.dispose()


@pytest.fixture
def engine(backend: Backend, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    url = f"sqlite:///{tmp_path}/x.db" if backend == "sqlite" else request.getfixturevalue("fresh_database")
    engine = create_engine(url)
    yield engine
    engine.dispose()


def alembic_of(engine: Engine) -> Config:
    config = Config(str(HOME / "alembic.ini"))
    config.attributes["engine"] = engine
    return config


def differences(engine: Engine) -> list[Any]:
    with engine.connect() as conn:
        options = {"compare_type": True, "compare_server_default": True, "version_table": VERSION_TABLE}
        return list(compare_metadata(MigrationContext.configure(conn, opts=options), metadata))


def test_revisions_and_declared_tables_are_the_same(engine: Engine) -> None:
    config = alembic_of(engine)
    command.upgrade(config, "head")
    assert differences(engine) == []
    command.downgrade(config, "base")
    assert not set(inspect(engine).get_table_names()) - {VERSION_TABLE}


@pytest.mark.parametrize("made_by", ["revisions", "declaration"])
@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_code_of_an_earlier_revision_writes_into_the_tables_of_this_one(
    engine: Engine, revision: str, made_by: str
) -> None:
    """An upgrade restarts one process after another: all that an earlier one names is there, and is enough."""
    config = alembic_of(engine)
    command.upgrade(config, revision)
    earlier = MetaData()
    earlier.reflect(engine, only=lambda name, _: name != VERSION_TABLE)
    if made_by == "revisions":
        command.upgrade(config, "head")
    else:
        command.downgrade(config, "base")
        metadata.create_all(engine)
    for table in earlier.sorted_tables:
        row = _row(table)
        with engine.begin() as conn:
            conn.execute(table.insert().values(row))
            assert conn.execute(table.select()).one()._mapping == row


@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_a_downgrade_keeps_the_rows_of_the_tables_that_are_left(engine: Engine, revision: str) -> None:
    """Down and up again, what was there before the tables of later revisions is there still."""
    config = alembic_of(engine)
    command.upgrade(config, "head")
    now = MetaData()
    now.reflect(engine, only=lambda name, _: name != VERSION_TABLE)
    with engine.begin() as conn:
        for table in now.sorted_tables:
            conn.execute(table.insert().values(_row(table)))
    command.downgrade(config, revision)
    then = MetaData()
    then.reflect(engine, only=lambda name, _: name != VERSION_TABLE)
    assert 0 < len(then.tables) < len(now.tables)
    for _ in range(2):
        for table in then.sorted_tables:
            with engine.connect() as conn:
                expected = {name: value for name, value in _row(table).items() if name in table.columns}
                assert conn.execute(table.select()).one()._mapping == expected
        command.upgrade(config, "head")
    assert differences(engine) == []


def _row(table: Table) -> dict[str, Any]:
    """A row with a value in each column."""
    values: dict[type, Any] = {
        bool: True,
        datetime: datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc if _is_aware(table) else None),
        int: 7,
        str: "x",
        uuid.UUID: uuid.UUID(int=7),
    }
    return {column.name: values[column.type.python_type] for column in table.columns}


def _is_aware(table: Table) -> bool:
    return any(getattr(column.type, "timezone", False) for column in table.columns)


def test_mysql_takes_the_tables_and_the_length_of_their_keys() -> None:
    """InnoDB allows 3,072 bytes of key; a character of utf8mb4 takes four."""
    dialect = mysql.dialect()
    for table in metadata.sorted_tables:
        assert "TIMESTAMP(6)" in str(CreateTable(table).compile(dialect=dialect)) or table.name.endswith(
            "flow"
        )
        keys = [list(index.columns) for index in table.indexes] + [list(table.primary_key.columns)]
        for columns in keys:
            assert sum(_bytes(column.type) for column in columns) <= 3_072
        for index in table.indexes:
            CreateIndex(index).compile(dialect=dialect)


def _bytes(type_: object) -> int:
    if isinstance(type_, Uuid):
        return 32 * 4
    return (type_.length or 0) * 4 if isinstance(type_, String) else 8


@pytest.mark.contract
def test_airflow_migrate_made_the_tables(migrated_database: str) -> None:
    assert tables(migrated_database) == OURS


@pytest.mark.contract
def test_airflow_resets_them_with_its_own(migrated_database: str, airflow_home: AirflowHome) -> None:
    environment = airflow_home.subprocess_environment(migrated_database)
    run_airflow(["db", "reset", "--yes", "--skip-init"], environment)
    assert tables(migrated_database) == set()
    run_airflow(["db", "migrate", "--use-migration-files"], environment)
    run_airflow(["db", "check-migrations", "--migration-wait-timeout", "5"], environment)
    assert tables(migrated_database) == OURS


@pytest.mark.contract
def test_the_manager_downgrades_and_comes_back(airflow_database: str) -> None:
    from airflow.utils.session import create_session

    from callback_priority.adapter.db_manager import CallbackPriorityDBManager

    with create_session(scoped=False) as session:
        manager = CallbackPriorityDBManager(session)
        assert manager.check_migration()
        manager.downgrade("base")
        assert tables(airflow_database) == {VERSION_TABLE}
        session.rollback()
        assert not manager.check_migration()
        session.rollback()
        manager.upgradedb()
        session.rollback()
        assert manager.check_migration()
        assert tables(airflow_database) == OURS
        with pytest.raises(ValueError, match="show_sql_only"):
            manager.downgrade("base", from_revision="8c1f4e0a7d35")


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_airflows_commands_take_them_back_and_away_as_the_docs_tell(
    migrated_database: str, airflow_home: AirflowHome
) -> None:
    """A revision down, and then all of ours: what is Airflow's stays."""
    from callback_priority.adapter.db_manager import CallbackPriorityDBManager

    manager = f"{CallbackPriorityDBManager.__module__}.{CallbackPriorityDBManager.__qualname__}"
    options = {"database": {"external_db_managers": manager}}
    environment = airflow_home.subprocess_environment(migrated_database, options=options)
    engine = create_engine(migrated_database)
    airflows = set(inspect(engine).get_table_names()) - OURS
    run_airflow(["db-manager", "downgrade", "--yes", "--to-revision", REVISIONS[-2], manager], environment)
    assert tables(migrated_database) == OURS - {"callback_priority_journal"}
    run_airflow(["db-manager", "reset", "--yes", "--skip-init", manager], environment)
    assert set(inspect(engine).get_table_names()) == airflows
    engine.dispose()
