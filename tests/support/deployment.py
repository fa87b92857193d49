"""A whole Airflow for a test: its real components as processes, in a home, a database and a broker of its own."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import attrs
import httpx
import psutil
import sqlalchemy as sa

from tests.support.airflow_env import AirflowHome, Backend, DatabaseTemplates, use_database
from tests.support.forks import Forks, Launcher, Process
from tests.support.postgres import PostgresServer
from tests.support.redis import RedisServer
from tests.support.servers import free_port

__all__ = ["Deployment", "DeploymentError", "Executor", "deployed"]

Executor = Literal["LocalExecutor", "CeleryExecutor"]
Options = Mapping[str, Mapping[str, object]]
T = TypeVar("T")

MODULES = Path(__file__).parents[1] / "deployment" / "modules"
"""What every process can import: the callbacks' recorder, triggers, callables that the triggerer can reach."""

_API_SERVER = "api-server"
_CELERY_WORKER = "celery-worker"
_REPLICA = re.compile(r"-\d+$")
_JOB_TYPES: Mapping[str, str] = {
    "scheduler": "SchedulerJob",
    "dag-processor": "DagProcessorJob",
    "triggerer": "TriggererJob",
}
_START_SECONDS = 90.0
_PATIENCE_SECONDS = 120.0
_GRACE_SECONDS = 8.0
_POLL_SECONDS = 0.1
_TAIL_LINES = 25
_TAIL_WIDTH = 400

# Intervals that let a test end soon. Two cores run all of this, so nothing polls more often than it is worth.
_BRISK: Options = {
    "api": {"workers": 1},
    "callbacks": {"callback_execution_timeout": 120},
    "celery": {"sync_parallelism": 1, "worker_enable_remote_control": False, "worker_prefetch_multiplier": 1},
    "core": {"dags_are_paused_at_creation": False, "parallelism": 8},
    "dag_processor": {
        "bundle_refresh_check_interval": 2,
        "min_file_process_interval": 600,
        "parsing_processes": 2,
        "refresh_interval": 5,
    },
    "scheduler": {
        "enable_health_check": False,
        "enable_tracemalloc": False,
        "num_stuck_in_queued_retries": 0,
        "scheduler_idle_sleep_time": 0.2,
        # Long, for a busy machine; a test that wants one to run out moves the moment back: `backdate`.
        "task_instance_heartbeat_timeout": 120,
        "task_instance_heartbeat_timeout_detection_interval": 1,
        "task_queued_timeout": 120,
        "task_queued_timeout_check_interval": 2,
        "use_job_schedule": False,
    },
    "triggerer": {"job_heartbeat_sec": 2},
    "workers": {"min_heartbeat_interval": 1},
}


class DeploymentError(AssertionError):
    """What was waited for did not happen, or a component ended by itself; with the ends of all logs."""


@attrs.define(kw_only=True)
class _Component:
    name: str
    process: Process
    log: Path
    jobs_before: int
    log_before: int

    def processes(self) -> list[psutil.Process]:
        """Everything that runs because of this component and was not moved out of its session."""
        found: dict[int, psutil.Process] = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.process.pid)
            found = {each.pid: each for each in (root, *root.children(recursive=True))}
        for pid in psutil.pids():
            with contextlib.suppress(OSError, psutil.NoSuchProcess):
                if os.getsid(pid) == self.process.pid:
                    found.setdefault(pid, psutil.Process(pid))
        alive = []
        for each in found.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                if each.status() != psutil.STATUS_ZOMBIE:
                    alive.append(each)
        return alive

    def kill(self) -> None:
        """SIGKILL to all of it, those included that start meanwhile."""
        for _ in range(20):
            left = self.processes()
            for each in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
            psutil.wait_procs([each for each in left if each.pid != self.process.pid], timeout=2)
            if not left:
                break
        self.process.wait()


