"""What a Dag's author gives as a callback, as a list of callables with names.

Both sides read it: where a Dag file is parsed, to note which callables there are, and on the worker, to find the
same ones again. So a name must not depend on the process, the machine or the bundle's directory.
"""

from __future__ import annotations

import functools
import re
from typing import Any, Final

__all__ = ["by_import_path", "callables_of", "module_of", "name_of", "readable"]

_DAG_FILE_MODULE: Final = re.compile(r"\Aunusual_prefix_[0-9a-f]{40}_")
"""Airflow imports a Dag file under its own name with the hash of its absolute path in front."""


def callables_of(value: Any) -> tuple[Any, ...]:
    """What an ``on_*_callback`` attribute holds, one after the other.

    Airflow takes a falsy value for none, and so does this.

    >>> callables_of(None), callables_of(print), callables_of([print, len])
    ((), (<built-in function print>,), (<built-in function print>, <built-in function len>))
    """
    if not value:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def by_import_path(value: Any) -> str | None:
    """The import path that an ``AsyncCallback`` or ``SyncCallback`` holds; ``None`` for a callable.

    These two are descriptions and cannot be called, which tells them apart without importing Airflow.
    """
    path = None if callable(value) else getattr(value, "path", None)
    return path if isinstance(path, str) else None


def name_of(value: Any) -> str:
    """What people call a callable: its module and qualified name; for an object, those of its class.

    >>> name_of(re.compile), name_of(functools.partial(re.compile, "x")), name_of(_DAG_FILE_MODULE)
    ('re.compile', 're.compile', 're.Pattern')
    """
    path = by_import_path(value)
    if path is not None:
        return readable(path)
    while isinstance(value, functools.partial):
        value = value.func
    if not isinstance(getattr(value, "__qualname__", None), str):
        value = type(value)
    module = module_of(value)
    return readable(f"{module}.{value.__qualname__}" if module else value.__qualname__)


def module_of(value: Any) -> str:
    """The name of the module that a function or class says it is from; empty if it says nothing."""
    module = getattr(value, "__module__", None)
    return module if isinstance(module, str) else ""


def readable(path: str) -> str:
    """A dotted path without what Airflow puts in front of the name of a Dag file.

    >>> readable("unusual_prefix_1c1fba8cc0b0f2ea1eb2a3d0ba6ae0d8ea1ab4bb_sales.tell")
    'sales.tell'
    """
    return _DAG_FILE_MODULE.sub("", path)
