"""Components that are forked from a process which has Airflow imported."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import psutil

from tests.support.deployment import Process
from tests.support.servers import die_with_parent

__all__ = ["Forked", "Template", "running_template"]

ROOT = Path(__file__).parents[2]


@attrs.define
class Forked:
    """A process that is not our child; as much of `subprocess.Popen` as is asked for.

    Nobody learns how it ended: 0 stands for anything.
    """

    pid: int
    _process: psutil.Process | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process = psutil.Process(self.pid)

    def poll(self) -> int | None:
        """0 once it has ended."""
        return None if self._process is not None and self._process.is_running() else 0

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended.

        Raises:
            subprocess.TimeoutExpired: It has not, in time.
        """
        if self._process is not None:
            try:
                self._process.wait(timeout)
            except psutil.TimeoutExpired as error:
                raise subprocess.TimeoutExpired("a fork", timeout or 0.0) from error
        return 0

    def terminate(self) -> None:
        """Ask it to end."""
        with contextlib.suppress(psutil.NoSuchProcess):
            if self._process is not None:
                self._process.terminate()


@attrs.define
class Template:
    """The process that forks."""

    _process: subprocess.Popen[str]

    def launcher(
        self, fault_point: Callable[[str], Mapping[str, str]] | None = None
    ) -> Callable[..., Process]:
        """What starts components of a deployment.

        Args:
            fault_point: The arguments of a component's fault point, for components that have one.
        """

        def launch(name: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
            return self._fork(
                {
                    "arguments": list(arguments),
                    "environment": dict(environment),
                    "log": str(log),
                    "fault_point": None if fault_point is None else dict(fault_point(name)),
                }
            )

        return launch

    def _fork(self, order: Mapping[str, Any]) -> Forked:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Forked(int(self._process.stdout.readline()))


@contextlib.contextmanager
def running_template(environment: Mapping[str, str], log: Path) -> Iterator[Template]:
    """Start it, in the environment that its forks are going to have; everything below it ends with it."""
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.template"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            cwd=ROOT,
            env=dict(environment),
            preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509 - one system call
        )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"Airflow cannot be imported: {log.read_text()}")
        yield Template(process)
    finally:
        process.kill()
        process.wait()
