"""What a worker and the API server say to each other about callbacks.

A worker that has been handed a callback that this library routes asks for its *run*: the callback itself and those
that share the run, each with the request that Airflow made of it. It then says of each when it starts and how it
ended, and every `HEARTBEAT_SECONDS` that it is still there. Of any other callback it has all it needs, and only asks
whether the *attempt* is its own to make. The models are the bodies of those calls; the server side is
`callback_priority.adapter.execution_api`.

Both sides may be of different releases for a while. `PROTOCOL` rises when an older side could no longer do its
work; a worker that is asked for a protocol that it does not speak, or the other way round, starts nothing, and
the scheduler then has the Dag processor run the callback. What came later and is not needed raises nothing: an API
server that does not know of heartbeats or attempts answers that there is no such path, and the worker does without;
a worker that sends no heartbeats does not say `Start.heartbeats`, and its silence is not held against it.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel

__all__ = [
    "BUSY",
    "ENTRY",
    "HEARTBEAT_SECONDS",
    "OVER",
    "PREFIX",
    "PROTOCOL",
    "Attempt",
    "Attempted",
    "Ended",
    "Heartbeat",
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

OVER: Final = "over"
"""The reason in a refusal of a start that came too late: the callback has ended, or waits for another attempt."""

HEARTBEAT_SECONDS: Final = 10.0
"""How often a worker says that it is still at a run: thirty times before Airflow's own threshold for tasks."""


class Start(BaseModel):
    """Asks for a run: ``POST /callbacks/{callback_id}/start``."""

    protocol: int
    library: str
    """The worker's version of this library."""
    hostname: str
    pid: int
    heartbeats: bool = False
    """Whether it is going to send `Heartbeat`; older releases do not."""


class Attempt(Start):
    """Asks whether a callback that is not routed is the worker's to run: ``POST /callbacks/{callback_id}/attempt``.

    Then the worker says when it starts and how it ended as for a run of one unit, the callback itself.
    """

    path: str
    """What is called, for people."""
    log_path: str | None
    """Its log, relative to ``[logging] base_log_folder``."""


class Attempted(BaseModel):
    """Answers `Attempt`."""

    ours: bool
    """Whether it was claimed. If not, no scheduler with this library stands behind it: it runs as in Airflow."""


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


class Heartbeat(BaseModel):
    """Says that a worker is still at its run: ``POST /callbacks/{callback_id}/heartbeat``."""

    units: list[UUID]
    """Those of which it has not said yet how they ended; at least one."""


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
    lost: bool = False
    """Whether it is no fault of its own: the worker was told to stop while it ran."""


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
