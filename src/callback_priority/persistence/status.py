"""Queries for people: what waits where, for how long, and how long others waited."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

import attrs
from sqlalchemy import Connection, Integer, Select, bindparam, func, select

from callback_priority.core.classes import CLASS_ORDER, ServiceClass
from callback_priority.persistence.tables import ItemState, UtcDateTime, item_table

__all__ = ["Backlog", "Waits", "backlog", "waits"]

_ITEM = item_table.c
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
_WAITS: Final[Select[Any]] = (
    select(_ITEM.service_class, _ITEM.enqueued_at, _ITEM.granted_at)
    .where(_ITEM.finished_at >= bindparam("since", type_=UtcDateTime), _ITEM.granted_at.is_not(None))
    .order_by(_ITEM.finished_at.desc())
    .limit(bindparam("most", type_=Integer))
)


def backlog(conn: Connection) -> list[Backlog]:
    """What is open, by class and pool, in one statement.

    Complexity: reads all open items; for people, not for the scheduler's loop.
    """
    rows: dict[tuple[ServiceClass, str], Backlog] = {}
    for row in conn.execute(_BACKLOG):
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


def waits(conn: Connection, *, since: datetime, limit: int = 20_000) -> list[Waits]:
    """How long callbacks waited that have finished since a time, by class, in one statement.

    Args:
        conn: Connection to Airflow's metadata database.
        since: Callbacks that finished before are left out.
        limit: The most to look at, the latest first.
    """
    seconds: dict[ServiceClass, list[float]] = {}
    for service_class, enqueued_at, granted_at in conn.execute(_WAITS, {"since": since, "most": limit}):
        waited = (granted_at - enqueued_at).total_seconds()
        seconds.setdefault(_CLASSES[service_class], []).append(waited)
    return [_summary(each, seconds[each]) for each in CLASS_ORDER if each in seconds]


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
