"""Start-time fair queuing on slot-time, for the flows of one scope (a pool, or the schedulers' slots).

Source: Goyal, Vin, Cheng, "Start-time Fair Queuing: A Scheduling Algorithm for Integrated Services Packet
Switching Networks" (SIGCOMM 1996); with many slots served at once, SFQ(D): Jin, Chase, Kaur, "Interposed
Proportional Sharing for a Storage Service Utility" (SIGMETRICS 2004).

Each flow has a start tag, the scope a clock (virtual time). A grant goes to the eligible flow with the
smallest tag, ties to whoever was last served the longest ago, then by a fixed order; the clock rises to that tag;
the tag rises by cost / weight.

What differs from the papers:

1. *Cost is slot-time, which nobody knows beforehand.* A grant is charged an estimate (the class's moving
   average hold); when the slot is released the tag is settled by the difference, which may move it back.
   The clock never moves back. A hold that outruns its charge is charged on while it runs
   (`callback_priority.core.ledger`).
2. *A flow is clamped whenever it becomes eligible*, on arrival and also when a quota or a full pool no
   longer blocks it: ``tag = max(tag, clock)``. Nobody saves up turns while unable to use them. A flow that
   stays eligible and merely waits for its turn is never clamped: that is what it is owed.
3. *Whoever is served out of turn does not take the clock along.* Where the slots that are left are others'
   reserves, or are held empty for somebody wide, a flow waits though its tag is the smallest; the clock stays at
   its tag until it is served (`FairQueue.hold_back`). Else a class that is served from a reserve above its share
   would drag the clock past everyone else, whose turns would be lost in the next clamp: ties would decide, and
   starve whoever loses them. What the reserve took is charged all the same: while others wait, its class gets no
   more than its reserve until they have caught up, and once nobody waits, its next grant takes the clock to it.

Invariants: the clock never decreases; a flow that is eligible and not served keeps its tag, and the clock does not
pass it while it waits; after a grant ``clock >= `` the tag it was granted at, or the smallest tag of those held
back. Bound, where charge equals cost: while two flows stay eligible,
``|N_f / w_f - N_g / w_g| <= c_f / w_f + c_g / w_g`` for slot-time N, weight w and largest cost c (Theorem 1
of the 1996 paper). With settlement and K slots it becomes ``(K + 1) * (d_f / w_f + d_g / w_g)`` from a fresh start,
for longest holds (or charges) d, since at most K grants can be outstanding at a wrong charge, and
``2 * K * (d_f / w_f + d_g / w_g)`` between any two moments: see ``docs/explanation/bounds.md``.

Division stays exact: a tag is a whole number of virtual microseconds plus a remainder in units of
``1 / weight`` that is carried along, so any number of charges and settlements adds up to what one charge of
their sum would give.
"""

from __future__ import annotations

from heapq import heapify, heappop, heapreplace
from typing import Final, Generic, TypeVar

from callback_priority.core.flows import FlowState
from callback_priority.core.units import MILLI
from callback_priority.errors import InternalError

__all__ = ["NO_CEILING", "FairQueue", "Flow"]

F = TypeVar("F", bound="Flow")
_ORDER_BITS: Final = 4
"""Of a place in the fixed order."""

NO_CEILING: Final = 1 << 63
"""Further than any tag."""


class Flow:
    """A flow at work in one pass: its state unpacked for the inner loop. What competes in a pass derives from it."""

    __slots__ = ("_clock", "order", "remainder", "served_at", "state", "step", "tag", "weight")

    def start(self, state: FlowState, order: int, clock: int, charge: int) -> None:
        """Take up the flow where the last pass left it; clamp it if it was not eligible until now.

        Args:
            state: Where it stood after the last pass, under today's weight.
            order: Its place in the fixed order that breaks ties.
            clock: The scope's clock.
            charge: What a grant of one slot is charged, in slot-microseconds.
        """
        self.state = state
        self.order = order
        self._clock = clock
        self.tag: int = state.tag
        self.remainder = state.remainder
        self.weight: int = state.weight
        self.step = charge * MILLI
        self.served_at: int = state.clock
        if not state.eligible and self.tag < clock:
            self.tag = clock
            self.remainder = 0

    def charge(self, slots: int, last: int, ceiling: int = NO_CEILING) -> None:
        """Charge grants outside a queue, all at once: the arithmetic is exact, so only the last one's start matters.

        Args:
            slots: How many slots they are wide together.
            last: How wide the last of them is.
            ceiling: The smallest tag of those held back in the queue that admitted them.
        """
        if not slots:
            return
        if slots > last:
            whole, self.remainder = divmod(self.remainder + (slots - last) * self.step, self.weight)
            self.tag += whole
        self.served_at = max(self.served_at, self._clock, min(self.tag, ceiling))
        whole, self.remainder = divmod(self.remainder + last * self.step, self.weight)
        self.tag += whole


class FairQueue(Generic[F]):
    """The eligible flows of one scope, in the order in which they are served.

    `head` is O(1); `grant` and `drop` are O(log flows).

    Args:
        flows: The eligible flows, started.
        clock: The scope's virtual time.
        by_tag: Whether tags decide. When false, the flows' fixed order alone decides (strict priority).
    """

    __slots__ = ("_by_tag", "_heap", "ceiling", "clock")

    def __init__(self, flows: list[F], clock: int, *, by_tag: bool = True) -> None:
        self._by_tag = by_tag
        self.clock = clock
        self.ceiling = NO_CEILING
        if by_tag:
            # A clamp makes ties. Were they always won by the same flow, it could starve one that loses its turn again and
            # again, such as where another place of contention keeps both away while the clock moves on.
            self._heap = [(flow.tag, (flow.served_at << _ORDER_BITS) + flow.order, flow) for flow in flows]
        else:
            self._heap = [(0, flow.order, flow) for flow in flows]
        heapify(self._heap)

    def __len__(self) -> int:
        return len(self._heap)

    def head(self) -> F:
        """The flow whose turn it is."""
        return self._heap[0][2]

    def grant(self, width: int = 1) -> None:
        """Charge the head for one grant of ``width`` slots and find the next head."""
        flow = self._heap[0][2]
        tag = flow.tag
        if tag > self.clock:
            ceiling = self.ceiling
            if tag <= ceiling:
                self.clock = tag
            elif ceiling > self.clock:
                self.clock = ceiling
        whole, flow.remainder = divmod(flow.remainder + width * flow.step, flow.weight)
        flow.tag = tag = tag + whole
        flow.served_at = self.clock
        if self._by_tag:
            heapreplace(self._heap, (tag, (flow.served_at << _ORDER_BITS) + flow.order, flow))

    def drop(self) -> F:
        """Take the head out for the rest of the pass: it has nothing (left) that fits."""
        return heappop(self._heap)[2]

    def hold_back(self) -> F:
        """Take the head out, as `drop` does, though it waits for its turn: what is left is not for it.

        Whoever is served before it from now on, though its tag is larger, does not take the clock past it.
        """
        flow = heappop(self._heap)[2]
        self.ceiling = min(self.ceiling, flow.tag)
        return flow

    def left(self) -> list[F]:
        """The flows that are still in, in no particular order. O(flows)."""
        return [entry[2] for entry in self._heap]

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
