"""Queries for settling runs: what a worker reported of each callback that shared a run before it ended.

A run is one callback that leads it and holds the slot, and its companions. The worker says of each when it takes
it, starts it and how it ended (`callback_priority.persistence.units`), and now and then that it is still there; its
executor only says that it is gone. A worker without this library says nothing, and then there is no unit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import Connection, Integer, Select, Uuid, and_, bindparam, exists, func, or_, select

from callback_priority.core.classes import ServiceClass
from callback_priority.persistence import units
from callback_priority.persistence.airflow_tables import (
    CALLBACK_PENDING,
    CALLBACK_QUEUED,
    CALLBACK_RUNNING,
    CALLBACK_TERMINAL,
    JOB_RUNNING,
    callback_table,
    job_table,
)
from callback_priority.persistence.statements import KEYS_PER_STATEMENT, chunks
from callback_priority.persistence.tables import ItemState, UtcDateTime, item_table, unit_table

__all__ = [
    "Orphan",
    "Pulse",
    "Ridden",
    "Standing",
    "lock_requests",
    "orphans",
    "pulses",
    "runs",
    "standings",
    "unowned",
    "workers_of",
]

_CALLBACK = callback_table.c
_ITEM = item_table.c
_UNIT = unit_table.c
_WAITING: Final = (ItemState.WAITING.value, ItemState.PARKED.value, ItemState.TRIGGERED.value)
_IDS = bindparam("ids", type_=Uuid, expanding=True)
_MOST = bindparam("most", type_=Integer)


@attrs.frozen(kw_only=True)
class Ridden:
    """How far a run came with one callback.

    Args:
        callback_id: Its key.
        leader_id: The callback that leads the run, possibly itself.
        service_class: Its class.
        request_id: What Airflow asked to be called; ``None`` for a callback that is no request's.
        failures: How many of its attempts were lost or failed before.
        waits: Whether it waits for an attempt, and none is under way.
        job_id: The scheduler that has granted the attempt; ``None`` if none with this library has.
        claimed: Whether a worker took it.
        started: Whether the worker began to call it.
        failed: Whether the worker reported that it failed and is to be tried again.
        ended: Whether its end was reported, by the worker or by anybody else.
    """

    callback_id: UUID
    leader_id: UUID
    service_class: ServiceClass
    request_id: UUID | None
    failures: int
    waits: bool
    job_id: int | None
    claimed: bool
    started: bool
    failed: bool
    ended: bool

    def is_with(self, job_id: int) -> bool:
        """Whether the attempt is a scheduler's to settle: its own, or nobody's."""
        return not self.waits and self.job_id in (None, job_id)


@attrs.frozen(kw_only=True)
class Standing:
    """What an executor's event about a callback is held against.

    Args:
        job_id: The scheduler that has granted it a slot; ``None`` if it holds none.
        external_id: What its executor's broker knows it by; ``None`` if that has not taken it, or names nothing.
        claimed: Whether a worker took it and says itself how it ends.
        state: Airflow's state of it.
    """

    job_id: int | None
    external_id: str | None
    claimed: bool
    state: str | None

    def is_with(self, job_id: int) -> bool:
        """Whether what a scheduler's executor tells of it is about its present attempt.

        One that this library has not granted, and that is underway, Airflow's own step has given to an executor.
        """
        if self.job_id is None:
            return self.state in (CALLBACK_QUEUED, CALLBACK_RUNNING)
        return self.job_id == job_id


@attrs.frozen(kw_only=True)
class Pulse:
    """What was last heard of the worker that has a run.

    Args:
        heard_at: When.
        beats: Whether it tells now and then that it is still there; an older release of this library does not.
    """

    heard_at: datetime
    beats: bool


@attrs.frozen(kw_only=True)
class Orphan:
    """A callback that leads a run and whose scheduler is dead.

    Args:
        callback_id: Its key.
        service_class: Its class.
        pool: The pool of whose slots it holds one.
        dag_id: Its Dag.
        executor: The executor that it asks for.
        external_id: What its executor's broker knows it by.
    """

    callback_id: UUID
    service_class: ServiceClass
    pool: str
    dag_id: str
    executor: str | None
    external_id: str | None


_MEMBERS: Final[Select[Any]] = select(_ITEM.callback_id, _ITEM.leader_id).where(
    or_(
        _ITEM.callback_id.in_(_IDS),
        and_(_ITEM.leader_id.in_(_IDS), _ITEM.state == ItemState.GRANTED.value),
    )
)
_RIDDEN: Final[Select[Any]] = (
    select(
        _ITEM.callback_id,
        _ITEM.service_class,
        _ITEM.failures,
        _ITEM.state.label("item_state"),
        _ITEM.scheduler_job_id,
        _UNIT.request_id,
        _UNIT.claimed_at,
        _UNIT.started_at,
        _UNIT.ended_at,
        _CALLBACK.state,
    )
    .outerjoin(unit_table, _UNIT.callback_id == _ITEM.callback_id)
    .join(callback_table, _CALLBACK.id == _ITEM.callback_id)
    .where(_ITEM.callback_id.in_(_IDS))
    .with_for_update(of=item_table)
)
_STANDINGS: Final[Select[Any]] = (
    select(
        _ITEM.callback_id,
        _ITEM.state,
        _ITEM.scheduler_job_id,
        _ITEM.external_id,
        _UNIT.claimed_at,
        _CALLBACK.state.label("is"),
    )
    .outerjoin(unit_table, _UNIT.callback_id == _ITEM.callback_id)
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
_LEADER: Final = func.coalesce(_ITEM.leader_id, _ITEM.callback_id)
_PULSES: Final[Select[Any]] = (
    select(
        _LEADER.label("leader"),
        func.max(_UNIT.claimed_at).label("claimed_at"),
        func.max(_UNIT.heartbeat_at).label("heartbeat_at"),
    )
    .join(unit_table, _UNIT.callback_id == _ITEM.callback_id)
    .where(
        or_(_ITEM.callback_id.in_(_IDS), _ITEM.leader_id.in_(_IDS)),
        _UNIT.claimed_at.is_not(None),
    )
    .group_by(_LEADER)
)
_LED_BY = item_table.alias("led_by")
_ORPHANS: Final[Select[Any]] = (
    select(
        _ITEM.callback_id,
        _ITEM.service_class,
        _ITEM.pool,
        _ITEM.dag_id,
        _ITEM.executor,
        _ITEM.external_id,
    )
    .where(
        _ITEM.state == ItemState.GRANTED.value,
        _ITEM.scheduler_job_id != _OWN_JOB,
        _ITEM.scheduler_job_id.not_in(_LIVING),
        or_(
            _ITEM.leader_id.is_(None),
            # One that led it may have been deleted meanwhile.
            ~exists().where(
                _LED_BY.c.callback_id == _ITEM.leader_id, _LED_BY.c.state == ItemState.GRANTED.value
            ),
        ),
    )
    .limit(_MOST)
    .with_for_update(of=item_table, skip_locked=True)
)
_UNOWNED: Final[Select[Any]] = (
    select(_ITEM.callback_id)
    .join(callback_table, _CALLBACK.id == _ITEM.callback_id)
    .where(
        _ITEM.state == ItemState.GRANTED.value,
        _ITEM.scheduler_job_id.is_(None),
        or_(
            and_(
                _CALLBACK.state == CALLBACK_QUEUED,
                _ITEM.granted_at < bindparam("queued_before", type_=UtcDateTime),
            ),
            _ITEM.granted_at < bindparam("running_before", type_=UtcDateTime),
        ),
    )
    .limit(_MOST)
    .with_for_update(of=item_table, skip_locked=True)
)


def runs(conn: Connection, leaders: Iterable[UUID]) -> list[Ridden]:
    """The callbacks of runs, with the units of their requests, and then their items, locked.

    Four statements for up to 5,000 callbacks. A worker that is just being given one of them is waited for.

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
            service_class=ServiceClass(row.service_class),
            request_id=None if row.request_id == row.callback_id else row.request_id,
            failures=row.failures,
            waits=row.item_state in _WAITING,
            job_id=row.scheduler_job_id if row.item_state == ItemState.GRANTED.value else None,
            claimed=row.claimed_at is not None,
            started=row.started_at is not None,
            failed=row.claimed_at is not None and row.state == CALLBACK_PENDING,
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


