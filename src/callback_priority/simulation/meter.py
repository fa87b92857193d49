"""What is measured while a simulation runs: waits, slot-time, and how far classes that compete drift apart.

*Contended* is a stretch of time in which two classes or more have work waiting that the last loop gave nothing. Only then does it matter
how slots are shared: a class that wants little gets little, which is nobody's loss. Shares and Jain's index (Jain, Chiu, Hawe, 1984,
"A quantitative measure of fairness and discrimination for resource allocation in shared computer systems") are taken
over such stretches alone.

*Kept* is the slot-time that a class held while some of it waited, whether another waited or not: what it got whenever it wanted more.

*Lag* is how much more service, slot-time over weight, one class got than another since both of them began to wait at once: the
quantity that start-time fair queuing bounds (`callback_priority.core.fair_queue`).

Complexity: O(classes squared) for each loop in which something changed.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Final

import attrs

from callback_priority.core.classes import ServiceClass
from callback_priority.core.units import MILLI

__all__ = ["Meter", "Pair"]

_NEVER: Final = 1 << 62


@attrs.define
class Pair:
    """Two classes that compete.

    Args:
        first: The place of the one.
        second: The place of the other.
        since: Service of both, over weight, when both began to wait; ``None`` while they do not.
        highest: The furthest that the first was ahead of the second.
        lowest: The furthest that it was behind, negative.
        furthest: The most that they drifted apart between any two moments of one such stretch.
    """

    first: int
    second: int
    since: tuple[float, float] | None = None
    highest: float = 0.0
    lowest: float = 0.0
    furthest: float = 0.0


class Meter:
    """The measurements of one run.

    Args:
        classes: The classes that take part.
        weights: Their weights, in thousandths.
        warm_up: What arrives before this is not counted, in microseconds.
        until: The end, in microseconds.
        bins: Into how many stretches of equal length slot-time over time is divided.
    """

    def __init__(
        self,
        classes: Sequence[ServiceClass],
        weights: Mapping[ServiceClass, int],
        *,
        warm_up: int,
        until: int,
        bins: int = 120,
    ) -> None:
        self.classes = tuple(classes)
        self.place = {cls: at for at, cls in enumerate(self.classes)}
        count = len(self.classes)
        self.held = [0] * count
        self.waits: list[array[int]] = [array("q") for _ in self.classes]
        self.waited_dags: list[array[int]] = [array("l") for _ in self.classes]
        self.arrived = [0] * count
        self.started = [0] * count
        self.slot_micros = [0] * count
        self.contended_micros: defaultdict[int, list[int]] = defaultdict(lambda: [0] * (count + 1))
        self.longest_hold = [0] * count
        self.bin_length = max(1, -(-until // bins))
        self.binned = [[0] * bins for _ in self.classes]
        self.demand = [[0] * bins for _ in self.classes]
        self._bin = 0
        self._bin_end = min(self.bin_length, until)
        self._at_bin = [0] * count
        self._wanted = [0] * count
        self._warm_up = warm_up
        self._until = until
        self._last = 0
        self.waiting = 0
        self.contending = 0
        # Of stretches that are over, and of the moment in which one that is not began: slot-time held, and time.
        self._kept = [(0, 0)] * count
        self._waits_since: list[tuple[int, int] | None] = [None] * count
        self._weights = [weights[cls] / MILLI for cls in self.classes]
        self._pairs = [Pair(first=first, second=second) for first, second in combinations(range(count), 2)]

    def granted(self, place: int, at: int, now: int, dag: int) -> None:
        """One of a class starts; nothing is noted of those that arrived while the simulation warmed up."""
        self.held[place] += 1
        self.started[place] += 1
        if at >= self._warm_up:
            self.waits[place].append(now - at)
            self.waited_dags[place].append(dag)

    def grant_endless(self, place: int) -> None:
        """One of a backlog without end starts: it has not waited."""
        self.held[place] += 1
        self.started[place] += 1

    def released(self, place: int, hold: int) -> None:
        """A slot is free again.

        Args:
            place: The place of its class.
            hold: How long it was held, in microseconds.
        """
        self.held[place] -= 1
        if hold > self.longest_hold[place]:  # noqa: PLR1730 - a call less for each hold
            self.longest_hold[place] = hold

    def advance(self, now: int) -> None:
        """Count the slot-time until now. To be called before anything changes."""
        elapsed = now - self._last
        if elapsed <= 0:
            return
        if now >= self._bin_end or self.contending:
            self._advance_in_bins(now)
            return
        self._last = now
        for place, held in enumerate(self.held):
            self.slot_micros[place] += held * elapsed

    def leave_waiting(self, waiting: int) -> None:
        """Who is left waiting after a loop.

        Args:
            waiting: A bit for each class, by its place.
        """
        changed = waiting ^ self.waiting
        if not changed:
            return
        self.waiting = waiting
        for place in range(len(self.classes)):
            if changed >> place & 1:
                self._kept[place] = self.kept(place)
                self._waits_since[place] = (
                    (self.slot_micros[place], self._last) if waiting >> place & 1 else None
                )
        self._contend(waiting if waiting & (waiting - 1) else 0)

    def kept(self, place: int) -> tuple[int, int]:
        """What a class held while some of it waited, and for how long some of it did, in microseconds.

        Args:
            place: The place of the class.
        """
        held, elapsed = self._kept[place]
        since = self._waits_since[place]
        if since is not None:
            held += self.slot_micros[place] - since[0]
            elapsed += self._last - since[1]
        return held, elapsed

    def _contend(self, contending: int) -> None:
        """Which of two classes or more compete from now on; none if less than two wait."""
        if contending == self.contending:
            return
        self.contending = contending
        service = self._service()
        for pair in self._pairs:
            both = contending >> pair.first & 1 and contending >> pair.second & 1
            if not both:
                pair.since = None
            elif pair.since is None:
                pair.since = (service[pair.first], service[pair.second])
                pair.highest = pair.lowest = 0.0

    def lags(self) -> list[Pair]:
        """Every pair of classes."""
        return list(self._pairs)

    def _service(self) -> list[float]:
        return [amount / weight for amount, weight in zip(self.slot_micros, self._weights, strict=True)]

    def _compare(self) -> None:
        service = self._service()
        for pair in self._pairs:
            if pair.since is None:
                continue
            ahead = (service[pair.first] - pair.since[0]) - (service[pair.second] - pair.since[1])
            if ahead > pair.highest:
                pair.highest = ahead
            elif ahead < pair.lowest:
                pair.lowest = ahead
            # Between any two moments of the stretch, not from its beginning only.
            pair.furthest = max(pair.furthest, pair.highest - pair.lowest)

    def _advance_in_bins(self, now: int) -> None:
        while now >= self._bin_end:
            self._count(self._bin_end)
            self._close_bin()
        self._count(now)
        if self.contending:
            self._compare()

    def _count(self, now: int) -> None:
        elapsed = now - self._last
        self._last = now
        slot_micros, contending = self.slot_micros, self.contending
        if not contending:
            for place, held in enumerate(self.held):
                slot_micros[place] += held * elapsed
            return
        contended = self.contended_micros[contending]
        contended[-1] += elapsed
        for place, held in enumerate(self.held):
            amount = held * elapsed
            slot_micros[place] += amount
            contended[place] += amount
            if contending >> place & 1:
                self._wanted[place] += elapsed

    def _close_bin(self) -> None:
        """What was counted since the last bin ended belongs to this one; the last one ends with the simulation."""
        for place, micros in enumerate(self.slot_micros):
            self.binned[place][self._bin] = micros - self._at_bin[place]
            self.demand[place][self._bin] = self._wanted[place]
        self._at_bin = list(self.slot_micros)
        self._wanted = [0] * len(self.classes)
        self._bin += 1
        at_end = self._bin_end >= self._until
        self._bin_end = _NEVER if at_end else min(self._bin_end + self.bin_length, self._until)
