"""What the parts of one pass of the slot loop work on: the terms they share, and the backlogs as they shrink."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from callback_priority.core.accounting import flow_state, recent
from callback_priority.core.classes import CLASS_ORDER, FlowKey, Level, ServiceClass
from callback_priority.core.fair_queue import Flow
from callback_priority.core.flows import FlowState, make_state
from callback_priority.core.policies import Policy
from callback_priority.core.snapshot import Candidate, Entitlements, Reason, Snapshot

__all__ = ["UNLIMITED", "Line", "Terms", "ineligible", "served"]

UNLIMITED: Final = 1 << 62
"""More slots than there are."""

_NO_PAST: Final[Mapping[ServiceClass, FlowState]] = MappingProxyType({})
_ORDERS: Final[Mapping[ServiceClass, int]] = {cls: at for at, cls in enumerate(CLASS_ORDER)}
_TASKS_FIRST_ORDERS: Final[Mapping[ServiceClass, int]] = {**_ORDERS, ServiceClass.TASK: -1}
# Members by themselves: up to Python 3.11, finding one in its enumeration is a call.
_POOL: Final = Level.POOL
_SCHEDULER: Final = Level.SCHEDULER
_FAIR: Final = Policy.FAIR
_TASKS_FIRST: Final = Policy.TASKS_FIRST
_TASK: Final = ServiceClass.TASK


class Terms:
    """What all parts of one pass go by.

    Args:
        snapshot: What there is and who wants it.
        entitlements: Weights, quotas and policy.
        without: Candidates that an earlier attempt at this pass found their executor full for.
        caps: The most candidates that a backlog may be admitted in its pool, by class and pool, with what
            bound them: what the scheduler's quotas left of it in an earlier attempt.

    Attributes:
        past: Flows at the scheduler's slots that have a past.
        clock: Their clock.
        awaited: Flows that were eligible in a pool, by the pool.
    """

    __slots__ = (
        "_past_of",
        "awaited",
        "by_tag",
        "caps",
        "charges",
        "clock",
        "entitlements",
        "orders",
        "past",
        "snapshot",
        "without",
    )

    def __init__(
        self,
        snapshot: Snapshot,
        entitlements: Entitlements,
        without: frozenset[Hashable] = frozenset(),
        caps: Mapping[tuple[ServiceClass, str], tuple[int, Reason]] | None = None,
    ) -> None:
        self.snapshot = snapshot
        self.entitlements = entitlements
        self.without = without
        self.caps = caps or {}
        # The flows, sorted once, so that a scope finds its own without making and hashing a key for each.
        self.past: dict[ServiceClass, FlowState] = {}
        self.awaited: dict[str, list[FlowState]] = {}
        self._past_of: dict[str, dict[ServiceClass, FlowState]] = {}
        past_of = self._past_of
        for (level, scope, cls), state in snapshot.flows.items():
            if level is _SCHEDULER:
                self.past[cls] = state
                continue
            if scope in past_of:
                past_of[scope][cls] = state
            else:
                past_of[scope] = {cls: state}
            if state.eligible:
                self.awaited.setdefault(scope, []).append(state)
        self.clock = _clock(self.past)
        # What a grant is charged for one slot, at both levels: a hold has one charge, which is settled once.
        self.charges = {cls: state.estimate for cls, state in self.past.items()}
        if len(self.charges) < len(CLASS_ORDER):
            self.charges = dict.fromkeys(CLASS_ORDER, entitlements.initial_estimate) | self.charges
        policy = entitlements.policy
        self.by_tag = policy is _FAIR
        self.orders = _TASKS_FIRST_ORDERS if policy is _TASKS_FIRST else _ORDERS

    def past_of(self, pool: str) -> tuple[Mapping[ServiceClass, FlowState], int]:
        """A pool's flows that have a past, by class, and its clock."""
        states = self._past_of.get(pool, _NO_PAST)
        return states, _clock(states)

    def state(
        self, level: Level, scope: str, service_class: ServiceClass, before: FlowState | None, clock: int
    ) -> FlowState:
        """A flow under today's weight.

        Args:
            level: Where it competes.
            scope: The pool's name, or `SCHEDULER_SCOPE`.
            service_class: Who competes.
            before: Its past, if it has one.
            clock: The scope's virtual time.
        """
        if before is not None and before.weight == self.entitlements.weight(level, scope, service_class):
            return before
        key = FlowKey(level, scope, service_class)
        return flow_state(key, self.snapshot.flows, clock, self.entitlements)

    def started(self, service_class: ServiceClass, pool: str) -> Sequence[int] | None:
        """Widths of the task instances that Airflow started in a pool; ``None`` where it was not asked."""
        answer = self.snapshot.answer
        return answer.started.get(pool) if answer and service_class is _TASK else None


