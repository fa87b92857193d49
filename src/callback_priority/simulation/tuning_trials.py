"""Trying settings on seeds, and the search for those that meet goals at the least cost to the others.

The search is a tree-structured Parzen estimator (Bergstra, Bardenet, Bengio, Kégl, 2011, "Algorithms for hyper-parameter optimization")
with constraints, as Optuna has it, asked for points and told what they came to. It suits the problem: a few whole numbers, a noisy
answer that takes a second, constraints that are as noisy, and less than a hundred tries. Methods of descent want gradients, and
evolution wants thousands of tries.

*Cost* is what is taken from the others, which are all classes without a goal for their waits: the part of all slots' time that they lose
against today, and the part by which the time from arrival to end grows, weighted with the part of the slots that they ask for. What
they gain counts half, so that one class is not made to pay for another. What is left equal is decided for smaller changes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from statistics import fmean
from types import TracebackType
from typing import Any, Final

import attrs

from callback_priority.core.classes import ServiceClass
from callback_priority.errors import MissingExtraError
from callback_priority.policy.settings import Settings
from callback_priority.simulation.comparison import processes
from callback_priority.simulation.engine import Treatment
from callback_priority.simulation.goals import Goal
from callback_priority.simulation.results import run
from callback_priority.simulation.scenario import Scenario
from callback_priority.simulation.tuning_space import Load, Point, Space

__all__ = ["ClassSeen", "Laboratory", "Search", "Seen", "Tried", "import_optuna", "missed", "value_of"]

BATCH: Final = 4
"""So many points are asked for at once, whatever the number of processes, so that it does not change what is found."""

_RACE_SEEDS: Final = 2
_HOPELESS: Final = 0.1
_RANDOM_TRIALS: Final = 6
_DULL: Final = 3
_COMPLETED: Final = 5


@attrs.frozen(kw_only=True)
class ClassSeen:
    """What one class got in one run, as far as goals and costs ask.

    Args:
        kept_share: See `callback_priority.simulation.results.ClassResult`.
        delay_seconds: See there.
        mean_delay_seconds: See there.
        slot_part: The part of all slots' time that it held.
    """

    kept_share: float | None
    delay_seconds: Mapping[float, float]
    mean_delay_seconds: float | None
    slot_part: float


@attrs.frozen(kw_only=True)
class Seen:
    """What came of one run.

    Args:
        classes: What each class got.
        utilisation: The part of the slots' time that was held.
    """

    classes: Mapping[ServiceClass, ClassSeen]
    utilisation: float


def value_of(goal: Goal, seen: Seen) -> float | None:
    """What a goal is about, in one run: seconds or a share; ``None`` if nothing of its class waited, or came."""
    found = seen.classes[goal.service_class]
    if goal.least_share is not None:
        return found.kept_share
    return found.mean_delay_seconds if goal.quantile is None else found.delay_seconds.get(goal.quantile)


def missed(goal: Goal, seen: Seen) -> float:
    """By how much of it a run misses a goal; nought or less if it meets it, and -1 if nothing waited, or came."""
    value = value_of(goal, seen)
    return -1.0 if value is None else goal.shortfall(value)


@attrs.frozen(kw_only=True)
class Tried:
    """Settings that were tried.

    Args:
        point: The point that they are; ``None`` for settings of today that are none.
        settings: The settings.
        seen: What came of each seed.
        misses: Of each goal, by how much it was missed with the worst seed.
        cost: What they take from the others.
        is_whole: Whether all seeds were tried; not if the first ones were enough to see that it is hopeless.
    """

    point: Point | None
    settings: Settings
    seen: tuple[Seen, ...]
    misses: tuple[float, ...]
    cost: float
    is_whole: bool = True

    def meets(self, wanted: Iterable[int], margins: Sequence[float] | None = None) -> bool:
        """Whether every seed met goals.

        Args:
            wanted: The places of the goals.
            margins: Of each goal, by at least this part of it.
        """
        return self.is_whole and all(self.misses[at] <= (-margins[at] if margins else 0.0) for at in wanted)


class Laboratory:
    """Runs settings on a scenario, in one process or several.

    Args:
        scenario: What they are tried on.
        jobs: How many processes share the runs.
        progress: Is told of each run that is done.
    """

    def __init__(self, scenario: Scenario, *, jobs: int, progress: Callable[[], None]) -> None:
        self.scenario = scenario
        self.runs = 0
        self._jobs = jobs
        self._progress = progress
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Laboratory:  # noqa: PYI034 - Self starts with 3.11
        if self._jobs > 1:
            self._pool = processes(self._jobs)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=error is None, cancel_futures=True)

    def see(self, tasks: Sequence[tuple[Settings, int]]) -> list[Seen]:
        """Run each of these settings with its seed."""
        found = []
        waiting = (
            (_see(self.scenario, settings, seed) for settings, seed in tasks)
            if self._pool is None
            else (
                each.result()
                for each in [
                    self._pool.submit(_see, self.scenario, settings, seed) for settings, seed in tasks
                ]
            )
        )
        for seen in waiting:
            found.append(seen)
            self.runs += 1
            self._progress()
        return found


def _see(scenario: Scenario, settings: Settings, seed: int) -> Seen:
    result = run(scenario, Treatment(name="", settings=settings), seed=seed)
    capacity = result.slots * result.seconds
    return Seen(
        classes={
            cls: ClassSeen(
                kept_share=found.kept_share,
                delay_seconds=dict(found.delay_seconds),
                mean_delay_seconds=found.mean_delay_seconds,
                slot_part=found.slot_seconds / capacity,
            )
            for cls, found in result.classes.items()
        },
        utilisation=result.utilisation,
    )


class Search:
    """Everything that was tried, and where to look next.

    Args:
        laboratory: Where runs are made.
        space: What may be tried.
        goals: What is wanted.
        loads: What the classes ask for.
        seeds: The seeds of the search.
    """

    def __init__(
        self,
        laboratory: Laboratory,
        space: Space,
        goals: Sequence[Goal],
        loads: Mapping[ServiceClass, Load],
        seeds: Sequence[int],
    ) -> None:
        self._laboratory = laboratory
        self._space = space
        self._goals = tuple(goals)
        self._loads = loads
        self._seeds = tuple(seeds)
        self._hurried = {goal.service_class for goal in goals if goal.most_seconds is not None}
        self._tried: dict[Point, Tried] = {}
        seen = laboratory.see([(space.today, seed) for seed in seeds])
        self._before = seen
        self.today = self._tell(None, space.today, seen)

    @property
    def tried(self) -> list[Tried]:
        """Today's settings and everything else that was tried, in order."""
        return [self.today, *self._tried.values()]

    def best(self, wanted: Sequence[int], margins: Sequence[float] | None = None) -> Tried | None:
        """The cheapest that met goals with every seed.

        Args:
            wanted: The places of the goals.
            margins: Of each goal, by at least this part of it.
        """
        meeting = [each for each in self.tried if each.meets(wanted, margins)]
        return min(meeting, key=lambda each: each.cost, default=None)

    def nearest(self, wanted: Sequence[int]) -> Tried:
        """What misses the goal that it misses most by the least part.

        Args:
            wanted: The places of the goals.
        """

        def worst(each: Tried) -> tuple[float, float]:
            return max(max(0.0, each.misses[at]) for at in wanted), each.cost

        self._complete(sorted(self.tried, key=worst))
        return min((each for each in self.tried if each.is_whole), key=worst)

    def closest(self, goal: int, others: Sequence[int]) -> Tried | None:
        """What comes closest to a goal, or surpasses it most, while others are met; ``None`` if nothing meets these.

        Args:
            goal: The place of the goal.
            others: The places of the others.
        """
        meeting = [each for each in self.tried if all(each.misses[at] <= 0 for at in others)]
        self._complete(sorted(meeting, key=lambda each: each.misses[goal]))
        return min(
            (each for each in self.tried if each.meets(others)),
            key=lambda each: each.misses[goal],
            default=None,
        )

    def _complete(self, tried: Sequence[Tried]) -> None:
        """Try the first of these with all seeds, however hopeless they are: to be told of, not to be used."""
        for each in tried[:_COMPLETED]:
            if each.point is not None and not each.is_whole:
                rest = self._laboratory.see([(each.settings, seed) for seed in self._seeds[len(each.seen) :]])
                self._tried[each.point] = self._tell(each.point, each.settings, [*each.seen, *rest])

    def try_points(self, points: Iterable[Point], wanted: Sequence[int] = ()) -> list[Tried]:
        """Try points, those aside that were tried before.

        Args:
            points: The points.
            wanted: The places of the goals without which a point is not worth all seeds.
        """
        asked = list(points)
        new = [each for each in dict.fromkeys(asked) if each not in self._tried]
        settings = {point: self._space.settings(point) for point in new}
        first = self._seeds[: _RACE_SEEDS if wanted else len(self._seeds)]
        seen = self._on(new, settings, first)
        rest = self._seeds[len(first) :]
        going_on = [
            point
            for point in new
            if all(max(missed(self._goals[at], each) for each in seen[point]) <= _HOPELESS for at in wanted)
        ]
        for point, more in self._on(going_on, settings, rest).items():
            seen[point] += more
        for point in new:
            self._tried[point] = self._tell(point, settings[point], seen[point])
        return [self._tried[each] for each in asked]

    def look(
        self, wanted: Sequence[int], *, trials: int, margins: Sequence[float], with_limits: bool, seed: int
    ) -> None:
        """Try points where goals may be met at the least cost.

        Args:
            wanted: The places of the goals.
            trials: How many.
            margins: Of each goal, by which part of it every seed shall meet it.
            with_limits: Whether to try limits.
            seed: Of the search's own random numbers.
        """
        optuna = import_optuna()
        dimensions = self._space.dimensions(with_limits=with_limits)
        distributions: dict[str, Any] = {
            name: optuna.distributions.IntDistribution(low, high) for name, (low, high) in dimensions.items()
        }
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=_RANDOM_TRIALS, multivariate=True, constant_liar=True
        )
        study = optuna.create_study(sampler=sampler)
        for each in self._tried.values():
            numbers = None if each.point is None else self._space.numbers(each.point, dimensions)
            if numbers is not None:
                study.add_trial(
                    optuna.trial.create_trial(
                        params=numbers,
                        distributions=distributions,
                        value=each.cost,
                        constraints=self._constraints(each, wanted, margins),
                    )
                )
        left, dull = trials, 0
        while left > 0 and dull < _DULL:
            asked = [study.ask(distributions) for _ in range(min(BATCH, left))]
            points = [self._space.point(each.params) for each in asked]
            dull = dull + 1 if all(each in self._tried for each in points) else 0
            for trial, found in zip(asked, self.try_points(points, wanted), strict=True):
                for name, value in self._constraints(found, wanted, margins).items():
                    trial.set_constraint(name, value)
                study.tell(trial, found.cost)
            left -= len(asked)

    def simplify(
        self, wanted: Sequence[int], *, trials: int, margins: Sequence[float], with_limits: bool
    ) -> None:
        """Try what is like the cheapest that was found, with less reserved, and less changed.

        Args:
            wanted: The places of the goals.
            trials: About how many at most.
            margins: Of each goal, by which part of it every seed shall meet it.
            with_limits: Whether limits were tried.
        """
        dimensions = self._space.dimensions(with_limits=with_limits)
        before: Tried | None = None
        while trials > 0:
            best = self.best(wanted, margins)
            if best is None or best.point is None or best is before:
                return
            before = best
            points = [each for each in self._space.simpler(best.point, dimensions) if each not in self._tried]
            self.try_points(points[:trials], wanted)
            trials -= len(points)

    def _constraints(self, tried: Tried, wanted: Sequence[int], margins: Sequence[float]) -> dict[str, float]:
        return {str(at): tried.misses[at] + margins[at] for at in wanted}

    def _on(
        self, points: Sequence[Point], settings: Mapping[Point, Settings], seeds: Sequence[int]
    ) -> dict[Point, list[Seen]]:
        seen = self._laboratory.see([(settings[point], seed) for point in points for seed in seeds])
        return {point: seen[at * len(seeds) : (at + 1) * len(seeds)] for at, point in enumerate(points)}

    def _tell(self, point: Point | None, settings: Settings, seen: Sequence[Seen]) -> Tried:
        taken = fmean(self._taken(before, after) for before, after in zip(self._before, seen, strict=False))
        return Tried(
            point=point,
            settings=settings,
            seen=tuple(seen),
            misses=tuple(max(missed(goal, each) for each in seen) for goal in self._goals),
            cost=taken + (0.0 if point is None else self._space.changes(point)),
            is_whole=len(seen) == len(self._seeds),
        )

    def _taken(self, before: Seen, after: Seen) -> float:
        total = 0.0
        slots = self._laboratory.scenario.slots * self._laboratory.scenario.schedulers
        for cls, then in after.classes.items():
            if cls in self._hurried:
                continue
            once = before.classes[cls]
            loss = once.slot_part - then.slot_part
            load = self._loads.get(cls)
            if load and once.mean_delay_seconds is not None and then.mean_delay_seconds is not None:
                growth = (then.mean_delay_seconds - once.mean_delay_seconds) / (
                    once.mean_delay_seconds + load.mean_hold_seconds
                )
                loss += min(1.0, load.mean_slots / slots) * min(10.0, growth)
            total += loss if loss > 0 else loss / 2
        return total


def import_optuna() -> Any:
    """The library that proposes points, kept quiet.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import optuna  # noqa: PLC0415 - an extra: only a tuning needs it
    except ImportError as error:
        raise MissingExtraError("tune", "optuna", "simulation") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
