"""What the slot loop follows when classes compete: fair shares, or one of Airflow's old outcomes."""

from __future__ import annotations

from enum import Enum

__all__ = ["Policy"]


class Policy(str, Enum):
    """How free slots are split between the service classes, within their reserves and limits.

    ``FAIR`` gives each class that has work its weight's share of slot-time. The other two are Airflow's own
    outcomes, chosen on purpose: ``CALLBACKS_FIRST`` is what happens inside Airflow's executors,
    ``TASKS_FIRST`` what happens when its task step sees the free slots first. Either starves the other side
    unless quotas prevent it.
    """

    FAIR = "fair"
    CALLBACKS_FIRST = "callbacks_first"
    TASKS_FIRST = "tasks_first"

    __str__ = str.__str__
