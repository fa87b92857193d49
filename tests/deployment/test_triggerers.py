"""Two triggerers of real processes: each callback with one of them, and what becomes of it when that one is killed."""

from __future__ import annotations

import datetime as dt
import operator
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest

from tests.deployment.shared import HERE, PATIENCE
from tests.support.deployment import Deployment, deployed

pytestmark = pytest.mark.timeout(300)

THRESHOLD_SECONDS = 120

ROUTED = ("of_dag", "also_of_dag")
OF_DEADLINES = ("of_deadline_0", "of_deadline_1")
NAMES = (*ROUTED, *OF_DEADLINES)
RUNS = tuple(f"run_{number}" for number in range(3))
WORKER = "scheduler"
"""LocalExecutor's workers are the scheduler's children."""

Calls = Counter[tuple[str, str]]


def calls(airflow: Deployment, event: str, run_ids: Iterable[str], component: str | None = None) -> Calls:
    """How often each callback of these runs began, or was called to its end; in one component, if one is named."""
    return Counter(
        (each["run_id"], each["name"])
        for each in airflow.records(event=event)
        if each["run_id"] in run_ids and component in (None, each["component"])
    )


def each_of(run_ids: Iterable[str], names: Iterable[str] = NAMES) -> Calls:
    return Counter((run_id, name) for run_id in run_ids for name in names)


def begin(airflow: Deployment, *run_ids: str) -> None:
    """Start runs, and wait until each of their callbacks has begun."""
    for run_id in run_ids:
        airflow.trigger("held", run_id)
    airflow.wait_until(
        lambda: calls(airflow, "began", run_ids).keys() == each_of(run_ids).keys(), "all begin", 90
    )


def let_go(airflow: Deployment, *run_ids: str) -> None:
    for run_id in run_ids:
        airflow.record_path.with_name(f"release-{run_id}").touch()


def job_of(airflow: Deployment) -> int:
    """The job of the triggerer that was started last."""
    return int(airflow.value("SELECT max(id) FROM job WHERE job_type = 'TriggererJob'"))


def wait_for_heartbeats(airflow: Deployment, job_ids: Iterable[int], count: int = 3) -> None:
    """Wait until these triggerers have looked for callbacks several times; they do with each heartbeat."""

    def beats() -> list[object]:
        return [
            airflow.value("SELECT latest_heartbeat FROM job WHERE id = :id", id=job_id) for job_id in job_ids
        ]

    for _ in range(count):
        before = beats()
        airflow.wait_until(
            lambda before=before: all(map(operator.ne, before, beats())),  # type: ignore[misc]
            "a heartbeat of each triggerer",
        )


def kill(airflow: Deployment, name: str, job_id: int, seconds: int) -> None:
    """Kill a triggerer, and have its last heartbeat be so long ago."""
    airflow.kill(name)
    then = dt.datetime.now(tz=dt.timezone.utc) - dt.timedelta(seconds=seconds)
    airflow.execute("UPDATE job SET latest_heartbeat = :then WHERE id = :id", then=then, id=job_id)


@pytest.fixture(scope="module")
def airflow(tmp_path_factory, database_templates, postgres) -> Iterator[Deployment]:
    """A deployment whose triggerers take one callback in each loop, and are taken for dead after two minutes."""
    with deployed(
        tmp_path_factory.mktemp("triggerers") / "airflow",
        databases=database_templates,
        postgres=postgres,
        dags=[HERE / "dags_triggerers" / "held.py"],
        callback_priority={
            "mode": "active",
            "use_worker_callbacks": "all",
            "executor_retry_seconds": 1,
            "sweep_interval_seconds": 2,
        },
        options={
            **PATIENCE,
            "triggerer": {
                "max_trigger_to_select_per_loop": 1,
                "triggerer_health_check_threshold": THRESHOLD_SECONDS,
            },
        },
    ) as made:
        made.start()
        yield made


def test_each_callback_has_one_triggerer_and_begins_anew_where_that_is_killed(airflow):
    """Twelve callbacks with two triggerers, of which one is killed: all come to their end once."""
    first = job_of(airflow)
    airflow.start("triggerer-2")
    second = job_of(airflow)
    airflow.wait_for_dags("held")
    begin(airflow, *RUNS)
    wait_for_heartbeats(airflow, (first, second))
    of_first, of_second = (calls(airflow, "began", RUNS, name) for name in ("triggerer", "triggerer-2"))
    assert of_first
    assert of_second
    assert of_first + of_second == each_of(RUNS)

    kill(airflow, "triggerer", first, THRESHOLD_SECONDS + 5)
    airflow.wait_until(
        lambda: calls(airflow, "began", RUNS, "triggerer-2") == each_of(RUNS), "the other has all"
    )
    lost = airflow.rows("SELECT failures FROM callback_priority_item WHERE failures > 0")
    assert [row.failures for row in lost] == [1] * len(of_first)
    let_go(airflow, *RUNS)
    wait_for_success(airflow, len(each_of(RUNS)))
    assert calls(airflow, "called", RUNS) == each_of(RUNS)
    assert calls(airflow, "began", RUNS) == each_of(RUNS) + of_first


def test_workers_call_what_is_left_when_no_triggerer_lives(airflow):
    """What is Airflow's own, a deadline's, waits for the next triggerer, as it does without the library."""
    ended = len(each_of(RUNS))
    begin(airflow, "last")
    kill(airflow, "triggerer-2", job_of(airflow), THRESHOLD_SECONDS + 600)
    let_go(airflow, "last")
    wait_for_success(airflow, ended + len(ROUTED))
    assert calls(airflow, "called", ["last"], WORKER) == each_of(["last"], ROUTED)
    airflow.start("triggerer")
    wait_for_success(airflow, ended + len(NAMES))
    assert calls(airflow, "called", ["last"]) == each_of(["last"])


def test_airflows_own_triggerers_begin_a_callback_again_and_again(airflow):
    """The negative control: the same with triggerers in which the library is off."""
    airflow.kill("triggerer")
    airflow.configure("callback_priority", "mode", "off")
    airflow.configure("triggerer", "max_trigger_to_select_per_loop", 50)
    airflow.start("triggerer", "triggerer-2")
    begin(airflow, "stock")

    def begun_twice() -> bool:
        begun = calls(airflow, "began", ["stock"])
        return all(begun["stock", name] >= 2 for name in OF_DEADLINES)

    airflow.wait_until(begun_twice, "each begins twice at least")


def wait_for_success(airflow: Deployment, count: int) -> None:
    """Wait until so many callbacks have succeeded, and nothing is open of them."""
    succeeded = "SELECT count(*) FROM callback WHERE state = 'success'"
    airflow.wait_until(lambda: airflow.value(succeeded) == count, f"{count} have succeeded", 90)
    closed = (
        "SELECT count(*) FROM callback_priority_item i JOIN callback c ON c.id = i.callback_id"
        " WHERE c.state = 'success' AND i.state != 'done'"
    )
    airflow.wait_until(lambda: not airflow.value(closed), "their items are done")
