"""Where a tuning looks: settings as points of whole numbers, and the points that are worth a first try.

A point says, for each class, by what its weight of today is multiplied, what is reserved for it with each scheduler, and its limit there.
Reserves are tried for classes that have a goal. If such a class draws on one pool with an end that others draw on, too, a point may
reserve there as much as with all schedulers: a slot of a scheduler is of no use without one of the pool.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import attrs

from callback_priority.core.classes import CLASS_ORDER, SCHEDULER_SCOPE, Level, ServiceClass
from callback_priority.core.policies import Policy
from callback_priority.core.quotas import Quota
from callback_priority.core.units import MAX_WEIGHT_MILLI, MICROSECONDS, Milliweight, seconds_to_micros
from callback_priority.policy.settings import EVERY_OTHER_POOL, PoolShare, Settings
from callback_priority.simulation.goals import Goal
from callback_priority.simulation.scenario import Scenario

__all__ = ["FACTORS", "NEUTRAL", "Load", "Point", "Space", "offered_loads"]

FACTORS: Final = (
    *(0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0),
)
"""What a weight may be multiplied by: round numbers, about evenly far apart in ratio."""

NEUTRAL: Final = FACTORS.index(1.0)
"""The place of the factor that leaves a weight as it is."""

_STANDARD_DEVIATIONS: Final = (1.0, 3.0)
_ANY_SECONDS: Final = 60.0
_RUNGS: Final = 32
"""The most sizes of a reserve on a ladder."""


@attrs.frozen(kw_only=True)
class Load:
    """What a class asks for, whether it gets it or not.

    Args:
        mean_slots: Slots that it would hold on average if it never waited: its rate times its mean hold.
        peak_slots: The same over the busiest stretch as long as its goal.
        mean_hold_seconds: Its mean hold.
    """

    mean_slots: float
    peak_slots: float
    mean_hold_seconds: float


def offered_loads(scenario: Scenario, goals: Sequence[Goal], *, seed: int) -> dict[ServiceClass, Load]:
    """What the classes of a scenario ask for; a backlog without end, which asks for everything, is left out.

    Args:
        scenario: The scenario.
        goals: Stretches are as long as these say of waits; a minute for classes without.
        seed: Which random numbers.

    Complexity: O(workloads).
    """
    until = seconds_to_micros(scenario.seconds)
    found: dict[ServiceClass, dict[int, int]] = {}
    counts: dict[ServiceClass, int] = {}
    stretches = {
        goal.service_class: seconds_to_micros(goal.most_seconds) for goal in goals if goal.most_seconds
    }
    for work in scenario.streams:
        if work.endless:
            continue
        cls = work.service_class
        length = min(until, stretches.get(cls, seconds_to_micros(_ANY_SECONDS)))
        asked = found.setdefault(cls, {})
        for arriving in work.arriving(seed):
            if arriving.at >= until:
                break
            stretch = arriving.at // length
            asked[stretch] = asked.get(stretch, 0) + arriving.hold
            counts[cls] = counts.get(cls, 0) + 1
    return {
        cls: Load(
            mean_slots=sum(asked.values()) / until,
            peak_slots=max(asked.values()) / min(until, stretches.get(cls, seconds_to_micros(_ANY_SECONDS))),
            mean_hold_seconds=sum(asked.values()) / counts[cls] / MICROSECONDS,
        )
        for cls, asked in found.items()
        if asked
    }


@attrs.frozen(kw_only=True)
class Point:
    """Settings to try. Each sequence has one number for each class of the space.

    Args:
        factors: Places in `FACTORS`.
        reserves: Slots reserved with each scheduler.
        limits: The most slots held with each scheduler; nought for no limit.
        in_pools: Whether the reserves hold in pools, too.
    """

    factors: tuple[int, ...]
    reserves: tuple[int, ...]
    limits: tuple[int, ...]
    in_pools: bool = False


class Space:
    """The settings that may be tried.

    Args:
        scenario: What they are tried on.
        today: The settings to begin from; what is not searched stays as it is there.
        goals: What is wanted.
    """

    def __init__(self, scenario: Scenario, today: Settings, goals: Sequence[Goal]) -> None:
        taking_part = {work.service_class for work in scenario.streams}
        self.classes = tuple(cls for cls in CLASS_ORDER if cls in taking_part)
        self.slots = scenario.slots
        self.today = today
        self._scenario = scenario
        self._goals = tuple(goals)
        self._wanted = {goal.service_class for goal in goals}
        patient = [cls for cls in self.classes if not self._waits_at_most(cls)] or list(self.classes)
        self._reference = patient[-1]
        self._pools = {cls: pool for cls in self._wanted if (pool := self._shared_pool(cls))}
        self.origin = Point(
            factors=(NEUTRAL,) * len(self.classes),
            reserves=tuple(self._quota(cls).reserve_slots for cls in self.classes),
            limits=tuple(self._quota(cls).limit_slots or 0 for cls in self.classes),
        )

    def dimensions(self, *, with_limits: bool) -> dict[str, tuple[int, int]]:
        """What is searched: the least and the largest number of each.

        Args:
            with_limits: Whether limits are tried that there are not today.
        """
        found = {f"weight {cls}": (0, len(FACTORS) - 1) for cls in self.classes if cls is not self._reference}
        for cls in self.classes:
            if cls in self._wanted or self._quota(cls).reserve_slots:
                found[f"reserve {cls}"] = (0, max(0, self.slots - 1))
            if with_limits or self._quota(cls).limit_slots:
                found[f"limit {cls}"] = (0, self.slots)
        if self._pools:
            found["in pools"] = (0, 1)
        return found

    def point(self, numbers: Mapping[str, int]) -> Point:
        """The nearest point that is allowed: reserves leave a slot to everyone else, limits hold what is reserved.

        Args:
            numbers: By the names of `dimensions`; what is missing is as today.
        """
        origin = self.origin

        def of(what: str, default: tuple[int, ...]) -> list[int]:
            return [
                numbers.get(f"{what} {cls}", each) for cls, each in zip(self.classes, default, strict=True)
            ]

        reserves = of("reserve", origin.reserves)
        while sum(reserves) > max(0, self.slots - 1):
            reserves[reserves.index(max(reserves))] -= 1
        limits = [
            max(limit, reserve) if 0 < limit < self.slots else 0
            for limit, reserve in zip(of("limit", origin.limits), reserves, strict=True)
        ]
        return Point(
            factors=tuple(of("weight", origin.factors)),
            reserves=tuple(reserves),
            limits=tuple(limits),
            in_pools=bool(numbers.get("in pools", 0) and self._pools) and any(reserves),
        )

    def numbers(self, point: Point, dimensions: Mapping[str, tuple[int, int]]) -> dict[str, int] | None:
        """A point by the names of dimensions; ``None`` if it cannot be told by these."""
        found = {"in pools": int(point.in_pools)}
        for at, cls in enumerate(self.classes):
            found[f"weight {cls}"] = point.factors[at]
            found[f"reserve {cls}"] = point.reserves[at]
            found[f"limit {cls}"] = point.limits[at]
        told = {name: found[name] for name in dimensions}
        return told if self.point(told) == point else None

    def settings(self, point: Point) -> Settings:
        """The settings that a point stands for: those of today for the origin, under the policy that has weights."""
        today = attrs.evolve(self.today, policy=Policy.FAIR)
        if point == self.origin:
            return today
        quotas = dict(today.slot_quotas)
        weights = dict(today.weights)
        for cls, factor, reserve, limit in zip(
            self.classes, point.factors, point.reserves, point.limits, strict=True
        ):
            weights[cls] = _multiplied(today.weights[cls], FACTORS[factor])
            quotas.pop(cls, None)
            if reserve or limit:
                quotas[cls] = Quota(reserve_slots=reserve, limit_slots=limit or None)
        pools = self._pool_quotas(point) if point.in_pools else today.pool_quotas
        return attrs.evolve(today, weights=weights, slot_quotas=quotas, pool_quotas=pools)

    def favourable(self, service_class: ServiceClass) -> Point:
        """What is best for one class, whatever it costs the others."""
        at = self.classes.index(service_class)
        alone = len(self.classes) == 1
        numbers = {f"limit {cls}": 0 for cls in self.classes} | {f"reserve {cls}": 0 for cls in self.classes}
        numbers |= {
            f"weight {cls}": NEUTRAL if alone else len(FACTORS) - 1 if cls is service_class else NEUTRAL
            for cls in self.classes
        }
        numbers[f"reserve {service_class}"] = 0 if alone else self.slots - 1
        numbers["in pools"] = 1
        if self.classes[at] is self._reference:
            # Its own weight is not searched: the others' are as small instead.
            numbers |= {f"weight {cls}": 0 for cls in self.classes}
            numbers[f"weight {service_class}"] = NEUTRAL
        return self.point(numbers)

    def sensible(self, loads: Mapping[ServiceClass, Load]) -> Iterator[Point]:
        """What somebody who knows the theory would try first.

        A class that asks for ``a`` slots on average holds a number of them that is about Poisson, with a standard deviation of
        ``sqrt(a)``, if it never waits (Erlang, 1917): ``a + z sqrt(a)`` is enough but for the unlucky.

        Args:
            loads: What the classes ask for.
        """
        hurried = [cls for cls in self.classes if self._waits_at_most(cls)]
        schedulers = self._scenario.schedulers
        sizes: list[dict[ServiceClass, float]] = []
        for deviations in _STANDARD_DEVIATIONS:
            means = {cls: loads[cls].mean_slots for cls in hurried if cls in loads}
            sizes.append({cls: mean + deviations * math.sqrt(mean) for cls, mean in means.items()})
        sizes.append({cls: loads[cls].peak_slots for cls in hurried if cls in loads})
        reserved = [
            {
                f"reserve {cls}": min(self.slots - 1, math.ceil(size / schedulers))
                for cls, size in each.items()
            }
            | {"in pools": int(bool(self._pools))}
            for each in sizes
        ]
        raised = [self._weighted(hurried, factor) for factor in (3.0, 10.0)]
        lowered = {f"weight {cls}": FACTORS.index(0.2) for cls in self.classes if cls is not self._reference}
        for numbers in [*reserved, *raised, reserved[0] | raised[0], lowered, reserved[1] | lowered]:
            yield self.point(numbers)

    def ladder(self, loads: Mapping[ServiceClass, Load]) -> Iterator[Point]:
        """Reserves of every size for what shall not wait, at today's weights and at ten times those.

        Where goals leave but a narrow way between them, a search may never come upon it, though it is short: a reserve bounds a
        wait as nothing else does, and a weight decides who gets what is left.

        Args:
            loads: What the classes ask for. Several classes share a reserve by their peaks.
        """
        hurried = [cls for cls in self.classes if self._waits_at_most(cls) and cls in loads]
        peaks = sum(loads[cls].peak_slots for cls in hurried)
        step = max(1, -(-self.slots // _RUNGS))
        for weighted in ({}, self._weighted(hurried, 10.0)):
            for size in range(step, self.slots, step):
                parts = {
                    f"reserve {cls}": round(size * loads[cls].peak_slots / peaks) for cls in hurried if peaks
                }
                yield self.point({**weighted, **parts, "in pools": int(bool(self._pools))})

    def changes(self, point: Point) -> float:
        """How much of today's settings a point changes, and holds back: a small number that decides between equals."""
        reserved = sum(point.reserves) / self.slots
        turned = sum(abs(math.log(FACTORS[each])) for each in point.factors)
        limits = sum(map(bool, point.limits))
        return 0.002 * reserved + 0.0005 * turned + 0.001 * limits + 0.0005 * point.in_pools

    def simpler(self, point: Point, dimensions: Mapping[str, tuple[int, int]]) -> Iterator[Point]:
        """Points that are like a point but for one number, which is closer to no reserve, today's weight or no limit."""
        numbers = self.numbers(point, dimensions)
        for name, number in (numbers or {}).items():
            if name.startswith("weight"):
                nearer = {NEUTRAL, (number + NEUTRAL) // 2, number + (number < NEUTRAL) - (number > NEUTRAL)}
            elif name.startswith("reserve"):
                nearer = {0, number // 2, number * 3 // 4, number - 1}
            else:
                nearer = {0}
            for each in sorted(nearer - {number}):
                if each >= 0 and (found := self.point({**(numbers or {}), name: each})) != point:
                    yield found

    def _weighted(self, classes: Sequence[ServiceClass], factor: float) -> dict[str, int]:
        return {f"weight {cls}": FACTORS.index(factor) for cls in classes if cls is not self._reference}

    def _waits_at_most(self, cls: ServiceClass) -> bool:
        return any(goal.service_class is cls and goal.most_seconds is not None for goal in self._goals)

    def _quota(self, cls: ServiceClass) -> Quota:
        return self.today.quota(Level.SCHEDULER, SCHEDULER_SCOPE, cls)

    def _shared_pool(self, cls: ServiceClass) -> str | None:
        """The one pool that a class draws on, if it has an end and others draw on it, too."""
        streams = self._scenario.streams
        own = {work.pool for work in streams if work.service_class is cls}
        others = {work.pool for work in streams if work.service_class is not cls}
        if len(own) != 1 or not own <= others:
            return None
        [pool] = own
        return None if self._scenario.pools.get(pool) is None else pool

    def _pool_quotas(self, point: Point) -> dict[str, Mapping[ServiceClass, PoolShare]]:
        today = self.today.pool_quotas
        found = {pool: dict(shares) for pool, shares in today.items()}
        for cls, pool in sorted(self._pools.items()):
            shares = found.setdefault(pool, dict(today.get(EVERY_OTHER_POOL, {})))
            total = self._scenario.pools[pool] or 0
            others = sum(share.quota.reserve_slots for each, share in shares.items() if each is not cls)
            share = shares.get(cls, PoolShare())
            most = total - 1 - others
            if share.quota.limit_slots is not None:
                most = min(most, share.quota.limit_slots)
            reserve = min(most, point.reserves[self.classes.index(cls)] * self._scenario.schedulers)
            if reserve > 0:
                quota = attrs.evolve(share.quota, reserve_slots=reserve)
                shares[cls] = attrs.evolve(share, quota=quota)
        return {pool: shares for pool, shares in found.items() if shares}


def _multiplied(weight: Milliweight, factor: float) -> Milliweight:
    return Milliweight(min(MAX_WEIGHT_MILLI, max(1, round(weight * factor))))
