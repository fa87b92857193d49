"""What happened in a stretch of time, from Airflow's tables and ours: who waited since when, and held a slot until when.

Nothing here writes, and `read_only` has the database refuse it if something did. Rows come in the database's own
order, a few thousand at a time, so that a month of history needs no more memory than what is made of it.

Airflow keeps one row for each task instance and one for each of its tries that are over, in a table of their own or, from 3.4 on,
in the same. A row knows its last turn only: when it was last scheduled, queued, begun and ended. What a task did before it
was deferred, or put off by a sensor, is gone.

Complexity: O(rows of both tables of task instances), since Airflow has no index on their times; our own tables are read by
an index where there is one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    and_,
    exists,
    func,
    or_,
    select,
    text,
    true,
)

from callback_priority.core.classes import SCHEDULER_SCOPE, Level, ServiceClass
from callback_priority.core.journal import Entry, from_json
from callback_priority.core.units import Milliweight
from callback_priority.persistence.airflow_tables import (
    CALLBACK_TYPE_EXECUTOR,
    SCHEDULER_JOB,
    TASK_HOLDS_SLOTS,
    TASK_WAITS,
    callback_table,
    dag_run_table,
    job_table,
    keeps_tries_together,
    task_instance_history_table,
    task_instance_table,
)
from callback_priority.persistence.tables import (
    ItemState,
    flow_table,
    item_table,
    journal_table,
    unit_table,
)

__all__ = [
    "ROWS_AT_A_TIME",
    "CallbackTurn",
    "JournalledPass",
    "SchedulerJob",
    "TaskTurn",
    "callback_turns",
    "callbacks_without_item",
    "journalled_passes",
    "read_only",
    "scheduler_jobs",
    "span",
    "task_turns",
    "weights",
]

ROWS_AT_A_TIME: Final = 2_000
"""How many rows are fetched together."""

_ITEM = item_table.c
_UNIT = unit_table.c
_JOB = job_table.c
_RUN = dag_run_table.c
_CALLBACK = callback_table.c
_JOURNAL = journal_table.c
_FLOW = flow_table.c
_LIVES: Final = (TASK_WAITS, *TASK_HOLDS_SLOTS)


@attrs.frozen(kw_only=True)
class TaskTurn:
    """A task instance's turn: it waited for a slot, and held one.

    Args:
        dag_id: Its Dag.
        task_id: Its task.
        run_id: Its Dag run.
        map_index: Which of a mapped task it is; -1 if it is of none.
        logical_date: The logical date of its Dag run; ``None`` for a run without, or one that is gone.
        pool: Its pool.
        pool_slots: Slots of the pool that it takes.
        priority_weight: Its priority; the highest goes first.
        state: Where it stands now, or how the try ended.
        scheduled_at: Since when it waited.
        queued_at: When it was granted a slot; ``None`` if it still waits.
        started_at: When its process began; ``None`` if it did not.
        ended_at: When it ended; ``None`` if it did not.
        job_id: The scheduler that granted it; ``None`` if none did.
    """

    dag_id: str
    task_id: str
    run_id: str
    map_index: int
    logical_date: datetime | None
    pool: str
    pool_slots: int
    priority_weight: int
    state: str | None
    scheduled_at: datetime
    queued_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    job_id: int | None


@attrs.frozen(kw_only=True)
class CallbackTurn:
    """A callback's item: it waited for a slot, and held one.

    Args:
        callback_id: The callback, which decides between equal ranks.
        service_class: Its class.
        dag_id: Its Dag; empty if it has none.
        pool: The pool that it draws on.
        priority: Its priority within its class.
        state: Where it stands now.
        enqueued_at: Since when it waited.
        granted_at: When it was last granted a slot; ``None`` if it never was.
        ended_at: When its worker was through with it; ``None`` if that is not recorded.
        finished_at: When its scheduler knew that it was over, and its slot free; ``None`` if it does not.
        job_id: The scheduler that granted it; ``None`` if none did.
        attempts: How often it was granted a slot.
        rides: Whether it ran in another callback's slot.
    """

    callback_id: UUID
    service_class: ServiceClass
    dag_id: str
    pool: str
    priority: int
    state: ItemState
    enqueued_at: datetime
    granted_at: datetime | None
    ended_at: datetime | None
    finished_at: datetime | None
    job_id: int | None
    attempts: int
    rides: bool


@attrs.frozen(kw_only=True)
class SchedulerJob:
    """A scheduler that was there.

    Args:
        job_id: Its row in Airflow's ``job`` table.
        began_at: Since when.
        last_seen_at: When it last said that it lives, or ended.
    """

    job_id: int
    began_at: datetime
    last_seen_at: datetime


@attrs.frozen(kw_only=True)
class JournalledPass:
    """A pass through the critical section that changed the flows, from the journal.

    Args:
        job_id: The scheduler whose pass it was.
        at: When.
        entry: What it did.
    """

    job_id: int
    at: datetime
    entry: Entry


@contextlib.contextmanager
def read_only(conn: Connection) -> Iterator[Connection]:
    """Have the database refuse writes on a connection, and show one moment's data where it can.

    To be entered before anything is read. It is rolled back in the end.

    Args:
        conn: Connection to Airflow's metadata database, with no transaction begun.
    """
    name = conn.dialect.name
    if name == "sqlite":
        # No transaction around all of it: without a write-ahead log it would keep the schedulers from writing.
        conn.execute(text("PRAGMA query_only = ON"))
    elif name == "postgresql":
        conn.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
    else:
        conn.execute(text("START TRANSACTION READ ONLY"))
    try:
        yield conn
    finally:
        conn.rollback()
        if name == "sqlite":
            conn.execute(text("PRAGMA query_only = OFF"))
            conn.rollback()


def span(conn: Connection) -> tuple[datetime, datetime] | None:
    """When the first of which there is a record began to wait, and when the last grant was; ``None`` if there was none."""
    first: list[datetime] = []
    last: list[datetime] = []
    times = [(each.rows.c.scheduled_dttm, each.rows.c.queued_dttm) for each in _tries(conn)]
    for since, granted in (*times, (_ITEM.enqueued_at, _ITEM.granted_at)):
        began, ended = conn.execute(select(func.min(since), func.max(granted))).one()
        first += [] if began is None else [began]
        last += [] if ended is None else [ended]
    return (min(first), max(last)) if first and last else None


def task_turns(conn: Connection, *, since: datetime, until: datetime) -> Iterator[TaskTurn]:
    """The turns of task instances that waited or held a slot at some time between two moments, in no order.

    A try that is over and stands in its instance's own row still is told once. Those that never waited, as empty
    operators do, are left out; so are those that were taken out of the line before they were granted a slot.

    Args:
        conn: Connection to Airflow's metadata database.
        since: What was over before is left out.
        until: What began to wait then or later is left out.
    """
    now, past = _tries(conn)
    told = exists().where(
        now.chosen,
        *(now.rows.c[name] == past.rows.c[name] for name in (*now.identity, "queued_dttm")),
    )
    # What was put aside while it waited was never granted a slot.
    over = and_(~told, past.rows.c.state != TASK_WAITS)
    for statement, may_live in (
        (_turns(now, since, until), True),
        (_turns(past, since, until).where(over), False),
    ):
        for row in _stream(conn, statement):
            turn = _turn(row)
            if turn is not None and _is_within(turn, since, may_live=may_live):
                yield turn


@attrs.frozen(kw_only=True)
class _Tries:
    """Where rows of task instances are.

    Args:
        rows: The table, which may have others too.
        chosen: Which of its rows they are.
        identity: The columns that tell whose a try is; the last is the map index.
    """

    rows: FromClause
    chosen: ColumnElement[bool]
    identity: tuple[str, ...]


def _tries(conn: Connection) -> tuple[_Tries, _Tries]:
    """Where task instances are as they stand now, and where their tries that are over."""
    identity = ("dag_id", "run_id", "task_id")
    now = task_instance_table
    if not keeps_tries_together(conn):
        old = (*identity, "map_index")
        return (
            _Tries(rows=now, chosen=true(), identity=old),
            _Tries(rows=task_instance_history_table, chosen=true(), identity=old),
        )
    new = (*identity, "region_id", "region_index")
    past = now.alias("past")
    return (
        _Tries(rows=now, chosen=now.c.working_set.is_(True), identity=new),
        _Tries(rows=past, chosen=past.c.working_set.is_(None), identity=new),
    )


def _turns(source: _Tries, since: datetime, until: datetime) -> Select[Any]:
    column = source.rows.c
    columns = select(
        column.dag_id,
        column.task_id,
        column.run_id,
        column[source.identity[-1]].label("map_index"),
        _RUN.logical_date,
        column.state,
        column.pool,
        column.pool_slots,
        column.priority_weight,
        column.scheduled_dttm,
        column.queued_dttm,
        column.start_date,
        column.end_date,
        column.queued_by_job_id,
    )
    runs = source.rows.join(
        dag_run_table, and_(_RUN.dag_id == column.dag_id, _RUN.run_id == column.run_id), isouter=True
    )
    return columns.select_from(runs).where(
        source.chosen,
        column.scheduled_dttm < until,
        or_(column.end_date.is_(None), column.end_date >= since, column.queued_dttm >= since),
    )


def _turn(row: Any) -> TaskTurn | None:
    """What a row tells; ``None`` if its instance neither waits nor held a slot since it was last scheduled."""
    scheduled, queued, ended = row.scheduled_dttm, row.queued_dttm, row.end_date
    # A row keeps the times of its turn before until they are overwritten.
    granted = row.state != TASK_WAITS and queued is not None and queued >= scheduled
    if not granted and row.state != TASK_WAITS:
        return None
    return TaskTurn(
        dag_id=row.dag_id,
        task_id=row.task_id,
        run_id=row.run_id,
        map_index=row.map_index,
        logical_date=row.logical_date,
        pool=row.pool,
        pool_slots=row.pool_slots,
        priority_weight=row.priority_weight or 0,
        state=row.state,
        scheduled_at=scheduled,
        queued_at=queued if granted else None,
        started_at=row.start_date if granted else None,
        ended_at=ended if granted and ended is not None and ended >= queued else None,
        job_id=row.queued_by_job_id if granted else None,
    )


def _is_within(turn: TaskTurn, since: datetime, *, may_live: bool) -> bool:
    if turn.ended_at is not None:
        return turn.ended_at >= since
    return (may_live and turn.state in _LIVES) or (turn.queued_at or turn.scheduled_at) >= since


def callback_turns(conn: Connection, *, since: datetime, until: datetime) -> Iterator[CallbackTurn]:
    """The callbacks that waited or held a slot at some time between two moments, in no order.

    Those that the triggerer took are told too, never granted a slot.

    Args:
        conn: Connection to Airflow's metadata database.
        since: What was over before is left out.
        until: What began to wait then or later is left out.
    """
    statement = (
        select(
            _ITEM.callback_id,
            _ITEM.service_class,
            _ITEM.dag_id,
            _ITEM.pool,
            _ITEM.priority,
            _ITEM.state,
            _ITEM.enqueued_at,
            _ITEM.granted_at,
            _ITEM.finished_at,
            _ITEM.scheduler_job_id,
            _ITEM.attempts,
            _ITEM.leader_id,
            _UNIT.ended_at,
        )
        .join_from(item_table, unit_table, _UNIT.callback_id == _ITEM.callback_id, isouter=True)
        .where(_ITEM.enqueued_at < until, or_(_ITEM.finished_at.is_(None), _ITEM.finished_at >= since))
    )
    for row in _stream(conn, statement):
        yield CallbackTurn(
            callback_id=row.callback_id,
            service_class=ServiceClass(row.service_class),
            dag_id=row.dag_id,
            pool=row.pool,
            priority=row.priority,
            state=ItemState(row.state),
            enqueued_at=row.enqueued_at,
            granted_at=row.granted_at,
            ended_at=row.ended_at,
            finished_at=row.finished_at,
            job_id=row.scheduler_job_id,
            attempts=row.attempts,
            rides=row.leader_id is not None,
        )


def callbacks_without_item(conn: Connection, *, since: datetime, until: datetime) -> int:
    """How many of Airflow's own callbacks were made in a stretch of time and have no item, in one statement.

    Airflow does not record when they waited and ran.
    """
    statement = select(func.count()).where(
        _CALLBACK.type == CALLBACK_TYPE_EXECUTOR,
        _CALLBACK.created_at >= since,
        _CALLBACK.created_at < until,
        ~exists().where(_ITEM.callback_id == _CALLBACK.id),
    )
    return int(conn.scalars(statement).one())


def scheduler_jobs(conn: Connection, *, since: datetime, until: datetime) -> list[SchedulerJob]:
    """The schedulers that were there at some time between two moments, in one statement."""
    last_seen = func.coalesce(_JOB.end_date, _JOB.latest_heartbeat, _JOB.start_date)
    statement = (
        select(_JOB.id, _JOB.start_date, last_seen.label("last_seen"))
        .where(_JOB.job_type == SCHEDULER_JOB, _JOB.start_date < until, last_seen >= since)
        .order_by(_JOB.id)
    )
    return [
        SchedulerJob(job_id=job_id, began_at=began, last_seen_at=last)
        for job_id, began, last in conn.execute(statement)
    ]


def journalled_passes(conn: Connection, *, since: datetime, until: datetime) -> Iterator[JournalledPass]:
    """The passes between two moments that changed the flows, in their order; none where no journal is kept.

    Raises:
        ValueError: If an entry was written by a newer version of this library.
    """
    statement = (
        select(_JOURNAL.scheduler_job_id, _JOURNAL.written_at, _JOURNAL.entry)
        .where(_JOURNAL.written_at >= since, _JOURNAL.written_at < until)
        .order_by(_JOURNAL.id)
    )
    for job_id, at, entry in _stream(conn, statement):
        yield JournalledPass(job_id=job_id, at=at, entry=from_json(entry))


def weights(conn: Connection) -> dict[ServiceClass, Milliweight]:
    """The weights by which the schedulers last shared their slots, of the classes that had any; in one statement."""
    statement = select(_FLOW.service_class, _FLOW.weight).where(
        _FLOW.level == Level.SCHEDULER.value, _FLOW.scope == SCHEDULER_SCOPE
    )
    return {ServiceClass(cls): Milliweight(weight) for cls, weight in conn.execute(statement)}


def _stream(conn: Connection, statement: Select[Any]) -> Iterator[Any]:
    with conn.execute(statement, execution_options={"yield_per": ROWS_AT_A_TIME}) as rows:
        yield from rows
