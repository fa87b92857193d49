"""What goes wrong with what is called when a deadline is missed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from airflow.sdk import Variable
from callback_recorder import note


def reads(context: dict[str, Any]) -> None:
    """Read a Variable."""
    note("called", name="reads", city=Variable.get("city"))


def raises(context: dict[str, Any]) -> None:
    """Fail, each time."""
    note("called", name="raises")
    raise ValueError("no such channel")


def comes_round(context: dict[str, Any]) -> None:
    """Fail the first time."""
    note("called", name="comes_round")
    mark = Path(os.environ["AIRFLOW_HOME"]) / "came_round"
    if not mark.exists():
        mark.touch()
        raise ConnectionError("busy")


def is_killed(context: dict[str, Any]) -> None:
    """Be killed, as by a machine that has run out of memory."""
    note("called", name="is_killed")
    os.kill(os.getpid(), signal.SIGKILL)
