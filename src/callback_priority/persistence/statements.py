"""What the statements of this package share: upserts by dialect, long lists in pieces, text that columns take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Insert, Table, case
from sqlalchemy.dialects import mysql, postgresql, sqlite

__all__ = ["KEYS_PER_STATEMENT", "PARTS_PER_STATEMENT", "chunks", "storable", "upsert", "write_rows"]

KEYS_PER_STATEMENT: Final = 5_000
"""Keys in one ``IN`` list: below SQLite's 32,766 variables and PostgreSQL's 32,767 parameters."""

PARTS_PER_STATEMENT: Final = 128
"""Branches of one ``UNION ALL``: SQLite allows 500, and the time to plan grows with them."""

T = TypeVar("T")


def chunks(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cut into pieces of at most ``size``.

    >>> list(chunks(range(5), 2))
    [[0, 1], [2, 3], [4]]
    """
    rest = iter(values)
    while piece := list(islice(rest, size)):
        yield piece


def storable(text: str, length: int | None = None) -> str:
    r"""As every database takes it, since PostgreSQL refuses NUL and lone surrogates; cut to a length, if one is given.

    >>> storable("a\0b\ud800c", 3)
    'ab?'
    """
    return text.replace("\0", "").encode(errors="replace").decode()[:length]


def upsert(
    target: Table, dialect: str, *, only_when: tuple[str, Any] | None = None, keeping: Sequence[str] = ()
) -> Insert:
    """Build an insert that replaces the columns of a row that has the same key.

    Args:
        target: The table.
        dialect: Name of the database's dialect.
        keeping: Columns that an existing row keeps.
        only_when: A column and a value: an existing row is left alone unless the column has that value.

    Raises:
        NotImplementedError: For a database that Airflow does not support either.
    """
    keys = [column.name for column in target.primary_key.columns]
    names = [
        column.name for column in target.columns if not column.primary_key and column.name not in keeping
    ]
    condition = None if only_when is None else target.c[only_when[0]] == only_when[1]
    if dialect in ("mysql", "mariadb"):
        into_mysql = mysql.insert(target)
        new = into_mysql.inserted
        if only_when is None or condition is None:
            return into_mysql.on_duplicate_key_update([(name, new[name]) for name in names])
        # MySQL assigns from left to right, and an expression sees what was assigned before it: the column
        # that the condition reads comes last.
        names.sort(key=lambda name: name == only_when[0])
        return into_mysql.on_duplicate_key_update(
            [(name, case((condition, new[name]), else_=target.c[name])) for name in names]
        )
    if dialect == "postgresql":
        into_postgresql = postgresql.insert(target)
        return into_postgresql.on_conflict_do_update(
            index_elements=keys,
            set_={name: into_postgresql.excluded[name] for name in names},
            where=condition,
        )
    if dialect == "sqlite":
        into_sqlite = sqlite.insert(target)
        return into_sqlite.on_conflict_do_update(
            index_elements=keys, set_={name: into_sqlite.excluded[name] for name in names}, where=condition
        )
    raise NotImplementedError(f"no upsert for {dialect!r}; use PostgreSQL, MySQL or SQLite")


def write_rows(conn: Connection, target: Table, statement: Insert, rows: Sequence[Mapping[str, Any]]) -> int:
    """Execute an insert for all rows, as one statement for up to a thousand of them.

    With ``RETURNING``, SQLAlchemy sends the rows as one multi-row statement on every driver, from a compiled
    form that it keeps; an insert with the rows inside it would be compiled anew at every call. The drivers
    for MySQL join the rows by themselves.

    Returns:
        How many rows were written; MySQL counts a replaced row twice.
    """
    if not rows:
        return 0
    if not conn.dialect.insert_executemany_returning:
        return conn.execute(statement, rows).rowcount
    first_key = next(iter(target.primary_key.columns))
    return len(conn.execute(statement.returning(first_key), rows).all())
