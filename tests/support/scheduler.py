"""Airflow's real scheduler in this process, with rows to schedule and an executor that runs nothing.

The executor takes workloads as a real one does and reports each as ended after a number of scheduler loops, so
that hundreds of loops take seconds. What it cannot show (processes, events between processes) is for the tests
with real executors.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import datetime, timedelta, timezone
from typing import Any

import attrs
import uuid6
from sqlalchemy import func, insert, select, update

__all__ = [
    "Bench",
    "FakeClock",
    "LoopExecutor",
    "Statements",
    "around",
    "hooked",
    "scheduler",
    "workload_key",
]

START = datetime(2026, 1, 1, tzinfo=timezone.utc)


@attrs.define
class FakeClock:
    """A clock that goes on when told to: the executor tells it, once for each scheduler loop."""

    seconds: float = 1_000.0

    def __call__(self) -> float:
        return self.seconds

    def utcnow(self) -> datetime:
        return START + timedelta(seconds=self.seconds)


def _executor_class() -> type[Any]:
    from airflow.executors import workloads
    from airflow.executors.base_executor import BaseExecutor
    from airflow.executors.executor_utils import ExecutorName
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from airflow.utils.state import CallbackState, TaskInstanceState

    from callback_priority.compat.executors import queued_callbacks, queued_connection_tests, queued_tasks
    from callback_priority.compat.keys import is_callback, is_connection_test

    sorts = getattr(workloads, "WorkloadType", None)

    class Says(BaseExecutor):
        """Says what it runs as an executor of this version of Airflow does."""

        if sorts is None:
            supports_callbacks = True
            supports_connection_test = True
        else:
            supported_workload_types = frozenset(sorts)
            supports_task_instance_uuid = True

    class _LoopExecutor(Says):
        """Holds each workload for some scheduler loops, then reports that it succeeded."""

        is_local = False

        def __init__(
            self,
            parallelism: int,
            *,
            task_loops: int = 1,
            callback_loops: int = 1,
            fills_running: bool = True,
            clock: FakeClock | None = None,
            alias: str | None = None,
            team_name: str | None = None,
            each_loop: Callable[[], None] | None = None,
            takes: int | None = None,
        ) -> None:
            super().__init__(parallelism=parallelism, team_name=team_name)
            if alias:
                self.name = ExecutorName(f"tests.{alias}", alias, team_name)
            self.loops = {"task": task_loops, "callback": callback_loops, "test": callback_loops}
            self.each_loop = each_loop
            self.takes = takes
            self.fills_running = fills_running
            self.clock = clock
            self.now = 0
            self.inside: dict[Any, int] = {}
            self.started: list[tuple[int, str, Any]] = []
            self.held: Counter[str] = Counter()
            self.most_inside = 0
            self.task_ids: dict[Any, str] = {}

        @staticmethod
        def kind(key: Any) -> str:
            return "callback" if is_callback(key) else "test" if is_connection_test(key) else "task"

        def start(self) -> None:
            pass

        def end(self) -> None:
            pass

        def _get_workloads_to_schedule(self, open_slots: int) -> Any:
            # What Airflow's own method would be asked for by an executor that takes fewer than it has room for.
            return super()._get_workloads_to_schedule(
                open_slots if self.takes is None else min(open_slots, self.takes)
            )

        def _process_workloads(self, workload_items: Any) -> None:
            for workload in workload_items:
                key = workload_key(self, workload)
                if hasattr(workload, "ti"):
                    self.task_ids[key] = workload.ti.task_id
                queues = (queued_tasks(self), queued_callbacks(self), queued_connection_tests(self))
                assert any(queue.pop(key, None) for queue in queues)
                assert key not in self.inside, f"{key} runs already"
                self.started.append((self.now, self.kind(key), key))
                self.inside[key] = self.now + self.loops[self.kind(key)]
                if self.fills_running:
                    self.running.add(key)
            self.most_inside = max(self.most_inside, len(self.inside))

        def sync(self) -> None:
            for key in self.inside:
                self.held[self.kind(key)] += 1
            self.now += 1
            if self.clock is not None:
                self.clock.seconds += 1.0
            ended = [key for key, until in self.inside.items() if until <= self.now]
            self._finish_tasks([key for key in ended if self.kind(key) == "task"])
            for key in ended:
                del self.inside[key]
                state = CallbackState.SUCCESS if self.kind(key) == "callback" else TaskInstanceState.SUCCESS
                self.report_end(key, state)
            if self.each_loop is not None:
                self.each_loop()

        def report_end(self, key: Any, state: Any) -> None:
            """Say that a workload has ended."""
            self.change_state(key, state)

        def change_state(self, key: Any, *args: Any, **kwargs: Any) -> None:
            """Forget it too, as CeleryExecutor does: nothing is heard of it any more."""
            super().change_state(key, *args, **kwargs)
            self.inside.pop(key, None)

        @staticmethod
        def _finish_tasks(keys: list[Any]) -> None:
            """Write the state as a task's own process does, before its executor hears of the end."""
            if keys:
                with create_session() as session:
                    attempts = [key.id for key in keys if hasattr(key, "id")]
                    session.execute(
                        update(TaskInstance)
                        .where(
                            TaskInstance.id.in_(attempts) if attempts else TaskInstance.filter_for_tis(keys)
                        )
                        .values(state=TaskInstanceState.SUCCESS)
                        .execution_options(synchronize_session=False)
                    )

        def count(self, kind: str) -> int:
            """How many of a kind were started."""
            return sum(1 for _, each, _ in self.started if each == kind)

        def order(self, kind: str) -> list[Any]:
            """The identifiers of a kind in the order in which they were started."""
            keys = [key for _, each, key in self.started if each == kind]
            return [uuid.UUID(str(key)) if kind == "callback" else self.task_ids[key] for key in keys]

        def share(self, kind: str) -> float:
            """A kind's share of the slot-time held."""
            return self.held[kind] / max(1, self.held.total())

    return _LoopExecutor


