"""The life of an item, and what the scheduler's loop fetches."""

from __future__ import annotations

import itertools
import uuid
from datetime import datetime, timedelta

import pytest
from sqlalchemy import Connection, insert, select, update
from sqlalchemy.dialects import mysql

from callback_priority.core.classes import ServiceClass
from callback_priority.persistence import enqueueing, items, waiting
from callback_priority.persistence.enqueueing import NewItem
from callback_priority.persistence.flows import read_state
from callback_priority.persistence.statements import upsert
from callback_priority.persistence.tables import ItemState, flow_table, item_table
from tests.persistence.conftest import callback

TURN_US = 10_000_000
AGING_US = 600_000_000
DEADLINE = ServiceClass.DEADLINE

_numbers = itertools.count(1)


def new(
    dag: str = "a",
    pool: str = "p",
    service_class: ServiceClass = DEADLINE,
    priority: int = 1,
    batch: str | None = None,
) -> NewItem:
    return NewItem(
        callback_id=uuid.UUID(int=next(_numbers)),
        service_class=service_class,
        kind="deadline",
        pool=pool,
        dag_id=dag,
        priority=priority,
        batch=batch,
    )


def enqueue(conn: Connection, wanted: list[NewItem], now: datetime) -> int:
    return enqueueing.enqueue(conn, wanted, now=now, turn_length_us=TURN_US, aging_us=AGING_US)


def order(conn: Connection, limit: int = 1_000, pool: str = "p") -> list[uuid.UUID]:
    return [head.callback_id for head in waiting.heads(conn, {(DEADLINE, pool): limit})]


def state_of(conn: Connection, callback_id: uuid.UUID) -> ItemState:
    found = items.read_item(conn, callback_id)
    assert found is not None
    return found.state


def test_dags_take_turns_whatever_the_order_of_arrival(conn: Connection, now: datetime) -> None:
    """A Dag's third callback goes after another Dag's first."""
    burst, other = [new("burst") for _ in range(3)], [new("other") for _ in range(2)]
    assert enqueue(conn, burst, now) == 3
    assert enqueue(conn, other, now) == 2
    expected = [burst[0], other[0], burst[1], other[1], burst[2]]
    assert order(conn) == [item.callback_id for item in expected]


def test_a_burst_in_several_calls_is_spaced_like_one(conn: Connection, now: datetime) -> None:
    for _ in range(3):
        enqueue(conn, [new()], now)
    ranks = [head.rank for head in waiting.heads(conn, {(DEADLINE, "p"): 9})]
    assert [later - earlier for earlier, later in itertools.pairwise(ranks)] == [TURN_US, TURN_US]


def test_priority_goes_first_and_ages(conn: Connection, now: datetime) -> None:
    """One doubling of ``1 + priority`` is worth one aging period and no more."""
    old, soon, late = new("x", priority=0), new("y", priority=1), new("z", priority=1)
    enqueue(conn, [old], now)
    enqueue(conn, [soon], now + timedelta(seconds=599))
    enqueue(conn, [late], now + timedelta(seconds=601))
    assert order(conn) == [soon.callback_id, old.callback_id, late.callback_id]


def test_turns_are_forgotten_once_nothing_waits(conn: Connection, now: datetime) -> None:
    """Having used idle capacity costs nothing later."""
    first = [new() for _ in range(5)]
    enqueue(conn, first, now)
    items.mark_granted(conn, [item.callback_id for item in first], now=now, job_id=1, charges={})
    enqueue(conn, [again := new()], now)
    found = items.read_item(conn, again.callback_id)
    assert found is not None
    assert found.turn == round(now.timestamp() * 1_000_000)


def test_enqueue_leaves_open_items_alone_and_revives_done_ones(conn: Connection, now: datetime) -> None:
    item = new()
    assert enqueue(conn, [item, item], now) == 1
    assert enqueue(conn, [item], now + timedelta(seconds=5)) == 0
    before = items.read_item(conn, item.callback_id)
    assert before is not None
    assert before.enqueued_at == now
    items.mark_done(conn, [item.callback_id], now, "because")
    later = now + timedelta(seconds=9)
    assert enqueue(conn, [item], later) == 1
    after = items.read_item(conn, item.callback_id)
    assert after is not None
    assert (after.state, after.enqueued_at, after.reason) == (ItemState.WAITING, later, None)


