"""The demo's numbers are what a person would count by hand."""

from __future__ import annotations

import doctest
import importlib
import math

import pytest

from callback_priority.demo.measure import (
    NEVER,
    Run,
    Wait,
    common,
    longest_gap,
    lowest_share,
    overlap,
    percentile,
    series,
    share,
    union,
    waits,
)


def _run(waiting_at: float, started_at: float = NEVER, ended_at: float = NEVER) -> Run:
    return Run(
        service_class="any", dag_id="", waiting_at=waiting_at, started_at=started_at, ended_at=ended_at
    )


@pytest.mark.parametrize("name", ["load", "measure"])
def test_examples_in_docstrings_hold(name):
    module = importlib.import_module(f"callback_priority.demo.{name}")
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_a_wait_that_outlasts_the_phase_ranks_by_how_long_it_has_lasted():
    measured = waits([_run(0.0, 9.0), _run(2.0), _run(8.0)], end=10.0)
    assert percentile(measured, 0.5) == Wait(seconds=8.0, still=True)
    assert percentile(measured, 1.0) == Wait(seconds=9.0)


def test_no_waits_have_no_percentile():
    assert percentile([], 0.5) is None


def test_only_the_time_counts_in_which_both_wait():
    first = [_run(0.0, 4.0), _run(10.0, 12.0)]
    second = [_run(3.0, 11.0)]
    assert common(first, second, (0.0, 20.0)) == [(3.0, 4.0), (10.0, 11.0)]
    assert common(first, second, (3.5, 10.5)) == [(3.5, 4.0), (10.0, 10.5)]
    assert common(first, [], (0.0, 20.0)) == []


def test_what_still_runs_at_the_end_has_held_its_slot_until_the_end():
    assert overlap([_run(0.0, 1.0)], [(0.0, 3.0), (5.0, 6.0)]) == pytest.approx(3.0)


def test_a_share_of_nothing_is_not_a_number():
    assert math.isnan(share([], [], [(0.0, 1.0)]))


def test_the_lowest_share_finds_a_stretch_without_a_slot_that_the_whole_hides():
    """Half of the slot-time over the whole, nothing in the second half: that is what stock looks like."""
    early, late = _run(0.0, 0.0, 10.0), _run(0.0, 10.0, 20.0)
    whole = [(0.0, 20.0)]
    assert share([late], [early, late], whole) == pytest.approx(0.5)
    assert lowest_share([late], [early, late], whole, 10.0) == 0
    assert math.isnan(lowest_share([late], [early, late], whole, 21.0))


def test_the_lowest_share_ignores_what_lies_between_the_intervals():
    early, late = _run(0.0, 0.0, 5.0), _run(0.0, 50.0, 55.0)
    assert lowest_share([early], [early, late], [(0.0, 5.0), (50.0, 55.0)], 10.0) == pytest.approx(0.5)


def test_a_gap_counts_from_when_something_waits():
    assert longest_gap([_run(5.0, 8.0)], (0.0, 20.0)) == pytest.approx(3.0)
    assert longest_gap([_run(5.0)], (0.0, 20.0)) == pytest.approx(15.0)
    assert longest_gap([], (0.0, 20.0)) == 0


def test_a_series_adds_up_to_the_slot_time():
    runs = [_run(0.0, 0.5, 7.25), _run(0.0, 3.0, 4.0)]
    _, averages = series(runs, (0.0, 8.0), 2.0, lambda run: (run.started_at, run.ended_at))
    assert sum(averages) * 2.0 == pytest.approx(overlap(runs, [(0.0, 8.0)]))


def test_touching_intervals_are_one():
    assert union([(1.0, 2.0), (2.0, 3.0), (4.0, 4.0)]) == [(1.0, 3.0)]
