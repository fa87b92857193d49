"""Callbacks that go wrong on a worker: how each ends, in time, and that none of them costs a slot."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.deployment.shared import HERE, PATIENCE, RUN_ID, all_ended, command, state_table
from tests.support.deployment import Deployment, deployed

pytestmark = pytest.mark.timeout(600)

LIMIT_SECONDS = 3.0
GRACE_SECONDS = 10.0
LOG_LIMIT_BYTES = 65_536
PARALLELISM = 4
PASSWORD = "sesame-open"
DAGS = HERE / "dags_failures"


@attrs.frozen(kw_only=True)
class Row:
    """A way to go wrong.

    Args:
        dag_id: The Dag whose callback does it.
        what: For people.
        message: The output's first line.
        state: How it ends.
        reaches_limit: Whether it runs until it is stopped.
    """

    dag_id: str
    what: str
    message: str
    state: str = "failed"
    reaches_limit: bool = False


_RUNTIME = "airflow.sdk.exceptions.AirflowRuntimeError: PERMISSION_DENIED"
_NOT_THIS = "is refused: a callback may read, and change Variables, but not this"
_MEMORY = "the machine may have run out of memory"


def _refused(name: str) -> str:
    return f"{_RUNTIME}: {{'status_code': 403, 'message': '{name} {_NOT_THIS}'}}"


ROWS = (
    Row(
        dag_id="reads",
        what="reads a Variable, a Connection and an XCom",
        state="success",
        message='{"variable": "blue", "connection": "service.example.com", "xcom": "42"}',
    ),
    Row(dag_id="pushes_an_xcom", what="pushes an XCom", message=_refused("SetXCom")),
    Row(dag_id="triggers_a_dag_run", what="triggers a Dag run", message=_refused("TriggerDagRun")),
    Row(dag_id="says_nonsense", what="sends a request that nobody knows", message=_refused("Nonsense")),
    Row(
        dag_id="sleeps",
        what="sleeps past its limit",
        message="exceeded its limit of 3 s while it ran misbehaving.sleeps",
        reaches_limit=True,
    ),
    Row(
        dag_id="sleeps_deaf",
        what="the same, and ignores SIGTERM",
        message="exceeded its limit of 3 s while it ran misbehaving.sleeps_deaf",
        reaches_limit=True,
    ),
    Row(
        dag_id="raises",
        what="raises an error that names a secret",
        message="ValueError: no entry with ***",
    ),
    Row(dag_id="exits", what="calls `sys.exit`", message="SystemExit: 3"),
    Row(
        dag_id="exits_at_once",
        what="ends the process (`os._exit`)",
        message="the process exited with code 4 while it ran misbehaving.exits_at_once",
    ),
    Row(
        dag_id="kills_itself",
        what="kills its process",
        message=f"the process was killed by SIGKILL while it ran misbehaving.kills_itself; {_MEMORY}",
    ),
    Row(
        dag_id="is_killed",
        what="its process is killed by somebody",
        message=f"the process was killed by SIGKILL while it ran misbehaving.is_killed; {_MEMORY}",
    ),
    Row(dag_id="floods", what="floods its log", state="success", message='"done"'),
    Row(
        dag_id="returns_an_object",
        what="returns what cannot be serialized",
        state="success",
        message="returned a type, which is not JSON",
    ),
    Row(
        dag_id="no_longer_parses",
        what="its Dag file no longer parses",
        message="the Dag file breaking.py has an error: SyntaxError: invalid syntax",
    ),
    Row(
        dag_id="task_removed",
        what="its task was removed",
        message=(
            "ValueError: Task 'there_for_now' not found in DAG 'task_removed'. This typically indicates a race "
            "condition where the task was removed or the DAG structure changed."
        ),
    ),
    Row(
        dag_id="dag_for_now",
        what="its Dag was removed from the file",
        message=(
            "ValueError: DAG 'dag_for_now' not found in DagBag. This typically indicates a race condition where "
            "the DAG was removed or failed to parse."
        ),
    ),
    Row(
        dag_id="version_gone",
        what="its bundle version is gone",
        message=(
            "bundle 'versioned' at version first cannot be loaded: "
            "FileNotFoundError: there is no version first"
        ),
    ),
)
MORE = tuple(f"behaves_{number}" for number in range(2 * PARALLELISM))
"""Dags whose callbacks do nothing wrong, each in a file of its own, so that none shares a run."""


@pytest.fixture(scope="module")
def airflow(tmp_path_factory, database_templates, postgres) -> Iterator[Deployment]:
    """A deployment in which everything has gone wrong."""
    directory = tmp_path_factory.mktemp("failures")
    root = directory / "versions"
    (root / "first").mkdir(parents=True)
    (root / "newest").write_text("first")
    shutil.copy(DAGS / "versioned.py", root / "first")
    behaving = [shutil.copy(DAGS / "behaving.py", directory / f"{name}.py") for name in MORE]
    bundles = [
        {
            "name": "dags-folder",
            "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
            "kwargs": {},
        },
        {
            "name": "versioned",
            "classpath": "directory_bundle.DirectoryBundle",
            "kwargs": {"root": str(root)},
        },
    ]
    with deployed(
        directory / "airflow",
        databases=database_templates,
        postgres=postgres,
        dags=[*(DAGS / f"{name}.py" for name in ("breaking", "misbehaving", "shrinking")), *behaving],
        options={
            "core": {"parallelism": PARALLELISM},
            "workers": PATIENCE["workers"],
            "dag_processor": {"dag_bundle_config_list": json.dumps(bundles)},
        },
        callback_priority={
            "mode": "active",
            "use_worker_callbacks": "all",
            "callback_time_limit_seconds": LIMIT_SECONDS,
            "callback_log_limit_bytes": LOG_LIMIT_BYTES,
            "reconcile_interval_seconds": 2,
        },
    ) as made:
        made.start()
        made.wait_for_dags(*MORE, *(row.dag_id for row in ROWS))
        made.stop("dag-processor")
        _spoil(made.home.dags_folder, root)
        made.airflow("variables", "set", "colour", "blue")
        made.airflow("variables", "set", "door_password", PASSWORD)
        made.airflow(
            "connections", "add", "service", "--conn-type", "http", "--conn-host", "service.example.com"
        )
        for row in ROWS:
            made.trigger(row.dag_id, RUN_ID)
        [waiting] = made.wait_until(lambda: made.records(event="waits"), "the callback runs that is killed")
        os.kill(waiting["pid"], signal.SIGKILL)
        made.wait_until(lambda: all_ended(made, len(ROWS)), "every callback has ended", 120, every=0.3)
        yield made


def _spoil(folder: Path, versions: Path) -> None:
    """What happens to files between a parse and a callback."""
    with (folder / "breaking.py").open("a") as file:
        file.write("\nthis is no Python\n")
    shrinking = folder / "shrinking.py"
    shrinking.write_text(
        shrinking.read_text().replace("there_for_now", "another").replace("dag_for_now", "another")
    )
    shutil.rmtree(versions / "first")


@pytest.fixture(scope="module")
def seen(airflow) -> Mapping[str, Any]:
    """What is known of each callback, by its Dag."""
    rows = airflow.rows(
        "SELECT r.dag_id, c.state, c.output, u.log, u.log_path, u.started_at, u.ended_at"
        " FROM callback_priority_unit u"
        " JOIN callback_priority_request r ON r.id = u.request_id JOIN callback c ON c.id = u.callback_id"
    )
    return {row.dag_id: row for row in rows}


def first_line(row: Any) -> str:
    """Of a callback's output."""
    return (row.output or "").partition("\n")[0]


