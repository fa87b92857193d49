"""Which callables a Dag has: read from the Dag itself, in the process that parsed its file.

That process is the only one that has the callables in hand. What leaves it are names, import paths and whether
something is to be awaited; nothing in it depends on the process, the hash seed or where the bundle lies.

An import path is noted only where an import outside of the bundle reaches the very same callable, since the
triggerer has no bundle at hand. That leaves out what the Dag file or another file of its bundle defines, lambdas
and nested functions, partials and methods of objects, which no path reaches with their arguments.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MethodType, ModuleType
from typing import TYPE_CHECKING, Any, Final

from airflow.sdk.bases.notifier import BaseNotifier
from airflow.sdk.definitions.callback import AsyncCallback, Callback, SyncCallback

from callback_priority.core.kinds import KINDS, CallbackKind, DagCallback
from callback_priority.naming import callables_of, module_of, name_of
from callback_priority.persistence.references import Document, Reference, TaskReferences

if TYPE_CHECKING:
    from airflow.sdk.bases.operator import BaseOperator
    from airflow.sdk.definitions.dag import DAG
    from airflow.sdk.definitions.mappedoperator import MappedOperator

__all__ = ["document_of", "is_async", "reference_to"]

_EVENT: Final[Mapping[type[CallbackKind], str]] = {
    kind: kind.attribute.removeprefix("on_").removesuffix("_callback")
    for kind in KINDS.values()
    if kind.attribute
}

_DAG_FILE_PREFIX: Final = "unusual_prefix_"

_KWARGS_LIMIT: Final = 16_384
"""Characters of JSON; an ``AsyncCallback`` with more of them runs on a worker, which takes them from the Dag."""


def document_of(dag: DAG, bundle_path: Path) -> Document:
    """Every callable of a Dag and of its tasks, mapped ones too.

    Args:
        dag: As the Dag file made it, with its cluster policies applied.
        bundle_path: The directory of its bundle.
    """
    tasks = {}
    for task_id, task in dag.task_dict.items():
        callables = _callables(task, bundle_path, of_dag=False)
        emails = _emails(task)
        if callables or emails:
            tasks[task_id] = TaskReferences(callables=callables, emails=emails)
    return Document(dag=_callables(dag, bundle_path, of_dag=True), tasks=tasks)


def _callables(holder: Any, bundle_path: Path, *, of_dag: bool) -> dict[str, tuple[Reference, ...]]:
    found = {}
    for kind, event in _EVENT.items():
        if issubclass(kind, DagCallback) is of_dag and (
            listed := callables_of(getattr(holder, kind.attribute))
        ):
            found[event] = tuple(reference_to(each, bundle_path) for each in listed)
    return found


def _emails(task: BaseOperator | MappedOperator) -> frozenset[str]:
    if not task.email:
        return frozenset()
    wanted = {"failure": task.email_on_failure, "retry": task.email_on_retry}
    return frozenset(event for event, is_wanted in wanted.items() if is_wanted)


def reference_to(value: Any, bundle_path: Path) -> Reference:
    """Where a callable is found.

    Args:
        value: One of those that an ``on_*_callback`` attribute holds.
        bundle_path: The directory of the Dag's bundle.
    """
    if isinstance(value, Callback):
        kwargs = _as_json(value.kwargs)
        path = value.path if kwargs is not None and _named_path(value.path, bundle_path) else None
        executor = value.executor if isinstance(value, SyncCallback) else None
        asynchronous = isinstance(value, AsyncCallback)
        return Reference(
            name=name_of(value), is_async=asynchronous, path=path, kwargs=kwargs, executor=executor
        )
    return Reference(name=name_of(value), is_async=is_async(value), path=_import_path(value, bundle_path))


def is_async(value: Any) -> bool:
    """Whether a callable gives something to await when it is called.

    A notifier is called for what its ``notify`` does, if it has one.
    """
    while isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, BaseNotifier):
        cls = type(value)
        return cls.notify is BaseNotifier.notify and cls.async_notify is not BaseNotifier.async_notify
    if inspect.isclass(value):
        return False
    return inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(
        getattr(type(value), "__call__", None)  # noqa: B004 - what is asked is not whether there is one
    )


def _as_json(kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same, if JSON gives back exactly what it was given."""
    try:
        text = json.dumps(kwargs, allow_nan=False)
        same = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None
    return same if same == kwargs and len(text) <= _KWARGS_LIMIT else None


def _import_path(value: Any, bundle_path: Path) -> str | None:
    module_name, qualified = module_of(value), getattr(value, "__qualname__", None)
    if not isinstance(qualified, str) or "<" in qualified or module_name in {"", "__main__"}:
        return None
    module = sys.modules.get(module_name)
    if module is None or module_name.startswith(_DAG_FILE_PREFIX) or _is_within(module, bundle_path):
        return None
    found: Any = module
    for name in qualified.split("."):
        found = getattr(found, name, None)
    same = found is value or (isinstance(value, MethodType) and found == value)
    return f"{module_name}.{qualified}" if same else None


def _named_path(path: str, bundle_path: Path) -> bool:
    """Whether a path that an author wrote, or Airflow made of a callable, may be imported outside the bundle.

    One that cannot be imported here either is taken at the author's word.
    """
    if "<" in path or path.startswith((_DAG_FILE_PREFIX, "__main__.")):
        return False
    module = next((sys.modules[prefix] for prefix in _prefixes(path) if prefix in sys.modules), None)
    return module is None or not _is_within(module, bundle_path)


def _prefixes(path: str) -> Iterator[str]:
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _is_within(module: ModuleType, bundle_path: Path) -> bool:
    places = [module.__file__] if getattr(module, "__file__", None) else list(getattr(module, "__path__", ()))
    roots = {bundle_path, bundle_path.resolve()}
    return any(
        each.is_relative_to(root)
        for place in places
        if place
        for each in (Path(place), Path(place).resolve())
        for root in roots
    )
