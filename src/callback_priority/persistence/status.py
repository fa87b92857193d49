"""Queries for people: what waits where, for how long, how long others waited, and what became of what was asked."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any, Final

import attrs
from sqlalchemy import ColumnElement, Connection, Integer, Select, and_, bindparam, case, func, or_, select

from callback_priority.core.classes import CLASS_ORDER, ServiceClass
from callback_priority.core.kinds import KINDS
from callback_priority.persistence.airflow_tables import (
    CALLBACK_RUNNING,
    CALLBACK_TERMINAL,
    JOB_RUNNING,
    callback_table,
    job_table,
)
from callback_priority.persistence.tables import (
    ItemState,
    UtcDateTime,
    item_table,
    request_table,
    unit_table,
)

__all__ = [
    "STATES",
    "Backlog",
    "KindCount",
    "RequestCount",
    "Waits",
    "backlog",
    "held_by_kinds",
    "kind_counts",
    "request_counts",
    "standing",
    "waits",
]

_ITEM = item_table.c
_CALLBACK = callback_table.c
_REQUEST = request_table.c
_UNIT = unit_table.c
_JOB = job_table.c
_GONE: Final = "done"
STATES: Final = ("waiting", "parked", "granted", "running", "triggered", "success", "failed", _GONE)
"""Where a callback can stand, as `standing` says it: Airflow's word for it once it ended, until then ours."""

_CLASSES: Final = {service_class.value: service_class for service_class in ServiceClass}


@attrs.frozen(kw_only=True)
class Backlog:
    """The open items of one class in one pool.

    Args:
        service_class: The class.
        pool: The pool.
        waiting: How many wait.
        parked: How many are set aside until what they lack comes back.
        granted: How many were granted and are not done, by any scheduler, dead ones included.
        oldest_enqueued_at: Since when the oldest waiting one waits; ``None`` if none does.
    """

    service_class: ServiceClass
    pool: str
    waiting: int = 0
    parked: int = 0
    granted: int = 0
    oldest_enqueued_at: datetime | None = None


@attrs.frozen(kw_only=True)
class Waits:
    """How long the finished callbacks of one class had waited for their grant.

    Args:
        service_class: The class.
        count: How many were looked at.
        p50_seconds: Half of them waited at most this long.
        p95_seconds: 95% of them waited at most this long.
        longest_seconds: All of them waited at most this long.
    """

    service_class: ServiceClass
    count: int
    p50_seconds: float
    p95_seconds: float
    longest_seconds: float


@attrs.frozen(kw_only=True)
class RequestCount:
    """What became of requests of one kind.

    Args:
        kind: Of `callback_priority.core.kinds.KINDS`.
        outcome: ``routed``, ``fallback``, ``empty``, or ``shadow`` where it was only decided.
        reason: Why; in ``shadow`` also what would have become of it.
        requests: How many there were.
        units: The callables that came of them.
        last_at: When the last was received.
    """

    kind: str
    outcome: str
    reason: str | None
    requests: int
    units: int
    last_at: datetime


@attrs.frozen(kw_only=True)
class KindCount:
    """The callbacks of one kind that are open or in the history.

    Args:
        kind: Of `callback_priority.core.kinds.KINDS`.
        service_class: The class that it competes in.
        states: How many stand where, in the order of `STATES`; states without any are absent.
        wait_p50_seconds: Half of those that were granted waited at most this long; ``None`` if none was.
        wait_p95_seconds: 95% of them waited at most this long.
        run_p50_seconds: Half of those that ran on a worker took at most this long; ``None`` if none is known to.
        run_p95_seconds: 95% of them took at most this long.
    """

    kind: str
    service_class: ServiceClass
    states: dict[str, int]
    wait_p50_seconds: float | None = None
    wait_p95_seconds: float | None = None
    run_p50_seconds: float | None = None
    run_p95_seconds: float | None = None


def standing() -> ColumnElement[str]:
    """Where a callback stands, over its item, its unit and Airflow's row, each of which may be missing but the item."""
    return case(
        (_CALLBACK.state.in_(CALLBACK_TERMINAL), _CALLBACK.state),
        (
            and_(
                _ITEM.state == ItemState.GRANTED.value,
                or_(_CALLBACK.state == CALLBACK_RUNNING, _UNIT.started_at.is_not(None)),
            ),
            CALLBACK_RUNNING,
        ),
        else_=_ITEM.state,
    )


def _kinds() -> Any:
    return bindparam("kinds", expanding=True)