def seconds(row: Any) -> float:
    """How long a callback ran."""
    return (row.ended_at - row.started_at).total_seconds()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.dag_id)
def test_each_ends_with_its_reason_within_its_limit(seen, row):
    found = seen[row.dag_id]
    assert (found.state, first_line(found)) == (row.state, row.message)
    lower = LIMIT_SECONDS if row.reaches_limit else 0.0
    upper = LIMIT_SECONDS + (GRACE_SECONDS if row.reaches_limit else 0.0)
    assert lower <= seconds(found) <= upper


def test_a_flooded_log_is_cut_off_and_says_so(airflow, seen):
    found = seen["floods"]
    size = (airflow.task_logs / found.log_path).stat().st_size
    assert LOG_LIMIT_BYTES <= size <= LOG_LIMIT_BYTES + 2_000
    assert f"has reached its limit of {LOG_LIMIT_BYTES} bytes" in found.log
    assert found.log.rstrip().endswith('Callback ended state=success output="done"')


def test_each_log_tells_of_its_own_callback_only(seen):
    assert f"Callback ended state=failed output={seen['exits'].output}" in seen["exits"].log
    assert [row.dag_id for row in ROWS if "drip" in seen[row.dag_id].log] == ["floods"]
    assert all(seen[row.dag_id].log.count("Callback ended") == 1 for row in ROWS)


def test_secrets_are_nowhere(airflow, seen):
    assert not any(PASSWORD in f"{row.output} {row.log}" for row in seen.values())
    texts = [path.read_text(errors="replace") for path in airflow.task_logs.rglob("*") if path.is_file()]
    assert any("no entry with ***" in text for text in texts)
    assert not any(PASSWORD in text for text in texts)


def test_nothing_holds_a_slot_and_more_callbacks_run(airflow, seen):
    status = command(airflow, "status")
    lines = [*status["classes"], *(line for pool in status["pools"] for line in pool["classes"])]
    assert {(line["waiting"], line["parked"], line["held"]) for line in lines} == {(0, 0, 0)}
    assert not [each for each in status["requests"] if each["outcome"] == "fallback"]
    for dag_id in MORE:
        airflow.trigger(dag_id, RUN_ID)
    airflow.wait_until(lambda: all_ended(airflow, len(ROWS) + len(MORE)), "more callbacks have run")
    assert sorted(each["name"] for each in airflow.records(event="called")) == sorted(MORE)


def test_the_docs_have_the_table(seen):
    state_table(
        "docs/reference/callback-failures.md",
        ["a callback", "state", "output", "time"],
        [
            [row.what, found.state, f"`{first_line(found)}`", f"{seconds(found):.1f} s"]
            for row in ROWS
            if (found := seen[row.dag_id])
        ],
        varying=["time"],
    )
