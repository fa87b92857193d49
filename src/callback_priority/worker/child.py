"""The process that runs callbacks: loads the Dag file once, then calls one callable after the other.

It is forked by `callback_priority.worker.supervisor` and asks it before each unit and tells it after each. It
holds no token and has no way to the database; Variables, Connections and XComs come through the supervisor.

Whatever a callable does, short of ending the process, ends its own unit only: a raised ``SystemExit`` is an error
like any other.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import structlog
from airflow.dag_processing.bundles.base import BundleVersionLock
from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.dag_processing.dagbag import BundleDagBag, DagBag
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import CommsDecoder, OKResponse

from callback_priority.core.kinds import KINDS, EmailCallback
from callback_priority.errors import CallbackPriorityError
from callback_priority.protocol import Run, UnitOrder, UnitState
from callback_priority.worker import callables
from callback_priority.worker.context import context_of, send_email
from callback_priority.worker.messages import UnitEnded, UnitStarting
from callback_priority.worker.output import describe_error, describe_result, masked

__all__ = ["DagFileError", "carry_out", "load", "main"]


_PR_SET_PDEATHSIG: Final = 1


class DagFileError(CallbackPriorityError, ImportError):
    """A Dag cannot be had from its bundle; the message holds the real error."""


def main(run: Run, orders: Sequence[UnitOrder], supervisor: int) -> None:
    """What the forked process does; its standard input is the line to the supervisor.

    Args:
        run: What the API server handed out.
        orders: The units that are still to run.
        supervisor: The process that forked this one.
    """
    _end_with(supervisor)
    with suppress(OSError):
        os.setpgid(0, 0)  # so that a signal reaches whatever a callable starts
    # As where the Dag processor loads Dag files: secrets are asked of the supervisor, not of a database.
    os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "client"
    log = structlog.get_logger(logger_name="callback")
    comms: CommsDecoder[Any, Any] = CommsDecoder(log=log, socket=_own_line())
    task_runner.SUPERVISOR_COMMS = comms
    pid = os.getpid()
    with BundleVersionLock(bundle_name=run.bundle_name, bundle_version=run.bundle_version):
        bag, error = _loaded(run, log)
        # While Airflow imports a file it hands this signal to Python, and leaves it so: then a real violation would
        # never end the process, but repeat itself for ever.
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        _flush()
        for order in orders:
            answer = comms.send(UnitStarting(callback_id=order.callback_id))
            if not (isinstance(answer, OKResponse) and answer.ok):
                continue
            try:
                state, output = carry_out(bag, error, order, log, others=_siblings(run, order))
            finally:
                # A callable that forks may let its child come back to here.
                if os.getpid() != pid:
                    os._exit(0)
            _flush()
            comms.send(UnitEnded(callback_id=order.callback_id, state=state, output=output or None))


def load(run: Run) -> DagBag:
    """Load a run's Dag file as the Dag processor does.

    Raises:
        DagFileError: The bundle, its version or the file cannot be had; a file that does not parse is no error here.
    """
    where = f"bundle {run.bundle_name!r}" + (
        f" at version {run.bundle_version}" if run.bundle_version else ""
    )
    try:
        bundle = DagBundlesManager().get_bundle(name=run.bundle_name, version=run.bundle_version)
        bundle.initialize()
        file = Path(bundle.path, run.filepath)
    except Exception as error:
        raise DagFileError(f"{where} cannot be loaded: {describe_error(error)}") from error
    if not file.exists():
        raise DagFileError(f"the Dag file {run.filepath} is not in {where}")
    return BundleDagBag(
        dag_folder=os.fspath(file), bundle_path=bundle.path, bundle_name=run.bundle_name, load_op_links=False
    )


def carry_out(
    bag: DagBag | None,
    error: BaseException | None,
    order: UnitOrder,
    log: Any,
    *,
    others: Collection[str] = (),
) -> tuple[UnitState, str]:
    """Run one unit.

    Args:
        bag: What was loaded.
        error: Why nothing was loaded.
        order: The unit.
        log: The unit's log.
        others: Names of the other units of the same request.

    Returns:
        How it ended, and what is told of that; nothing that the user's code raises gets out.
    """
    try:
        bag = _checked(bag, error, order)
        if issubclass(KINDS[order.kind], EmailCallback):
            return UnitState.SUCCESS, masked(send_email(bag, order, log) or "")
        context = context_of(bag, order, log)
        unit = callables.resolve(bag.dags[_dag_id(order)], order, others=others)
        return UnitState.SUCCESS, describe_result(callables.call(unit, context))
    except CallbackPriorityError as failure:
        log.error("Callback failed", reason=masked(str(failure)))  # noqa: TRY400 - there is no more to see in its traceback
        return UnitState.FAILED, masked(str(failure))
    except BaseException as failure:
        log.exception("Callback failed")
        return UnitState.FAILED, describe_error(failure)


def _loaded(run: Run, log: Any) -> tuple[DagBag | None, BaseException | None]:
    try:
        return load(run), None
    except CallbackPriorityError as error:
        log.error("The Dag file could not be loaded", reason=masked(str(error)))  # noqa: TRY400 - see `carry_out`
        return None, error
    except BaseException as error:
        log.exception("The Dag file could not be loaded")
        return None, DagFileError(f"the Dag file {run.filepath} could not be loaded: {describe_error(error)}")


def _checked(bag: DagBag | None, error: BaseException | None, order: UnitOrder) -> DagBag:
    """What was loaded, if there is no better reason for a Dag's absence than that it is absent.

    Raises:
        DagFileError: Nothing was loaded, or the file has an error and the Dag is not there.
    """
    if bag is None:
        raise error or DagFileError("nothing was loaded")
    if _dag_id(order) in bag.dags or not bag.import_errors:
        return bag
    file, text = next(iter(bag.import_errors.items()))
    lines = text.strip().splitlines() or ["no reason given"]
    raise DagFileError(f"the Dag file {file} has an error: {lines[-1]}\n{text.strip()}")


def _dag_id(order: UnitOrder) -> str:
    return str(order.request["dag_id"] if "dag_id" in order.request else order.request["ti"]["dag_id"])


def _siblings(run: Run, order: UnitOrder) -> frozenset[str]:
    """The names of the other callables that are called for the same occasion."""
    return frozenset(
        each.name
        for each in run.units
        if each.callback_id != order.callback_id and (each.kind, each.request) == (order.kind, order.request)
    )


def _end_with(supervisor: int) -> None:
    """Have Linux kill this process when its supervisor is gone, who can then neither tell of it nor stop it.

    The scheduler sees such a worker's end and lets another have the run: what goes on here would run beside that.
    """
    with suppress(Exception):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != supervisor:
        os._exit(1)


def _own_line() -> socket.socket:
    """The line to the supervisor, which Airflow lays to standard input, for this process alone.

    A program that a callable starts inherits standard input: it would wait there for ever, or take replies away.
    """
    line = socket.socket(fileno=os.dup(0))  # not inherited
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.close(nothing)
    return line


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # a callable may have closed or replaced it
            stream.flush()