def test_unusable_values_never_reach_the_database_as_errors(conn: Connection, now: datetime) -> None:
    item = NewItem(
        callback_id=uuid.UUID(int=next(_numbers)),
        service_class=DEADLINE,
        kind="k" * 99,
        pool="p",
        dag_id="d\0" + "x" * 999 + "\ud800",
        dag_run_id=2**70,
        executor="e" * 999,
        priority=10**30,
    )
    assert enqueue(conn, [item], now) == 1
    found = items.read_item(conn, item.callback_id)
    assert found is not None
    assert (found.dag_run_id, len(found.dag_id), found.priority) == (None, 250, 2**31 - 1)


@pytest.mark.parametrize("count", [1, 16, 256])
def test_the_loop_takes_the_same_statements_for_any_number(
    conn: Connection, now: datetime, sent: list[str], count: int
) -> None:
    wanted = [new() for _ in range(count)]
    enqueue(conn, wanted, now)
    assert len(sent) == 2
    pairs = waiting.waiting_pairs(conn)
    ids = [head.callback_id for head in waiting.heads(conn, dict.fromkeys(pairs, count))]
    items.mark_granted(conn, ids, now=now, job_id=1, charges={})
    items.mark_done(conn, ids, now)
    assert len(ids) == count
    assert len(sent) == 6


def test_thousands_of_rows_fit_the_databases_limits(conn: Connection, now: datetime) -> None:
    wanted = [new(dag=f"dag{number % 300}") for number in range(12_000)]
    assert enqueue(conn, wanted, now) == 12_000
    ids = [item.callback_id for item in wanted]
    assert items.mark_granted(conn, ids, now=now, job_id=1, charges={}) == 12_000
    assert items.mark_done(conn, ids, now) == 12_000


def test_no_pool_hides_another(conn: Connection, now: datetime) -> None:
    enqueue(conn, [new(pool="big") for _ in range(50)], now)
    enqueue(conn, [new(pool="small"), new(pool="big", service_class=ServiceClass.DAG_CALLBACK)], now)
    pairs = waiting.waiting_pairs(conn)
    assert pairs == [(DEADLINE, "big"), (DEADLINE, "small"), (ServiceClass.DAG_CALLBACK, "big")]
    heads = waiting.heads(conn, dict.fromkeys(pairs, 2))
    assert [(head.service_class, head.pool) for head in heads] == [pairs[0], *pairs]


def test_more_pairs_than_one_statement_carries(conn: Connection, now: datetime) -> None:
    enqueue(conn, [new(pool=f"pool{number}") for number in range(300)], now)
    pairs = waiting.waiting_pairs(conn)
    assert len(pairs) == 300
    assert len(waiting.heads(conn, dict.fromkeys(pairs, 1))) == 300


def test_nothing_waits_and_nothing_is_asked(conn: Connection, sent: list[str], now: datetime) -> None:
    assert waiting.waiting_pairs(conn) == []
    assert waiting.heads(conn, {(DEADLINE, "p"): 0}) == []
    assert items.mark_granted(conn, [], now=now, job_id=1, charges={}) == 0
    assert enqueue(conn, [], now) == 0
    assert len(sent) == 1


def test_a_grant_is_recorded_once(conn: Connection, now: datetime) -> None:
    item, other = new(), new(service_class=ServiceClass.DAG_CALLBACK)
    enqueue(conn, [item, other], now)
    ids = [item.callback_id, other.callback_id]
    items.mark_decided(conn, ids[:1], now - timedelta(seconds=3))
    charges = {DEADLINE: 7, ServiceClass.DAG_CALLBACK: 9}
    assert items.mark_granted(conn, ids, now=now, job_id=4, charges=charges) == 2
    assert items.mark_granted(conn, ids, now=now, job_id=5, charges={}) == 0
    granted = items.granted_items(conn, 4)
    assert [(each.callback_id, each.charge, each.granted_at) for each in granted] == [
        (ids[0], 7, now),
        (ids[1], 9, now),
    ]
    found = items.read_item(conn, ids[0])
    assert found is not None
    assert (found.attempts, found.decided_at) == (1, now - timedelta(seconds=3))