def _clock(past: Mapping[ServiceClass, FlowState]) -> int:
    """A scope's virtual time: the largest that any of its flows was served at."""
    clock = 0
    for state in past.values():
        if state.clock > clock:  # noqa: PLR1730 - a call less for each flow
            clock = state.clock
    return clock


class Line(Flow):
    """One backlog in the course of a pass, which is also the flow that competes in its pool once that is split.

    Attributes:
        candidates: Those that can be granted whatever the turn, in their order.
        startable: How many of them can be granted in this pass; all, but for task instances that Airflow was
            asked for and did not start: those can only be waited for, when they are too wide.
        cap: The most that the pool may admit, for `cap_reason`.
        allowed: How many the pool admits.
        position: The next candidate to look at.
        granted: How many have been granted, ``granted_slots`` wide together, the last ``last_width``.
        limit_left: Pool slots left below the class's limit.
        unmet: Pool slots left of the class's reserve.
        widest: The width of the widest of its candidates.
        reason: Why it gets no more.
        contested: Whether the pool was split by turns; only then has its flow been started.
        due: Whether its head is due and too wide for what is left.
        passed: Pool slots admitted to others since.
    """

    __slots__ = (
        "allowed",
        "candidates",
        "cap",
        "cap_reason",
        "contested",
        "due",
        "granted",
        "granted_slots",
        "last_width",
        "limit_left",
        "passed",
        "pool",
        "position",
        "reason",
        "service_class",
        "startable",
        "unmet",
        "widest",
    )

    def __init__(
        self,
        service_class: ServiceClass,
        pool: str,
        candidates: Sequence[Candidate],
        startable: int | None = None,
        widest: int = 1,
    ) -> None:
        self.service_class = service_class
        self.pool = pool
        self.candidates = candidates
        self.startable = len(candidates) if startable is None else startable
        self.widest = widest
        self.cap = self.limit_left = UNLIMITED
        self.allowed = self.position = self.granted = self.granted_slots = self.last_width = 0
        self.unmet = self.passed = 0
        self.contested = self.due = False
        self.cap_reason: Reason | None = None
        self.reason: Reason | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether it has a candidate that was not dealt with."""
        return self.position < len(self.candidates)


def served(
    flow: Flow, granted: int, charge: int, now: int, *, eligible: bool, bypassed: int = 0
) -> FlowState:
    """A flow after a pass; the very state it had if nothing has changed.

    Written out, since a pass makes thousands and `attrs.evolve` takes twice as long.

    Args:
        flow: The flow, served.
        granted: How many grants it got.
        charge: Slot-microseconds charged for them.
        now: Microseconds since the epoch.
        eligible: Whether it still has a head that fits.
        bypassed: Slots granted past its due head.
    """
    state = flow.state
    if (
        not granted
        and eligible == state.eligible
        and bypassed == state.bypassed
        and flow.tag == state.tag
        and flow.remainder == state.remainder
    ):
        return state
    recent_at = state.recent_at
    return make_state(
        state.key,
        state.weight,
        state.estimate,
        flow.tag,
        flow.remainder,
        flow.served_at,
        eligible,
        bypassed,
        state.service + charge,
        recent(state, charge, now) if charge else state.recent,
        now if charge and now > recent_at else recent_at,
        state.granted + granted,
    )


def ineligible(state: FlowState) -> FlowState:
    """A flow that has no head that fits any more, otherwise as it was. See `served`."""
    return make_state(
        state.key,
        state.weight,
        state.estimate,
        state.tag,
        state.remainder,
        state.clock,
        False,
        state.bypassed,
        state.service,
        state.recent,
        state.recent_at,
        state.granted,
    )
