"""By which keys executors know workloads.

A callback's key is its identifier as a plain string in Airflow 3.2, and a type of its own from 3.3 on. A task
instance's is where it stands (Dag, task, run, try, map index); from 3.4 on executors that say so are handed the
identifier of the attempt instead. 3.2 has no connection tests.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from airflow.executors.workloads import types as _workload_types
from airflow.models.callback import CallbackKey
from airflow.models.taskinstance import TaskInstance
from airflow.models.taskinstancekey import TaskInstanceKey
from airflow.utils.state import TaskInstanceState
from sqlalchemy import select

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = [
    "callback_of",
    "callback_key",
    "connection_tests_held",
    "is_callback",
    "is_connection_test",
    "make_readable",
    "task_instances_held",
    "task_keys",
]

_ATTEMPT: Final[Any] = getattr(_workload_types, "TaskInstanceUuid", None)

try:
    _CONNECTION_TESTS: Any = import_module("airflow.models.connection_test")
except ModuleNotFoundError:
    _CONNECTION_TESTS = None

_TASK_HOLDS: Final = frozenset(
    {TaskInstanceState.QUEUED, TaskInstanceState.RUNNING, TaskInstanceState.RESTARTING}
)
_TEST_HOLDS: Final = frozenset({"queued", "running"})


def callback_key(callback_id: Hashable) -> Hashable:
    """The key of a callback."""
    return CallbackKey(str(callback_id))


def is_callback(key: object) -> bool:
    """Whether a key is a callback's."""
    return isinstance(key, CallbackKey)


def callback_of(key: object) -> UUID:
    """The callback that a callback's key stands for."""
    return UUID(str(key))


def is_connection_test(key: object) -> bool:
    """Whether a key is a connection test's."""
    return _CONNECTION_TESTS is not None and isinstance(key, _CONNECTION_TESTS.ConnectionTestKey)


def make_readable(executor: Any) -> None:
    """Change an executor's events, before Airflow reads them, so that it can.

    Airflow 3.2 looks a callback up by its key, a string, where the column wants an identifier. PostgreSQL understands
    either; on SQLite the first callback that ends would end the scheduler.
    """
    if not issubclass(CallbackKey, str):
        return
    executor.event_buffer = {
        callback_of(key) if is_callback(key) else key: event for key, event in executor.event_buffer.items()
    }


def task_keys(task_instance: Any) -> tuple[Hashable, ...]:
    """The keys by which executors may know a task instance, the most exact first."""
    coordinates: Hashable = task_instance.key
    return (coordinates,) if _ATTEMPT is None else (_ATTEMPT(task_instance.id), coordinates)


def task_instances_held(session: Session, keys: Iterable[Hashable]) -> set[Hashable]:
    """Those of the keys whose task instance holds a slot by its own row; at most two statements."""
    keys = list(keys)
    coordinates = [key for key in keys if isinstance(key, TaskInstanceKey)]
    held: set[Hashable] = set()
    if coordinates:
        wanted: Any = TaskInstance.filter_for_tis(coordinates)
        rows: Any = session.execute(
            select(
                TaskInstance.dag_id,
                TaskInstance.task_id,
                TaskInstance.run_id,
                TaskInstance.try_number,
                TaskInstance.map_index,
            ).where(wanted, TaskInstance.state.in_(_TASK_HOLDS))
        )
        held.update(TaskInstanceKey(*row) for row in rows)
    attempts = {} if _ATTEMPT is None else {key.id: key for key in keys if isinstance(key, _ATTEMPT)}
    if attempts:
        query = select(TaskInstance.id).where(
            TaskInstance.id.in_(attempts), TaskInstance.state.in_(_TASK_HOLDS)
        )
        held.update(attempts[each] for each in session.scalars(query))
    return held


def connection_tests_held(session: Session, keys: Iterable[Hashable]) -> set[Hashable]:
    """Those of the keys whose connection test holds a slot by its own row; at most one statement."""
    tests = {UUID(str(key)): key for key in keys if is_connection_test(key)}
    if not tests:
        return set()
    request = _CONNECTION_TESTS.ConnectionTestRequest
    query = select(request.id).where(request.id.in_(tests), request.state.in_(_TEST_HOLDS))
    return {tests[each] for each in session.scalars(query)}