@attrs.define(kw_only=True)
class Deployment:
    """A whole Airflow of real processes. Made by `deployed`, or in tests by the fixture ``deploy``.

    ::

        def test_something(deploy):
            airflow = deploy(
                executor="CeleryExecutor",  # or LocalExecutor, the default
                backend="postgresql",  # the default; "sqlite" only with LocalExecutor
                dags=[DAGS / "forms.py"],  # copied into the Dags folder
                callback_priority={"mode": "active", "use_worker_callbacks": "all"},
                options={"core": {"parallelism": 4}},
                environment={"AIRFLOW_CONN_SMTP_DEFAULT": sink.connection_uri},
            )
            airflow.start()  # every component, until all are ready
            airflow.wait_for_dags("forms")  # parsed and serialized
            airflow.trigger("forms", "run_1", conf={"a": 1})
            airflow.wait_for_run("forms", "run_1", "failed")
            airflow.wait_until(lambda: len(airflow.records()) == 3, "three callbacks")
            airflow.kill("dag-processor")  # SIGKILL; `stop` asks first; `start("dag-processor")` brings it back

    Components (`components`): ``api-server`` (its execution API alone; the public one and the pages cost more to start
    than all else together), ``scheduler``, ``dag-processor``, ``triggerer`` and, for Celery, ``celery-worker``. They are
    forked from a process that has Airflow imported, unless `launchers` says otherwise. A number makes a replica:
    ``replicas={"scheduler": 2}`` has `start` start ``scheduler`` and ``scheduler-2``, and any other can be named
    (``start("triggerer-2")``).
    The servers below can be killed as well: ``airflow.postgres.kill()``, then ``start()``, where they are the
    test's own.

    Everything waits by polling with a deadline. A wait fails at once when a component ended that nobody stopped, and
    every failure shows the ends of all logs, which stay in `logs`. `tests/deployment/modules` is importable in every
    process; its ``callback_recorder`` writes what `records` reads, with the component that a callback ran in.
    At the end everything is killed, whatever happened.

    Args:
        home: The Airflow home.
        database_url: The metadata database.
        executor: ``[core] executor``.
        components: What `start` starts if not told otherwise, in this order.
        environment: All environment variables of the processes; changes count for what is started later.
        port: Where the API server listens.
        postgres: The database's server, if it is PostgreSQL.
        redis: The broker, if there is one.
        launchers: Start components, by kind, in other ways than by a fork.
        concurrency: How many processes a Celery worker has.
    """

    home: AirflowHome
    database_url: str
    executor: Executor
    components: tuple[str, ...]
    environment: dict[str, str]
    port: int
    postgres: PostgresServer | None = None
    redis: RedisServer | None = None
    launchers: dict[str, Launcher] = attrs.field(factory=dict)
    concurrency: int = 8
    forks: Forks = attrs.field(init=False)
    _running: dict[str, _Component] = attrs.field(factory=dict, init=False)
    _engine: sa.Engine = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._engine = sa.create_engine(self.database_url, pool_pre_ping=True)
        self.logs.mkdir(parents=True, exist_ok=True)
        self.record_path.touch()
        self.forks = Forks(self.home.path)

    # Components

    @property
    def logs(self) -> Path:
        """The components' logs, one file each; tasks' logs are below `task_logs`."""
        return self.home.path / "components"

    @property
    def task_logs(self) -> Path:
        """``[logging] base_log_folder``."""
        return self.home.path / "logs"

    def start(self, *names: str) -> None:
        """Start components (all of `components` if none is named) and wait until they are ready."""
        self.launch(*(names or self.components))
        self._wait_until_ready(names or self.components)

    def launch(self, *names: str) -> None:
        """Start components and wait for nothing."""
        for name in names:
            self._start(name)

    def stop(self, *names: str) -> None:
        """Ask components (all that run if none is named) to end, wait a little, then kill what is left of them."""
        components = [self._running.pop(name) for name in names or tuple(self._running)]
        for component in components:
            component.process.terminate()
        deadline = time.monotonic() + _GRACE_SECONDS
        for component in components:
            with contextlib.suppress(subprocess.TimeoutExpired):
                component.process.wait(max(0.0, deadline - time.monotonic()))
        for component in components:
            component.kill()

    def kill(self, *names: str) -> None:
        """Kill components (all that run if none is named), and all processes below them, without asking."""
        for name in names or tuple(self._running):
            self._running.pop(name).kill()

    def processes(self, name: str) -> list[psutil.Process]:
        """The processes of a running component, its children included."""
        return self._running[name].processes()

    def ended(self) -> dict[str, int]:
        """The components that ended by themselves, with their status; `kill` tidies up after one."""
        found = {name: each.process.poll() for name, each in self._running.items()}
        return {name: status for name, status in found.items() if status is not None}

    def check(self) -> None:
        """Do nothing while all that was started runs.

        Raises:
            DeploymentError: Something ended by itself.
        """
        for component in self._running.values():
            status = component.process.poll()
            if status is not None:
                raise DeploymentError(f"{component.name} ended with status {status}\n{self.tails()}")

    def log(self, name: str) -> str:
        """What a component logged; all its starts together."""
        path = self.logs / f"{name}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def tails(self) -> str:
        """The ends of all components' logs."""
        parts = []
        for path in sorted(self.logs.glob("*.log")):
            lines = self.log(path.stem).splitlines()[-_TAIL_LINES:]
            parts.append("\n".join([f"--- {path}", *(f"    {line[:_TAIL_WIDTH]}" for line in lines)]))
        return "\n".join(parts)

    def airflow(self, *arguments: str) -> str:
        """Run an ``airflow`` command to its end; what it printed."""
        return self.forks.run(arguments, self.environment)

    def configure(self, section: str, name: str, value: object) -> None:
        """Set an Airflow option for components that are started from now on."""
        self.environment[f"AIRFLOW__{section.upper()}__{name.upper()}"] = str(value)

    # Waiting

    def wait_until(
        self,
        what: Callable[[], T],
        message: str,
        seconds: float = _PATIENCE_SECONDS,
        *,
        every: float = _POLL_SECONDS,
    ) -> T:
        """Poll until ``what()`` is truthy, and return it.

        Args:
            what: What to ask.
            message: What is waited for, for the failure's message.
            seconds: How long.
            every: Seconds between two questions.

        Raises:
            DeploymentError: It did not become true in time, or a component ended by itself.
        """
        deadline = time.monotonic() + seconds
        while True:
            answer = what()
            if answer:
                return answer
            self.check()
            if time.monotonic() > deadline:
                raise DeploymentError(
                    f"{message}: not within {seconds:g} s; last answer: {answer!r}\n"
                    f"runs: {self._run_states()}\ntasks: {self._task_states()}\n{self.tails()}"
                )
            time.sleep(every)

    def wait_for_dags(self, *dag_ids: str, seconds: float = _PATIENCE_SECONDS) -> None:
        """Wait until these Dags are serialized.

        Raises:
            DeploymentError: One is not, or a Dag file cannot be imported.
        """

        def parsed() -> bool:
            broken = self.rows("SELECT filename, stacktrace FROM import_error")
            if broken:
                raise DeploymentError(f"a Dag file cannot be imported: {broken}")
            return set(dag_ids) <= {row.dag_id for row in self.rows("SELECT dag_id FROM serialized_dag")}

        self.wait_until(parsed, f"Dags {dag_ids} are serialized", seconds)

    def wait_for_run(self, dag_id: str, run_id: str, *states: str, seconds: float = _PATIENCE_SECONDS) -> str:
        """Wait until a Dag run is in one of these states (success or failed if none is named); returns it."""
        wanted = states or ("success", "failed")
        return self.wait_until(
            lambda: (state := self.run_state(dag_id, run_id)) in wanted and state,
            f"run {run_id} of {dag_id} is {' or '.join(wanted)}",
            seconds,
        )  # type: ignore[return-value]

    def wait_for_task(
        self, dag_id: str, run_id: str, task_id: str, *states: str, seconds: float = _PATIENCE_SECONDS
    ) -> str:
        """Wait until a task instance is in one of these states; returns it."""
        return self.wait_until(
            lambda: (state := self.task_state(dag_id, run_id, task_id)) in states and state,
            f"task {task_id} of run {run_id} of {dag_id} is {' or '.join(states)}",
            seconds,
        )  # type: ignore[return-value]

    # What users do

    def trigger(
        self,
        dag_id: str,
        run_id: str,
        *,
        conf: Mapping[str, object] | None = None,
        logical_date: str | None = None,
    ) -> None:
        """Start a run of a Dag, as the public API does; from this process, which has Airflow imported."""
        from airflow.api.common.trigger_dag import trigger_dag
        from airflow.utils.types import DagRunTriggeredByType

        date = None if logical_date is None else dt.datetime.fromisoformat(logical_date)
        with use_database(self.database_url):
            trigger_dag(
                dag_id=dag_id,
                run_id=run_id,
                conf=dict(conf or {}),
                logical_date=date,
                run_after=date,
                triggered_by=DagRunTriggeredByType.REST_API,
            )

    def pause(self, dag_id: str) -> None:
        """Pause a Dag."""
        self.airflow("dags", "pause", dag_id, "--yes")

    # The database

    @contextlib.contextmanager
    def connect(self) -> Iterator[sa.Connection]:
        """A connection to the metadata database, in a transaction that is committed at the end."""
        with self._engine.begin() as connection:
            yield connection

    def rows(self, statement: str | sa.sql.ClauseElement, **values: object) -> list[Any]:
        """The rows that an SQL statement (text with ``:name``, or a construct) finds."""
        clause = sa.text(statement) if isinstance(statement, str) else statement
        with self.connect() as connection:
            return list(connection.execute(clause, values))  # type: ignore[call-overload]

    def value(self, statement: str | sa.sql.ClauseElement, **values: object) -> Any:
        """The first column of the first row, or ``None``."""
        found = self.rows(statement, **values)
        return found[0][0] if found else None

    def execute(self, statement: str | sa.sql.ClauseElement, **values: object) -> int:
        """Change rows; how many."""
        clause = sa.text(statement) if isinstance(statement, str) else statement
        with self.connect() as connection:
            return int(connection.execute(clause, values).rowcount)  # type: ignore[call-overload]

    def run_state(self, dag_id: str, run_id: str) -> str | None:
        """The state of a Dag run."""
        return self.value(
            "SELECT state FROM dag_run WHERE dag_id = :dag_id AND run_id = :run_id",
            dag_id=dag_id,
            run_id=run_id,
        )

    def task_state(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> str | None:
        """The state of a task instance."""
        return self.value(
            "SELECT state FROM task_instance WHERE dag_id = :dag_id AND run_id = :run_id"
            " AND task_id = :task_id AND map_index = :map_index",
            dag_id=dag_id,
            run_id=run_id,
            task_id=task_id,
            map_index=map_index,
        )

    def backdate(self, moment: Literal["last_heartbeat_at", "queued_dttm"], dag_id: str, run_id: str) -> None:
        """Have a moment of a run's task instances be an hour ago, instead of waiting for a timeout."""
        column = {"last_heartbeat_at": "last_heartbeat_at", "queued_dttm": "queued_dttm"}[moment]
        self.execute(
            f"UPDATE task_instance SET {column} = :then WHERE dag_id = :dag_id AND run_id = :run_id",
            then=dt.datetime.now(tz=dt.timezone.utc) - dt.timedelta(hours=1),
            dag_id=dag_id,
            run_id=run_id,
        )

    def requests_left(self) -> int:
        """How many callback requests the Dag processor has not fetched yet."""
        return int(self.value("SELECT count(*) FROM callback WHERE type = 'dag_processor'"))

    # What ran

    @property
    def record_path(self) -> Path:
        """Where ``callback_recorder`` writes, a line of JSON each."""
        return self.home.path / "records.jsonl"

    def records(self, **fields: object) -> list[dict[str, Any]]:
        """What was recorded, in order; only the records with these values if any are given."""
        found = [json.loads(line) for line in self.record_path.read_text(encoding="utf-8").splitlines()]
        return [each for each in found if all(each.get(name) == value for name, value in fields.items())]

    # Inside

    def _start(self, name: str) -> None:
        if name in self._running:
            raise DeploymentError(f"{name} runs already")
        jobs = 0
        with contextlib.suppress(sa.exc.OperationalError):  # a test may have killed the database
            jobs = self.value("SELECT max(id) FROM job") or 0
        log = self.logs / f"{name}.log"
        log_before = len(self.log(name))
        environment = self.environment | {"CALLBACK_RECORDER_COMPONENT": name}
        launch = self.launchers.get(_kind(name), self.forks.launch)
        process = launch(name, self._command(name), environment, log)
        self._running[name] = _Component(
            name=name, process=process, log=log, jobs_before=jobs, log_before=log_before
        )

    def _command(self, name: str) -> list[str]:
        if name == _API_SERVER:
            return ["api-server", "--apps", "execution", "--port", str(self.port)]
        kind = _kind(name)
        if kind == _CELERY_WORKER:
            return [
                *("celery", "worker", "--skip-serve-logs", "--without-gossip", "--without-mingle"),
                *("--celery-hostname", f"{name}@localhost"),
                *("--queues", "default", "--concurrency", str(self.concurrency)),
            ]
        return [kind, *(["--skip-serve-logs"] if kind in {"scheduler", "triggerer"} else [])]

    def _wait_until_ready(self, names: Sequence[str]) -> None:
        for name in names:
            self.wait_until(lambda name=name: self.is_ready(name), f"{name} is ready", _START_SECONDS)

    def is_ready(self, name: str) -> bool:
        if name == _API_SERVER:
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"http://127.0.0.1:{self.port}/execution/health", timeout=10).is_success
            return False
        job_type = _JOB_TYPES.get(_kind(name))
        if job_type is None:
            return f"{name}@localhost ready." in self.log(name)[self._running[name].log_before :]
        before = self._running[name].jobs_before
        running = self.value(
            "SELECT count(*) FROM job WHERE job_type = :job_type AND state = 'running' AND id > :before",
            job_type=job_type,
            before=before,
        )
        # A job does not say whose it is: there must be one for each replica that was started since.
        replicas = [
            each
            for each in self._running.values()
            if _kind(each.name) == _kind(name) and each.jobs_before >= before
        ]
        return bool(running >= len(replicas))

    def _run_states(self) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.rows("SELECT dag_id, run_id, state FROM dag_run")]

    def _task_states(self) -> list[tuple[Any, ...]]:
        return [
            tuple(row) for row in self.rows("SELECT dag_id, task_id, try_number, state FROM task_instance")
        ]

    def close(self) -> None:
        """Kill what runs and let go of the database."""
        self.kill()
        self.forks.close()
        self._engine.dispose()


