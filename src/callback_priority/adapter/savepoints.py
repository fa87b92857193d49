"""Savepoints inside Airflow's transactions.

Airflow's loop runs under a guard that takes the release of an ORM savepoint for an unexpected commit, so these
are plain statements on the connection. They are never released: the end of the transaction does that, and a
round trip is saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import Connection
from sqlalchemy.exc import StatementError

from callback_priority.errors import TransactionLostError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["roll_back_if_lost", "savepoint"]


@contextmanager
def savepoint(connection: Connection, name: str, *, reads_first: bool = False) -> Iterator[None]:
    """Undo what the block did, and nothing else, if it raises.

    Args:
        connection: Airflow's, in its transaction.
        name: An SQL identifier; the same name may be used again.
        reads_first: The block reads before it writes, if it writes at all. SQLite then gets no savepoint: it
            would hold a read lock, and SQLite refuses to turn that into a write lock once others have
            written. PostgreSQL needs one even to read, since a failed statement fails every later one.

    Raises:
        TransactionLostError: The savepoint cannot be made, or not be rolled back to. Whoever began the transaction
            has to roll it back; see `roll_back_if_lost`.
    """
    wanted = connection.dialect.name != "sqlite" or not reads_first
    if wanted:
        try:
            connection.exec_driver_sql(f"SAVEPOINT {name}")
        except Exception as error:
            raise TransactionLostError(f"savepoint {name} cannot be made") from error
    try:
        yield
    except TransactionLostError:
        raise
    except Exception as error:
        if isinstance(error, StatementError):
            # It is logged; what was to be written holds the configuration of Dag runs, which may be secret.
            error.hide_parameters = True
        if wanted:
            try:
                connection.exec_driver_sql(f"ROLLBACK TO SAVEPOINT {name}")
            except Exception:  # noqa: BLE001 - whatever it is, the first error says more
                raise TransactionLostError(f"savepoint {name} cannot be rolled back to") from error
        raise


def roll_back_if_lost(session: Session, error: Exception) -> bool:
    """Begin anew if an error says that the transaction is of no use any more.

    What Airflow had written in it is undone with it. That is no more than what the lost connection had undone, and
    what Airflow does in it next has a connection again.

    Returns:
        Whether it was.
    """
    if not isinstance(error, TransactionLostError):
        return False
    session.rollback()
    return True
