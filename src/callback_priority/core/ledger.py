"""Who holds a slot since when, and what that has cost beyond what was charged.

The ledger of one scheduler process. Each hold was charged an estimate when it was granted; `collect` turns
releases and overruns into amounts by which the flows' tags move:

- a released hold is settled: ``width * (real hold - charged)``;
- a hold that outruns its charge is charged on while it runs. Those holds are summed per flow, so that a
  thousand long tasks cost one addition per flow and pass, not a thousand.

Invariant: for each hold, what was charged at the grant plus everything collected for it equals its width
times the time from its grant to its release. Amounts stay in the ledger until `settled` says that they were
committed, so that a failed transaction loses nothing.

Complexity: `grant` is O(log holds), `release` O(1); `collect` is O(flows + holds that changed * log holds).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping
from heapq import heapify, heappop, heappush
from typing import Final

from callback_priority.core.classes import SCHEDULER_FLOWS, FlowKey, ServiceClass, pool_flow
from callback_priority.core.units import SlotMicros
from callback_priority.core.values import value
from callback_priority.errors import InternalError

__all__ = ["Hold", "Ledger", "Settlement"]


_FEW: Final = 64


@value(kw_only=True)
class Hold:
    """A slot in use.

    Args:
        key: What holds it.
        service_class: Its class.
        pool: The pool it draws on; ``None`` when unknown (such a hold only takes a scheduler slot).
        width: Pool slots.
        executor: The executor that runs it.
        granted_at: When it was granted, in microseconds of a clock that never goes back.
        charge: What was charged for one slot of width, in slot-microseconds.
        sequence: Its place among all grants of this process.
    """

    key: Hashable
    service_class: ServiceClass
    pool: str | None
    width: int
    executor: str
    granted_at: int
    charge: SlotMicros
    sequence: int

    @property
    def due_at(self) -> int:
        """When it outruns its charge, in the clock of ``granted_at``."""
        return self.granted_at + self.charge

    def flows(self) -> tuple[tuple[FlowKey, int], ...]:
        """The flows that pay for it, each with its width there."""
        scheduler = SCHEDULER_FLOWS[self.service_class]
        if self.pool is None:
            return ((scheduler, 1),)
        return ((scheduler, 1), (pool_flow(self.pool, self.service_class), self.width))


@value(kw_only=True)
class Settlement:
    """What the flows owe beyond their charges, or get back.

    Args:
        amounts: Slot-microseconds by flow; negative where charged too much.
        holds: The real holds of what was released, in slot-microseconds, by flow, oldest release first.
    """

    amounts: Mapping[FlowKey, int]
    holds: Mapping[FlowKey, tuple[SlotMicros, ...]]


class Ledger:
    """The slots in use by one scheduler process, with what they were charged."""

    def __init__(self) -> None:
        self._holds: dict[Hashable, Hold] = {}
        # A heap of the holds within their charges. One that was closed stays in it until it comes up, which costs
        # less than to take it out.
        self._due: list[tuple[int, int, Hold]] = []
        self._overrunning: set[int] = set()
        self._overrun_widths: defaultdict[FlowKey, int] = defaultdict(int)
        self._released: list[Hold] = []
        self._amounts: defaultdict[FlowKey, int] = defaultdict(int)
        self._samples: defaultdict[FlowKey, list[SlotMicros]] = defaultdict(list)
        self._collected_at = 0
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._holds)

    def __contains__(self, key: object) -> bool:
        return key in self._holds

    def __iter__(self) -> Iterator[Hold]:
        return iter(self._holds.values())

    def get(self, key: Hashable) -> Hold | None:
        """The hold of this key, if it holds a slot."""
        return self._holds.get(key)

    def held(self) -> Counter[ServiceClass]:
        """How many scheduler slots each class holds."""
        return Counter(hold.service_class for hold in self._holds.values())

    def grant(
        self,
        key: Hashable,
        *,
        service_class: ServiceClass,
        pool: str | None,
        executor: str,
        now: int,
        charge: SlotMicros,
        width: int = 1,
    ) -> Hold:
        """Enter a hold whose charge was committed to the flows.

        Args:
            key: What holds the slot.
            service_class: Its class.
            pool: The pool it draws on, if known.
            executor: The executor that runs it.
            now: The present, in microseconds of a clock that never goes back.
            charge: What was charged for one slot of width; zero where nothing was.
            width: Pool slots.

        Returns:
            The hold. A key that holds a slot already keeps the hold it has.
        """
        if key in self._holds:
            return self._holds[key]
        self._sequence += 1
        hold = Hold(
            key=key,
            service_class=service_class,
            pool=pool,
            width=width,
            executor=executor,
            granted_at=now,
            charge=charge,
            sequence=self._sequence,
        )
        # In this order, a failure in between leaves nothing that a later `collect` would stumble over.
        heappush(self._due, (now + charge, self._sequence, hold))
        self._holds[key] = hold
        return hold

    def release(self, key: Hashable) -> Hold | None:
        """Note that a slot is free again; its hold ends at the next `collect`, when it can be granted."""
        hold = self._holds.pop(key, None)
        if hold is not None:
            self._released.append(hold)
        return hold

    def collect(self, now: int) -> Settlement:
        """Sum up what is to be settled: everything since the last `settled`, up to now.

        Args:
            now: The present, in the clock of `grant`.
        """
        amounts, released, due = self._amounts, self._released, self._due
        if now > self._collected_at:
            elapsed = now - self._collected_at
            for flow, width in self._overrun_widths.items():
                amounts[flow] += width * elapsed
            self._collected_at = now
        while released:
            self._close(released[0], now)
            del released[0]
        if len(due) > 2 * len(self._holds) + _FEW:
            self._due = due = [entry for entry in due if self._is_held(entry[2])]
            heapify(due)
        while due and due[0][0] < now:
            due_at, sequence, hold = heappop(due)
            if not self._is_held(hold):
                continue
            self._overrunning.add(sequence)
            for flow, width in hold.flows():
                amounts[flow] += width * (now - due_at)
                self._overrun_widths[flow] += width
        return Settlement(
            amounts={flow: amount for flow, amount in amounts.items() if amount},
            holds={flow: tuple(samples) for flow, samples in self._samples.items()},
        )

    def settled(self) -> None:
        """The last `collect` was committed."""
        self._amounts.clear()
        self._samples.clear()

    def _is_held(self, hold: Hold) -> bool:
        return self._holds.get(hold.key) is hold

    def _close(self, hold: Hold, now: int) -> None:
        real = SlotMicros(now - hold.granted_at if now > hold.granted_at else 0)
        samples = self._samples
        if hold.sequence not in self._overrunning:
            amounts, owed = self._amounts, real - hold.charge
            for flow, width in hold.flows():
                amounts[flow] += width * owed
                samples[flow].append(real)
            return
        self._overrunning.discard(hold.sequence)
        widths = self._overrun_widths
        for flow, width in hold.flows():
            if widths[flow] == width:
                del widths[flow]
            else:
                widths[flow] -= width
            samples[flow].append(real)

    def check_invariants(self) -> None:
        """Raise `InternalError` if the ledger's promises to itself do not hold. O(holds)."""
        waiting = [hold for hold in self._released if hold.sequence not in self._overrunning]
        tracked = [sequence for _, sequence, hold in self._due if self._is_held(hold)]
        tracked += self._overrunning
        tracked += [hold.sequence for hold in waiting]
        known = [hold.sequence for hold in (*self._holds.values(), *self._released)]
        if sorted(tracked) != sorted(known):
            raise InternalError(f"holds {sorted(known)} are tracked as {sorted(tracked)}")
        widths: Counter[FlowKey] = Counter()
        for hold in (*self._holds.values(), *self._released):
            if hold.sequence in self._overrunning:
                widths.update(dict(hold.flows()))
        if widths != self._overrun_widths:
            raise InternalError(f"overrunning widths are {self._overrun_widths}, the holds say {widths}")
