"""From goals to settings: those that meet the goals and take the least from everyone else.

What is found is as good as the work that it was tried on. Three things keep it from being good there by chance only:

1. with the seeds of the search, the *worst* of them must meet each goal, by a margin where it is about waits;
2. the settings are then checked with seeds that the search has not used; `REQUIRED` of these must meet each goal, and so must
   the upper end of the confidence interval of their mean;
3. if they do not, the seeds that failed join those of the search, and what is found with these, too, is checked with seeds that
   are new again.

Whether a goal can be met at all is asked first, with everything that can be given to its class. If each can and all together cannot, it
is said which two collide, and what the best is for each with the other one met.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from statistics import fmean
from typing import Final

import attrs

from callback_priority.core.classes import ServiceClass
from callback_priority.errors import ConfigurationError, Problem
from callback_priority.policy.parse import parse_settings
from callback_priority.policy.render import render_settings
from callback_priority.policy.settings import Mode, Settings
from callback_priority.simulation.estimates import CONFIDENCE, Estimate, estimate
from callback_priority.simulation.goals import Goal
from callback_priority.simulation.scenario import Scenario
from callback_priority.simulation.tuned import ClassCost, Collision, GoalOutcome, Tuned, Verdict
from callback_priority.simulation.tuning_runs import Laboratory, Ordered, Seen, missed, value_of
from callback_priority.simulation.tuning_space import Space, offered_loads
from callback_priority.simulation.tuning_trials import Search, Tried, import_optuna

__all__ = ["REQUIRED", "SEEDS", "TRIALS", "UNSEEN_SEEDS", "tune"]

TRIALS: Final = 30
SEEDS: Final = 5
UNSEEN_SEEDS: Final = 20

REQUIRED: Final = 0.95
"""The part of the unseen seeds that must meet each goal: 19 of 20. What is met by three in four passes this check once in thirty times."""

_MARGIN: Final = 0.05
_CHECKS: Final = 4
_CHECKED_AT_ONCE: Final = 5
_TELLING: Final = 0.95
_FIRST_UNSEEN: Final = 1_000_000
"""How far the seeds of the checks are from those of the search."""


def tune(
    scenario: Scenario,
    goals: Sequence[Goal],
    today: Settings | None = None,
    *,
    trials: int = TRIALS,
    seeds: int = SEEDS,
    unseen_seeds: int = UNSEEN_SEEDS,
    first_seed: int = 0,
    jobs: int = 1,
    margin: float | None = None,
    confidence: float = CONFIDENCE,
    progress: Callable[[float], None] = lambda _part: None,
) -> Tuned:
    """Look for settings that meet goals.

    Args:
        scenario: What they are tried on.
        goals: What is wanted.
        today: The settings to begin from, and to hold the others against; those by default if not given.
        trials: How many settings the search tries at first; to simplify what it found, to keep goals apart that collide and
            to tighten the margin it tries about as many again.
        seeds: With how many seeds each is tried.
        unseen_seeds: With how many others the result is checked.
        first_seed: The first seed.
        jobs: How many processes share the runs; the result is the same for any number.
        margin: By which part of it each goal is to be met with every seed of the search, for work that is not quite as the scenario says;
            if not given, one in twenty of waits, and nothing of shares.
        confidence: Of the intervals, between 0 and 1.
        progress: Is told now and then about which part is done, from 0 to 1.

    Raises:
        ConfigurationError: The scenario has nothing that a goal is about.
        MissingExtraError: Optuna is not installed.
    """
    import_optuna()
    _check(scenario, goals)
    today = _at_home(today or Settings(), scenario)
    about = 2 * trials + 6 * seeds + 2 * unseen_seeds
    laboratory = Laboratory(
        scenario, jobs=jobs, progress=lambda: progress(min(0.99, laboratory.runs / about))
    )
    with laboratory:
        tuning = _Tuning(
            laboratory=laboratory,
            space=Space(scenario, today, goals),
            goals=tuple(goals),
            trials=trials,
            seeds=tuple(range(first_seed, first_seed + seeds)),
            unseen=unseen_seeds,
            margins=tuple(_margin_of(goal) if margin is None else margin for goal in goals),
            confidence=confidence,
        )
        found = tuning.run()
    progress(1.0)
    return found


def _margin_of(goal: Goal) -> float:
    """Shares hardly differ from seed to seed; waits do."""
    return 0.0 if goal.most_seconds is None else _MARGIN


def _check(scenario: Scenario, goals: Sequence[Goal]) -> None:
    problems = []
    taking_part = {work.service_class for work in scenario.streams}
    coming = {work.service_class for work in scenario.streams if not work.endless}
    known = ", ".join(sorted(taking_part))
    for goal in goals:
        cls = goal.service_class
        if cls not in taking_part:
            remedy = f"nothing of the class {cls} comes in this scenario, which has {known}; add its work, or drop the goal"
        elif goal.most_seconds is None:
            continue
        elif cls not in coming:
            remedy = f'the {cls} work of this scenario is a backlog without end, which has no waits; say "{cls} keeps >= PERCENT"'
        elif goal.most_seconds > scenario.seconds - scenario.warm_up_seconds:
            remedy = (
                f"is longer than the scenario is watched, {scenario.seconds:g} seconds; watch it for longer"
            )
        else:
            continue
        problems.append(Problem(key="goals", value=goal.text, remedy=remedy))
    if problems:
        raise ConfigurationError(problems, f"the goals for {scenario.name}")


def _at_home(settings: Settings, scenario: Scenario) -> Settings:
    """Settings under which callbacks draw on the pools that the scenario says."""
    homes = {
        work.service_class: work.pool
        for work in scenario.streams
        if work.service_class in settings.callback_pool
    }
    return attrs.evolve(settings, callback_pool={**settings.callback_pool, **homes})


@attrs.frozen(kw_only=True)
class _Checked:
    """Settings, and what came of them with seeds that the search has not used: with the first ones if these were enough to fail."""

    tried: Tried
    seeds: tuple[int, ...]
    after: tuple[Seen, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether all seeds were tried."""
        return len(self.after) == len(self.seeds)


