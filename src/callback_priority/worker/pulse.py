"""Telling the API server, now and then, that this worker is still at its run."""

from __future__ import annotations

import time
from collections.abc import Collection
from uuid import UUID

import attrs
import httpx
import structlog
from airflow.sdk.api.client import Client

from callback_priority.protocol import HEARTBEAT_SECONDS
from callback_priority.worker import calls

__all__ = ["Pulse"]

log = structlog.get_logger(logger_name="callback_priority.worker")


@attrs.define(kw_only=True)
class Pulse:
    """The heartbeats of one run, sent by whoever serves its process, between two of its requests.

    What cannot be told is told the next time. An API server that is away for longer than a worker may be silent finds
    the run given to another when it is back; the worker hears of it with its next heartbeat.

    Args:
        client: Has the run's token.
        callback_id: The callback that the executor knows of.
        taken_back: Whether the server has answered that the run is not this worker's any more.
    """

    client: Client
    callback_id: UUID
    taken_back: bool = attrs.field(default=False, init=False)
    _next: float = attrs.field(factory=lambda: time.monotonic() + HEARTBEAT_SECONDS, init=False)

    @property
    def due_in_seconds(self) -> float:
        """How long until the next heartbeat; not more than zero if it is due."""
        return self._next - time.monotonic()

    def beat(self, units: Collection[UUID]) -> bool:
        """Send a heartbeat if one is due; raises nothing.

        Args:
            units: Those of which it was not told yet how they ended; without any, there is nothing to tell.

        Returns:
            Whether the run is still this worker's, as far as it knows.
        """
        if self.taken_back or not units or self.due_in_seconds > 0:
            return not self.taken_back
        try:
            self.taken_back = not calls.heartbeat(self.client, self.callback_id, units)
        except calls.NoSuchCallError as error:
            log.debug("No heartbeats are sent", callback_id=str(self.callback_id), reason=str(error))
            self._next = float("inf")
            return True
        except httpx.HTTPError as error:
            log.warning("A heartbeat was not heard", callback_id=str(self.callback_id), error=str(error))
        # From now on, so that a server that is slow to answer is not asked all the time.
        self._next = time.monotonic() + HEARTBEAT_SECONDS
        if self.taken_back:
            log.error("The run was taken back from this worker", callback_id=str(self.callback_id))
        return not self.taken_back
