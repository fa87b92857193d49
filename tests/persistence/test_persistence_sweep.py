"""Sweeps find what came in otherwise, and the numbers for people add up."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta

import pytest
from sqlalchemy import Connection, delete, func, insert, select, update

from callback_priority.core.classes import ServiceClass
from callback_priority.persistence import items, requests, settling, status, sweep, units
from callback_priority.persistence.enqueueing import NewItem, enqueue, record_triggered
from callback_priority.persistence.tables import ItemState, item_table, unit_table
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
    new = [NewItem(callback_id=each, service_class=DEADLINE, kind="d", pool="p") for each in ids]
    enqueue(conn, new, now=now, turn_length_us=1, aging_us=1)


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
    items.park(conn, ids[1:2], now=now, retry_at=now, reason="x")
    items.mark_granted(conn, ids[2:6], now=now, job_id=1, charges={})
    for place, state in enumerate(["queued", "failed", "success", "pending", "running", "queued", "pending"]):
        set_state(conn, ids[place], state)
    assert sweep.settle_foreign(conn, now=now, limit=100) == sweep.Settled(done=3, requeued=1)
    assert sweep.settle_foreign(conn, now=now, limit=100) == sweep.Settled(done=0, requeued=0)
    states = [found.state for each in ids if (found := items.read_item(conn, each))]
    done, waiting, granted = ItemState.DONE, ItemState.WAITING, ItemState.GRANTED
    assert states == [done, done, done, waiting, granted, granted, waiting]


def test_a_leader_stays_granted_until_the_last_of_its_run_has_ended(conn: Connection, now: datetime) -> None:
    """It holds the slot. Its companions hold none, so theirs are closed as they end."""
    ids = pending(conn, now, 4)
    wait(conn, ids, now)
    items.mark_granted(conn, ids[:1], now=now, job_id=1, charges={})
    items.mark_companions(conn, {ids[0]: ids[1:]}, now=now, job_id=1)
    for each, state in zip(ids, ["success", "running", "failed", "queued"], strict=True):
        set_state(conn, each, state)
    assert sweep.settle_foreign(conn, now=now, limit=100) == sweep.Settled(done=1, requeued=0)
    set_state(conn, ids[1], "success")
    assert sweep.settle_foreign(conn, now=now, limit=100) == sweep.Settled(done=1, requeued=0)
    set_state(conn, ids[3], "failed")
    assert sweep.settle_foreign(conn, now=now, limit=100) == sweep.Settled(done=2, requeued=0)
    assert sweep.settle_foreign(conn, now=now, limit=100) == sweep.Settled(done=0, requeued=0)


def test_what_the_triggerer_has_is_no_foreign_affair(conn: Connection, now: datetime) -> None:
    ids = pending(conn, now, 2, kind="triggerer")
    new = [NewItem(callback_id=each, service_class=DEADLINE, kind="d", pool="p") for each in ids]
    record_triggered(conn, new, now=now)
    set_state(conn, ids[0], "failed")
    assert sweep.settle_foreign(conn, now=now, limit=100) == sweep.Settled(done=0, requeued=0)
    conn.execute(delete(callback).where(callback.c.id == ids[1]))
    assert sweep.remove_orphans(conn, limit=10) == 1


def unit(conn: Connection, callback_id: uuid.UUID, request_id: uuid.UUID) -> None:
    target = requests.Target.WORKER
    added = requests.NewUnit(
        callback_id=callback_id, request_id=request_id, position=0, name="f", target=target, reference={}
    )
    requests.add_units(conn, [added])


def test_units_leave_with_their_items(conn: Connection, now: datetime) -> None:
    ids = pending(conn, now, 3)
    wait(conn, ids, now)
    for each in ids:
        unit(conn, each, uuid.uuid4())
    conn.execute(delete(callback).where(callback.c.id == ids[0]))
    items.mark_done(conn, ids[1:2], now - timedelta(days=9))
    assert sweep.remove_orphans(conn, limit=10) == 1
    assert sweep.trim_history(conn, finished_before=now, limit=10) == 1
    assert conn.scalars(select(unit_table.c.callback_id)).all() == ids[2:]


def test_a_run_is_read_as_far_as_it_came(conn: Connection, now: datetime, sent: list[str]) -> None:
    ids = pending(conn, now, 6)
    wait(conn, ids, now)
    request = uuid.uuid4()
    for each in ids[:5]:
        unit(conn, each, request)
    items.mark_granted(conn, [ids[0], ids[5]], now=now, job_id=1, charges={})
    items.mark_companions(conn, {ids[0]: ids[1:4]}, now=now, job_id=1)
    items.mark_done(conn, ids[3:4], now)
    for each in ids:
        set_state(conn, each, "queued")
    units.claim(conn, dict.fromkeys(ids[:2], "log"), worker="here:1", now=now)
    assert units.mark_started(conn, ids[0], now)
    assert units.end_units(conn, ids[:1], now) == 1
    sent.clear()
    found = {each.callback_id: each for each in settling.runs(conn, [ids[0], ids[5]])}
    assert len(sent) == 4
    assert sorted(found) == [*ids[:3], ids[5]], "what is done is of no run"
    assert {found[each].leader_id for each in ids[:3]} == {ids[0]}
    assert (found[ids[0]].request_id, found[ids[5]].request_id) == (request, None)
    assert not found[ids[5]].claimed, "of what has no unit no worker tells"
    facts = [(found[each].claimed, found[each].started, found[each].ended) for each in ids[:3]]
    assert facts == [(True, True, True), (True, False, False), (False, False, False)]
    assert requests.requests_of(conn, ids) == dict.fromkeys(ids[:5], request)


def test_whoever_settles_locks_whole_requests(conn: Connection, now: datetime) -> None:
    ids = pending(conn, now, 4)
    wait(conn, ids, now)
    request, locked = uuid.uuid4(), []
    for each in ids[:3]:
        unit(conn, each, request)
    unit(conn, ids[3], uuid.uuid4())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "lock", lambda _, wanted: locked.append(sorted(wanted)))
        settling.runs(conn, ids[1:2])
        settling.lock_requests(conn, [ids[2], ids[3]])
    assert locked == [ids[:3], ids]


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
    items.park(conn, ids[:1], now=now, retry_at=now, reason="x")
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
