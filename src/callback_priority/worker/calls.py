"""What the worker side says to the API server, over the task SDK's own client.

The client repeats calls that fail for the network's or the server's sake, and takes over the token that the server
hands out with a run (``Refreshed-API-Token``).
"""

from __future__ import annotations

import os
import time
from http import HTTPStatus
from typing import Any, Final
from uuid import UUID

import httpx
from airflow.sdk.api.client import Client, get_hostname
from airflow.sdk.api.datamodels._generated import PrevSuccessfulDagRunResponse
from pydantic import ValidationError

from callback_priority import __version__
from callback_priority.errors import CallbackPriorityError
from callback_priority.protocol import BUSY, PREFIX, PROTOCOL, Ended, Killed, Routed, Run, Start

__all__ = [
    "RunBusyError",
    "StartRefusedError",
    "ended",
    "killed",
    "previous_successful_dag_run",
    "running",
    "start",
]

_KILLED_ATTEMPTS: Final = 3
_KILLED_TIMEOUT_SECONDS: Final = 5.0
_KILLED_PAUSE_SECONDS: Final = 1.0


class StartRefusedError(CallbackPriorityError, RuntimeError):
    """The API server did not hand out the run; nothing of the user's has run."""


class RunBusyError(StartRefusedError):
    """Another worker is at the run."""


def start(client: Client, callback_id: UUID) -> Run:
    """Claim a callback and those that share its run, and change to the run's own token.

    Raises:
        RunBusyError: Another worker is at it, and this may be asked again.
        StartRefusedError: The server has no such run for this worker, or speaks another protocol.
        httpx.HTTPError: The server cannot be reached, or failed.
    """
    body = Start(protocol=PROTOCOL, library=__version__, hostname=get_hostname(), pid=os.getpid())
    try:
        response = client.post(f"{PREFIX}/callbacks/{callback_id}/start", content=body.model_dump_json())
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise
        detail = _detail(error.response)
        refused = (
            RunBusyError if isinstance(detail, dict) and detail.get("reason") == BUSY else StartRefusedError
        )
        raise refused(
            f"the API server answered {status} to the start of callback {callback_id}: {detail}"
        ) from error
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
            # Below the SDK's client, which would repeat it for minutes.
            response = httpx.Client.request(
                client,
                "POST",
                url,
                content=report.model_dump_json(),
                headers={"content-type": "application/json"},
                timeout=_KILLED_TIMEOUT_SECONDS,
            )
            return Routed.model_validate_json(response.read()).routed
        except httpx.HTTPError as error:
            status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
            final = status is not None and status < HTTPStatus.INTERNAL_SERVER_ERROR
            if final or attempt == _KILLED_ATTEMPTS:
                raise
            time.sleep(_KILLED_PAUSE_SECONDS)
    raise AssertionError("unreachable")


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
