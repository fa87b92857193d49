"""Queries about callbacks that triggerers run: what has ended, what none takes, and what a dead one left behind.

Airflow's ``trigger`` row of a callback names the job of the triggerer that it is assigned to. A job is dead once its
last heartbeat is older than Airflow's own threshold.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import Connection, Integer, Row, Select, Uuid, and_, bindparam, exists, or_, select, update

from callback_priority.core.classes import ServiceClass
from callback_priority.persistence.airflow_tables import (
    CALLBACK_QUEUED,
    CALLBACK_RUNNING,
    CALLBACK_TERMINAL,
    TRIGGERER_JOB,
    callback_table,
    job_table,
    trigger_table,
)
from callback_priority.persistence.statements import KEYS_PER_STATEMENT, chunks
from callback_priority.persistence.tables import ItemState, UtcDateTime, item_table

__all__ = ["Failures", "Triggered", "count_lost", "ended", "left", "set_failures"]

_ITEM: Final = item_table.c
_CALLBACK: Final = callback_table.c
_TRIGGER: Final = trigger_table.c
_JOB: Final = job_table.c

_IDS: Final = bindparam("ids", type_=Uuid, expanding=True)
_MINE: Final = _ITEM.state == ItemState.TRIGGERED.value


@attrs.frozen(kw_only=True)
class Triggered:
    """A callback that was given to the triggerers.

    Args:
        callback_id: Its key.
        service_class: Its class.
        failures: How many of its attempts were lost or failed before.
        state: The state of Airflow's row; ``None`` if that is gone.
        output: What Airflow's row says of its end.
        triggerer_id: The job of the triggerer that it is assigned to; ``None`` if there is none.
    """

    callback_id: UUID
    service_class: ServiceClass
    failures: int
    state: str | None
    output: str | None
    triggerer_id: int | None


@attrs.frozen(kw_only=True)
class Failures:
    """How many attempts a callback has lost, the last one counted.

    Args:
        service_class: Its class.
        failures: How many.
    """

    service_class: ServiceClass
    failures: int


_COLUMNS: Final = (
    _ITEM.callback_id,
    _ITEM.service_class,
    _ITEM.failures,
    _CALLBACK.state,
    _CALLBACK.output,
    _TRIGGER.triggerer_id,
)
_ENDED: Final[Select[Any]] = (
    select(*_COLUMNS)
    .select_from(item_table)
    .outerjoin(callback_table, _CALLBACK.id == _ITEM.callback_id)
    .outerjoin(trigger_table, _TRIGGER.id == _CALLBACK.trigger_id)
    .where(_MINE, or_(_CALLBACK.state.in_(CALLBACK_TERMINAL), _CALLBACK.id.is_(None)))
    .limit(bindparam("most", type_=Integer))
)
_LEFT: Final[Select[Any]] = (
    select(*_COLUMNS)
    .select_from(item_table)
    .join(callback_table, _CALLBACK.id == _ITEM.callback_id)
    .join(trigger_table, _TRIGGER.id == _CALLBACK.trigger_id)
    .where(_MINE, _CALLBACK.state.in_((CALLBACK_QUEUED, CALLBACK_RUNNING)))
    .where(
        or_(
            and_(
                _TRIGGER.triggerer_id.is_(None),
                _ITEM.enqueued_at < bindparam("untaken_since", type_=UtcDateTime),
            ),
            and_(
                _TRIGGER.triggerer_id.is_not(None),
                ~exists().where(
                    _JOB.id == _TRIGGER.triggerer_id,
                    _JOB.job_type == TRIGGERER_JOB,
                    _JOB.latest_heartbeat > bindparam("dead_since", type_=UtcDateTime),
                ),
            ),
        )
    )
    .order_by(_ITEM.callback_id)
    .limit(bindparam("most", type_=Integer))
)
_LOST: Final = (
    update(item_table).where(_ITEM.callback_id.in_(_IDS), _MINE).values(failures=_ITEM.failures + 1)
)
_FAILURES: Final[Select[Any]] = select(_ITEM.callback_id, _ITEM.service_class, _ITEM.failures).where(
    _ITEM.callback_id.in_(_IDS), _MINE
)
_SET: Final = (
    update(item_table)
    .where(_ITEM.callback_id == bindparam("id", type_=Uuid))
    .values(failures=bindparam("count", type_=Integer))
)


def ended(conn: Connection, limit: int) -> list[Triggered]:
    """The callbacks of triggerers that have ended, or whose row is gone."""
    return _read(conn.execute(_ENDED, {"most": limit}))


def left(conn: Connection, *, untaken_since: datetime, dead_since: datetime, limit: int) -> list[Triggered]:
    """The callbacks that no triggerer has taken, or that a dead one has left.

    Args:
        conn: Connection to Airflow's metadata database.
        untaken_since: Those that wait for a triggerer since before this.
        dead_since: A triggerer without a heartbeat since then is dead, and so is one that is unknown.
        limit: The most to return.
    """
    times = {"untaken_since": untaken_since, "dead_since": dead_since}
    return _read(conn.execute(_LEFT, {**times, "most": limit}))


def _read(rows: Iterable[Row[Any]]) -> list[Triggered]:
    return [Triggered(**{**row._mapping, "service_class": ServiceClass(row.service_class)}) for row in rows]


def count_lost(conn: Connection, ids: Iterable[UUID]) -> dict[UUID, Failures]:
    """Count a lost attempt of callbacks that triggerers have; those that have no open item are left out.

    Writes before it reads, so that SQLite's one lock is had from the beginning.
    """
    counted = {}
    for piece in chunks(sorted(ids), KEYS_PER_STATEMENT):
        conn.execute(_LOST, {"ids": piece})
        for row in conn.execute(_FAILURES, {"ids": piece}):
            counted[row.callback_id] = Failures(
                service_class=ServiceClass(row.service_class), failures=row.failures
            )
    return counted


def set_failures(conn: Connection, callback_id: UUID, failures: int) -> None:
    """Have an item that was written anew remember the attempts before."""
    conn.execute(_SET, {"id": callback_id, "count": failures})
