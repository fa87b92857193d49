"""Airflow's code that the worker side replaces or relies on, and whether it is the code that was read and run.

As for the scheduler (`callback_priority.adapter.compat`), each function is known by its fingerprint; any other code
switches the part that rests on it off. It is looked at when the part is first needed: a worker that is never handed
a routed callback never pays for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

import attrs

from callback_priority.fingerprint import fingerprint

__all__ = ["KILLED", "RUNTIME", "Known", "mismatches"]


@attrs.frozen(kw_only=True)
class Known:
    """A function, method or property of Airflow's.

    Args:
        module: Where it is defined.
        path: Its name there, with its class if it has one.
        fingerprints: Of it in the versions that were read and run.
    """

    module: str
    path: str
    fingerprints: frozenset[str]

    def find(self) -> Any:
        """The function itself; imports its module.

        Raises:
            ImportError, AttributeError: It is not there.
        """
        found: Any = import_module(self.module)
        for name in self.path.split("."):
            found = vars(found)[name] if isinstance(found, type) else getattr(found, name)
        if isinstance(found, property):
            found = found.fget
        return found.__func__ if isinstance(found, (classmethod, staticmethod)) else found

    def __str__(self) -> str:
        return f"{self.module}.{self.path}"


_SUPERVISOR: Final = "airflow.sdk.execution_time.supervisor"
_CALLBACKS: Final = "airflow.sdk.execution_time.callback_supervisor"
_PROCESSOR: Final = "airflow.dag_processing.processor"
_RUNNER: Final = "airflow.sdk.execution_time.task_runner"
_LOG: Final = "airflow.sdk.log"


def _known(module: str, path: str, *fingerprints: str) -> Known:
    return Known(module=module, path=path, fingerprints=frozenset(fingerprints))


RUNTIME: Final[tuple[Known, ...]] = (
    _known(_CALLBACKS, "supervise_callback", "8f76f2a59a666b4c"),
    _known(_SUPERVISOR, "WatchedSubprocess.start", "1b11446abf460466", "c2a60ce0e15cd6bf"),
    _known(_SUPERVISOR, "WatchedSubprocess._register_pipe_readers", "e4c65841b8a46958"),
    _known(_SUPERVISOR, "WatchedSubprocess._get_target_loggers", "c5df1aa0dfc69849"),
    _known(_SUPERVISOR, "WatchedSubprocess._on_socket_closed", "6acd872e4333a692"),
    _known(_SUPERVISOR, "WatchedSubprocess._service_subprocess", "4f2543298aa6f0c5"),
    _known(_SUPERVISOR, "WatchedSubprocess._check_subprocess_exit", "53046d0743ab49b8"),
    _known(_SUPERVISOR, "WatchedSubprocess.handle_requests", "e2c0aa30660e43b3"),
    _known(_SUPERVISOR, "WatchedSubprocess.send_msg", "0b3ca1144fc0af19"),
    _known(_SUPERVISOR, "_fork_main", "56c208873d3072b5"),
    _known(_SUPERVISOR, "length_prefixed_frame_reader", "5450f19d738e484c", "3558fd1162027f24"),
    _known(_SUPERVISOR, "process_log_messages_from_subprocess", "21c7654af1ee4461", "847900bce6b01396"),
    _known(_SUPERVISOR, "forward_to_log", "8286ef4fca14fc50", "1ba917f2f02ed22a"),
    _known(_SUPERVISOR, "_ensure_client", "ca671f076e9b8f18"),
    _known(_SUPERVISOR, "_remote_logging_conn", "2ef16440fd731165"),
    _known(_PROCESSOR, "_execute_dag_callbacks", "78b92e63a6328bb0", "c99dbd9f18ef4009"),
    _known(_PROCESSOR, "_execute_task_callbacks", "450886e271cd4e87"),
    _known(_PROCESSOR, "_execute_email_callbacks", "a0dcc599d5aa292d"),
    _known(_PROCESSOR, "_get_dag_with_task", "3ed83bd2f28fe68e"),
    _known(_RUNNER, "_send_error_email_notification", "7e974ddbf60aa5df", "228406cbf4ae3006"),
    _known(_LOG, "upload_to_remote", "346cb3f70dd0a728"),
    _known(_LOG, "init_log_file", "663a42aabe70698b"),
)
"""What running callbacks rests on; of 3.3.0 where there are two."""

KILLED: Final[tuple[Known, ...]] = (
    _known(_SUPERVISOR, "ActivitySubprocess.update_task_state_if_needed", "960f441601909120"),
    _known(_SUPERVISOR, "ActivitySubprocess._handle_request", "3c616a3348174639", "571e30a365ae5f3a"),
    _known(_SUPERVISOR, "ActivitySubprocess._send_terminal_state_msg", "5892e0c68e4d175e"),
    _known(_SUPERVISOR, "ActivitySubprocess.final_state", "72b5c5d9306f7c94"),
    _known(_RUNNER, "run", "feeb0c42c31d297a", "52f8069b98ce33cf"),
    _known(_RUNNER, "finalize", "40fd5fd62ed8808b"),
    _known(_RUNNER, "main", "2c654fd8ec1cc918"),
)
"""What telling of killed tasks rests on."""


def mismatches(known: Sequence[Known]) -> list[str]:
    """What differs from the code that was read and run; empty if nothing does."""
    found = []
    for each in known:
        try:
            actual = fingerprint(each.find())
        except (ImportError, AttributeError, KeyError, OSError, TypeError, SyntaxError) as error:
            found.append(f"{each} cannot be read ({error})")
            continue
        if actual not in each.fingerprints:
            found.append(f"{each} is not the code that this release was made for (fingerprint {actual})")
    return found
