"""Units are claimed, begun and ended once, in rows that fit every database."""

from __future__ import annotations

import threading
import uuid
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, create_engine, insert, select, text, update

from callback_priority.core.classes import ServiceClass
from callback_priority.persistence import requests, units
from callback_priority.persistence.airflow_tables import callback_table
from callback_priority.persistence.enqueueing import NewItem, enqueue
from callback_priority.persistence.requests import NewRequest, NewUnit, Outcome, Target
from callback_priority.persistence.tables import ItemState, item_table, metadata, request_table, unit_table
from tests.persistence.conftest import airflow as airflows_tables

BODY = '{"type": "TaskCallbackRequest"}'


@pytest.fixture(autouse=True)
def output_column(request: pytest.FixtureRequest) -> None:
    """Airflow's ``callback`` has more columns than most tests here need."""
    if "conn" in request.fixturenames:
        add_output(request.getfixturevalue("conn"))


def add_output(conn: Connection) -> None:
    if "output" not in airflows_tables.tables["callback"].columns:
        conn.execute(text("ALTER TABLE callback ADD COLUMN output TEXT"))


def routed(conn: Connection, now: datetime, *, count: int = 1, leader: UUID | None = None) -> list[UUID]:
    """Units of one request, as routing leaves them."""
    request = NewRequest(
        id=uuid.uuid4(),
        dedupe_key=uuid.uuid4().hex,
        kind="task_failure",
        dag_id="sales",
        run_id="run",
        dag_run_id=1,
    )
    requests.claim(conn, request, now=now)
    requests.conclude(conn, request.id, Outcome.ROUTED, units=count, body=BODY)
    ids = [uuid.uuid4() for _ in range(count)]
    requests.add_units(
        conn,
        [
            NewUnit(
                callback_id=each,
                request_id=request.id,
                position=position,
                name="sales.tell",
                target=Target.WORKER,
                reference={"name": "sales.tell"},
            )
            for position, each in enumerate(ids)
        ],
    )
    enqueue(
        conn,
        [
            NewItem(
                callback_id=each,
                service_class=ServiceClass.TASK_CALLBACK,
                kind="task_failure",
                pool="p",
                dag_id="sales",
            )
            for each in ids
        ],
        now=now,
        turn_length_us=1,
        aging_us=1,
    )
    conn.execute(
        insert(callback_table),
        [
            {
                "id": each,
                "type": "executor",
                "state": "queued",
                "data": "{}",
                "priority_weight": 1,
                "created_at": now,
            }
            for each in ids
        ],
    )
    conn.execute(
        update(item_table)
        .where(item_table.c.callback_id.in_(ids))
        .values(state=ItemState.GRANTED.value, leader_id=leader)
    )
    return ids


def callback(conn: Connection, callback_id: UUID) -> tuple[str | None, str | None]:
    row = conn.execute(
        select(callback_table.c.state, callback_table.c.output).where(callback_table.c.id == callback_id)
    ).one()
    return row.state, row.output


def the_unit(conn: Connection, unit_id: UUID) -> units.RunUnit:
    (found,) = units.read_units(conn, [unit_id])
    return found


def the_row(conn: Connection, unit_id: UUID) -> Any:
    return conn.execute(select(unit_table).where(unit_table.c.callback_id == unit_id)).one()


def test_a_unit_is_read_with_its_request_its_callback_and_its_item(conn: Connection, now: datetime) -> None:
    (unit_id,) = routed(conn, now)
    unit = the_unit(conn, unit_id)
    assert (unit.callback_id, unit.state, unit.kind, unit.dag_id, unit.run_id) == (
        unit_id,
        "queued",
        "task_failure",
        "sales",
        "run",
    )
    assert (unit.body, unit.reference, unit.target) == (BODY, '{"name":"sales.tell"}', Target.WORKER)
    assert (unit.item_state, unit.leader_id) == (ItemState.GRANTED, None)
    assert (unit.claimed_at, unit.worker, unit.started_at, unit.ended_at) == (None, None, None, None)


def test_units_come_in_the_order_of_their_ranks(conn: Connection, now: datetime) -> None:
    ids = [*routed(conn, now, count=3), *routed(conn, now + timedelta(seconds=1), count=3)]
    assert [unit.callback_id for unit in units.read_units(conn, ids[::-1])] == ids
    # One whose item is gone is still there, at the end.
    conn.execute(item_table.delete().where(item_table.c.callback_id == ids[0]))
    assert [unit.callback_id for unit in units.read_units(conn, ids)] == [*ids[1:], ids[0]]


