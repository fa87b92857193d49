"""Queries for people: single callbacks, with all that is known of them."""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import Connection, Integer, Select, Text, Uuid, bindparam, case, cast, or_, select, union

from callback_priority.persistence.airflow_tables import (
    callback_table,
    dag_run_table,
    job_table,
    trigger_table,
)
from callback_priority.persistence.status import standing
from callback_priority.persistence.tables import item_table, request_table, unit_table

__all__ = ["Callback", "Line", "Mate", "matching_ids", "newest", "read_callback"]

_ITEM = item_table.c
_CALLBACK = callback_table.c
_UNIT = unit_table.c
_REQUEST = request_table.c
_RUN = dag_run_table.c
_TRIGGER = trigger_table.c
_JOB = job_table.c

_HEX_DIGITS: Final = 32


@attrs.frozen(kw_only=True)
class Line:
    """One callback in a list.

    Args:
        callback_id: Key of Airflow's ``callback`` row.
        kind: Of `callback_priority.core.kinds.KINDS`.
        service_class: The class that it competes in.
        name: What people call its callable; empty if that cannot be read.
        dag_id: Its Dag.
        state: Of `callback_priority.persistence.status.STATES`.
        enqueued_at: When it began to wait.
        output: What it returned or why it failed; ``None`` until it ended.
    """

    callback_id: UUID
    kind: str
    service_class: str
    name: str
    dag_id: str
    state: str
    enqueued_at: datetime
    output: str | None


@attrs.frozen(kw_only=True)
class Mate:
    """A callback in the same run of a worker.

    Args:
        callback_id: Its key.
        kind: Its kind.
        name: What people call its callable.
        state: Where it stands.
        leads: Whether the slot is in its name.
    """

    callback_id: UUID
    kind: str
    name: str
    state: str
    leads: bool


@attrs.frozen(kw_only=True)
class Callback:
    """All that the tables know of one callback; ``None`` is what they do not know.

    Args:
        callback_id: Key of Airflow's ``callback`` row.
        kind: Of `callback_priority.core.kinds.KINDS`.
        service_class: The class that it competes in.
        dag_id: Its Dag.
        run_id: Its Dag run.
        task_id: Its task, if it belongs to one.
        map_index: The index of its task, if that is mapped.
        try_number: The try of its task.
        name: What people call its callable.
        position: Its place in the list of callables, from 1.
        callables: How long that list is.
        target: ``worker`` or ``triggerer``.
        executor: The executor that it asks for.
        pool: The pool that it draws on.
        priority: The larger, the sooner.
        worker: The host and process that ran it.
        triggerer: The host of the triggerer that has it.
        type: Airflow's type of callback.
        state: Where it stands, of `callback_priority.persistence.status.STATES`.
        airflow_state: The state in Airflow's row.
        item_state: The state of its item.
        reason: Why it is parked, or why it ended otherwise than by running.
        attempts: How often it was granted.
        failures: How many of its attempts were lost or failed.
        scheduler_job_id: The scheduler that granted it, or took it over.
        created_at: When Airflow's row was made.
        received_at: When Airflow's request for it came in.
        enqueued_at: When it began to wait.
        granted_at: When it was handed to an executor.
        claimed_at: When a worker took it.
        heartbeat_at: When that worker was last heard of.
        started_at: When it was called.
        ended_at: When the call ended.
        finished_at: When it was done.
        retry_at: When it is tried again, if it is parked.
        output: What it returned or why it failed.
        log_path: Its log, relative to ``[logging] base_log_folder``.
        log: The end of its log.
        request_id: What asked for it.
        companions: The other callbacks in the same run of a worker.
    """

    callback_id: UUID
    kind: str | None = None
    service_class: str | None = None
    dag_id: str | None = None
    run_id: str | None = None
    task_id: str | None = None
    map_index: int | None = None
    try_number: int | None = None
    name: str | None = None
    position: int | None = None
    callables: int | None = None
    target: str | None = None
    executor: str | None = None
    pool: str | None = None
    priority: int | None = None
    worker: str | None = None
    triggerer: str | None = None
    type: str | None = None
    state: str | None = None
    airflow_state: str | None = None
    item_state: str | None = None
    reason: str | None = None
    attempts: int | None = None
    failures: int | None = None
    scheduler_job_id: int | None = None
    created_at: datetime | None = None
    received_at: datetime | None = None
    enqueued_at: datetime | None = None
    granted_at: datetime | None = None
    claimed_at: datetime | None = None
    heartbeat_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    finished_at: datetime | None = None
    retry_at: datetime | None = None
    output: str | None = None
    log_path: str | None = None
    log: str | None = None
    request_id: UUID | None = None
    companions: tuple[Mate, ...] = ()


