"""The order of callbacks inside a class: priority, then turns between Dags, then age, in one integer.

A callback is stamped once, when it starts to wait, with a *rank*; the smallest rank goes first, so that a
fetch is a scan of one index. Ranks are times (microseconds since the epoch), which is what lets a static
stamp age:

- ``turn`` is when the callback would go if Dags took turns: now, or one *turn length* after the last
  waiting callback of the same Dag, class and priority, whichever is later. A Dag with 5,000 waiting
  callbacks is thus ranked as if it had sent one per turn length, and another Dag's alert goes in between.
  A Dag with nothing waiting starts at now: using idle capacity costs nothing later.
- A priority moves the rank ahead by a *head start*: each doubling of ``1 + priority`` is worth one
  ``aging`` period. Any callback that comes later than the difference of the head starts ranks behind, so
  nothing waits for ever below a steady stream of more important work, and the logarithm bounds the head
  start (31 periods for the largest 32-bit priority).

Linear aging as a static stamp is the classic remedy for starvation under strict priorities (Kleinrock, 1964,
"A delay dependent queue discipline"); turns by spaced stamps are virtual clocks (Zhang, 1990,
"VirtualClock") applied per Dag.
"""

from __future__ import annotations

import math

__all__ = ["head_start_us", "next_turn_us", "rank_us"]


def head_start_us(priority: int, aging_us: int) -> int:
    """How far a priority moves a callback ahead, in microseconds; negative priorities move it back.

    >>> [head_start_us(priority, 10) for priority in (0, 1, 3, 7, -1)]
    [0, 10, 20, 30, -10]
    """
    return int(math.copysign(round(math.log2(1 + abs(priority)) * aging_us), priority))


def next_turn_us(now_us: int, last_turn_us: int | None, turn_length_us: int) -> int:
    """When a callback takes its Dag's next turn, in microseconds since the epoch.

    Args:
        now_us: The present.
        last_turn_us: The latest turn among the waiting callbacks of the same Dag, class and priority.
        turn_length_us: The spacing between two turns of one Dag.

    >>> next_turn_us(100, None, 10), next_turn_us(100, 95, 10), next_turn_us(100, 300, 10)
    (100, 105, 310)
    """
    return now_us if last_turn_us is None else max(now_us, last_turn_us + turn_length_us)


def rank_us(turn_us: int, priority: int, aging_us: int) -> int:
    """The rank of a callback, in microseconds since the epoch; the smallest goes first."""
    return turn_us - head_start_us(priority, aging_us)
