"""The package is removed with callbacks in flight, Airflow goes on without it, and then it is installed again."""

from __future__ import annotations

import datetime as dt
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.deployment.shared import HERE, PATIENCE
from tests.support.deployment import Deployment
from tests.support.forks import Process, launched
from tests.support.without_library import WithoutLibrary

pytestmark = pytest.mark.timeout(600)

HOLDING = tuple(f"holding_{number}" for number in range(4))
PARALLELISM = 2
RUN = "in_flight"
WORKER, DAG_PROCESSOR = "scheduler", "dag-processor"
"""The components whose children call; LocalExecutor's workers are the scheduler's."""


def remove(airflow: Deployment, without: WithoutLibrary) -> None:
    """Have all components that start from now on be without the package."""

    def launch(name: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
        return launched(name, arguments, without.environment(environment), log, python=without.python)

    airflow.launchers.update(dict.fromkeys(airflow.components, launch))


def begun(airflow: Deployment) -> set[str]:
    """Whose callbacks have begun: Dags with one on a worker, and names of those in the triggerer."""
    return {each.get("dag_id") or each["name"] for each in airflow.records(event="began", run_id=RUN)}


def called(airflow: Deployment, run_id: str) -> Counter[tuple[str, str]]:
    """What was called to its end, and by which component; deadlines, which are not routed, left out."""
    found = airflow.records(event="called", run_id=run_id)
    names = [(each.get("name") or each["dag_id"], each["component"]) for each in found]
    return Counter((name, component) for name, component in names if not name.startswith("of_deadline"))


def outcomes(airflow: Deployment) -> dict[str, tuple[str, str]]:
    """How Airflow's rows of the routed callbacks stand, and ours."""
    rows = airflow.rows(
        "SELECT r.dag_id, u.name, c.state, i.state AS item FROM callback c"
        " JOIN callback_priority_unit u ON u.callback_id = c.id"
        " JOIN callback_priority_item i ON i.callback_id = c.id"
        " JOIN callback_priority_request r ON r.id = u.request_id WHERE r.run_id = :run_id",
        run_id=RUN,
    )
    return {
        row.name.rpartition(".")[2] if row.dag_id == "held" else row.dag_id: (row.state, row.item)
        for row in rows
    }


def test_without_the_package_airflow_goes_on_and_with_it_again_its_callbacks_do(deploy, tmp_path):
    directory = tmp_path / "dags"
    directory.mkdir()
    holding = [
        shutil.copy(HERE / "dags_switching" / "holding.py", directory / f"{name}.py") for name in HOLDING
    ]
    airflow = deploy(
        dags=[HERE / "dags_switching" / "switching.py", HERE / "dags_triggerers" / "held.py", *holding],
        options={"core": {"parallelism": PARALLELISM}, **PATIENCE},
        callback_priority={
            "mode": "active",
            "use_worker_callbacks": "all",
            "executor_retry_seconds": 1,
            "sweep_interval_seconds": 2,
        },
    )
    airflow.start()
    airflow.wait_for_dags("moved", "held", *HOLDING)
    for dag_id in (*HOLDING, "held"):
        airflow.trigger(dag_id, RUN)
    in_triggerer = {"of_dag", "also_of_dag"}
    airflow.wait_until(
        lambda: (
            len(begun(airflow) & set(HOLDING)) == PARALLELISM
            and begun(airflow) >= in_triggerer
            and outcomes(airflow).keys() == {*HOLDING, *in_triggerer}
        ),
        "two run on workers, two wait, and two are in the triggerer",
        120,
    )
    running = begun(airflow) & set(HOLDING)
    waiting = set(HOLDING) - running
    airflow.kill()

    without = WithoutLibrary.create(tmp_path / "without")
    remove(airflow, without)
    airflow.start()
    airflow.trigger("moved", "without")
    airflow.wait_until(
        lambda: sum(called(airflow, "without").values()) == 2, "the Dag processor calls both", 120
    )
    assert called(airflow, "without") == Counter(
        {("of_task", DAG_PROCESSOR): 1, ("of_dag", DAG_PROCESSOR): 1}
    )
    stock = (
        dict.fromkeys(running, ("running", "granted"))
        | dict.fromkeys(waiting, ("failed", "waiting"))
        | dict.fromkeys(in_triggerer, ("failed", "triggered"))
    )
    airflow.wait_until(lambda: outcomes(airflow) == stock, "stock fails what waits, and the triggerer", 120)
    outputs = {row[0] for row in airflow.rows("SELECT output FROM callback WHERE state = 'failed'")}
    assert len(outputs) == 2
    assert all(each == "Execution failed" or "No module named" in each for each in outputs)
    airflow.check()
    airflow.kill()

    airflow.launchers.clear()
    # That the schedulers are gone is known when their heartbeat is old.
    then = dt.datetime.now(tz=dt.timezone.utc) - dt.timedelta(hours=1)
    airflow.execute("UPDATE job SET latest_heartbeat = :then WHERE state = 'running'", then=then)
    release = airflow.record_path.with_name(f"release-{RUN}")
    release.mkdir()
    for dag_id in HOLDING:
        (release / dag_id).touch()
    airflow.start("api-server", "scheduler")
    ours = dict.fromkeys({*running, *in_triggerer}, ("success", "done")) | dict.fromkeys(
        waiting, ("failed", "done")
    )
    airflow.wait_until(lambda: outcomes(airflow) == ours, "all have ended", 120)
    assert called(airflow, RUN) == Counter({(each, WORKER): 1 for each in {*running, *in_triggerer}})
