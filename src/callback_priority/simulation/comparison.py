"""Several ways of sharing the slots, tried on the same work: means over seeds, how sure they are, and what differs.

All treatments see the same seeds, so the n-th number of one belongs beside the n-th of another (*common random numbers*). What
a treatment changes is therefore told by the interval of the seed-by-seed differences (paired), which is much narrower than the intervals
of the two means would suggest: Law (2015), *Simulation modeling and analysis*, 5th edition, 10.2.1 and 11.2.

Results do not depend on how many processes share the runs.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.reduction import ForkingPickler
from statistics import fmean
from types import MappingProxyType
from typing import Any

import attrs

from callback_priority.core.classes import ServiceClass
from callback_priority.errors import InternalError
from callback_priority.policy.render import render_settings
from callback_priority.policy.settings import Settings
from callback_priority.simulation.engine import Treatment
from callback_priority.simulation.estimates import CONFIDENCE, Estimate, estimate
from callback_priority.simulation.results import QUANTILES, ClassResult, RunResult, run
from callback_priority.simulation.scenario import Scenario

__all__ = [
    "ClassSummary",
    "Comparison",
    "ContentionSummary",
    "DagSummary",
    "Difference",
    "LagSummary",
    "TreatmentSummary",
    "compare",
    "processes",
    "set_options",
]

TOLD_QUANTILES = (*QUANTILES, 1.0)
DAGS_TOLD = 5
"""Of each class, so many Dags are told of: those that waited longest."""

_START_METHOD = "spawn"
"""How processes are started: the one way that there is everywhere, and that inherits nothing."""


@attrs.frozen(kw_only=True)
class DagSummary:
    """The waits of one Dag's workloads, means over the seeds in which it had any.

    Args:
        dag: Its number in the scenario.
        name: The name of its stream, and its number there if there are several.
        p50_seconds: The median.
        p95_seconds: The 95th percentile.
    """

    dag: int
    name: str
    p50_seconds: float
    p95_seconds: float

    def to_json(self) -> dict[str, object]:
        """What a JSON document holds of it."""
        return {"dag": self.dag, "name": self.name, "p50": self.p50_seconds, "p95": self.p95_seconds}


@attrs.frozen(kw_only=True)
class ClassSummary:
    """What one class got under a treatment; see `callback_priority.simulation.results.ClassResult`.

    Args:
        arrived: How many workloads arrived.
        started: How many were started.
        waiting: How many were never started.
        oldest_seconds: How long the first that still waited at the end had waited.
        share: The class's part of all slot-time that was held, contended or not.
        wait_seconds: Quantiles of the waits, the longest as the quantile 1; ``None`` if nothing was started in any seed.
        mean_wait_seconds: The mean wait.
        slots_over_time: Slots held, means over seeds, for each stretch of equal length.
        wanting_over_time: The part of each stretch in which it waited while another class waited too.
        dags: The Dags that waited longest, longest first.
    """

    arrived: Estimate
    started: Estimate
    waiting: Estimate
    oldest_seconds: Estimate
    share: Estimate
    wait_seconds: dict[float, Estimate | None]
    mean_wait_seconds: Estimate | None
    slots_over_time: tuple[float, ...]
    wanting_over_time: tuple[float, ...]
    dags: tuple[DagSummary, ...]

    def to_json(self) -> dict[str, object]:
        """What a JSON document holds of it."""
        return {
            "arrived": self.arrived.to_json(),
            "started": self.started.to_json(),
            "waiting": self.waiting.to_json(),
            "oldest_seconds": self.oldest_seconds.to_json(),
            "share": self.share.to_json(),
            "wait_seconds": {str(each): _json(found) for each, found in self.wait_seconds.items()},
            "mean_wait_seconds": _json(self.mean_wait_seconds),
            "slots_over_time": list(self.slots_over_time),
            "wanting_over_time": list(self.wanting_over_time),
            "dags": [each.to_json() for each in self.dags],
        }


@attrs.frozen(kw_only=True)
class ContentionSummary:
    """What the classes got while certain of them, and no others, waited.

    Args:
        classes: Those that waited.
        seconds: For how long altogether, the mean over seeds.
        share: Each one's part of the slot-time that they held together.
        entitlement: The part that its weight entitles it to.
        jain: Jain's index of shares over weights.
    """

    classes: tuple[ServiceClass, ...]
    seconds: float
    share: dict[ServiceClass, Estimate]
    entitlement: dict[ServiceClass, float]
    jain: Estimate

    def to_json(self) -> dict[str, object]:
        """What a JSON document holds of it."""
        return {
            "classes": [cls.value for cls in self.classes],
            "seconds": self.seconds,
            "share": {cls.value: found.to_json() for cls, found in self.share.items()},
            "entitlement": {cls.value: part for cls, part in self.entitlement.items()},
            "jain": self.jain.to_json(),
        }


@attrs.frozen(kw_only=True)
class LagSummary:
    """How far two classes drifted apart, in slot-seconds over weight, while both waited.

    Args:
        first: The one.
        second: The other.
        seconds: The furthest in any seed.
        bound: The smallest bound that held for a seed.
    """

    first: ServiceClass
    second: ServiceClass
    seconds: float
    bound: float

    def to_json(self) -> dict[str, object]:
        """What a JSON document holds of it."""
        return {
            "first": self.first.value,
            "second": self.second.value,
            "seconds": self.seconds,
            "bound": self.bound,
        }


@attrs.frozen(kw_only=True)
class Difference:
    """What a treatment changes for one class against the first treatment: paired by seed, positive where it has more.

    Args:
        share: Of its share of slot-time.
        waiting: Of how many were never started.
        wait_seconds: Of each quantile of its waits, over the seeds in which something was started under both.
    """

    share: Estimate
    waiting: Estimate
    wait_seconds: dict[float, Estimate | None]

    def to_json(self) -> dict[str, object]:
        """What a JSON document holds of it."""
        return {
            "share": self.share.to_json(),
            "waiting": self.waiting.to_json(),
            "wait_seconds": {str(each): _json(found) for each, found in self.wait_seconds.items()},
        }


@attrs.frozen(kw_only=True)
class TreatmentSummary:
    """What a treatment came to.

    Args:
        treatment: The treatment.
        utilisation: The part of the slots' time that was held.
        jain: Jain's index over contended stretches; ``None`` if there was none in any seed.
        classes: What each class got.
        contention: What they got in contended stretches, longest first.
        lags: How far each two of them drifted apart.
        differences: What it changes for each class against the first treatment; ``None`` for the first.
    """

    treatment: Treatment
    utilisation: Estimate
    jain: Estimate | None
    classes: dict[ServiceClass, ClassSummary]
    contention: tuple[ContentionSummary, ...]
    lags: tuple[LagSummary, ...]
    differences: dict[ServiceClass, Difference] | None

    def to_json(self) -> dict[str, object]:
        """What a JSON document holds of it."""
        treatment = self.treatment
        return {
            "name": treatment.name,
            "settings": set_options(treatment.settings),
            "changes": [
                {"at_seconds": at, "settings": set_options(settings)} for at, settings in treatment.changes
            ],
            "accounting": treatment.accounting.value,
            "utilisation": self.utilisation.to_json(),
            "jain": _json(self.jain),
            "classes": {cls.value: found.to_json() for cls, found in self.classes.items()},
            "contention": [each.to_json() for each in self.contention],
            "lags": [each.to_json() for each in self.lags],
            "differences": None
            if self.differences is None
            else {cls.value: found.to_json() for cls, found in self.differences.items()},
        }


@attrs.frozen(kw_only=True)
class Comparison:
    """Treatments side by side.

    Args:
        scenario: What they were tried on.
        seeds: The seeds, the same for all of them.
        confidence: Of every interval.
        treatments: What each came to; the first is the one that the others are held against.
    """

    scenario: Scenario
    seeds: tuple[int, ...]
    confidence: float
    treatments: tuple[TreatmentSummary, ...]

    def __getitem__(self, name: str) -> TreatmentSummary:
        """The treatment of that name."""
        return next(each for each in self.treatments if each.treatment.name == name)

    def to_json(self) -> dict[str, object]:
        """The whole of it for a JSON document: numbers, texts, lists, objects and ``None`` only."""
        scenario = self.scenario
        return {
            "scenario": {
                "name": scenario.name,
                "description": scenario.description,
                "seconds": scenario.seconds,
                "warm_up_seconds": scenario.warm_up_seconds,
                "slots": scenario.slots,
                "schedulers": scenario.schedulers,
                "loop_seconds": scenario.loop_seconds,
                "tasks_per_query": scenario.tasks_per_query,
                "pools": dict(scenario.pools),
            },
            "seeds": list(self.seeds),
            "confidence": self.confidence,
            "treatments": [each.to_json() for each in self.treatments],
        }


def compare(
    scenario: Scenario,
    treatments: Sequence[Treatment],
    *,
    seeds: Sequence[int],
    jobs: int = 1,
    confidence: float = CONFIDENCE,
    progress: Callable[[float], None] = lambda _part: None,
) -> Comparison:
    """Try each treatment on a scenario with each seed.

    Args:
        scenario: What wants slots, and what there is.
        treatments: How they are shared; names are different. The first is the one that the others are held against.
        seeds: Which random numbers, the same for all.
        jobs: How many processes share the runs; with one, everything happens in this one.
        confidence: Of the intervals, between 0 and 1.
        progress: Is told now and then which part is done, from 0 to 1.

    Returns:
        The comparison; the same for any number of jobs.
    """
    tasks = [(treatment, seed) for treatment in treatments for seed in seeds]
    runs: list[RunResult] = []
    for found in _runs(scenario, tasks, jobs, progress):
        runs.append(found)
        progress(len(runs) / len(tasks))
    of = [runs[at : at + len(seeds)] for at in range(0, len(runs), len(seeds))]
    return Comparison(
        scenario=scenario,
        seeds=tuple(seeds),
        confidence=confidence,
        treatments=tuple(
            _summary(scenario, treatment, of[at], of[0] if at else None, confidence)
            for at, treatment in enumerate(treatments)
        ),
    )


def set_options(settings: Settings) -> dict[str, str]:
    """The text of each option that is not as it is by default.

    >>> from callback_priority.policy.parse import parse_settings
    >>> set_options(parse_settings({"mode": "off", "policy": "tasks_first"}))
    {'policy': 'tasks_first'}
    """
    default = render_settings(Settings())
    return {name: text for name, text in render_settings(settings).items() if text != default[name]}


# The runs -----------------------------------------------------------------------------------------------------


def _frozen(found: dict[object, object]) -> object:
    return MappingProxyType(found)


def _reduced(proxy: Any) -> tuple[Callable[[dict[object, object]], object], tuple[dict[object, object]]]:
    return _frozen, (dict(proxy),)


# Settings and scenarios hold mappings that cannot be changed, which pickle refuses; between processes they go as copies.
ForkingPickler.register(MappingProxyType, _reduced)


def _runs(
    scenario: Scenario,
    tasks: Sequence[tuple[Treatment, int]],
    jobs: int,
    progress: Callable[[float], None],
) -> Iterator[RunResult]:
    """All of them, in order."""
    jobs = min(jobs, len(tasks))
    if jobs <= 1:
        for number, (treatment, seed) in enumerate(tasks):
            yield run(
                scenario,
                treatment,
                seed=seed,
                progress=lambda part, done=number: progress((done + part) / len(tasks)),  # type: ignore[misc]
            )
        return
    with processes(jobs) as pool:
        futures = [pool.submit(run, scenario, treatment, seed=seed) for treatment, seed in tasks]
        try:
            for each in futures:
                yield each.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def processes(jobs: int) -> ProcessPoolExecutor:
    """Processes that can run scenarios.

    Args:
        jobs: How many.
    """
    context = multiprocessing.get_context(_START_METHOD)
    return ProcessPoolExecutor(max_workers=jobs, mp_context=context, initializer=_end_when_interrupted)


def _end_when_interrupted() -> None:
    """Ctrl-C reaches the children, too: they end without a word, what there is to say the parent says."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


