"""Entries come back in their order, as they were written, and go with the history."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from sqlalchemy import Connection, update

from callback_priority.core.classes import SCHEDULER_SCOPE, FlowKey, Level, ServiceClass
from callback_priority.core.journal import Entry, Granted, Movement
from callback_priority.persistence import journal
from callback_priority.persistence.tables import journal_table

KEY = FlowKey(Level.SCHEDULER, SCHEDULER_SCOPE, ServiceClass.DEADLINE)


def entry(number: int) -> Entry:
    granted = Granted(
        service_class=ServiceClass.DEADLINE,
        pool="täglich\0",
        charge=5,
        callbacks=((f"callback {number}", 1),),
    )
    return Entry(grants=(granted,), movements={KEY: Movement(settled=2**61, holds=(1, 2))})


def test_entries_come_back_in_their_order(conn: Connection, now: datetime, sent: list[str]) -> None:
    """Each is one statement to write, all are one to read; whose pass it was is told too."""
    for number in range(4):
        journal.append(conn, entry(number), job_id=7 + number % 2, now=now + timedelta(seconds=number))
    assert len(sent) == 4
    found = journal.read(conn)
    assert len(sent) == 5
    assert [each.entry for each in found] == [entry(number) for number in range(4)]
    assert [each.scheduler_job_id for each in found] == [7, 8, 7, 8]
    assert [each.written_at - now for each in found] == [timedelta(seconds=number) for number in range(4)]
    assert journal.read(conn, after=found[1].id, limit=1) == [found[2]]


def test_old_entries_go_oldest_first(conn: Connection, now: datetime, sent: list[str]) -> None:
    """A part of them in one call; nothing but a probe where there are none."""
    assert journal.trim(conn, written_before=now, limit=10) == 0
    assert len(sent) == 1
    for number in range(5):
        journal.append(conn, entry(number), job_id=1, now=now + timedelta(days=number))
    before = now + timedelta(days=4)
    assert [journal.trim(conn, written_before=before, limit=3) for _ in range(3)] == [3, 1, 0]
    assert [each.entry for each in journal.read(conn)] == [entry(4)]


def test_an_entry_of_a_newer_version_is_not_misread(conn: Connection, now: datetime) -> None:
    journal.append(conn, entry(0), job_id=1, now=now)
    conn.execute(update(journal_table).values(entry='{"format":99}'))
    with pytest.raises(ValueError, match="not an entry"):
        journal.read(conn)
