"""What waits in a simulation: one line for each class and pool, in the order in which the real scheduler would serve it.

Callbacks stand by the rank that the library stamps on them when they begin to wait (`callback_priority.core.ranking`); task
instances by Airflow's order, ``priority_weight`` before age.

Complexity: to add is O(1) where work comes in its order, as most does. A long line in which somebody is put further to the front,
since other Dags have taken their turns ahead or by its priority, becomes a sorted list of many short ones (`sortedcontainers`),
in which that takes O(log n), not O(n): in a line of 100,000, one twentieth of the time. To look at the first n, and to take one of
them, is O(n).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from typing import Final, NamedTuple

from sortedcontainers import SortedList

from callback_priority.core.classes import ServiceClass
from callback_priority.core.ranking import head_start_us, next_turn_us, rank_us
from callback_priority.core.snapshot import Backlog, Candidate
from callback_priority.core.units import MICROSECONDS
from callback_priority.errors import InternalError
from callback_priority.policy.settings import Settings
from callback_priority.simulation.scenario import Work

__all__ = ["Line", "Turns", "Waiting", "anonymous", "task_rank"]

_TASK: Final = ServiceClass.TASK
_TIERS: Final = 1 << 62
"""Further apart than any two times: a task's priority comes before its age."""
_COMPACT_AT: Final = 256
_LONG: Final = 4_096

_ANONYMOUS: dict[int, Candidate] = {}


def anonymous(width: int) -> Candidate:
    """A task instance: Airflow chooses which."""
    found = _ANONYMOUS.get(width)
    if found is None:
        found = _ANONYMOUS[width] = Candidate(width=width)
    return found


class Waiting(NamedTuple):
    """A workload that waits; sorts by its place in its line.

    Args:
        rank: The smallest goes first.
        number: Its number among all workloads, which breaks ties.
        at: When it arrived, in microseconds from the start.
        hold: How long it will hold its slot, in microseconds.
        dag: Which Dag it comes from, by its number in the scenario.
        width: Pool slots that it takes.
        priority: Its priority.
        candidate: What the slot loop is shown.
    """

    rank: int
    number: int
    at: int
    hold: int
    dag: int
    width: int
    priority: int
    candidate: Candidate


class Turns:
    """The turns of Dags within a class, as the library stamps them.

    Args:
        settings: How long a turn is, and how fast priorities age.
    """

    def __init__(self, settings: Settings) -> None:
        self._turn_length = round(settings.dag_turn_seconds * MICROSECONDS)
        self._aging = round(settings.priority_aging_seconds * MICROSECONDS)
        self._last: dict[tuple[int, int], list[int]] = {}

    def rank(self, dag: int, priority: int, now: int) -> int:
        """Stamp one that begins to wait."""
        last = self._last.get((dag, priority))
        if last is None:
            last = self._last[dag, priority] = [0, 0]
        turn = next_turn_us(now, last[0], self._turn_length) if last[1] else now
        last[0] = turn
        last[1] += 1
        return rank_us(turn, priority, self._aging) if priority else turn

    def back(self, entry: Waiting) -> None:
        """One waits again, at the rank that it had."""
        last = self._last[entry.dag, entry.priority]
        turn = entry.rank + head_start_us(entry.priority, self._aging)
        last[0] = max(last[0], turn) if last[1] else turn
        last[1] += 1

    def left(self, dag: int, priority: int) -> None:
        """One waits no more."""
        self._last[dag, priority][1] -= 1


