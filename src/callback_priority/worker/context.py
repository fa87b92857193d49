"""The context that a callable gets: the one that the Dag processor would give, made by the Dag processor's own code.

Airflow builds contexts in the middle of the functions that call the callbacks. So these functions are called with
the freshly loaded Dag, in which the attribute that holds the callables is replaced for the moment by one that keeps
the context it is handed. Nothing of Airflow's is copied, and every key is Airflow's.

A request for a *success* of a task, which Airflow's function drops, takes the way of a failure.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from airflow.callbacks import callback_requests
from airflow.callbacks.callback_requests import DagCallbackRequest, EmailRequest, TaskCallbackRequest
from airflow.dag_processing import processor
from airflow.dag_processing.dagbag import DagBag
from airflow.utils.state import TaskInstanceState

from callback_priority.errors import CallbackPriorityError
from callback_priority.protocol import UnitOrder

__all__ = ["NotSentError", "WithoutContextError", "context_of", "request_of", "send_email"]


class WithoutContextError(CallbackPriorityError, LookupError):
    """Airflow did not come to call anything; the message says why, in Airflow's words."""


class NotSentError(CallbackPriorityError, RuntimeError):
    """Airflow could not send an e-mail; the message is what Airflow only writes to a log."""


def request_of(order: UnitOrder) -> DagCallbackRequest | TaskCallbackRequest | EmailRequest:
    """What Airflow asked the Dag processor for, as the object that it was."""
    kinds: Mapping[str, Any] = {
        each.__name__: each for each in (DagCallbackRequest, TaskCallbackRequest, EmailRequest)
    }
    cls = kinds.get(order.request_class) or getattr(callback_requests, order.request_class)
    request: DagCallbackRequest | TaskCallbackRequest | EmailRequest = cls.model_validate(order.request)
    return request


def context_of(bag: DagBag, order: UnitOrder, log: Any) -> Any:
    """The context for a unit of a Dag or task callback.

    Raises:
        ValueError: The Dag or the task is gone.
        WithoutContextError: Airflow would call nothing.
    """
    request = request_of(order)
    said = _Listening(log)
    caught = _Catching(order.name)
    if isinstance(request, DagCallbackRequest):
        owner, _ = processor._get_dag_with_task(bag, request.dag_id)
        attribute = "on_failure_callback" if request.is_failure_callback else "on_success_callback"
        with _Replaced(owner, attribute, caught):
            processor._execute_dag_callbacks(bag, request, said)
    elif isinstance(request, TaskCallbackRequest):
        _, task = processor._get_dag_with_task(bag, request.ti.dag_id, request.ti.task_id)
        attribute = "on_failure_callback"
        dropped = not request.is_failure_callback
        if dropped:
            request = request.model_copy(update={"task_callback_type": TaskInstanceState.FAILED})
        elif request.task_callback_type is TaskInstanceState.UP_FOR_RETRY:
            attribute = "on_retry_callback"
        with _Replaced(task, attribute, caught, even_if_empty=dropped):
            processor._execute_task_callbacks(bag, request, said)
    else:
        raise WithoutContextError(f"a {order.request_class} has no callable")
    if not caught.called:
        raise WithoutContextError(said.last or "Airflow called nothing and gave no reason")
    return caught.context


def send_email(bag: DagBag, order: UnitOrder, log: Any) -> str | None:
    """Have Airflow send an e-mail about a task.

    Returns:
        Why there was none to send; ``None`` if it was sent.

    Raises:
        ValueError: The Dag or the task is gone.
        NotSentError: It could not be sent; if an error kept it from being sent, that error is raised.
    """
    request = request_of(order)
    if not isinstance(request, EmailRequest):
        raise NotSentError(f"a {order.request_class} is not about an e-mail")
    said = _Listening(log)
    processor._execute_email_callbacks(bag, request, said)
    if said.failure is not None:
        raise said.cause or NotSentError(said.failure)
    _, task = processor._get_dag_with_task(bag, request.ti.dag_id, request.ti.task_id)
    asked: Any = task
    wanted = asked.email_on_retry if request.email_type == "retry" else asked.email_on_failure
    return None if asked.email and wanted else f"no e-mail sent: {said.last}"


class _Catching:
    """Stands where the user's callables stand, and keeps the context that it is called with."""

    def __init__(self, name: str) -> None:
        self.__name__ = name
        self.called = False
        self.context: Any = None

    def __call__(self, context: Any) -> None:
        self.called = True
        self.context = context


class _Replaced:
    """An attribute of a Dag or task that holds something else for a while.

    Args:
        owner: A Dag, an operator or a mapped operator.
        attribute: One of its ``on_*_callback``.
        value: What it holds meanwhile.
        even_if_empty: Otherwise an attribute without callables stays so, and Airflow says what it says then.
    """

    def __init__(self, owner: Any, attribute: str, value: Any, *, even_if_empty: bool = False) -> None:
        self._owner = owner
        self._attribute = attribute
        self._before = getattr(owner, attribute)
        self._value = [value] if self._before or even_if_empty else self._before

    def __enter__(self) -> None:
        setattr(self._owner, self._attribute, self._value)

    def __exit__(self, *_: object) -> None:
        setattr(self._owner, self._attribute, self._before)


class _Listening:
    """A log that remembers what Airflow's functions only log.

    Attributes:
        last: The last line.
        failure: The first line that said that something failed.
        cause: That exception.
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        self.last: str | None = None
        self.failure: str | None = None
        self.cause: BaseException | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def info(self, event: str, *args: Any, **keys: Any) -> None:
        self._hear(event, args)
        self._log.info(event, *args, **keys)

    def warning(self, event: str, *args: Any, **keys: Any) -> None:
        self._hear(event, args)
        self._log.warning(event, *args, **keys)

    def error(self, event: str, *args: Any, **keys: Any) -> None:
        self._hear(event, args, failed=True)
        self._log.error(event, *args, **keys)

    def exception(self, event: str, *args: Any, **keys: Any) -> None:
        self._hear(event, args, failed=True, cause=sys.exc_info()[1])
        self._log.exception(event, *args, **keys)

    def _hear(
        self, event: str, args: tuple[Any, ...], *, failed: bool = False, cause: BaseException | None = None
    ) -> None:
        self.last = event % args if args else event
        if failed and self.failure is None:
            self.failure = self.last
            self.cause = cause
