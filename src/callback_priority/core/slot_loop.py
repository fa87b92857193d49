"""The slot loop: one pass that hands out free slots to task instances and callbacks.

There are two places of contention, each with its own fair queue (`callback_priority.core.fair_queue`):

1. Each *pool* that has fewer open slots than could be granted is split among the classes that want it. The
   split bounds what a class may be granted there (`callback_priority.core.pools`).
2. The *scheduler's* free slots are then handed out one after another within those bounds, always to the
   eligible class with the smallest tag.

At both, a reserve is held empty for its class (others are granted only what stays above the unmet reserves)
and a limit caps what a class holds. What one class cannot use goes to the next in the same pass, so slots
stay empty only for a reserve, a drain, or for want of candidates that fit. Where the second level leaves of a
pool's split what others would have taken (an executor filled up half way, a class met its limit), the pass is
made again without that.

*Task instances* are anonymous: Airflow selects them. A first pass says how many slots are theirs and in
which pools; Airflow's selection answers; `Snapshot.answer` takes the answer into a second pass (promised by
`Snapshot.asks`, so that the first need not tell what it would have changed and refused), which
charges what was really started, hands what tasks could not use to the callbacks, and leaves empty what
tasks are due but could not take in one selection.

Complexity: a grant costs O(log pools + log classes). A pass costs that for each grant, plus O(1) for each
flow and each candidate it was given; of candidates there are at most the free slots plus one in each backlog.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from heapq import heapify, heappop, heapreplace
from operator import attrgetter
from typing import Final

from callback_priority.core.accounting import flow_state, keep_in_range
from callback_priority.core.classes import (
    SCHEDULER_FLOWS,
    SCHEDULER_SCOPE,
    FlowKey,
    Level,
    ServiceClass,
)
from callback_priority.core.fair_queue import FairQueue, Flow
from callback_priority.core.flows import FlowState
from callback_priority.core.lines import UNLIMITED, Line, Terms, ineligible, served
from callback_priority.core.policies import Policy
from callback_priority.core.pools import PoolPass, widest
from callback_priority.core.snapshot import (
    Backlog,
    Candidate,
    Decision,
    Entitlements,
    Grant,
    Reason,
    Refusal,
    Snapshot,
    TaskAnswer,
)

__all__ = ["decide"]

_TASK: Final = ServiceClass.TASK
_POOL: Final = Level.POOL
_SCHEDULER: Final = Level.SCHEDULER
# A named tuple, made in a third of the time: a pass makes thousands.
_make: Final = tuple.__new__
_POOLS_REASONS: Final = frozenset(
    {Reason.POOL_FULL, Reason.POOL_RESERVE, Reason.POOL_LIMIT, Reason.TOO_WIDE, Reason.DRAINING}
)
_SLOT_RESERVE: Final = Reason.SLOT_RESERVE
_SCHEDULER_QUOTAS: Final = frozenset({Reason.SLOT_LIMIT, _SLOT_RESERVE})


def decide(snapshot: Snapshot, entitlements: Entitlements) -> Decision:
    """Hand out the free slots of one pass.

    Args:
        snapshot: What there is and who wants it.
        entitlements: Weights, quotas and policy.

    Returns:
        The grants in their order, a reason for each refusal, and the flows that changed.

    >>> from callback_priority.core.snapshot import PoolSlots
    >>> from callback_priority.policy.settings import Settings
    >>> snapshot = Snapshot(
    ...     now=0,
    ...     free_slots=3,
    ...     pools={"default_pool": PoolSlots(open_slots=128)},
    ...     backlogs=[
    ...         Backlog(service_class=cls, pool="default_pool", candidates=[Candidate(), Candidate()])
    ...         for cls in (ServiceClass.TASK, ServiceClass.DEADLINE)
    ...     ],
    ... )
    >>> decision = decide(snapshot, Settings())
    >>> [str(grant.service_class) for grant in decision.grants]
    ['deadline', 'task', 'deadline']
    >>> [f"{refusal.service_class}: {refusal.reason}" for refusal in decision.refusals]
    ['task: no_free_slot']
    """
    sole = _of_one_backlog(snapshot, entitlements)
    if sole is not None:
        return sole
    terms = Terms(snapshot, entitlements)
    while True:
        this_pass = _Pass(terms)
        decision = this_pass.run()
        again = this_pass.terms_without_unused() if decision.unused_slots > 0 else None
        if again is None:
            return decision
        terms = again


def _of_one_backlog(snapshot: Snapshot, entitlements: Entitlements) -> Decision | None:
    """The decision where only one backlog of callbacks waits, and nothing but the free slots bounds it.

    Such a pass has no turns to find, and with alerts that come one by one most passes are such. The decision is
    what `_Pass` comes to, at a third of its cost; ``None`` wherever there may be more to a pass than this.
    """
    if len(snapshot.backlogs) != 1 or snapshot.answer is not None or snapshot.executor_slots:
        return None
    backlog, free = snapshot.backlogs[0], snapshot.free_slots
    cls, pool, candidates = backlog.service_class, backlog.pool, backlog.candidates
    slots = snapshot.pools.get(pool)
    if slots is None or cls is _TASK or not candidates or free <= 0:
        return None
    if slots.open_slots is not None and slots.open_slots < free:
        return None
    if entitlements.quotas(_SCHEDULER, SCHEDULER_SCOPE) or entitlements.quotas(_POOL, pool):
        return None
    flows = snapshot.flows
    state: FlowState | None = None
    pool_state: FlowState | None = None
    clock = pool_clock = 0
    for (level, scope, other), past in flows.items():
        if past.eligible and (other is not cls or level is _POOL):
            return None  # One that was eligible and waits no more.
        if level is _SCHEDULER:
            if other is cls:
                state = past
            if past.clock > clock:  # noqa: PLR1730 - a call less for each flow
                clock = past.clock
        elif scope == pool:
            if other is cls:
                pool_state = past
            if past.clock > pool_clock:  # noqa: PLR1730
                pool_clock = past.clock
    if state is None or state.weight != entitlements.weight(_SCHEDULER, SCHEDULER_SCOPE, cls):
        state = flow_state(SCHEDULER_FLOWS[cls], flows, clock, entitlements)
    if pool_state is None or pool_state.weight != entitlements.weight(_POOL, pool, cls):
        pool_state = flow_state(FlowKey(_POOL, pool, cls), flows, pool_clock, entitlements)
    granted = min(free, len(candidates))
    waits = granted < len(candidates)
    owed = waits and entitlements.policy is Policy.FAIR
    charge = state.estimate
    flow = Flow()
    flow.start(state, 0, clock, charge)
    flow.charge(granted, 1)
    changed = {state.key: served(flow, granted, granted * charge, snapshot.now, eligible=owed)}
    flow.start(pool_state, 0, pool_clock, charge)
    flow.charge(granted, 1)
    changed[pool_state.key] = served(flow, granted, granted * charge, snapshot.now, eligible=False)
    return Decision(
        grants=tuple([Grant(cls, pool, candidate) for candidate in candidates[:granted]]),
        task_slots=0,
        task_pool_slots={},
        refusals=(Refusal(cls, pool, candidates[granted], Reason.NO_FREE_SLOT),) if waits else (),
        flows=keep_in_range(flows, changed),
        unused_slots=free - granted,
    )


class _Party(Flow):
    """A class at the scheduler's slots: the heads of its lines, the smallest rank first, ties by the pools' names."""

    __slots__ = ("by_name", "heads", "limit_left", "lines", "reason", "service_class", "unmet")

    def __init__(
        self, service_class: ServiceClass, lines: Sequence[Line], limit_left: int, unmet: int
    ) -> None:
        self.service_class = service_class
        self.lines = lines
        self.by_name = sorted(lines, key=attrgetter("pool")) if len(lines) > 1 else lines
        # Rank and place in one number, rank * lines + place, since numbers are compared faster than pairs.
        self.heads = [line.candidates[0].rank * len(lines) + at for at, line in enumerate(self.by_name)]
        heapify(self.heads)
        self.limit_left = limit_left
        self.unmet = unmet
        self.reason: Reason | None = None

    def advance(self, line: Line) -> None:
        """Find the next head, now that the candidate of this line, the head, is dealt with."""
        heads, position = self.heads, line.position
        if line.granted >= line.allowed or position >= line.startable:
            heappop(heads)
            return
        candidate = line.candidates[position]
        if position >= line.allowed and candidate.width > 1:
            # The pool did not count it, and it takes more than the one it would take the place of.
            heappop(heads)
        elif len(heads) > 1:
            lines = len(self.lines)
            heapreplace(heads, candidate.rank * lines + heads[0] % lines)

    def stop(self, reason: Reason) -> None:
        """A quota of the scheduler keeps all its lines from more."""
        self.reason = reason
        for line in self.lines:
            if line.is_waiting:
                line.reason = reason


class _Pass:
    """One pass; see the module's docstring."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.snapshot = terms.snapshot
        self.answer = terms.snapshot.answer
        self.free = self.snapshot.free_slots - (self.answer.kept_slots if self.answer else 0)
        self.full_executors = {name for name, free in self.snapshot.executor_slots.items() if free <= 0}
        self.unrestricted = not self.full_executors and not terms.without
        self.passed_over: set[Hashable] = set()
        self.lines: list[Line] = []
        self.pools: dict[str, PoolPass] = {}
        self.refusals: list[Refusal] = []
        self.grants: list[Grant] = []
        self.changed: dict[FlowKey, FlowState] = {}
        self.parties: list[_Party] = []
        self.tasks_wait = False

    def run(self) -> Decision:
        self.lines = [self._line(backlog) for backlog in self.snapshot.backlogs if backlog.candidates]
        pool_slots: dict[str, int] = {}
        if self.free > 0:
            self._admit()
            self._hand_out()
            for line in self.lines:
                if line.allowed and line.service_class is _TASK:
                    slots = self.pools[line.pool].task_slots(line)
                    if slots > 0:
                        pool_slots[line.pool] = slots
        task_slots = sum([line.granted for line in self.lines if line.service_class is _TASK])
        if task_slots and self.answer is None and self.snapshot.asks:
            # The pass to come tells all the rest.
            self.refusals.clear()
        else:
            if self.free > 0:
                self._close()
            self._refuse_heads()
        return Decision(
            grants=tuple(self.grants),
            task_slots=task_slots,
            task_pool_slots=pool_slots,
            refusals=tuple(self.refusals),
            flows=keep_in_range(self.snapshot.flows, self.changed),
            unused_slots=max(0, self.free) - len(self.grants),
        )

    def terms_without_unused(self) -> Terms | None:
        """The terms of another attempt: others get what this one admitted in vain; ``None`` if nothing."""
        caps = dict(self.terms.caps)
        for pool in self.pools.values():
            for line in pool.unused():
                if line.reason in _SCHEDULER_QUOTAS:
                    caps[line.service_class, line.pool] = (line.granted, line.reason)
        if not self.passed_over and caps == self.terms.caps:
            return None
        without = self.terms.without | self.passed_over
        return Terms(self.snapshot, self.terms.entitlements, without, caps)

    # Who takes part ---------------------------------------------------------------------------------------

    def _line(self, backlog: Backlog) -> Line:
        """The backlog without what cannot be granted whatever the turn: each of those is refused here."""
        cls, pool, candidates = backlog.service_class, backlog.pool, backlog.candidates
        if cls is not _TASK:
            if not self.unrestricted:
                candidates = [candidate for candidate in candidates if self._has_executor(backlog, candidate)]
            line = Line(cls, pool, candidates)
        elif self.answer is None:
            fit, width = self._that_can_fit(backlog, candidates)
            line = Line(cls, pool, fit, widest=width)
        else:
            widths = self.answer.started.get(pool, ())
            rest, width = self._that_can_fit(backlog, candidates[len(widths) :])
            line = Line(
                cls,
                pool,
                [*[Candidate(width=width) for width in widths], *rest],
                startable=len(widths),
                widest=max([width, *widths]),
            )
        if self.terms.caps and (cap := self.terms.caps.get((cls, pool))):
            line.cap, line.cap_reason = cap
        return line

    def _has_executor(self, backlog: Backlog, candidate: Candidate) -> bool:
        if candidate.executor not in self.full_executors and candidate.id not in self.terms.without:
            return True
        self._refuse(backlog.service_class, backlog.pool, candidate, Reason.EXECUTOR_FULL)
        return False

    def _that_can_fit(
        self, backlog: Backlog, candidates: Sequence[Candidate]
    ) -> tuple[Sequence[Candidate], int]:
        """Those that their class could ever have room for, and the width of the widest of them."""
        most = 1
        if backlog.widest > 1:
            most = max(1, widest(self.terms, backlog.service_class, backlog.pool))
        elif self.unrestricted:
            return candidates, 1
        kept = []
        for candidate in candidates:
            if candidate.width > most:
                self._refuse(backlog.service_class, backlog.pool, candidate, Reason.NEVER_FITS)
            elif candidate.id is None or self._has_executor(backlog, candidate):
                kept.append(candidate)
        return kept, max([candidate.width for candidate in kept], default=1)

    def _admit(self) -> None:
        by_pool: dict[str, list[Line]] = {}
        for line in self.lines:
            if line.candidates:
                if line.pool in by_pool:
                    by_pool[line.pool].append(line)
                else:
                    by_pool[line.pool] = [line]
        for name, lines in by_pool.items():
            self.pools[name] = pool = PoolPass(name, lines, self.terms)
            pool.admit(self.free)

    # The scheduler's slots --------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        """Hand out the scheduler's free slots, one after another, within what the pools admit."""
        terms = self.terms
        unmet: dict[ServiceClass, int] = {}
        limits: dict[ServiceClass, int] = {}
        reserves: dict[ServiceClass, int] = {}
        for cls, quota in terms.entitlements.quotas(_SCHEDULER, SCHEDULER_SCOPE).items():
            held = self.snapshot.held.get(cls, 0)
            reserves[cls] = quota.reserve_slots
            unmet[cls] = max(0, quota.reserve_slots - held)
            if quota.limit_slots is not None:
                limits[cls] = quota.limit_slots - held
        if self.answer is not None:
            started = sum([len(widths) for widths in self.answer.started.values()])
            # The slots that are kept for tasks are of their reserve, too.
            unmet[_TASK] = max(unmet.get(_TASK, 0) - self.answer.kept_slots, started)
        reserved = sum(unmet.values())
        promised = sum(reserves.values())
        total = self.snapshot.free_slots + sum(self.snapshot.held.values())
        past, clock = terms.past, terms.clock
        # Those of which an earlier attempt has found that reserves stop them have a turn, though no pool admits them now.
        stopped = [cls for (cls, _), (_, reason) in terms.caps.items() if reason is _SLOT_RESERVE]
        admitted: dict[ServiceClass, list[Line]] = {}
        for line in self.lines:
            if line.allowed:
                cls = line.service_class
                if cls in admitted:
                    admitted[cls].append(line)
                else:
                    admitted[cls] = [line]
        for cls in stopped:
            admitted.setdefault(cls, [])
        parties = self.parties
        for cls, its_lines in admitted.items():
            party = _Party(cls, its_lines, limits.get(cls, UNLIMITED), unmet.get(cls, 0))
            if party.limit_left <= 0:
                party.stop(Reason.SLOT_LIMIT)
            elif promised - reserves.get(cls, 0) >= total:
                # Nothing is ever left for it: it waits for no turn, and the clock does not wait for it.
                party.stop(_SLOT_RESERVE)
            else:
                state = terms.state(_SCHEDULER, SCHEDULER_SCOPE, cls, past.get(cls), clock)
                party.start(state, terms.orders[cls], clock, terms.charges[cls])
                parties.append(party)
        self.tasks_wait = self.answer is not None and self._tasks_wait(self.answer)
        self._serve(FairQueue(parties, clock, by_tag=terms.by_tag), reserved, stopped)

    def _tasks_wait(self, answer: TaskAnswer) -> bool:
        """Whether, after Airflow's answer, more task instances wait for the scheduler's slots, and for nothing else."""
        if answer.kept_slots > 0 or not answer.waiting:
            return answer.waiting
        # Where it was asked and has started nothing, nothing can run.
        return any(
            line.startable < len(line.candidates) and (line.startable or line.pool not in answer.started)
            for line in self.lines
            if line.service_class is _TASK and line.reason is None
        )

    def _serve(self, queue: FairQueue[_Party], reserved: int, stopped: Sequence[ServiceClass]) -> None:
        executors = dict(self.snapshot.executor_slots)
        free, append = self.free, self.grants.append
        while free > 0 and queue:
            party = queue.head()
            is_left_nothing = free - reserved + party.unmet <= 0
            if not party.heads:
                # Of tasks, all that Airflow was offered slots for have started; the others wait as everyone does.
                waits = is_left_nothing and self.tasks_wait and party.service_class is _TASK
                if (waits or party.service_class in stopped) and party.limit_left > 0:
                    party.reason = _SLOT_RESERVE
                    queue.hold_back()
                else:
                    queue.drop()
                continue
            if party.limit_left <= 0:
                party.stop(Reason.SLOT_LIMIT)
                queue.drop()
                continue
            if is_left_nothing:
                party.stop(_SLOT_RESERVE)
                queue.hold_back()
                continue
            line = party.by_name[party.heads[0] % len(party.lines)]
            candidate = line.candidates[line.position]
            line.position += 1
            executor = candidate.executor
            if executor is not None and executor in executors:
                if executors[executor] <= 0:
                    self.passed_over.add(candidate.id)
                    self._refuse(line.service_class, line.pool, candidate, Reason.EXECUTOR_FULL)
                    party.advance(line)
                    continue
                executors[executor] -= 1
            append(_make(Grant, (line.service_class, line.pool, candidate)))
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

    # Afterwards -------------------------------------------------------------------------------------------

    def _close(self) -> None:
        """Charge every flow for what was granted, and note who waits for its turn."""
        terms = self.terms
        for party in self.parties:
            if party.service_class is _TASK and self.answer is not None:
                waits = self.tasks_wait and party.limit_left > 0
            else:
                waits = party.reason is _SLOT_RESERVE or (party.reason is None and bool(party.heads))
            self._charge(party, eligible=waits and terms.by_tag)
        waiting = [party.service_class for party in self.parties]
        if self.tasks_wait:
            waiting.append(_TASK)
        for cls, state in terms.past.items():
            if state.eligible and cls not in waiting:
                self._set_ineligible(state.key)
        for pool in self.pools.values():
            pool.close(self.changed)
        self._forget_who_left()

    def _charge(self, party: _Party, *, eligible: bool) -> None:
        state = party.state
        granted = sum([line.granted for line in party.lines])
        charge = granted * self.terms.charges[party.service_class]
        after = served(party, granted, charge, self.snapshot.now, eligible=eligible)
        if after is not self.snapshot.flows.get(state.key):
            self.changed[state.key] = after

    def _set_ineligible(self, key: FlowKey) -> None:
        state = self.changed.get(key) or self.snapshot.flows.get(key)
        if state is None or not state.eligible:
            return
        self.changed[key] = ineligible(state)

    def _forget_who_left(self) -> None:
        """A flow of a pool with open slots that nobody waits for any more is not eligible any more."""
        for name, awaited in self.terms.awaited.items():
            left = [state.key for state in awaited]
            if name in self.pools:
                waiting = [line.service_class for line in self.pools[name].lines]
                left = [key for key in left if key.service_class not in waiting]
            if left:
                slots = self.snapshot.pools.get(name)
                if slots is None or slots.open_slots is None or slots.open_slots > 0:
                    for key in left:
                        self._set_ineligible(key)

    # Reasons ----------------------------------------------------------------------------------------------

    def _refuse_heads(self) -> None:
        """Give the head of each backlog that has a candidate left its one reason."""
        append, answered, no_free_slot = self.refusals.append, self.answer is not None, Reason.NO_FREE_SLOT
        for line in self.lines:
            candidates, position, reason = line.candidates, line.position, line.reason
            if position < len(candidates) and not (answered and line.service_class is _TASK):
                if reason is None or (line.granted < line.allowed and reason in _POOLS_REASONS):
                    # The pool would have let this one in, and named what stopped those behind it.
                    reason = no_free_slot
                append(_make(Refusal, (line.service_class, line.pool, candidates[position], reason)))

    def _refuse(self, cls: ServiceClass, pool: str, candidate: Candidate, reason: Reason) -> None:
        self.refusals.append(Refusal(cls, pool, candidate, reason))
