"""The state of one flow between two passes of the slot loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from callback_priority.core.classes import FlowKey
from callback_priority.core.units import Milliweight, SlotMicros, VirtualTime
from callback_priority.core.values import value

__all__ = ["FlowState", "make_state"]


@value
class FlowState:
    """Where a flow stands; what is kept of it from one pass to the next.

    Args:
        key: Which flow.
        tag: Start tag of its next grant, in virtual microseconds.
        remainder: The part of the tag below one unit, in units of ``1 / weight``; keeps division exact.
        clock: The scope's virtual time when this flow was last granted; the scope's clock is the largest.
        weight: The weight that ``tag`` and ``remainder`` were computed under.
        estimate: Moving average of the class's holds, in slot-microseconds for one slot of width.
        eligible: Whether it had a head that fitted when last looked at; becoming eligible clamps the tag.
        bypassed: Slots granted to others since a head that was too wide came to be due.
        service: Slot-time charged and settled since the flow exists, in slot-microseconds.
        recent: The same, decayed with a fixed half-life, as of ``recent_at``.
        recent_at: Microseconds since the epoch to which ``recent`` belongs.
        granted: Grants since the flow exists.
    """

    key: FlowKey
    weight: Milliweight
    estimate: SlotMicros
    tag: VirtualTime = VirtualTime(0)
    remainder: int = 0
    clock: VirtualTime = VirtualTime(0)
    eligible: bool = False
    bypassed: int = 0
    service: SlotMicros = SlotMicros(0)
    recent: SlotMicros = SlotMicros(0)
    recent_at: int = 0
    granted: int = 0


make_state: Final[Callable[..., FlowState]] = FlowState
"""The same class without the names of its units: each of those is a call, and a pass makes thousands of flows."""