def test_a_parked_item_hides_nobody_and_comes_back_at_its_rank(conn: Connection, now: datetime) -> None:
    first, second = new("x"), new("y")
    enqueue(conn, [first, second], now)
    items.park(conn, [first.callback_id], now=now, retry_at=now + timedelta(seconds=30), reason="no executor")
    assert order(conn) == [second.callback_id]
    assert items.unpark_due(conn, now + timedelta(seconds=29)) == 0
    assert items.unpark_due(conn, now + timedelta(seconds=30)) == 1
    assert order(conn) == [first.callback_id, second.callback_id]


def test_parked_items_end_with_their_time_to_live(conn: Connection, now: datetime) -> None:
    """It is counted from the first time that they were parked, however long they had waited before."""
    old, young = new(), new()
    ids = [old.callback_id, young.callback_id]
    enqueue(conn, [old, young], now - timedelta(hours=9))
    hour = timedelta(hours=1)
    items.park(conn, ids[:1], now=now - 2 * hour, retry_at=now - hour, reason="no executor")
    assert items.unpark_due(conn, now) == 1
    assert items.expired(conn, parked_before=now) == {}, "it is not parked now"
    items.park(conn, ids, now=now, retry_at=now, reason="still none")
    assert items.expired(conn, parked_before=now - hour) == {ids[0]: "still none"}
    assert items.expired(conn, parked_before=now - 2 * hour) == {}
    assert items.expired(conn, parked_before=now + hour).keys() == set(ids)
    assert items.expired(conn, parked_before=now + hour, limit=1).keys() < set(ids)


def test_what_waits_anew_has_a_new_time_to_live(conn: Connection, now: datetime) -> None:
    item = new()
    enqueue(conn, [item], now)
    items.park(conn, [item.callback_id], now=now, retry_at=now, reason="x")
    items.mark_done(conn, [item.callback_id], now)
    enqueue(conn, [item], now)
    found = items.read_item(conn, item.callback_id)
    assert found is not None
    assert found.parked_at is None


def test_done_is_final_and_a_slot_can_be_taken_back(conn: Connection, now: datetime) -> None:
    item, other = new(), new()
    ids = [item.callback_id, other.callback_id]
    enqueue(conn, [item, other], now)
    items.mark_granted(conn, ids, now=now, job_id=1, charges={DEADLINE: 3})
    items.mark_done(conn, ids[:1], now)
    assert items.requeue(conn, ids) == 1
    assert items.park(conn, ids[:1], now=now, retry_at=now, reason="x") == 0
    assert items.mark_done(conn, ids[:1], now + timedelta(1)) == 0
    assert [state_of(conn, each) for each in ids] == [ItemState.DONE, ItemState.WAITING]
    found = items.read_item(conn, ids[0])
    assert found is not None
    assert found.finished_at == now


def batch_of(conn: Connection, count: int, now: datetime, batch: str = "b") -> list[uuid.UUID]:
    """Waiting items of a batch, whose callbacks are pending, in the order in which they go."""
    wanted = [new(batch=batch) for _ in range(count)]
    enqueue(conn, wanted, now)
    empty = {} if conn.dialect.name == "postgresql" else "{}"
    fields = {"type": "executor", "state": "pending", "data": empty, "priority_weight": 1, "created_at": now}
    conn.execute(insert(callback), [{"id": each.callback_id, **fields} for each in wanted])
    return [each.callback_id for each in wanted]


def test_companions_are_the_next_of_the_batch(conn: Connection, now: datetime, sent: list[str]) -> None:
    """Not the leaders, not who was granted too, not who ended meanwhile, and none of another batch."""
    ids = batch_of(conn, 8, now)
    batch_of(conn, 3, now, batch="other")
    enqueue(conn, [new(batch="b")], now)  # its callback is gone
    items.park(conn, ids[4:5], now=now, retry_at=now, reason="x")
    conn.execute(update(callback).where(callback.c.id == ids[2]).values(state="success"))
    sent.clear()
    assert waiting.companions(conn, [(ids[0], "b")], 3, apart_from=[ids[1]]) == {
        ids[0]: {ids[3]: 0, ids[5]: 0, ids[6]: 0}
    }, "each with how often it was granted before"
    assert len(sent) == 1
    assert waiting.companions(conn, [(ids[0], "b")], 0) == {}
    assert waiting.companions(conn, [], 3) == {}
    assert len(sent) == 1


