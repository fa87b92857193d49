"""A scheduler, its LocalExecutor and an API server as processes of their own, with workloads that really run.

Every workload writes a line when it begins and when it ends, so that what ran at the same time can be told from
what happened, not from what Airflow's tables say.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import attrs
import psutil
import pytest

from tests.support.airflow_env import AirflowHome, run_airflow, use_database
from tests.support.scheduler import Bench

SLOTS = 2
PATIENCE_SECONDS = 180.0

WORKLOADS = '''
"""What runs: imported from the Dag bundle by callbacks and tasks alike."""

import json
import os
import time


def work(name, seconds, record, fail=False):
    with open(record, "a") as file:
        print(json.dumps({"name": name, "at": time.time(), "pid": os.getpid(), "event": "begin"}), file=file, flush=True)
    time.sleep(seconds)
    with open(record, "a") as file:
        print(json.dumps({"name": name, "at": time.time(), "pid": os.getpid(), "event": "end"}), file=file, flush=True)
    if fail:
        raise ValueError("on purpose")
'''

DAG = """
import os

from airflow.sdk import DAG
from airflow.providers.standard.operators.python import PythonOperator

from workloads import work

with DAG("work", schedule=None):
    for number in range(4):
        PythonOperator(
            task_id=f"task_{number}",
            python_callable=work,
            op_kwargs={"name": f"task_{number}", "seconds": 1, "record": os.environ["WORKLOAD_RECORD"]},
        )