def workload_key(executor: Any, workload: Any) -> Any:
    """By what an executor of this version of Airflow knows a workload."""
    if hasattr(executor, "get_workload_key"):
        return executor.get_workload_key(workload)
    if hasattr(workload, "ti"):
        return workload.ti.key
    return workload.key if hasattr(workload, "key") else workload.callback.key


def around(original: Any, wrapper: Callable[[Any], Any]) -> Any:
    """What one of the allocator's methods is handed of Airflow's, with Airflow's own code wrapped."""
    return (
        wrapper(original)
        if callable(original)
        else attrs.evolve(original, original=wrapper(original.original))
    )


def LoopExecutor(*args: Any, **kwargs: Any) -> Any:  # noqa: N802 - a class that exists once Airflow is imported
    """An executor for `scheduler`; see `_executor_class`."""
    return _executor_class()(*args, **kwargs)


@attrs.define
class Bench:
    """Rows for a scheduler to schedule, written straight to the tables."""

    dags: dict[str, tuple[str, uuid.UUID, int]] = attrs.field(factory=dict)

    def dag(
        self, dag_id: str = "work", *, max_active_tasks: int = 100_000, bundle: str = "dags-folder"
    ) -> int:
        """Make sure there is such a Dag with a running run; returns the run's key."""
        from airflow.models.dag import DagModel
        from airflow.models.dag_version import DagVersion
        from airflow.models.dagbundle import DagBundleModel
        from airflow.models.dagrun import DagRun
        from airflow.utils.session import create_session
        from airflow.utils.state import DagRunState
        from airflow.utils.types import DagRunTriggeredByType, DagRunType

        if dag_id in self.dags:
            return self.dags[dag_id][2]
        with create_session() as session:
            if session.get(DagBundleModel, bundle) is None:
                session.add(DagBundleModel(name=bundle))
                session.flush()
            session.add(
                DagModel(
                    dag_id=dag_id,
                    bundle_name=bundle,
                    fileloc=f"/dags/{dag_id}.py",
                    relative_fileloc=f"{dag_id}.py",
                    is_paused=False,
                    is_stale=False,
                    max_active_tasks=max_active_tasks,
                    max_active_runs=16,
                    max_consecutive_failed_dag_runs=0,
                    has_task_concurrency_limits=False,
                    timetable_summary=None,
                )
            )
            session.flush()
            version = DagVersion(dag_id=dag_id, version_number=1, bundle_name=bundle)
            session.add(version)
            run = DagRun(
                dag_id=dag_id,
                run_id="run",
                logical_date=START,
                run_type=DagRunType.MANUAL,
                state=DagRunState.RUNNING,
                run_after=START,
                start_date=START,
                triggered_by=DagRunTriggeredByType.TEST,
                data_interval=(START, START),
            )
            session.add(run)
            session.flush()
            self.dags[dag_id] = ("run", version.id, run.id)
            return run.id

    def tasks(
        self,
        count: int,
        *,
        dag_id: str = "work",
        pool: str = "default_pool",
        width: int = 1,
        priority: int = 1,
    ) -> None:
        """Task instances in state scheduled."""
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session

        self.dag(dag_id)
        run_id, version_id, _ = self.dags[dag_id]
        table = TaskInstance.__table__
        place = "map_index" if "map_index" in table.c else "region_index"
        with create_session() as session:
            first = session.scalar(select(func.count()).select_from(TaskInstance)) or 0
            rows = [
                {
                    "id": uuid6.uuid7(),
                    "dag_id": dag_id,
                    "task_id": f"task_{number}",
                    "run_id": run_id,
                    place: -1,
                    "try_number": 1,
                    "max_tries": 0,
                    "state": "scheduled",
                    "pool": pool,
                    "pool_slots": width,
                    "queue": "default",
                    "priority_weight": priority,
                    "operator": "PythonOperator",
                    "custom_operator_name": "PythonOperator",
                    "dag_version_id": version_id,
                    "executor_config": {},
                    "unixname": "test",
                    "hostname": "",
                }
                for number in range(first, first + count)
            ]
            for at in range(0, count, 1000):
                session.execute(insert(TaskInstance.__table__), rows[at : at + 1000])

    def callbacks(
        self,
        count: int,
        *,
        dag_id: str = "alerts",
        data: Mapping[str, Any] | None = None,
        state: str = "pending",
        priority: int = 1,
        executor: str | None = None,
    ) -> list[uuid.UUID]:
        """Executor callbacks as a missed deadline leaves them; ``data`` changes or (``None``) drops fields."""
        from airflow.models.callback import Callback
        from airflow.utils.session import create_session

        run = self.dag(dag_id)
        fields = {
            "path": "builtins.print",
            "kwargs": {"context": {}},
            "executor": executor,
            "dag_run_id": str(run),
            "dag_id": dag_id,
            "prefix": "deadline_alerts",
            **(data or {}),
        }
        fields = {name: value for name, value in fields.items() if value is not ...}
        ids = [uuid6.uuid7() for _ in range(count)]
        with create_session() as session:
            for at in range(0, count, 1000):
                session.execute(
                    insert(Callback.__table__),
                    [
                        {
                            "id": each,
                            "type": "executor",
                            "fetch_method": "import_path",
                            "data": fields,
                            "state": state,
                            "priority_weight": priority,
                            "created_at": START,
                        }
                        for each in ids[at : at + 1000]
                    ],
                )
        return ids

    def deadlines(self, count: int, *, dag_id: str = "alerts") -> list[uuid.UUID]:
        """Deadlines that the next loop finds missed; returns their callbacks, which are not pending yet."""
        from airflow.models.deadline import Deadline
        from airflow.utils.session import create_session

        run = self.dag(dag_id)
        ids = self.callbacks(count, dag_id=dag_id, state="scheduled", data={"dag_run_id": ..., "dag_id": ...})
        with create_session() as session:
            session.execute(
                insert(Deadline.__table__),
                [
                    {
                        "id": uuid6.uuid7(),
                        "created_at": START,
                        "last_updated_at": START,
                        "dagrun_id": run,
                        "deadline_time": START,
                        "missed": False,
                        "callback_id": each,
                    }
                    for each in ids
                ],
            )
        return ids

    def pool(self, name: str, slots: int) -> None:
        """Make or change a pool."""
        from airflow.models.pool import Pool
        from airflow.utils.session import create_session

        with create_session() as session:
            Pool.create_or_update_pool(name, slots, "", False, session=session)

    @staticmethod
    def task_states() -> Counter[str]:
        """How many task instances are in each state."""
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session

        with create_session() as session:
            rows = session.execute(select(TaskInstance.state, func.count()).group_by(TaskInstance.state))
            return Counter({str(state): count for state, count in rows})

    @staticmethod
    def callback_states() -> Counter[str]:
        """How many callbacks are in each state."""
        from airflow.models.callback import Callback
        from airflow.utils.session import create_session

        with create_session() as session:
            rows = session.execute(select(Callback.state, func.count()).group_by(Callback.state))
            return Counter(dict(rows.all()))

    @staticmethod
    def outputs() -> dict[uuid.UUID, str | None]:
        """The output of each callback."""
        from airflow.models.callback import Callback
        from airflow.utils.session import create_session

        with create_session() as session:
            return dict(session.execute(select(Callback.id, Callback.output)).all())  # type: ignore[arg-type]

    @staticmethod
    def items() -> list[Any]:
        """The item rows."""
        from airflow.utils.session import create_session

        from callback_priority.persistence.tables import item_table

        with create_session() as session:
            return list(session.execute(select(item_table).order_by(item_table.c.rank)).all())

    @staticmethod
    def flows() -> list[Any]:
        """The flow rows."""
        from airflow.utils.session import create_session

        from callback_priority.persistence.tables import flow_table

        key = (flow_table.c.level, flow_table.c.scope, flow_table.c.service_class)
        with create_session() as session:
            return list(session.execute(select(flow_table).order_by(*key)).all())


