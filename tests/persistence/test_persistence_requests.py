"""Requests are written once for what happened; units say what came of them."""

from __future__ import annotations

import json
import threading
import uuid
from datetime import datetime, timedelta
from typing import Any

import attrs
import pytest
from sqlalchemy import Connection, create_engine, func, select
from sqlalchemy.dialects import mysql

from callback_priority.core.classes import ServiceClass
from callback_priority.persistence import items, requests, status
from callback_priority.persistence.enqueueing import NewItem, enqueue
from callback_priority.persistence.requests import NewRequest, NewUnit, Outcome, Target
from callback_priority.persistence.tables import item_table, metadata, request_table, unit_table
from callback_priority.persistence.units import end_units, redirect_unit


def request(key: str = "key", **changes: object) -> NewRequest:
    values: dict[str, object] = {
        "id": uuid.uuid4(),
        "dedupe_key": key,
        "kind": "task_failure",
        "dag_id": "sales",
        "run_id": "run",
        "dag_run_id": 7,
        "task_id": "load",
        "map_index": 3,
        "try_number": 2,
    }
    return NewRequest(**{**values, **changes})  # type: ignore[arg-type]


def unit(of: NewRequest, position: int = 0, target: Target = Target.WORKER) -> NewUnit:
    return NewUnit(
        callback_id=uuid.uuid4(),
        request_id=of.id,
        position=position,
        name=f"sales.tell_{position}",
        target=target,
        reference={"name": "sales.tell", "async": False},
    )


def wait(conn: Connection, unit: NewUnit, now: datetime) -> None:
    item = NewItem(
        callback_id=unit.callback_id, service_class=ServiceClass.TASK_CALLBACK, kind="task_failure", pool="p"
    )
    enqueue(conn, [item], now=now, turn_length_us=1, aging_us=1)


def rows(conn: Connection, table: object) -> int:
    return conn.scalar(select(func.count()).select_from(table))  # type: ignore[arg-type, return-value]


def test_what_happened_is_claimed_once(conn: Connection, now: datetime) -> None:
    first, again, other = request(), request(), request("another")
    assert requests.claim(conn, first, now=now)
    assert not requests.claim(conn, again, now=now + timedelta(seconds=9))
    assert requests.claim(conn, other, now=now)
    assert requests.read_request(conn, again.id) is None
    found = requests.read_request(conn, first.id)
    assert found is not None
    assert attrs.asdict(first).items() <= attrs.asdict(found).items()
    assert (found.outcome, found.reason, found.units, found.body) == (Outcome.ROUTED, None, 0, None)
    assert found.received_at == now


def test_only_one_of_two_transactions_claims_it(fresh_database: str, now: datetime) -> None:
    """The second waits for the first; if the first takes it back, the second has it."""
    engine = create_engine(fresh_database)
    metadata.create_all(engine)
    for commits in (True, False):
        answers: list[bool] = []
        waiting = threading.Event()

        def second(key: str, answers: list[bool] = answers, waiting: threading.Event = waiting) -> None:
            with engine.begin() as conn:
                conn.execute(select(1))
                waiting.set()
                answers.append(requests.claim(conn, request(key), now=now))

        with engine.connect() as conn:
            assert requests.claim(conn, request(f"{commits}"), now=now)
            other = threading.Thread(target=second, args=[f"{commits}"])
            other.start()
            assert waiting.wait(30)
            other.join(0.2)
            assert answers == []
            conn.commit() if commits else conn.rollback()
        other.join(30)
        assert answers == [not commits]
    engine.dispose()


def test_mysql_ignores_a_second_claim() -> None:
    statement = requests._insert_once("mysql")
    assert str(statement.compile(dialect=mysql.dialect())).startswith("INSERT IGNORE INTO")


def test_what_came_of_it_is_read_back(conn: Connection, now: datetime) -> None:
    routed, fallen = request("1"), request("2", kind="dag_failure", task_id="", try_number=None)
    body = '{"type": "TaskCallbackRequest", "msg": "\\u0000 ü"}'
    for each in (routed, fallen):
        assert requests.claim(conn, each, now=now)
    requests.conclude(conn, routed.id, Outcome.ROUTED, units=2, body=body)
    requests.conclude(conn, fallen.id, Outcome.FALLBACK, reason="no \0 executor")
    found = requests.read_request(conn, routed.id)
    assert found is not None
    assert (found.outcome, found.units, found.body) == (Outcome.ROUTED, 2, body)
    found = requests.read_request(conn, fallen.id)
    assert found is not None
    assert (found.outcome, found.reason, found.body) == (Outcome.FALLBACK, "no  executor", None)
    assert found.try_number is None


def units(conn: Connection, of: NewRequest) -> list[Any]:
    statement = select(unit_table).where(unit_table.c.request_id == of.id).order_by(unit_table.c.position)
    return list(conn.execute(statement))


