"""Start-time fair queuing on slot-time, for the flows of one scope (a pool, or the schedulers' slots).

Source: Goyal, Vin, Cheng, "Start-time Fair Queuing: A Scheduling Algorithm for Integrated Services Packet
Switching Networks" (SIGCOMM 1996); with many slots served at once, SFQ(D): Jin, Chase, Kaur, "Interposed
Proportional Sharing for a Storage Service Utility" (SIGMETRICS 2004).

Each flow has a start tag, the scope a clock (virtual time). A grant goes to the eligible flow with the
smallest tag, ties by a fixed order; the clock rises to that tag; the tag rises by cost / weight.

What differs from the papers:

1. *Cost is slot-time, which nobody knows beforehand.* A grant is charged an estimate (the class's moving
   average hold); when the slot is released the tag is settled by the difference, which may move it back.
   The clock never moves back. A hold that outruns its charge is charged on while it runs
   (`callback_priority.core.ledger`).
2. *A flow is clamped whenever it becomes eligible*, on arrival and also when a quota or a full pool no
   longer blocks it: ``tag = max(tag, clock)``. Nobody saves up turns while unable to use them. A flow that
   stays eligible and merely waits for its turn is never clamped: that is what it is owed.

Invariants: the clock never decreases; a flow that is eligible and not served keeps its tag; after a grant
``clock >= `` the tag it was granted at. Bound, where charge equals cost: while two flows stay eligible,
``|N_f / w_f - N_g / w_g| <= c_f / w_f + c_g / w_g`` for slot-time N, weight w and largest cost c (Theorem 1
of the 1996 paper). With settlement and K slots the bound becomes ``(K + 1) * (d_f / w_f + d_g / w_g)`` for
longest holds d, since at most K grants can be outstanding at a wrong charge.

Division stays exact: a tag is a whole number of virtual microseconds plus a remainder in units of
``1 / weight`` that is carried along, so any number of charges and settlements adds up to what one charge of
their sum would give.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace
from typing import Final

import attrs

from callback_priority.core.flows import FlowState
from callback_priority.core.units import MILLI, Milliweight, SlotMicros, VirtualTime
from callback_priority.errors import InternalError

__all__ = ["FairQueue", "Flow", "move_average", "rebase", "reweigh"]

REBASE_ABOVE: Final = 1 << 60
"""A scope whose clock passes this is rebased to zero, so that tags fit a signed 64-bit column for ever."""

FURTHEST: Final = 1 << 62
"""The furthest a tag may stand from its clock; reached only by holds of years times the largest width."""


class Flow:
    """A flow at work in one pass: its state unpacked for the inner loop.

    Args:
        state: Where it stood after the last pass.
        order: Its place in the fixed order that breaks ties.
    """

    __slots__ = ("clock_at", "granted", "order", "remainder", "state", "step", "tag", "weight")

    def __init__(self, state: FlowState, order: int) -> None:
        self.state = state
        self.order = order
        self.tag: int = state.tag
        self.remainder = state.remainder
        self.weight: int = state.weight
        self.step: int = state.estimate * MILLI
        self.clock_at: int = state.clock
        self.granted = 0

    def advance(self, slot_micros: int) -> None:
        """Move the tag by slot-time (in slot-microseconds, negative to give back) over weight."""
        whole, self.remainder = divmod(self.remainder + slot_micros * MILLI, self.weight)
        self.tag += whole

    def clamp(self, clock: int) -> None:
        """Let the flow start no earlier than now: it has just become eligible."""
        if self.tag < clock:
            self.tag = clock
            self.remainder = 0


class FairQueue:
    """The eligible flows of one scope, in the order in which they are served.

    `head` is O(1); `grant` and `drop` are O(log flows).

    Args:
        flows: The eligible flows; flows that became eligible just now are clamped by the caller.
        clock: The scope's virtual time.
        by_tag: Whether tags decide. When false, the flows' fixed order alone decides (strict priority).
    """

    __slots__ = ("_by_tag", "_heap", "clock")

    def __init__(self, flows: list[Flow], clock: int, *, by_tag: bool = True) -> None:
        self._by_tag = by_tag
        self.clock = clock
        self._heap = [(flow.tag if by_tag else 0, flow.order, flow) for flow in flows]
        heapify(self._heap)

    def __len__(self) -> int:
        return len(self._heap)

    def head(self) -> Flow:
        """The flow whose turn it is."""
        return self._heap[0][2]

    def grant(self, width: int = 1) -> None:
        """Charge the head for one grant of ``width`` slots and find the next head."""
        flow = self._heap[0][2]
        tag = flow.tag
        if tag > self.clock:
            self.clock = tag
        whole, flow.remainder = divmod(flow.remainder + width * flow.step, flow.weight)
        flow.tag = tag = tag + whole
        flow.granted += 1
        flow.clock_at = self.clock
        if self._by_tag:
            heapreplace(self._heap, (tag, flow.order, flow))

    def drop(self) -> Flow:
        """Take the head out for the rest of the pass: it has nothing (left) that fits."""
        return heappop(self._heap)[2]

    def add(self, flow: Flow) -> None:
        """Put a flow in."""
        heappush(self._heap, (flow.tag if self._by_tag else 0, flow.order, flow))

    def check_invariants(self) -> None:
        """Raise `InternalError` if the queue's promises to itself do not hold. O(flows)."""
        for index, entry in enumerate(self._heap):
            flow = entry[2]
            if self._by_tag and entry[0] != flow.tag:
                raise InternalError(f"flow {flow.state.key} is queued at {entry[0]}, its tag is {flow.tag}")
            if not 0 <= flow.remainder < flow.weight:
                raise InternalError(f"flow {flow.state.key}: remainder {flow.remainder} of {flow.weight}")
            if index and self._heap[(index - 1) // 2][:2] > entry[:2]:
                raise InternalError(f"flow {flow.state.key} stands above one that goes first")


def reweigh(state: FlowState, weight: Milliweight, clock: int) -> FlowState:
    """Carry a flow over to a new weight: what it owes or is owed, in slot-time, stays exactly the same.

    Args:
        state: The flow under its old weight.
        weight: The new weight, in thousandths.
        clock: The scope's clock.
    """
    if state.weight == weight:
        return state
    debt = (state.tag - clock) * state.weight + state.remainder
    whole, remainder = divmod(debt, weight)
    whole = max(-FURTHEST, min(FURTHEST, whole))
    return attrs.evolve(state, weight=weight, tag=VirtualTime(clock + whole), remainder=remainder)


def rebase(states: list[FlowState]) -> list[FlowState]:
    """Keep a scope's tags and clocks within 63 bits: only their differences carry meaning.

    Args:
        states: Every flow of one scope.

    Returns:
        The same flows; shifted so that the clock is zero once the clock has passed ``2**60``, and with
        every tag within ``2**62`` of the clock.
    """
    clock = max((state.clock for state in states), default=0)
    shift = clock if clock > REBASE_ABOVE else 0
    return [
        attrs.evolve(
            state,
            tag=VirtualTime(max(-FURTHEST, min(FURTHEST, state.tag - clock)) + clock - shift),
            clock=VirtualTime(max(-FURTHEST, state.clock - shift)),
        )
        if shift or abs(state.tag - clock) > FURTHEST
        else state
        for state in states
    ]


def move_average(estimate: SlotMicros, hold: SlotMicros) -> SlotMicros:
    """The moving average hold after one more: an eighth of the way towards it, at least a microsecond.

    The eighth is TCP's smoothing of round-trip times (Jacobson, 1988, "Congestion Avoidance and Control"):
    quick enough to follow a change within a dozen holds, slow enough that one outlier moves it little.
    """
    return SlotMicros(max(1, estimate + ((hold - estimate) >> 3)))
