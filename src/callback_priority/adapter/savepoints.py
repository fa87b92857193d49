"""Savepoints inside Airflow's transactions.

Airflow's loop runs under a guard that takes the release of an ORM savepoint for an unexpected commit, so these
are plain statements on the connection. They are never released: the end of the transaction does that, and a
round trip is saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection
from sqlalchemy.exc import StatementError

__all__ = ["savepoint"]


@contextmanager
def savepoint(connection: Connection, name: str, *, reads_first: bool = False) -> Iterator[None]:
    """Undo what the block did, and nothing else, if it raises.

    Args:
        connection: Airflow's, in its transaction.
        name: An SQL identifier; the same name may be used again.
        reads_first: The block reads before it writes, if it writes at all. SQLite then gets no savepoint: it
            would hold a read lock, and SQLite refuses to turn that into a write lock once others have
            written. PostgreSQL needs one even to read, since a failed statement fails every later one.
    """
    wanted = connection.dialect.name != "sqlite" or not reads_first
    if wanted:
        connection.exec_driver_sql(f"SAVEPOINT {name}")
    try:
        yield
    except Exception as error:
        if isinstance(error, StatementError):
            # It is logged; what was to be written holds the configuration of Dag runs, which may be secret.
            error.hide_parameters = True
        if wanted:
            connection.exec_driver_sql(f"ROLLBACK TO SAVEPOINT {name}")
        raise