# The sums -----------------------------------------------------------------------------------------------------


def _summary(
    scenario: Scenario,
    treatment: Treatment,
    runs: Sequence[RunResult],
    first: Sequence[RunResult] | None,
    confidence: float,
) -> TreatmentSummary:
    classes = list(runs[0].classes)
    return TreatmentSummary(
        treatment=treatment,
        utilisation=_sure([each.utilisation for each in runs], confidence),
        jain=estimate([each.jain for each in runs if each.jain is not None], confidence),
        classes={cls: _class(scenario, cls, runs, confidence) for cls in classes},
        contention=_contention(runs, confidence),
        lags=_lags(runs),
        differences=None
        if first is None
        else {cls: _difference(cls, runs, first, confidence) for cls in classes},
    )


def _class(
    scenario: Scenario, cls: ServiceClass, runs: Sequence[RunResult], confidence: float
) -> ClassSummary:
    found = [each.classes[cls] for each in runs]

    def sure(of: Callable[[ClassResult], float]) -> Estimate:
        return _sure([of(each) for each in found], confidence)

    means = [each.mean_wait_seconds for each in found if each.mean_wait_seconds is not None]
    return ClassSummary(
        arrived=sure(lambda each: each.arrived),
        started=sure(lambda each: each.started),
        waiting=sure(lambda each: each.waiting),
        oldest_seconds=sure(lambda each: each.oldest_seconds),
        share=_sure([each.share(cls) for each in runs], confidence),
        wait_seconds={
            fraction: estimate(
                [each.wait_seconds[fraction] for each in found if each.wait_seconds], confidence
            )
            for fraction in TOLD_QUANTILES
        },
        mean_wait_seconds=estimate(means, confidence),
        slots_over_time=_means([each.slots for each in found]),
        wanting_over_time=_means([each.wanting for each in found]),
        dags=_dags(scenario, [each.dags[cls] for each in runs]),
    )


