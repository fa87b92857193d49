"""What came of a simulation: waits and slot-time by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import attrs

from callback_priority.core.classes import ServiceClass
from callback_priority.core.units import MICROSECONDS

__all__ = ["ClassOutcome", "Outcome", "percentile"]


def percentile(values: Sequence[float], fraction: float) -> float:
    """The smallest value that at least this fraction of the values does not exceed (nearest rank).

    >>> percentile([40, 10, 30, 20], 0.5), percentile([40, 10, 30, 20], 0.95)
    (20, 40)
    """
    ordered = sorted(values)
    place = -(-Fraction(str(fraction)) * len(ordered) // 1)
    return ordered[max(0, int(place) - 1)]


@attrs.frozen(kw_only=True)
class ClassOutcome:
    """What one class got.

    Args:
        waits_seconds: From arrival to grant, of what was started, in the order of the grants; empty for an
            endless backlog, of which nothing arrives.
        started: How many workloads were started.
        waiting: How many of those that arrived were still waiting at the end.
        slot_seconds: Slot-time from grants to releases, or to the end for what still ran.
    """

    waits_seconds: tuple[float, ...]
    started: int
    waiting: int
    slot_seconds: float

    def wait_seconds(self, fraction: float) -> float | None:
        """A percentile of the waits; ``None`` when nothing that arrived was started."""
        return percentile(self.waits_seconds, fraction) if self.waits_seconds else None


@attrs.frozen(kw_only=True)
class Outcome:
    """What a simulation came to.

    Args:
        classes: What each class got.
        slots: The scheduler's slots.
        seconds: How long was simulated.
    """

    classes: Mapping[ServiceClass, ClassOutcome]
    slots: int
    seconds: float

    def share(self, service_class: ServiceClass) -> float:
        """The class's part of the slot-time that was used."""
        total = sum(outcome.slot_seconds for outcome in self.classes.values())
        return self.classes[service_class].slot_seconds / total if total else 0.0

    @property
    def utilisation(self) -> float:
        """The part of the slots' time that was used."""
        used = sum(outcome.slot_seconds for outcome in self.classes.values())
        return used / (self.slots * self.seconds)


def to_seconds(micros: int) -> float:
    """Microseconds as seconds."""
    return micros / MICROSECONDS
