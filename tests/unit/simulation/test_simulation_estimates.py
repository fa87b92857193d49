"""How sure a mean over seeds is."""

from __future__ import annotations

from random import Random
from statistics import fmean

import pytest

from callback_priority.simulation.estimates import estimate, t_quantile

# Table of the quantiles of Student's t distribution: probability, degrees of freedom, quantile.
TABLE = [
    (0.95, 1, 6.3138),
    (0.975, 1, 12.7062),
    (0.995, 1, 63.6567),
    (0.95, 2, 2.9200),
    (0.995, 2, 9.9248),
    (0.975, 3, 3.1824),
    (0.995, 4, 4.6041),
    (0.975, 9, 2.2622),
    (0.995, 29, 2.7564),
    (0.995, 30, 2.7500),
    (0.975, 120, 1.9799),
]


@pytest.mark.parametrize(("probability", "freedom", "quantile"), TABLE)
def test_quantiles_are_those_of_the_tables(probability, freedom, quantile):
    assert t_quantile(probability, freedom) == pytest.approx(quantile, abs=6e-5)


def test_many_degrees_of_freedom_come_close_to_the_normal_distribution():
    assert t_quantile(0.975, 10_000) == pytest.approx(1.96, abs=1e-3)


def test_one_seed_tells_nothing_of_the_spread():
    found = estimate([4.0])
    assert (found.mean, found.low, found.high, found.half_width) == (4.0, None, None, None)
    assert not found.excludes_zero
    assert estimate([]) is None


def test_the_interval_holds_the_mean_as_often_as_it_says():
    """2,000 samples of five: a 90% interval must miss the true mean in about 200 of them."""
    random = Random(7)  # noqa: S311 - not for secrets
    missed = 0
    for _ in range(2_000):
        found = estimate([random.gauss(3, 2) for _ in range(5)], 0.9)
        missed += not found.low <= 3 <= found.high
    assert 160 <= missed <= 240


def test_an_interval_is_even_about_the_mean_of_the_numbers():
    numbers = [2.0, 9.0, 4.5]
    found = estimate(numbers)
    assert found.mean == fmean(numbers)
    assert found.high - found.mean == pytest.approx(found.mean - found.low)
    assert found.to_json() == {"mean": found.mean, "low": found.low, "high": found.high, "n": 3}