def workers_of(conn: Connection, ids: Iterable[UUID]) -> dict[UUID, str]:
    """Which worker took each callback, as it named itself; those that none took are left out."""
    return {
        callback_id: worker
        for piece in chunks(sorted(ids), KEYS_PER_STATEMENT)
        for callback_id, worker in conn.execute(_WORKERS, {"ids": piece})
    }


def standings(conn: Connection, ids: Collection[UUID]) -> dict[UUID, Standing]:
    """What is known of callbacks that executors told of; those without an item are left out."""
    return {
        row.callback_id: Standing(
            job_id=row.scheduler_job_id if row.state == ItemState.GRANTED.value else None,
            external_id=row.external_id,
            claimed=row.claimed_at is not None,
            state=row._mapping["is"],
        )
        for piece in chunks(sorted(ids), KEYS_PER_STATEMENT)
        for row in conn.execute(_STANDINGS, {"ids": piece})
    }


def pulses(conn: Connection, leaders: Iterable[UUID]) -> dict[UUID, Pulse]:
    """When the workers of runs were last heard of; one statement for up to 5,000 runs.

    Args:
        conn: Connection to Airflow's metadata database.
        leaders: The callbacks that lead the runs; those that no worker has taken, as far as is known, are left out.
    """
    return {
        row.leader: Pulse(heard_at=row.heartbeat_at or row.claimed_at, beats=row.heartbeat_at is not None)
        for piece in chunks(sorted(leaders), KEYS_PER_STATEMENT)
        for row in conn.execute(_PULSES, {"ids": piece})
    }


def orphans(conn: Connection, *, living_since: datetime, own_job_id: int, limit: int) -> list[Orphan]:
    """The runs of schedulers that are dead, locked where the database can: of two that ask, each gets others.

    Args:
        conn: Connection to Airflow's metadata database.
        living_since: Schedulers without a heartbeat since then are taken for dead.
        own_job_id: The scheduler that asks, which is alive whatever its heartbeat says.
        limit: The most to find in one call.
    """
    parameters = {"living_since": living_since, "own_job_id": own_job_id, "most": limit}
    found = [
        Orphan(
            callback_id=row.callback_id,
            service_class=ServiceClass(row.service_class),
            pool=row.pool,
            dag_id=row.dag_id,
            executor=row.executor,
            external_id=row.external_id,
        )
        for row in conn.execute(_ORPHANS, parameters)
    ]
    return sorted(found, key=lambda orphan: orphan.callback_id)


def unowned(conn: Connection, *, queued_before: datetime, running_before: datetime, limit: int) -> list[UUID]:
    """Callbacks that somebody without this library gave to an executor, and that take too long; locked as above.

    Args:
        conn: Connection to Airflow's metadata database.
        queued_before: Those that were seen first since then may still be on their way to a worker.
        running_before: Those that were seen first since then may still run.
        limit: The most to find in one call.
    """
    parameters = {"queued_before": queued_before, "running_before": running_before, "most": limit}
    return sorted(conn.scalars(_UNOWNED, parameters))
