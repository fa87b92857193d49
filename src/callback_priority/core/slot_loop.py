"""The slot loop: one pass that hands out free slots to task instances and callbacks.

There are two places of contention, each with its own fair queue (`callback_priority.core.fair_queue`):

1. Each *pool* that has fewer open slots than could be granted is split among the classes that want it. The
   split bounds what a class may be granted there. A pool that is no bottleneck bounds nothing: only quotas
   do, and turns in it are not counted for or against anyone.
2. The *scheduler's* free slots are then handed out one after another within those bounds, always to the
   eligible class with the smallest tag.

At both, a reserve is held empty for its class (others are granted only what stays above the unmet reserves)
and a limit caps what a class holds. What one class cannot use goes to the next in the same pass, so slots
stay empty only for a reserve, a drain, or for want of candidates that fit.

*Wide candidates.* A head that is due but needs more pool slots than are left is passed by others, but by at
most `Entitlements.wide_bypass_limit` pool slots; then the pool is drained for it (others get only their
reserves). Skipping without a bound starves it, blocking at once leaves slots empty.

*Task instances* are anonymous: Airflow selects them. A first pass says how many slots are theirs and in
which pools; Airflow's selection answers; `Snapshot.answer` takes the answer into a second pass, which
charges what was really started, hands what tasks could not use to the callbacks, and leaves empty what
tasks are due but could not take in one selection.

Complexity: a grant costs O(log pools + log classes). A pass costs that for each grant, plus O(1) for each
candidate it was given, of which there are at most the free slots plus one in each backlog.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from heapq import heapify, heappop, heapreplace
from typing import Final

import attrs

from callback_priority.core.accounting import clocks, flow_state, rebase, recent
from callback_priority.core.classes import CLASS_ORDER, SCHEDULER_SCOPE, FlowKey, Level, ServiceClass
from callback_priority.core.fair_queue import FairQueue, Flow
from callback_priority.core.flows import FlowState
from callback_priority.core.policies import Policy
from callback_priority.core.quotas import NO_QUOTA
from callback_priority.core.snapshot import (
    Backlog,
    Candidate,
    Decision,
    Entitlements,
    Grant,
    PoolSlots,
    Reason,
    Refusal,
    Snapshot,
    TaskAnswer,
)
from callback_priority.core.units import SlotMicros, VirtualTime

__all__ = ["decide"]

_UNLIMITED: Final = 1 << 62
_TASK: Final = ServiceClass.TASK


def decide(snapshot: Snapshot, entitlements: Entitlements) -> Decision:
    """Hand out the free slots of one pass.

    Args:
        snapshot: What there is and who wants it.
        entitlements: Weights, quotas and policy.

    Returns:
        The grants in their order, a reason for each refusal, and the flows that changed.
    """
    this_pass = _Pass(snapshot, entitlements)
    decision = this_pass.run()
    while decision.unused_slots > 0 and this_pass.passed_over:
        # An executor filled up half way: what its candidates were allowed in a contested pool goes back.
        this_pass = _Pass(snapshot, entitlements, without=this_pass.without | this_pass.passed_over)
        decision = this_pass.run()
    return decision


class _Line:
    """One backlog in the course of a pass.

    ``allowed`` is how many of its candidates the pool admits, ``reason`` why not more; ``passed`` counts the
    pool slots admitted to others since its due head was found too wide.
    """

    __slots__ = (
        "allowed",
        "candidates",
        "contested",
        "granted",
        "granted_slots",
        "last_width",
        "limit_left",
        "passed",
        "pool",
        "position",
        "reason",
        "service_class",
        "state",
        "unmet",
    )

    def __init__(self, service_class: ServiceClass, pool: str, candidates: Sequence[Candidate]) -> None:
        self.service_class = service_class
        self.pool = pool
        self.candidates = candidates
        self.allowed = 0
        self.position = 0
        self.granted = 0
        self.granted_slots = 0
        self.last_width = 0
        self.limit_left = _UNLIMITED
        self.unmet = 0
        self.reason: Reason | None = None
        self.contested = False
        self.passed: int | None = None
        self.state: FlowState | None = None


class _Party:
    """A class at the scheduler's slots: the heads of its lines, the smallest rank first."""

    __slots__ = ("heads", "limit_left", "lines", "reason", "unmet")

    def __init__(self, lines: list[_Line], limit_left: int, unmet: int) -> None:
        self.lines = lines
        self.heads = [(line.candidates[0].rank, place, line) for place, line in enumerate(lines)]
        heapify(self.heads)
        self.limit_left = limit_left
        self.unmet = unmet
        self.reason: Reason | None = None

    def advance(self, line: _Line) -> None:
        """Find the next head, now that the candidate of this line, the head, is dealt with."""
        if line.granted < line.allowed and line.position < len(line.candidates):
            if len(self.heads) > 1:
                rank = line.candidates[line.position].rank
                heapreplace(self.heads, (rank, self.heads[0][1], line))
        else:
            heappop(self.heads)