def test_units_are_kept_with_their_request(conn: Connection) -> None:
    mine, other = request("1"), request("2")
    new = [unit(mine, 1, Target.TRIGGERER), unit(mine, 0), unit(other)]
    assert requests.add_units(conn, new) == 3
    assert requests.add_units(conn, []) == 0
    assert requests.units_of(conn, mine.id) == [new[1].callback_id, new[0].callback_id]
    assert requests.units_of(conn, uuid.uuid4()) == []
    first, second = units(conn, mine)
    assert (first.name, first.target, first.started_at) == ("sales.tell_0", "worker", None)
    assert (second.name, second.target) == ("sales.tell_1", "triggerer")
    assert json.loads(second.reference) == {"name": "sales.tell", "async": False}
    redirect_unit(conn, second.callback_id, Target.WORKER)
    assert [each.target for each in units(conn, mine)] == ["worker", "worker"]


def test_names_that_a_column_cannot_hold_are_made_to_fit(conn: Connection) -> None:
    mine = request()
    requests.add_units(conn, [attrs.evolve(unit(mine), name="\0\ud800" + "x" * 600)])
    assert [each.name for each in units(conn, mine)] == ["?" + "x" * 499]


def test_a_unit_ends_once(conn: Connection, now: datetime) -> None:
    mine = request()
    ids = [uuid.UUID(int=1), uuid.UUID(int=2)]
    requests.add_units(conn, [attrs.evolve(unit(mine, each.int), callback_id=each) for each in ids])
    assert end_units(conn, ids[:1], now) == 1
    assert end_units(conn, ids, now + timedelta(1)) == 1
    assert [each.ended_at for each in units(conn, mine)] == [now, now + timedelta(1)]


def test_the_units_of_a_request_leave_with_their_items(conn: Connection, now: datetime) -> None:
    mine, other = request("1"), request("2")
    new = [unit(mine), unit(mine, 1), unit(other)]
    requests.add_units(conn, new)
    for each in new:
        wait(conn, each, now)
    assert requests.remove_units(conn, mine.id) == 2
    assert units(conn, mine) == []
    assert requests.units_of(conn, other.id) == [new[2].callback_id]
    assert conn.scalars(select(item_table.c.callback_id)).all() == [new[2].callback_id]


def test_old_requests_leave_and_those_with_an_open_item_stay(conn: Connection, now: datetime) -> None:
    ended, waiting, empty, young = (request(each) for each in "1234")
    for each in (ended, waiting, empty):
        requests.claim(conn, each, now=now - timedelta(days=8))
    requests.claim(conn, young, now=now)
    new = {each.id: unit(each) for each in (ended, waiting, young)}
    requests.add_units(conn, new.values())
    for each in new.values():
        wait(conn, each, now)
    items.mark_done(conn, [new[ended.id].callback_id, new[young.id].callback_id], now)
    week = now - timedelta(days=7)
    assert requests.trim(conn, received_before=week, limit=1) == 1
    assert requests.trim(conn, received_before=week, limit=10) == 1
    assert requests.trim(conn, received_before=week, limit=10) == 0
    assert set(conn.scalars(select(request_table.c.id))) == {waiting.id, young.id}
    assert set(conn.scalars(select(unit_table.c.request_id))) == {waiting.id, young.id}


def test_requests_are_counted_by_what_came_of_them(conn: Connection, now: datetime) -> None:
    came = [
        ("task_failure", Outcome.ROUTED, None, 2),
        ("task_failure", Outcome.ROUTED, None, 1),
        ("task_failure", Outcome.FALLBACK, "b", 0),
        ("task_failure", Outcome.FALLBACK, "a", 0),
        ("dag_failure", Outcome.EMPTY, None, 0),
    ]
    for number, (kind, outcome, reason, number_of_units) in enumerate(came):
        each = request(str(number), kind=kind)
        requests.claim(conn, each, now=now + timedelta(seconds=number))
        requests.conclude(conn, each.id, outcome, reason=reason, units=number_of_units)
    counted = status.request_counts(conn, since=now)
    assert [(each.kind, each.outcome, each.reason, each.requests, each.units) for each in counted] == [
        ("dag_failure", "empty", None, 1, 0),
        ("task_failure", "fallback", "a", 1, 0),
        ("task_failure", "fallback", "b", 1, 0),
        ("task_failure", "routed", None, 2, 3),
    ]
    assert counted[3].last_at == now + timedelta(seconds=1)
    assert status.request_counts(conn, since=now + timedelta(seconds=4)) == counted[:1]


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_claiming_is_one_statement_and_counting_another(
    conn: Connection, now: datetime, sent: list[str]
) -> None:
    requests.claim(conn, request(), now=now)
    status.request_counts(conn, since=now)
    assert [each.split()[0] for each in sent] == ["INSERT", "SELECT"]