def test_companions_are_the_granted_ones_that_name_the_leader(conn: Connection, now: datetime) -> None:
    (leader,) = routed(conn, now)
    mine = routed(conn, now, count=3, leader=leader)
    routed(conn, now, count=2, leader=uuid.uuid4())
    conn.execute(update(item_table).where(item_table.c.callback_id == leader).values(leader_id=leader))
    conn.execute(
        update(item_table)
        .where(item_table.c.callback_id == mine[0])
        .values(state=ItemState.WAITING.value, leader_id=leader)
    )
    assert units.companions(conn, leader) == sorted(mine[1:])


def test_a_claim_names_the_worker_and_the_log(conn: Connection, now: datetime) -> None:
    first, second = routed(conn, now, count=2)
    units.claim(conn, {first: "logs/1", second: "logs/2" + "x" * 2000}, worker="host:1" + "y" * 999, now=now)
    rows = {row.callback_id: row for row in conn.execute(select(unit_table))}
    assert rows[first].log_path == "logs/1"
    assert len(rows[second].log_path) == 1000
    assert rows[first].claimed_at == rows[second].claimed_at == now
    assert rows[first].worker.startswith("host:1yy")
    assert len(rows[first].worker) == 300


def test_only_units_that_never_began_are_released(conn: Connection, now: datetime) -> None:
    waiting, begun, ended = ids = routed(conn, now, count=3)
    units.claim(conn, dict.fromkeys(ids, "log"), worker="host:1", now=now)
    units.mark_started(conn, begun, now)
    units.mark_ended(conn, ended, state="failed", output=None, log=None, now=now)
    assert units.release(conn, ids) == 1
    assert the_unit(conn, waiting).claimed_at is the_unit(conn, waiting).worker is None
    assert the_unit(conn, begun).claimed_at == the_unit(conn, ended).claimed_at == now


def test_units_that_began_are_released_on_demand_and_those_that_ended_never(
    conn: Connection, now: datetime
) -> None:
    begun, ended = ids = routed(conn, now, count=2)
    units.claim(conn, dict.fromkeys(ids, "log"), worker="host:1", now=now, heartbeat_at=now)
    for each in ids:
        units.mark_started(conn, each, now)
    units.mark_ended(conn, ended, state="success", output=None, log=None, now=now)
    assert units.release(conn, ids, even_started=True) == 1
    row = the_row(conn, begun)
    assert {row.claimed_at, row.started_at, row.worker, row.log_path, row.heartbeat_at} == {None}
    assert the_unit(conn, ended).claimed_at == the_unit(conn, ended).heartbeat_at == now


def test_a_heartbeat_is_noted_under_its_own_claim_only(conn: Connection, now: datetime) -> None:
    mine, taken, silent = routed(conn, now, count=3)
    later, latest = now + timedelta(seconds=5), now + timedelta(seconds=9)
    units.claim(conn, {mine: "log"}, worker="host:1", now=now, heartbeat_at=now)
    units.claim(conn, {taken: "log"}, worker="host:2", now=later, heartbeat_at=later)
    assert units.beat(conn, [mine, taken, silent], claimed_at=now, now=latest) == 1
    assert [the_unit(conn, each).heartbeat_at for each in (mine, taken, silent)] == [latest, later, None]


def test_a_callback_without_a_request_gets_one_unit(conn: Connection, now: datetime) -> None:
    (unit_id,) = routed(conn, now)
    conn.execute(unit_table.delete())
    for name in ("mail.late" + "x" * 600, "mail.other"):
        units.add_unit(conn, unit_id, name)
    (unit,) = units.read_units(conn, [unit_id])
    assert the_row(conn, unit_id).request_id == unit_id
    assert (unit.name[:10], len(unit.name)) == ("mail.latex", 500)
    assert (unit.target, unit.kind, unit.dag_id, unit.run_id, unit.body) == ("worker", "", "", "", None)


def test_how_a_callback_came_to_a_worker(conn: Connection, now: datetime) -> None:
    (unit_id,) = routed(conn, now)

    def grant(state: str, item_state: str, attempts: int) -> tuple[bool, bool]:
        conn.execute(update(callback_table).where(callback_table.c.id == unit_id).values(state=state))
        item = update(item_table).where(item_table.c.callback_id == unit_id)
        conn.execute(item.values(state=item_state, attempts=attempts))
        found = units.grant_of(conn, unit_id)
        assert found is not None
        assert found == units.read_units(conn, [unit_id])[0].grant
        return found.ours, found.due

    assert grant("queued", "granted", 1) == grant("running", "granted", 2) == (True, True)
    assert grant("pending", "waiting", 1) == grant("failed", "waiting", 0) == (True, False)
    assert grant("pending", "waiting", 0) == grant("queued", "waiting", 3) == (False, False)
    conn.execute(item_table.delete())
    assert units.grant_of(conn, unit_id) is None
    assert not units.read_units(conn, [unit_id])[0].grant.ours


