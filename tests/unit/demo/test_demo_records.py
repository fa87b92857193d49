"""What the demo reads from a metadata database: only what came in the phase, with times from its start."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import datetime, timedelta, timezone

import pytest

from callback_priority.demo import records
from callback_priority.demo.measure import NEVER
from callback_priority.demo.records import DEADLINE, TASK, Counts

ORIGIN = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)

TABLES = """
CREATE TABLE task_instance (dag_id, state, scheduled_dttm, start_date, end_date);
CREATE TABLE dag_run (id, dag_id);
CREATE TABLE callback (id, state);
CREATE TABLE deadline (id, dagrun_id, callback_id, deadline_time);
CREATE TABLE demo_callback_run (deadline_id, started_at, ended_at);
CREATE TABLE dag (dag_id, is_paused);
CREATE TABLE serialized_dag (dag_id);
CREATE TABLE job (job_type, state);
CREATE TABLE callback_priority_item (granted_at);
"""


def _at(seconds: float) -> str:
    return (ORIGIN + timedelta(seconds=seconds)).strftime("%Y-%m-%d %H:%M:%S.%f")


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(TABLES)
        connection.executemany(
            "INSERT INTO task_instance VALUES (?, ?, ?, ?, ?)",
            [
                ("ingest", "success", _at(-9), _at(-8), _at(-7)),
                ("ingest", "success", _at(1), _at(2.5), _at(4)),
                ("ingest", "running", _at(1), _at(3), None),
                ("ingest", "queued", _at(2), None, None),
                ("ingest", "scheduled", _at(2), None, None),
                ("ingest", None, None, None, None),
            ],
        )
        connection.execute("INSERT INTO dag_run VALUES (1, 'billing')")
        for number, (due, started, ended, state) in enumerate(
            [
                (-5.0, -4.0, -3.0, "success"),
                (1.0, 2.0, 3.0, "success"),
                (1.0, 2.0, 12.0, "running"),
                (1.0, None, None, "queued"),
                (60.0, None, None, "scheduled"),
            ]
        ):
            connection.execute("INSERT INTO callback VALUES (?, ?)", (number, state))
            connection.execute("INSERT INTO deadline VALUES (?, 1, ?, ?)", (number, number, _at(due)))
            if started is not None:
                stamps = (ORIGIN.timestamp() + started, ORIGIN.timestamp() + ended)
                connection.execute("INSERT INTO demo_callback_run VALUES (?, ?, ?)", (number, *stamps))
    return path


def test_runs_are_those_of_the_phase_with_times_from_its_start(database):
    found = records.runs(database, ORIGIN, ORIGIN + timedelta(seconds=10))
    times = {
        name: sorted(
            (run.waiting_at, run.started_at, run.ended_at) for run in found if run.service_class == name
        )
        for name in (TASK, DEADLINE)
    }
    assert times[TASK] == [(1.0, 2.5, 4.0), (1.0, 3.0, NEVER), (2.0, NEVER, NEVER), (2.0, NEVER, NEVER)]
    assert times[DEADLINE] == [(1.0, 2.0, 3.0), (1.0, 2.0, NEVER), (1.0, NEVER, NEVER)]
    assert {run.dag_id for run in found if run.service_class == DEADLINE} == {"billing"}


def test_counts_are_of_this_moment(database):
    counts = records.counts(database, ORIGIN, ORIGIN + timedelta(seconds=10))
    assert counts[TASK] == Counts(waiting=2, running=1, done=1, failed=0)
    assert counts[DEADLINE] == Counts(waiting=1, running=0, done=2, failed=0)


def test_a_dag_is_ready_when_it_is_serialized_and_not_paused(database):
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.executescript(
            "INSERT INTO dag VALUES ('a', 0), ('b', 1), ('c', 0);"
            "INSERT INTO serialized_dag VALUES ('a'), ('b');"
            "INSERT INTO job VALUES ('SchedulerJob', 'running'), ('TriggererJob', 'failed');"
        )
    ready = records.readiness(database)
    assert ready.dags == {"a"}
    assert ready.jobs == {"SchedulerJob"}


def test_reading_changes_nothing(database):
    before = database.read_bytes()
    records.runs(database, ORIGIN, ORIGIN)
    assert records.granted_items(database) == 0
    assert database.read_bytes() == before
