"""The journal of the fair queue as rows; what is in an entry is for `callback_priority.core.journal`.

An entry is written in the transaction that it tells of, so that there is one exactly when that was committed.
The critical section is entered by one scheduler at a time, so the order of the keys is that of the commits.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

import attrs
from sqlalchemy import Connection, Integer, bindparam, delete, insert, select

from callback_priority.core.journal import Entry, from_json, to_json
from callback_priority.persistence.statements import KEYS_PER_STATEMENT, chunks
from callback_priority.persistence.tables import UtcDateTime, journal_table

__all__ = ["Written", "append", "read", "trim"]

_ROW = journal_table.c
_APPEND: Final = insert(journal_table)
_OLD: Final = (
    select(_ROW.id)
    .where(_ROW.written_at < bindparam("written_before", type_=UtcDateTime))
    .order_by(_ROW.written_at)
    .limit(bindparam("most", type_=Integer))
)


@attrs.frozen(kw_only=True)
class Written:
    """An entry as it was written.

    Args:
        id: Its place.
        scheduler_job_id: The scheduler whose pass it tells of.
        written_at: When.
        entry: What it tells.
    """

    id: int
    scheduler_job_id: int
    written_at: datetime
    entry: Entry


def append(conn: Connection, entry: Entry, *, job_id: int, now: datetime) -> None:
    """Write an entry, in one statement.

    Args:
        conn: Connection of the transaction that the entry tells of.
        entry: What the pass did.
        job_id: The scheduler whose pass it was.
        now: The present.
    """
    row = {"scheduler_job_id": job_id, "written_at": now, "entry": to_json(entry)}
    conn.execute(_APPEND, row)


def read(conn: Connection, *, after: int = 0, limit: int | None = None) -> list[Written]:
    """The entries in their order, in one statement.

    Args:
        conn: Connection to Airflow's metadata database.
        after: Only those that come after this one.
        limit: The most to read.

    Raises:
        ValueError: If an entry was written by a newer version of this library.
    """
    rows = conn.execute(select(*_ROW).where(_ROW.id > after).order_by(_ROW.id).limit(limit))
    return [
        Written(
            id=row.id,
            scheduler_job_id=row.scheduler_job_id,
            written_at=row.written_at,
            entry=from_json(row.entry),
        )
        for row in rows
    ]


def trim(conn: Connection, *, written_before: datetime, limit: int) -> int:
    """Remove old entries, oldest first; one probe of an index if there are none.

    Args:
        conn: Connection to Airflow's metadata database.
        written_before: Older ones go.
        limit: The most to remove in one call, so that no transaction grows long.

    Returns:
        How many were removed.
    """
    old = conn.scalars(_OLD, {"written_before": written_before, "most": limit}).all()
    return sum(
        conn.execute(delete(journal_table).where(_ROW.id.in_(ids))).rowcount
        for ids in chunks(sorted(old), KEYS_PER_STATEMENT)
    )
