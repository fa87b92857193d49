"""The kinds of callbacks: what happened, to what, and who competes for slots with it.

One class for each kind, in a small tree that follows Airflow's own names: a deadline that was missed; a Dag run
that succeeded or failed; a task instance that begins, succeeds, fails, is retried or skipped; the e-mails that a
task sends. The text of a kind is what the database holds, and its service class follows from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Final

from callback_priority.core.classes import ServiceClass

__all__ = [
    "KINDS",
    "CallbackKind",
    "DagCallback",
    "DagFailureCallback",
    "DagSuccessCallback",
    "DeadlineCallback",
    "EmailCallback",
    "FailureEmail",
    "RetryEmail",
    "TaskCallback",
    "TaskExecuteCallback",
    "TaskFailureCallback",
    "TaskRetryCallback",
    "TaskSkippedCallback",
    "TaskSuccessCallback",
]


class CallbackKind:
    """Something that a callback is called for.

    Attributes:
        kind: The text that stands for it in tables, options of commands and metrics.
        service_class: Who competes for slots with it.
        attribute: The Dag's or task's attribute that holds the callables; empty where there is none.
    """

    kind: ClassVar[str]
    service_class: ClassVar[ServiceClass]
    attribute: ClassVar[str] = ""


class DeadlineCallback(CallbackKind):
    """A deadline was missed; Airflow makes these itself."""

    kind = "deadline"
    service_class = ServiceClass.DEADLINE


class DagCallback(CallbackKind):
    """A Dag run has ended."""

    service_class = ServiceClass.DAG_CALLBACK


class DagSuccessCallback(DagCallback):
    """It succeeded."""

    kind = "dag_success"
    attribute = "on_success_callback"


class DagFailureCallback(DagCallback):
    """It failed, timed out or can go no further."""

    kind = "dag_failure"
    attribute = "on_failure_callback"


class TaskCallback(CallbackKind):
    """Something happened to a try of a task instance."""

    service_class = ServiceClass.TASK_CALLBACK


class TaskExecuteCallback(TaskCallback):
    """It begins; always run by the task's own process."""

    kind = "task_execute"
    attribute = "on_execute_callback"


class TaskSuccessCallback(TaskCallback):
    """It succeeded."""

    kind = "task_success"
    attribute = "on_success_callback"


class TaskFailureCallback(TaskCallback):
    """It failed and is not tried again."""

    kind = "task_failure"
    attribute = "on_failure_callback"


class TaskRetryCallback(TaskCallback):
    """It failed and is tried again."""

    kind = "task_retry"
    attribute = "on_retry_callback"


class TaskSkippedCallback(TaskCallback):
    """It was skipped; always run by the task's own process."""

    kind = "task_skipped"
    attribute = "on_skipped_callback"


class EmailCallback(TaskCallback):
    """An e-mail about a try of a task instance, as its ``email`` settings ask for."""


class FailureEmail(EmailCallback):
    """It failed and is not tried again."""

    kind = "email_failure"


class RetryEmail(EmailCallback):
    """It failed and is tried again."""

    kind = "email_retry"


KINDS: Final[Mapping[str, type[CallbackKind]]] = MappingProxyType(
    {
        each.kind: each
        for each in (
            DeadlineCallback,
            DagSuccessCallback,
            DagFailureCallback,
            TaskExecuteCallback,
            TaskSuccessCallback,
            TaskFailureCallback,
            TaskRetryCallback,
            TaskSkippedCallback,
            FailureEmail,
            RetryEmail,
        )
    }
)
"""Every kind by its text."""
