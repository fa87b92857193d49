"""The library's counters among Airflow's metrics; ``docs/reference/metrics.md`` lists them."""

from __future__ import annotations

import logging
from typing import Final

from callback_priority.compat.metrics import stats

__all__ = ["count"]

log = logging.getLogger(__name__)

PREFIX: Final = "callback_priority"


def count(name: str, number: int = 1, **tags: str) -> None:
    """Count something that happened; what happened must not suffer if that fails.

    Args:
        name: The counter, without the prefix.
        number: How often it happened; nothing is sent for 0.
        tags: What sort of thing it was.
    """
    if not number:
        return
    try:
        stats.incr(f"{PREFIX}.{name}", number, tags=tags or None)
    except Exception:
        log.exception("%s.%s could not be counted", PREFIX, name)
