"""History is read as it was written, in any amount, and nothing can be written meanwhile."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Boolean, Column, Connection, Integer, MetaData, String, Table, insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateTable

from callback_priority.core.classes import SCHEDULER_SCOPE, FlowKey, Level, ServiceClass
from callback_priority.core.journal import Entry, Movement
from callback_priority.persistence import deployment, history, journal
from callback_priority.persistence.airflow_tables import job_table
from callback_priority.persistence.tables import ItemState, UtcDateTime, flow_table, item_table, unit_table
from tests.persistence.conftest import callback

mine = MetaData()
dag_run = Table(
    "dag_run",
    mine,
    Column("id", Integer, primary_key=True),
    Column("dag_id", String(250)),
    Column("run_id", String(250)),
    Column("logical_date", UtcDateTime),
)


def _instances(name: str, metadata: MetaData, *more: Column) -> Table:
    return Table(
        name,
        metadata,
        Column("number", Integer, primary_key=True),
        Column("dag_id", String(250)),
        Column("task_id", String(250)),
        Column("run_id", String(250)),
        *(Column(each.name, each.type) for each in more),
        Column("state", String(20)),
        Column("pool", String(256)),
        Column("pool_slots", Integer),
        Column("priority_weight", Integer),
        Column("scheduled_dttm", UtcDateTime),
        Column("queued_dttm", UtcDateTime),
        Column("start_date", UtcDateTime),
        Column("end_date", UtcDateTime),
        Column("queued_by_job_id", Integer),
    )


INDEX = Column("map_index", Integer)
task_instance = _instances("task_instance", mine, INDEX)
task_instance_history = _instances("task_instance_history", mine, INDEX)
all_tries = _instances(
    "task_instance",
    MetaData(),
    Column("region_id", String(32)),
    Column("region_index", Integer),
    Column("working_set", Boolean),
)
"""As Airflow 3.4 keeps them."""
JOB_COLUMNS = {"job_type": String(30), "start_date": UtcDateTime(), "end_date": UtcDateTime()}


@pytest.fixture
def past(conn: Connection) -> Connection:
    """The tables of Airflow's that history is read from, empty."""
    for table in mine.sorted_tables:
        conn.exec_driver_sql(str(CreateTable(table).compile(dialect=conn.dialect)))
    for name, kind in JOB_COLUMNS.items():
        conn.exec_driver_sql(f"ALTER TABLE job ADD COLUMN {name} {kind.compile(conn.dialect)}")
    return conn


def ran(
    now: datetime, since: float | None, queued: float | None, end: float | None, **more
) -> dict[str, object]:
    def at(seconds: float | None) -> datetime | None:
        return None if seconds is None else now + timedelta(seconds=seconds)

    return {
        "dag_id": "a",
        "task_id": "t",
        "run_id": "r",
        "map_index": -1,
        "state": "success",
        "pool": "default_pool",
        "pool_slots": 1,
        "priority_weight": 1,
        "scheduled_dttm": at(since),
        "queued_dttm": at(queued),
        "start_date": at(queued),
        "end_date": at(end),
        "queued_by_job_id": 7,
        **more,
    }


def turns(conn: Connection, now: datetime, first: float = 0, last: float = 100) -> list[history.TaskTurn]:
    found = history.task_turns(
        conn, since=now + timedelta(seconds=first), until=now + timedelta(seconds=last)
    )
    return sorted(found, key=lambda turn: turn.task_id)


