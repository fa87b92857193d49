"""Simulated work: who sends how much of it, and how long it holds a slot. Seeded, so that runs can be compared.

Every stream draws from random numbers of its own, one series for arrivals and one for holds. Two policies
that are given the same seed thus see the same arrivals, and the n-th workload of a class holds its slot
equally long under both (*common random numbers*): what differs between their results is the policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import attrs

from callback_priority.core.classes import ServiceClass
from callback_priority.core.units import MICROSECONDS

__all__ = ["Stream", "Workload"]


@attrs.frozen(kw_only=True)
class Stream:
    """The work of one class.

    Args:
        service_class: The class.
        mean_hold_seconds: Mean of the holds, which are distributed exponentially.
        rate_per_second: Mean of the arrivals, which are a Poisson process; ``None`` for a backlog that is
            there from the start and never ends.
    """

    service_class: ServiceClass
    mean_hold_seconds: float
    rate_per_second: float | None = None

    def arrivals(self, seed: int, until: int) -> list[int]:
        """When each workload arrives, in microseconds from the start; nothing for an endless backlog."""
        if self.rate_per_second is None:
            return []
        random = self._random(seed, "arrivals")
        found: list[int] = []
        now = 0.0
        while True:
            now += random.expovariate(self.rate_per_second) * MICROSECONDS
            if now >= until:
                return found
            found.append(round(now))

    def holds(self, seed: int) -> Iterator[int]:
        """How long each workload runs, in microseconds, in the order in which they arrive."""
        random = self._random(seed, "holds")
        while True:
            yield max(1, round(random.expovariate(1 / self.mean_hold_seconds) * MICROSECONDS))

    def _random(self, seed: int, purpose: str) -> Random:
        return Random(f"{seed} {self.service_class} {purpose}")  # noqa: S311 - not for secrets


@attrs.frozen(kw_only=True)
class Workload:
    """Everything that wants slots during a simulated stretch of time.

    Args:
        streams: The work, one stream for each class that takes part.
        seconds: How long to simulate.
    """

    streams: tuple[Stream, ...]
    seconds: float
