"""How callbacks begin to wait: each gets an item, with a place behind those of the same Dag.

The order is that of `callback_priority.core.ranking`: a turn for each callback of a Dag, and a head start by its
priority. What the triggerer runs takes no slot at all; it gets an item to be seen, and no place.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import Connection, Insert, Integer, String, bindparam, select, union_all

from callback_priority.core.classes import ServiceClass
from callback_priority.core.ranking import next_turn_us, rank_us
from callback_priority.core.units import MICROSECONDS
from callback_priority.persistence.statements import PARTS_PER_STATEMENT, chunks, storable, upsert, write_rows
from callback_priority.persistence.tables import (
    BATCH_LENGTH,
    DAG_ID_LENGTH,
    EXECUTOR_LENGTH,
    POOL_LENGTH,
    ItemState,
    item_table,
)

__all__ = ["NewItem", "enqueue", "record_triggered"]

LARGEST_INTEGER: Final = 2**31 - 1

_ITEM = item_table.c


@attrs.frozen(kw_only=True)
class NewItem:
    """A callback that starts to wait.

    Args:
        callback_id: Key of Airflow's ``callback`` row.
        service_class: The class that it competes in.
        kind: What sort of callback it is, for people (``deadline``, ``on_failure``, ...).
        pool: The pool that it draws on.
        dag_id: Its Dag, empty if it has none that can be read.
        dag_run_id: Key of its Dag run; ``None`` if it has none that can be read.
        executor: The executor it asks for; ``None`` for the default one.
        priority: The larger, the sooner.
        batch: Those with the same one may share a run of a worker; ``None`` if it runs alone.
    """

    callback_id: UUID
    service_class: ServiceClass
    kind: str
    pool: str
    dag_id: str = ""
    dag_run_id: int | None = None
    executor: str | None = None
    priority: int = 1
    batch: str | None = None


def enqueue(
    conn: Connection, items: Iterable[NewItem], *, now: datetime, turn_length_us: int, aging_us: int
) -> int:
    """Let callbacks wait, ranked after those of the same Dag, class and priority that wait already.

    A callback whose item is still open is left as it is; one whose item is done waits anew (somebody set it
    back to pending). Values that a column cannot hold are cut to what it can, or dropped if they are numbers:
    they come from data that anybody may have written, and an error of the database would cost the caller
    its transaction.

    Two statements for up to a thousand callbacks of up to 128 different (class, Dag, priority).

    Args:
        conn: Connection to Airflow's metadata database.
        items: The callbacks, in the order in which equals of one Dag go.
        now: The present.
        turn_length_us: The spacing between two turns of one Dag, in microseconds.
        aging_us: The head start of each doubling of the priority, in microseconds.

    Returns:
        How many rows were written.
    """
    wanted = {item.callback_id: item for item in items}
    if not wanted:
        return 0
    now_us = round(now.timestamp() * MICROSECONDS)
    rows = [_row(item, now) for item in wanted.values()]
    last_turns: dict[tuple[str, str, int], int | None] = _last_turns(
        conn, {(row["service_class"], row["dag_id"], row["priority"]): None for row in rows}
    )
    for row in rows:
        queue = row["service_class"], row["dag_id"], row["priority"]
        turn = next_turn_us(now_us, last_turns.get(queue), turn_length_us)
        last_turns[queue] = row["turn"] = turn
        row["rank"] = rank_us(turn, row["priority"], aging_us)
    return write_rows(conn, item_table, _upsert_item(conn.dialect.name), rows)


def record_triggered(conn: Connection, items: Iterable[NewItem], *, now: datetime) -> int:
    """Keep track of callbacks that the triggerer runs: they wait for no slot and hold none. One statement.

    Args:
        conn: Connection to Airflow's metadata database.
        items: The callbacks.
        now: The present.

    Returns:
        How many rows were written; an item that is still open is left as it is.
    """
    return _record(conn, items, now, state=ItemState.TRIGGERED.value)


def record_granted(conn: Connection, items: Iterable[NewItem], *, now: datetime) -> int:
    """Keep track of callbacks that somebody without this library gave to an executor. One statement.

    Args:
        conn: Connection to Airflow's metadata database.
        items: The callbacks; no scheduler is known to look after them.
        now: The present, from which it is counted how long they take.

    Returns:
        How many rows were written; an item that is still open is left as it is.
    """
    return _record(conn, items, now, state=ItemState.GRANTED.value, granted_at=now, attempts=1)


def _record(conn: Connection, items: Iterable[NewItem], now: datetime, **changes: Any) -> int:
    """Write items that do not wait."""
    rank = round(now.timestamp() * MICROSECONDS)
    rows = [_row(item, now) | {"turn": None, "rank": rank} | changes for item in items]
    return write_rows(conn, item_table, _upsert_item(conn.dialect.name), rows)


@lru_cache(maxsize=4)
def _upsert_item(dialect: str) -> Insert:
    # Grants are counted on, so that no two are the same attempt.
    return upsert(item_table, dialect, only_when=("state", ItemState.DONE.value), keeping=["attempts"])


def _row(item: NewItem, now: datetime) -> dict[str, Any]:
    run = item.dag_run_id
    return {
        "callback_id": item.callback_id,
        "service_class": item.service_class.value,
        "kind": storable(item.kind, 32),
        "pool": storable(item.pool, POOL_LENGTH),
        "dag_id": storable(item.dag_id, DAG_ID_LENGTH),
        "dag_run_id": run if run is not None and abs(run) <= LARGEST_INTEGER else None,
        "executor": None if item.executor is None else storable(item.executor, EXECUTOR_LENGTH),
        "priority": max(-LARGEST_INTEGER, min(LARGEST_INTEGER, item.priority)),
        "state": ItemState.WAITING.value,
        "reason": None,
        "enqueued_at": now,
        "decided_at": None,
        "granted_at": None,
        "finished_at": None,
        "retry_at": None,
        "parked_at": None,
        "scheduler_job_id": None,
        "attempts": 0,
        "failures": 0,
        "external_id": None,
        "charge": 0,
        "batch": None if item.batch is None else storable(item.batch, BATCH_LENGTH),
        "leader_id": None,
    }


def _last_turns(
    conn: Connection, queues: Iterable[tuple[str, str, int]]
) -> dict[tuple[str, str, int], int | None]:
    """The latest turn among the waiting items of each (class, Dag, priority): one probe of an index each."""
    last: dict[tuple[str, str, int], int | None] = {}
    for piece in chunks(queues, PARTS_PER_STATEMENT):
        # Few shapes of the statement, whatever the number: filled up to a power of two.
        shape = 1 << (len(piece) - 1).bit_length()
        parameters: dict[str, Any] = {}
        for place in range(shape):
            service_class, dag_id, priority = piece[min(place, len(piece) - 1)]
            parameters[f"place_{place}"] = place
            parameters[f"class_{place}"] = service_class
            parameters[f"dag_{place}"] = dag_id
            parameters[f"priority_{place}"] = priority
        for place, turn in conn.execute(_last_turns_statement(shape), parameters):
            if place < len(piece):
                last[piece[place]] = turn
    return last


@lru_cache(maxsize=16)
def _last_turns_statement(shape: int) -> Any:
    return union_all(
        *(
            select(
                bindparam(f"place_{place}", type_=Integer).label("place"),
                select(_ITEM.turn)
                .where(
                    _ITEM.service_class == bindparam(f"class_{place}", type_=String),
                    _ITEM.dag_id == bindparam(f"dag_{place}", type_=String),
                    _ITEM.priority == bindparam(f"priority_{place}", type_=Integer),
                    _ITEM.turn.is_not(None),
                )
                .order_by(_ITEM.turn.desc())
                .limit(1)
                .scalar_subquery()
                .label("turn"),
            )
            for place in range(shape)
        )
    )
