"""When work arrives: seeded streams of times, in microseconds from the start of a simulation.

Each process makes the times of *events*; at each event one workload arrives or, for mapped tasks, bursts and
storms, a whole batch of them (`callback_priority.simulation.scenario.Stream`). Times never go back.

All but `Regular` and `Storms` are Poisson processes or made of one. The rate that changes over the day is thinned from a steady
one: Lewis and Shedler (1979), "Simulation of nonhomogeneous Poisson processes by thinning".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random
from typing import Protocol

import attrs

from callback_priority.core.units import MICROSECONDS, seconds_to_micros

__all__ = ["DAY_SECONDS", "Arrivals", "Diurnal", "Poisson", "Regular", "Storms"]

DAY_SECONDS = 86_400.0


class Arrivals(Protocol):
    """A process of arrivals."""

    def times(self, random: Random) -> Iterator[int]:
        """When its events are, in microseconds from the start, each no sooner than the one before; may never end.

        Args:
            random: Where all of its chance comes from.
        """


@attrs.frozen(kw_only=True)
class Poisson:
    """Events at random, at a steady rate.

    Args:
        rate_per_second: How many there are, on average.
        from_seconds: When it sets in.
    """

    rate_per_second: float
    from_seconds: float = 0.0

    def times(self, random: Random) -> Iterator[int]:
        """See `Arrivals`."""
        mean = MICROSECONDS / self.rate_per_second
        draw, log = random.random, math.log
        now = float(seconds_to_micros(self.from_seconds))
        while True:
            # What `Random.expovariate` does, without its call.
            now -= log(1.0 - draw()) * mean
            yield int(now)


@attrs.frozen(kw_only=True)
class Regular:
    """Events like a clock's.

    Args:
        every_seconds: From one to the next.
        from_seconds: When the first one is.
    """

    every_seconds: float
    from_seconds: float = 0.0

    def times(self, random: Random) -> Iterator[int]:
        """See `Arrivals`."""
        first, step = seconds_to_micros(self.from_seconds), seconds_to_micros(self.every_seconds)
        number = 0
        while True:
            yield first + number * step
            number += 1


@attrs.frozen(kw_only=True)
class Diurnal:
    """Events at random, more of them at one time of the day than at another: the rate is a sine around its mean.

    Args:
        rate_per_second: The mean over a day.
        swing: How far the rate moves from its mean, as a part of it: 0 not at all, 1 down to nothing and up to twice.
        peak_seconds: When the rate is highest, in seconds from the start.
        period_seconds: The length of a day.
    """

    rate_per_second: float
    swing: float = 0.8
    peak_seconds: float = DAY_SECONDS / 2
    period_seconds: float = DAY_SECONDS

    def times(self, random: Random) -> Iterator[int]:
        """See `Arrivals`."""
        highest = 1 + self.swing
        turn = 2 * math.pi / (self.period_seconds * MICROSECONDS)
        peak = self.peak_seconds * MICROSECONDS
        for at in Poisson(rate_per_second=self.rate_per_second * highest).times(random):
            if random.random() * highest < 1 + self.swing * math.cos(turn * (at - peak)):
                yield at


@attrs.frozen(kw_only=True)
class Storms:
    """Events at given times.

    Args:
        at_seconds: When, in ascending order.
    """

    at_seconds: tuple[float, ...]

    def times(self, random: Random) -> Iterator[int]:
        """See `Arrivals`."""
        return map(seconds_to_micros, sorted(self.at_seconds))
