"""How Airflow's processes come to load the library, and that it can break none of them."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from callback_priority import activation

# What each process imports of Airflow's, as its command does, and the parts of the library that have to follow.
SINK = "from airflow.callbacks.database_callback_sink import DatabaseCallbackSink"
RUN = "from airflow.sdk.execution_time.callback_supervisor import supervise_callback"
APP = "from airflow.api_fastapi.app import create_app"
PROCESSES = {
    "scheduler": (
        f"from airflow.jobs.scheduler_job_runner import SchedulerJobRunner; {SINK}",
        {"adapter.hook", "adapter.routing.sink"},
    ),
    "triggerer": (
        f"from airflow.jobs.triggerer_job_runner import TriggererJobRunner; {SINK}",
        {"adapter.triggers", "adapter.routing.sink"},
    ),
    "dag-processor": (
        "from airflow.jobs.dag_processor_job_runner import DagProcessorJobRunner",
        {"adapter.references"},
    ),
    "api-server": (f"{APP}; create_app(apps='all')", {"adapter.execution_api"}),
    "api-server for workers": (f"{APP}; create_app(apps='execution')", {"adapter.execution_api"}),
    "worker of LocalExecutor": (
        f"from airflow.executors.local_executor import LocalExecutor; {RUN}",
        {"worker.hook"},
    ),
    "worker of CeleryExecutor": (
        f"from airflow.providers.celery.executors.celery_executor_utils import app; {RUN}",
        {"worker.hook"},
    ),
    "worker in a container": (
        f"import airflow.sdk.execution_time.execute_workload; {RUN}",
        {"worker.hook"},
    ),
}

NOTED = """
import json, sys
from importlib.machinery import ModuleSpec
calls = []
{broken}
class Parts:
    # Stand in for the parts, which have tests of their own.
    def find_spec(self, name, path=None, target=None):
        if name in {parts!r}:
            return ModuleSpec(name, self)
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        if {fails!r} == "import":
            raise ImportError("broken")
        def called():
            calls.append(module.__name__)
            if {fails!r} == "call":
                raise ValueError("broken")
        module.install = module.install_parse = called
sys.meta_path.insert(0, Parts())
{code}
print("CALLS", json.dumps(sorted(set(calls))))
"""


ALL_PARTS = (*activation.SERVING, *activation.DECIDING)


def run(airflow_home, code, *, mode="active", fails=None, broken=""):
    """Run code in a fresh process; returns the parts that were asked to install, and all that was printed."""
    options = {} if mode is None else {"callback_priority": {"mode": mode}}
    parts = {module for _, module, _ in ALL_PARTS}
    result = subprocess.run(
        [sys.executable, "-c", NOTED.format(code=code, parts=parts, fails=fails, broken=broken)],
        check=False,
        env=airflow_home.subprocess_environment(options=options),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout
    [line] = [line for line in result.stdout.splitlines() if line.startswith("CALLS ")]
    return {each.removeprefix("callback_priority.") for each in json.loads(line[6:])}, result.stdout


@pytest.mark.parametrize("process", PROCESSES)
def test_each_process_installs_the_parts_that_belong_to_it(airflow_home, process):
    code, parts = PROCESSES[process]
    assert parts <= run(airflow_home, code)[0]


@pytest.mark.parametrize("process", ["worker in a container", "worker of LocalExecutor"])
def test_workers_leave_alone_what_is_the_schedulers(airflow_home, process):
    calls, _ = run(airflow_home, PROCESSES[process][0])
    assert not calls & {"adapter.hook", "adapter.routing.sink", "adapter.execution_api"}


@pytest.mark.parametrize("mode", [None, "off", " Off "])
def test_with_mode_off_no_part_that_decides_is_imported_and_what_was_routed_is_served(airflow_home, mode):
    code = "\n".join(PROCESSES[each][0] for each in ("scheduler", "dag-processor", "worker in a container"))
    deciding = sorted({module for _, module, _ in activation.DECIDING})
    calls, printed = run(
        airflow_home, f"{code}\nprint(sorted(set({deciding!r}) & set(sys.modules)))", mode=mode
    )
    assert calls == {"worker.hook"}
    assert printed.splitlines()[-2] == "[]"


@pytest.mark.parametrize("fails", ["import", "call"])
def test_a_part_that_fails_is_logged_and_breaks_nothing(airflow_home, fails):
    _, printed = run(airflow_home, PROCESSES["scheduler"][0], fails=fails)
    assert "callback_priority.adapter.hook could not be loaded" in printed
    assert "broken" in printed


def test_airflow_is_imported_without_what_the_activation_needs(airflow_home):
    calls, printed = run(airflow_home, PROCESSES["scheduler"][0], broken="sys.modules['wrapt'] = None")
    assert calls == set()
    assert "callback-priority is not active in this process" in printed


def test_airflow_finds_it_by_its_entry_point():
    found = [point for point in entry_points(group="airflow.policy") if point.name == "callback_priority"]
    assert [point.load() for point in found] == [activation]


def test_it_is_no_policy_itself():
    """Airflow takes functions that bear the names of its policies for policies."""
    import airflow.policies

    assert not set(dir(airflow.policies.local_settings_hookspec)) & {
        name for name in vars(activation) if name.endswith(("_policy", "_hook", "_vars", "_timeout"))
    }


def test_registering_again_changes_nothing():
    before = list(activation._registered)
    assert sorted(before) == sorted({awaited for awaited, _, _ in ALL_PARTS})
    activation.register()
    assert activation._registered == before


def test_it_imports_the_standard_library_only_and_the_rest_when_asked():
    tree = ast.parse(Path(activation.__file__).read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in top if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names