def _dags(scenario: Scenario, seen: Sequence[Mapping[int, tuple[float, float]]]) -> tuple[DagSummary, ...]:
    waits: dict[int, list[tuple[float, float]]] = {}
    for each in seen:
        for dag, quantiles in each.items():
            waits.setdefault(dag, []).append(quantiles)
    means = {dag: _means(found) for dag, found in waits.items()}
    worst = sorted(means, key=lambda dag: (-means[dag][1], dag))[:DAGS_TOLD]
    return tuple(
        DagSummary(
            dag=dag, name=_dag_name(scenario, dag), p50_seconds=means[dag][0], p95_seconds=means[dag][1]
        )
        for dag in worst
    )


def _dag_name(scenario: Scenario, dag: int) -> str:
    for stream in scenario.streams:
        if dag < stream.dags:
            return stream.name if stream.dags == 1 else f"{stream.name} {dag + 1}"
        dag -= stream.dags
    raise InternalError(f"there is no Dag {dag} in the scenario {scenario.name}")


def _contention(runs: Sequence[RunResult], confidence: float) -> tuple[ContentionSummary, ...]:
    kinds = {each.classes: each.entitlement for found in runs for each in found.contention}
    summaries = []
    for classes, entitlement in kinds.items():
        seen = [each for found in runs for each in found.contention if each.classes == classes]
        summaries.append(
            ContentionSummary(
                classes=classes,
                seconds=sum(each.seconds for each in seen) / len(runs),
                share={cls: _sure([each.share[cls] for each in seen], confidence) for cls in classes},
                entitlement=dict(entitlement),
                jain=_sure([each.jain for each in seen], confidence),
            )
        )
    return tuple(sorted(summaries, key=lambda each: (-each.seconds, each.classes)))


