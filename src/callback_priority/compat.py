"""What differs between Airflow's versions, and whether this one is known.

Each part of the library replaces a few of Airflow's functions and relies on the text of a few more. Each of them is
known by its fingerprint (`callback_priority.fingerprint`) in the versions that were read and run. Anything else, a
newer version or a patched installation, switches that part off with one line that names what differs. A part looks
when it is installed or, on workers, when it is first needed.

Nothing of Airflow's is imported before it is looked at.
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
    "KILLED_TARGETS",
    "PARSE_TARGETS",
    "REPLACED",
    "RUNTIME_TARGETS",
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
    """A function, method or property of Airflow's.

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

    def find(self) -> Any:
        """The function itself; imports its module.

        Raises:
            ImportError, AttributeError: It is not there.
        """
        found = getattr(self.cls, self.name)
        return found.fget if isinstance(found, property) else found

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


_SUPERVISOR: Final = ("airflow.sdk.execution_time.supervisor", "")
_WATCHED: Final = (_SUPERVISOR[0], "WatchedSubprocess")
_ACTIVITY: Final = (_SUPERVISOR[0], "ActivitySubprocess")
_CALLBACKS: Final = ("airflow.sdk.execution_time.callback_supervisor", "")
_TASK_RUNNER: Final = ("airflow.sdk.execution_time.task_runner", "")
_LOG: Final = ("airflow.sdk.log", "")

RUNTIME_TARGETS: Final[tuple[Target, ...]] = (
    _target(_CALLBACKS, "supervise_callback", "8f76f2a59a666b4c"),
    _target(_WATCHED, "start", "1b11446abf460466", "c2a60ce0e15cd6bf"),
    _target(_WATCHED, "_register_pipe_readers", "e4c65841b8a46958"),
    _target(_WATCHED, "_get_target_loggers", "c5df1aa0dfc69849"),
    _target(_WATCHED, "_on_socket_closed", "6acd872e4333a692"),
    _target(_WATCHED, "_service_subprocess", "4f2543298aa6f0c5"),
    _target(_WATCHED, "_check_subprocess_exit", "53046d0743ab49b8"),
    _target(_WATCHED, "handle_requests", "e2c0aa30660e43b3"),
    _target(_WATCHED, "send_msg", "0b3ca1144fc0af19"),
    _target(_SUPERVISOR, "_fork_main", "56c208873d3072b5"),
    _target(_SUPERVISOR, "length_prefixed_frame_reader", "5450f19d738e484c", "3558fd1162027f24"),
    _target(_SUPERVISOR, "process_log_messages_from_subprocess", "21c7654af1ee4461", "847900bce6b01396"),
    _target(_SUPERVISOR, "forward_to_log", "8286ef4fca14fc50", "1ba917f2f02ed22a"),
    _target(_SUPERVISOR, "_ensure_client", "ca671f076e9b8f18"),
    _target(_SUPERVISOR, "_remote_logging_conn", "2ef16440fd731165"),
    _target(_PROCESSOR, "_execute_dag_callbacks", "78b92e63a6328bb0", "c99dbd9f18ef4009"),
    _target(_PROCESSOR, "_execute_task_callbacks", "450886e271cd4e87"),
    _target(_PROCESSOR, "_execute_email_callbacks", "a0dcc599d5aa292d"),
    _target(_PROCESSOR, "_get_dag_with_task", "3ed83bd2f28fe68e"),
    _target(_TASK_RUNNER, "_send_error_email_notification", "7e974ddbf60aa5df", "228406cbf4ae3006"),
    _target(_LOG, "upload_to_remote", "346cb3f70dd0a728"),
    _target(_LOG, "init_log_file", "663a42aabe70698b"),
)
"""What running callbacks on a worker rests on; of 3.3.0 where there are two."""

KILLED_TARGETS: Final[tuple[Target, ...]] = (
    _target(_ACTIVITY, "update_task_state_if_needed", "960f441601909120"),
    _target(_ACTIVITY, "_handle_request", "3c616a3348174639", "571e30a365ae5f3a"),
    _target(_ACTIVITY, "_send_terminal_state_msg", "5892e0c68e4d175e"),
    _target(_ACTIVITY, "final_state", "72b5c5d9306f7c94"),
    _target(_TASK_RUNNER, "run", "feeb0c42c31d297a", "52f8069b98ce33cf"),
    _target(_TASK_RUNNER, "finalize", "40fd5fd62ed8808b"),
    _target(_TASK_RUNNER, "main", "2c654fd8ec1cc918"),
)
"""What telling of killed tasks rests on."""


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
            actual = fingerprint(target.find())
        except (ImportError, AttributeError, OSError, TypeError, SyntaxError) as error:
            found.append(f"{target} cannot be read ({error})")
            continue
        if actual not in target.known:
            found.append(f"{target} is not the code that this release was made for (fingerprint {actual})")
    return found
