"""The revisions make the tables that the code declares, and Airflow's commands make and drop them."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Engine, String, Uuid, create_engine, inspect
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import CreateIndex, CreateTable

from callback_priority import persistence
from callback_priority.persistence.tables import VERSION_TABLE, metadata
from tests.support.airflow_env import AirflowHome, Backend, run_airflow

OURS = {*metadata.tables, VERSION_TABLE}
HOME = Path(persistence.__file__).parent


def tables(url: str) -> set[str]:
    engine = create_engine(url)
    try:
        return {name for name in inspect(engine).get_table_names() if name.startswith("callback_priority")}
    finally:
        engine.dispose()


@pytest.fixture
def engine(backend: Backend, request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    url = f"sqlite:///{tmp_path}/x.db" if backend == "sqlite" else request.getfixturevalue("fresh_database")
    return create_engine(url)


def test_revisions_and_declared_tables_are_the_same(engine: Engine) -> None:
    config = Config(str(HOME / "alembic.ini"))
    config.attributes["engine"] = engine
    command.upgrade(config, "head")
    with engine.connect() as conn:
        options = {"compare_type": True, "version_table": VERSION_TABLE}
        assert compare_metadata(MigrationContext.configure(conn, opts=options), metadata) == []
    command.downgrade(config, "base")
    assert not set(inspect(engine).get_table_names()) - {VERSION_TABLE}
    engine.dispose()


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


def test_airflow_migrate_made_the_tables(migrated_database: str) -> None:
    assert tables(migrated_database) == OURS


def test_airflow_resets_them_with_its_own(migrated_database: str, airflow_home: AirflowHome) -> None:
    environment = airflow_home.subprocess_environment(migrated_database)
    run_airflow(["db", "reset", "--yes", "--skip-init"], environment)
    assert tables(migrated_database) == set()
    run_airflow(["db", "migrate", "--use-migration-files"], environment)
    run_airflow(["db", "check-migrations", "--migration-wait-timeout", "5"], environment)
    assert tables(migrated_database) == OURS


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
