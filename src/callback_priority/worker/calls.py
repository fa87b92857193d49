"""What the worker side says to the API server, over the task SDK's own client.

The client repeats calls that fail for the network's or the server's sake, and takes over the token that the server
hands out with a run (``Refreshed-API-Token``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Final
from uuid import UUID

import httpx
from airflow.sdk.api.client import Client, get_hostname
from airflow.sdk.api.datamodels._generated import PrevSuccessfulDagRunResponse
from airflow.sdk.exceptions import TaskAlreadyRunningError
from pydantic import BaseModel, ValidationError

from callback_priority import __version__
from callback_priority.errors import CallbackPriorityError
from callback_priority.protocol import (
    BUSY,
    OVER,
    PREFIX,
    PROTOCOL,
    Attempt,
    Attempted,
    Ended,
    Heartbeat,
    Killed,
    Routed,
    Run,
    Start,
)

__all__ = [
    "NoSuchCallError",
    "RunBusyError",
    "RunOverError",
    "StartRefusedError",
    "TakenBackError",
    "attempt",
    "ended",
    "heartbeat",
    "killed",
    "previous_successful_dag_run",
    "running",
    "start",
]

_KILLED_ATTEMPTS: Final = 3
_KILLED_TIMEOUT_SECONDS: Final = 5.0
_KILLED_PAUSE_SECONDS: Final = 1.0
_HEARTBEAT_TIMEOUT_SECONDS: Final = 2.0


class StartRefusedError(CallbackPriorityError, RuntimeError):
    """The API server did not hand out the run; nothing of the user's has run."""


class RunOverError(StartRefusedError):
    """It was delivered too late: the callback has ended, or waits for another attempt."""


class RunBusyError(StartRefusedError, TaskAlreadyRunningError):
    """Another worker is at the run. As of a task that is, Celery keeps no result of such a delivery."""


class TakenBackError(CallbackPriorityError, TaskAlreadyRunningError):
    """The run was taken back from this worker while it was at it, and nothing more is told of it."""


class NoSuchCallError(CallbackPriorityError, LookupError):
    """The API server does not know what was asked of it: it has an older release of this library, or none."""


def start(client: Client, callback_id: UUID) -> Run:
    """Claim a callback and those that share its run, and change to the run's own token.

    Raises:
        RunBusyError: Another worker is at it, and this may be asked again.
        RunOverError: This comes too late.
        StartRefusedError: The server has no such run for this worker, or speaks another protocol.
        httpx.HTTPError: The server cannot be reached, or failed.
    """
    body = Start.model_validate(_introduction())
    response = _claimed(client, callback_id, "start", body)
    try:
        answer = response.json()
        spoken = answer.get("protocol")
        if spoken != PROTOCOL:
            raise StartRefusedError(
                f"the API server speaks protocol {spoken} and this worker {PROTOCOL}: "
                "run the same release of callback-priority on both"
            )
        return Run.model_validate(answer)
    except (AttributeError, ValueError, ValidationError) as error:
        raise StartRefusedError(f"the API server's answer to the start cannot be read: {error}") from error


def attempt(client: Client, callback_id: UUID, *, path: str, log_path: str | None) -> bool:
    """Claim a callback that Airflow's own code is going to call, and change to a token for that.

    Args:
        client: Has the workload's token.
        callback_id: The callback.
        path: What is going to be called.
        log_path: Its log.

    Returns:
        Whether it was claimed; if not, nobody counts on this worker to do so.

    Raises:
        RunBusyError: Another worker is at it, and this may be asked again.
        RunOverError: This comes too late.
        StartRefusedError: The token is not good any more, or the callback has begun to run.
        NoSuchCallError: The server knows no attempts, or not in these words.
        httpx.HTTPError: The server cannot be reached, or failed.
    """
    body = Attempt.model_validate(_introduction() | {"path": path, "log_path": log_path})
    response = _claimed(client, callback_id, "attempt", body)
    try:
        return Attempted.model_validate_json(response.read()).ours
    except ValidationError as error:
        raise NoSuchCallError(f"the API server's answer to the attempt cannot be read: {error}") from error


