"""Airflow looks at paused Dags' runs every 60 seconds, whatever is configured; here it does every 3."""

from __future__ import annotations

from typing import Any

from airflow.utils.event_scheduler import EventScheduler

_ORIGINAL = EventScheduler.call_regular_interval


def _call_regular_interval(
    self: EventScheduler, delay: float, action: Any, *args: Any, **kwargs: Any
) -> None:
    if getattr(action, "__name__", "") == "_update_dag_run_state_for_paused_dags":
        delay = 3.0
    _ORIGINAL(self, delay, action, *args, **kwargs)


EventScheduler.call_regular_interval = _call_regular_interval  # type: ignore[method-assign]
