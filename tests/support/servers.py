"""What the private servers of a test session have in common: who they run as, where they listen, how they end."""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = [
    "can_execute",
    "copy_program",
    "die_with_parent",
    "free_port",
    "stop_process",
    "unprivileged_identity",
]

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def unprivileged_identity() -> dict[str, Any]:
    """The arguments that make `subprocess` start something as a user that is not root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def can_execute(program: Path, identity: Mapping[str, Any]) -> bool:
    """Whether that user can run the program where it lies (below ``/root``, say, it cannot)."""
    try:
        return (
            subprocess.run(
                [program, "--version"], check=False, capture_output=True, cwd="/", **identity
            ).returncode
            == 0
        )
    except PermissionError:
        return False


def die_with_parent(number: signal.Signals) -> Callable[[], None]:
    """A ``preexec_fn``: have the system send this signal when the tests die without cleaning up (Linux only)."""

    def request() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)

    return request


def stop_process(process: subprocess.Popen[bytes], number: signal.Signals, patience_seconds: float) -> None:
    """Send this signal, wait, and kill what is still there."""
    if process.poll() is not None:
        return
    process.send_signal(number)
    try:
        process.wait(patience_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """A port of the loopback interface that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def copy_program(program: Path, directory: Path) -> Path:
    """A copy of a program that every user can run."""
    directory.mkdir(mode=0o755)
    copy = Path(shutil.copyfile(program, directory / program.name))
    copy.chmod(0o755)
    return copy
