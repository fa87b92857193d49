"""Runs the units of one run, each once, and keeps every promise that their own process cannot keep.

`supervise` stands where Airflow has ``supervise_callback``. It claims the run, forks a process that loads the Dag
file and calls the callables (`callback_priority.worker.child`), serves its requests, and tells the API server when
each unit begins and how it ended, and every now and then that it is still there. If the process ends in the middle,
or a unit exceeds its time limit and the process is killed for it, that unit fails and another process takes the rest.
If the run was taken back meanwhile, the process is stopped and nothing more is told of it: another worker has it.

Time limits hold while the supervisor itself waits for the API server: an alarm then breaks off the wait.

Airflow's ``WatchedSubprocess`` forks and watches; what is overridden here is where its sockets lead, since one
process writes into several logs, and how a process is stopped, since what a callable has started is to stop too.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, ClassVar, Final
from uuid import UUID

import attrs
import structlog
from airflow.sdk._shared.logging.structlog import reconfigure_logger
from airflow.sdk._shared.secrets_masker import reset_secrets_masker
from airflow.sdk.api.client import Client
from airflow.sdk.exceptions import ErrorType
from airflow.sdk.execution_time import comms, request_handlers
from airflow.sdk.execution_time.comms import ErrorResponse, MaskSecret, OKResponse, PrevSuccessfulDagRunResult
from airflow.sdk.execution_time.supervisor import (
    WatchedSubprocess,
    _ensure_client,
    _make_process_nondumpable,
    forward_to_log,
    length_prefixed_frame_reader,
    process_log_messages_from_subprocess,
)
from airflow.sdk.log import mask_logs
from pydantic import BaseModel

from callback_priority.errors import CallbackPriorityError
from callback_priority.protocol import Run, UnitState
from callback_priority.worker import calls, child
from callback_priority.worker.claims import patiently
from callback_priority.worker.logs import LineReader
from callback_priority.worker.messages import Refused, RequestDecoder, UnitEnded, UnitStarting
from callback_priority.worker.output import describe_exit
from callback_priority.worker.progress import Progress

__all__ = ["CallbackFailedError", "RunnerProcess", "StoppedError", "supervise"]

log = structlog.get_logger(logger_name="callback_priority.worker")

STOP_SECONDS: Final = 2.0
"""How long a process may take to end after a SIGTERM, before it is killed."""

BETWEEN_SECONDS: Final = 10.0
"""How long a process may take to end, or to come to its next unit, after a unit."""

POLL_SECONDS: Final = 0.5
"""How often it is looked whether the process has ended, where no socket tells: its own children may hold them open."""

ENDING_POLL_SECONDS: Final = 0.01

_Reading = Callable[[Client, Any], tuple[BaseModel | None, dict[str, bool]]]


def _assets_by_alias(client: Client, msg: comms.GetAssetsByAlias) -> tuple[BaseModel | None, dict[str, bool]]:
    return client.assets.get_by_alias(alias_name=msg.alias_name), {}


_READINGS: Final[dict[type[BaseModel], _Reading]] = {
    comms.DeleteVariable: request_handlers.handle_delete_variable,
    comms.GetAssetsByAlias: _assets_by_alias,
    comms.GetConnection: request_handlers.handle_get_connection,
    comms.GetDRCount: request_handlers.handle_get_dr_count,
    comms.GetDagRunState: request_handlers.handle_get_dag_run_state,
    comms.GetPreviousDagRun: request_handlers.handle_get_previous_dag_run,
    comms.GetPreviousTI: request_handlers.handle_get_previous_ti,
    comms.GetTICount: request_handlers.handle_get_ti_count,
    comms.GetTaskStates: request_handlers.handle_get_task_states,
    comms.GetVariable: request_handlers.handle_get_variable,
    comms.GetVariableKeys: request_handlers.handle_get_variable_keys,
    comms.GetXCom: request_handlers.handle_get_xcom,
    comms.GetXComCount: request_handlers.handle_get_xcom_count,
    comms.GetXComSequenceItem: request_handlers.handle_get_xcom_sequence_item,
    comms.GetXComSequenceSlice: request_handlers.handle_get_xcom_sequence_slice,
    comms.PutVariable: request_handlers.handle_put_variable,
}


class StoppedError(CallbackPriorityError, RuntimeError):
    """The worker was told to stop; units that had not begun still wait."""


class CallbackFailedError(CallbackPriorityError, RuntimeError):
    """The callback that the executor was handed has failed, and that was told."""


class _LimitReachedError(Exception):
    """Breaks off what the supervisor does for a process whose time is up."""


def supervise(
    *,
    id: str | UUID,  # noqa: A002 - the name is Airflow's
    token: str = "",
    server: str | None = None,
    client: Client | None = None,
    **_others: Any,
) -> int:
    """Run a routed callback and those that share its run.

    How each unit ended is told to the API server. The executor is told of the callback that it knows of: this fails
    if that one failed, so that a scheduler without this library writes down the same.

    Args:
        id: The callback.
        token: Airflow's own for this workload; it is good for asking for the run.
        server: The address of the execution API.
        client: Instead of these two.
        _others: What else ``supervise_callback`` is handed; the run, which is asked for, says it all.

    Returns:
        0: every unit's end has been told.

    Raises:
        StartRefusedError: The run is not to be had; nothing of the user's has run.
        TakenBackError: The run was taken back while it went on.
        CallbackFailedError: The callback failed; its own row says why.
        UnreportedError: The end of a unit could not be told.
        StoppedError: The worker was told to stop.
        httpx.HTTPError: The API server cannot be reached.
    """
    _make_process_nondumpable()
    callback_id = id if isinstance(id, UUID) else UUID(id)
    began = time.monotonic()
    with _ensure_client(server, token, client=client) as api:
        run = _start(api, callback_id)
        reset_secrets_masker()  # the secrets of other runs are none of this one's
        progress = Progress.of(api, callback_id, run)
        try:
            _carry_out(progress)
        finally:
            progress.logs.close()
            progress.settle()
    log.info(
        "Callbacks finished",
        callback_id=str(callback_id),
        units=len(run.units),
        duration=time.monotonic() - began,
    )
    if progress.leader_failed:
        raise CallbackFailedError(f"callback {callback_id} failed; its output and log say why")
    return 0


def _start(client: Client, callback_id: UUID) -> Run:
    return patiently(callback_id, lambda: calls.start(client, callback_id))


def _masking(logger: Any) -> Any:
    """The logger, with secrets masked before anything else is done with a line."""
    bound = logger.bind()
    return structlog.wrap_logger(bound._logger, processors=[mask_logs, *bound._processors], **bound._context)


def _carry_out(progress: Progress) -> None:
    while progress.waiting:
        waiting = len(progress.waiting)
        runner = RunnerProcess.start(client=progress.client, progress=progress)
        runner.watch()
        if progress.pulse.taken_back:
            progress.abandon()
            raise calls.TakenBackError(
                f"the run of callback {progress.callback_id} was taken back from this worker while it went on"
            )
        if progress.current is not None:
            reason = runner.reason(f"while it ran {progress.current.name}")
            progress.end(UnitState.FAILED, reason, lost=runner.stopped_by is not None)
        if runner.failure is not None:
            raise runner.failure
        if runner.stopped_by is not None:
            raise StoppedError(
                f"the worker was told to stop ({runner.stopped_by.name}); "
                f"{len(progress.waiting)} callback(s) of this run have not begun"
            )
        if len(progress.waiting) == waiting:
            # It did not get past loading, and would not the next time.
            reason = runner.reason(f"while it loaded the Dag file {progress.run.filepath}")
            for order in list(progress.waiting):
                progress.fail(order, reason)


@attrs.define(kw_only=True)
class RunnerProcess(WatchedSubprocess):
    """The process that runs callbacks, as its supervisor sees it.

    Attributes:
        failure: Why the supervisor can go no further.
        stopped_by: The signal by which the worker was told to stop.
    """

    client: Client
    progress: Progress

    # Airflow declares a TypeAdapter, of which it uses this one method.
    decoder: ClassVar[Any] = RequestDecoder()

    failure: Exception | None = attrs.field(default=None, init=False)
    stopped_by: signal.Signals | None = attrs.field(default=None, init=False)
    _until: float = attrs.field(default=0.0, init=False)
    _limit_seconds: float = attrs.field(default=0.0, init=False)
    _over: bool = attrs.field(default=False, init=False)
    _timed_out: bool = attrs.field(default=False, init=False)
    _serving: bool = attrs.field(default=False, init=False)
    _nonsense: Exception | None = attrs.field(default=None, init=False)
    _readers: dict[socket.socket, LineReader] = attrs.field(factory=dict, init=False, repr=False)

    @classmethod
    def start(cls, *, client: Client, progress: Progress) -> RunnerProcess:  # type: ignore[override]
        """Fork a process for the units that wait."""
        run, orders, supervisor = progress.run, tuple(progress.waiting), os.getpid()
        process: RunnerProcess = super().start(
            target=lambda: child.main(run, orders, supervisor),
            logger=progress.process_log,
            id=progress.callback_id,
            client=client,
            progress=progress,
            subprocess_logs_to_stdout=True,
        )
        # Both sides do it, so that it is done before either goes on.
        with suppress(OSError):
            os.setpgid(process.pid, process.pid)
        return process

    def watch(self) -> None:
        """Serve the process until it has ended, and see to it that it does."""
        with self._signals():
            self._allow(self.progress.run.load_limit_seconds)
            try:
                while self._exit_code is None:
                    left = self._until - time.monotonic()
                    if left <= 0:
                        self._over = self._timed_out = True
                    if self._over or self.failure is not None:
                        break
                    # With its sockets closed it is about to end.
                    poll = POLL_SECONDS if self._open_sockets else ENDING_POLL_SECONDS
                    self._service_subprocess(max_wait_time=min(left, poll))
                    if not self.progress.beat():
                        break
            except Exception as error:
                # What arrived on a socket could not be read: nothing good can come from this process any more.
                log.exception("The callback process cannot be understood", pid=self.pid)
                self._nonsense = error
            finally:
                self._allow(None)
                self._stop()
                self._close()

    def reason(self, doing: str) -> str:
        """Why the process is gone.

        Args:
            doing: What it did then, as in "while it ...".
        """
        if self.stopped_by is not None:
            return f"the worker was told to stop ({self.stopped_by.name}) {doing}"
        if self._timed_out:
            return f"exceeded its limit of {self._limit_seconds:g} s {doing}"
        if self._nonsense is not None:
            return f"what the process sent could not be read {doing}: {self._nonsense}"
        code = int(self._exit_code) if self._exit_code is not None else -int(signal.SIGKILL)
        return describe_exit(code, doing)

    def send_msg(
        self,
        msg: BaseModel | None,
        request_id: int,
        error: ErrorResponse | None = None,
        **dump_opts: Any,
    ) -> None:
        """Reply, unless the process is not to go on."""
        if not self._over:
            super().send_msg(msg, request_id, error, **dump_opts)

    def _register_pipe_readers(
        self,
        stdout: socket.socket,
        stderr: socket.socket,
        requests: socket.socket,
        logs: socket.socket,
        *,
        data: dict[socket.socket, bytes],
    ) -> None:
        own, *others = self._get_target_loggers()
        # The unit's own log masks what it is given; a component's output, as Airflow sets it up, does not.
        targets = (own, *map(_masking, others))
        plain = tuple(
            reconfigure_logger(each, structlog.processors.CallsiteParameterAdder) for each in targets
        )
        unit_logs = self.progress.logs
        out = forward_to_log(plain, logger="callback.stdout", level=logging.INFO)
        err = forward_to_log(plain, logger="callback.stderr", level=logging.ERROR)
        self._readers = {
            stdout: LineReader(out, unit_logs, whole_lines=False),
            stderr: LineReader(err, unit_logs, whole_lines=False),
            logs: LineReader(process_log_messages_from_subprocess(targets), unit_logs, whole_lines=True),
        }
        self._open_sockets.update({stdout: "stdout", stderr: "stderr", logs: "logs", requests: "requests"})
        for sock, reader in self._readers.items():
            data_ = reader.selector_data(self._on_socket_closed)
            self.selector.register(sock, selectors.EVENT_READ, data_)
        self.selector.register(
            requests,
            selectors.EVENT_READ,
            length_prefixed_frame_reader(self.handle_requests(log), on_close=self._on_socket_closed),
        )

    def _handle_request(self, msg: Any, log: Any, req_id: int) -> None:
        if self._over:
            return
        if isinstance(msg, UnitStarting):
            self._begin(msg, req_id)
        elif isinstance(msg, UnitEnded):
            self._end(msg, req_id)
        else:
            self._serving = True
            try:
                self._serve(msg, req_id)
            finally:
                self._serving = False

    def _begin(self, msg: UnitStarting, req_id: int) -> None:
        self._allow(None)
        self._drain()
        try:
            accepted = self.progress.begin(msg.callback_id)
        except KeyError:
            self._refuse(Refused(name=msg.type, reason="no such callback waits"), req_id)
            return
        except Exception as error:
            log.exception("The API server cannot be asked whether a callback may begin")
            self.failure = error
            self._over = True
            return
        current = self.progress.current
        self._allow(current.time_limit_seconds if current is not None else BETWEEN_SECONDS)
        self.send_msg(OKResponse(ok=accepted), request_id=req_id)

    def _end(self, msg: UnitEnded, req_id: int) -> None:
        current = self.progress.current
        if current is None or current.callback_id != msg.callback_id:
            self._refuse(Refused(name=msg.type, reason="no such callback runs"), req_id)
            return
        self._allow(None)
        self._drain()
        self.progress.end(msg.state, msg.output)
        self._allow(BETWEEN_SECONDS)
        self.send_msg(OKResponse(ok=True), request_id=req_id)

    def _serve(self, msg: BaseModel, req_id: int) -> None:
        if isinstance(msg, Refused):
            self._refuse(msg, req_id)
            return
        response: BaseModel | None = None
        options: dict[str, bool] = {}
        if isinstance(msg, MaskSecret):
            request_handlers.handle_mask_secret(msg)
        elif isinstance(msg, comms.GetPrevSuccessfulDagRun):
            current = self.progress.current
            if current is None:
                self._refuse(Refused(name=msg.type, reason="no callback runs"), req_id)
                return
            found = calls.previous_successful_dag_run(
                self.client, self.progress.callback_id, current.callback_id
            )
            response = PrevSuccessfulDagRunResult.from_dagrun_response(found)
            options = {"exclude_unset": True}
        else:
            response, options = _READINGS[type(msg)](self.client, msg)
        self.send_msg(response, request_id=req_id, error=None, **options)

    def _refuse(self, refused: Refused, req_id: int) -> None:
        self.progress.process_log.warning("Request refused", request=refused.name, reason=refused.reason)
        detail = {"status_code": 403, "message": f"{refused.name} is refused: {refused.reason}"}
        self.send_msg(
            None,
            request_id=req_id,
            error=ErrorResponse(error=ErrorType.PERMISSION_DENIED, detail=detail),
        )

    # Time ---------------------------------------------------------------------------------------------------------

    def _allow(self, seconds: float | None) -> None:
        """Give the process this long from now; with ``None`` it is the supervisor who takes its time."""
        if seconds is None:
            self._until = float("inf")
        else:
            self._limit_seconds = seconds
            self._until = time.monotonic() + seconds
        if _in_main_thread():
            signal.setitimer(signal.ITIMER_REAL, 0 if seconds is None else max(seconds, 0.001))

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Take the worker's signals while the process runs; in other threads than the main one there are none."""
        if not _in_main_thread():
            yield
            return
        before: dict[signal.Signals, Any] = {}
        for number, handler in (
            (signal.SIGTERM, self._on_stop),
            (signal.SIGINT, self._on_stop),
            (signal.SIGALRM, self._on_alarm),
        ):
            # A worker that ignores Ctrl-C lets what it runs come to its end.
            if number is signal.SIGALRM or signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        self.stopped_by = signal.Signals(number)
        self._signal_group(self.stopped_by)
        self._until = min(self._until, time.monotonic() + STOP_SECONDS)

    def _on_alarm(self, _number: int, _frame: FrameType | None) -> None:
        # The loop looks at the clock by itself; only in the middle of a request it may not come to that for long.
        if self._serving:
            self._over = self._timed_out = True
            raise _LimitReachedError

    # Ending -------------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        """End the process and what it has started, if it has not ended by itself."""
        if self._exit_code is not None:
            return
        self._over = True
        self._signal_group(signal.SIGTERM)
        end = time.monotonic() + STOP_SECONDS
        exit_code: int | None = None
        with suppress(Exception):
            while exit_code is None and (left := end - time.monotonic()) > 0:
                exit_code = self._service_subprocess(
                    max_wait_time=min(left, 0.1), expect_signal=signal.SIGTERM
                )
        self._signal_group(signal.SIGKILL)
        if self._exit_code is None:
            with suppress(self._process.TimeoutExpired, self._process.ProcessNotFound):
                self._exit_code = self._process.wait(timeout=STOP_SECONDS)

    def _signal_group(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            if self._exit_code is None:
                with suppress(ProcessLookupError, self._process.ProcessNotFound):
                    self._process.send_signal(number)

    def _drain(self) -> None:
        for sock, reader in self._readers.items():
            if sock in self._open_sockets:
                reader.drain(sock)

    def _close(self) -> None:
        """Read what the process has left behind and let go of it; others may still hold its sockets open."""
        self._drain()
        for sock in list(self._open_sockets):
            with suppress(OSError):
                sock.close()
        self._open_sockets.clear()
        self._readers.clear()
        self.selector.close()
        self.stdin.close()


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
