"""How long work holds a slot: distributions, drawn from seeded random numbers, in microseconds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import repeat
from random import Random
from typing import Protocol

import attrs

from callback_priority.core.units import MICROSECONDS, seconds_to_micros

__all__ = ["Empirical", "Exponential", "Fixed", "Holds", "LogNormal"]


class Holds(Protocol):
    """A distribution of holds."""

    @property
    def mean_seconds(self) -> float:
        """Its mean."""

    def draws(self, random: Random) -> Iterator[int]:
        """One hold after another, in microseconds, none below one; never ends.

        Args:
            random: Where all of its chance comes from.
        """


@attrs.frozen(kw_only=True)
class Fixed:
    """Always as long.

    Args:
        seconds: How long.
    """

    seconds: float

    @property
    def mean_seconds(self) -> float:
        """See `Holds`."""
        return self.seconds

    def draws(self, random: Random) -> Iterator[int]:
        """See `Holds`."""
        return repeat(max(1, seconds_to_micros(self.seconds)))


@attrs.frozen(kw_only=True)
class Exponential:
    """Exponentially distributed: however long it has lasted, what is left lasts as long on average.

    Args:
        mean_seconds: The mean.
    """

    mean_seconds: float

    def draws(self, random: Random) -> Iterator[int]:
        """See `Holds`."""
        mean, draw, log = self.mean_seconds * MICROSECONDS, random.random, math.log
        while True:
            yield int(-log(1.0 - draw()) * mean) + 1


@attrs.frozen(kw_only=True)
class LogNormal:
    """Log-normally distributed, as run times of tasks mostly are: a few take far longer than the rest.

    Args:
        median_seconds: Half of the holds are shorter.
        sigma: Standard deviation of the logarithm: 0.5 is a narrow spread; at 1.5 one in a hundred takes more than thirty medians.
    """

    median_seconds: float
    sigma: float

    @property
    def mean_seconds(self) -> float:
        """See `Holds`."""
        return self.median_seconds * math.exp(self.sigma * self.sigma / 2)

    def draws(self, random: Random) -> Iterator[int]:
        """See `Holds`."""
        middle, sigma, draw = self.median_seconds * MICROSECONDS, self.sigma, random.gauss
        while True:
            yield int(middle * math.exp(draw(0.0, sigma))) + 1


@attrs.frozen(kw_only=True)
class Empirical:
    """Drawn from what was seen, each as likely as any other.

    Args:
        seconds: What was seen.
    """

    seconds: tuple[float, ...]

    @property
    def mean_seconds(self) -> float:
        """See `Holds`."""
        return sum(self.seconds) / len(self.seconds)

    def draws(self, random: Random) -> Iterator[int]:
        """See `Holds`."""
        seen = [max(1, seconds_to_micros(each)) for each in self.seconds]
        while True:
            yield random.choice(seen)
