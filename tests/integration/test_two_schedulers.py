"""Two schedulers on one database, each a process of its own, both busy with the same callbacks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.scheduler import Bench

pytestmark = pytest.mark.parametrize("backend", ["postgresql"], indirect=True)

SCHEDULER = """
import json, logging, sys

from callback_priority.policy.settings import Mode, Settings
from tests.support.scheduler import FakeClock, LoopExecutor, scheduler

settings = Settings(mode=Mode.ACTIVE, sweep_interval_seconds=1)
clock = FakeClock()
executor = LoopExecutor(8, clock=clock)
logging.getLogger().setLevel(logging.ERROR)
with scheduler(executor, settings=settings if sys.argv[1] == "ours" else None, clock=clock) as run:
    print("ready", flush=True)
    sys.stdin.readline()
    runner = run(40)
failures = runner._callback_priority.breaker.failures if sys.argv[1] == "ours" else 0
print("result", json.dumps([[str(each) for each in executor.order("callback")], executor.count("task"), failures]))
"""


def run_two(environment: dict[str, str], which: str) -> list[list]:
    """What each of two schedulers did in forty loops that began at the same time."""
    root = Path(__file__).parents[2]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCHEDULER, which],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=root,
            env={**environment, "PYTHONPATH": str(root)},
        )
        for _ in range(2)
    ]
    try:
        for process in processes:
            while (line := process.stdout.readline()) and line.strip() != "ready":
                pass
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        results = []
        for process in processes:
            output, errors = process.communicate(timeout=120)
            found = [line for line in output.splitlines() if line.startswith("result ")]
            assert found, errors[-3_000:]
            results.append(json.loads(found[0].removeprefix("result ")))
        return results
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize("which", ["stock", "ours"])
def test_two_busy_schedulers_run_each_callback_once(airflow_home, airflow_database, which):
    bench = Bench()
    bench.tasks(1_200)
    bench.callbacks(1_200)
    bench.pool("default_pool", 1_000)
    results = run_two(airflow_home.subprocess_environment(airflow_database), which)
    started = Counter(each for callbacks, _, _ in results for each in callbacks)
    twice = sum(1 for count in started.values() if count > 1)
    if which == "stock":
        assert twice > 0
        return
    assert twice == 0
    assert all(callbacks for callbacks, _, _ in results), "both took part"
    assert [failures for _, _, failures in results] == [0, 0]
    tasks = sum(count for _, count, _ in results)
    assert 0.4 <= tasks / (tasks + sum(started.values())) <= 0.6, "and share fairly together"
    assert {item.state for item in bench.items() if str(item.callback_id) in started} == {"done"}
