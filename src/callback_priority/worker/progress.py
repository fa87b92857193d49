"""How far a run has come: which units wait, which one runs, and what the API server has been told."""

from __future__ import annotations

import logging
from functools import partial
from uuid import UUID

import attrs
import httpx
import structlog
from airflow.sdk.api.client import Client
from airflow.sdk.execution_time.supervisor import _remote_logging_conn
from airflow.sdk.log import logging_processors, upload_to_remote
from structlog.typing import FilteringBoundLogger

from callback_priority.errors import CallbackPriorityError
from callback_priority.protocol import Ended, Run, UnitOrder, UnitState
from callback_priority.worker import calls
from callback_priority.worker.claims import in_time
from callback_priority.worker.logs import UnitLogs
from callback_priority.worker.output import masked
from callback_priority.worker.pulse import Pulse

__all__ = ["Progress", "UnreportedError"]

log = logging.getLogger(__name__)


class UnreportedError(CallbackPriorityError, RuntimeError):
    """Units ended and the API server could not be told; the scheduler finds them begun and not ended."""


@attrs.define(kw_only=True)
class Progress:
    """A run in progress.

    Args:
        client: Has the run's token.
        callback_id: The callback that the executor knows of.
        run: What the API server handed out.
        logs: Where the current unit's log goes.
        process_log: The same, for those who log.
        waiting: The units that have not begun.
        current: The unit that runs.
        pulse: Tells that this worker is still there.
        leader_failed: Whether the callback that the executor knows of has failed.
    """

    client: Client
    callback_id: UUID
    run: Run
    logs: UnitLogs
    process_log: FilteringBoundLogger
    waiting: list[UnitOrder]
    pulse: Pulse
    current: UnitOrder | None = None
    leader_failed: bool = attrs.field(default=False, init=False)
    _unreported: list[tuple[UUID, Ended]] = attrs.field(factory=list, init=False)

    @classmethod
    def of(cls, client: Client, callback_id: UUID, run: Run) -> Progress:
        """Where a run stands that was just handed out."""
        logs = UnitLogs(limit_bytes=run.log_limit_bytes)
        with _remote_logging_conn(client):
            processors = logging_processors(json_output=True)
        bound = structlog.wrap_logger(logs, processors=processors, logger_name="callback_priority").bind()
        return cls(
            client=client,
            callback_id=callback_id,
            run=run,
            logs=logs,
            process_log=bound,
            waiting=list(run.units),
            pulse=Pulse(client=client, callback_id=callback_id),
        )

    def beat(self) -> bool:
        """Tell that this worker is still there, if it is time; raises nothing.

        Returns:
            Whether the run is still this worker's, as far as it knows.
        """
        begun = [] if self.current is None else [self.current]
        return self.pulse.beat([order.callback_id for order in (*begun, *self.waiting)])

    def begin(self, unit_id: UUID) -> bool:
        """Begin a unit, with its own log, if the API server lets it.

        Returns:
            Whether it is to run.

        Raises:
            httpx.HTTPError: The server cannot be asked; the unit still waits.
            KeyError: No such unit waits.
        """
        order = next((each for each in self.waiting if each.callback_id == unit_id), None)
        if order is None or self.current is not None:
            raise KeyError(unit_id)
        accepted = calls.running(self.client, self.callback_id, unit_id)
        self.waiting.remove(order)
        if not accepted:
            log.info("Callback %s is not to run any more", unit_id)
            return False
        self.current = order
        try:
            self.logs.open(order.log_path)
        except OSError as error:
            self.end(UnitState.FAILED, f"its log cannot be written: {error}")
            return False
        return True

    def end(self, state: UnitState, output: str | None, *, lost: bool = False) -> None:
        """End the current unit: its last line, its report, its log.

        Args:
            state: How it ended.
            output: What it returned or, if it failed, why.
            lost: Whether it would have gone on but for its worker.
        """
        order, self.current = self.current, None
        if order is None:
            return
        # The secrets that the process asked for are known here, where they came through.
        output = masked(output) if output else None
        level = logging.INFO if state is UnitState.SUCCESS else logging.ERROR
        self.process_log.log(level, "Callback ended", state=str(state), output=output)
        report = Ended(state=state, output=output, log=_storable(self.logs.tail()), lost=lost)
        if order.callback_id == self.callback_id:
            self.leader_failed = state is UnitState.FAILED
        try:
            self._report(order.callback_id, report)
        except httpx.HTTPError as error:
            log.warning("The end of callback %s could not be reported yet: %s", order.callback_id, error)
            self._unreported.append((order.callback_id, report))
        self._upload_log(order)
        self.logs.close()

    def abandon(self) -> None:
        """Leave the run to whoever has it now; what ended before is still told."""
        self.process_log.error("Callback stopped: its run was taken back from this worker")
        self.current = None
        self.waiting.clear()

    def fail(self, order: UnitOrder, reason: str) -> None:
        """Fail a unit that waits and will not come to run.

        Raises:
            httpx.HTTPError: The server cannot be asked whether it was to run.
        """
        if self.begin(order.callback_id):
            self.end(UnitState.FAILED, reason)

    def settle(self) -> None:
        """Report what could not be reported when it ended.

        Raises:
            UnreportedError: It still cannot.
        """
        unreported, self._unreported = self._unreported, []
        for unit_id, report in unreported:
            try:
                in_time(partial(self._report, unit_id, report))
            except httpx.HTTPError as error:
                raise UnreportedError(
                    f"the end of callback {unit_id} ({report.state}) could not be reported: {error}"
                ) from error

    def _report(self, unit_id: UUID, report: Ended) -> None:
        if not calls.ended(self.client, self.callback_id, unit_id, report):
            log.warning("The API server holds that callback %s has ended otherwise", unit_id)

    def _upload_log(self, order: UnitOrder) -> None:
        try:
            with _remote_logging_conn(self.client):
                upload_to_remote(self.process_log)
        except Exception:
            log.exception("The log of callback %s could not be uploaded", order.callback_id)


def _storable(text: str) -> str | None:
    """A log's end as a database takes it; its secrets are masked where it is written."""
    return text.replace("\0", "\\x00").encode(errors="backslashreplace").decode() or None