_FROM_ITEM: Final = (
    "kind",
    "service_class",
    "dag_id",
    "run_id",
    "executor",
    "pool",
    "priority",
    "reason",
    "attempts",
    "failures",
    "scheduler_job_id",
    "enqueued_at",
    "granted_at",
    "finished_at",
    "retry_at",
)
_FROM_UNIT: Final = (
    "name",
    "target",
    "worker",
    "claimed_at",
    "heartbeat_at",
    "started_at",
    "ended_at",
    "log_path",
    "log",
    "request_id",
)
_FROM_REQUEST: Final = ("kind", "dag_id", "run_id", "try_number", "received_at")

_DATA_UNLESS_NAMED: Final = case((_UNIT.name.is_(None), cast(_CALLBACK.data, Text))).label("data")
_LINES: Final[Select[Any]] = (
    select(
        _ITEM.callback_id,
        _ITEM.kind,
        _ITEM.service_class,
        _ITEM.dag_id,
        _ITEM.enqueued_at,
        _ITEM.leader_id,
        _UNIT.name,
        _CALLBACK.output,
        _DATA_UNLESS_NAMED,
        standing().label("standing"),
    )
    .select_from(item_table)
    .join(callback_table, _CALLBACK.id == _ITEM.callback_id, isouter=True)
    .join(unit_table, _UNIT.callback_id == _ITEM.callback_id, isouter=True)
)
_RANGE: Final = bindparam("lowest", type_=Uuid), bindparam("highest", type_=Uuid)
_MATCHING: Final = (
    union(
        select(_ITEM.callback_id.label("id")).where(_ITEM.callback_id.between(*_RANGE)),
        select(_CALLBACK.id.label("id")).where(_CALLBACK.id.between(*_RANGE)),
        select(_UNIT.callback_id.label("id")).where(_UNIT.callback_id.between(*_RANGE)),
    )
    .order_by("id")
    .limit(bindparam("most", type_=Integer))
)


def _of_callback(column: Any) -> Any:
    return column == bindparam("callback_id", type_=Uuid)


_ITEM_OF: Final[Select[Any]] = (
    select(item_table, _RUN.run_id, standing().label("standing"))
    .join(callback_table, _CALLBACK.id == _ITEM.callback_id, isouter=True)
    .join(unit_table, _UNIT.callback_id == _ITEM.callback_id, isouter=True)
    .join(dag_run_table, _RUN.id == _ITEM.dag_run_id, isouter=True)
    .where(_of_callback(_ITEM.callback_id))
)
_CALLBACK_OF: Final[Select[Any]] = (
    select(
        _CALLBACK.type,
        _CALLBACK.state,
        _CALLBACK.output,
        _CALLBACK.created_at,
        _CALLBACK.priority_weight,
        cast(_CALLBACK.data, Text).label("data"),
        _JOB.hostname,
    )
    .join(trigger_table, _TRIGGER.id == _CALLBACK.trigger_id, isouter=True)
    .join(job_table, _JOB.id == _TRIGGER.triggerer_id, isouter=True)
    .where(_of_callback(_CALLBACK.id))
)
_UNIT_OF: Final[Select[Any]] = (
    select(
        unit_table,
        _REQUEST.kind,
        _REQUEST.dag_id,
        _REQUEST.run_id,
        _REQUEST.task_id,
        _REQUEST.map_index,
        _REQUEST.try_number,
        _REQUEST.received_at,
        _REQUEST.units,
    )
    .join(request_table, _REQUEST.id == _UNIT.request_id, isouter=True)
    .where(_of_callback(_UNIT.callback_id))
)
_RUN_OF: Final[Select[Any]] = _LINES.where(
    or_(
        _ITEM.leader_id == bindparam("leader_id", type_=Uuid),
        _ITEM.callback_id == bindparam("leader_id", type_=Uuid),
    )
).order_by(_ITEM.leader_id.is_not(None), _ITEM.rank, _ITEM.callback_id)


