"""Trying settings on seeds, and the search for those that meet goals at the least cost to the others.

The search is a tree-structured Parzen estimator (Bergstra, Bardenet, Bengio, Kégl, 2011, "Algorithms for hyper-parameter optimization")
with constraints, as Optuna has it, asked for points and told what they came to. It suits the problem: a few whole numbers, a noisy
answer that takes a second, constraints that are as noisy, and less than a hundred tries. Methods of descent want gradients, and
evolution wants thousands of tries.

Most of what is tried is no good, and little should be spent on it. A point is tried with one seed, the one that is hardest today, and its run
ends once a goal is lost (`callback_priority.simulation.tuning_runs`). It is tried with the other seeds only if it is ahead of the best
one on the same seeds: of the seed-by-seed differences, as in races of configurations (Birattari, Stützle, Paquete, Varrentrapp, 2002,
"A racing algorithm for configuring metaheuristics"). What is told as the best has been through all of them.

*Cost* is what is taken from the others, which are all classes without a goal for their waits: the part of all slots' time that they lose
against today, and the part by which the time from arrival to end grows, weighted with the part of the slots that they ask for. What
they gain counts half, so that one class is not made to pay for another. What is left equal is decided for smaller changes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from statistics import fmean
from typing import Any, Final

import attrs

from callback_priority.core.classes import ServiceClass
from callback_priority.errors import InternalError, MissingExtraError
from callback_priority.policy.settings import Settings
from callback_priority.simulation.goals import Goal
from callback_priority.simulation.tuning_runs import Laboratory, Ordered, Seen, Stake, missed
from callback_priority.simulation.tuning_space import Load, Point, Space

__all__ = ["Search", "Tried", "import_optuna"]

BATCH: Final = 4
"""So many points are asked for at once, whatever the number of processes, so that it does not change what is found."""

_RANDOM_TRIALS: Final = 6
_DULL: Final = 3
_COMPLETED: Final = 5


@attrs.frozen(kw_only=True)
class Tried:
    """Settings that were tried.

    Args:
        point: The point that they are; ``None`` for settings of today that are none.
        settings: The settings.
        seen: What came of the first seeds, or all of them.
        misses: Of each goal, by how much it was missed with the worst of these.
        costs: With each of these, what they take from the others.
        changes: What they change, as a cost.
    """

    point: Point | None
    settings: Settings
    seen: tuple[Seen, ...]
    misses: tuple[float, ...]
    costs: tuple[float, ...]
    changes: float

    @property
    def known(self) -> int:
        """With how many of the first seeds they were tried to the end."""
        return sum(1 for _ in takewhile(lambda each: each.lost is None, self.seen))

    @property
    def cost(self) -> float:
        """What they take from the others, and change."""
        return self.cost_of_first(len(self.costs))

    def cost_of_first(self, count: int) -> float:
        """What they take from the others with so many of the first seeds, and change."""
        return fmean(self.costs[:count]) + self.changes

    def meets(self, wanted: Iterable[int], margins: Sequence[float] | None = None) -> bool:
        """Whether every seed so far met goals.

        Args:
            wanted: The places of the goals.
            margins: Of each goal, by at least this part of it.
        """
        return all(self.misses[at] <= (-margins[at] if margins else 0.0) for at in wanted)


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
        self._hurried = {goal.service_class for goal in goals if goal.most_seconds is not None}
        self._tried: dict[Point, Tried] = {}
        seen = laboratory.see([Ordered(settings=space.today, seed=seed) for seed in seeds])
        # What fails does so soonest with the seeds that are hard today.
        hard = sorted(zip(seeds, seen, strict=True), key=lambda each: -self._hardness(each[1]))
        self._seeds = tuple(seed for seed, _ in hard)
        self._before = tuple(each for _, each in hard)
        self._enough = len(self._seeds)
        self.today = self._tell(None, space.today, self._before)

    @property
    def tried(self) -> list[Tried]:
        """Today's settings and everything else that was tried, in order."""
        return [self.today, *self._tried.values()]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the search, those included that were learned of."""
        return self._seeds

    @property
    def known(self) -> list[Tried]:
        """What was tried to the end with all seeds, or with all that there were at first."""
        return [each for each in self.tried if each.known >= self._enough]

    def learn(self, seeds: Sequence[int]) -> None:
        """Ask more seeds of settings from now on.

        Args:
            seeds: The seeds.
        """
        seen = self._laboratory.see([Ordered(settings=self._space.today, seed=seed) for seed in seeds])
        self._seeds += tuple(seeds)
        self._before += tuple(seen)
        self.today = self._tell(None, self._space.today, self._before)

    def best(self, wanted: Sequence[int], margins: Sequence[float] | None = None) -> Tried | None:
        """The cheapest that meets goals with every seed.

        What met them so far, and cost less so far, is tried with the other seeds until none such is left.

        Args:
            wanted: The places of the goals.
            margins: Of each goal, by at least this part of it.
        """
        while True:
            best = min(
                (each for each in self._whole if each.meets(wanted, margins)),
                key=lambda each: each.cost,
                default=None,
            )
            rivals = [
                (each.cost - (best.cost_of_first(len(each.seen)) if best else 0.0), at)
                for at, each in enumerate(self.tried)
                if each.known < len(self._seeds) and each.meets(wanted, margins)
            ]
            ahead, at = min(rivals, default=(0.0, 0))
            if not rivals or (best and ahead >= 0):
                return best
            self._go_on(self.tried[at], wanted)

    def nearest(self, wanted: Sequence[int]) -> Tried:
        """What misses the goal that it misses most by the least part.

        Args:
            wanted: The places of the goals.
        """

        def worst(each: Tried) -> tuple[float, float]:
            return max(max(0.0, each.misses[at]) for at in wanted), each.cost

        self._see_through()
        self._complete(sorted(self.tried, key=worst))
        return min(self._whole, key=worst)

    def closest(self, goal: int, others: Sequence[int]) -> Tried | None:
        """What comes closest to a goal, or surpasses it most, while others are met; ``None`` if nothing meets these.

        Args:
            goal: The place of the goal.
            others: The places of the others.
        """
        self._see_through()
        meeting = [each for each in self.tried if each.meets(others)]
        self._complete(sorted(meeting, key=lambda each: each.misses[goal]))
        return min(
            (each for each in self._whole if each.meets(others)),
            key=lambda each: each.misses[goal],
            default=None,
        )

    @property
    def _whole(self) -> list[Tried]:
        return [each for each in self.tried if each.known == len(self._seeds)]

    def _see_through(self) -> None:
        """Have a run to its end of everything: what it came to when a goal was lost does not tell how near it comes to others."""
        stopped = [each for each in self._tried.items() if each[1].known < len(each[1].seen)]
        unknown = [point for point, each in stopped if not each.known]
        runs = self._laboratory.see([self._ordered(self._tried[point].settings, 0, ()) for point in unknown])
        first = dict(zip(unknown, runs, strict=True))
        for point, each in stopped:
            seen = each.seen[: each.known] or [first[point]]
            self._tried[point] = self._tell(point, each.settings, seen)

    def _complete(self, tried: Sequence[Tried]) -> None:
        """Try the first of these with all seeds and to the end, however hopeless they are: to be told of, not to be used."""
        for each in tried[:_COMPLETED]:
            if each.known < len(self._seeds):
                self._go_on(each)

    def _go_on(self, tried: Tried, wanted: Sequence[int] = ()) -> None:
        """Try a point with the seeds that it was not tried with, or not to the end.

        Args:
            tried: What came of it so far.
            wanted: The places of the goals without which a run need not go on.
        """
        if tried.point is None:
            raise InternalError("today's settings are tried with all seeds at once")
        known = tried.seen[: tried.known]
        rest = range(len(known), len(self._seeds))
        seen = self._laboratory.see([self._ordered(tried.settings, at, wanted) for at in rest])
        self._tried[tried.point] = self._tell(tried.point, tried.settings, [*known, *seen])

    def try_points(self, points: Iterable[Point], wanted: Sequence[int] = ()) -> list[Tried]:
        """Try points, those aside that were tried before.

        Args:
            points: The points.
            wanted: The places of the goals without which a point is of no use. It is tried with one seed, and `best` goes on
                with the promising ones. If there are none, with all seeds.
        """
        asked = list(points)
        new = [each for each in dict.fromkeys(asked) if each not in self._tried]
        settings = {point: self._space.settings(point) for point in new}
        seeds = range(1 if wanted else len(self._seeds))
        seen = self._laboratory.see(
            [self._ordered(settings[point], at, wanted) for point in new for at in seeds]
        )
        for at, point in enumerate(new):
            of_point = seen[at * len(seeds) : (at + 1) * len(seeds)]
            self._tried[point] = self._tell(point, settings[point], of_point)
        return [self._tried[each] for each in asked]

    def _ordered(self, settings: Settings, at: int, wanted: Sequence[int]) -> Ordered:
        """A run with a seed of the search.

        Args:
            settings: The settings.
            at: The place of the seed.
            wanted: The places of the goals without which it need not go on.
        """
        goals = [self._goals[each] for each in wanted]
        classes = self._before[at].classes
        stakes = [Stake(goal=goal, delays=classes[goal.service_class].delays) for goal in goals]
        return Ordered(settings=settings, seed=self._seeds[at], stakes=tuple(stakes))

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
            self.best(wanted, margins)
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

    def _tell(self, point: Point | None, settings: Settings, seen: Sequence[Seen]) -> Tried:
        costs = [self._taken(before, after) for before, after in zip(self._before, seen, strict=False)]
        return Tried(
            point=point,
            settings=settings,
            seen=tuple(seen),
            misses=tuple(max(missed(goal, each) for each in seen) for goal in self._goals),
            costs=tuple(costs),
            changes=0.0 if point is None else self._space.changes(point),
        )

    def _hardness(self, seen: Seen) -> float:
        return max(missed(goal, seen) for goal in self._goals)

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
