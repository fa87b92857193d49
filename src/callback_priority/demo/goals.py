"""Whether a phase met goals such as ``callback-priority tune`` is given. Pure.

A wait ends when the process starts, and a slot is held while it runs: both as anybody can see them, the same way for stock and for the
library. A slot is taken a little before its process starts and is free a little after its end, so a class kept somewhat more than is
counted here.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from callback_priority.demo import measure
from callback_priority.demo.measure import Run, Wait
from callback_priority.simulation.goals import Goal

__all__ = ["missed_goals", "value_text"]


def missed_goals(goals: Sequence[Goal], runs: Sequence[Run], *, slots: int, end_seconds: float) -> list[Goal]:
    """The goals that a phase did not meet.

    Args:
        goals: The goals.
        runs: Every workload of the phase.
        slots: The scheduler's slots.
        end_seconds: When the phase ended.
    """
    return [
        goal
        for goal in goals
        # What could not be measured meets no goal.
        if not goal.shortfall(_value(goal, runs, slots, end_seconds)) <= 0
    ]


def value_text(goal: Goal, runs: Sequence[Run], *, slots: int, end_seconds: float) -> str:
    """What a goal is about, as it came out; see `missed_goals`."""
    value = _value(goal, runs, slots, end_seconds)
    if value is None:
        return "nothing came"
    return f"{value:.0%}" if goal.least_share is not None else f"{value:.1f} s"


def _value(goal: Goal, runs: Sequence[Run], slots: int, end_seconds: float) -> float | None:
    """Seconds or a share; what still waits at the end counts with what it has waited by then."""
    part = [run for run in runs if run.service_class == goal.service_class.value]
    if not part:
        return None
    if goal.least_share is not None:
        waiting = measure.common(part, part, (0.0, end_seconds))
        length = sum(end - start for start, end in waiting)
        return measure.overlap(part, waiting) / (slots * length) if length else 1.0
    waits = measure.waits(part, end_seconds)
    if goal.quantile is None:
        return fmean(wait.seconds for wait in waits)
    found: Wait | None = measure.percentile(waits, goal.quantile)
    return None if found is None else found.seconds