@attrs.define
class Statements:
    """What is sent to the database; an executemany counts as the statements it sends."""

    sent: list[str] = attrs.field(factory=list)
    listening: bool = True

    @contextmanager
    def recorded(self) -> Iterator[Statements]:
        """Record while the block runs."""
        from airflow import settings
        from sqlalchemy import event

        def note(
            _conn: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool
        ) -> None:
            if self.listening:
                # One insert of many rows comes with the parameters of all of them in one mapping.
                self.sent += [statement] * (len(parameters) if many and isinstance(parameters, list) else 1)

        event.listen(settings.engine, "before_cursor_execute", note)
        try:
            yield self
        finally:
            event.remove(settings.engine, "before_cursor_execute", note)

    def writes(self, *tables: str) -> list[str]:
        """The statements that change one of these tables; any table if none is named."""
        found = [
            each for each in self.sent if each.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE"))
        ]
        return [each for each in found if not tables or _written_table(each) in tables]

    @staticmethod
    def table_of(statement: str) -> str:
        """The table that a statement writes to."""
        return _written_table(statement)


def _written_table(statement: str) -> str:
    words = statement.replace("(", " ").split()
    return words[1 if words[0].upper() == "UPDATE" else 2].strip('"')


@contextmanager
def hooked() -> Iterator[None]:
    """Airflow's methods replaced; what the settings say is for each scheduler's allocator."""
    import os

    import airflow.jobs.scheduler_job_runner  # noqa: F401

    from callback_priority.adapter import hook

    if hook.installed():
        yield
        return
    name = "AIRFLOW__CALLBACK_PRIORITY__MODE"
    before = os.environ.get(name)
    os.environ[name] = "active"
    try:
        assert hook.install()
        yield
    finally:
        hook.uninstall()
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def scheduler(
    *executors: Any,
    parallelism: int | None = None,
    settings: Any = None,
    clock: Callable[[], float] | None = None,
    max_tis_per_query: int = 16,
    idle_sleep_seconds: float = 0,
) -> Iterator[Callable[[int], Any]]:
    """A scheduler job; yields a function that runs that many loops and returns the runner.

    With settings, Airflow's methods are replaced for as long as it lives.

    Args:
        executors: Its executors.
        parallelism: Its slots; the first executor's if not given.
        settings: Settings of the slot loop; stock Airflow if ``None``.
        clock: What the slot loop takes for the time.
        max_tis_per_query: Airflow's cap on one selection of task instances.
        idle_sleep_seconds: How long an idle loop sleeps.
    """
    from airflow.jobs.job import Job
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
    from airflow.utils.session import create_session

    job = Job(job_type="SchedulerJob", state="running")
    job.max_tis_per_query = max_tis_per_query
    with create_session() as session:
        session.add(job)
        session.flush()
    runner = SchedulerJobRunner(
        job=job, executors=list(executors), num_runs=1, scheduler_idle_sleep_time=idle_sleep_seconds
    )
    runner._parallelism = parallelism or executors[0].parallelism
    for executor in executors:
        executor.job_id = job.id
        executor.start()
    if settings is not None:
        from callback_priority.adapter.allocator import SlotAllocator

        times = {} if clock is None else {"clock": clock, "utcnow": clock.utcnow}  # type: ignore[attr-defined]
        runner._callback_priority = SlotAllocator(runner, settings, **times)

    def run(loops: int) -> Any:
        runner.num_runs = loops
        if loops:  # none would mean without end
            runner._run_scheduler_loop()
        return runner

    try:
        with nullcontext() if settings is None else hooked():
            yield run
    finally:
        for executor in executors:
            executor.end()
