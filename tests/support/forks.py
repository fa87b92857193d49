"""Components of Airflow as processes: started anew, or forked from a process which has Airflow imported.

A component's start costs two seconds of a core and more, nearly all of which goes into imports. A fork of a process
that has done them is a process of its own in every respect, with its own arguments, environment, session and log.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs

from tests.support.servers import die_with_parent

__all__ = ["Forks", "Launcher", "Process", "launched"]

ROOT = Path(__file__).parents[2]
_POLL_SECONDS = 0.02
_COMMAND_TIMEOUT_SECONDS = 120.0
_READ_AT_IMPORT = ("AIRFLOW_", "_AIRFLOW_", "PYTHON")
"""How the variables begin that Airflow and Python may read once and for all."""


class Process(Protocol):
    """What is asked of a component's process; as of `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...


class Launcher(Protocol):
    """Starts a component that dies with the tests: its name, arguments of ``airflow``, all variables, its log."""

    def __call__(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> Process: ...


def launched(
    name: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    *,
    python: str | Path = sys.executable,
) -> Process:
    """Start a component with an interpreter in which Airflow is installed; a `Launcher`."""
    with log.open("ab") as stream:
        return subprocess.Popen(
            [python, "-m", "airflow", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509 - one system call
        )


@attrs.define
class Forked:
    """A process that is a child of the template's; a `Process`."""

    pid: int
    _template: _Template
    _status: int | None = attrs.field(init=False, default=None)

    def poll(self) -> int | None:
        """Its status once it has ended; negative for a signal."""
        if self._status is None:
            self._status = self._template.ask({"poll": self.pid})
        return self._status

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended; its status.

        Raises:
            subprocess.TimeoutExpired: It has not, in time.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if until is not None and time.monotonic() >= until:
                raise subprocess.TimeoutExpired("a fork", timeout or 0.0)
            time.sleep(_POLL_SECONDS)
        return status

    def terminate(self) -> None:
        """Ask it to end."""
        if self.poll() is None:
            self._template.ask({"terminate": self.pid})


@attrs.frozen
class _Template:
    """The process that forks, and buries its dead when it is asked for them."""

    process: subprocess.Popen[str]
    variables: Mapping[str, str]

    def ask(self, order: Mapping[str, Any]) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@attrs.define
class Forks:
    """Starts components by forking; close it when all of them are done with.

    Airflow reads much of its configuration while it is imported, so there is a template for every set of Airflow's
    environment variables that is come across. All that is forked dies with its template, and that with the tests.

    Args:
        directory: For the templates' logs.
    """

    directory: Path
    _templates: list[_Template] = attrs.field(factory=list, init=False)

    def launch(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        fault_point: Mapping[str, str] | None = None,
    ) -> Forked:
        """Start a component; a `Launcher`.

        Args:
            name: Which.
            arguments: Those of ``airflow``.
            environment: All its variables.
            log: Where its output goes.
            fault_point: What the fault point is made with, for a component that has one.
        """
        template = self._template(environment)
        pid = template.ask(
            {
                "arguments": list(arguments),
                "environment": dict(environment),
                "log": str(log),
                "fault_point": None if fault_point is None else dict(fault_point),
            }
        )
        return Forked(pid, template)

    def launcher(self, fault_point: Callable[[str], Mapping[str, str]]) -> Launcher:
        """What starts components that have a fault point.

        Args:
            fault_point: What a component's is made with.
        """

        def launch(name: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
            return self.launch(name, arguments, environment, log, fault_point=fault_point(name))

        return launch

    def run(self, arguments: Sequence[str], environment: Mapping[str, str]) -> str:
        """Run an ``airflow`` command to its end.

        Returns:
            What it printed.

        Raises:
            RuntimeError: It failed; with what it printed.
        """
        log = self.directory / "command.log"
        log.unlink(missing_ok=True)
        status = self.launch("command", arguments, environment, log).wait(_COMMAND_TIMEOUT_SECONDS)
        printed = log.read_text(encoding="utf-8", errors="replace")
        if status:
            raise RuntimeError(f"airflow {' '.join(arguments)} ended {status}:\n{printed}")
        return printed

    def close(self) -> None:
        """Kill the templates, and with them whatever is left of their forks."""
        for template in self._templates:
            template.process.kill()
            template.process.wait()
            for stream in (template.process.stdin, template.process.stdout):
                assert stream is not None
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._templates.clear()

    def _template(self, environment: Mapping[str, str]) -> _Template:
        variables = {name: text for name, text in environment.items() if name.startswith(_READ_AT_IMPORT)}
        for each in self._templates:
            if each.variables == variables:
                return each
        log = self.directory / f"template-{len(self._templates) + 1}.log"
        with log.open("ab") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.template"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                cwd=ROOT,
                env=dict(environment),
                preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509 - one system call
            )
        template = _Template(process, variables)
        self._templates.append(template)
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"Airflow cannot be imported: {log.read_text()}")
        return template
