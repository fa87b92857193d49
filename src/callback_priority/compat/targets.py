"""Whether this Airflow's code is known, part by part.

Each part of the library replaces a few of Airflow's functions and relies on the text of a few more. Each of them is
known by its fingerprint (`callback_priority.fingerprint`) in the versions that were read and run, and a part knows
in which of Airflow's minor versions (*series*) it can be at work at all. Anything else, a newer version or a patched
installation, switches that part off with one line that names what differs. A part looks when it is installed or, on
workers, when it is first needed.

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
    "ATTEMPT_TARGETS",
    "FIXED_TRIGGER_TARGETS",
    "KILLED_TARGETS",
    "PARSE_TARGETS",
    "RELIED_ON",
    "REPLACED",
    "RUNTIME_TARGETS",
    "SINK_TARGETS",
    "TRIGGER_TARGETS",
    "Target",
    "airflow_version",
    "carries",
    "differences",
    "made_for",
    "mismatches",
    "replaced",
    "series",
]


@attrs.frozen(kw_only=True)
class Target:
    """A function, method or property of Airflow's.

    Args:
        module: Where it is defined.
        owner: Its class; empty for a function.
        name: Its name.
        known: Fingerprints of it in the versions that were read and run.
        made_for: The series in which the part that it belongs to replaces it or relies on it.
    """

    module: str
    owner: str
    name: str
    known: frozenset[str]
    made_for: frozenset[str] = frozenset({"3.3"})

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


def _target(
    where: tuple[str, str], name: str, *known: str, v32: str | None = None, v34: str | None = None
) -> Target:
    """A target: what is known of it in 3.3, in 3.2 and in 3.4, for those series where its part is at work."""
    by_series = {"3.2": (v32,), "3.3": known, "3.4": (v34,)}
    return Target(
        module=where[0],
        owner=where[1],
        name=name,
        known=frozenset(each for prints in by_series.values() for each in prints if each is not None),
        made_for=frozenset(each for each, prints in by_series.items() if any(prints)),
    )


REPLACED: Final[Mapping[str, Target]] = {
    target.name: target
    for target in (
        _target(
            _RUNNER,
            "_do_scheduling",
            "d7f7b40cf637b005",
            "dfc10c76aa6ad070",
            v32="d3a5c6ca2fabefbd",
            v34="4467ff0762c19564",
        ),
        _target(_RUNNER, "_executable_task_instances_to_queued", "4e30083165d4f790", v32="844de3cc91b5d344"),
        _target(_RUNNER, "_acquire_pool_capacity", v34="97b99c3365611ff8"),
        _target(_RUNNER, "_select_task_instances_to_queue", v34="670ffaf99731ea32"),
        _target(
            _RUNNER,
            "_enqueue_executor_callbacks",
            "722b24dcb9bc7a35",
            v32="722b24dcb9bc7a35",
            v34="722b24dcb9bc7a35",
        ),
        _target(
            _RUNNER,
            "_process_executor_events",
            "0177a8109a11fbb9",
            v32="0177a8109a11fbb9",
            v34="96decbd5c758dd68",
        ),
        _target(
            _RUNNER,
            "adopt_or_reset_orphaned_tasks",
            "4c72576995627d73",
            v32="eaefa8b5091d49c4",
            v34="a3d606ae6c42b816",
        ),
        _target(_DEADLINE, "handle_miss", "f57cb65f1e69de2c", v32="159ad92284473dd0", v34="5bc6865b6d219e54"),
        _target(
            _EXECUTOR,
            "_get_workloads_to_schedule",
            "d5b5a68510f11c0f",
            v32="649888e424952ea5",
            v34="1fbb0d3ba0d700da",
        ),
    )
}
"""What the hook wraps or replaces, by name; `replaced` names those of one series."""

RELIED_ON: Final[tuple[Target, ...]] = (
    _target(
        _RUNNER,
        "_critical_section_enqueue_task_instances",
        "d8fbf30e213801d6",
        v32="d8fbf30e213801d6",
        v34="53037a9d46c1e530",
    ),
    _target(
        _RUNNER,
        "_run_scheduler_loop",
        "79b6e86bb6c9f0dd",
        "f581fa8d39f8782f",
        v32="251e35e87e39e512",
        v34="d5b174f9246dbbd8",
    ),
    _target(
        _RUNNER, "_executor_to_workloads", "ff0b664fc0dce6b6", v32="ff0b664fc0dce6b6", v34="ff0b664fc0dce6b6"
    ),
    _target(
        _RUNNER, "_try_to_load_executor", "9754fb88ae91faa0", v32="9754fb88ae91faa0", v34="9754fb88ae91faa0"
    ),
    _target(
        _RUNNER,
        "_get_team_names_for_dag_ids",
        "7c0773e32407f4cd",
        v32="9f46a0ff66b7c731",
        v34="7c0773e32407f4cd",
    ),
    _target(
        _RUNNER,
        "_enqueue_task_instances_with_queued_state",
        "7cb2173e064f7af1",
        v32="7cb2173e064f7af1",
        v34="da09329027409ec1",
    ),
    _target(
        _RUNNER, "process_executor_events", "cdc0cce56c0dfe34", v32="3c44bce2753b2132", v34="19a5f79bdf2d612e"
    ),
    _target(_RUNNER, "_build_schedulable_tis_query", v34="db27b883e0f9d425"),
    _target(_POOL, "slots_stats", "7984dd775e4581da", v32="7984dd775e4581da", v34="7984dd775e4581da"),
    _target(_EXECUTOR, "trigger_tasks", "a6736d8fe96dd97a", v32="a6736d8fe96dd97a"),
    _target(_EXECUTOR, "trigger_workloads", v34="1b63cb17de127207"),
    _target(_EXECUTOR, "get_task_key", v34="b1a1fb42b0a80dc8"),
    _target(_EXECUTOR, "queue_workload", "0cf47a80e7a17416", v32="0031f504d772cf5d", v34="cae95c4a17b81489"),
    _target(_EXECUTOR, "change_state", "b93fb549e8de863c", v32="ae4587eb04ec4014", v34="b93fb549e8de863c"),
    _target(_WORKLOAD, "generate_token", "97309c809b43533f", v32="97309c809b43533f", v34="f8825b9528cd3d29"),
    _target(_EXECUTE, "make", "0de30c4459d1adb6", v32="0de30c4459d1adb6", v34="dcbb44b348bf2149"),
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

_SUBPROCESS: Final = (_CALLBACKS[0], "CallbackSubprocess")

ATTEMPT_TARGETS: Final[tuple[Target, ...]] = (
    _target(_CALLBACKS, "supervise_callback", "8f76f2a59a666b4c"),
    _target(_CALLBACKS, "execute_callback", "a486d2cc646eef98"),
    _target(_SUBPROCESS, "start", "368186455dd925df"),
    _target(_SUBPROCESS, "wait", "a6eddca37036a663"),
    _target(_SUBPROCESS, "_monitor_subprocess", "ccb2979a2c8fc2a5"),
    _target(_WATCHED, "start", "1b11446abf460466", "c2a60ce0e15cd6bf"),
    _target(_WATCHED, "kill", "da72da83457fe5c0", "d32eb94546eef871"),
    _target(_WATCHED, "_register_pipe_readers", "e4c65841b8a46958"),
    _target(_WATCHED, "_get_target_loggers", "c5df1aa0dfc69849"),
    _target(_WATCHED, "_service_subprocess", "4f2543298aa6f0c5"),
    _target(_WATCHED, "_check_subprocess_exit", "53046d0743ab49b8"),
    _target(_SUPERVISOR, "process_log_messages_from_subprocess", "21c7654af1ee4461", "847900bce6b01396"),
    _target(_SUPERVISOR, "_ensure_client", "ca671f076e9b8f18"),
)
"""What claiming the callbacks that Airflow's own code calls rests on; of 3.3.0 where there are two."""

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