def newest(
    conn: Connection,
    *,
    limit: int,
    states: Collection[str] = (),
    classes: Collection[str] = (),
    kinds: Collection[str] = (),
    dag_ids: Collection[str] = (),
) -> list[Line]:
    """The callbacks that began to wait last, the newest first, in one statement.

    Args:
        conn: Connection to Airflow's metadata database.
        limit: The most to list.
        states: Only those that stand here, of `callback_priority.persistence.status.STATES`.
        classes: Only those of these classes.
        kinds: Only those of these kinds.
        dag_ids: Only those of these Dags.

    An empty collection narrows nothing.

    Complexity: reads all items, done ones too.
    """
    statement = _LINES.order_by(_ITEM.enqueued_at.desc(), _ITEM.callback_id.desc()).limit(limit)
    for column, wanted in (
        (standing(), states),
        (_ITEM.service_class, classes),
        (_ITEM.kind, kinds),
        (_ITEM.dag_id, dag_ids),
    ):
        if wanted:
            statement = statement.where(column.in_(sorted(wanted)))
    return [
        Line(
            callback_id=row.callback_id,
            kind=row.kind,
            service_class=row.service_class,
            name=_name(row),
            dag_id=row.dag_id,
            state=row.standing,
            enqueued_at=row.enqueued_at,
            output=row.output,
        )
        for row in conn.execute(statement)
    ]


def matching_ids(conn: Connection, prefix: str, *, limit: int) -> list[UUID]:
    """The keys of callbacks that begin with some digits, in one statement; by key.

    Args:
        conn: Connection to Airflow's metadata database.
        prefix: Hexadecimal digits, at most 32, without dashes.
        limit: The most to return.

    Complexity: a range of each table's key.
    """
    lowest, highest = (UUID(prefix.ljust(_HEX_DIGITS, filler)) for filler in "0f")
    return list(conn.scalars(_MATCHING, {"lowest": lowest, "highest": highest, "most": limit}))


def read_callback(conn: Connection, callback_id: UUID) -> Callback | None:
    """All that the tables know of a callback, in four statements; ``None`` if they know nothing."""
    key = {"callback_id": callback_id}
    item = conn.execute(_ITEM_OF, key).one_or_none()
    airflows = conn.execute(_CALLBACK_OF, key).one_or_none()
    unit = conn.execute(_UNIT_OF, key).one_or_none()
    if item is None and airflows is None and unit is None:
        return None
    known: dict[str, Any] = {}
    if airflows is not None:
        data = _fields(airflows.data)
        known |= {
            "type": airflows.type,
            "state": airflows.state,
            "airflow_state": airflows.state,
            "output": airflows.output,
            "created_at": airflows.created_at,
            "priority": airflows.priority_weight,
            "name": _text(data.get("path")),
            "dag_id": _text(data.get("dag_id")),
            "executor": _text(data.get("executor")),
            "triggerer": airflows.hostname,
        }
    if item is not None:
        known |= {name: getattr(item, name) for name in _FROM_ITEM}
        known |= {"state": item.standing, "item_state": item.state}
        known["companions"] = _companions(conn, item)
    if unit is not None:
        known |= {name: getattr(unit, name) for name in _FROM_UNIT}
        known["position"] = unit.position + 1
        if unit.kind is not None:
            known |= {name: getattr(unit, name) for name in _FROM_REQUEST}
            known["task_id"] = unit.task_id or None
            known["map_index"] = unit.map_index if unit.map_index >= 0 else None
            known["callables"] = unit.units
    return Callback(callback_id=callback_id, **known)


def _companions(conn: Connection, item: Any) -> tuple[Mate, ...]:
    leader_id = item.leader_id or item.callback_id
    return tuple(
        Mate(
            callback_id=row.callback_id,
            kind=row.kind,
            name=_name(row),
            state=row.standing,
            leads=row.callback_id == leader_id,
        )
        for row in conn.execute(_RUN_OF, {"leader_id": leader_id})
        if row.callback_id != item.callback_id
    )


def _name(row: Any) -> str:
    return row.name or _text(_fields(row.data).get("path")) or ""


def _fields(data: str | None) -> dict[str, Any]:
    """What Airflow keeps of a callback, as far as it can be read: anybody may have written it."""
    try:
        fields = json.loads(data or "{}")
    except (ValueError, RecursionError):
        return {}
    if isinstance(fields, dict) and "__var" in fields:
        fields = fields["__var"]
    return fields if isinstance(fields, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