"""


@attrs.define
class Deployment:
    """Airflow's processes, and what ran in them."""

    environment: dict[str, str]
    record: Path
    logs: Path
    bench: Bench
    processes: list[subprocess.Popen[bytes]] = attrs.field(factory=list)

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.logs / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "airflow", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(self.environment),
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def start_api_server(self) -> None:
        port = self.environment["AIRFLOW__API__PORT"]
        self.start("api-server", "api-server", "--apps", "execution", "--port", port)

    def stop(self) -> None:
        """End every process that was started, and what these started."""
        for process in self.processes:
            below = []
            with contextlib.suppress(psutil.NoSuchProcess):
                below = psutil.Process(process.pid).children(recursive=True)
            for each in (psutil.Process(process.pid) if process.poll() is None else None, *below):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if each is not None:
                        each.kill()
            process.wait()

    def callbacks(self, count: int, seconds: float, prefix: str = "callback", **kwargs: object):
        """Pending callbacks that work for some time."""
        return [
            self.bench.callbacks(
                1,
                dag_id="alerts",
                data={
                    "path": "workloads.work",
                    "kwargs": {
                        "name": f"{prefix}_{number}",
                        "seconds": seconds,
                        "record": str(self.record),
                        **kwargs,
                    },
                },
            )[0]
            for number in range(count)
        ]

    def events(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.record.read_text().splitlines()]

    def running(self) -> dict[str, int]:
        """The names of what is at work now, with their process ids."""
        inside: dict[str, int] = {}
        for event in self.events():
            if event["event"] == "begin":
                inside[str(event["name"])] = int(str(event["pid"]))
            else:
                inside.pop(str(event["name"]), None)
        return inside

    def most_at_once(self) -> int:
        """The most workloads that were at work at the same time."""
        most = now = 0
        for event in sorted(self.events(), key=lambda event: (event["at"], event["event"] == "begin")):
            now += 1 if event["event"] == "begin" else -1
            most = max(most, now)
        return most

    def wait_until(self, what: Callable[[], bool], message: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not what():
            if time.monotonic() > deadline:
                tails = "\n".join(
                    f"{path.name}:\n" + path.read_text(errors="replace")[-3_000:]
                    for path in self.logs.glob("*.log")
                )
                raise AssertionError(f"{message}: {self.bench.callback_states()}, {self.events()}\n{tails}")
            time.sleep(0.1)


@pytest.fixture
def deployment(tmp_path, database_templates) -> Iterator[Deployment]:
    home = AirflowHome.create(tmp_path / "airflow")
    (home.dags_folder / "workloads.py").write_text(WORKLOADS)
    record = tmp_path / "record.jsonl"
    record.touch()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with database_templates.copy("sqlite") as path:
        url = f"{path}?timeout=30"
        environment = home.subprocess_environment(
            url,
            api_port=port,
            options={
                "callback_priority": {
                    "mode": "active",
                    "sweep_interval_seconds": 1,
                    "reconcile_interval_seconds": 1,
                },
                "core": {"parallelism": SLOTS, "dags_are_paused_at_creation": False},
                "scheduler": {
                    "scheduler_idle_sleep_time": 0.1,
                    "use_job_schedule": False,
                    "enable_health_check": False,
                },
                "workers": {"min_heartbeat_interval": 1},
            },
        )
        environment["WORKLOAD_RECORD"] = str(record)
        if find_spec("airflow.sdk.execution_time.callback_supervisor") is None:
            # Airflow 3.2 calls callbacks in the executor's own processes, which know of no bundle.
            environment["PYTHONPATH"] = os.pathsep.join(
                [str(home.dags_folder), *filter(None, [environment.get("PYTHONPATH")])]
            )
        with use_database(url):
            running = Deployment(environment=environment, record=record, logs=tmp_path, bench=Bench())
            try:
                yield running
            finally:
                running.stop()


def task_states() -> Counter[str]:
    return Bench.task_states()


@pytest.mark.contract
def test_tasks_and_callbacks_share_two_worker_processes(deployment):
    """Four real tasks and five real callbacks, one of which fails, at two slots: never three at once."""
    home = Path(deployment.environment["AIRFLOW_HOME"])
    (home / "dags" / "dag.py").write_text(DAG)
    run_airflow(["dags", "reserialize"], deployment.environment)
    run_airflow(["dags", "trigger", "work"], deployment.environment)
    good = deployment.callbacks(4, 1.0)
    [bad] = deployment.callbacks(1, 0.2, prefix="bad", fail=True)
    deployment.start_api_server()
    deployment.start("scheduler", "scheduler", "--skip-serve-logs")

    def over() -> bool:
        states = deployment.bench.callback_states()
        return states["success"] + states["failed"] == 5 and task_states()["success"] == 4

    deployment.wait_until(over, "not everything ended")
    assert deployment.most_at_once() == SLOTS
    assert deployment.bench.callback_states() == {"success": 4, "failed": 1}
    assert deployment.bench.outputs()[bad]
    deployment.wait_until(
        lambda: {item.state for item in deployment.bench.items()} == {"done"}, "an item is left open"
    )
    begun = [str(event["name"]) for event in deployment.events() if event["event"] == "begin"]
    assert len(begun) == len(set(begun)) == 9, "each ran once"
    assert {item.callback_id for item in deployment.bench.items()} == {*good, bad}
    log = (deployment.logs / "scheduler.log").read_text()
    assert "callback-priority is in mode active" in log
    assert "callback-priority failed" not in log


def test_the_slot_of_a_killed_worker_comes_back(deployment):
    """What becomes of a callback whose process is killed, and of its slot.

    The callback's own process: its supervisor tells of the failure. The executor's worker: nobody tells, and
    Airflow leaves the row in state running, with its slot. The scheduler sees that the process is not there any more.
    """
    deployment.environment["AIRFLOW__CALLBACK_PRIORITY__CALLBACK_MAX_ATTEMPTS"] = "1"
    deployment.callbacks(2, 120.0, prefix="long")
    deployment.start_api_server()
    deployment.start("scheduler", "scheduler", "--skip-serve-logs")
    deployment.wait_until(lambda: len(deployment.running()) == SLOTS, "the long ones did not start")
    assert deployment.bench.callback_states() == {"running": 2}

    # The callback's own process.
    os.kill(deployment.running()["long_0"], signal.SIGKILL)
    deployment.wait_until(
        lambda: deployment.bench.callback_states() == {"running": 1, "failed": 1}, "no failure"
    )

    # The worker process of the executor, and with it the callback's own.
    callback = psutil.Process(deployment.running()["long_1"])
    worker = callback.parent()
    assert worker is not None
    assert "LocalExecutor" in " ".join(worker.cmdline())
    worker.kill()
    callback.kill()
    deployment.wait_until(lambda: deployment.bench.callback_states() == {"failed": 2}, "nobody noticed")
    killed, died = sorted(map(str, deployment.bench.outputs().values()))
    assert killed.startswith("the process was killed by SIGKILL while it ran workloads.work")
    assert died.startswith("the worker ended while it ran")

    deployment.callbacks(4, 2.0, prefix="later")
    deployment.wait_until(
        lambda: deployment.bench.callback_states()["success"] == 4, "the later ones did not end"
    )
    later = [event for event in deployment.events() if str(event["name"]).startswith("later")]
    assert ("begin", "begin") in pairwise(event["event"] for event in later), "both slots are in use again"