def test_turns_that_touch_the_stretch_are_told(past: Connection, now: datetime) -> None:
    """Those that waited or held a slot in it; not what was over before, or began to wait after."""
    rows = [
        ran(now, -50, -40, -30, task_id="over"),
        ran(now, -50, -40, 5, task_id="reaches in"),
        ran(now, 10, 20, 30, task_id="within"),
        ran(now, 90, 150, 160, task_id="reaches out"),
        ran(now, 100, 150, 160, task_id="after"),
        ran(now, -50, -40, None, task_id="runs since", state="running"),
        ran(now, -50, None, None, task_id="waits since", state="scheduled"),
        ran(now, -50, -40, None, task_id="lost long ago", state="failed"),
        ran(now, None, None, 7, task_id="never waited"),
        ran(now, 1, None, 7, task_id="taken out of the line", state="skipped"),
    ]
    past.execute(insert(task_instance), rows)
    found = turns(past, now)
    assert [turn.task_id for turn in found] == [
        "reaches in",
        "reaches out",
        "runs since",
        "waits since",
        "within",
    ]
    within = found[-1]
    assert within.scheduled_at == now + timedelta(seconds=10)
    assert within.queued_at == within.started_at == now + timedelta(seconds=20)
    assert within.ended_at == now + timedelta(seconds=30)
    assert (within.pool, within.pool_slots, within.priority_weight, within.job_id) == (
        "default_pool",
        1,
        1,
        7,
    )
    assert found[3].queued_at is None


def test_a_row_that_waits_anew_does_not_tell_of_the_turn_before(past: Connection, now: datetime) -> None:
    past.execute(insert(task_instance), [ran(now, 50, 10, 20, state="scheduled")])
    (found,) = turns(past, now)
    assert (found.queued_at, found.ended_at, found.job_id) == (None, None, None)


def test_tries_that_are_over_are_told_once(past: Connection, now: datetime) -> None:
    """Airflow keeps them in a table of their own, and the last in its instance's own row until it is scheduled again."""
    past.execute(
        insert(task_instance_history),
        [ran(now, 1, 2, 3, state="failed"), ran(now, 10, 11, 12, state="failed")],
    )
    past.execute(insert(task_instance), [ran(now, 10, 11, 12, state="up_for_retry")])
    assert sorted(turn.scheduled_at - now for turn in turns(past, now)) == [
        timedelta(seconds=1),
        timedelta(seconds=10),
    ]


def keep_tries_together(conn: Connection) -> None:
    conn.exec_driver_sql("DROP TABLE task_instance")
    conn.exec_driver_sql("DROP TABLE task_instance_history")
    conn.exec_driver_sql(str(CreateTable(all_tries).compile(dialect=conn.dialect)))


def test_tries_in_one_table_are_told_once(past: Connection, now: datetime) -> None:
    """As Airflow 3.4 keeps them: a try that is over is out of the working set, and its successor has its times at first."""
    keep_tries_together(past)

    def row(*times: float | None, works: bool = False, region: str = "", **more) -> dict[str, object]:
        found = ran(now, *times, **more)
        del found["map_index"]
        return {**found, "region_id": region, "region_index": 4, "working_set": True if works else None}

    past.execute(
        insert(all_tries),
        [
            row(1, 2, 3, state="failed"),
            row(10, 11, 12, state="failed"),
            row(10, 11, 12, state="up_for_retry", works=True),
            row(10, 11, 12, region="another"),
            row(20, None, None, task_id="put aside while it waited", state="scheduled"),
            row(-9, -8, None, task_id="put aside before it began", state="queued"),
            row(30, None, None, task_id="u", state="scheduled", works=True),
        ],
    )
    assert sorted((turn.task_id, turn.scheduled_at - now, turn.map_index) for turn in turns(past, now)) == [
        ("t", timedelta(seconds=1), 4),
        ("t", timedelta(seconds=10), 4),
        ("t", timedelta(seconds=10), 4),
        ("u", timedelta(seconds=30), 4),
    ]
    assert history.span(past) == (now - timedelta(seconds=9), now + timedelta(seconds=11))


