"""Queries for people: what Airflow's own tables say of the deployment, and where they and ours disagree."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import attrs
from sqlalchemy import Connection, Select, String, and_, bindparam, exists, func, or_, select

from callback_priority.persistence.airflow_tables import (
    CALLBACK_PENDING,
    CALLBACK_TYPE_DAG_PROCESSOR,
    CALLBACK_TYPE_EXECUTOR,
    JOB_RUNNING,
    SCHEDULER_JOB,
    TASK_HOLDS_SLOTS,
    TASK_WAITS,
    TRIGGERER_JOB,
    callback_table,
    dag_table,
    job_table,
    keeps_tries_together,
    pool_table,
    task_instance_table,
)
from callback_priority.persistence.tables import ItemState, UtcDateTime, item_table, reference_table

__all__ = [
    "Scheduler",
    "Strays",
    "TaskLoad",
    "dags_with_references",
    "granted_by_the_dead",
    "living_schedulers",
    "living_triggerers",
    "parked_reasons",
    "pending_without_item",
    "pool_slots",
    "sent_to_dag_processors",
    "task_loads",
    "with_triggerers",
]

_ITEM = item_table.c
_JOB = job_table.c
_DAG = dag_table.c
_POOL = pool_table.c
_REFERENCE = reference_table.c
_TASK = task_instance_table.c
_CALLBACK = callback_table.c

_OPEN: Final = (ItemState.WAITING.value, ItemState.PARKED.value, ItemState.GRANTED.value)


@attrs.frozen(kw_only=True)
class Scheduler:
    """A scheduler that is alive.

    Args:
        job_id: Its row in Airflow's ``job`` table.
        hostname: Where it runs.
        latest_heartbeat: When it last said that it lives.
    """

    job_id: int
    hostname: str
    latest_heartbeat: datetime


@attrs.frozen(kw_only=True)
class TaskLoad:
    """The task instances of one pool that want or hold a slot.

    Args:
        pool: The pool.
        waiting: How many are scheduled and wait for a slot.
        oldest_scheduled_at: Since when the oldest of them waits; ``None`` if none does.
        held: How many are queued or running, each in one slot of a scheduler.
        held_pool_slots: The pool slots that those take.
    """

    pool: str
    waiting: int = 0
    oldest_scheduled_at: datetime | None = None
    held: int = 0
    held_pool_slots: int = 0


@attrs.frozen(kw_only=True)
class Strays:
    """Callbacks that nobody has taken up yet.

    Args:
        count: How many.
        oldest_created_at: When the oldest was made; ``None`` if there is none.
    """

    count: int
    oldest_created_at: datetime | None


def _since() -> Any:
    return bindparam("living_since", type_=UtcDateTime)


_POOLS: Final[Select[Any]] = select(_POOL.pool, _POOL.slots).where(_POOL.pool.is_not(None))
_LIVING: Final[Select[Any]] = (
    select(_JOB.id, _JOB.hostname, _JOB.latest_heartbeat)
    .where(
        _JOB.job_type == bindparam("job_type", type_=String),
        _JOB.state == JOB_RUNNING,
        _JOB.latest_heartbeat >= _since(),
    )
    .order_by(_JOB.id)
)
_DEAD: Final[Select[Any]] = (
    select(_ITEM.scheduler_job_id, func.count().label("callbacks"))
    .where(
        _ITEM.state == ItemState.GRANTED.value,
        or_(
            _ITEM.scheduler_job_id.is_(None),
            ~exists().where(
                _JOB.id == _ITEM.scheduler_job_id,
                _JOB.state == JOB_RUNNING,
                _JOB.latest_heartbeat >= _since(),
            ),
        ),
    )
    .group_by(_ITEM.scheduler_job_id)
    .order_by(_ITEM.scheduler_job_id)
)
_PARKED: Final[Select[Any]] = (
    select(_ITEM.reason, func.count().label("items"))
    .where(_ITEM.state == ItemState.PARKED.value)
    .group_by(_ITEM.reason)
)
_STRAYS: Final = select(func.count(), func.min(_CALLBACK.created_at)).where(
    and_(_CALLBACK.type == CALLBACK_TYPE_EXECUTOR, _CALLBACK.state == CALLBACK_PENDING),
    ~exists().where(_ITEM.callback_id == _CALLBACK.id, _ITEM.state.in_(_OPEN)),
)
_SENT: Final = select(func.count(), func.min(_CALLBACK.created_at)).where(
    _CALLBACK.type == CALLBACK_TYPE_DAG_PROCESSOR
)
_TRIGGERED: Final[Select[Any]] = select(func.count()).where(_ITEM.state == ItemState.TRIGGERED.value)
_REFERENCED: Final[Select[Any]] = (
    select(_DAG.dag_id, _REFERENCE.dag_id.is_not(None).label("written"))
    .join(
        reference_table,
        and_(
            _REFERENCE.dag_id == _DAG.dag_id,
            _REFERENCE.bundle_version == func.coalesce(_DAG.bundle_version, ""),
        ),
        isouter=True,
    )
    .where(_DAG.is_stale.is_(False))
    .order_by(_DAG.dag_id)
)
_TASKS: Final[Select[Any]] = (
    select(
        _TASK.pool,
        _TASK.state,
        func.count().label("instances"),
        func.sum(_TASK.pool_slots).label("pool_slots"),
        func.min(_TASK.scheduled_dttm).label("oldest"),
    )
    .where(_TASK.state.in_([TASK_WAITS, *TASK_HOLDS_SLOTS]))
    .group_by(_TASK.pool, _TASK.state)
)


def pool_slots(conn: Connection) -> Mapping[str, int | None]:
    """The slots of every pool, in one statement; ``None`` for a pool without end (-1 in Airflow)."""
    return {pool: None if slots < 0 else slots for pool, slots in conn.execute(_POOLS)}


def living_schedulers(conn: Connection, *, living_since: datetime) -> list[Scheduler]:
    """The schedulers that had a heartbeat since a time, in one statement."""
    rows = conn.execute(_LIVING, {"job_type": SCHEDULER_JOB, "living_since": living_since})
    return [
        Scheduler(job_id=job_id, hostname=hostname or "", latest_heartbeat=heartbeat)
        for job_id, hostname, heartbeat in rows
    ]


def living_triggerers(conn: Connection, *, living_since: datetime) -> int:
    """How many triggerers had a heartbeat since a time, in one statement."""
    return len(conn.execute(_LIVING, {"job_type": TRIGGERER_JOB, "living_since": living_since}).all())


def with_triggerers(conn: Connection) -> int:
    """How many callbacks the triggerers have, in one statement."""
    return int(conn.scalars(_TRIGGERED).one())


def dags_with_references(conn: Connection) -> dict[str, bool]:
    """Every Dag that is not gone, and whether its callbacks are known at its present version; in one statement."""
    return {dag_id: bool(written) for dag_id, written in conn.execute(_REFERENCED)}


def sent_to_dag_processors(conn: Connection) -> Strays:
    """Requests that wait for a Dag processor, in one statement.

    Complexity: reads Airflow's whole ``callback`` table, which has no index beside its key.
    """
    count, oldest = conn.execute(_SENT).one()
    return Strays(count=count, oldest_created_at=oldest)


def granted_by_the_dead(conn: Connection, *, living_since: datetime) -> dict[int | None, int]:
    """Callbacks granted and not done whose scheduler is not alive, by its job id, in one statement."""
    rows = conn.execute(_DEAD, {"living_since": living_since})
    return {row.scheduler_job_id: row.callbacks for row in rows}


def parked_reasons(conn: Connection) -> dict[str, int]:
    """Callbacks set aside, by reason, the most frequent first; in one statement."""
    found = {reason or "no reason recorded": items for reason, items in conn.execute(_PARKED)}
    return dict(sorted(found.items(), key=lambda entry: (-entry[1], entry[0])))


def pending_without_item(conn: Connection) -> Strays:
    """Pending callbacks that a sweep has yet to find, in one statement.

    Complexity: reads Airflow's whole ``callback`` table, which has no index beside its key.
    """
    count, oldest = conn.execute(_STRAYS).one()
    return Strays(count=count, oldest_created_at=oldest)


def task_loads(conn: Connection) -> list[TaskLoad]:
    """What task instances want and hold, by pool, in two statements.

    Complexity: reads the task instances that are scheduled, queued or running, by Airflow's index on the state.
    """
    loads: dict[str, TaskLoad] = {}
    tasks = _TASKS.where(_TASK.working_set.is_(True)) if keeps_tries_together(conn) else _TASKS
    for row in conn.execute(tasks):
        known = loads.get(row.pool, TaskLoad(pool=row.pool))
        if row.state == TASK_WAITS:
            known = attrs.evolve(known, waiting=row.instances, oldest_scheduled_at=row.oldest)
        else:
            known = attrs.evolve(
                known,
                held=known.held + row.instances,
                held_pool_slots=known.held_pool_slots + int(row.pool_slots or 0),
            )
        loads[row.pool] = known
    return sorted(loads.values(), key=lambda load: load.pool)
