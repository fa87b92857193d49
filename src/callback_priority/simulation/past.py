"""What was recorded of slots: who waited since when, who held one until when, and how the schedulers' loops went.

A *turn* is one wait for a slot and the hold that follows. What was recorded of it is when it began to wait, when it was granted
its slot, and mostly when it ended. A simulation needs the hold as this library defines it: until the first pass of a scheduler in which
the slot can be granted again. Between the end of a workload and that pass its process has to end, its executor has to tell, and the
scheduler has to come round; this takes from a part of a second to several, and where holds are short it is a good part of
them. It is neither left out nor fitted, but read from the record, by the best evidence that there is:

1. The journal, where one is kept, holds every settled hold to the microsecond (`callback_priority.core.journal`). Each is given
   to a turn of its class that was granted in the pass from which it runs; among several of one pass the shortest hold goes to
   the turn that ended first.
2. Otherwise, while all slots of a scheduler were held and others waited, a grant *is* the moment at which a slot could be granted
   again. It is taken to be the slot of the turn that ended first. How long this took is the *turnaround*.
3. A turn that ended while nobody waited takes the median turnaround of its class, or that of all classes; where nobody ever had to
   wait there is none, and one interval between loops is taken instead.

Complexity: O(turns log turns).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from heapq import heappop, heappush
from itertools import pairwise
from statistics import median
from typing import Final

import attrs

from callback_priority.core.classes import ServiceClass
from callback_priority.core.units import MICROSECONDS, seconds_to_micros
from callback_priority.simulation.results import percentile

__all__ = [
    "SAME_PASS",
    "Freed",
    "Past",
    "SeenPass",
    "Turn",
    "loop_seconds_of",
    "loops_of",
    "most_held",
    "when_freed",
]

_FEWEST_GAPS: Final = 5
"""Intervals between passes from which the interval between loops is told."""

_LONGEST_TURNAROUND: Final = 60 * MICROSECONDS
"""Longer than this is no turnaround: something else kept the slot from being granted."""

SAME_PASS: Final = 50_000
"""Task instances are stamped a moment after the pass in which they are granted began; this long, in microseconds, is one pass."""

_NEVER: Final = 1 << 62


@attrs.frozen(kw_only=True, slots=True, eq=False)
class Turn:
    """A workload's wait for a slot and its hold. All times are microseconds since the epoch.

    Args:
        service_class: Its class.
        dag: Its Dag.
        pool: The pool that it draws on.
        width: Pool slots that it takes.
        priority: Of a task: its ``priority_weight``. Of a callback: its priority within its class.
        since: When it began to wait.
        granted: When it was granted a slot; ``None`` if it was not.
        ended: When its work ended; ``None`` if that is not known.
        released: When its scheduler knew that its slot was free; ``None`` if that is not known.
        scheduler: Which scheduler granted it; ``None`` if that is not known.
        order: What decides between tasks of equal priority and between callbacks whose turn is the same, the smallest first; of one
            class, all of one form.
        again: Whether it was granted a slot before, in the same wait: when it first was is not known.
    """

    service_class: ServiceClass
    dag: str
    pool: str
    width: int = 1
    priority: int = 0
    since: int
    granted: int | None = None
    ended: int | None = None
    released: int | None = None
    scheduler: int | None = None
    order: tuple[int | str, ...] = ()
    again: bool = False

    @property
    def over(self) -> int | None:
        """The earliest that its slot can have been free."""
        return self.released if self.released is not None else self.ended


@attrs.frozen(kw_only=True, slots=True)
class SeenPass:
    """A pass of a scheduler that is recorded, as the journal tells of it.

    Args:
        at: When, in microseconds since the epoch.
        scheduler: Whose.
        holds: The holds that ended in it, in microseconds, by class.
    """

    at: int
    scheduler: int | None
    holds: Mapping[ServiceClass, Sequence[int]]


@attrs.frozen(kw_only=True)
class Past:
    """What is known of a stretch of time.

    Args:
        since: Its beginning, in microseconds since the epoch.
        until: Its end.
        turns: Who waited or held a slot in it.
        passes: What the journal tells, in order; empty where there is none.
        pools: The slots of each pool, as they are now; ``None`` for one without end.
        known_from: From when on all turns are known, not after the beginning; the beginning if not given.
    """

    since: int
    until: int
    turns: Sequence[Turn]
    passes: Sequence[SeenPass] = ()
    pools: Mapping[str, int | None] = attrs.field(factory=dict)
    known_from: int = attrs.field(default=attrs.Factory(lambda self: self.since, takes_self=True))

    @property
    def begin(self) -> int:
        """The last moment up to the beginning, of those from which on all is known, at which nobody waited; else the first such.

        What waits at the beginning stands where it stands because of what came before it, and so do the classes' tags.
        """
        return max(self.known_from, _Waiting(self.turns).nobody_before(self.since))


# What the record tells of the schedulers ---------------------------------------------------------------------


def most_held(turns: Iterable[Turn]) -> int:
    """The most slots that any scheduler was seen to hold at once: it has at least so many.

    What ended without a record of it is taken to hold its slot no more from the next grant on. What its scheduler knew to be over in
    the pass of a grant made room for that.
    """
    changes: defaultdict[int | None, list[tuple[int, int]]] = defaultdict(list)
    for turn in turns:
        if turn.granted is not None and turn.over is not None:
            changes[turn.scheduler] += [(turn.granted, 1), (max(turn.granted, turn.over - SAME_PASS), -1)]
    most = 0
    for each in changes.values():
        held = 0
        # At one moment, what ends makes room for what begins.
        for _, change in sorted(each):
            held += change
            most = max(most, held)
    return most


def loop_seconds_of(past: Past) -> float | None:
    """The interval between two loops of a scheduler, as far as passes that granted or settled something tell it.

    Of the intervals between two such passes of one scheduler while others waited, the one that a quarter is shorter than: loops
    in which nothing could be done leave no record, so that most of the longer ones are several loops. ``None`` if
    there are too few to tell.
    """
    gaps = []
    contended = _Waiting(past.turns)
    for moments in _passes(past).values():
        gaps += [second - first for first, second in pairwise(moments) if contended.throughout(first, second)]
    if len(gaps) < _FEWEST_GAPS:
        return None
    return percentile(sorted(gaps), 0.25) / MICROSECONDS


def loops_of(past: Past, *, schedulers: int, loop_seconds: float) -> list[list[int]]:
    """When the loops of each scheduler were, from the first of which there is a record to the last.

    Those that left a record were when they were. Between two of these that are further apart than a loop and a half, others are put
    at even intervals: nothing could be done in them, so they left none.

    Args:
        past: What is known.
        schedulers: How many there were.
        loop_seconds: The interval between two loops of a scheduler.

    Returns:
        None, if it cannot be told which scheduler is which: one was there after another, and others beside them.
    """
    recorded = [moments for moments in _passes(past).values() if moments]
    if schedulers == 1:
        recorded = [_thinned(sorted(each for moments in recorded for each in moments))]
    if len(recorded) != schedulers:
        return []
    step = max(1, seconds_to_micros(loop_seconds))
    return [_filled(moments, step) for moments in recorded]


def _filled(moments: Sequence[int], step: int) -> list[int]:
    found = list(moments[:1])
    for first, second in pairwise(moments):
        found += range(first + step, second - step // 2, step)
        found.append(second)
    return found


def _passes(past: Past) -> dict[int | None, list[int]]:
    """When the passes of each scheduler were that left a record."""
    found: defaultdict[int | None, set[int]] = defaultdict(set)
    for each in past.passes:
        found[each.scheduler].add(each.at)
    for turn in past.turns:
        if turn.granted is not None:
            moments = found[turn.scheduler]
            moments.add(turn.granted)
    return {scheduler: _thinned(sorted(moments)) for scheduler, moments in found.items()}


def _thinned(moments: list[int]) -> list[int]:
    """The first moment of each pass."""
    kept: list[int] = []
    for each in moments:
        if not kept or each - kept[-1] > SAME_PASS:
            kept.append(each)
    return kept


class _Waiting:
    """When somebody waited for a slot."""

    def __init__(self, turns: Iterable[Turn]) -> None:
        edges: list[tuple[int, int]] = []
        for turn in turns:
            edges.append((turn.since, 1))
            if turn.granted is not None:
                edges.append((turn.granted, -1))
        # One that begins to wait as another stops leaves no gap.
        edges.sort(key=lambda edge: (edge[0], -edge[1]))
        self._starts: list[int] = []
        self._ends: list[int] = []
        waiting = 0
        for at, change in edges:
            if not waiting:
                self._starts.append(at)
            waiting += change
            if not waiting:
                self._ends.append(at)

    def nobody_before(self, at: int) -> int:
        """The last moment up to a given one at which nobody waited."""
        place = bisect_right(self._starts, at) - 1
        if place < 0 or (place < len(self._ends) and self._ends[place] <= at):
            return at
        return self._starts[place] - 1

    def throughout(self, first: int, last: int) -> bool:
        """Whether there was always somebody between two moments."""
        place = bisect_right(self._starts, first) - 1
        return place >= 0 and (place >= len(self._ends) or self._ends[place] >= last)


# When slots came free --------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Freed:
    """When the slots of turns could be granted again.

    Args:
        at: When, of each turn of which that can be told, in microseconds since the epoch.
        journalled: Of how many the journal tells it.
        seen: Of how many the grant tells it that took the slot.
        turnaround_seconds: The median time between the end of a turn's work, or the scheduler's knowing of it, and the pass in which
            its slot could be granted again, by class, as far as it was seen.
    """

    at: Mapping[Turn, int]
    journalled: int
    seen: int
    turnaround_seconds: Mapping[ServiceClass, float]


def when_freed(past: Past, *, slots: int, loop_seconds: float) -> Freed:
    """Find out when each turn's slot could be granted again.

    Args:
        past: What is known.
        slots: Slots of each scheduler.
        loop_seconds: The interval between two loops of a scheduler.
    """
    at = _journalled(past)
    journalled = len(at)
    at |= _taken_at_once(past, at, slots)
    samples: defaultdict[ServiceClass, list[int]] = defaultdict(list)
    for turn, moment in at.items():
        if turn.over is not None:
            samples[turn.service_class].append(max(0, moment - turn.over))
    seen = len(at) - journalled
    medians = {cls: median(each) for cls, each in samples.items()}
    of_all = median([each for some in samples.values() for each in some]) if samples else None
    otherwise = of_all if of_all is not None else seconds_to_micros(loop_seconds)
    for turn in past.turns:
        if turn.granted is not None and turn.over is not None and turn not in at:
            at[turn] = turn.over + round(medians.get(turn.service_class, otherwise))
    return Freed(
        at=at,
        journalled=journalled,
        seen=seen,
        turnaround_seconds={cls: each / MICROSECONDS for cls, each in medians.items()},
    )


def _journalled(past: Past) -> dict[Turn, int]:
    """What the journal's holds tell."""
    moments: defaultdict[int | None, list[int]] = defaultdict(list)
    for each in past.passes:
        moments[each.scheduler].append(each.at)
    granted: defaultdict[tuple[int | None, int, ServiceClass], list[Turn]] = defaultdict(list)
    for turn in past.turns:
        if turn.granted is not None and turn.scheduler in moments:
            place = bisect_right(moments[turn.scheduler], turn.granted + SAME_PASS) - 1
            granted[turn.scheduler, place, turn.service_class].append(turn)
    ends: defaultdict[tuple[int | None, int, ServiceClass], list[int]] = defaultdict(list)
    for each in past.passes:
        known = moments[each.scheduler]
        for cls, holds in each.holds.items():
            for hold in holds:
                place = bisect_left(known, each.at - hold - SAME_PASS)
                if place < len(known) and abs(known[place] - (each.at - hold)) <= SAME_PASS:
                    ends[each.scheduler, place, cls].append(each.at)
    found: dict[Turn, int] = {}
    for key, turns in granted.items():
        turns.sort(key=lambda turn: _NEVER if turn.over is None else turn.over)
        # One that was still at work by its own account ended otherwise than was recorded: better not told.
        found |= {
            turn: moment
            for turn, moment in zip(turns, sorted(ends[key]), strict=False)
            if turn.over is None or turn.over <= moment + SAME_PASS
        }
    return found


def _taken_at_once(past: Past, known: Mapping[Turn, int], slots: int) -> dict[Turn, int]:
    """What the grants tell that were made while all slots were held and others waited."""
    contended = _Waiting(past.turns)
    by_scheduler: defaultdict[int | None, list[Turn]] = defaultdict(list)
    for turn in past.turns:
        if turn.granted is not None:
            by_scheduler[turn.scheduler].append(turn)
    found: dict[Turn, int] = {}
    for turns in by_scheduler.values():
        turns.sort(key=lambda turn: turn.granted or 0)
        held: list[tuple[int, int, Turn]] = []
        certain: list[tuple[int, int, Turn]] = []
        for number, turn in enumerate(turns):
            now = turn.granted or 0
            while certain and certain[0][0] <= now + SAME_PASS:
                heappop(certain)
            while held and len(held) + len(certain) >= slots and held[0][0] <= now:
                over, _, freed = heappop(held)
                if now - over <= _LONGEST_TURNAROUND and contended.throughout(over, now):
                    found[freed] = now
            if turn in known:
                heappush(certain, (known[turn], number, turn))
            else:
                heappush(held, (_NEVER if turn.over is None else turn.over, number, turn))
    return found