_OF_KINDS: Final = _ITEM.kind.in_(_kinds())
_BACKLOG: Final[Select[Any]] = (
    select(
        _ITEM.service_class,
        _ITEM.pool,
        _ITEM.state,
        func.count().label("items"),
        func.min(_ITEM.enqueued_at).label("oldest"),
    )
    .where(_ITEM.state.in_([ItemState.WAITING.value, ItemState.PARKED.value, ItemState.GRANTED.value]))
    .group_by(_ITEM.service_class, _ITEM.pool, _ITEM.state)
)
_BACKLOG_OF_KINDS: Final[Select[Any]] = _BACKLOG.where(_OF_KINDS)
_WAITS: Final[Select[Any]] = (
    select(_ITEM.service_class, _ITEM.enqueued_at, _ITEM.granted_at)
    .where(_ITEM.finished_at >= bindparam("since", type_=UtcDateTime), _ITEM.granted_at.is_not(None))
    .order_by(_ITEM.finished_at.desc())
    .limit(bindparam("most", type_=Integer))
)
_WAITS_OF_KINDS: Final[Select[Any]] = _WAITS.where(_OF_KINDS)
_HELD: Final[Select[Any]] = (
    select(_ITEM.pool, _ITEM.service_class, func.count().label("slots"))
    .join(job_table, _JOB.id == _ITEM.scheduler_job_id)
    .where(
        _ITEM.state == ItemState.GRANTED.value,
        _ITEM.leader_id.is_(None),
        _JOB.state == JOB_RUNNING,
        _JOB.latest_heartbeat >= bindparam("living_since", type_=UtcDateTime),
        _OF_KINDS,
    )
    .group_by(_ITEM.pool, _ITEM.service_class)
)
_REQUESTS: Final[Select[Any]] = (
    select(
        _REQUEST.kind,
        _REQUEST.outcome,
        _REQUEST.reason,
        func.count().label("requests"),
        func.sum(_REQUEST.units).label("units"),
        func.max(_REQUEST.received_at).label("last_at"),
    )
    .where(_REQUEST.received_at >= bindparam("since", type_=UtcDateTime))
    .group_by(_REQUEST.kind, _REQUEST.outcome, _REQUEST.reason)
)
_KIND_STATES: Final[Select[Any]] = (
    select(_ITEM.kind, _ITEM.service_class, standing().label("standing"), func.count().label("callbacks"))
    .join(callback_table, _CALLBACK.id == _ITEM.callback_id, isouter=True)
    .join(unit_table, _UNIT.callback_id == _ITEM.callback_id, isouter=True)
    .group_by(_ITEM.kind, _ITEM.service_class, standing())
)
_KIND_TIMES: Final[Select[Any]] = (
    select(_ITEM.kind, _ITEM.enqueued_at, _ITEM.granted_at, _UNIT.started_at, _UNIT.ended_at)
    .join(unit_table, _UNIT.callback_id == _ITEM.callback_id, isouter=True)
    .where(_ITEM.finished_at.is_not(None))
    .order_by(_ITEM.finished_at.desc())
    .limit(bindparam("most", type_=Integer))
)


def backlog(conn: Connection, *, kinds: Collection[str] = ()) -> list[Backlog]:
    """What is open, by class and pool, in one statement.

    Args:
        conn: Connection to Airflow's metadata database.
        kinds: The kinds to count; every one if empty.

    Complexity: reads all open items; for people, not for the scheduler's loop.
    """
    rows: dict[tuple[ServiceClass, str], Backlog] = {}
    for row in _execute(conn, _BACKLOG, _BACKLOG_OF_KINDS, kinds):
        key = _CLASSES[row.service_class], row.pool
        known = rows.get(key, Backlog(service_class=key[0], pool=key[1]))
        if row.state == ItemState.WAITING.value:
            known = attrs.evolve(known, waiting=row.items, oldest_enqueued_at=row.oldest)
        elif row.state == ItemState.PARKED.value:
            known = attrs.evolve(known, parked=row.items)
        else:
            known = attrs.evolve(known, granted=row.items)
        rows[key] = known
    return sorted(rows.values(), key=lambda found: (CLASS_ORDER.index(found.service_class), found.pool))


