"""What Airflow's task selection would answer, in a simulation."""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heapify, heappop, heapreplace

from callback_priority.core.snapshot import Decision, TaskAnswer
from callback_priority.simulation.backlog import Line, Waiting

__all__ = ["Selected", "select"]

Selected = list[tuple[Line, Waiting]]


def select(
    offer: Decision, lines: Mapping[str, Line], now: int, most: int | None
) -> tuple[Selected, TaskAnswer]:
    """Take the task instances that Airflow would start, in its order over all pools: priority, then age.

    One that is wider than what is left of its pool is passed over, as Airflow does it.

    Args:
        offer: What the first pass of the slot loop offers to tasks.
        lines: The waiting tasks, by pool.
        now: The present.
        most: The most that one selection finds; ``None`` for no cap.

    Returns:
        What starts, and what the second pass of the slot loop is to be told of it.
    """
    asked = offer.task_slots if most is None else min(most, offer.task_slots)
    left = dict(offer.task_pool_slots)
    places = dict.fromkeys(left, 0)
    started: dict[str, list[int]] = {pool: [] for pool in left}
    found: Selected = []
    heads = [(*head, pool) for pool in left if (head := _head(lines[pool], places, left)) is not None]
    heapify(heads)
    while heads and len(found) < asked:
        pool = heads[0][2]
        line = lines[pool]
        entry = line.take(now, places[pool])
        left[pool] -= entry.width
        started[pool].append(entry.width)
        found.append((line, entry))
        head = _head(line, places, left)
        if head is None:
            heappop(heads)
        else:
            heapreplace(heads, (*head, pool))
    capped = len(found) == asked < offer.task_slots
    if len(found) == offer.task_slots:
        # All was taken: of pools from which it took nothing, nothing is known.
        started = {pool: widths for pool, widths in started.items() if widths}
    answer = TaskAnswer(
        started=started, kept_slots=offer.task_slots - asked if capped else 0, waiting=bool(found)
    )
    return found, answer


_LAST = 1 << 100


def _head(line: Line, places: dict[str, int], left: Mapping[str, int]) -> tuple[int, int] | None:
    """Rank and number of the next of a pool that fits; moves on past those that do not."""
    room = left[line.pool]
    if room <= 0:
        return None
    while (entry := line.peek(places[line.pool])) is not None:
        if entry.width <= room:
            return entry.rank, entry.number
        places[line.pool] += 1
    return (_LAST, 0) if 0 < line.width_of_endless() <= room else None
