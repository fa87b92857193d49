"""Queries for settling runs: what a worker reported of each callback that shared a run before it ended.

A run is one callback that leads it and holds the slot, and its companions. The worker says of each when it takes
it, starts it and how it ended (`callback_priority.persistence.units`); its executor only says that it is gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import Connection, Integer, Select, Uuid, and_, bindparam, or_, select

from callback_priority.persistence import units
from callback_priority.persistence.airflow_tables import (
    CALLBACK_TERMINAL,
    JOB_RUNNING,
    callback_table,
    job_table,
)
from callback_priority.persistence.statements import KEYS_PER_STATEMENT, chunks
from callback_priority.persistence.tables import ItemState, UtcDateTime, item_table, unit_table

__all__ = ["Ridden", "lock_requests", "overdue_runs", "runs", "stranded", "workers_of"]

_CALLBACK = callback_table.c
_ITEM = item_table.c
_UNIT = unit_table.c
_IDS = bindparam("ids", type_=Uuid, expanding=True)


@attrs.frozen(kw_only=True)
class Ridden:
    """How far a run came with one callback.

    Args:
        callback_id: Its key.
        leader_id: The callback that leads the run, possibly itself.
        request_id: What Airflow asked to be called.
        workers_lost: How many workers had taken it, or the run that it shared, and ended before they called it.
        claimed: Whether a worker took it.
        started: Whether the worker began to call it.
        ended: Whether its end was reported, by the worker or by anybody else.
    """

    callback_id: UUID
    leader_id: UUID
    request_id: UUID
    workers_lost: int
    claimed: bool
    started: bool
    ended: bool


_MEMBERS: Final[Select[Any]] = select(_ITEM.callback_id, _ITEM.leader_id).where(
    or_(
        _ITEM.callback_id.in_(_IDS),
        and_(_ITEM.leader_id.in_(_IDS), _ITEM.state == ItemState.GRANTED.value),
    )
)
_RIDDEN: Final[Select[Any]] = (
    select(
        _ITEM.callback_id,
        _UNIT.workers_lost,
        _UNIT.request_id,
        _UNIT.claimed_at,
        _UNIT.started_at,
        _UNIT.ended_at,
        _CALLBACK.state,
    )
    .join(unit_table, _UNIT.callback_id == _ITEM.callback_id)
    .join(callback_table, _CALLBACK.id == _ITEM.callback_id)
    .where(_ITEM.callback_id.in_(_IDS))
)
_OWN_JOB = bindparam("own_job_id", type_=Integer)
_LIVING: Final = select(job_table.c.id).where(
    job_table.c.state == JOB_RUNNING,
    job_table.c.latest_heartbeat >= bindparam("living_since", type_=UtcDateTime),
)
_SIBLING = unit_table.alias("sibling")
_SIBLINGS: Final[Select[Any]] = (
    select(_SIBLING.c.callback_id)
    .join(unit_table, _UNIT.request_id == _SIBLING.c.request_id)
    .where(_UNIT.callback_id.in_(_IDS))
)
_WORKERS: Final[Select[Any]] = select(_UNIT.callback_id, _UNIT.worker).where(
    _UNIT.callback_id.in_(_IDS), _UNIT.claimed_at.is_not(None), _UNIT.worker.is_not(None)
)
_OVERDUE: Final[Select[Any]] = (
    select(_ITEM.callback_id)
    .join(unit_table, _UNIT.callback_id == _ITEM.callback_id)
    .where(
        _ITEM.state == ItemState.GRANTED.value,
        _ITEM.leader_id.is_(None),
        or_(
            and_(
                _UNIT.claimed_at < bindparam("claimed_before", type_=UtcDateTime),
                or_(_ITEM.scheduler_job_id == _OWN_JOB, _ITEM.scheduler_job_id.not_in(_LIVING)),
            ),
            and_(
                _UNIT.claimed_at.is_(None),
                _ITEM.granted_at < bindparam("granted_before", type_=UtcDateTime),
                _ITEM.scheduler_job_id == _OWN_JOB,
            ),
        ),
    )
    .limit(bindparam("most", type_=Integer))
)
_STRANDED: Final[Select[Any]] = (
    select(_ITEM.callback_id)
    .join(unit_table, _UNIT.callback_id == _ITEM.callback_id)
    .join(callback_table, _CALLBACK.id == _ITEM.callback_id)
    .where(
        _ITEM.state == ItemState.GRANTED.value,
        _ITEM.scheduler_job_id != _OWN_JOB,
        _ITEM.scheduler_job_id.not_in(_LIVING),
        _UNIT.claimed_at.is_(None),
        _CALLBACK.state == units.CALLBACK_QUEUED,
    )
    .limit(bindparam("most", type_=Integer))
)


def runs(conn: Connection, leaders: Iterable[UUID]) -> list[Ridden]:
    """The callbacks of runs, with the units of their requests locked; four statements for up to 5,000 callbacks.

    Args:
        conn: Connection to Airflow's metadata database.
        leaders: The callbacks that led the runs; those of which nothing is known are left out.
    """
    led_by: dict[UUID, UUID] = {}
    for piece in chunks(sorted(leaders), KEYS_PER_STATEMENT):
        leading = set(piece)
        for callback_id, leader_id in conn.execute(_MEMBERS, {"ids": piece}):
            led_by[callback_id] = callback_id if callback_id in leading else leader_id
    lock_requests(conn, led_by)
    return [
        Ridden(
            callback_id=row.callback_id,
            leader_id=led_by[row.callback_id],
            request_id=row.request_id,
            workers_lost=row.workers_lost,
            claimed=row.claimed_at is not None,
            started=row.started_at is not None,
            ended=row.ended_at is not None or row.state in CALLBACK_TERMINAL,
        )
        for piece in chunks(sorted(led_by), KEYS_PER_STATEMENT)
        for row in conn.execute(_RIDDEN, {"ids": piece})
    ]


def lock_requests(conn: Connection, ids: Iterable[UUID]) -> None:
    """Lock the units of these callbacks and all others of their requests, in one pass.

    A request is given back as a whole, which takes the locks of all its units. Whoever had locked one of them
    alone before could then wait for somebody who has locked another, and that one for him.
    """
    wanted = set(ids)
    for piece in chunks(sorted(wanted), KEYS_PER_STATEMENT):
        wanted.update(conn.scalars(_SIBLINGS, {"ids": piece}))
    units.lock(conn, wanted)


def overdue_runs(
    conn: Connection,
    *,
    claimed_before: datetime,
    granted_before: datetime,
    living_since: datetime,
    own_job_id: int,
    limit: int,
) -> list[UUID]:
    """The leaders of runs of which nobody will hear any more, though nobody reported their end.

    A scheduler that lives looks after its own: its executor may count what is lost as running.

    Args:
        conn: Connection to Airflow's metadata database.
        claimed_before: Runs that a worker took since then may still be going on.
        granted_before: Runs that were granted since then, and that no worker took, may still be taken.
        living_since: Schedulers without a heartbeat since then are taken for dead.
        own_job_id: The scheduler that asks.
        limit: The most to find in one call.
    """
    parameters = {
        "living_since": living_since,
        "claimed_before": claimed_before,
        "granted_before": granted_before,
        "own_job_id": own_job_id,
        "most": limit,
    }
    return sorted(conn.scalars(_OVERDUE, parameters))


def workers_of(conn: Connection, ids: Iterable[UUID]) -> dict[UUID, str]:
    """Which worker took each callback, as it named itself; those that none took are left out."""
    return {
        callback_id: worker
        for piece in chunks(sorted(ids), KEYS_PER_STATEMENT)
        for callback_id, worker in conn.execute(_WORKERS, {"ids": piece})
    }


def stranded(conn: Connection, *, living_since: datetime, own_job_id: int, limit: int) -> list[UUID]:
    """Callbacks that a scheduler granted which is dead now, and that no worker has taken.

    An executor in the scheduler's own process takes what it had queued with it. One with a broker may still
    deliver it, and no harm is done: only one worker can take a callback.

    Args:
        conn: Connection to Airflow's metadata database.
        living_since: Schedulers without a heartbeat since then are taken for dead.
        own_job_id: The scheduler that asks, which is alive whatever its heartbeat says.
        limit: The most to find in one call.
    """
    parameters = {"living_since": living_since, "own_job_id": own_job_id, "most": limit}
    return sorted(conn.scalars(_STRANDED, parameters))
