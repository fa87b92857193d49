"""Runs for a tuning: what is kept of each, in one process or several, and no longer than there is hope.

A run for settings that must meet goals ends as soon as one of them is lost for certain, whatever is still to come. With the same seed the
same work arrives under all settings, so it is known how many waits there will be: once more of them are too long than a quantile
leaves out, or their sum is more than the mean allows, or a class holds too little even with every slot from now on, nothing can mend it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from types import TracebackType
from typing import Final

import attrs

from callback_priority.core.classes import ServiceClass
from callback_priority.core.units import MICROSECONDS, seconds_to_micros
from callback_priority.policy.settings import Settings
from callback_priority.simulation.comparison import processes
from callback_priority.simulation.engine import Simulation, Treatment
from callback_priority.simulation.goals import Goal
from callback_priority.simulation.results import class_results, place_of
from callback_priority.simulation.scenario import Scenario

__all__ = ["ClassSeen", "Laboratory", "Ordered", "Seen", "Stake", "missed", "value_of"]


_LOST: Final = 1e-9
"""By how much of it a goal is missed at least that was lost, whatever the rounding."""


@attrs.frozen(kw_only=True)
class ClassSeen:
    """What one class got in one run, as far as goals and costs ask.

    Args:
        kept_share: See `callback_priority.simulation.results.ClassResult`.
        delay_seconds: See there.
        mean_delay_seconds: See there.
        delays: Of how many workloads these are.
        slot_part: The part of all slots' time that it held.
    """

    kept_share: float | None
    delay_seconds: Mapping[float, float]
    mean_delay_seconds: float | None
    delays: int
    slot_part: float


@attrs.frozen(kw_only=True)
class Seen:
    """What came of one run.

    Args:
        classes: What each class got.
        utilisation: The part of the slots' time that was held.
        lost: The goal for which it did not run to the end, if it did not; all of this is as of then.
    """

    classes: Mapping[ServiceClass, ClassSeen]
    utilisation: float
    lost: Goal | None = None


def value_of(goal: Goal, seen: Seen) -> float | None:
    """What a goal is about, in one run: seconds or a share; ``None`` if nothing of its class waited, or came."""
    found = seen.classes[goal.service_class]
    if goal.least_share is not None:
        return found.kept_share
    return found.mean_delay_seconds if goal.quantile is None else found.delay_seconds.get(goal.quantile)


def missed(goal: Goal, seen: Seen) -> float:
    """By how much of it a run misses a goal; nought or less if it meets it, and -1 if nothing waited, or came."""
    value = value_of(goal, seen)
    found = -1.0 if value is None else goal.shortfall(value)
    return max(found, _LOST) if goal == seen.lost else found


@attrs.frozen(kw_only=True)
class Stake:
    """A goal that a run has to meet, or need not go on.

    Args:
        goal: The goal.
        delays: If it is about waits: of how many, with this seed.
    """

    goal: Goal
    delays: int


@attrs.frozen(kw_only=True)
class Ordered:
    """A run that is wanted.

    Args:
        settings: The settings to run.
        seed: Which random numbers.
        stakes: The goals that it has to meet, or need not go on; none to run to the end in any case.
    """

    settings: Settings
    seed: int
    stakes: tuple[Stake, ...] = ()


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

    def see(self, wanted: Sequence[Ordered]) -> list[Seen]:
        """Make runs, and tell of them in the order in which they were wanted."""
        found = []
        waiting = (
            (_see(self.scenario, each) for each in wanted)
            if self._pool is None
            else (each.result() for each in [self._pool.submit(_see, self.scenario, each) for each in wanted])
        )
        for seen in waiting:
            found.append(seen)
            self.runs += 1
            self._progress()
        return found


class _LostError(Exception):
    """A goal cannot be met any more.

    Args:
        goal: The goal.
        now: Since when this is known, in microseconds.
    """

    def __init__(self, goal: Goal, now: int) -> None:
        super().__init__(goal.text)
        self.goal = goal
        self.now = now


class _Watch:
    """Ends a run when a goal is lost.

    Args:
        simulation: The run.
        scenario: What is run.
        stakes: The goals.
    """

    def __init__(self, simulation: Simulation, scenario: Scenario, stakes: Sequence[Stake]) -> None:
        self._simulation = simulation
        self._until = seconds_to_micros(scenario.seconds)
        self._warm_up = seconds_to_micros(scenario.warm_up_seconds)
        self._slots = scenario.slots * scenario.schedulers
        # The work of a scheduler that dies waits again: nobody knows beforehand how many waits there will be.
        self._stakes = [each for each in stakes if each.goal.least_share is not None or not scenario.crashes]
        # Of each stake, how many waits were counted, and what they came to.
        self._counted = [(0, 0)] * len(self._stakes)

    def __call__(self, part: float) -> None:
        """To be told how far the run is.

        Raises:
            _LostError: A goal is lost.
        """
        now = int(part * self._until)
        for at, each in enumerate(self._stakes):
            if self._is_lost(at, now):
                raise _LostError(each.goal, now)

    def _is_lost(self, number: int, now: int) -> bool:
        stake, meter = self._stakes[number], self._simulation.meter
        goal = stake.goal
        if goal.most_seconds is None or goal.least_share is not None:
            share = goal.least_share or 0.0
            kept, elapsed = meter.kept(meter.place[goal.service_class])
            rest = self._until - now
            return kept + self._slots * rest < share * self._slots * (elapsed + rest)
        most = seconds_to_micros(goal.most_seconds)

        def amount(waits: Sequence[int]) -> int:
            return sum(waits) if goal.quantile is None else sum(each > most for each in waits)

        ended = meter.waits[meter.place[goal.service_class]]
        counted, total = self._counted[number]
        total += amount(ended[counted:])
        self._counted[number] = (len(ended), total)
        waiting = self._simulation.left_waiting(goal.service_class)
        total += amount([now - at for at in waiting if at >= self._warm_up])
        allowed = (
            most * stake.delays
            if goal.quantile is None
            else stake.delays - place_of(goal.quantile, stake.delays)
        )
        return total > allowed


def _see(scenario: Scenario, wanted: Ordered) -> Seen:
    treatment = Treatment(name="", settings=wanted.settings)
    simulation = Simulation(scenario, treatment, seed=wanted.seed)
    lost = None
    try:
        simulation.run(_Watch(simulation, scenario, wanted.stakes))
    except _LostError as error:
        # As if it had been watched for no longer.
        scenario = attrs.evolve(scenario, seconds=error.now / MICROSECONDS)
        lost = error.goal
    capacity = scenario.slots * scenario.schedulers * scenario.seconds
    classes = {
        cls: ClassSeen(
            kept_share=found.kept_share,
            delay_seconds=dict(found.delay_seconds),
            mean_delay_seconds=found.mean_delay_seconds,
            delays=found.delays,
            slot_part=found.slot_seconds / capacity,
        )
        for cls, found in class_results(simulation, scenario).items()
    }
    return Seen(
        classes=classes,
        utilisation=sum(each.slot_part for each in classes.values()),
        lost=lost,
    )
