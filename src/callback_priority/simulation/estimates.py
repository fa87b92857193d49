"""How sure a mean over seeds is: Student's confidence interval, without a library for statistics.

Each seed gives one number: a percentile of its waits, a share, a count. Runs with different seeds are independent, so the mean of these
numbers has Student's interval (Student, 1908, "The probable error of a mean"), whatever the correlation of the waits within one run.
The distribution function is the finite sum for whole degrees of freedom in Abramowitz and Stegun (1964), *Handbook of mathematical
functions*, 26.7.3 and 26.7.4, and is inverted by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import fmean, stdev

import attrs

__all__ = ["CONFIDENCE", "Estimate", "estimate", "t_quantile"]

CONFIDENCE = 0.99
"""The confidence of an interval where nobody asked for another."""


@attrs.frozen(kw_only=True)
class Estimate:
    """A mean over seeds, and between what it lies.

    Args:
        mean: The mean.
        low: The lower end of its confidence interval; ``None`` for one seed, which tells nothing of the spread.
        high: The upper end.
        n: Over how many seeds.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval; ``None`` if there is none."""
        return None if self.high is None else self.high - self.mean

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero: of a difference, that it is hardly chance."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def to_json(self) -> dict[str, float | int | None]:
        """What a JSON document holds of it."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n}


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate | None:
    """The mean of what the seeds gave.

    Args:
        values: One number for each seed that gave one.
        confidence: Of the interval, between 0 and 1.

    Returns:
        The mean with its interval; ``None`` if no seed gave a number.

    >>> found = estimate([1.0, 2.0, 3.0], 0.95)
    >>> found.mean, round(found.half_width, 3), found.n
    (2.0, 2.484, 3)
    >>> estimate([7.0]), estimate([])
    (Estimate(mean=7.0, low=None, high=None, n=1), None)
    """
    count = len(values)
    if not count:
        return None
    mean = fmean(values)
    if count == 1:
        return Estimate(mean=mean, low=None, high=None, n=1)
    half = t_quantile((1 + confidence) / 2, count - 1) * stdev(values) / math.sqrt(count)
    return Estimate(mean=mean, low=mean - half, high=mean + half, n=count)


@lru_cache(maxsize=256)
def t_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t distribution.

    Args:
        probability: Between one half and 1.
        freedom: Degrees of freedom, at least one.

    Complexity: O(degrees of freedom); remembered.

    >>> round(t_quantile(0.995, 4), 4), round(t_quantile(0.975, 29), 4)
    (4.6041, 2.0452)
    """
    low, high = 0.0, 1.0
    while _probability(high, freedom) < probability:
        low, high = high, 2 * high
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return middle
        if _probability(middle, freedom) < probability:
            low = middle
        else:
            high = middle


def _probability(quantile: float, freedom: int) -> float:
    """That a variable with this distribution is below a quantile, which is no less than nought."""
    angle = math.atan(quantile / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    total, term = 0.0, cosine if odd else 1.0
    # The first factor of each next term is 2/3, 4/5, ... for odd degrees and 1/2, 3/4, ... for even ones.
    for at in range(1 + odd, freedom, 2):
        total += term
        term *= at / (at + 1) * cosine * cosine
    if odd:
        return 0.5 + (angle + sine * total) / math.pi
    return 0.5 + sine * total / 2