@pytest.mark.parametrize("together", [False, True])
def test_tries_that_were_put_aside_want_and_hold_nothing(
    past: Connection, now: datetime, *, together: bool
) -> None:
    """Airflow 3.4 leaves the state that they had."""
    rows = [ran(now, 10, None, None, state="scheduled"), ran(now, 20, None, None, state="scheduled")]
    rows.append(ran(now, 1, 2, None, state="queued", pool_slots=3))
    table = task_instance
    if together:
        keep_tries_together(past)
        table = all_tries
        aside = [ran(now, 1, None, None, state="scheduled"), ran(now, 1, 2, None, state="running")]
        for each in [*rows, *aside]:
            del each["map_index"]
        rows = [
            *({**each, "working_set": True} for each in rows),
            *({**each, "working_set": None} for each in aside),
        ]
    past.execute(insert(table), rows)
    (load,) = deployment.task_loads(past)
    assert (load.waiting, load.oldest_scheduled_at) == (2, now + timedelta(seconds=10))
    assert (load.held, load.held_pool_slots) == (1, 3)


def test_what_decides_between_equal_priorities_comes_along(past: Connection, now: datetime) -> None:
    past.execute(insert(dag_run), [{"id": 1, "dag_id": "a", "run_id": "r", "logical_date": now}])
    past.execute(
        insert(task_instance), [ran(now, 1, 2, 3, map_index=4), ran(now, 1, 2, 3, task_id="u", run_id="s")]
    )
    first, second = turns(past, now)
    assert (first.logical_date, first.run_id, first.map_index) == (now, "r", 4)
    assert second.logical_date is None


def test_a_long_history_comes_in_pieces(past: Connection, now: datetime) -> None:
    number = 2 * history.ROWS_AT_A_TIME + 1
    past.execute(insert(task_instance), [ran(now, 1, 2, 3, map_index=each) for each in range(number)])
    found = history.task_turns(past, since=now, until=now + timedelta(seconds=10))
    assert next(found).pool == "default_pool"
    assert sum(1 for _ in found) == number - 1


def item(
    now: datetime, since: float, granted: float | None, finished: float | None, **more
) -> dict[str, object]:
    def at(seconds: float | None) -> datetime | None:
        return None if seconds is None else now + timedelta(seconds=seconds)

    return {
        "callback_id": uuid4(),
        "service_class": "deadline",
        "kind": "deadline",
        "pool": "alerts",
        "dag_id": "a",
        "priority": 3,
        "rank": 0,
        "state": "done" if finished is not None else "granted" if granted is not None else "waiting",
        "enqueued_at": at(since),
        "granted_at": at(granted),
        "finished_at": at(finished),
        "scheduler_job_id": 7,
        "attempts": 1,
        "charge": 0,
        "leader_id": None,
        **more,
    }


def test_callbacks_are_told_with_what_their_workers_reported(past: Connection, now: datetime) -> None:
    """If anything did; one that rode in another's slot is told apart."""
    rows = [
        item(now, 1, 5, 9),
        item(now, 2, 6, None),
        item(now, 3, None, None),
        item(now, 4, 5, 9, leader_id=uuid4()),
        item(now, -9, -8, -7),
        item(now, 100, None, None),
    ]
    past.execute(insert(item_table), rows)
    ended = now + timedelta(seconds=8)
    unit = {
        "callback_id": rows[0]["callback_id"],
        "request_id": uuid4(),
        "position": 0,
        "name": "f",
        "target": "executor",
        "reference": "",
        "ended_at": ended,
    }
    past.execute(insert(unit_table), [unit])
    found = sorted(
        history.callback_turns(past, since=now, until=now + timedelta(seconds=100)),
        key=lambda turn: turn.enqueued_at,
    )
    assert [turn.enqueued_at - now for turn in found] == [timedelta(seconds=at) for at in (1, 2, 3, 4)]
    assert [turn.state for turn in found] == [
        ItemState.DONE,
        ItemState.GRANTED,
        ItemState.WAITING,
        ItemState.DONE,
    ]
    assert [turn.rides for turn in found] == [False, False, False, True]
    assert [turn.ended_at for turn in found] == [ended, None, None, None]
    assert (found[0].granted_at, found[0].finished_at) == (
        now + timedelta(seconds=5),
        now + timedelta(seconds=9),
    )
    assert (found[0].service_class, found[0].pool, found[0].priority) == (ServiceClass.DEADLINE, "alerts", 3)


