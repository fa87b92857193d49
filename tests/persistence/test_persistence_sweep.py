"""Sweeps find what came in otherwise, and the numbers for people add up."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, func, insert, select, update

from callback_priority.core.classes import ServiceClass
from callback_priority.persistence import items, status, sweep
from callback_priority.persistence.tables import ItemState, item_table
from tests.persistence.conftest import callback

DEADLINE = ServiceClass.DEADLINE


def pending(conn: Connection, now: datetime, count: int, kind: str = "executor") -> list[uuid.UUID]:
    ids = [uuid.uuid4() for _ in range(count)]
    rows = [
        {
            "id": each,
            "type": kind,
            "state": "pending",
            "data": {"n": 1} if conn.dialect.name == "postgresql" else '{"n": 1}',
            "priority_weight": 1,
            "created_at": now,
        }
        for each in ids
    ]
    conn.execute(insert(callback), rows)
    return sorted(ids)


def wait(conn: Connection, ids: list[uuid.UUID], now: datetime) -> None:
    new = [items.NewItem(callback_id=each, service_class=DEADLINE, kind="d", pool="p") for each in ids]
    items.enqueue(conn, new, now=now, turn_length_us=1, aging_us=1)


def set_state(conn: Connection, callback_id: uuid.UUID, state: str) -> None:
    conn.execute(update(callback).where(callback.c.id == callback_id).values(state=state))


def test_pending_callbacks_without_an_open_item_are_found(conn: Connection, now: datetime) -> None:
    ids = pending(conn, now, 4)
    pending(conn, now, 1, kind="triggerer")
    set_state(conn, ids[3], "success")
    wait(conn, ids[:2], now)
    items.mark_done(conn, ids[:1], now)
    found = sweep.callbacks_without_item(conn, 10)
    assert [each.callback_id for each in found] == [ids[0], ids[2]]
    assert found[0].data == '{"n": 1}'
    assert found[0].created_at == now
    assert len(sweep.callbacks_without_item(conn, 1)) == 1


def test_what_others_did_is_settled(conn: Connection, now: datetime) -> None:
    ids = pending(conn, now, 7)
    wait(conn, ids, now)
    items.park(conn, ids[1:2], retry_at=now, reason="x")
    items.mark_granted(conn, ids[2:6], now=now, job_id=1, charges={})
    for place, state in enumerate(["queued", "failed", "success", "pending", "running", "queued", "pending"]):
        set_state(conn, ids[place], state)
    assert sweep.settle_foreign(conn, now=now, limit=100) == sweep.Settled(done=3, requeued=1)
    assert sweep.settle_foreign(conn, now=now, limit=100) == sweep.Settled(done=0, requeued=0)
    states = [found.state for each in ids if (found := items.read_item(conn, each))]
    done, waiting, granted = ItemState.DONE, ItemState.WAITING, ItemState.GRANTED
    assert states == [done, done, done, waiting, granted, granted, waiting]


def test_items_of_removed_callbacks_go(conn: Connection, now: datetime) -> None:
    ids = pending(conn, now, 3)
    wait(conn, ids, now)
    conn.execute(delete(callback).where(callback.c.id == ids[0]))
    assert sweep.remove_orphans(conn, limit=10) == 1
    assert sweep.remove_orphans(conn, limit=10) == 0
    assert items.read_item(conn, ids[0]) is None


def test_history_is_trimmed_oldest_first(conn: Connection, now: datetime) -> None:
    ids = pending(conn, now, 4)
    wait(conn, ids, now)
    for place in range(3):
        items.mark_done(conn, [ids[place]], now - timedelta(days=3 - place))
    assert sweep.trim_history(conn, finished_before=now - timedelta(days=1), limit=1) == 1
    assert items.read_item(conn, ids[0]) is None
    assert sweep.trim_history(conn, finished_before=now - timedelta(days=1), limit=10) == 1
    assert conn.scalar(select(func.count()).select_from(item_table)) == 2


def test_backlog_and_waits(conn: Connection, now: datetime) -> None:
    ids = [uuid.uuid4() for _ in range(24)]
    wait(conn, ids, now)
    items.park(conn, ids[:1], retry_at=now, reason="x")
    items.mark_granted(conn, ids[1:2], now=now, job_id=1, charges={})
    for seconds, each in enumerate(ids[2:22], start=1):
        items.mark_granted(conn, [each], now=now + timedelta(seconds=seconds), job_id=1, charges={})
    items.mark_done(conn, ids[2:22], now + timedelta(minutes=1))
    assert status.backlog(conn) == [
        status.Backlog(
            service_class=DEADLINE, pool="p", waiting=2, parked=1, granted=1, oldest_enqueued_at=now
        )
    ]
    assert status.waits(conn, since=now) == [
        status.Waits(
            service_class=DEADLINE, count=20, p50_seconds=10.0, p95_seconds=19.0, longest_seconds=20.0
        )
    ]
    assert status.waits(conn, since=now + timedelta(hours=1)) == []
