"""What came of a tuning, as values: settings, how far they reach each goal, what they cost, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import attrs

from callback_priority.core.classes import ServiceClass
from callback_priority.policy.options import SECTION
from callback_priority.policy.settings import Settings
from callback_priority.simulation.comparison import set_options
from callback_priority.simulation.estimates import Estimate
from callback_priority.simulation.goals import Goal
from callback_priority.simulation.scenario import Scenario

__all__ = ["ClassCost", "Collision", "GoalOutcome", "Tuned", "Verdict", "section_text"]


class Verdict(str, Enum):
    """What can be said of the goals."""

    MET = "met"
    UNSURE = "unsure"
    CONTRADICTORY = "contradictory"
    UNREACHABLE = "unreachable"

    __str__ = str.__str__


@attrs.frozen(kw_only=True)
class GoalOutcome:
    """How a goal fares, on seeds that the search did not use.

    Args:
        goal: The goal.
        before: What it is about, under today's settings: seconds or a share; ``None`` if nothing waited.
        after: The same under the settings that were found.
        met_before: In how many seeds today's settings meet it.
        met_after: In how many seeds the settings that were found do.
        seeds: Of how many.
        best_alone: The best that was found for it whatever the other goals, on the seeds of the search: a mean over them.
        is_reachable: Whether anything met it with every seed of the search, whatever the other goals.
        never_waited: Whether nothing of its class waited, or came, in any seed: it is met for want of anything to judge.
    """

    goal: Goal
    before: Estimate | None
    after: Estimate | None
    met_before: int
    met_after: int
    seeds: int
    best_alone: float | None
    is_reachable: bool
    never_waited: bool

    def to_json(self) -> dict[str, object]:
        """What a JSON document holds of it."""
        return {
            "goal": self.goal.text,
            "class": self.goal.service_class.value,
            "before": _json(self.before),
            "after": _json(self.after),
            "met_before": self.met_before,
            "met_after": self.met_after,
            "seeds": self.seeds,
            "best_alone": self.best_alone,
            "is_reachable": self.is_reachable,
            "never_waited": self.never_waited,
        }


@attrs.frozen(kw_only=True)
class ClassCost:
    """What the settings that were found change for a class, on seeds that the search did not use.

    Args:
        slots_before: The part of all slots' time that it held under today's settings.
        slots_after: The same under the settings that were found.
        slots_change: The seed-by-seed difference.
        delay_before: The 95th percentile of its waits under today's settings; ``None`` for a backlog without end.
        delay_after: The same under the settings that were found.
        delay_change: The seed-by-seed difference.
    """

    slots_before: Estimate
    slots_after: Estimate
    slots_change: Estimate
    delay_before: Estimate | None
    delay_after: Estimate | None
    delay_change: Estimate | None

    def to_json(self) -> dict[str, object]:
        """What a JSON document holds of it."""
        return {field.name: _json(getattr(self, field.name)) for field in attrs.fields(ClassCost)}


@attrs.frozen(kw_only=True)
class Collision:
    """Goals that are each reachable, and were not found to be together.

    Args:
        goals: The goals: two, or all if every two of them go together.
        best: For each, the best mean over the seeds of the search that was found while all the others of these were met;
            ``None`` if nothing met the others.
    """

    goals: tuple[Goal, ...]
    best: tuple[float | None, ...]

    def to_json(self) -> dict[str, object]:
        """What a JSON document holds of it."""
        return {"goals": [each.text for each in self.goals], "best": list(self.best)}


@attrs.frozen(kw_only=True)
class Tuned:
    """What came of a tuning.

    Args:
        scenario: What it was made for.
        verdict: ``MET``: on unseen seeds, too. ``UNSURE``: with the seeds of the search, not surely with others. ``CONTRADICTORY``: each
            goal alone can be met, all together not. ``UNREACHABLE``: some cannot be met at all.
        today: The settings that it began from.
        settings: The settings that were found: those that meet all goals, else those that meet the reachable ones, else the best
            compromise; ``None`` if no goal is reachable.
        goals: How each goal fares.
        costs: What it costs each class.
        utilisation_before: The part of the slots' time that was held under today's settings.
        utilisation_after: The same under the settings that were found.
        collisions: Which goals do not go together.
        seeds: The seeds of the search.
        unseen_seeds: The seeds of the check.
        margin: By how much of each goal the seeds of the search had to meet it.
        trials: How many settings were tried.
        runs: How many runs were made altogether.
        confidence: Of the intervals.
        notes: What else there is to say.
    """

    scenario: Scenario
    verdict: Verdict
    today: Settings
    settings: Settings | None
    goals: tuple[GoalOutcome, ...]
    costs: Mapping[ServiceClass, ClassCost]
    utilisation_before: Estimate
    utilisation_after: Estimate
    collisions: tuple[Collision, ...]
    seeds: tuple[int, ...]
    unseen_seeds: tuple[int, ...]
    margin: float
    trials: int
    runs: int
    confidence: float
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """The whole of it for a JSON document: numbers, texts, lists, objects and ``None`` only."""
        settings = self.settings
        return {
            "scenario": self.scenario.name,
            "verdict": self.verdict.value,
            "today": set_options(self.today),
            "settings": None if settings is None else set_options(settings),
            "section": None if settings is None else section_text(settings),
            "goals": [each.to_json() for each in self.goals],
            "costs": {cls.value: cost.to_json() for cls, cost in self.costs.items()},
            "utilisation_before": self.utilisation_before.to_json(),
            "utilisation_after": self.utilisation_after.to_json(),
            "collisions": [each.to_json() for each in self.collisions],
            "seeds": list(self.seeds),
            "unseen_seeds": list(self.unseen_seeds),
            "margin": self.margin,
            "trials": self.trials,
            "runs": self.runs,
            "confidence": self.confidence,
            "notes": list(self.notes),
        }


def section_text(settings: Settings) -> str:
    """The section of ``airflow.cfg`` that sets these settings, with what is as by default left out.

    >>> from callback_priority.policy.parse import parse_settings
    >>> print(section_text(parse_settings({"slot_quotas": '{"deadline": {"reserve": 2}}'})))
    [callback_priority]
    slot_quotas = {"deadline": {"reserve": 2, "limit": null}}
    """
    # Airflow reads a percent sign that is written twice.
    lines = (f"{name} = {text.replace('%', '%%')}" for name, text in set_options(settings).items())
    return "\n".join([f"[{SECTION}]", *lines])


def _json(found: Estimate | None) -> dict[str, float | int | None] | None:
    return None if found is None else found.to_json()
