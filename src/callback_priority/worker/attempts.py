"""Callbacks that Airflow's own code calls on a worker, deadlines' above all: claimed, watched and told of.

Airflow runs what it is handed, as often as it is handed it, and tells its executor only whether that went well. Here
the API server is asked first whether the callback is this worker's to run. If it is, Airflow's own function runs it,
with two additions: while its process runs, the API server hears that the worker is still there; when it has ended, the
API server hears how, with the reason. What the executor is told, by a returned value or an error, stays the same.

The token is another one, of scope ``execution``: with the one that came with the callback, reading a Variable or a
Connection, for which Airflow's supervisor of callbacks has its handlers, is refused (403) in Airflow 3.3.

Airflow's function runs it just so where nobody with this library stands behind the callback: the API server does not
know the call, or says so, or cannot be reached. An alert that may come twice is better than one that does not come.

Airflow forks the process and waits for it in one class, so that class is replaced by one that knows whether its client
belongs to an attempt.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final
from uuid import UUID
from weakref import WeakKeyDictionary

import attrs
import httpx
import psutil  # type: ignore[import-untyped]
import structlog
from airflow.sdk.api.client import Client
from airflow.sdk.execution_time.callback_supervisor import CallbackSubprocess
from airflow.sdk.execution_time.supervisor import _ensure_client, _make_process_nondumpable

from callback_priority.protocol import Ended, UnitState
from callback_priority.worker import calls
from callback_priority.worker.claims import in_time, patiently
from callback_priority.worker.last_lines import LastLines
from callback_priority.worker.output import describe_error, describe_exit, masked
from callback_priority.worker.pulse import Pulse

__all__ = ["Attempt", "AttemptProcess", "supervise", "uninstall"]

log = structlog.get_logger(logger_name="callback_priority.worker")

POLL_SECONDS: Final = 0.5
"""How often it is looked whether the process has ended, where no socket tells; Airflow looks every five seconds."""

STOP_SECONDS: Final = 2.0
"""How long a process may take to end after a SIGTERM, before it is killed."""


def supervise(original: Callable[..., int], *args: Any, **kwargs: Any) -> int:
    """Run a callback as ``supervise_callback`` does, if it is this worker's to run.

    Args:
        original: Airflow's function.
        args: What it is handed.
        kwargs: The same.

    Returns:
        What Airflow's function returns.

    Raises:
        StartRefusedError: The callback is not this worker's to run; nothing of the user's has run.
        TakenBackError: It was taken back while it ran, and was stopped.
        Exception: What Airflow's function raises.
    """
    try:
        callback_id, path = UUID(str(kwargs["id"])), str(kwargs["callback_path"])
    except (KeyError, ValueError):
        return original(*args, **kwargs)
    _make_process_nondumpable()
    log_path = kwargs.get("log_path")
    with _ensure_client(kwargs.get("server"), kwargs.get("token", ""), client=kwargs.get("client")) as client:
        if not _claimed(client, callback_id, path, None if log_path is None else str(log_path)):
            return original(*args, **kwargs)
        attempt = Attempt(
            callback_id=callback_id,
            path=path,
            client=client,
            pulse=Pulse(client=client, callback_id=callback_id),
        )
        with _watching(attempt):
            return attempt.carry_out(partial(original, *args, **kwargs | {"client": client}))


def _claimed(client: Client, callback_id: UUID, path: str, log_path: str | None) -> bool:
    """Whether the callback was claimed and begins; if not, it runs as it would without this library.

    Raises:
        StartRefusedError: It must not run.
        httpx.HTTPError: It was claimed, and whether it may begin cannot be asked.
    """
    try:
        ours = patiently(
            callback_id, partial(calls.attempt, client, callback_id, path=path, log_path=log_path)
        )
    except (calls.NoSuchCallError, httpx.HTTPError) as error:
        log.warning(
            "Whether the callback is to run here cannot be asked; it runs",
            callback_id=str(callback_id),
            reason=str(error),
        )
        return False
    if ours and not in_time(partial(calls.running, client, callback_id, callback_id)):
        raise calls.RunOverError(f"callback {callback_id} was taken back before it began")
    return ours


@attrs.define(kw_only=True)
class Attempt:
    """A callback that Airflow's function runs for us.

    Args:
        callback_id: The callback.
        path: What is called.
        client: Has the token of this attempt.
        pulse: Tells that this worker is still there.
        process: Airflow's process for it, once there is one.
        lines: The end of its log.
        timed_out: Whether Airflow stopped it for ``[callbacks] callback_execution_timeout``.
    """

    callback_id: UUID
    path: str
    client: Client
    pulse: Pulse
    process: AttemptProcess | None = None
    lines: LastLines = attrs.field(factory=LastLines)
    timed_out: bool = False

    def carry_out(self, run: Callable[[], int]) -> int:
        """Run it, and tell the API server how it ended.

        Args:
            run: Airflow's function.

        Raises:
            TakenBackError: It was taken back while it ran, and was stopped.
            Exception: What Airflow's function raises.
        """
        try:
            result = run()
        except BaseException as error:
            self.stop()
            if self.pulse.taken_back:
                raise calls.TakenBackError(
                    f"callback {self.callback_id} was taken back from this worker while it ran"
                ) from error
            # Else this process is ending itself, and what becomes of the callback is the scheduler's to say.
            if isinstance(error, Exception):
                self._report(UnitState.FAILED, self.reason(error))
            raise
        self._report(UnitState.SUCCESS, None)
        return result

    def reason(self, error: BaseException) -> str:
        """Why it failed, as far as it is known: the callable's own error, or what became of its process.

        Args:
            error: What Airflow's function raised.
        """
        doing = f"while it ran {self.path}"
        code = None if self.process is None else self.process.exit_code
        if self.timed_out:
            return f"exceeded its limit, [callbacks] callback_execution_timeout, {doing}"
        if code is None or code == 0:
            return describe_error(error)
        if code == 1 and (told := self.lines.why):
            return masked(told)
        return describe_exit(code, doing)

    def beat(self) -> None:
        """Tell that this worker is still there, if it is time; stop the process if it is not to go on."""
        if not self.pulse.beat([self.callback_id]):
            self.stop()

    def stop(self) -> None:
        """End the process and what it has started, if it has not ended by itself."""
        if self.process is None or self.process.exit_code is not None:
            return
        started: list[psutil.Process] = []
        with suppress(psutil.Error):
            started = psutil.Process(self.process.pid).children(recursive=True)
        self.process.end()
        for each in started:
            with suppress(psutil.Error):
                each.kill()

    def _report(self, state: UnitState, output: str | None) -> None:
        report = Ended(state=state, output=output, log=self.lines.text() or None)
        try:
            tell = partial(calls.ended, self.client, self.callback_id, self.callback_id, report)
            if not in_time(tell):
                log.warning("The API server holds that it ended otherwise", callback_id=str(self.callback_id))
        except httpx.HTTPError as error:
            log.error(  # noqa: TRY400 - the message says it all
                "How the callback ended could not be told",
                callback_id=str(self.callback_id),
                state=str(state),
                error=str(error),
            )


_attempts: Final[WeakKeyDictionary[Client, Attempt]] = WeakKeyDictionary()
"""The attempts that go on in this process, by their clients: with threads there may be several."""


class AttemptProcess(CallbackSubprocess):
    """Airflow's process for a callback, which is watched if its client belongs to an attempt."""

    @classmethod
    def start(cls, *, client: Client, **kwargs: Any) -> AttemptProcess:  # type: ignore[override]
        """Fork it, as Airflow does."""
        process: AttemptProcess = super().start(client=client, **kwargs)
        if (attempt := _attempts.get(client)) is not None:
            attempt.process = process
        return process

    @property
    def exit_code(self) -> int | None:
        """How it ended; ``None`` if it has not, as far as is known."""
        return None if self._exit_code is None else int(self._exit_code)

    def kill(self, *args: Any, **kwargs: Any) -> None:
        """End it, as Airflow does when it has exceeded its limit, and only then."""
        if (attempt := _attempts.get(self.client)) is not None:
            attempt.timed_out = True
        super().kill(*args, **kwargs)

    def end(self) -> None:
        """End it, in a few seconds."""
        with suppress(Exception):
            super().kill(signal.SIGTERM, escalation_delay=STOP_SECONDS, force=True)
        if self._exit_code is None:
            with suppress(Exception):
                self._process.send_signal(signal.SIGKILL)

    def _get_target_loggers(self) -> tuple[Any, ...]:
        loggers: tuple[Any, ...] = super()._get_target_loggers()
        attempt = _attempts.get(self.client)
        return loggers if attempt is None else (*loggers, attempt.lines.logger())

    def _service_subprocess(
        self, max_wait_time: float, raise_on_timeout: bool = False, expect_signal: int | None = None
    ) -> int | None:
        attempt = _attempts.get(self.client)
        if attempt is None or attempt.pulse.taken_back:
            code: int | None = super()._service_subprocess(max_wait_time, raise_on_timeout, expect_signal)
            return code
        wait = min(max_wait_time, max(attempt.pulse.due_in_seconds, 0.0), POLL_SECONDS)
        super()._service_subprocess(wait, raise_on_timeout, expect_signal)
        if self._exit_code is None:
            attempt.beat()
        return self._exit_code


@contextmanager
def _watching(attempt: Attempt) -> Iterator[None]:
    setattr(sys.modules[CallbackSubprocess.__module__], CallbackSubprocess.__name__, AttemptProcess)
    _attempts[attempt.client] = attempt
    try:
        yield
    finally:
        del _attempts[attempt.client]


def uninstall() -> None:
    """Put Airflow's class back."""
    setattr(sys.modules[CallbackSubprocess.__module__], CallbackSubprocess.__name__, CallbackSubprocess)