def test_an_attempt_that_failed_leaves_the_callback_pending_and_claimed(
    conn: Connection, now: datetime
) -> None:
    (unit_id,) = routed(conn, now)
    units.claim(conn, {unit_id: "log"}, worker="host:1", now=now)
    units.mark_started(conn, unit_id, now)
    assert units.mark_attempt_failed(conn, unit_id, output="attempt 1 failed: \0boom", log="it\0 went")
    assert callback(conn, unit_id) == ("pending", "attempt 1 failed: boom")
    row = the_row(conn, unit_id)
    assert (row.claimed_at, row.started_at, row.ended_at, row.log) == (now, None, None, "it went")
    assert not units.mark_attempt_failed(conn, unit_id, output="again", log=None)
    assert not units.mark_started(conn, unit_id, now)
    assert units.mark_started(conn, unit_id, now, even_pending=True)


def test_a_unit_that_begins_sets_its_callback_to_running_and_keeps_its_first_time(
    conn: Connection, now: datetime
) -> None:
    (unit_id,) = routed(conn, now)
    assert units.mark_started(conn, unit_id, now)
    assert units.mark_started(conn, unit_id, now + timedelta(seconds=5))
    assert the_unit(conn, unit_id).started_at == now
    assert callback(conn, unit_id) == ("running", None)


@pytest.mark.parametrize("state", ["success", "failed"])
def test_what_has_ended_does_not_begin(conn: Connection, now: datetime, state: str) -> None:
    (unit_id,) = routed(conn, now)
    conn.execute(update(callback_table).where(callback_table.c.id == unit_id).values(state=state))
    assert not units.mark_started(conn, unit_id, now)
    assert the_unit(conn, unit_id).started_at is None
    assert callback(conn, unit_id) == (state, None)


def test_an_end_is_written_to_both_rows_and_does_not_change_another_end(
    conn: Connection, now: datetime
) -> None:
    (unit_id,) = routed(conn, now)
    assert units.mark_ended(conn, unit_id, state="success", output="fine", log="a log", now=now)
    assert not units.mark_ended(conn, unit_id, state="failed", output="no", log="other", now=now)
    assert units.mark_ended(conn, unit_id, state="success", output="fine", log="a log", now=now)
    assert callback(conn, unit_id) == ("success", "fine")
    assert conn.scalar(select(unit_table.c.log)) == "a log"
    assert the_unit(conn, unit_id).ended_at == now


def test_texts_are_cut_to_their_limits_and_hold_nothing_that_a_database_refuses(
    conn: Connection, now: datetime
) -> None:
    (unit_id,) = routed(conn, now)
    output = "é\0\ud800" + "é" * units.OUTPUT_LIMIT_BYTES
    log = "é" * units.LOG_LIMIT_BYTES + "x\0\udfffend"
    assert units.mark_ended(conn, unit_id, state="failed", output=output, log=log, now=now)
    kept_output, kept_log = callback(conn, unit_id)[1], conn.scalar(select(unit_table.c.log))
    assert kept_output is not None
    assert kept_log is not None
    assert kept_output.startswith("é?é")
    assert units.OUTPUT_LIMIT_BYTES - 1 <= len(kept_output.encode()) <= units.OUTPUT_LIMIT_BYTES
    assert kept_log.endswith("éx?end")
    assert units.LOG_LIMIT_BYTES - 1 <= len(kept_log.encode()) <= units.LOG_LIMIT_BYTES


def test_units_that_are_gone_are_left_out(conn: Connection, now: datetime) -> None:
    (unit_id,) = routed(conn, now)
    assert not units.mark_started(conn, uuid.uuid4(), now)
    assert units.read_units(conn, []) == []
    conn.execute(request_table.delete())
    assert units.read_units(conn, [unit_id]) == []


def test_a_lock_keeps_others_out_until_the_end(fresh_database: str, now: datetime) -> None:
    """The second reads what the first wrote; without `lock`, it reads what was there before."""
    engine = create_engine(fresh_database)
    metadata.create_all(engine)
    airflows_tables.create_all(engine)
    with engine.begin() as conn:
        add_output(conn)
    for locks in (True, False):
        with engine.begin() as conn:
            (unit_id,) = routed(conn, now)
        locked, seen = threading.Event(), []

        def second(
            unit_id: UUID = unit_id,
            locked: threading.Event = locked,
            seen: list[datetime | None] = seen,
            locks: bool = locks,
        ) -> None:
            with engine.begin() as other:
                locked.wait(10)
                if locks:
                    units.lock(other, [unit_id])
                seen.append(the_unit(other, unit_id).claimed_at)

        thread = threading.Thread(target=second)
        thread.start()
        with engine.begin() as conn:
            units.lock(conn, [unit_id])
            units.claim(conn, {unit_id: "log"}, worker="host:1", now=now)
            locked.set()
            thread.join(0.5)
            assert thread.is_alive() is locks
        thread.join(10)
        assert seen == [now if locks else None]
    engine.dispose()
