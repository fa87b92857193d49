"""Two schedulers on one database, each a process of its own, both busy with the same tasks and callbacks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import attrs
import pytest
from sqlalchemy import Connection

from callback_priority.core.journal import attempts, check, differences, outstanding, replay
from callback_priority.persistence import journal
from callback_priority.persistence.flows import read_flows
from tests.support.scheduler import Bench

pytestmark = pytest.mark.parametrize("backend", ["postgresql"], indirect=True)

CALLBACKS = 3_000
TASKS = 1_500
SLOTS = 128
SHARED_LOOPS = 6
"""So many loops' slots each scheduler fills while both kinds wait; their shares are those of these loops."""

SCHEDULER = """
import json, logging, sys

from callback_priority.policy.settings import Mode, Settings
from tests.support.scheduler import Bench, FakeClock, LoopExecutor, scheduler

which, slots, shared_loops = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
settings = Settings(mode=Mode.ACTIVE, journal=True) if which == "ours" else None
clock = FakeClock()
held_before = 0

def stand_still():
    # No time goes by in a loop that missed the lock and holds nothing: a hold is a loop long, whoever has the lock.
    global held_before
    held = executor.held.total()
    clock.seconds -= held == held_before
    held_before = held

def wait(word):
    print(word, flush=True)
    sys.stdin.readline()

executor = LoopExecutor(slots, clock=clock, each_loop=stand_still)
logging.getLogger().setLevel(logging.ERROR)
with scheduler(executor, settings=settings, clock=clock, max_tis_per_query=slots) as run:
    if settings:
        run(5)  # the pool has no slots yet, so nothing is granted: callbacks get their items
    wait("ready")
    while executor.held.total() < shared_loops * slots and executor.now < 100 * shared_loops:
        runner = run(2)
    both_waited = Bench.callback_states()["pending"] > 0 and Bench.task_states()["scheduled"] > 0
    held = dict(executor.held)
    wait("shared")
    for _ in range(40 if settings else 0):  # stock has shown by now what it does
        if not (Bench.callback_states()["pending"] or Bench.task_states()["scheduled"]):
            break
        run(4)
    run(4)
print("result", json.dumps({
    "job_id": runner.job.id,
    "callbacks": [str(each) for each in executor.order("callback")],
    "tasks": [str(each) for each in executor.order("task")],
    "held": held,
    "both_waited": both_waited,
    "failures": runner._callback_priority.breaker.failures if settings else 0,
}))
"""


@attrs.frozen(kw_only=True)
class Result:
    """What one of the schedulers did.

    Args:
        job_id: Its job.
        callbacks: The callbacks that its executor ran, in order.
        tasks: The task instances.
        held: Slots held by kind, added up over the loops in which both kinds waited.
        both_waited: Whether they did to the end of those.
        failures: Failures of the library in a row.
    """

    job_id: int
    callbacks: list[str]
    tasks: list[str]
    held: dict[str, int]
    both_waited: bool
    failures: int


def run_two(environment: dict[str, str], which: str) -> list[Result]:
    """What each of two schedulers did that began at the same time; ours go on until nothing is left to do."""
    root = Path(__file__).parents[2]
    environment |= {"PYTHONPATH": str(root), "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCHEDULER, which, str(SLOTS), str(SHARED_LOOPS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=root,
            env=environment,
        )
        for _ in range(2)
    ]
    try:
        for word in ("ready", "shared"):
            for process in processes:
                while (line := process.stdout.readline()).strip() != word:
                    assert line, process.stderr.read()[-3_000:]
            Bench().pool("default_pool", 1_000)
            for process in processes:
                process.stdin.write("go\n")
                process.stdin.flush()
        results = []
        for process in processes:
            output, errors = process.communicate(timeout=300)
            found = [line for line in output.splitlines() if line.startswith("result ")]
            assert found, errors[-3_000:]
            results.append(Result(**json.loads(found[0].removeprefix("result "))))
        return results
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture
def run(airflow_home, airflow_database, database):
    """Make rows for two schedulers; returns what lets them run."""
    bench = Bench()
    bench.tasks(TASKS)
    bench.callbacks(CALLBACKS)
    bench.pool("default_pool", 0)
    database.exec_driver_sql("ANALYZE")
    return lambda which: run_two(airflow_home.subprocess_environment(airflow_database), which)


def runs_of(results: list[Result], kind: str) -> Counter[str]:
    """How often each of a kind was run, by both schedulers together."""
    return Counter(each for result in results for each in getattr(result, kind))


def test_stock_schedulers_run_hundreds_of_callbacks_twice(run):
    """The control: the same rows under Airflow's own two steps, for a while."""
    runs = runs_of(run("stock"), "callbacks")
    twice = sum(1 for count in runs.values() if count > 1)
    assert twice >= 200, f"{twice} of {len(runs)}"


def test_two_busy_schedulers_grant_each_attempt_once_and_share_as_one(run, database):
    """3,000 callbacks and 1,500 tasks: none twice, shares as with one scheduler, and tags that add up."""
    results = run("ours")
    assert [result.failures for result in results] == [0, 0]
    for kind, count in (("callbacks", CALLBACKS), ("tasks", TASKS)):
        runs = runs_of(results, kind)
        assert set(runs.values()) == {1}
        assert len(runs) == count
    assert all(result.both_waited for result in results)
    held = sum((Counter(result.held) for result in results), Counter())
    assert 0.45 <= held["task"] / held.total() <= 0.55, "the bounds of one scheduler, as in test_shares.py"
    the_journal_adds_up(database, results)


def the_journal_adds_up(connection: Connection, results: list[Result]) -> None:
    """Replayed it ends at the flows, and what it tells of grants is what items and executors tell."""
    written = journal.read(connection)
    entries = [each.entry for each in written]
    flows = read_flows(connection)
    assert check({}, entries) == []
    assert differences(flows, replay({}, entries)) == []
    items = Bench.items()
    assert {item.state for item in items} == {"done"}
    assert attempts(entries) == {str(item.callback_id): item.attempts for item in items}
    for result in results:
        its = [each.entry for each in written if each.scheduler_job_id == result.job_id]
        assert sorted(attempts(its)) == sorted(result.callbacks), "each was run where it was granted"
        assert sum(len(granted.widths) for entry in its for granted in entry.grants) == len(result.tasks)
    assert set(outstanding(entries).values()) == {0}, "what was charged and settled is what was held"
    assert sum(state.granted for key, state in flows.items() if not key.scope) == CALLBACKS + TASKS
    turns = [each.scheduler_job_id for each in written]
    assert sum(before != after for before, after in pairwise(turns)) >= 5, "they took turns"
