"""How patiently a worker asks for what it was handed, and tells what became of it.

A broker may deliver a workload again while the first worker is at it, when its connection was lost. The executor
takes the end of either delivery for the end of the workload, so the second one must not end first, or must leave no
trace. Celery keeps no result of a delivery that says that another is at it, which is what Airflow's own tasks do; with
any other executor the second worker waits until it is told that the run is over.

An API server that is busy or restarts gets `PATIENCE_SECONDS`: a worker that gives up looks to the scheduler like one
without this library.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Final, TypeVar
from uuid import UUID

import httpx
import structlog

from callback_priority.worker.calls import RunBusyError

__all__ = ["BUSY_SECONDS", "PATIENCE_SECONDS", "in_time", "patiently"]

log = structlog.get_logger(logger_name="callback_priority.worker")

BUSY_SECONDS: Final = 5.0
"""How long to wait before asking again."""

PATIENCE_SECONDS: Final = 60.0
"""How long an API server that cannot be reached is asked, beyond what the SDK's client does by itself."""

T = TypeVar("T")


def patiently(callback_id: UUID, ask: Callable[[], T]) -> T:
    """Ask for a callback until there is an answer that will not change.

    Args:
        callback_id: The callback.
        ask: Asks once.

    Raises:
        RunBusyError: Another worker is at it, and the executor is Celery.
        httpx.HTTPError: The API server cannot be reached, or failed, all the time.
        Exception: Whatever else `ask` raises.
    """
    while True:
        try:
            return in_time(ask)
        except RunBusyError as busy:
            if _in_celery():
                raise
            log.info("Another worker is at this run", callback_id=str(callback_id), answer=str(busy))
        time.sleep(BUSY_SECONDS)


def in_time(call: Callable[[], T]) -> T:
    """Call the API server, again and again while it fails, for `PATIENCE_SECONDS`.

    Raises:
        httpx.HTTPError: It still fails.
        Exception: Whatever else the call raises.
    """
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return call()
        except httpx.HTTPError as error:
            status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
            if time.monotonic() > give_up_at or (
                status is not None and status < httpx.codes.INTERNAL_SERVER_ERROR
            ):
                raise
            log.warning("The API server cannot be reached", error=str(error))
        time.sleep(BUSY_SECONDS)


def _in_celery() -> bool:
    """Whether a Celery worker runs this."""
    celery = sys.modules.get("celery")
    return celery is not None and bool(getattr(celery, "current_task", None))