class _Tuning:
    """One tuning; see `tune`."""

    def __init__(
        self,
        *,
        laboratory: Laboratory,
        space: Space,
        goals: tuple[Goal, ...],
        trials: int,
        seeds: tuple[int, ...],
        unseen: int,
        margins: tuple[float, ...],
        confidence: float,
    ) -> None:
        self._laboratory = laboratory
        self._space = space
        self._goals = goals
        self._trials = trials
        self._unseen = unseen
        self._next_unseen = seeds[0] + _FIRST_UNSEEN
        self._margins = margins
        self._confidence = confidence
        self._with_limits = False
        self._loads = offered_loads(laboratory.scenario, goals, seed=seeds[0])
        self._search = Search(laboratory, space, goals, self._loads, seeds)
        self._searches = 0
        self._reachable: tuple[int, ...] = ()

    def run(self) -> Tuned:
        search, every = self._search, tuple(range(len(self._goals)))
        classes = dict.fromkeys(goal.service_class for goal in self._goals)
        search.try_points([self._space.origin, *map(self._space.favourable, classes)])
        reachable = self._reachable = tuple(at for at in every if self._is_met_by_any([at]))
        if not reachable:
            return self._told(
                Verdict.UNREACHABLE, self._check(search.today, ()), max(self._margins), found=False
            )
        search.try_points(self._space.sensible(self._loads), reachable)
        checked, margin = self._find(reachable)
        if checked is None or not self._is_sure(checked, reachable):
            # Before it is said that there is nothing: is there a narrow way between the goals?
            search.try_points(self._space.ladder(self._loads), reachable)
            again, its_margin = self._find(reachable, trials=0)
            if again is not None and (checked is None or self._is_sure(again, reachable)):
                checked, margin = again, its_margin
        if checked is None:
            collisions = self._collisions(reachable)
            # Looking at two at a time may have found what meets all of them.
            checked, margin = self._find(reachable, trials=0)
            if checked is None:
                compromise = self._check(search.nearest(reachable), ())
                return self._told(
                    self._verdict(reachable, Verdict.CONTRADICTORY), compromise, margin, collisions
                )
        sure = Verdict.MET if self._is_sure(checked, reachable) else Verdict.UNSURE
        return self._told(self._verdict(reachable, sure), checked, margin)

    def _verdict(self, reachable: Sequence[int], verdict: Verdict) -> Verdict:
        return verdict if len(reachable) == len(self._goals) else Verdict.UNREACHABLE

    # The search -------------------------------------------------------------------------------------------

    def _find(self, wanted: Sequence[int], trials: int | None = None) -> tuple[_Checked | None, float]:
        """Settings that meet goals, checked; the last ones if none passed the check, none if there are none."""
        trials = self._trials if trials is None else trials
        checked: _Checked | None = None
        margins = list(self._margins)
        for _ in range(_CHECKS):
            self._look(wanted, trials if checked is None else trials // 2, margins)
            best = self._search.best(wanted, margins)
            if best is None and checked is None:
                # Some goals are met by a hair, or not at all.
                best = self._search.best(wanted)
            if best is None:
                break
            checked = self._check(best, wanted)
            failing = [at for at in wanted if not self._is_sure(checked, [at])]
            if not failing:
                break
            failed = self._failed(checked, failing)
            if failed:
                self._search.learn(failed)
            else:
                for at in failing:
                    margins[at] = max(_MARGIN, 2 * margins[at])
        return checked, max(margins)

    def _look(self, wanted: Sequence[int], trials: int, margins: Sequence[float]) -> None:
        self._ask(wanted, trials, margins)
        if self._search.best(wanted, margins) is None and not self._with_limits:
            self._with_limits = True
            self._ask(wanted, trials // 2, margins)
        self._search.simplify(
            wanted, trials=(trials + 1) // 2, margins=margins, with_limits=self._with_limits
        )

    def _ask(self, wanted: Sequence[int], trials: int, margins: Sequence[float]) -> None:
        self._searches += 1
        self._search.look(
            wanted, trials=trials, margins=margins, with_limits=self._with_limits, seed=self._searches
        )

    def _is_met_by_any(self, wanted: Sequence[int]) -> bool:
        return self._search.best(wanted) is not None

    def _collisions(self, wanted: Sequence[int]) -> tuple[Collision, ...]:
        """Which two of the goals were not found to go together; all of them, if every two do."""
        found = []
        for pair in combinations(wanted, 2):
            if len(wanted) > 2 and not self._is_met_by_any(pair):
                self._ask(pair, self._trials // 2, [0.0] * len(self._goals))
            if not self._is_met_by_any(pair):
                found.append(self._collision(pair))
        return tuple(found) or (self._collision(wanted),)

    def _collision(self, wanted: Sequence[int]) -> Collision:
        best = []
        for at in wanted:
            closest = self._search.closest(at, [other for other in wanted if other != at])
            best.append(None if closest is None else self._mean(at, closest))
        return Collision(goals=tuple(self._goals[at] for at in wanted), best=tuple(best))

    def _mean(self, at: int, tried: Tried) -> float | None:
        values = [value for each in tried.seen if (value := value_of(self._goals[at], each)) is not None]
        return fmean(values) if values else None

    # The check --------------------------------------------------------------------------------------------

    def _check(self, tried: Tried, wanted: Sequence[int]) -> _Checked:
        """Run settings with seeds that nothing has been run with, until they are through or a goal is failed too often."""
        seeds = tuple(range(self._next_unseen, self._next_unseen + self._unseen))
        self._next_unseen += self._unseen
        checked = _Checked(tried=tried, seeds=seeds)
        while not checked.is_whole and self._may_be_sure(checked, wanted):
            checked = self._check_more(checked, _CHECKED_AT_ONCE)
        return checked

    def _check_more(self, checked: _Checked, count: int) -> _Checked:
        done = len(checked.after)
        more = self._see(checked.tried.settings, checked.seeds[done : done + count])
        return attrs.evolve(checked, after=(*checked.after, *more))

    def _failed(self, checked: _Checked, wanted: Sequence[int]) -> list[int]:
        """The seeds that failed any of these goals."""
        return [
            seed
            for seed, seen in zip(checked.seeds, checked.after, strict=False)
            if any(missed(self._goals[at], seen) > 0 for at in wanted)
        ]

    def _see(self, settings: Settings, seeds: Sequence[int]) -> list[Seen]:
        return self._laboratory.see([Ordered(settings=settings, seed=seed) for seed in seeds])

    def _may_be_sure(self, checked: _Checked, wanted: Sequence[int]) -> bool:
        """Whether few enough seeds failed each goal so far."""
        left = len(checked.seeds) - len(checked.after)
        return all(
            self._met(self._goals[at], checked.after) + left >= REQUIRED * len(checked.seeds) for at in wanted
        )

    def _is_sure(self, checked: _Checked, wanted: Sequence[int]) -> bool:
        if not self._may_be_sure(checked, wanted):
            return False
        for at in wanted if checked.is_whole else ():
            goal = self._goals[at]
            found = self._estimate([value_of(goal, each) for each in checked.after])
            if found is None:
                continue
            worst = found.low if goal.least_share is not None else found.high
            if goal.shortfall(found.mean if worst is None else worst) > 0:
                return False
        return True

    @staticmethod
    def _met(goal: Goal, seen: Sequence[Seen]) -> int:
        return sum(missed(goal, each) <= 0 for each in seen)

    def _estimate(self, values: Sequence[float | None]) -> Estimate | None:
        return estimate([each for each in values if each is not None], self._confidence)

    # The answer -------------------------------------------------------------------------------------------

    def _told(
        self,
        verdict: Verdict,
        checked: _Checked,
        margin: float,
        collisions: tuple[Collision, ...] = (),
        *,
        found: bool = True,
    ) -> Tuned:
        scenario = self._laboratory.scenario
        settings = checked.tried.settings
        # What is told to be pasted is what was simulated, or this is a mistake here.
        parse_settings(render_settings(settings))
        checked = self._check_more(checked, len(checked.seeds))
        is_today = checked.tried.point is None
        before = checked.after if is_today else self._see(self._space.today, checked.seeds)
        pairs = list(zip(before, checked.after, strict=True))
        return Tuned(
            scenario=scenario,
            verdict=verdict,
            today=self._space.today,
            settings=settings if found else None,
            goals=tuple(self._outcome(at, before, checked) for at in range(len(self._goals))),
            costs={cls: self._cost(cls, pairs) for cls in self._space.classes},
            utilisation_before=self._sure([each.utilisation for each in before]),
            utilisation_after=self._sure([each.utilisation for each in checked.after]),
            collisions=collisions,
            # Those that the last check had failed were learned too late for these settings.
            seeds=tuple(each for each in self._search.seeds if each not in checked.seeds),
            unseen_seeds=checked.seeds,
            margin=margin,
            trials=len(self._search.tried),
            runs=self._laboratory.runs,
            confidence=self._confidence,
            notes=self._notes(settings) if found else (),
        )

    def _notes(self, settings: Settings) -> tuple[str, ...]:
        today = self._space.today
        notes = []
        if settings == today:
            notes.append("nothing needs to change: these are today's settings")
        if settings.policy is not today.policy:
            notes.append(f"the policy changes from {today.policy} to {settings.policy}")
        if settings.mode is not Mode.ACTIVE:
            notes.append(
                f"mode is {settings.mode}: nothing of this takes effect before mode = active is set, too"
            )
        return tuple(notes)

    def _outcome(self, at: int, seen_before: Sequence[Seen], checked: _Checked) -> GoalOutcome:
        goal = self._goals[at]
        nearest = min(self._search.known, key=lambda each: each.misses[at])
        before = self._estimate([value_of(goal, each) for each in seen_before])
        after = self._estimate([value_of(goal, each) for each in checked.after])
        return GoalOutcome(
            goal=goal,
            before=before,
            after=after,
            met_before=self._met(goal, seen_before),
            met_after=self._met(goal, checked.after),
            seeds=len(checked.seeds),
            best_alone=self._mean(at, nearest),
            is_reachable=at in self._reachable,
            never_waited=before is None and after is None,
        )

    def _cost(self, cls: ServiceClass, pairs: Sequence[tuple[Seen, Seen]]) -> ClassCost:
        slots = [(before.classes[cls].slot_part, after.classes[cls].slot_part) for before, after in pairs]
        delays = [
            (before.classes[cls].delay_seconds.get(_TELLING), after.classes[cls].delay_seconds.get(_TELLING))
            for before, after in pairs
        ]
        return ClassCost(
            slots_before=self._sure([before for before, _ in slots]),
            slots_after=self._sure([after for _, after in slots]),
            slots_change=self._sure([after - before for before, after in slots]),
            delay_before=self._estimate([before for before, _ in delays]),
            delay_after=self._estimate([after for _, after in delays]),
            delay_change=self._estimate(
                [after - before for before, after in delays if before is not None and after is not None]
            ),
        )

    def _sure(self, values: Sequence[float]) -> Estimate:
        return estimate(values, self._confidence) or Estimate(mean=0.0, low=None, high=None, n=0)
