"""What Airflow asked to be called, and what came of it: requests and their units.

A request is written once for each thing that happened, however often and by however many processes it is sent:
its key says what happened, and the database keeps the key unique. What it comes to is written in the transaction
that claimed it. A unit is one callable of a request, beside Airflow's callback and our item, whose key it shares; how it fares is
for `callback_priority.persistence.units`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import Enum
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import Connection, Insert, bindparam, delete, exists, select, update
from sqlalchemy.dialects import mysql, postgresql, sqlite

from callback_priority.persistence.statements import KEYS_PER_STATEMENT, chunks, storable, write_rows
from callback_priority.persistence.tables import ItemState, item_table, request_table, unit_table

__all__ = [
    "NewRequest",
    "NewUnit",
    "Outcome",
    "Request",
    "Target",
    "add_units",
    "bodies_of",
    "claim",
    "conclude",
    "read_request",
    "remove_units",
    "requests_of",
    "trim",
    "units_of",
]

_REQUEST = request_table.c
_UNIT = unit_table.c


class Outcome(str, Enum):
    """What came of a request."""

    ROUTED = "routed"
    """Its callables run on workers or the triggerer."""
    FALLBACK = "fallback"
    """It went to the Dag processor, for a reason."""
    EMPTY = "empty"
    """There is nothing to call."""
    SHADOW = "shadow"
    """It went to the Dag processor, since it is only watched; the reason says what would have come of it."""

    __str__ = str.__str__


class Target(str, Enum):
    """What calls a callable."""

    WORKER = "worker"
    TRIGGERER = "triggerer"

    __str__ = str.__str__


@attrs.frozen(kw_only=True)
class NewRequest:
    """A request that comes in.

    Args:
        id: Its key.
        dedupe_key: What happened, as a digest: equal for requests about the same thing.
        kind: Of `callback_priority.core.kinds.KINDS`.
        dag_id: The Dag.
        run_id: Its run.
        dag_run_id: The run's key, if the run exists.
        task_id: The task, empty for the Dag's own callbacks.
        map_index: Which of a mapped task's instances; -1 for the others.
        try_number: Which try.
    """

    id: UUID
    dedupe_key: str
    kind: str
    dag_id: str
    run_id: str
    dag_run_id: int | None
    task_id: str = ""
    map_index: int = -1
    try_number: int | None = None


@attrs.frozen(kw_only=True)
class Request(NewRequest):
    """A request and what came of it; the columns of its row.

    Args:
        outcome: What came of it.
        reason: Why, if it was not routed.
        units: How many callables were routed.
        received_at: When it came in first.
        body: Airflow's request as its class writes it, which names the class in ``type``; ``None`` unless it
            is routed.
    """

    outcome: Outcome
    reason: str | None
    units: int
    received_at: datetime
    body: str | None


@attrs.frozen(kw_only=True)
class NewUnit:
    """A callable that is to be called.

    Args:
        callback_id: Key of Airflow's ``callback`` row and of the item.
        request_id: The request.
        position: Its place in the Dag's or task's list.
        name: What people call it.
        target: What calls it.
        reference: Where it is found; empty for an e-mail.
    """

    callback_id: UUID
    request_id: UUID
    position: int
    name: str
    target: Target
    reference: Mapping[str, Any]


def claim(conn: Connection, request: NewRequest, *, now: datetime) -> bool:
    """Be the one who handles a request; one statement.

    While another transaction that claimed it is open, this waits on PostgreSQL and MySQL for how it ends.

    Returns:
        Whether it came in for the first time. If so, `conclude` it in the same transaction.
    """
    row: dict[str, Any] = {
        name: storable(value) if isinstance(value, str) else value
        for name, value in attrs.asdict(request, recurse=False).items()
    }
    row |= {"outcome": Outcome.ROUTED.value, "reason": None, "units": 0, "received_at": now, "body": None}
    return conn.execute(_insert_once(conn.dialect.name), row).rowcount == 1


@lru_cache(maxsize=4)
def _insert_once(dialect: str) -> Insert:
    if dialect in ("mysql", "mariadb"):
        # An update on a duplicate key that changes nothing counts as one row found, like an insert.
        return mysql.insert(request_table).prefix_with("IGNORE")
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return insert(request_table).on_conflict_do_nothing(index_elements=[_REQUEST.dedupe_key])


def conclude(
    conn: Connection,
    request_id: UUID,
    outcome: Outcome,
    *,
    reason: str | None = None,
    units: int = 0,
    body: str | None = None,
) -> None:
    """Write what came of a request.

    Args:
        conn: Connection to Airflow's metadata database.
        request_id: The request.
        outcome: What came of it.
        reason: Why, if it is not routed.
        units: How many callables are routed.
        body: Airflow's request, as its class writes it, if it is routed.
    """
    conn.execute(
        update(request_table)
        .where(_REQUEST.id == request_id)
        .values(
            outcome=outcome.value,
            reason=None if reason is None else storable(reason),
            units=units,
            body=body,
        )
    )


def add_units(conn: Connection, units: Iterable[NewUnit]) -> int:
    """Write units, in one statement for up to a thousand of them.

    Returns:
        How many were written.
    """
    rows = [
        {
            "callback_id": unit.callback_id,
            "request_id": unit.request_id,
            "position": unit.position,
            "name": storable(unit.name, 500),
            "target": unit.target.value,
            "reference": json.dumps(unit.reference, sort_keys=True, separators=(",", ":")),
        }
        for unit in units
    ]
    return write_rows(conn, unit_table, unit_table.insert(), rows)


def read_request(conn: Connection, request_id: UUID) -> Request | None:
    """A request by its key."""
    row = conn.execute(select(*request_table.columns).where(_REQUEST.id == request_id)).one_or_none()
    if row is None:
        return None
    values: dict[str, Any] = dict(row._mapping)
    return Request(**values | {"outcome": Outcome(row.outcome)})


def requests_of(conn: Connection, callback_ids: Iterable[UUID]) -> dict[UUID, UUID]:
    """The request of each callback that has one, in one statement for up to 5,000."""
    statement = select(_UNIT.callback_id, _UNIT.request_id)
    found: dict[UUID, UUID] = {}
    for ids in chunks(sorted(callback_ids), KEYS_PER_STATEMENT):
        rows = conn.execute(statement.where(_UNIT.callback_id.in_(ids)))
        found |= {row.callback_id: row.request_id for row in rows}
    return found


def bodies_of(conn: Connection, callback_ids: Iterable[UUID]) -> dict[UUID, str]:
    """Airflow's request that each callback came of, where it is kept; one statement for up to 5,000."""
    statement = select(_UNIT.callback_id, _REQUEST.body).join(request_table, _REQUEST.id == _UNIT.request_id)
    found: dict[UUID, str] = {}
    for ids in chunks(sorted(callback_ids), KEYS_PER_STATEMENT):
        wanted = statement.where(_UNIT.callback_id.in_(ids), _REQUEST.body.is_not(None))
        found |= {row.callback_id: row.body for row in conn.execute(wanted)}
    return found


