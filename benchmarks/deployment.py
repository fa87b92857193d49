"""A deployment of a given size on PostgreSQL, and the steps of one real scheduler in it.

One row of each kind is made by Airflow's own code; the others are copies of it, made inside the database, so
that a million rows take seconds. Nothing of the deployment changes from one measured turn to the next: what a
turn granted is put back, and the tables are vacuumed.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from time import perf_counter
from typing import Any

import attrs
import psycopg2.extensions
from sqlalchemy import event, text

from tests.support.airflow_env import use_database

__all__ = ["Deployment", "Turn", "counting", "deployed"]

TASKS_PER_RUN = 100
WORK_RUNS_PER_DAG = 5
ALERT_RUNS_PER_DAG = 50
UPKEEP_NEVER = 1e9


@attrs.frozen(kw_only=True)
class Turn:
    """What one turn of a scheduler took and did.

    Args:
        task_seconds: The critical section with its commit; for us everything.
        callback_seconds: Airflow's callback step with its commit.
        task_statements: Statements sent to the database in ``task_seconds``, without BEGIN and COMMIT.
        statements: The same, in all.
        tasks: Task instances granted.
        callbacks: Callbacks granted.
    """

    task_seconds: float
    callback_seconds: float
    task_statements: int
    statements: int
    tasks: int
    callbacks: int

    @property
    def seconds(self) -> float:
        """Both steps."""
        return self.task_seconds + self.callback_seconds


class _CountingCursor(psycopg2.extensions.cursor):
    """Counts what goes to the server: psycopg2's ``executemany`` sends one statement for each row."""

    statements: list[str] | None = None

    def execute(self, query, vars=None):  # noqa: A002 - psycopg2's name
        self._note(query)
        return super().execute(query, vars)

    def executemany(self, query, vars_list):
        rows = list(vars_list)
        for _ in rows:
            self._note(query)
        return super().executemany(query, rows)

    @classmethod
    def _note(cls, query: Any) -> None:
        if cls.statements is not None:
            cls.statements.append(query.decode() if isinstance(query, bytes) else str(query))


@contextmanager
def counting() -> Iterator[list[str]]:
    """Collect the statements that cursors of any deployment send meanwhile."""
    _CountingCursor.statements = found = []
    try:
        yield found
    finally:
        _CountingCursor.statements = None