def waits(
    conn: Connection, *, since: datetime, limit: int = 20_000, kinds: Collection[str] = ()
) -> list[Waits]:
    """How long callbacks waited that have finished since a time, by class, in one statement.

    Args:
        conn: Connection to Airflow's metadata database.
        since: Callbacks that finished before are left out.
        limit: The most to look at, the latest first.
        kinds: The kinds to look at; every one if empty.
    """
    seconds: dict[ServiceClass, list[float]] = {}
    found = _execute(conn, _WAITS, _WAITS_OF_KINDS, kinds, since=since, most=limit)
    for service_class, enqueued_at, granted_at in found:
        waited = (granted_at - enqueued_at).total_seconds()
        seconds.setdefault(_CLASSES[service_class], []).append(waited)
    return [_summary(each, seconds[each]) for each in CLASS_ORDER if each in seconds]


def held_by_kinds(
    conn: Connection, *, kinds: Collection[str], living_since: datetime
) -> dict[tuple[str, ServiceClass], int]:
    """The slots that callbacks of some kinds hold, by pool and class, in one statement.

    Args:
        conn: Connection to Airflow's metadata database.
        kinds: The kinds.
        living_since: Since when a scheduler must have had a heartbeat to be alive; the dead hold nothing.
    """
    found = conn.execute(_HELD, {"kinds": sorted(kinds), "living_since": living_since})
    return {(row.pool, _CLASSES[row.service_class]): row.slots for row in found}


def request_counts(conn: Connection, *, since: datetime) -> list[RequestCount]:
    """What became of the requests that were received since a time, by kind, outcome and reason; in one statement."""
    found = [
        RequestCount(
            kind=row.kind,
            outcome=row.outcome,
            reason=row.reason,
            requests=row.requests,
            units=int(row.units or 0),
            last_at=row.last_at,
        )
        for row in conn.execute(_REQUESTS, {"since": since})
    ]
    return sorted(
        found, key=lambda each: (_place(each.kind), each.outcome, -each.requests, each.reason or "")
    )


def kind_counts(conn: Connection, *, limit: int = 20_000) -> list[KindCount]:
    """Where the callbacks of each kind stand, and how long they waited and ran; in two statements.

    Args:
        conn: Connection to Airflow's metadata database.
        limit: The most whose times are looked at, those that finished last first.

    Complexity: reads all items, done ones too.
    """
    states: dict[str, dict[str, int]] = {}
    classes: dict[str, ServiceClass] = {}
    for row in conn.execute(_KIND_STATES):
        classes[row.kind] = _CLASSES[row.service_class]
        known = states.setdefault(row.kind, {})
        known[row.standing] = known.get(row.standing, 0) + row.callbacks
    waited: dict[str, list[float]] = {}
    ran: dict[str, list[float]] = {}
    for row in conn.execute(_KIND_TIMES, {"most": limit}):
        if row.granted_at is not None:
            waited.setdefault(row.kind, []).append((row.granted_at - row.enqueued_at).total_seconds())
        if row.started_at is not None and row.ended_at is not None:
            ran.setdefault(row.kind, []).append((row.ended_at - row.started_at).total_seconds())
    return [
        KindCount(
            kind=kind,
            service_class=classes[kind],
            states={state: states[kind][state] for state in STATES if state in states[kind]},
            wait_p50_seconds=_of(waited.get(kind), 50),
            wait_p95_seconds=_of(waited.get(kind), 95),
            run_p50_seconds=_of(ran.get(kind), 50),
            run_p95_seconds=_of(ran.get(kind), 95),
        )
        for kind in sorted(states, key=_place)
    ]


def _execute(
    conn: Connection, whole: Select[Any], narrowed: Select[Any], kinds: Collection[str], **parameters: Any
) -> Iterable[Any]:
    if not kinds:
        return conn.execute(whole, parameters)
    return conn.execute(narrowed, {**parameters, "kinds": sorted(kinds)})


def _place(kind: str) -> tuple[int, str]:
    """Kinds in their own order, then those that another version wrote."""
    known = list(KINDS)
    return (known.index(kind) if kind in known else len(known), kind)


def _of(seconds: list[float] | None, percent: int) -> float | None:
    return _percentile(sorted(seconds), percent) if seconds else None


def _summary(service_class: ServiceClass, seconds: Iterable[float]) -> Waits:
    ordered = sorted(seconds)
    return Waits(
        service_class=service_class,
        count=len(ordered),
        p50_seconds=_percentile(ordered, 50),
        p95_seconds=_percentile(ordered, 95),
        longest_seconds=ordered[-1],
    )


def _percentile(ordered: list[float], percent: int) -> float:
    """The nearest-rank percentile of values in order.

    >>> _percentile([1.0, 2.0, 3.0, 4.0], 50), _percentile([1.0, 2.0, 3.0, 4.0], 95)
    (2.0, 4.0)
    """
    return ordered[-(-len(ordered) * percent // 100) - 1]
