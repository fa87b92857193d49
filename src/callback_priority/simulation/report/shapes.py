"""The shape of what `callback_priority.simulation.comparison.Comparison.to_json` gives, so far as a report reads it."""

from __future__ import annotations

from typing import TypedDict

__all__ = [
    "ChangeShape",
    "ClassShape",
    "ComparisonShape",
    "ContentionShape",
    "DagShape",
    "DifferenceShape",
    "EstimateShape",
    "LagShape",
    "ScenarioShape",
    "TreatmentShape",
]


class EstimateShape(TypedDict):
    """A mean over seeds, and the ends of its interval unless there is one seed only."""

    mean: float
    low: float | None
    high: float | None
    n: int


class DagShape(TypedDict):
    """A Dag that waited long, in seconds."""

    dag: int
    name: str
    p50: float
    p95: float


class ClassShape(TypedDict):
    """What a class got under a treatment."""

    arrived: EstimateShape
    started: EstimateShape
    waiting: EstimateShape
    oldest_seconds: EstimateShape
    share: EstimateShape
    wait_seconds: dict[str, EstimateShape | None]
    mean_wait_seconds: EstimateShape | None
    slots_over_time: list[float]
    wanting_over_time: list[float]
    dags: list[DagShape]


class ContentionShape(TypedDict):
    """What classes got while they, and no others, waited."""

    classes: list[str]
    seconds: float
    share: dict[str, EstimateShape]
    entitlement: dict[str, float]
    jain: EstimateShape


class LagShape(TypedDict):
    """How far two classes drifted apart, and how far they may."""

    first: str
    second: str
    seconds: float
    bound: float


class DifferenceShape(TypedDict):
    """What a treatment changes for a class against the first treatment, paired by seed."""

    share: EstimateShape
    waiting: EstimateShape
    wait_seconds: dict[str, EstimateShape | None]


class ChangeShape(TypedDict):
    """Settings that came into force during a run."""

    at_seconds: float
    settings: dict[str, str]


class TreatmentShape(TypedDict):
    """What a treatment came to."""

    name: str
    settings: dict[str, str]
    changes: list[ChangeShape]
    accounting: str
    utilisation: EstimateShape
    jain: EstimateShape | None
    classes: dict[str, ClassShape]
    contention: list[ContentionShape]
    lags: list[LagShape]
    differences: dict[str, DifferenceShape] | None


class ScenarioShape(TypedDict):
    """What the treatments were tried on."""

    name: str
    description: str
    seconds: float
    warm_up_seconds: float
    slots: int
    schedulers: int
    loop_seconds: float
    tasks_per_query: int | None
    pools: dict[str, int | None]


class ComparisonShape(TypedDict):
    """All of it."""

    scenario: ScenarioShape
    seeds: list[int]
    confidence: float
    treatments: list[TreatmentShape]