class _Pass:
    """One pass; see the module's docstring."""

    def __init__(
        self, snapshot: Snapshot, entitlements: Entitlements, without: frozenset[Hashable] = frozenset()
    ) -> None:
        self.snapshot = snapshot
        self.entitlements = entitlements
        self.without = without
        self.passed_over: frozenset[Hashable] = frozenset()
        self.answer = snapshot.answer
        self.free = snapshot.free_slots - (self.answer.kept_slots if self.answer else 0)
        self.clocks = clocks(snapshot.flows.values())
        self.by_tag = entitlements.policy is Policy.FAIR
        tasks_at = -1 if entitlements.policy is Policy.TASKS_FIRST else len(CLASS_ORDER)
        self.orders = {cls: tasks_at if cls is _TASK else at for at, cls in enumerate(CLASS_ORDER)}
        self.full_executors = {name for name, free in snapshot.executor_slots.items() if free <= 0}
        self.refusals: list[Refusal] = []
        self.grants: list[Grant] = []
        self.changed: dict[FlowKey, FlowState] = {}

    def run(self) -> Decision:
        lines = [self._line(backlog) for backlog in self.snapshot.backlogs if backlog.candidates]
        by_pool: dict[str, list[_Line]] = {}
        for line in lines:
            if line.candidates:
                by_pool.setdefault(line.pool, []).append(line)
        unused = max(0, self.free)
        task_slots: dict[str, int] = {}
        if self.free > 0:
            reserves = {pool: self._admit(pool, rivals) for pool, rivals in by_pool.items()}
            self._hand_out([line for rivals in by_pool.values() for line in rivals])
            unused -= len(self.grants)
            for pool, rivals in by_pool.items():
                task_slots[pool] = self._task_slots(pool, rivals, reserves[pool])
                self._close_pool(pool, rivals)
        self._refuse_heads(lines)
        flows = {**self.snapshot.flows, **self.changed}
        self.changed.update(rebase(flows))
        return Decision(
            grants=tuple(self.grants),
            task_slots=sum(1 for grant in self.grants if grant[0] is _TASK),
            task_pool_slots={pool: slots for pool, slots in task_slots.items() if slots > 0},
            refusals=tuple(self.refusals),
            flows=self.changed,
            unused_slots=unused,
        )

    # Who takes part ---------------------------------------------------------------------------------------

    def _line(self, backlog: Backlog) -> _Line:
        """The backlog without what cannot be granted whatever the turn: each of those is refused here."""
        cls, pool, candidates = backlog.service_class, backlog.pool, backlog.candidates
        if cls is _TASK and self.answer is not None and pool in self.answer.started:
            return _Line(cls, pool, [Candidate(width=width) for width in self.answer.started[pool]])
        if not self.full_executors and not self.without and cls is not _TASK:
            return _Line(cls, pool, candidates)
        kept = []
        widest = self._widest(cls, pool)
        for candidate in candidates:
            if candidate.executor in self.full_executors or candidate.id in self.without:
                self._refuse(cls, pool, candidate, Reason.EXECUTOR_FULL)
            elif candidate.width > max(1, widest):
                self._refuse(cls, pool, candidate, Reason.NEVER_FITS)
            else:
                kept.append(candidate)
        return _Line(cls, pool, kept)

    def _widest(self, service_class: ServiceClass, pool: str) -> int:
        """The most pool slots that the class can ever hold at once."""
        slots = self.snapshot.pools.get(pool)
        if slots is None or slots.total_slots is None:
            return _UNLIMITED
        quotas = {cls: self.entitlements.quota(Level.POOL, pool, cls) for cls in CLASS_ORDER}
        others = sum(quota.reserve_slots for cls, quota in quotas.items() if cls is not service_class)
        limit = quotas[service_class].limit_slots
        return min(slots.total_slots - others, _UNLIMITED if limit is None else limit)

    # The pools --------------------------------------------------------------------------------------------

    def _admit(self, pool: str, lines: list[_Line]) -> dict[ServiceClass, int]:
        """Bound what each class may be granted in a pool; returns the unmet reserves by class."""
        slots = self.snapshot.pools.get(pool)
        if slots is None:
            for line in lines:
                line.reason = Reason.POOL_MISSING
            return {}
        unmet: dict[ServiceClass, int] = {}
        limits: dict[ServiceClass, int] = {}
        for cls in CLASS_ORDER:
            quota = self.entitlements.quota(Level.POOL, pool, cls)
            if quota is NO_QUOTA:
                continue
            held = slots.held.get(cls, 0)
            if quota.reserve_slots > held:
                unmet[cls] = quota.reserve_slots - held
            if quota.limit_slots is not None:
                limits[cls] = quota.limit_slots - held
        if self.answer is not None and (started := self.answer.started.get(pool)):
            unmet[_TASK] = max(unmet.get(_TASK, 0), sum(started))
        widest = 1
        for line in lines:
            line.unmet = unmet.get(line.service_class, 0)
            line.limit_left = limits.get(line.service_class, _UNLIMITED)
            if line.service_class is _TASK:
                widest = max(candidate.width for candidate in line.candidates)
        open_slots = _UNLIMITED if slots.open_slots is None else slots.open_slots
        if open_slots <= 0:
            for line in lines:
                line.reason = Reason.POOL_FULL
        elif open_slots - sum(unmet.values()) >= self.free * widest:
            self._admit_within_limits(lines)
        else:
            self._split(pool, open_slots, lines, sum(unmet.values()))
        return unmet

    @staticmethod
    def _admit_within_limits(lines: list[_Line]) -> None:
        """Admit everything but what exceeds a limit: the pool has room for whatever is granted."""
        for line in lines:
            left = line.limit_left
            if line.service_class is not _TASK:
                line.allowed = max(0, min(left, len(line.candidates)))
                line.reason = Reason.POOL_LIMIT if line.allowed < len(line.candidates) else None
                continue
            for candidate in line.candidates:
                left -= candidate.width
                if left < 0:
                    line.reason = Reason.POOL_LIMIT
                    break
                line.allowed += 1

    def _split(self, pool: str, open_slots: int, lines: list[_Line], reserved: int) -> None:
        """Split a contested pool by turns: the pool's own fair queue, run dry."""
        clock = self.clocks.get((Level.POOL, pool), 0)
        flows = []
        for line in lines:
            key = FlowKey(Level.POOL, pool, line.service_class)
            line.contested = True
            line.state = flow_state(key, self.snapshot.flows, clock, self.entitlements)
            flows.append(Flow(line.state, self.orders[line.service_class], clock, line))
        queue = FairQueue(flows, clock, by_tag=self.by_tag)
        bypass_limit = self.entitlements.wide_bypass_limit
        draining = False
        passed: list[_Line] = []
        while queue:
            line = queue.head().payload
            if line.allowed == len(line.candidates):
                queue.drop()
                continue
            width = line.candidates[line.allowed].width
            room = open_slots - reserved + line.unmet
            if draining and not line.unmet:
                line.reason = Reason.DRAINING
            elif width > line.limit_left:
                line.reason = Reason.POOL_LIMIT
            elif open_slots <= 0:
                line.reason = Reason.POOL_FULL
            elif room <= 0:
                line.reason = Reason.POOL_RESERVE
            elif width > room:
                line.reason = Reason.TOO_WIDE
                line.passed = 0
                draining = draining or line.state.bypassed >= bypass_limit  # type: ignore[union-attr]
                passed.append(line)
            else:
                open_slots -= width
                line.limit_left -= width
                line.allowed += 1
                if line.unmet:
                    met = min(width, line.unmet)
                    line.unmet -= met
                    reserved -= met
                queue.grant(width)
                for waiting in passed:
                    waiting.passed += width
                    if waiting.state.bypassed + waiting.passed >= bypass_limit:  # type: ignore[union-attr,operator]
                        draining = True
                continue
            queue.drop()

    # The scheduler's slots --------------------------------------------------------------------------------

    def _hand_out(self, lines: list[_Line]) -> None:
        """Hand out the scheduler's free slots, one after another, within what the pools admit."""
        unmet: dict[ServiceClass, int] = {}
        limits: dict[ServiceClass, int] = {}
        for cls in CLASS_ORDER:
            quota = self.entitlements.quota(Level.SCHEDULER, SCHEDULER_SCOPE, cls)
            held = self.snapshot.held.get(cls, 0)
            unmet[cls] = max(0, quota.reserve_slots - held)
            limits[cls] = _UNLIMITED if quota.limit_slots is None else quota.limit_slots - held
        if self.answer is not None:
            started = sum(len(widths) for widths in self.answer.started.values())
            unmet[_TASK] = max(unmet[_TASK], started)
        reserved = sum(unmet.values())
        clock = self.clocks.get((Level.SCHEDULER, SCHEDULER_SCOPE), 0)
        admitted: dict[ServiceClass, list[_Line]] = {}
        blocked: dict[ServiceClass, list[_Line]] = {}
        for line in lines:
            (admitted if line.allowed else blocked).setdefault(line.service_class, []).append(line)
        flows = []
        for cls, its_lines in admitted.items():
            party = _Party(its_lines, limits[cls], unmet[cls])
            if party.limit_left <= 0:
                party.reason = Reason.SLOT_LIMIT
            elif self.free - reserved + party.unmet <= 0:
                party.reason = Reason.SLOT_RESERVE
            key = FlowKey(Level.SCHEDULER, SCHEDULER_SCOPE, cls)
            state = flow_state(key, self.snapshot.flows, clock, self.entitlements)
            if party.reason is None:
                flows.append(Flow(state, self.orders[cls], clock, party))
            else:
                self._set_ineligible(state)
                self._mark(party)
        for cls in blocked.keys() - admitted.keys():
            key = FlowKey(Level.SCHEDULER, SCHEDULER_SCOPE, cls)
            if key in self.snapshot.flows and not (cls is _TASK and self._tasks_wait):
                self._set_ineligible(self.snapshot.flows[key])
        queue = FairQueue(flows, clock, by_tag=self.by_tag)
        self._serve(queue, reserved)
        for flow in flows:
            self._close_scheduler_flow(flow)

    @property
    def _tasks_wait(self) -> bool:
        return self.answer is not None and self.answer.waiting

    def _serve(self, queue: FairQueue[_Party], reserved: int) -> None:
        executors = dict(self.snapshot.executor_slots)
        free, grants = self.free, self.grants
        full: set[Hashable] = set()
        while free > 0 and queue:
            party = queue.head().payload
            if not party.heads:
                queue.drop()
                continue
            if free - reserved + party.unmet <= 0 or party.limit_left <= 0:
                party.reason = Reason.SLOT_LIMIT if party.limit_left <= 0 else Reason.SLOT_RESERVE
                self._mark(party)
                queue.drop()
                continue
            line = party.heads[0][2]
            candidate = line.candidates[line.position]
            line.position += 1
            executor = candidate.executor
            if executor is not None and executor in executors:
                if executors[executor] <= 0:
                    full.add(candidate.id)
                    self._refuse(line.service_class, line.pool, candidate, Reason.EXECUTOR_FULL)
                    party.advance(line)
                    continue
                executors[executor] -= 1
            grants.append(Grant(line.service_class, line.pool, candidate))
            line.granted += 1
            line.granted_slots += candidate.width
            line.last_width = candidate.width
            free -= 1
            party.limit_left -= 1
            if party.unmet:
                party.unmet -= 1
                reserved -= 1
            queue.grant()
            party.advance(line)
        self.passed_over = frozenset(full)

    # Afterwards -------------------------------------------------------------------------------------------

    def _close_scheduler_flow(self, flow: Flow[_Party]) -> None:
        party = flow.payload
        granted = sum(line.granted for line in party.lines)
        waits = bool(party.heads) and party.reason is None
        if party.lines[0].service_class is _TASK and self.answer is not None:
            waits = self.answer.waiting
        charge = granted * flow.state.estimate
        if not granted and waits == flow.state.eligible and flow.tag == flow.state.tag:
            return
        changed = attrs.evolve(
            flow.state,
            tag=VirtualTime(flow.tag),
            remainder=flow.remainder,
            clock=VirtualTime(flow.served_at),
            eligible=waits,
            granted=flow.state.granted + granted,
            service=SlotMicros(flow.state.service + charge),
            recent=recent(flow.state, charge, self.snapshot.now),
            recent_at=max(flow.state.recent_at, self.snapshot.now),
        )
        self._change(flow.state, changed)

    def _close_pool(self, pool: str, lines: list[_Line]) -> None:
        """Charge the pool's flows for what was granted, all at once: the arithmetic is exact."""
        clock = self.clocks.get((Level.POOL, pool), 0)
        for line in lines:
            key = FlowKey(Level.POOL, pool, line.service_class)
            if not line.granted and not line.contested and key not in self.snapshot.flows:
                continue
            state = line.state or flow_state(key, self.snapshot.flows, clock, self.entitlements)
            eligible = self._waits_in_pool(line)
            if line.granted:
                flow = Flow(state, 0, clock, None)
                charge = line.granted_slots * state.estimate
                last = line.last_width * state.estimate
                flow.advance(charge - last)
                served_at = max(clock, flow.tag)
                flow.advance(last)
                state = attrs.evolve(
                    state,
                    tag=VirtualTime(flow.tag),
                    remainder=flow.remainder,
                    clock=VirtualTime(served_at),
                    eligible=eligible,
                    bypassed=0,
                    granted=state.granted + line.granted,
                    service=SlotMicros(state.service + charge),
                    recent=recent(state, charge, self.snapshot.now),
                    recent_at=max(state.recent_at, self.snapshot.now),
                )
            else:
                bypassed = self._bypassed(line, lines)
                if eligible != state.eligible or bypassed != state.bypassed:
                    state = attrs.evolve(state, eligible=eligible, bypassed=bypassed)
            self._change(self.snapshot.flows.get(key), state)

    def _waits_in_pool(self, line: _Line) -> bool:
        """Whether the class is still due a turn in a pool that is a bottleneck."""
        if not line.contested or line.reason is Reason.POOL_LIMIT:
            return False
        if line.reason is Reason.POOL_RESERVE and not line.allowed:
            return False
        if line.service_class is _TASK and self.answer is not None and line.pool in self.answer.started:
            return self.answer.waiting
        return line.granted < len(line.candidates)

    def _bypassed(self, line: _Line, lines: list[_Line]) -> int:
        if line.passed is None:
            return 0
        granted_to_others = sum(other.granted_slots for other in lines if other is not line)
        return line.state.bypassed + min(line.passed, granted_to_others)  # type: ignore[union-attr]

    def _task_slots(self, pool: str, lines: list[_Line], unmet: Mapping[ServiceClass, int]) -> int:
        """The pool slots that task instances may use."""
        line = next((line for line in lines if line.service_class is _TASK), None)
        if line is None or not line.allowed:
            return 0
        if line.contested:
            return sum(candidate.width for candidate in line.candidates[: line.allowed])
        slots = self.snapshot.pools[pool]
        if slots.open_slots is None:
            return line.limit_left
        granted = {other.service_class: other.granted_slots for other in lines if other is not line}
        taken = sum(granted.values())
        held_back = sum(
            max(0, reserve - granted.get(cls, 0)) for cls, reserve in unmet.items() if cls is not _TASK
        )
        return min(slots.open_slots - taken - held_back, line.limit_left)

    def _set_ineligible(self, state: FlowState) -> None:
        if state.eligible:
            self.changed[state.key] = attrs.evolve(state, eligible=False)

    def _change(self, before: FlowState | None, after: FlowState) -> None:
        if after != before:
            self.changed[after.key] = after

    # Reasons ----------------------------------------------------------------------------------------------

    @staticmethod
    def _mark(party: _Party) -> None:
        for line in party.lines:
            if line.position < len(line.candidates):
                line.reason = party.reason

    def _refuse_heads(self, lines: list[_Line]) -> None:
        """Give the head of each backlog that has a candidate left its one reason."""
        for line in lines:
            if line.position < len(line.candidates) and not (line.service_class is _TASK and self.answer):
                reason = line.reason
                if reason is None or line.granted < line.allowed and reason.value.startswith("pool"):
                    reason = Reason.NO_FREE_SLOT
                self._refuse(line.service_class, line.pool, line.candidates[line.position], reason)

    def _refuse(self, cls: ServiceClass, pool: str, candidate: Candidate, reason: Reason) -> None:
        self.refusals.append(Refusal(service_class=cls, pool=pool, candidate=candidate, reason=reason))
