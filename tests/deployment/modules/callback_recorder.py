"""Writes down what calls a callback, and with what: a line of JSON per call, in a file that all processes share.

A callback's context is rendered so that two deployments can be compared: what differs from run to run by itself
(identifiers, moments of a clock, addresses) is reduced to its type, everything else is shown in full.
"""

from __future__ import annotations

import datetime as dt
import enum
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Moments and identifiers that are other ones in every run.
_VARYING = frozenset(
    {
        "clear_number",
        "context_carrier",
        "created_at",
        "dag_version_id",
        "duration",
        "end_date",
        "external_executor_id",
        "first_task_scheduling_decision",
        "id",
        "last_heartbeat_at",
        "last_scheduling_decision",
        "pid",
        "queued_at",
        "queued_dttm",
        "run_after",
        "scheduled_dttm",
        "start_date",
        "trigger_id",
        "updated_at",
    }
)
_DEPTH = 5


def note(event: str, **fields: object) -> None:
    """Write a line."""
    line = {
        "event": event,
        "at": time.time(),
        "pid": os.getpid(),
        "component": os.environ.get("CALLBACK_RECORDER_COMPONENT"),
        **fields,
    }
    # One write of a line to a file opened for appending is not torn apart by the lines of other processes.
    with Path(os.environ["CALLBACK_RECORDER_FILE"]).open("ab", buffering=0) as file:
        file.write(json.dumps(line).encode() + b"\n")


def record(name: str, context: Mapping[str, Any]) -> None:
    """Write down that the callback of this name was called."""
    ti = context.get("ti")
    dag = context.get("dag")
    note(
        "callback",
        name=name,
        dag_id=getattr(dag, "dag_id", None),
        run_id=context.get("run_id"),
        task_id=getattr(ti, "task_id", None),
        try_number=getattr(ti, "try_number", None),
        keys=sorted(context),
        context={key: _of_key(context, key) for key in sorted(context)},
    )


def callback(name: str) -> Any:
    """A callback that does nothing else."""

    def call(context: Mapping[str, Any]) -> None:
        record(name, context)

    call.__name__ = call.__qualname__ = name
    return call


def _of_key(context: Mapping[str, Any], key: str) -> Any:
    try:
        return show(context[key])
    except Exception as error:  # noqa: BLE001 - that a value cannot be had is a finding as well
        return f"<{type(error).__name__}: {error}>"


def show(value: Any, depth: int = _DEPTH) -> Any:
    """A value as JSON that is the same for the same value in another deployment."""
    # A lazy value takes on the class of what it stands for once it is asked.
    kind = getattr(value, "__class__", type(value))
    if kind is type(None):
        return None
    if issubclass(kind, enum.Enum):
        return f"{kind.__name__} {value.value}"
    if kind in {bool, int, float, str}:
        return kind(value)
    if depth == 0:
        return f"<{_name(kind)}>"
    if issubclass(kind, (dt.datetime, dt.timedelta)):
        return f"{kind.__name__} {value}"
    if issubclass(kind, BaseException):
        return f"<{_name(kind)}: {value}>"
    if issubclass(kind, Mapping) and kind.__module__ == "builtins":
        return {str(name): show(each, depth - 1) for name, each in value.items()}
    if kind in {list, tuple, set, frozenset}:
        return [show(each, depth - 1) for each in value]
    return _object(value, kind, depth)


def _object(value: Any, kind: type, depth: int) -> Any:
    bases = {base.__name__ for base in kind.__mro__}
    if "ParamsDict" in bases:
        return {"<type>": _name(kind), **{name: show(value[name], depth - 1) for name in value}}
    if "DAG" in bases:
        return {"<type>": _name(kind), "dag_id": value.dag_id, "tasks": sorted(value.task_ids)}
    if bases & {"BaseOperator", "MappedOperator", "AbstractOperator"}:
        return {"<type>": _name(kind), "task_id": value.task_id, "dag_id": value.dag_id}
    if "BaseModel" in bases:  # pydantic's: the task instance and the Dag run
        fields = {name: getattr(value, name, None) for name in sorted({*type(value).model_fields, "state"})}
        return {"<type>": _name(kind)} | {
            name: _field(name, each, depth) for name, each in fields.items() if each is not None
        }
    return f"<{_name(kind)}>"


def _field(name: str, value: Any, depth: int) -> Any:
    return f"<{type(value).__name__}>" if name in _VARYING else show(value, depth - 1)


def _name(kind: type) -> str:
    # A Dag file's module has another name in every process.
    module = "<Dag file>" if kind.__module__.startswith("unusual_prefix_") else kind.__module__
    return f"{module}.{kind.__qualname__}"
