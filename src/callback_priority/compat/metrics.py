"""Airflow's metrics: a class with methods up to 3.2, a module of functions from 3.3 on."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

__all__ = ["stats"]

_MODULE: Final = import_module("airflow._shared.observability.metrics.stats")

stats: Any = _MODULE if hasattr(_MODULE, "incr") else _MODULE.Stats
"""What has ``incr``, ``gauge`` and ``timing``."""