def test_callbacks_without_a_record_are_counted(past: Connection, now: datetime) -> None:
    ours, theirs, sent = (UUID(int=number) for number in range(1, 4))

    def row(callback_id: UUID, kind: str) -> dict[str, object]:
        return {
            "id": callback_id,
            "type": kind,
            "state": "success",
            "data": "{}",
            "priority_weight": 1,
            "created_at": now,
        }

    past.execute(
        insert(callback), [row(ours, "executor"), row(theirs, "executor"), row(sent, "dag_processor")]
    )
    past.execute(insert(item_table), [item(now, 0, None, None, callback_id=ours)])
    until = now + timedelta(seconds=1)
    assert history.callbacks_without_item(past, since=now, until=until) == 1
    assert history.callbacks_without_item(past, since=until, until=until + timedelta(days=1)) == 0


def test_schedulers_that_were_there_are_told(past: Connection, now: datetime) -> None:
    """Until they ended, or were last heard of."""

    def row(number: int, began: float, heard: float, ended: float | None, kind: str = "SchedulerJob"):
        return {
            "id": number,
            "state": "running",
            "job_type": kind,
            "start_date": now + timedelta(seconds=began),
            "latest_heartbeat": now + timedelta(seconds=heard),
            "end_date": None if ended is None else now + timedelta(seconds=ended),
        }

    rows = [row(1, -9, -5, None), row(2, -9, 5, None), row(3, 5, 6, 8), row(4, 5, 6, 8, "TriggererJob")]
    past.execute(insert(job_table), rows)
    found = history.scheduler_jobs(past, since=now, until=now + timedelta(seconds=10))
    assert [(each.job_id, each.last_seen_at - now) for each in found] == [
        (2, timedelta(seconds=5)),
        (3, timedelta(seconds=8)),
    ]


def test_the_journal_is_told_in_its_order(past: Connection, now: datetime) -> None:
    key = FlowKey(Level.SCHEDULER, SCHEDULER_SCOPE, ServiceClass.TASK)
    for number in range(4):
        entry = Entry(movements={key: Movement(settled=number, holds=(number,))})
        journal.append(past, entry, job_id=7, now=now + timedelta(seconds=number))
    found = list(
        history.journalled_passes(past, since=now + timedelta(seconds=1), until=now + timedelta(seconds=3))
    )
    assert [each.entry.movements[key].holds for each in found] == [(1,), (2,)]
    assert [each.at - now for each in found] == [timedelta(seconds=1), timedelta(seconds=2)]


def test_the_span_is_from_the_first_wait_to_the_last_grant(past: Connection, now: datetime) -> None:
    assert history.span(past) is None
    past.execute(insert(task_instance), [ran(now, 5, 10, 300)])
    past.execute(insert(task_instance_history), [ran(now, 1, 2, 3)])
    past.execute(insert(item_table), [item(now, 8, 40, 50), item(now, 60, None, None)])
    assert history.span(past) == (now + timedelta(seconds=1), now + timedelta(seconds=40))


def test_the_weights_are_those_of_the_schedulers_own_flows(past: Connection) -> None:
    def flow(level: str, scope: str, weight: int) -> dict[str, object]:
        row = {column.name: 0 for column in flow_table.columns}
        return {
            **row,
            "level": level,
            "scope": scope,
            "service_class": "task",
            "weight": weight,
            "eligible": False,
        }

    past.execute(insert(flow_table), [flow("scheduler", "", 3_000), flow("pool", "default_pool", 1_000)])
    assert history.weights(past) == {ServiceClass.TASK: 3_000}


def test_nothing_can_be_written_meanwhile(past: Connection, now: datetime) -> None:
    """And afterwards it can again: a connection may go back to others."""
    past.commit()
    with history.read_only(past):
        assert history.span(past) is None
        with pytest.raises(DBAPIError, match=r"read.?only"):
            past.execute(insert(item_table), [item(now, 1, None, None)])
        past.rollback()
    past.execute(insert(item_table), [item(now, 1, None, None)])
