"""Units of the core: exact integers, so that nothing drifts and nothing depends on the platform.

Slot-time is counted in slot-microseconds (one slot held for one microsecond). A weight is counted in
thousandths. A flow's virtual time is slot-time divided by weight; see `callback_priority.core.fair_queue`
for how the division stays exact.
"""

from __future__ import annotations

from typing import Final, NewType

__all__ = [
    "MAX_WEIGHT_MILLI",
    "MICROSECONDS",
    "MILLI",
    "Milliweight",
    "SlotMicros",
    "VirtualTime",
    "seconds_to_micros",
]

SlotMicros = NewType("SlotMicros", int)
VirtualTime = NewType("VirtualTime", int)
Milliweight = NewType("Milliweight", int)

MICROSECONDS: Final = 1_000_000
"""Microseconds in a second."""

MILLI: Final = 1_000
"""Thousandths in a weight of one."""

MAX_WEIGHT_MILLI: Final = Milliweight(1_000_000 * MILLI)
"""The largest weight, in thousandths; the smallest is one thousandth."""


def seconds_to_micros(seconds: float) -> SlotMicros:
    """Convert seconds to whole microseconds, rounding to the nearest.

    >>> seconds_to_micros(1.5)
    1500000
    """
    return SlotMicros(round(seconds * MICROSECONDS))