def _kind(name: str) -> str:
    """What a component is, whichever of its replicas."""
    return _REPLICA.sub("", name)


@contextlib.contextmanager
def deployed(
    directory: Path,
    *,
    databases: DatabaseTemplates,
    postgres: PostgresServer | None = None,
    redis: RedisServer | None = None,
    executor: Executor = "LocalExecutor",
    backend: Backend = "postgresql",
    dags: Sequence[Path] = (),
    plugins: Sequence[Path] = (),
    callback_priority: Mapping[str, object] | None = None,
    options: Options | None = None,
    environment: Mapping[str, str] | None = None,
    replicas: Mapping[str, int] | None = None,
    concurrency: int = 8,
) -> Iterator[Deployment]:
    """An Airflow of which nothing runs yet; everything is killed at the end.

    Args:
        directory: For the home; must not exist.
        databases: Where the migrated database is copied from.
        postgres: The server for `backend` "postgresql".
        redis: The broker for Celery.
        executor: Celery needs both servers.
        backend: The metadata database's kind.
        dags: Files to copy into the Dags folder.
        plugins: Files to copy into the plugins folder.
        callback_priority: The section of that name; the library is switched off if ``None``.
        options: More settings, by section and name, before and beside the ones that make Airflow brisk.
        environment: More environment variables.
        replicas: How many there are of a component, where it is not one.
        concurrency: How many processes a Celery worker has.
    """
    if executor == "CeleryExecutor" and (redis is None or backend != "postgresql"):
        raise ValueError("Celery needs PostgreSQL for its results and Redis for its messages")
    home = AirflowHome.create(directory)
    for path in dags:
        shutil.copy(path, home.dags_folder)
    (home.path / "plugins").mkdir()
    for path in plugins:
        shutil.copy(path, home.path / "plugins")
    with databases.copy(backend, postgres) as database:
        # SQLite has one writer at a time; half a minute of waiting for it beats an error.
        url = f"{database}?timeout=30" if backend == "sqlite" else database
        port, log_port, worker_log_port = (free_port() for _ in range(3))
        settings: dict[str, dict[str, object]] = {section: dict(values) for section, values in _BRISK.items()}
        fixed: Options = {
            "api": {"base_url": f"http://127.0.0.1:{port}", "host": "127.0.0.1", "port": port},
            "callback_priority": callback_priority or {"mode": "off"},
            "core": {
                "executor": executor,
                "execution_api_server_url": f"http://127.0.0.1:{port}/execution/",
            },
            "logging": {"trigger_log_server_port": log_port, "worker_log_server_port": worker_log_port},
        }
        if executor == "CeleryExecutor" and redis is not None:
            settings["celery"] |= {"broker_url": redis.fresh_database(), "result_backend": f"db+{database}"}
        for more in (fixed, options or {}):
            for section, values in more.items():
                settings.setdefault(section, {}).update(values)
        variables = home.subprocess_environment(url, options=settings)
        variables["PYTHONPATH"] = os.pathsep.join(
            [str(MODULES), *filter(None, [variables.get("PYTHONPATH")])]
        )
        variables |= {
            "CALLBACK_RECORDER_FILE": str(home.path / "records.jsonl"),
            "C_FORCE_ROOT": "1",
            "PYTHONUNBUFFERED": "1",
            **(environment or {}),
        }
        parts = [_API_SERVER, "scheduler", "dag-processor", "triggerer"]
        if executor == "CeleryExecutor":
            parts.append(_CELERY_WORKER)
        counts = replicas or {}
        airflow = Deployment(
            home=home,
            database_url=url,
            executor=executor,
            components=tuple(
                name if number == 1 else f"{name}-{number}"
                for name in parts
                for number in range(1, counts.get(name, 1) + 1)
            ),
            environment=variables,
            port=port,
            postgres=postgres,
            redis=redis,
            concurrency=concurrency,
        )
        try:
            yield airflow
        finally:
            airflow.close()
