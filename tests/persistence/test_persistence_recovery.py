"""Finding what came to nothing: dead schedulers, silent workers, callbacks that nobody answers for."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, insert

from callback_priority.core.classes import ServiceClass
from callback_priority.persistence import items, settling, sweep, units
from callback_priority.persistence.enqueueing import NewItem, enqueue, record_granted
from callback_priority.persistence.items import Lost
from callback_priority.persistence.settling import Pulse, Standing
from callback_priority.persistence.tables import ItemState, item_table
from tests.persistence.conftest import job
from tests.persistence.test_persistence_sweep import pending, set_state, unit, wait

SECOND = timedelta(seconds=1)
DEADLINE = ServiceClass.DEADLINE


def granted(conn: Connection, now: datetime, count: int, *, job_id: int = 1) -> list[uuid.UUID]:
    """Callbacks that a scheduler granted, and that are queued."""
    ids = pending(conn, now, count)
    wait(conn, ids, now)
    items.mark_granted(conn, ids, now=now, job_id=job_id, charges={})
    for each in ids:
        set_state(conn, each, "queued")
    return ids


def new_item(callback_id: uuid.UUID, batch: str | None = None) -> NewItem:
    return NewItem(callback_id=callback_id, service_class=DEADLINE, kind="d", pool="p", batch=batch)


def orphans(conn: Connection, now: datetime, own_job_id: int = 9) -> list[uuid.UUID]:
    found = settling.orphans(conn, living_since=now - SECOND, own_job_id=own_job_id, limit=99)
    return [each.callback_id for each in found]


def test_what_a_scheduler_granted_is_an_orphan_once_its_job_is_dead(conn: Connection, now: datetime) -> None:
    """By state or by heartbeat, as Airflow judges it; the one that asks is alive."""
    living, ended, silent, unknown = (granted(conn, now, 1, job_id=number)[0] for number in (1, 2, 3, 4))
    for number, state, heartbeat_at in (
        (1, "running", now),
        (2, "failed", now),
        (3, "running", now - 2 * SECOND),
    ):
        conn.execute(insert(job).values(id=number, state=state, latest_heartbeat=heartbeat_at))
    assert orphans(conn, now) == sorted([ended, silent, unknown])
    assert orphans(conn, now, own_job_id=3) == sorted([ended, unknown])
    assert items.take_over(conn, [ended], 1) == 1
    assert orphans(conn, now) == sorted([silent, unknown])
    items.mark_done(conn, [silent], now)
    assert orphans(conn, now) == [unknown]
    assert living not in orphans(conn, now)


def test_companions_follow_their_leader_and_stand_for_themselves_without(
    conn: Connection, now: datetime
) -> None:
    ids = pending(conn, now, 3)
    wait(conn, ids, now)
    items.mark_granted(conn, ids[:1], now=now, job_id=1, charges={})
    items.mark_companions(conn, {ids[0]: ids[1:]}, now=now, job_id=1)
    assert orphans(conn, now) == ids[:1]
    assert items.take_over(conn, ids[:1], 2) == 3
    assert orphans(conn, now, own_job_id=2) == []
    conn.execute(delete(item_table).where(item_table.c.callback_id == ids[0]))
    assert orphans(conn, now) == ids[1:]


def test_a_pulse_is_the_last_that_was_heard_of_anybody_in_the_run(conn: Connection, now: datetime) -> None:
    ids = granted(conn, now, 4)
    for each in ids:
        unit(conn, each, uuid.uuid4())
    items.requeue(conn, ids[1:2])
    items.mark_companions(conn, {ids[0]: ids[1:2]}, now=now, job_id=1)
    units.claim(conn, dict.fromkeys(ids[:2], "log"), worker="here:1", now=now, heartbeat_at=now)
    units.claim(conn, {ids[2]: "log"}, worker="here:1", now=now)
    units.beat(conn, ids[1:2], claimed_at=now, now=now + SECOND)
    assert settling.pulses(conn, [ids[0], ids[2], ids[3]]) == {
        ids[0]: Pulse(heard_at=now + SECOND, beats=True),
        ids[2]: Pulse(heard_at=now, beats=False),
    }
    assert settling.workers_of(conn, ids) == dict.fromkeys(ids[:3], "here:1")


def test_where_a_callback_stands(conn: Connection, now: datetime) -> None:
    held, claimed, waiting = granted(conn, now, 3, job_id=7)
    unit(conn, claimed, uuid.uuid4())
    units.claim(conn, {claimed: "log"}, worker="here:1", now=now)
    items.requeue(conn, [waiting])
    assert settling.standings(conn, [held, claimed, waiting, uuid.uuid4()]) == {
        held: Standing(job_id=7, external_id=None, claimed=False, state="queued"),
        claimed: Standing(job_id=7, external_id=None, claimed=True, state="queued"),
        waiting: Standing(job_id=None, external_id=None, claimed=False, state="queued"),
    }


def test_a_lost_attempt_waits_for_its_next_or_goes_at_once(conn: Connection, now: datetime) -> None:
    ids = granted(conn, now, 3)
    items.name_externally(conn, {ids[0]: "celery", ids[1]: "celery"}, 1)
    items.name_externally(conn, {ids[0]: "another\0"}, 1)
    items.name_externally(conn, {ids[1]: "not its scheduler's"}, 2)
    assert [items.read_item(conn, each).external_id for each in ids] == ["another", "celery", None]
    items.try_again(
        conn,
        [
            Lost(callback_id=ids[0], reason="gone"),
            Lost(callback_id=ids[1], reason="failed", retry_at=now + 5 * SECOND),
        ],
    )
    first, second, third = (items.read_item(conn, each) for each in ids)
    assert (first.state, first.failures, first.attempts, first.retry_at) == (ItemState.WAITING, 1, 1, None)
    assert (second.state, second.failures, second.reason) == (ItemState.PARKED, 1, "failed")
    assert first.scheduler_job_id is first.external_id is second.parked_at is None
    assert (third.state, third.failures) == (ItemState.GRANTED, 0)
    assert items.expired(conn, parked_before=now + timedelta(days=9)) == {}, (
        "it is not an executor that it waits for"
    )
    assert items.unpark_due(conn, now + 4 * SECOND) == 0
    assert items.unpark_due(conn, now + 5 * SECOND) == 1


def test_what_waits_too_long_is_found_by_class(conn: Connection, now: datetime) -> None:
    ids = pending(conn, now, 3)
    wait(conn, ids, now)
    items.park(conn, ids[1:2], now=now, retry_at=now, reason="x")
    items.mark_granted(conn, ids[2:], now=now, job_id=1, charges={})
    assert items.outlived(conn, {}) == {}
    assert items.outlived(conn, {DEADLINE: now}) == {}
    assert items.outlived(conn, {DEADLINE: now + SECOND}) == dict.fromkeys(ids[:2], DEADLINE)
    assert items.outlived(conn, {ServiceClass.DAG_CALLBACK: now + SECOND}) == {}


def test_grants_of_others_are_timed_from_when_they_are_seen(conn: Connection, now: datetime) -> None:
    queued, running, ended = pending(conn, now, 3)
    for each, state in ((queued, "queued"), (running, "running"), (ended, "success")):
        set_state(conn, each, state)
    found = sweep.callbacks_granted_without_item(conn, 9)
    assert [each.callback_id for each in found] == sorted([queued, running])
    assert record_granted(conn, [new_item(each.callback_id) for each in found], now=now) == 2
    assert sweep.callbacks_granted_without_item(conn, 9) == []

    def unowned(queued_for: int, running_for: int) -> list[uuid.UUID]:
        later = now + 100 * SECOND
        return settling.unowned(
            conn,
            queued_before=later - queued_for * SECOND,
            running_before=later - running_for * SECOND,
            limit=9,
        )

    assert unowned(101, 101) == []
    assert unowned(99, 101) == [queued]
    assert unowned(99, 99) == sorted([queued, running])
    assert orphans(conn, now) == [], "no scheduler is known that could be dead"


def test_grants_are_counted_on_when_a_callback_waits_anew(conn: Connection, now: datetime) -> None:
    """Set back to pending by hand, say: no two grants are the same attempt."""
    [each] = granted(conn, now, 1)
    items.mark_done(conn, [each], now)
    wait(conn, [each], now)
    assert items.read_item(conn, each).attempts == 1


def test_one_that_failed_before_shares_no_run(conn: Connection, now: datetime) -> None:
    from callback_priority.persistence.waiting import companions, heads

    ids = pending(conn, now, 3)
    enqueue(conn, [new_item(each, "b") for each in ids], now=now, turn_length_us=1, aging_us=1)
    items.mark_granted(conn, ids[:2], now=now, job_id=1, charges={})
    items.try_again(conn, [Lost(callback_id=ids[1], reason="gone")])
    assert companions(conn, [(ids[0], "b")], 7) == {ids[0]: {ids[2]: 0}}
    batches = {head.callback_id: head.batch for head in heads(conn, {(DEADLINE, "p"): 9})}
    assert batches == {ids[1]: None, ids[2]: "b"}
