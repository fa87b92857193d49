"""Whether goals can be met at all, found out without a tuning: by trying very many settings.

Neither Optuna nor anything of `callback_priority.simulation.tune` is asked. First come all sizes of a reserve for the alerts, with each of a
few weights; then settings drawn at random over everything that can be set. Each is run with seeds that are nobody else's, until it has
failed too many of them. What this finds is feasible beyond doubt; where it finds nothing, some hundred and fifty settings failed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random

from callback_priority.policy.parse import parse_settings
from callback_priority.policy.settings import Settings
from callback_priority.simulation.engine import Treatment
from callback_priority.simulation.goals import Goal
from callback_priority.simulation.results import ClassResult, run
from callback_priority.simulation.scenario import Scenario

__all__ = ["judged", "meets"]

JUDGES_SEED = 60_000_000
SEEDS = 40
MAY_FAIL = 2
DRAWN = 120


def judged(scenario: Scenario, goals: tuple[Goal, ...]) -> tuple[Settings | None, int]:
    """Settings that meet every goal with 38 of 40 seeds, which is what a tuning demands of itself, if there are any.

    Args:
        scenario: What they are tried on.
        goals: The goals.

    Returns:
        The settings, and how many were tried.
    """
    tried = 0
    for settings in _settings(scenario):
        tried += 1
        failed = [0] * len(goals)
        for seed in range(JUDGES_SEED, JUDGES_SEED + SEEDS):
            result = run(scenario, Treatment(name="", settings=settings), seed=seed)
            for at, goal in enumerate(goals):
                failed[at] += not meets(goal, result.classes[goal.service_class])
            if max(failed) > (MAY_FAIL if seed > JUDGES_SEED + 1 else 1):
                break
        else:
            return settings, tried
    return None, tried


def meets(goal: Goal, found: ClassResult) -> bool:
    """Whether a run met a goal."""
    if goal.least_share is not None:
        return found.kept_share is None or found.kept_share >= goal.least_share
    if goal.quantile is None:
        return found.mean_delay_seconds is None or found.mean_delay_seconds <= goal.most_seconds
    return not found.delay_seconds or found.delay_seconds[goal.quantile] <= goal.most_seconds


def _settings(scenario: Scenario) -> Iterator[Settings]:
    classes = sorted({work.service_class.value for work in scenario.streams})
    pool = scenario.pools["default_pool"]
    slots = scenario.slots
    for weight in (1, 10):
        for reserve in range(slots):
            yield _made({"deadline": weight}, {"deadline": {"reserve": reserve}}, pool, slots)
    draw = Random(scenario.name)  # noqa: S311 - not for secrets
    for _ in range(DRAWN):
        weights = {cls: round(10 ** draw.uniform(-1.5, 1.5), 3) for cls in classes}
        quotas, free = {}, slots - 1
        for cls in draw.sample(classes, len(classes)):
            quota = quotas[cls] = {"reserve": draw.randint(0, free) if draw.random() < 0.6 else 0}
            free -= quota["reserve"]
            if draw.random() < 0.3:
                quota["limit"] = draw.randint(max(1, quota["reserve"]), slots)
        yield _made(weights, quotas, pool if draw.random() < 0.7 else None, slots)


def _made(
    weights: dict[str, float], quotas: dict[str, dict[str, int]], pool: int | None, slots: int
) -> Settings:
    """Settings; if the pool has an end, what is reserved with the scheduler is reserved in it."""
    texts = {"weights": json.dumps(weights), "slot_quotas": json.dumps(quotas)}
    if pool is not None:
        reserves = {cls: {"reserve": each["reserve"] * pool // slots} for cls, each in quotas.items()}
        if pool >= slots:
            reserves = {cls: {"reserve": each["reserve"]} for cls, each in quotas.items()}
        texts["pool_quotas"] = json.dumps({"default_pool": reserves})
    return parse_settings(texts)
