"""What is called when a deadline is missed, by path: on a worker, or in the triggerer."""

from __future__ import annotations

import time
from typing import Any

from callback_recorder import note


def late(number: int, context: dict[str, Any], seconds: float = 0.0) -> None:
    """Write down that it was called, and take that long."""
    note("called", name=f"late_{number}", run_id=context["dag_run"]["dag_run_id"])
    time.sleep(seconds)


async def late_in_the_triggerer(number: int, context: dict[str, Any]) -> None:
    """Write down that it was called."""
    late(number, context)
