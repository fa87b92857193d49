"""What a worker and the API server say to each other about callbacks that this library routes.

A worker that has been handed a callback asks for its *run*: the callback itself and those that share the run,
each with the request that Airflow made of it. It then says of each when it starts and how it ended. The models
are the bodies of those calls; the server side is `callback_priority.adapter.execution_api`.

Both sides may be of different releases for a while. `PROTOCOL` rises when an older side could no longer do its
work; a worker that is asked for a protocol that it does not speak, or the other way round, starts nothing, and
the scheduler then has the Dag processor run the callback.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel

__all__ = [
    "BUSY",
    "ENTRY",
    "PREFIX",
    "PROTOCOL",
    "Ended",
    "Killed",
    "Routed",
    "Run",
    "Start",
    "UnitOrder",
    "UnitState",
]

PROTOCOL: Final = 1

PREFIX: Final = "/callback-priority"
"""Where the calls are found in Airflow's execution API."""

ENTRY: Final = "callback_priority.worker.entry.run"
"""The import path that a routed callback's row names; what a worker without this library fails to import."""


BUSY: Final = "busy"
"""The reason in a refusal of a start that may be asked for again: another worker is at the run."""


class Start(BaseModel):
    """Asks for a run: ``POST /callbacks/{callback_id}/start``."""

    protocol: int
    library: str
    """The worker's version of this library."""
    hostname: str
    pid: int


class UnitOrder(BaseModel):
    """One callable to call."""

    callback_id: UUID
    kind: str
    """Of `callback_priority.core.kinds.KINDS`."""
    position: int
    """Its place in the Dag's or task's list of callables."""
    name: str
    """What people call it."""
    reference: dict[str, Any]
    """Where it was found when the Dag file was parsed; empty for an e-mail."""
    request_class: str
    """The name of the class in ``airflow.callbacks.callback_requests``."""
    request: dict[str, Any]
    """What Airflow would have handed to the Dag processor, as JSON."""
    time_limit_seconds: float
    log_path: str
    """Its log, relative to ``[logging] base_log_folder``."""


class Run(BaseModel):
    """What one run of a worker does; answers `Start`."""

    protocol: int
    bundle_name: str
    bundle_version: str | None
    filepath: str
    """The Dag file, relative to its bundle."""
    load_limit_seconds: float
    log_limit_bytes: int
    units: list[UnitOrder]


class UnitState(str, Enum):
    """How a unit ended."""

    SUCCESS = "success"
    FAILED = "failed"

    __str__ = str.__str__


class Ended(BaseModel):
    """Says how a unit ended: ``POST /callbacks/{callback_id}/units/{unit_id}/ended``."""

    state: UnitState
    output: str | None
    """What it returned or, if it failed, why; secrets are masked."""
    log: str | None
    """The end of its log, for ``callback-priority show``."""


class Killed(BaseModel):
    """Says that a task's process is gone: ``POST /task-instances/{task_instance_id}/killed``."""

    state: str
    """The state that the task instance takes on: ``failed`` or ``up_for_retry``."""
    exit_code: int
    in_callback: bool
    """Whether the task had ended already, so that its own callbacks may have begun."""


class Routed(BaseModel):
    """How many callbacks came of it; answers `Killed`."""

    routed: int
