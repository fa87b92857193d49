"""What differs between Airflow's versions, and whether this one is known.

The hook replaces a few of Airflow's methods and relies on the text of a few more. Each is known by its
fingerprint (`callback_priority.fingerprint`) in the versions that were read and run. Anything else,
a newer version or a patched installation, switches the hook off with one line that names what differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.metadata import version
from typing import Any, Final

import attrs
from packaging.version import Version

from callback_priority.fingerprint import fingerprint

__all__ = [
    "PARSE_TARGETS",
    "REPLACED",
    "SINK_TARGETS",
    "SUPPORTED",
    "Target",
    "airflow_version",
    "differences",
    "mismatches",
]

SUPPORTED: Final = "3.3"
"""The Airflow minor version that the hook was built for."""


@attrs.frozen(kw_only=True)
class Target:
    """A method or function of Airflow's.

    Args:
        module: Where it is defined.
        owner: Its class; empty for a function.
        name: Its name.
        known: Fingerprints of it in the versions that were read and run.
    """

    module: str
    owner: str
    name: str
    known: frozenset[str]

    @property
    def cls(self) -> Any:
        """The class, or the module of a function; imports the module."""
        module = import_module(self.module)
        return getattr(module, self.owner) if self.owner else module

    def __str__(self) -> str:
        return f"{self.owner or self.module}.{self.name}"


_RUNNER: Final = ("airflow.jobs.scheduler_job_runner", "SchedulerJobRunner")
_EXECUTOR: Final = ("airflow.executors.base_executor", "BaseExecutor")
_POOL: Final = ("airflow.models.pool", "Pool")
_DEADLINE: Final = ("airflow.models.deadline", "Deadline")
_WORKLOAD: Final = ("airflow.executors.workloads.base", "BaseWorkloadSchema")
_EXECUTE: Final = ("airflow.executors.workloads.callback", "ExecuteCallback")


def _target(where: tuple[str, str], name: str, *known: str) -> Target:
    return Target(module=where[0], owner=where[1], name=name, known=frozenset(known))


REPLACED: Final[Mapping[str, Target]] = {
    target.name: target
    for target in (
        _target(_RUNNER, "_do_scheduling", "d7f7b40cf637b005", "dfc10c76aa6ad070"),
        _target(_RUNNER, "_executable_task_instances_to_queued", "4e30083165d4f790"),
        _target(_RUNNER, "_enqueue_executor_callbacks", "722b24dcb9bc7a35"),
        _target(_RUNNER, "_process_executor_events", "0177a8109a11fbb9"),
        _target(_DEADLINE, "handle_miss", "f57cb65f1e69de2c"),
        _target(_EXECUTOR, "_get_workloads_to_schedule", "d5b5a68510f11c0f"),
    )
}
"""What the hook wraps or replaces, by name."""

RELIED_ON: Final[tuple[Target, ...]] = (
    _target(_RUNNER, "_critical_section_enqueue_task_instances", "d8fbf30e213801d6"),
    _target(_RUNNER, "_run_scheduler_loop", "79b6e86bb6c9f0dd", "f581fa8d39f8782f"),
    _target(_RUNNER, "_executor_to_workloads", "ff0b664fc0dce6b6"),
    _target(_RUNNER, "_try_to_load_executor", "9754fb88ae91faa0"),
    _target(_RUNNER, "_get_team_names_for_dag_ids", "7c0773e32407f4cd"),
    _target(_RUNNER, "_enqueue_task_instances_with_queued_state", "7cb2173e064f7af1"),
    _target(_RUNNER, "process_executor_events", "cdc0cce56c0dfe34"),
    _target(_POOL, "slots_stats", "7984dd775e4581da"),
    _target(_EXECUTOR, "trigger_tasks", "a6736d8fe96dd97a"),
    _target(_EXECUTOR, "queue_workload", "0cf47a80e7a17416"),
    _target(_EXECUTOR, "change_state", "b93fb549e8de863c"),
    _target(_WORKLOAD, "generate_token", "97309c809b43533f"),
    _target(_EXECUTE, "make", "0de30c4459d1adb6"),
)
"""What the hook calls or is called by, and whose text it depends on."""

_PROCESSOR: Final = ("airflow.dag_processing.processor", "")
_MANAGER: Final = ("airflow.dag_processing.manager", "DagFileProcessorManager")

PARSE_TARGETS: Final[tuple[Target, ...]] = (
    _target(_PROCESSOR, "_serialize_dags", "156f8d6acc44f0d6"),
    _target(_PROCESSOR, "_parse_file", "067e6cfbd9c5fae4", "c4da485193933046"),
    _target(
        ("airflow.dag_processing.collection", ""), "update_dag_parsing_results_in_db", "7de7a685beee509e"
    ),
    _target(_MANAGER, "handle_parsing_result", "e1937158f0954959"),
    _target(_MANAGER, "persist_parsing_result", "0b2db5439e52f329"),
    _target(("airflow.dag_processing.dagbag", ""), "sync_bag_to_db", "6a8b41d50462dac1"),
)
"""What `callback_priority.adapter.references` wraps or relies on in the Dag processor, checked module by module."""

_LOADER: Final = ("airflow.executors.executor_loader", "ExecutorLoader")
_TRIGGERED: Final = ("airflow.models.callback", "TriggererCallback")

SINK_TARGETS: Final[tuple[Target, ...]] = (
    _target(("airflow.callbacks.database_callback_sink", "DatabaseCallbackSink"), "send", "a24db0bd70f35e57"),
    _target(("airflow.models.callback", "Callback"), "__init__", "4b4c8ac28e03c22b"),
    _target(("airflow.models.callback", "DagProcessorCallback"), "__init__", "59a16b4987452411"),
    _target(("airflow.models.callback", "ExecutorCallback"), "__init__", "223d98829a192e5d"),
    _target(_TRIGGERED, "__init__", "864b570754b4aeef"),
    _target(_TRIGGERED, "queue", "f553d10a30e05765"),
    _target(_TRIGGERED, "handle_event", "cc9dbae0faa170cc"),
    _target(("airflow.models.trigger", "Trigger"), "from_object", "502da5f8e574b231"),
    _target(_LOADER, "get_executor_names", "d6e1c0f5c42763f2"),
    _target(_LOADER, "import_executor_cls", "df41e90e5834f37c"),
)
"""What `callback_priority.adapter.routing` replaces (the first) and relies on."""


def airflow_version() -> str:
    """The installed version of Airflow."""
    return version("apache-airflow-core")


def mismatches() -> list[str]:
    """Why the hook cannot be installed into this Airflow; empty if it can."""
    return differences((*REPLACED.values(), *RELIED_ON))


def differences(targets: Iterable[Target]) -> list[str]:
    """What keeps this Airflow from being one in which these targets are known; empty if they all are."""
    installed = Version(airflow_version())
    if f"{installed.major}.{installed.minor}" != SUPPORTED:
        return [f"Airflow {installed} is not supported: this release is made for {SUPPORTED}.x"]
    found = []
    for target in targets:
        try:
            actual = fingerprint(getattr(target.cls, target.name))
        except (ImportError, AttributeError, OSError, TypeError, SyntaxError) as error:
            found.append(f"{target} cannot be read ({error})")
            continue
        if actual not in target.known:
            found.append(f"{target} is not the code that this release was made for (fingerprint {actual})")
    return found
