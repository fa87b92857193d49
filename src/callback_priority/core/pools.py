"""A pool in one pass of the slot loop: what each class may be granted there, and what that costs it.

A pool that has room for whatever the scheduler could grant is no bottleneck: only quotas bound it. Any other
is *contested* and split by turns, by a fair queue of its own (`callback_priority.core.fair_queue`).

*Wide candidates.* A head that is due but needs more pool slots than are left is passed by others, but by at
most `Entitlements.wide_bypass_limit` pool slots; then the pool is drained for it (others get only their
reserves). Skipping without a bound starves it, blocking at once leaves slots empty.

*Who keeps a turn.* A class that the split sent away because the pool's slots were used up, or all but what is
others' reserve, or that waits for a wide head, is still eligible: it is owed its turn, and the pool's clock waits
for it. One that its limit stopped is not, nor one that the others' reserves never leave anything, nor one that the
pool would have let in but for the scheduler's slots: there, turns are counted at the scheduler.
A pool that is full from the start says nothing about turns, so it leaves them as they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from callback_priority.core.classes import FlowKey, Level, ServiceClass
from callback_priority.core.fair_queue import NO_CEILING, FairQueue
from callback_priority.core.flows import FlowState
from callback_priority.core.lines import UNLIMITED, Line, Terms, served
from callback_priority.core.quotas import NO_QUOTA
from callback_priority.core.snapshot import PoolSlots, Reason

__all__ = ["PoolPass", "widest"]

_TASK: Final = ServiceClass.TASK
_POOL: Final = Level.POOL
_POOL_FULL: Final = Reason.POOL_FULL
_OWED_A_TURN: Final = frozenset({Reason.POOL_FULL, Reason.TOO_WIDE, Reason.DRAINING})
_LACKS_SLOTS: Final = _OWED_A_TURN | {Reason.POOL_RESERVE}


class PoolPass:
    """One pool and the lines that want its slots.

    Args:
        pool: Its name.
        lines: One for each class that waits there.
        terms: What the pass goes by.
    """

    __slots__ = (
        "_ceiling",
        "_clock",
        "_past",
        "_pool",
        "_reserved",
        "_slots",
        "_terms",
        "_untouched",
        "lines",
    )

    def __init__(self, pool: str, lines: Sequence[Line], terms: Terms) -> None:
        self._pool = pool
        self.lines = lines
        self._terms = terms
        self._slots: PoolSlots | None = terms.snapshot.pools.get(pool)
        self._past, self._clock = terms.past_of(pool)
        self._reserved: dict[ServiceClass, int] = {}
        self._ceiling = NO_CEILING
        self._untouched = False

    # Before the scheduler's slots are handed out ----------------------------------------------------------

    def admit(self, free_slots: int) -> None:
        """Bound what each line may be granted.

        Args:
            free_slots: The scheduler's free slots.
        """
        slots = self._slots
        if slots is None:
            self._turn_away(Reason.POOL_MISSING)
            return
        self._read_quotas(slots)
        open_slots = UNLIMITED if slots.open_slots is None else slots.open_slots
        reserved = sum(self._reserved.values()) if self._reserved else 0
        room = open_slots - reserved
        if open_slots <= 0:
            self._turn_away(Reason.POOL_FULL)
        elif room >= free_slots and room >= free_slots * max([line.widest for line in self.lines]):
            self._admit_within_limits()
        elif len(self.lines) == 1 and self.lines[0].widest == 1 and reserved == self.lines[0].unmet:
            self._admit_alone(self.lines[0], open_slots)
        else:
            self._split(open_slots, reserved)

    def _turn_away(self, reason: Reason) -> None:
        self._untouched = True
        for line in self.lines:
            line.reason = reason

    def _read_quotas(self, slots: PoolSlots) -> None:
        quotas = self._terms.entitlements.quotas(_POOL, self._pool)
        started = self._terms.started(_TASK, self._pool)
        if not quotas and not started:
            return
        limits: dict[ServiceClass, int] = {}
        for cls, quota in quotas.items():
            held = slots.held.get(cls, 0)
            if quota.reserve_slots > held:
                self._reserved[cls] = quota.reserve_slots - held
            if quota.limit_slots is not None:
                limits[cls] = quota.limit_slots - held
        if started:
            # What Airflow has started is no longer a question: its slots are theirs.
            self._reserved[_TASK] = max(self._reserved.get(_TASK, 0), sum(started))
        if self._reserved or limits:
            for line in self.lines:
                line.unmet = self._reserved.get(line.service_class, 0)
                line.limit_left = limits.get(line.service_class, UNLIMITED)

    def _admit_within_limits(self) -> None:
        """Admit everything but what exceeds a limit: the pool has room for whatever is granted."""
        for line in self.lines:
            left = line.limit_left
            if line.service_class is not _TASK:
                line.allowed = max(0, min(left, line.startable))
                line.reason = Reason.POOL_LIMIT if line.allowed < line.startable else None
                continue
            # One more than can start: what the limit stops waits for no turn, whether Airflow came to it or not.
            for candidate in line.candidates[: line.startable + 1]:
                left -= candidate.width
                if left < 0:
                    line.reason = Reason.POOL_LIMIT
                    break
                if line.allowed < line.startable:
                    line.allowed += 1

    def _contest(self) -> None:
        """Take up the flows of a contested pool."""
        terms, pool, past, clock = self._terms, self._pool, self._past, self._clock
        orders, charges, weight_of = terms.orders, terms.charges, terms.entitlements.weight
        for line in self.lines:
            line.contested = True
            cls = line.service_class
            before = past.get(cls)
            if before is None or before.weight != weight_of(_POOL, pool, cls):
                before = terms.state(_POOL, pool, cls, before, clock)
            line.start(before, orders[cls], clock, charges[cls])

    def _admit_alone(self, line: Line, open_slots: int) -> None:
        """Admit the only class that waits for a contested pool, in which nothing is reserved for another.

        What `_split` comes to where there are no turns to take.

        Args:
            line: Its line; all of it is one slot wide.
            open_slots: The pool's open slots.
        """
        self._contest()
        allowed = max(0, min(open_slots, line.startable, line.cap, line.limit_left))
        line.allowed = allowed
        line.limit_left -= allowed
        line.charge(allowed, 1)
        if allowed == len(line.candidates):
            return
        if allowed >= line.cap:
            line.reason = line.cap_reason
        elif line.limit_left <= 0:
            line.reason = Reason.POOL_LIMIT
        elif allowed == open_slots:
            line.reason = _POOL_FULL

    def _split(self, open_slots: int, reserved: int) -> None:
        """Split a contested pool by turns: the pool's own fair queue, run dry."""
        terms, clock = self._terms, self._clock
        self._contest()
        queue = FairQueue(list(self.lines), clock, by_tag=terms.by_tag)
        bypass_limit = terms.entitlements.wide_bypass_limit
        draining = False
        due: list[tuple[Line, int]] = []
        while open_slots > 0 and queue:
            line = queue.head()
            allowed = line.allowed
            if allowed == len(line.candidates):
                queue.drop()
                continue
            width = line.candidates[allowed].width
            room = open_slots - reserved + line.unmet
            if draining and not line.unmet:
                line.reason = Reason.DRAINING
            elif allowed >= line.cap:
                line.reason = line.cap_reason
            elif width > line.limit_left:
                line.reason = Reason.POOL_LIMIT
            elif room <= 0:
                line.reason = Reason.POOL_RESERVE
            elif width > room:
                line.reason = Reason.TOO_WIDE
                line.due = True
                already = 0 if allowed else line.state.bypassed
                draining = draining or already >= bypass_limit
                due.append((line, already))
            elif allowed < line.startable:
                open_slots -= width
                line.limit_left -= width
                line.allowed = allowed + 1
                if line.unmet:
                    met = min(width, line.unmet)
                    line.unmet -= met
                    reserved -= met
                queue.grant(width)
                for waiting, already in due:
                    waiting.passed += width
                    draining = draining or already + waiting.passed >= bypass_limit
                continue
            if self._is_owed_a_turn(line):
                queue.hold_back()
            else:
                queue.drop()
        self._ceiling = queue.ceiling
        for line in queue.left():
            # The pool's slots were used up before its turn; unless something else would have stopped it anyway.
            allowed = line.allowed
            if allowed == len(line.candidates):
                continue
            if draining and not line.unmet:
                line.reason = Reason.DRAINING
            elif allowed >= line.cap:
                line.reason = line.cap_reason
            elif line.candidates[allowed].width > line.limit_left:
                line.reason = Reason.POOL_LIMIT
            else:
                line.reason = _POOL_FULL

    # Afterwards -------------------------------------------------------------------------------------------

    def task_slots(self, line: Line) -> int:
        """The pool slots that task instances may use.

        Args:
            line: Those that wait, one of `lines`, of which some are allowed.
        """
        if self._slots is None:
            return 0
        if line.contested:
            if line.position == line.granted == line.allowed:
                return line.granted_slots
            return sum([candidate.width for candidate in line.candidates[: line.allowed]])
        if self._slots.open_slots is None:
            return line.limit_left
        granted = {other.service_class: other.granted_slots for other in self.lines if other is not line}
        held_back = sum(
            max(0, reserve - granted.get(cls, 0))
            for cls, reserve in self._reserved.items()
            if cls is not _TASK
        )
        return min(self._slots.open_slots - sum(granted.values()) - held_back, line.limit_left)

    def unused(self) -> Iterator[Line]:
        """The lines that were granted less than the pool admits, if others would have taken it."""
        kept = [line for line in self.lines if line.contested and line.granted < line.allowed]
        if kept and any(line.reason in _LACKS_SLOTS for line in self.lines if line not in kept):
            yield from kept

    def close(self, changed: dict[FlowKey, FlowState]) -> None:
        """Charge the pool's flows for what was granted, all at once: the arithmetic is exact.

        Args:
            changed: Gets the flows that changed.
        """
        if self._untouched:
            return
        past, clock = self._past, self._clock
        now, charges = self._terms.snapshot.now, self._terms.charges
        for line in self.lines:
            cls = line.service_class
            before = past.get(cls)
            if not line.granted and not line.contested and (before is None or not before.eligible):
                continue
            if not line.contested:
                line.start(self._terms.state(_POOL, self._pool, cls, before, clock), 0, clock, charges[cls])
                line.charge(line.granted_slots, line.last_width)
            elif line.granted < line.allowed:
                # Not all that was admitted was granted: charge from where it stood.
                line.start(line.state, 0, clock, charges[cls])
                line.charge(line.granted_slots, line.last_width, self._ceiling)
            state = line.state
            after = served(
                line,
                line.granted,
                line.granted_slots * charges[cls],
                now,
                eligible=line.contested
                and self._terms.by_tag
                and (
                    line.granted == line.allowed and self._is_owed_a_turn(line)
                    if cls is not _TASK
                    else self._tasks_are_owed_a_turn(line, state)
                ),
                bypassed=self._bypassed(line, state) if line.due or state.bypassed else 0,
            )
            if after is not before:
                changed[after.key] = after

    def _tasks_are_owed_a_turn(self, line: Line, state: FlowState) -> bool:
        """Whether tasks wait for their turn in this contested pool, and for nothing else."""
        answer = self._terms.snapshot.answer
        started = self._terms.started(line.service_class, self._pool)
        if answer is not None and started is not None and line.reason is not Reason.TOO_WIDE:
            if line.limit_left <= 0:
                return False
            if answer.kept_slots > 0:
                # A cap on one selection is not a block: where it kept tasks from being looked at, they keep their turn.
                return answer.waiting if started else state.eligible
            return bool(started) and line.startable < len(line.candidates) and self._is_owed_a_turn(line)
        return line.granted == line.allowed and self._is_owed_a_turn(line)

    def _is_owed_a_turn(self, line: Line) -> bool:
        """Whether a line waits in the pool for slots that it will get in its turn."""
        if line.reason is Reason.POOL_RESERVE:
            return widest(self._terms, line.service_class, self._pool) > 0
        return line.reason in _OWED_A_TURN

    def _bypassed(self, line: Line, state: FlowState) -> int:
        """Slots granted past its head, which is due and too wide."""
        already = 0 if line.granted else state.bypassed
        if not line.due or line.granted < line.allowed:
            return already if line.contested else 0
        others = sum(other.granted_slots for other in self.lines if other is not line)
        return already + min(line.passed, others)


def widest(terms: Terms, service_class: ServiceClass, pool: str) -> int:
    """The most pool slots that a class can ever hold at once."""
    slots = terms.snapshot.pools.get(pool)
    if slots is None or slots.total_slots is None:
        return UNLIMITED
    quotas = terms.entitlements.quotas(_POOL, pool)
    others = sum(quota.reserve_slots for cls, quota in quotas.items() if cls is not service_class)
    limit = quotas.get(service_class, NO_QUOTA).limit_slots
    return min(slots.total_slots - others, UNLIMITED if limit is None else limit)
