"""One phase: an Airflow of its own, started, put under the load, watched, and stopped again."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

import attrs

from callback_priority.demo import records
from callback_priority.demo.components import Components
from callback_priority.demo.load import FLOOD_DAGS, LONE_DAG, TASK_DAG, Load, PlannedRun, warm_up_runs
from callback_priority.demo.measure import Run
from callback_priority.demo.surroundings import Home, Ports, free_ports
from callback_priority.errors import CallbackPriorityError

__all__ = ["NotReadyError", "Outcome", "run_phase"]

_JOBS: Final = frozenset({"SchedulerJob", "DagProcessorJob", "TriggererJob"})
_START_TIMEOUT_SECONDS: Final = 120.0
_REQUEST_TIMEOUT_SECONDS: Final = 30.0
_PROGRESS_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.25


class NotReadyError(CallbackPriorityError):
    """Airflow did not come up, or refused a request."""


@attrs.frozen(kw_only=True)
class Outcome:
    """What became of a phase.

    Args:
        phase: Its name.
        mode: The library's mode in it.
        runs: Every workload, from the metadata database.
        end_seconds: When the phase ended, from the load's start.
        granted: How many callbacks the library granted a slot.
        failed: How many workloads ended badly.
    """

    phase: str
    mode: str
    runs: Sequence[Run]
    end_seconds: float
    granted: int
    failed: int


def run_phase(
    phase: str, mode: str, load: Load, home: Home, say: Callable[[str], None], options: Mapping[str, str]
) -> Outcome:
    """Run a phase.

    Args:
        phase: Its name, for files.
        mode: `[callback_priority] mode`.
        load: What it is put under.
        home: The Airflow home.
        say: Prints a line of progress.
        options: What else is set in `[callback_priority]`.

    Raises:
        ComponentDiedError: A component of Airflow ended.
        NotReadyError: Airflow did not come up in time.
    """
    database = home.make_database(phase)
    ports = free_ports()
    environment = home.environment(phase, mode, load, ports=ports, options=options)
    with Components(environment=environment, log_directory=home.logs(phase)) as components:
        began = time.monotonic()
        for name, arguments in _commands(ports).items():
            components.start(name, arguments)
        api = _Api(f"http://127.0.0.1:{ports.public}")
        _wait_until_ready(components, database, api)
        say(f"{', '.join(_commands(ports))} are up after {time.monotonic() - began:.0f} s; warming up")
        _warm_up(load, api, components, database)
        if mode == "active" and not records.granted_items(database):
            raise NotReadyError(_hook_missing(components))
        origin = datetime.now(timezone.utc)
        _apply(load, api, components, database, origin, say)
        end = datetime.now(timezone.utc)
        # Before they are stopped: a callback that is stopped counts as failed.
        last = records.counts(database, origin, end)
        say("stopping Airflow")
    return Outcome(
        phase=phase,
        mode=mode,
        runs=records.runs(database, origin, end),
        end_seconds=(end - origin).total_seconds(),
        granted=records.granted_items(database),
        failed=sum(count.failed for count in last.values()),
    )


def _commands(ports: Ports) -> dict[str, list[str]]:
    """The components, and the command of each.

    The API server runs as two processes, as large deployments do it. In one process on SQLite they can lock each other
    out: the public API writes its audit log on the event loop, where it waits for the database's one writer, which may
    be a request of a task that needs the same event loop to finish.
    """
    return {
        "api-server-core": ["api-server", "--apps", "core", "--port", str(ports.public)],
        "api-server-execution": ["api-server", "--apps", "execution", "--port", str(ports.execution)],
        "scheduler": ["scheduler", "--skip-serve-logs"],
        "dag-processor": ["dag-processor"],
        "triggerer": ["triggerer", "--skip-serve-logs"],
    }


def _wait_until_ready(components: Components, database: Path, api: _Api) -> None:
    wanted = frozenset({TASK_DAG, LONE_DAG, *FLOOD_DAGS})
    deadline = time.monotonic() + _START_TIMEOUT_SECONDS
    while True:
        components.check()
        ready = records.readiness(database)
        if wanted <= ready.dags and ready.jobs >= _JOBS and api.answers():
            return
        if time.monotonic() > deadline:
            logs = "\n".join(f"  {one.name}:\n{one.tail()}" for one in components.running)
            raise NotReadyError(
                f"Airflow was not ready after {_START_TIMEOUT_SECONDS:.0f} s: running are {sorted(ready.jobs)}, "
                f"the Dags {sorted(ready.dags)} are there. The logs end:\n{logs}"
            )
        time.sleep(_POLL_SECONDS)


def _warm_up(load: Load, api: _Api, components: Components, database: Path) -> None:
    began = datetime.now(timezone.utc)
    deadline = time.monotonic() + _START_TIMEOUT_SECONDS
    runs = warm_up_runs(load)
    for run in runs:
        _trigger(run, api, components)
    while True:
        components.check()
        now = records.counts(database, began, datetime.now(timezone.utc))
        if now[records.TASK].done == sum(len(run.seconds) for run in runs) and now[records.DEADLINE].done:
            return
        if time.monotonic() > deadline:
            raise NotReadyError(
                f"The first tasks and the first callback were not through after {_START_TIMEOUT_SECONDS:.0f} s: "
                f"{dict(now)}. The scheduler's log ends:\n{components.named('scheduler').tail()}"
            )
        time.sleep(_POLL_SECONDS)


def _hook_missing(components: Components) -> str:
    lines = components.named("scheduler").log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = "\n".join(f"    {line}" for line in lines if "callback_priority" in line)
    return f"The library granted the first callback no slot: its hook is not at work. It says:\n{said}"


def _trigger(run: PlannedRun, api: _Api, components: Components) -> None:
    try:
        api.trigger(run)
    except NotReadyError:
        # If a component has just died, then that is what to say.
        time.sleep(1)
        components.check()
        raise


def _apply(
    load: Load,
    api: _Api,
    components: Components,
    database: Path,
    origin: datetime,
    say: Callable[[str], None],
) -> None:
    """Trigger each run at its time, until the phase is over."""
    planned = list(reversed(load.runs))
    next_progress = 0.0
    while (elapsed := (datetime.now(timezone.utc) - origin).total_seconds()) < load.duration_seconds:
        components.check()
        while planned and planned[-1].at_seconds <= elapsed:
            run = planned.pop()
            if run.dag_id in FLOOD_DAGS and not any(later.dag_id in FLOOD_DAGS for later in planned):
                say(
                    f"{elapsed:4.0f} s  the reports are late: {load.flood_callbacks} deadlines are about to be missed"
                )
            _trigger(run, api, components)
        if elapsed >= next_progress:
            next_progress += _PROGRESS_SECONDS
            now = records.counts(database, origin, datetime.now(timezone.utc))
            task, deadline = now[records.TASK], now[records.DEADLINE]
            say(
                f"{elapsed:4.0f} s  tasks: {task.waiting:3} wait, {task.running} run, {task.done:3} done"
                f"   deadline callbacks: {deadline.waiting:3} wait, {deadline.running} run, {deadline.done:3} done"
            )
        time.sleep(_POLL_SECONDS)


class _Api:
    """Airflow's public REST API, as far as the demo needs it."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._token = ""

    def answers(self) -> bool:
        """Whether it hands out a token, which is kept."""
        try:
            self._token = str(self._request("/auth/token")["access_token"])
        except (OSError, ValueError, KeyError):
            return False
        return True

    def trigger(self, run: PlannedRun) -> None:
        """Trigger a Dag run now.

        Raises:
            NotReadyError: The request was refused.
        """
        body = {"logical_date": None, "conf": {"seconds": list(run.seconds)}}
        try:
            self._request(f"/api/v2/dags/{run.dag_id}/dagRuns", body)
        except urllib.error.HTTPError as error:
            reason = error.read().decode(errors="replace")
            raise NotReadyError(f"Airflow refused to trigger {run.dag_id}: {error.code} {reason}") from error
        except OSError as error:
            raise NotReadyError(f"Airflow's API server did not answer: {error}") from error

    def _request(self, path: str, body: object = None) -> dict[str, object]:
        request = urllib.request.Request(  # noqa: S310 - our own server, over http on the loopback interface
            self._address + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=_REQUEST_TIMEOUT_SECONDS) as response:
            answer: dict[str, object] = json.load(response)
            return answer