def units_of(conn: Connection, request_id: UUID) -> list[UUID]:
    """The callbacks of a request's units, in the order in which the Dag lists them."""
    statement = select(_UNIT.callback_id).where(_UNIT.request_id == request_id).order_by(_UNIT.position)
    return list(conn.scalars(statement))


def remove_units(conn: Connection, request_id: UUID) -> int:
    """Remove a request's units and their items; Airflow's callbacks are the caller's.

    Returns:
        How many units there were.
    """
    ids = select(_UNIT.callback_id).where(_UNIT.request_id == request_id)
    conn.execute(delete(item_table).where(item_table.c.callback_id.in_(ids)))
    return conn.execute(delete(unit_table).where(_UNIT.request_id == request_id)).rowcount


_OLD: Final = (
    select(_REQUEST.id)
    .where(
        _REQUEST.received_at < bindparam("received_before", type_=_REQUEST.received_at.type),
        ~exists()
        .where(_UNIT.request_id == _REQUEST.id, item_table.c.callback_id == _UNIT.callback_id)
        .where(item_table.c.state != ItemState.DONE.value),
    )
    .order_by(_REQUEST.received_at)
    .limit(bindparam("most"))
)


def trim(conn: Connection, *, received_before: datetime, limit: int) -> int:
    """Remove old requests with their units, oldest first; those with an open item stay.

    Args:
        conn: Connection to Airflow's metadata database.
        received_before: Older ones go.
        limit: The most to remove in one call, so that no transaction grows long.

    Returns:
        How many requests were removed.
    """
    old = conn.scalars(_OLD, {"received_before": received_before, "most": limit}).all()
    removed = 0
    for ids in chunks(sorted(old), KEYS_PER_STATEMENT):
        conn.execute(delete(unit_table).where(_UNIT.request_id.in_(ids)))
        removed += conn.execute(delete(request_table).where(_REQUEST.id.in_(ids))).rowcount
    return removed
