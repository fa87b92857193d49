"""Asynchronous callbacks that begin and wait to be let go."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from callback_recorder import note


async def _held(name: str, run_id: str) -> str:
    note("began", name=name, run_id=run_id)
    release = Path(os.environ["CALLBACK_RECORDER_FILE"]).with_name(f"release-{run_id}")
    while not release.exists():  # noqa: ASYNC110 - what lets it go is in another process
        await asyncio.sleep(0.1)
    note("called", name=name, run_id=run_id)
    return name


async def of_dag(context: Mapping[str, Any]) -> str:
    """A Dag's callback, which is routed."""
    return await _held("of_dag", context["run_id"])


async def also_of_dag(context: Mapping[str, Any]) -> str:
    """Another one."""
    return await _held("also_of_dag", context["run_id"])


async def of_deadline(number: int, context: Mapping[str, Any]) -> str:
    """A deadline's callback, which Airflow gives to the triggerer by itself."""
    return await _held(f"of_deadline_{number}", context["dag_run"]["dag_run_id"])