class Line:
    """What waits of one class in one pool.

    Args:
        service_class: The class.
        pool: The pool.
        number: Its number among all lines.
        place: The place of its class among those that take part.
    """

    __slots__ = ("_endless", "_entries", "_first", "_wide", "number", "place", "pool", "service_class")

    def __init__(self, service_class: ServiceClass, pool: str, *, number: int = 0, place: int = 0) -> None:
        self.service_class = service_class
        self.pool = pool
        self.number = number
        self.place = place
        self._entries: list[Waiting] | SortedList[Waiting] = []
        self._first = 0
        self._wide = False
        self._endless: tuple[Work, Iterator[int], int] | None = None

    def __len__(self) -> int:
        """How many wait, a backlog without end aside."""
        return len(self._entries) - self._first

    @property
    def is_waiting(self) -> bool:
        """Whether there is any."""
        return self._endless is not None or len(self._entries) > self._first

    def never_ends(self, work: Work, holds: Iterator[int], dag: int) -> None:
        """Behind everything else, there is always more of this.

        Args:
            work: The stream.
            holds: How long each of it holds its slot.
            dag: The number of its Dag.
        """
        self._endless = (work, holds, dag)
        self._wide = self._wide or work.width > 1

    def add(self, entry: Waiting) -> None:
        """One begins to wait."""
        entries = self._entries
        if entry.width > 1:
            self._wide = True
        if not isinstance(entries, list):
            entries.add(entry)
        elif not entries or entries[-1] < entry:
            entries.append(entry)
        elif len(entries) - self._first < _LONG:
            insort(entries, entry, lo=self._first)
        else:
            self._entries = SortedList(entries[self._first :])
            self._entries.add(entry)
            self._first = 0

    def shown(self, free_slots: int, open_slots: int | None) -> Backlog:
        """The first of it, as the slot loop is shown them.

        Args:
            free_slots: The scheduler's.
            open_slots: The pool's; ``None`` for a pool without end.
        """
        first, most = self._first, free_slots + 1
        if open_slots is not None and open_slots < free_slots and not self._wide:
            # Each takes a slot of the pool. Of wide ones, some may be passed over.
            most = open_slots + 1 if open_slots > 0 else 1
        if self.service_class is _TASK and not self._wide:
            found = [anonymous(1)] * (most if self._endless else min(most, len(self._entries) - first))
        else:
            found = [entry.candidate for entry in self._entries[first : first + most]]
            if self._endless:
                found += [anonymous(self._endless[0].width)] * (most - len(found))
        return Backlog(service_class=self.service_class, pool=self.pool, candidates=found)

    def peek(self, place: int) -> Waiting | None:
        """The one at a place, counted from the first; ``None`` if there are not so many, a backlog without end aside."""
        at = self._first + place
        return self._entries[at] if at < len(self._entries) else None

    def width_of_endless(self) -> int:
        """How wide those of the backlog without end are; nought if there is none."""
        return self._endless[0].width if self._endless else 0

    def take_candidate(self, candidate: Candidate, now: int) -> Waiting:
        """The one that the slot loop was shown as this candidate starts.

        Args:
            candidate: One of the `shown`.
            now: The present.
        """
        place, entries, first = 0, self._entries, self._first
        while entries[first + place].candidate is not candidate:
            place += 1
        return self.take(now, place)

    def take(self, now: int, place: int = 0) -> Waiting:
        """One of them starts.

        Args:
            now: The present; one of a backlog without end arrives now.
            place: Which, counted from the first.
        """
        at = self._first + place
        entries = self._entries
        if at >= len(entries):
            if self._endless is None:
                raise InternalError(
                    f"{self.service_class} in {self.pool}: only {len(self)} wait, not {place + 1}"
                )
            work, holds, dag = self._endless
            return Waiting(0, -1, now, next(holds), dag, work.width, work.priority, anonymous(work.width))
        if not isinstance(entries, list):
            entry = entries.pop(at)
            if not entries:
                self._entries = []
            return entry
        if place:
            return entries.pop(at)
        self._first = at + 1
        entry = entries[at]
        if self._first >= _COMPACT_AT and self._first * 2 > len(entries):
            del entries[: self._first]
            self._first = 0
        return entry

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._entries[self._first :])


def task_rank(at: int, priority: int) -> int:
    """Where a task stands in Airflow's order: ``priority_weight`` first, then age."""
    return at - priority * _TIERS
