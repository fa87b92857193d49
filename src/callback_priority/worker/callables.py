"""Finding a Dag's callable again, and calling it as Airflow would.

Airflow never stores a callable. What is stored is the place that it had in its list when the Dag file was parsed,
and its name. On the worker the Dag file is loaded anew and may have been edited since, or be of another version:

- The callable at that place, if it has that name. This is the ordinary case, and how lambdas are told apart.
- Else the one callable that has the name: the list was reordered, or grew or shrank.
- Else the callable at that place, with a warning: it was renamed or replaced, and the Dag processor, too, would
  call what the Dag file holds now. Not if that one belongs to another unit of the same request: it would be called
  twice.
- Else it is gone, and the message says what there is instead.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from importlib import import_module
from typing import Any

from airflow.sdk._shared.module_loading import accepts_context, accepts_keyword_args
from airflow.sdk.bases.notifier import BaseNotifier
from airflow.sdk.definitions.callback import AsyncCallback, Callback
from airflow.sdk.definitions.dag import DAG
from airflow.sdk.exceptions import TaskNotFound

from callback_priority.core.kinds import KINDS, DagCallback
from callback_priority.errors import CallbackPriorityError
from callback_priority.naming import callables_of, name_of
from callback_priority.protocol import UnitOrder

__all__ = ["Gone", "call", "import_path", "resolve", "result_of"]

log = logging.getLogger(__name__)


class Gone(CallbackPriorityError, LookupError):  # noqa: N818 - it is no mistake of anyone's
    """The Dag file no longer has what was to be called; the message is for people."""


def resolve(dag: DAG, order: UnitOrder, *, others: Collection[str] = ()) -> Any:
    """The callable that a unit stands for; see above for how it is chosen.

    Args:
        dag: Freshly loaded.
        order: The unit.
        others: Names of the other units of the same request, as far as they are known.

    Raises:
        Gone: Neither the place nor the name leads to it any more, or its task is not in the Dag.
    """
    kind = KINDS[order.kind]
    holder: Any = dag
    owner = f"the Dag {dag.dag_id}"
    if not issubclass(kind, DagCallback):
        task_id = order.request["ti"]["task_id"]
        owner = f"the task {task_id} of the Dag {dag.dag_id}"
        try:
            holder = dag.get_task(task_id)
        except TaskNotFound:
            raise Gone(f"there is no task {task_id} in the Dag {dag.dag_id} any more") from None
    listed = callables_of(getattr(holder, kind.attribute))
    if not listed:
        raise Gone(f"{owner} has no {kind.attribute} any more; it had {order.name}")
    names = [name_of(each) for each in listed]
    position = order.position
    if position < len(listed) and names[position] == order.name:
        return listed[position]
    if names.count(order.name) == 1:
        return listed[names.index(order.name)]
    if position >= len(listed):
        raise Gone(
            f"{order.name} was number {position + 1} in the {kind.attribute} of {owner}, which has only "
            f"{len(listed)} now: {', '.join(names)}"
        )
    if names[position] in others and names[position] != order.name:
        raise Gone(f"{order.name} is not in the {kind.attribute} of {owner} any more: {', '.join(names)}")
    log.warning(
        "%s has changed: number %d in its %s was %s and is %s now, which is called instead",
        owner,
        position + 1,
        kind.attribute,
        order.name,
        names[position],
    )
    return listed[position]


def call(value: Any, context: Any) -> Any:
    """Call a callable for a context, in an event loop of its own if it is to be awaited.

    Args:
        value: Of `resolve`.
        context: The context that the Dag processor would give.

    Returns:
        What the callable returned.
    """
    if isinstance(value, Callback):
        to_await = isinstance(value, AsyncCallback)
        result = result_of(import_path(value.path), value.kwargs, context, to_await=to_await)
        return _finished(result) if to_await or inspect.iscoroutine(result) else result
    if isinstance(value, BaseNotifier) and type(value).notify is BaseNotifier.notify:
        # Airflow takes the context for a notifier that is awaited from this attribute.
        value.context = context
        return _finished(value)
    result = value(context)
    # Only what an `async def` gives: a class that is called makes an object, and Airflow leaves it at that.
    return _finished(result) if inspect.iscoroutine(result) else result


def result_of(target: Callable[..., Any], kwargs: Mapping[str, Any], context: Any, *, to_await: bool) -> Any:
    """Call what a path leads to, as Airflow's callback supervisor does, or its trigger for callbacks.

    Args:
        target: A function, or a class whose objects are called or awaited, such as a notifier.
        kwargs: What the author passes to it.
        context: Passed beside them if the target takes it.
        to_await: An object that can be both called and awaited is to be awaited, by the caller.
    """
    result = target(**kwargs, context=context) if accepts_context(target) else target(**kwargs)
    if inspect.iscoroutine(result) or (to_await and inspect.isawaitable(result)) or not callable(result):
        return result
    if accepts_keyword_args(result):
        return result(context=context) if accepts_context(result) else result()
    return result(context)


def _finished(result: Any) -> Any:
    return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


def import_path(path: str) -> Any:
    """What an import path leads to, through nested classes too; the module may be the Dag file itself.

    Raises:
        ImportError: No module and attribute of that name.
    """
    module_name, _, rest = path.rpartition(".")
    names = [rest]
    while module_name:
        try:
            found = import_module(module_name)
        except ModuleNotFoundError as error:
            # Only if it is this module that is missing, and not one that it imports.
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise
            module_name, _, name = module_name.rpartition(".")
            names.insert(0, name)
            continue
        for name in names:
            try:
                found = getattr(found, name)
            except AttributeError:
                raise ImportError(f"there is no {'.'.join(names)} in the module {module_name}") from None
        return found
    raise ImportError(f"no module leads to {path}")