def _lags(runs: Sequence[RunResult]) -> tuple[LagSummary, ...]:
    return tuple(
        LagSummary(
            first=pair[0].first,
            second=pair[0].second,
            seconds=max(each.seconds for each in pair),
            bound=min(each.bound for each in pair),
        )
        for pair in zip(*(each.lags for each in runs), strict=True)
    )


def _difference(
    cls: ServiceClass, runs: Sequence[RunResult], first: Sequence[RunResult], confidence: float
) -> Difference:
    pairs = [(each.classes[cls], other.classes[cls]) for each, other in zip(runs, first, strict=True)]
    return Difference(
        share=_sure(
            [each.share(cls) - other.share(cls) for each, other in zip(runs, first, strict=True)], confidence
        ),
        waiting=_sure([each.waiting - other.waiting for each, other in pairs], confidence),
        wait_seconds={
            fraction: estimate(
                [
                    each.wait_seconds[fraction] - other.wait_seconds[fraction]
                    for each, other in pairs
                    if each.wait_seconds and other.wait_seconds
                ],
                confidence,
            )
            for fraction in TOLD_QUANTILES
        },
    )


def _sure(values: Sequence[float], confidence: float) -> Estimate:
    """The estimate of what every seed gives."""
    found = estimate(values, confidence)
    if found is None:
        raise InternalError("no seed gave a number that every seed gives")
    return found


def _means(series: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(fmean(each) for each in zip(*series, strict=True))


def _json(found: Estimate | None) -> dict[str, float | int | None] | None:
    return None if found is None else found.to_json()
