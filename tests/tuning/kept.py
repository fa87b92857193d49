"""Scenarios that come with the library, with goals for them."""

from __future__ import annotations

from collections.abc import Iterator

from callback_priority.simulation.library import named_scenario
from callback_priority.simulation.scenario import Scenario

__all__ = ["kept"]

_GOALS = (
    ("contention", "deadline p95 <= 30 s, task keeps >= 80%"),
    ("deadline-storm", "deadline p95 <= 100 s, task keeps >= 60%"),
    ("late-reports", "deadline p50 <= 30 s, deadline p95 <= 70 s, task keeps >= 30%"),
    # A scheduler that loops every two seconds starts nothing within one.
    ("contention", "deadline p95 <= 1 s"),
    # Tasks hold their slots for a quarter of an hour: for alerts to find one, one must stay empty.
    ("contention", "deadline p95 <= 30 s, task keeps >= 99%"),
    # The flood alone wants half of the slots for longer than the demo lasts.
    ("late-reports", "deadline p95 <= 70 s, task keeps >= 70%"),
)


def kept() -> Iterator[tuple[str, Scenario, str]]:
    """The name of each case, its scenario and its goals."""
    for name, goals in _GOALS:
        yield name, named_scenario(name).scenario, goals
