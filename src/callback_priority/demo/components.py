"""Airflow's components as processes of this one: started in groups of their own, watched, and all stopped again.

A component has children (the API server its workers, the scheduler LocalExecutor's workers, those a process per
workload), and a task's process puts itself into a group of its own. So that none can get away, this process makes
itself the reaper of its orphaned descendants where the system can do that (Linux); what a stopped component leaves
behind is then still below this process, and is found and ended there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs
import psutil  # type: ignore[import-untyped]

from callback_priority.errors import CallbackPriorityError

__all__ = ["Component", "ComponentDiedError", "Components", "adopt_orphans", "descendants", "end_descendants"]

_PR_SET_CHILD_SUBREAPER: Final = 36
_GRACE_SECONDS: Final = 4.0
_TAIL_LINES: Final = 15
_TAIL_WIDTH: Final = 240
_ROUNDS: Final = 20


class ComponentDiedError(CallbackPriorityError):
    """A component of Airflow ended though nobody asked it to."""

    def __init__(self, name: str, status: int, tail: str) -> None:
        how = f"with status {status}" if status >= 0 else f"by {signal.Signals(-status).name}"
        super().__init__(f"{name} ended {how}. The last lines of its log:\n{tail}")
        self.name = name
        self.status = status


@attrs.define(kw_only=True)
class Component:
    """One running `airflow` command."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def tail(self) -> str:
        """The end of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"    {line[:_TAIL_WIDTH]}" for line in lines[-_TAIL_LINES:])


@attrs.define(kw_only=True)
class Components:
    """The running components of one Airflow; a context manager that stops them all."""

    environment: Mapping[str, str]
    log_directory: Path
    running: list[Component] = attrs.field(factory=list, init=False)
    _bystanders: list[psutil.Process] = attrs.field(factory=lambda: psutil.Process().children(), init=False)

    def __enter__(self) -> Components:  # noqa: PYI034 - `Self` starts with 3.11
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self, name: str, arguments: Sequence[str]) -> None:
        """Start `airflow ARGUMENTS`, known by a name of ours."""
        log = self.log_directory / f"{name}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "airflow", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=dict(self.environment),
                start_new_session=True,
            )
        self.running.append(Component(name=name, process=process, log=log))

    def named(self, name: str) -> Component:
        """The running component of this name."""
        return next(component for component in self.running if component.name == name)

    def check(self) -> None:
        """Do nothing while all of them run.

        Raises:
            ComponentDiedError: One does not.
        """
        for component in self.running:
            status = component.process.poll()
            if status is not None:
                raise ComponentDiedError(component.name, status, component.tail())

    def stop(self) -> None:
        """Ask each group to end, wait a little, then end what is left, whichever group it is in."""
        with _uninterrupted():
            for component in self.running:
                _signal_group(component.process.pid, signal.SIGTERM)
            deadline = time.monotonic() + _GRACE_SECONDS
            for component in self.running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    component.process.wait(max(0.0, deadline - time.monotonic()))
            for component in self.running:
                _signal_group(component.process.pid, signal.SIGKILL)
                component.process.wait()
            self.running.clear()
            end_descendants(self._bystanders)


def adopt_orphans() -> bool:
    """Have orphaned descendants become children of this process.

    Returns:
        Whether the system can do that.
    """
    if not sys.platform.startswith("linux"):
        return False
    return bool(ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def descendants(bystanders: Collection[psutil.Process] = ()) -> list[psutil.Process]:
    """The processes below this one that are alive, without bystanders and what is below those."""
    found = []
    for child in psutil.Process().children():
        if child in bystanders:
            continue
        for process in (child, *_below(child)):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
                elif process is child:
                    # An adopted one that ended: nobody else collects its status.
                    _collect(child.pid)
    return found


def end_descendants(bystanders: Collection[psutil.Process] = ()) -> None:
    """End every process below this one that is not a bystander's, those included that start meanwhile."""
    for _ in range(_ROUNDS):
        left = descendants(bystanders)
        if not left:
            return
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=1)


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _collect(process_id: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process_id, os.WNOHANG)


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Stopping takes seconds and must come to its end: a second Ctrl-C is not heard."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