@attrs.define(kw_only=True)
class Deployment:
    """A metadata database with a scheduler's job in it.

    Args:
        sessions: Makes sessions as Airflow's own factory does.
        engine: Its engine.
    """

    sessions: Any
    engine: Any
    runner: Any = None
    executor: Any = None
    allocator: Any = None

    # Rows --------------------------------------------------------------------------------------------------

    def fill(self, *, tasks: int, pending: int, finished: int) -> None:
        """Make what waits and what is history.

        Args:
            tasks: Scheduled task instances, in Dag runs of a hundred.
            pending: Callbacks of missed deadlines, each of a Dag run of its own.
            finished: Callbacks that have run, with the items that the library keeps of them.
        """
        from tests.support.scheduler import Bench

        bench = Bench()
        run = bench.dag("seed")
        callback_id = self._missed_deadline(run)
        bench.tasks(1, dag_id="seed")
        with self.engine.begin() as connection:
            self._dags(connection, "alerts", max(1, pending), ALERT_RUNS_PER_DAG)
            self._callbacks(connection, callback_id, pending, finished)
            if tasks:
                self._dags(connection, "work", tasks // TASKS_PER_RUN, WORK_RUNS_PER_DAG)
                self._tasks(connection, tasks)
            for statement in (
                "DELETE FROM task_instance WHERE dag_id = 'seed'",
                "DELETE FROM deadline",
                f"DELETE FROM callback WHERE id = '{callback_id}'",
                f"DELETE FROM callback_priority_item WHERE callback_id = '{callback_id}'",
                "UPDATE slot_pool SET slots = 100000",
                "CREATE TABLE waiting_item AS SELECT * FROM callback_priority_item WHERE state = 'waiting'",
                "CREATE UNIQUE INDEX ON waiting_item (callback_id)",
            ):
                connection.execute(text(statement))
        self._vacuum("ANALYZE")

    def _missed_deadline(self, run: int) -> Any:
        """One deadline missed as Airflow does it, and its item written as the library does it."""
        from airflow.models.dagrun import DagRun
        from airflow.models.deadline import Deadline
        from airflow.sdk.definitions.callback import SyncCallback

        from callback_priority.adapter import callbacks
        from callback_priority.persistence import enqueueing
        from callback_priority.policy.settings import Settings

        settings = Settings()
        now = datetime.now(timezone.utc)
        with self.sessions() as session:
            definition = SyncCallback(
                "alerts.channels.page_on_call", {"channel": "#data-platform", "level": "high"}
            )
            deadline = Deadline(
                deadline_time=now,
                callback=definition,
                dagrun_id=run,
                deadline_alert_id=None,
                dag_id="seed",
            )
            callback = deadline.callback
            deadline.dagrun = session.get(DagRun, run)
            session.add(deadline)
            session.flush()
            deadline.handle_miss(session)
            new = callbacks.new_item(callback.id, callback.data, callback.priority_weight, settings)
            enqueueing.enqueue(
                session.connection(),
                [new],
                now=now,
                turn_length_us=settings.dag_turn_us,
                aging_us=settings.priority_aging_us,
            )
            session.commit()
            return callback.id

    def _dags(self, connection: Any, name: str, runs: int, per_dag: int) -> None:
        """Dags with as many runs each, at the same times and so of the same names."""
        from airflow.models.dag import DagModel
        from airflow.models.dag_version import DagVersion
        from airflow.models.dagrun import DagRun

        dags = -(-runs // per_dag)
        this = f"'{name}_' || n"
        self._copy(connection, DagModel, "dag_id = 'seed'", dags, {"dag_id": this})
        self._copy(
            connection, DagVersion, "dag_id = 'seed'", dags, {"id": "gen_random_uuid()", "dag_id": this}
        )
        self._copy(
            connection,
            DagRun,
            "dag_id = 'seed'",
            runs,
            {
                "dag_id": f"'{name}_' || (n - 1) % {dags} + 1",
                "run_id": f"'run_' || (n - 1) / {dags} + 1",
                "logical_date": f"logical_date + (n - 1) / {dags} * interval '1 hour'",
                "run_after": f"run_after + (n - 1) / {dags} * interval '1 hour'",
            },
            without=("id",),
        )

    def _tasks(self, connection: Any, count: int) -> None:
        from airflow.models.taskinstance import TaskInstance

        names = [column.name for column in TaskInstance.__table__.columns]
        values = {
            "id": "gen_random_uuid()",
            "dag_id": "run.dag_id",
            "run_id": "run.run_id",
            "task_id": "'task_' || n",
            "dag_version_id": "version.id",
            "scheduled_dttm": "run.logical_date",
        }
        connection.execute(
            text(
                f"INSERT INTO task_instance ({', '.join(names)}) "
                f"SELECT {', '.join(values.get(each, 'seed.' + each) for each in names)} "
                f"FROM task_instance seed, generate_series(1, {TASKS_PER_RUN}) AS n, dag_run run "
                "JOIN dag_version version ON version.dag_id = run.dag_id "
                "WHERE seed.dag_id = 'seed' AND run.dag_id LIKE 'work%'"
            )
        )
        found = connection.execute(text("SELECT count(*) FROM task_instance WHERE dag_id <> 'seed'")).scalar()
        assert found == count

    def _callbacks(self, connection: Any, seed: Any, pending: int, finished: int) -> None:
        """Finished ones first, as the older ones; keys as Airflow makes them, in the order of their making."""
        from airflow.models.callback import Callback

        from callback_priority.persistence.tables import item_table

        key = (
            "(lpad(to_hex({first} + n), 12, '0') || '7' || substr(md5(n::text), 1, 3) || '8'"
            " || substr(md5(n::text), 5, 15))::uuid"
        )
        done, waits = key.format(first=1_000_000), key.format(first=1_000_000_000)
        where = f"id = '{seed}'"
        runs = max(1, pending)
        connection.execute(
            text(
                "CREATE TEMPORARY TABLE runs AS SELECT id, dag_id, row_number() OVER (ORDER BY id) AS place "
                "FROM dag_run WHERE dag_id LIKE 'alerts%'"
            )
        )
        connection.execute(text("CREATE INDEX ON runs (place)"))
        run = f"JOIN runs ON runs.place = n % {runs} + 1"
        data = (
            "jsonb_set(jsonb_set(data, '{__var,dag_run_id}', to_jsonb(runs.id::text)),"
            " '{__var,dag_id}', to_jsonb(runs.dag_id))"
        )
        moment = "now() - interval '1 day' + n * interval '10 millisecond'"
        for count, callback_id, state in ((finished, done, "success"), (pending, waits, "pending")):
            self._copy(
                connection,
                Callback,
                where,
                count,
                {"id": callback_id, "data": data, "state": f"'{state}'", "created_at": moment},
                join=run,
            )
        where = f"callback_id = '{seed}'"
        own = {"dag_id": "runs.dag_id", "dag_run_id": "runs.id", "enqueued_at": moment}
        past = {
            **own,
            "callback_id": done,
            "state": "'done'",
            "turn": "NULL",
            "rank": "rank + n * 10000",
            "decided_at": moment,
            "granted_at": moment,
            "finished_at": f"{moment} + interval '5 second'",
            "scheduler_job_id": "1",
            "attempts": "1",
            "charge": "1000000",
        }
        # Turns of a Dag are ten seconds apart; the first of all Dags come before the second of any.
        turn = f"turn + 100000000 + n / {max(1, runs // ALERT_RUNS_PER_DAG)} * 10000000"
        now = {**own, "callback_id": waits, "turn": turn, "rank": turn.replace("turn", "rank")}
        self._copy(connection, item_table, where, finished, past, join=run)
        self._copy(connection, item_table, where, pending, now, join=run)

    @staticmethod
    def _copy(
        connection: Any,
        model: Any,
        where: str,
        count: int,
        values: Mapping[str, str],
        *,
        without: Collection[str] = (),
        join: str = "",
    ) -> None:
        """Copy the one row that ``where`` names, with some columns computed from ``n``, which counts from 1."""
        table = getattr(model, "__table__", model)
        names = [column.name for column in table.columns if column.name not in without]
        connection.execute(
            text(
                f"INSERT INTO {table.name} ({', '.join(names)}) "
                f"SELECT {', '.join(values.get(each, 'seed.' + each) for each in names)} "
                f"FROM (SELECT * FROM {table.name} WHERE {where}) AS seed "
                f"CROSS JOIN generate_series(1::bigint, {count}) AS n {join}"
            )
        )

    def _vacuum(self, options: str = "INDEX_CLEANUP ON") -> None:
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for table in ("task_instance", "callback", "callback_priority_item", "callback_priority_flow"):
                connection.execute(text(f"VACUUM ({options}) {table}"))
            if options == "ANALYZE":
                connection.execute(text("ANALYZE"))

    # Turns -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Enter a scheduler, with an allocator whose first sweep is done.

        Both sides are taken with Airflow's methods replaced: a scheduler without an allocator then runs
        Airflow's own, one call away.
        """
        from airflow.jobs.job import Job
        from airflow.jobs.scheduler_job_runner import SchedulerJobRunner

        from callback_priority.adapter.allocator import SlotAllocator
        from callback_priority.policy.settings import Mode, Settings
        from tests.support.scheduler import LoopExecutor

        self.executor = LoopExecutor(1)
        job = Job(job_type="SchedulerJob", state="running")
        with self.sessions() as session:
            session.add(job)
            session.commit()
        self.runner = SchedulerJobRunner(job=job, executors=[self.executor])
        self.executor.job_id = job.id
        # What upkeep does, it does by the clock and not by the turn: once here, and not while turns are timed.
        settings = Settings(
            mode=Mode.ACTIVE,
            sweep_interval_seconds=UPKEEP_NEVER,
            reconcile_interval_seconds=UPKEEP_NEVER,
            executor_retry_seconds=UPKEEP_NEVER,
        )
        self.allocator = SlotAllocator(self.runner, settings)
        with self.sessions() as session:
            self.allocator.callback_step(lambda: None, session)
            session.commit()

    def prepare(self, *, slots: int, tasks: int) -> None:
        """Put everything back to where it was filled, and free the slots.

        Args:
            slots: Free slots of the scheduler.
            tasks: The most task instances that one selection takes (``max_tis_per_query``).
        """
        self._put_back()
        self.executor.parallelism = self.runner._parallelism = slots
        self.runner.job.max_tis_per_query = tasks
        gc.collect()

    def stock_turn(self) -> Turn:
        """Airflow's two steps, the second one in its transaction of its own."""
        return self._turn()

    def our_turn(self) -> Turn:
        """The library's critical section, its hand-over, and what it leaves of the second step."""
        self.runner._callback_priority = self.allocator
        try:
            return self._turn()
        finally:
            del self.runner._callback_priority
            assert not self.allocator.breaker.failures

    def _turn(self) -> Turn:
        with counting() as statements:
            began = perf_counter()
            granted = self._critical_section()
            between, sent = perf_counter(), len(statements)
            self._callback_step()
            ended = perf_counter()
        tasks, callbacks = len(self.executor.queued_tasks), len(self.executor.queued_callbacks)
        assert tasks == granted
        return Turn(
            task_seconds=between - began,
            callback_seconds=ended - between,
            task_statements=sent,
            statements=len(statements),
            tasks=tasks,
            callbacks=callbacks,
        )

    def _critical_section(self) -> int:
        """The last part of ``SchedulerJobRunner._do_scheduling``, as Airflow and as the hook have it."""
        from airflow.utils.sqlalchemy import prohibit_commit

        with self.sessions() as session:
            with prohibit_commit(session) as guard:
                granted = self.runner._critical_section_enqueue_task_instances(session=session)
                guard.commit()
            if "_callback_priority" in self.runner.__dict__:
                self.allocator.hand_over(session)
            session.expunge_all()
        return int(granted)

    def _callback_step(self) -> None:
        with self.sessions() as session:
            self.runner._enqueue_executor_callbacks(session)
            session.commit()

    def _put_back(self) -> None:
        """Undo the last turn: rows, executor, ledger; then vacuum."""
        from callback_priority.persistence.tables import item_table

        self.executor.queued_tasks.clear()
        self.executor.queued_callbacks.clear()
        ledger = self.allocator.ledger
        for hold in list(ledger):
            ledger.release(hold.key)
        ledger.collect(round(self.allocator.clock() * 1_000_000))
        ledger.settled()
        columns = ", ".join(f"{each.name} = saved.{each.name}" for each in item_table.columns)
        with self.engine.begin() as connection:
            for statement in (
                """
                UPDATE task_instance SET state = 'scheduled', queued_dttm = NULL, queued_by_job_id = NULL
                WHERE state = 'queued'
                """,
                "UPDATE callback SET state = 'pending' WHERE state = 'queued'",
                f"""
                UPDATE callback_priority_item item SET {columns} FROM waiting_item saved
                WHERE item.callback_id = saved.callback_id AND item.state <> 'waiting'
                """,
                "DELETE FROM callback_priority_flow",
            ):
                connection.execute(text(statement))
        self._vacuum()


@contextmanager
def deployed(url: str, *, tasks: int, pending: int, finished: int) -> Iterator[Deployment]:
    """Fill a migrated database and start a scheduler in it.

    Args:
        url: The database, on PostgreSQL.
        tasks: Scheduled task instances.
        pending: Pending callbacks.
        finished: Finished callbacks.
    """
    with use_database(url):
        from airflow import settings

        deployment = Deployment(sessions=settings.NonScopedSession, engine=settings.engine)
        event.listen(deployment.engine, "connect", _count_on)
        deployment.fill(tasks=tasks, pending=pending, finished=finished)
        deployment.start()
    # Airflow's own factory goes on to work on this database when the process points at another.
    try:
        yield deployment
    finally:
        deployment.engine.dispose()


def _count_on(connection: Any, _: Any) -> None:
    connection.cursor_factory = _CountingCursor