def test_leaders_of_one_batch_are_dealt_its_rest_evenly(
    conn: Connection, now: datetime, sent: list[str]
) -> None:
    first, second = batch_of(conn, 7, now), batch_of(conn, 1, now, batch="alone")
    third = batch_of(conn, 9, now, batch="third")
    leaders = [(first[0], "b"), (first[1], "b"), (second[0], "alone"), (third[0], "third")]
    sent.clear()
    dealt = waiting.companions(conn, leaders, 7)
    assert {leader: list(riding) for leader, riding in dealt.items()} == {
        first[0]: [first[2], first[4], first[6]],
        first[1]: [first[3], first[5]],
        third[0]: third[1:8],
    }
    assert len(sent) == 1


def test_companions_are_granted_with_their_leader_and_hold_nothing(
    conn: Connection, now: datetime, sent: list[str]
) -> None:
    ids = batch_of(conn, 5, now)
    items.mark_granted(conn, ids[:2], now=now, job_id=4, charges={DEADLINE: 7})
    sent.clear()
    runs = {ids[0]: ids[2:4], ids[1]: ids[4:], uuid.uuid4(): []}
    assert items.mark_companions(conn, runs, now=now, job_id=4) == 3
    assert len(sent) == 1
    assert items.mark_companions(conn, runs, now=now, job_id=5) == 0
    granted = {each.callback_id: (each.leader_id, each.charge) for each in items.granted_items(conn, 4)}
    leader, other = ids[:2]
    assert granted == {
        leader: (None, 7),
        other: (None, 7),
        ids[2]: (leader, 0),
        ids[3]: (leader, 0),
        ids[4]: (other, 0),
    }
    held = read_state(conn, living_since=now, own_job_id=4).held
    assert held == {("p", DEADLINE): 2}
    assert [found.attempts for each in ids if (found := items.read_item(conn, each))] == [1] * 5


def test_a_companion_that_waits_again_leads_by_itself(conn: Connection, now: datetime) -> None:
    ids = batch_of(conn, 3, now)
    items.mark_granted(conn, ids[:1], now=now, job_id=4, charges={})
    items.mark_companions(conn, {ids[0]: ids[1:]}, now=now, job_id=4)
    items.requeue(conn, ids[1:2])
    items.park(conn, ids[2:], now=now, retry_at=now, reason="x")
    assert [found.leader_id for each in ids if (found := items.read_item(conn, each))] == [None] * 3
    items.unpark_due(conn, now)
    items.mark_granted(conn, ids[1:], now=now, job_id=4, charges={})
    assert [each.leader_id for each in items.granted_items(conn, 4)] == [None] * 3


def test_what_the_triggerer_runs_waits_for_nothing_and_holds_nothing(conn: Connection, now: datetime) -> None:
    item, follower = new(batch="b"), new(batch="b")
    assert not items.any_triggered(conn)
    assert enqueueing.record_triggered(conn, [item], now=now) == 1
    assert enqueueing.record_triggered(conn, [item], now=now) == 0
    assert items.any_triggered(conn)
    enqueue(conn, [follower], now)
    assert order(conn) == [follower.callback_id]
    assert waiting.companions(conn, [(follower.callback_id, "b")], 7) == {}
    assert items.mark_granted(conn, [item.callback_id], now=now, job_id=1, charges={}) == 0
    assert items.mark_companions(conn, {follower.callback_id: [item.callback_id]}, now=now, job_id=1) == 0
    assert read_state(conn, living_since=now, own_job_id=1).held == {}
    items.mark_done(conn, [item.callback_id], now)
    assert not items.any_triggered(conn)


def test_naive_instants_are_refused(conn: Connection) -> None:
    with pytest.raises(Exception, match="time zone"):
        conn.execute(select(item_table.c.rank).where(item_table.c.enqueued_at < datetime(2026, 1, 1)))  # noqa: DTZ001 - what is refused


def test_mysql_upserts_compile_and_read_the_state_before_they_change_it() -> None:
    plain = str(upsert(flow_table, "mysql").compile(dialect=mysql.dialect()))
    assert "ON DUPLICATE KEY UPDATE" in plain
    guarded = upsert(item_table, "mysql", only_when=("state", "done")).compile(dialect=mysql.dialect())
    assert str(guarded).rstrip().endswith("END")
    assert str(guarded).rfind("state = CASE") > str(guarded).rfind("charge = CASE")