_TRIGGER: Final = ("airflow.models.trigger", "Trigger")

TRIGGER_TARGETS: Final[tuple[Target, ...]] = (
    _target(_TRIGGER, "get_sorted_triggers", "f353a6c0f122910d", v32="70b7bf0200e0d977"),
    _target(_TRIGGER, "assign_unassigned", "f62aee31fef8fbd4", v32="9ba62e0dba2c2fdd"),
)
"""What `callback_priority.adapter.triggers` wraps (the first) and relies on, where triggerers take callbacks from each
other."""

FIXED_TRIGGER_TARGETS: Final[tuple[Target, ...]] = (
    _target(_TRIGGER, "get_sorted_triggers", v34="fea257cb2c5fab93"),
    _target(_TRIGGER, "assign_unassigned", v34="f62aee31fef8fbd4"),
)
"""The same where they do not."""


def airflow_version() -> str:
    """The installed version of Airflow."""
    return version("apache-airflow-core")


def series(of: str | None = None) -> str:
    """The minor version that a version of Airflow belongs to; the installed one if none is given.

    >>> series("3.4.0b2")
    '3.4'
    """
    found = Version(of or airflow_version())
    return f"{found.major}.{found.minor}"


def made_for(targets: Iterable[Target]) -> list[str]:
    """The series in which a part can be at work, the oldest first."""
    return sorted({each for target in targets for each in target.made_for}, key=Version)


def carries(targets: Iterable[Target]) -> bool:
    """Whether a part is made for the installed series, whatever the installed code looks like."""
    return series() in made_for(targets)


def replaced() -> dict[str, Target]:
    """What the hook wraps or replaces in this Airflow, by name."""
    installed = series()
    return {name: target for name, target in REPLACED.items() if installed in target.made_for}


def mismatches() -> list[str]:
    """Why the hook cannot be installed into this Airflow; empty if it can."""
    return differences((*REPLACED.values(), *RELIED_ON))


def differences(targets: Iterable[Target]) -> list[str]:
    """What keeps this Airflow from being one in which these targets are known; empty if they all are."""
    targets = list(targets)
    if not carries(targets):
        *others, last = made_for(targets)
        known = f"{', '.join(others)} and {last}" if others else last
        return [f"Airflow {airflow_version()} is not supported: this is made for Airflow {known}"]
    installed = series()
    found = []
    for target in targets:
        if installed not in target.made_for:
            continue
        try:
            actual = fingerprint(target.find())
        except (ImportError, AttributeError, OSError, TypeError, SyntaxError) as error:
            found.append(f"{target} cannot be read ({error})")
            continue
        if actual not in target.known:
            found.append(f"{target} is not the code that this release was made for (fingerprint {actual})")
    return found