def heartbeat(client: Client, callback_id: UUID, units: Iterable[UUID]) -> bool:
    """Say that this worker is still at its run, once and without much patience: there will be a next time.

    Args:
        client: Has the run's token.
        callback_id: The callback that the executor knows of.
        units: Those of which it has not been told how they ended.

    Returns:
        Whether the run is still this worker's.

    Raises:
        NoSuchCallError: The server knows no heartbeats.
        httpx.HTTPError: The server cannot be reached, or failed.
    """
    try:
        _once(
            client,
            f"{PREFIX}/callbacks/{callback_id}/heartbeat",
            Heartbeat(units=list(units)),
            timeout_seconds=_HEARTBEAT_TIMEOUT_SECONDS,
        )
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status == HTTPStatus.CONFLICT:
            return False
        if status == HTTPStatus.NOT_FOUND:
            if isinstance(_detail(error.response), dict):
                return False
            raise NoSuchCallError("the API server knows no heartbeats") from error
        raise
    return True


def running(client: Client, callback_id: UUID, unit_id: UUID) -> bool:
    """Say that a unit begins.

    Returns:
        Whether it is to run.

    Raises:
        httpx.HTTPError: It cannot be said, so the unit must not run.
    """
    return _taken(client, f"{PREFIX}/callbacks/{callback_id}/units/{unit_id}/running", content=None)


def ended(client: Client, callback_id: UUID, unit_id: UUID, report: Ended) -> bool:
    """Say how a unit ended.

    Returns:
        Whether the server took it; not if it was told, or decided, otherwise before.

    Raises:
        httpx.HTTPError: It cannot be said.
    """
    url = f"{PREFIX}/callbacks/{callback_id}/units/{unit_id}/ended"
    return _taken(client, url, content=report.model_dump_json())


def previous_successful_dag_run(
    client: Client, callback_id: UUID, unit_id: UUID
) -> PrevSuccessfulDagRunResponse:
    """The Dag run that a task asks for with ``prev_start_date_success`` and the like, for a unit's Dag run."""
    url = f"{PREFIX}/callbacks/{callback_id}/units/{unit_id}/previous-successful-dagrun"
    return PrevSuccessfulDagRunResponse.model_validate_json(client.get(url).read())


def killed(client: Client, task_instance_id: UUID, report: Killed) -> int:
    """Say that a task's process is gone, with a few short attempts: the task's own last report waits for it.

    Returns:
        How many callbacks the server makes of it.

    Raises:
        httpx.HTTPError: It could not be said.
    """
    url = f"{PREFIX}/task-instances/{task_instance_id}/killed"
    for attempt in range(1, _KILLED_ATTEMPTS + 1):
        try:
            response = _once(client, url, report, timeout_seconds=_KILLED_TIMEOUT_SECONDS)
            return Routed.model_validate_json(response.read()).routed
        except httpx.HTTPError as error:
            status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
            final = status is not None and status < HTTPStatus.INTERNAL_SERVER_ERROR
            if final or attempt == _KILLED_ATTEMPTS:
                raise
            time.sleep(_KILLED_PAUSE_SECONDS)
    raise AssertionError("unreachable")


def _introduction() -> dict[str, Any]:
    return {
        "protocol": PROTOCOL,
        "library": __version__,
        "hostname": get_hostname(),
        "pid": os.getpid(),
        "heartbeats": True,
    }


def _claimed(client: Client, callback_id: UUID, call: str, body: Start) -> httpx.Response:
    try:
        return client.post(f"{PREFIX}/callbacks/{callback_id}/{call}", content=body.model_dump_json())
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise
        detail = _detail(error.response)
        answered = f"the API server answered {status} to the {call} of callback {callback_id}: {detail}"
        if call == "attempt" and status in _NOT_UNDERSTOOD:
            raise NoSuchCallError(answered) from error
        reason = detail.get("reason") if isinstance(detail, dict) else None
        raise _REFUSALS.get(reason, StartRefusedError)(answered) from error


_NOT_UNDERSTOOD: Final = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.METHOD_NOT_ALLOWED,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    }
)
_REFUSALS: Final[dict[Any, type[StartRefusedError]]] = {BUSY: RunBusyError, OVER: RunOverError}


def _once(client: Client, url: str, body: BaseModel, *, timeout_seconds: float) -> httpx.Response:
    """Below the SDK's client, which would repeat it for minutes."""
    return httpx.Client.request(
        client,
        "POST",
        url,
        content=body.model_dump_json(),
        headers={"content-type": "application/json"},
        timeout=timeout_seconds,
    )


def _taken(client: Client, url: str, *, content: str | None) -> bool:
    try:
        client.post(url, content=content)
    except httpx.HTTPStatusError as error:
        # The unit has ended, is another run's by now, or is withdrawn.
        if error.response.status_code not in {HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND}:
            raise
        return False
    return True


def _detail(response: httpx.Response) -> Any:
    try:
        return response.json()["detail"]
    except (KeyError, TypeError, ValueError):
        return response.reason_phrase
