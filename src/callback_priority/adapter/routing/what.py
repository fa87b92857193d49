"""What a request of Airflow's is about: what happened, to what, and how to tell it from anything else."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import attrs
from airflow.callbacks.callback_requests import DagCallbackRequest, EmailRequest, TaskCallbackRequest
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.utils.state import TaskInstanceState
from sqlalchemy import Connection, select

from callback_priority.core.kinds import (
    CallbackKind,
    DagFailureCallback,
    DagSuccessCallback,
    FailureEmail,
    RetryEmail,
    TaskFailureCallback,
    TaskRetryCallback,
    TaskSkippedCallback,
    TaskSuccessCallback,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

__all__ = ["DagRunFacts", "TaskFacts", "What", "dag_run_of", "what_of"]

_RUN: Final = DagRun.__table__.c
_TASK: Final = TaskInstance.__table__.c

_BY_STATE: Final[Mapping[TaskInstanceState | None, type[CallbackKind]]] = {
    # Airflow names no state where it has given up on a task instance that is stuck in its queue.
    None: TaskFailureCallback,
    TaskInstanceState.FAILED: TaskFailureCallback,
    TaskInstanceState.UPSTREAM_FAILED: TaskFailureCallback,
    TaskInstanceState.UP_FOR_RETRY: TaskRetryCallback,
    TaskInstanceState.SUCCESS: TaskSuccessCallback,
    TaskInstanceState.SKIPPED: TaskSkippedCallback,
}


@attrs.frozen(kw_only=True)
class DagRunFacts:
    """What is needed of a Dag run.

    Args:
        key: Its key.
        clear_number: How often it has been cleared.
        start_date: When it began, this time; set anew where it is run again without being cleared.
    """

    key: int
    clear_number: int
    start_date: datetime | None


@attrs.frozen(kw_only=True)
class TaskFacts:
    """What is needed of a task instance.

    Args:
        pool: The pool that it draws on.
        priority: Its weight.
    """

    pool: str
    priority: int


@attrs.frozen(kw_only=True)
class What:
    """What a request is about.

    Args:
        kind: What happened.
        dag_id: The Dag.
        run_id: Its run.
        task_instance_id: The try of the task instance; ``None`` for the Dag's own callbacks.
        task_id: The task; empty for the Dag's own callbacks.
        map_index: Which of a mapped task's instances; -1 for the others.
        try_number: Which try.
    """

    kind: type[CallbackKind]
    dag_id: str
    run_id: str
    task_instance_id: UUID | None = None
    task_id: str = ""
    map_index: int = -1
    try_number: int | None = None

    def dedupe_key(self, run: DagRunFacts | None) -> str:
        """A digest that is equal for requests about the same event, and for those only.

        A try of a task instance fails once. A Dag run ends once, until it is cleared or set to running again.
        """
        if self.task_instance_id is not None:
            event: list[Any] = ["task", str(self.task_instance_id), self.try_number]
        elif run is not None:
            began = run.start_date and run.start_date.isoformat()
            event = ["dag", run.key, run.clear_number, began]
        else:
            event = ["dag", self.dag_id, self.run_id]
        return hashlib.sha256(json.dumps([self.kind.kind, *event]).encode()).hexdigest()


def what_of(request: object) -> What | None:
    """What a request is about; ``None`` for one that this library knows nothing of.

    The kinds are those that the Dag processor would call, and the one that it drops: the success of a task that
    a trigger has ended.
    """
    if isinstance(request, DagCallbackRequest):
        kind = DagFailureCallback if request.is_failure_callback else DagSuccessCallback
        return What(kind=kind, dag_id=request.dag_id, run_id=request.run_id)
    if isinstance(request, EmailRequest):
        return _of_task(RetryEmail if request.email_type == "retry" else FailureEmail, request)
    if isinstance(request, TaskCallbackRequest):
        of_task = _BY_STATE.get(request.task_callback_type)
        return None if of_task is None else _of_task(of_task, request)
    return None


def _of_task(kind: type[CallbackKind], request: TaskCallbackRequest | EmailRequest) -> What:
    return What(
        kind=kind,
        dag_id=request.ti.dag_id,
        run_id=request.ti.run_id,
        task_instance_id=request.ti.id,
        task_id=request.ti.task_id,
        map_index=request.ti.map_index,
        try_number=request.ti.try_number,
    )


def dag_run_of(conn: Connection, what: What) -> tuple[DagRunFacts | None, TaskFacts | None]:
    """The Dag run and, if it is about one, the task instance; two statements at most.

    Columns and not Airflow's objects: loading those would have the session write what its owner has changed and
    not written yet, at a time when the owner does not expect it.
    """
    run = conn.execute(
        select(_RUN.id, _RUN.clear_number, _RUN.start_date).where(
            _RUN.dag_id == what.dag_id, _RUN.run_id == what.run_id
        )
    ).one_or_none()
    task = None
    if what.task_instance_id is not None:
        task = conn.execute(
            select(_TASK.pool, _TASK.priority_weight).where(
                _TASK.dag_id == what.dag_id,
                _TASK.task_id == what.task_id,
                _TASK.run_id == what.run_id,
                _TASK.map_index == what.map_index,
            )
        ).one_or_none()
    return (
        None
        if run is None
        else DagRunFacts(key=run.id, clear_number=run.clear_number, start_date=run.start_date),
        None if task is None else TaskFacts(pool=task.pool, priority=task.priority_weight),
    )
