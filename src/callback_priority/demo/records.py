"""What the metadata database says of a phase, read with nothing but SQL.

Three tables of Airflow's and one of the demo's are read, the same ones for stock and for the library:

* `task_instance`: since when an instance is scheduled (it waits), its start and its end.
* `deadline` joined with `callback`: since when a callback is due. A callback's row says nothing of when it became
  PENDING (it is made with its Dag run, long before), so its waiting is counted from the deadline that was missed,
  which is also what the person who waits for the alert would count from.
* `demo_callback_run`: when a callback started and ended. Stock Airflow keeps neither, and the library's own records
  exist only where the library is active. Watching `callback.state` would see the change when the scheduler gets
  round to it: seconds late exactly when stock's scheduler is busy handing out work. So the callbacks write it down
  themselves, into a table that the demo adds to its copies of the database. A callback counts as started from the
  creation of its process, which is what a task instance's start date is.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

import attrs

from callback_priority.demo.measure import NEVER, Run

__all__ = ["Counts", "DEADLINE", "Readiness", "TASK", "counts", "granted_items", "readiness", "runs"]

TASK: Final = "task"
DEADLINE: Final = "deadline"

_DONE: Final = frozenset({"success", "failed", "upstream_failed", "skipped"})


@attrs.frozen(kw_only=True)
class Counts:
    """How many workloads of a class there are now.

    Args:
        waiting: Those that have not started.
        running: Those that have started and not ended.
        done: Those that have ended.
        failed: Those among them that ended badly.
    """

    waiting: int
    running: int
    done: int
    failed: int


@attrs.frozen(kw_only=True)
class Readiness:
    """How far Airflow's start has come.

    Args:
        dags: The Dags that are there to run.
        jobs: The kinds of component that have reported themselves as running.
    """

    dags: frozenset[str]
    jobs: frozenset[str]


def readiness(database: Path) -> Readiness:
    """How far Airflow's start has come."""
    with _reading(database) as connection:
        dags = connection.execute(
            "SELECT dag.dag_id FROM dag JOIN serialized_dag ON serialized_dag.dag_id = dag.dag_id WHERE NOT is_paused"
        )
        jobs = connection.execute("SELECT job_type FROM job WHERE state = 'running'")
        return Readiness(dags=frozenset(row[0] for row in dags), jobs=frozenset(row[0] for row in jobs))


def counts(database: Path, origin: datetime, now: datetime) -> Mapping[str, Counts]:
    """How many task instances and deadline callbacks wait, run and are done now, of those that came since the origin."""
    with _reading(database) as connection:
        tasks = Counter(
            dict(
                connection.execute(
                    "SELECT state, count(*) FROM task_instance WHERE scheduled_dttm >= ? GROUP BY state",
                    (_text(origin),),
                )
            )
        )
        due, started, ended, failed = connection.execute(
            "SELECT count(*), count(started_at), count(ended_at), coalesce(sum(callback.state = 'failed'), 0)"
            " FROM deadline JOIN callback ON callback.id = callback_id"
            " LEFT JOIN demo_callback_run ON demo_callback_run.deadline_id = deadline.id"
            " WHERE deadline_time >= ? AND deadline_time < ?",
            (_text(origin), _text(now)),
        ).fetchone()
    return {
        TASK: Counts(
            waiting=tasks["scheduled"] + tasks["queued"],
            running=tasks["running"],
            done=sum(tasks[state] for state in _DONE),
            failed=tasks["failed"],
        ),
        DEADLINE: Counts(waiting=due - started, running=started - ended, done=ended, failed=failed),
    }


def runs(database: Path, origin: datetime, end: datetime) -> Sequence[Run]:
    """Every workload that waited or ran between two moments; times are seconds from the first.

    What came before the first is left out; what had not started or ended by the second has not at all.
    """
    found: list[Run] = []
    horizon = (end - origin).total_seconds()

    def seconds(text: str | None) -> float:
        moment = NEVER if text is None else (_moment(text) - origin).total_seconds()
        return moment if moment <= horizon else NEVER

    def since(stamp: float | None) -> float:
        moment = NEVER if stamp is None else stamp - origin.timestamp()
        return moment if moment <= horizon else NEVER

    with _reading(database) as connection:
        rows = connection.execute(
            "SELECT dag_id, scheduled_dttm, start_date, end_date FROM task_instance WHERE scheduled_dttm IS NOT NULL"
        )
        for dag_id, scheduled, started, ended in rows:
            found.append(
                Run(
                    service_class=TASK,
                    dag_id=dag_id,
                    waiting_at=seconds(scheduled),
                    started_at=seconds(started),
                    ended_at=seconds(ended),
                )
            )
        rows = connection.execute(
            "SELECT dag_run.dag_id, deadline_time, started_at, ended_at"
            " FROM deadline JOIN dag_run ON dag_run.id = dagrun_id"
            " LEFT JOIN demo_callback_run ON demo_callback_run.deadline_id = deadline.id"
        )
        for dag_id, due, started, ended in rows:
            found.append(
                Run(
                    service_class=DEADLINE,
                    dag_id=dag_id,
                    waiting_at=seconds(due),
                    started_at=since(started),
                    ended_at=since(ended),
                )
            )
    return [run for run in found if 0 <= run.waiting_at < NEVER]


def granted_items(database: Path) -> int:
    """How many callbacks the library has granted a slot; 0 under stock."""
    with _reading(database) as connection:
        row = connection.execute("SELECT count(*) FROM callback_priority_item WHERE granted_at IS NOT NULL")
        return int(row.fetchone()[0])


@contextlib.contextmanager
def _reading(database: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        yield connection


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc)


def _text(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S.%f")
