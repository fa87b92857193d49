"""The library's tables, made and removed by Airflow's own ``airflow db`` commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from airflow import settings
from airflow.utils.db import DBLocks, create_global_lock
from airflow.utils.db_manager import BaseDBManager
from alembic import command

from callback_priority import persistence
from callback_priority.persistence.tables import VERSION_TABLE, metadata

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = ["CallbackPriorityDBManager"]

_HOME = Path(persistence.__file__).resolve().parent


class CallbackPriorityDBManager(BaseDBManager):
    """Creates, upgrades, downgrades and drops the tables of flows and items.

    Found by Airflow through the provider's information, so that a plain ``airflow db migrate`` makes the
    tables and ``airflow db reset`` drops them with Airflow's own.
    """

    metadata = metadata
    version_table_name = VERSION_TABLE
    migration_dir = str(_HOME / "migrations")
    alembic_file = str(_HOME / "alembic.ini")
    supports_table_dropping = True
    revision_heads_map = {"0.1.0": "b61f08d2c4e9"}  # noqa: RUF012 - declared so by the base class

    def get_alembic_config(self) -> Config:
        """Alembic's configuration, with Airflow's engine: its address alone lacks the connection arguments."""
        config: Config = super().get_alembic_config()  # type: ignore[no-untyped-call]
        config.attributes["engine"] = settings.get_engine()
        return config

    def downgrade(
        self, to_revision: str, from_revision: str | None = None, show_sql_only: bool = False
    ) -> None:
        """Go back to a revision; ``base`` removes the tables and the version.

        Args:
            to_revision: Alembic's name of the revision.
            from_revision: Where to start from, for printing SQL only; the database's revision if not given.
            show_sql_only: Print the SQL and change nothing.

        Raises:
            ValueError: If ``from_revision`` is given for a real downgrade.
        """
        if from_revision is not None and not show_sql_only:
            raise ValueError("from_revision only says where printed SQL starts; use it with show_sql_only")
        config = self.get_alembic_config()
        if show_sql_only:
            start = from_revision or self.get_current_revision()  # type: ignore[no-untyped-call]
            command.downgrade(config, f"{start}:{to_revision}", sql=True)
            return
        self._release_metadata_locks_if_needed()
        # A transaction left open by a look at the database would block the DDL on its own tables.
        self.session.commit()
        with create_global_lock(session=self.session, lock=DBLocks.MIGRATIONS):
            command.downgrade(config, to_revision)
