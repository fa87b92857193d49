"""What an executor of the scheduler has in its queues, and whether it runs callbacks.

Up to Airflow 3.3 an executor has a queue for each sort of workload, as attributes, with connection tests from 3.3
on. From 3.4 on it has one mapping of queues by sort; the old names are still there and warn of themselves.
"""

from __future__ import annotations

from collections.abc import Hashable, MutableMapping
from typing import Any, Final

from airflow.executors import workloads
from airflow.executors.base_executor import BaseExecutor

__all__ = [
    "forget_callback",
    "may_run_callbacks",
    "queue_length",
    "queued",
    "queued_callbacks",
    "queued_connection_tests",
    "queued_tasks",
    "says_it_runs_callbacks",
]

_SORTS: Final[Any] = getattr(workloads, "WorkloadType", None)

Queue = MutableMapping[Any, Any]


def queued_tasks(executor: Any) -> Queue:
    """The task instances that an executor has been handed and has not begun, by key."""
    return _queue(executor, "EXECUTE_TASK", "queued_tasks")


def queued_callbacks(executor: Any) -> Queue:
    """The callbacks that an executor has been handed and has not begun, by key."""
    return _queue(executor, "EXECUTE_CALLBACK", "queued_callbacks")


def queued_connection_tests(executor: Any) -> Queue:
    """The connection tests that an executor has been handed and has not begun, by key."""
    return _queue(executor, "TEST_CONNECTION", "queued_connection_tests")


def _queue(executor: Any, sort: str, attribute: str) -> Queue:
    queue: Queue = (
        getattr(executor, attribute, {}) if _SORTS is None else executor.executor_queues[_SORTS[sort]]
    )
    return queue


def queued(executor: Any) -> set[Hashable]:
    """The keys of everything that an executor has been handed and has not begun."""
    if _SORTS is not None:
        return {key for queue in list(executor.executor_queues.values()) for key in queue}
    return {*executor.queued_tasks, *executor.queued_callbacks, *queued_connection_tests(executor)}


def queue_length(executor: Any) -> int:
    """How many workloads the executor's own choice of the next ones is made from."""
    if _SORTS is not None:
        return sum(len(queue) for queue in executor.executor_queues.values())
    return len(executor.queued_tasks) + len(executor.queued_callbacks)


def forget_callback(executor: Any, key: Hashable) -> None:
    """Take a callback that was not begun out of an executor's queue."""
    queued_callbacks(executor).pop(key, None)


def says_it_runs_callbacks(executor: Any) -> bool:
    """Whether an executor, or an executor's class, says that it runs callbacks."""
    if _SORTS is None:
        return bool(getattr(executor, "supports_callbacks", False))
    return _SORTS.EXECUTE_CALLBACK in getattr(executor, "supported_workload_types", ())


def may_run_callbacks(executor: Any) -> bool:
    """Whether an executor is worth trying.

    What it says of itself does not settle it (EdgeExecutor runs callbacks without saying so): one that takes
    workloads in its own way may.
    """
    return (
        says_it_runs_callbacks(executor) or type(executor).queue_workload is not BaseExecutor.queue_workload
    )
