"""Callbacks without a Dag processor; one Dag moved and another not; and the way back, with callbacks in flight."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import pytest

from tests.deployment.shared import HERE, PATIENCE
from tests.support.deployment import Deployment, deployed

pytestmark = pytest.mark.timeout(600)

DAGS = HERE / "dags_switching"
RUNS = 20
PARALLELISM = 2
HOLDING = tuple(f"holding_{number}" for number in range(5))
"""Dags whose callbacks wait to be let go; in a file each, so that none shares a run."""

ALL = {
    "mode": "active",
    "use_worker_callbacks": "all",
    "worker_callbacks_include": "*",
    "worker_callbacks_exclude": "",
}
SOME = {**ALL, "worker_callbacks_include": "holding_*, moved*", "worker_callbacks_exclude": "*_kept"}
WORKER, DAG_PROCESSOR = "scheduler", "dag-processor"
"""The components whose children call; LocalExecutor's workers are the scheduler's."""


@pytest.fixture(scope="module")
def airflow(tmp_path_factory, database_templates, postgres) -> Iterator[Deployment]:
    """A deployment in which all callbacks are moved at first."""
    directory = tmp_path_factory.mktemp("switching")
    holding = [shutil.copy(DAGS / "holding.py", directory / f"{name}.py") for name in HOLDING]
    with deployed(
        directory / "airflow",
        databases=database_templates,
        postgres=postgres,
        dags=[DAGS / "switching.py", *holding],
        options={"core": {"parallelism": PARALLELISM}, **PATIENCE},
        callback_priority={**ALL, "reconcile_interval_seconds": 2, "sweep_interval_seconds": 2},
    ) as made:
        made.start()
        made.wait_for_dags("moved", "moved_but_kept", "other", *HOLDING)
        yield made


def switch(airflow: Deployment, options: Mapping[str, str]) -> None:
    """Change the options, for components that start from now on."""
    for name, value in options.items():
        airflow.configure("callback_priority", name, value)


def restart(airflow: Deployment, *names: str) -> None:
    """Restart components, the API server while there is no scheduler: workers of its executor need it until they end."""
    if "scheduler" in names:
        airflow.stop("scheduler")
    airflow.stop(*(name for name in names if name != "scheduler"))
    if "api-server" in names:
        airflow.start("api-server")
    airflow.start(*(name for name in names if name != "api-server"))


def called(airflow: Deployment, *run_ids: str) -> Counter[tuple[str, str, str, str]]:
    """How often each callable of these runs was called, and by whom."""
    return Counter(
        (each["dag_id"], each["run_id"], each.get("name", "holds"), each["component"])
        for each in airflow.records(event="called")
        if each["run_id"] in run_ids
    )


def wait_for_calls(airflow: Deployment, count: int, *run_ids: str) -> None:
    airflow.wait_until(
        lambda: sum(called(airflow, *run_ids).values()) >= count,
        f"{count} calls",
        90,
        every=0.3,
    )


def fill(airflow: Deployment, run_id: str) -> tuple[set[str], set[str]]:
    """Have as many callbacks run as there are slots, and the others wait; which ones do which."""
    for dag_id in HOLDING:
        airflow.trigger(dag_id, run_id)

    def full() -> bool:
        waiting = airflow.value("SELECT count(*) FROM callback_priority_item WHERE state = 'waiting'")
        return len(_begun(airflow, run_id)) == PARALLELISM and waiting == len(HOLDING) - PARALLELISM

    airflow.wait_until(full, "two callbacks run and three wait", 90)
    running = _begun(airflow, run_id)
    return running, set(HOLDING) - running


def _begun(airflow: Deployment, run_id: str) -> set[str]:
    return {each["dag_id"] for each in airflow.records(event="began", run_id=run_id)}


def let_go(airflow: Deployment, run_id: str, dag_ids: Iterable[str]) -> None:
    directory = airflow.record_path.with_name(f"release-{run_id}")
    directory.mkdir(exist_ok=True)
    for dag_id in dag_ids:
        (directory / dag_id).touch()


def restart_with_callbacks_in_flight(
    airflow: Deployment, run_id: str, options: Mapping[str, str], *names: str
) -> None:
    """Restart components with other options while callbacks run and wait; all are let go in the end."""
    running, waiting = fill(airflow, run_id)
    switch(airflow, options)
    # LocalExecutor waits for what runs before it ends; with the scheduler gone nothing else could begin.
    timer = threading.Timer(1.0, let_go, (airflow, run_id, running))
    timer.start()
    restart(airflow, *names)
    timer.join()
    let_go(airflow, run_id, waiting)


def states(airflow: Deployment, run_id: str) -> Counter[str]:
    """How Airflow's rows of a run's routed callbacks stand."""
    return Counter(
        row.state
        for row in airflow.rows(
            "SELECT c.state FROM callback c JOIN callback_priority_unit u ON u.callback_id = c.id"
            " JOIN callback_priority_request r ON r.id = u.request_id WHERE r.run_id = :run_id",
            run_id=run_id,
        )
    )


def routed(airflow: Deployment, *run_ids: str) -> Counter[tuple[str, str]]:
    """The requests of these runs that were written down, by Dag and outcome."""
    return Counter(
        (row.dag_id, row.outcome)
        for row in airflow.rows("SELECT dag_id, run_id, outcome FROM callback_priority_request")
        if row.run_id in run_ids
    )


def test_without_a_dag_processor_no_callback_is_missing(airflow):
    run_ids = [f"without_{number}" for number in range(RUNS)]
    airflow.kill("dag-processor")
    for run_id in run_ids:
        airflow.trigger("moved", run_id)
    wait_for_calls(airflow, 2 * RUNS, *run_ids)
    assert called(airflow, *run_ids) == Counter(
        ("moved", run_id, name, WORKER) for run_id in run_ids for name in ("of_task", "of_dag")
    )
    assert routed(airflow, *run_ids) == {("moved", "routed"): 2 * RUNS}
    airflow.start("dag-processor")


def test_back_to_the_dag_processor_with_callbacks_in_flight(airflow):
    restart_with_callbacks_in_flight(
        airflow, "none_before", {"use_worker_callbacks": "none"}, "scheduler", "triggerer"
    )
    airflow.trigger("moved", "none_after")
    wait_for_calls(airflow, len(HOLDING), "none_before")
    wait_for_calls(airflow, 2, "none_after")
    assert called(airflow, "none_before") == Counter(
        (dag_id, "none_before", "holds", WORKER) for dag_id in HOLDING
    )
    assert called(airflow, "none_after") == Counter(
        ("moved", "none_after", name, DAG_PROCESSOR) for name in ("of_task", "of_dag")
    )
    assert not routed(airflow, "none_after")
    airflow.wait_until(
        lambda: not airflow.value("SELECT count(*) FROM callback_priority_item WHERE state != 'done'"),
        "no slot is held",
    )
    assert states(airflow, "none_before") == {"success": len(HOLDING)}


def test_patterns_move_one_dag_only(airflow):
    switch(airflow, SOME)
    restart(airflow, "scheduler", "triggerer")
    for dag_id in ("moved", "moved_but_kept", "other"):
        airflow.trigger(dag_id, "some")
    wait_for_calls(airflow, 6, "some")
    places = {"moved": WORKER, "moved_but_kept": DAG_PROCESSOR, "other": DAG_PROCESSOR}
    assert called(airflow, "some") == Counter(
        (dag_id, "some", name, place) for dag_id, place in places.items() for name in ("of_task", "of_dag")
    )
    assert routed(airflow, "some") == {("moved", "routed"): 2}


def test_off_everywhere_with_callbacks_in_flight(airflow):
    restart_with_callbacks_in_flight(airflow, "off_before", {"mode": "off"}, *airflow.components)
    airflow.trigger("moved", "off_after")
    wait_for_calls(airflow, len(HOLDING), "off_before")
    wait_for_calls(airflow, 2, "off_after")
    assert called(airflow, "off_before") == Counter(
        (dag_id, "off_before", "holds", WORKER) for dag_id in HOLDING
    )
    assert called(airflow, "off_after") == Counter(
        ("moved", "off_after", name, DAG_PROCESSOR) for name in ("of_task", "of_dag")
    )
    assert not routed(airflow, "off_after")
    airflow.wait_until(
        lambda: states(airflow, "off_before") == {"success": len(HOLDING)}, "their states are known"
    )
