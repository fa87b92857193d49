"""From starts and ends to waits, shares and series. Pure.

Only the time counts in which workloads of both classes wait: while one class has nothing to do, the other may take
what it likes. How long *slots* are held is judged from the workloads' own starts and ends, the same way for stock and
for the library; what passes between a grant and a process's start belongs to nobody.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Final

import attrs

__all__ = [
    "NEVER",
    "Interval",
    "Run",
    "Wait",
    "common",
    "longest_gap",
    "lowest_share",
    "overlap",
    "percentile",
    "series",
    "share",
    "union",
    "waits",
]

NEVER: Final = math.inf

Interval = tuple[float, float]


@attrs.frozen(kw_only=True)
class Run:
    """What became of one workload; all times are seconds from the start of the load.

    Args:
        service_class: Its class.
        dag_id: Of which Dag.
        waiting_at: Since when it waits: scheduled, for a task instance; the deadline, for a callback.
        started_at: When its process started; `NEVER` if it did not.
        ended_at: When it ended; `NEVER` if it did not.
    """

    service_class: str
    dag_id: str
    waiting_at: float
    started_at: float = NEVER
    ended_at: float = NEVER

    @property
    def started(self) -> bool:
        """Whether it started."""
        return self.started_at < NEVER


@attrs.frozen(kw_only=True, order=True)
class Wait:
    """How long something waited.

    Args:
        seconds: How long.
        still: Whether it had not started by the end of the phase, so that it waited longer.
    """

    seconds: float
    still: bool = False


def waits(runs: Iterable[Run], end: float) -> list[Wait]:
    """How long each run waited; those that had not started by the end have waited until then.

    >>> waits([Run(service_class="a", dag_id="", waiting_at=2.0)], 10.0)
    [Wait(seconds=8.0, still=True)]
    """
    return [Wait(seconds=min(run.started_at, end) - run.waiting_at, still=not run.started) for run in runs]


def percentile(values: Iterable[Wait], fraction: float) -> Wait | None:
    """The shortest wait that at least this fraction does not exceed; nothing for no waits.

    >>> percentile([Wait(seconds=4.0, still=True), Wait(seconds=1.0), Wait(seconds=3.0)], 0.5)
    Wait(seconds=3.0, still=False)
    """
    ordered = sorted(values)
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)] if ordered else None


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The times that any interval covers.

    >>> union([(5.0, 6.0), (1.0, 3.0), (2.0, 4.0)])
    [(1.0, 4.0), (5.0, 6.0)]
    """
    merged: list[Interval] = []
    for start, end in sorted(interval for interval in intervals if interval[0] < interval[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def common(first: Sequence[Run], second: Sequence[Run], window: Interval) -> list[Interval]:
    """The times within the window in which a run of each of the two groups waits.

    >>> common([Run(service_class="a", dag_id="", waiting_at=0.0, started_at=5.0)],
    ...        [Run(service_class="b", dag_id="", waiting_at=2.0)], (0.0, 9.0))
    [(2.0, 5.0)]
    """
    waits = [
        union(_clip((run.waiting_at, run.started_at), window) for run in runs) for runs in (first, second)
    ]
    return [
        (max(one[0], other[0]), min(one[1], other[1]))
        for one in waits[0]
        for other in waits[1]
        if max(one[0], other[0]) < min(one[1], other[1])
    ]


def overlap(runs: Iterable[Run], intervals: Sequence[Interval]) -> float:
    """For how many slot-seconds the runs held slots within the intervals, which don't overlap one another."""
    return sum(
        max(0.0, min(run.ended_at, end) - max(run.started_at, start))
        for run in runs
        for start, end in intervals
    )


def share(part: Sequence[Run], whole: Sequence[Run], intervals: Sequence[Interval]) -> float:
    """The part's share of all slot-time within the intervals, between 0 and 1; not a number if there was none."""
    total = overlap(whole, intervals)
    return overlap(part, intervals) / total if total else math.nan


def lowest_share(
    part: Sequence[Run], whole: Sequence[Run], intervals: Sequence[Interval], length: float
) -> float:
    """The part's share in that stretch of the intervals, `length` seconds long, in which it is lowest.

    The intervals are laid end to end, and a stretch may start at every whole second of them.

    Returns:
        Between 0 and 1; not a number if the intervals are too short.

    >>> runs = [Run(service_class=name, dag_id="", waiting_at=at, started_at=at, ended_at=at + 5.0)
    ...         for name, at in (("a", 0.0), ("b", 5.0), ("b", 20.0))]
    >>> lowest_share(runs[:1], runs, [(0.0, 10.0), (20.0, 25.0)], 9.0), share(runs[:1], runs, [(0.0, 10.0)])
    (0.0, 0.5)
    """
    total = sum(end - start for start, end in intervals)
    shares = [
        share(part, whole, _stretch(intervals, float(first), first + length))
        for first in range(math.floor(total - length) + 1)
    ]
    return min(shares, default=math.nan)


def longest_gap(runs: Sequence[Run], window: Interval) -> float:
    """For how long, at the longest, runs waited within the window and none of them started.

    >>> runs = [Run(service_class="a", dag_id="", waiting_at=1.0, started_at=at) for at in (2.0, 3.0, 9.0)]
    >>> longest_gap(runs, (0.0, 10.0))
    6.0
    """
    starts = sorted(run.started_at for run in runs)
    longest = 0.0
    for start, end in union(_clip((run.waiting_at, run.started_at), window) for run in runs):
        marks = [start, *(mark for mark in starts if start < mark < end), end]
        longest = max(longest, *(later - earlier for earlier, later in pairwise(marks)))
    return longest


def series(
    runs: Sequence[Run], window: Interval, step: float, what: Callable[[Run], Interval]
) -> tuple[list[float], list[float]]:
    """How many of an interval per run are open, averaged over each step of the window.

    Args:
        runs: The runs.
        window: From when to when.
        step: How long a step is, in seconds.
        what: A run's interval: its wait or its execution.

    Returns:
        The middles of the steps, and the averages.

    >>> runs = [Run(service_class="a", dag_id="", waiting_at=0.0, started_at=1.0, ended_at=3.0)]
    >>> series(runs, (0.0, 4.0), 2.0, lambda run: (run.started_at, run.ended_at))
    ([1.0, 3.0], [0.5, 0.5])
    """
    count = math.ceil((window[1] - window[0]) / step)
    steps = [(window[0] + number * step, window[0] + (number + 1) * step) for number in range(count)]
    intervals = [what(run) for run in runs]
    averages = [
        sum(max(0.0, min(high, end) - max(low, start)) for low, high in intervals) / step
        for start, end in steps
    ]
    return [(start + end) / 2 for start, end in steps], averages


def _stretch(intervals: Sequence[Interval], first: float, last: float) -> list[Interval]:
    """What lies between two places of the intervals laid end to end."""
    found: list[Interval] = []
    passed = 0.0
    for start, end in intervals:
        low, high = start + max(0.0, first - passed), min(end, start + last - passed)
        if low < high:
            found.append((low, high))
        passed += end - start
    return found


def _clip(interval: Interval, window: Interval) -> Interval:
    return max(interval[0], window[0]), min(interval[1], window[1])
