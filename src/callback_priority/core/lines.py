"""What the parts of one pass of the slot loop work on: the terms they share, and the backlogs as they shrink."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Final

from callback_priority.core.accounting import clocks, flow_state, recent
from callback_priority.core.classes import CLASS_ORDER, SCHEDULER_SCOPE, FlowKey, Level, ServiceClass
from callback_priority.core.flows import FlowState
from callback_priority.core.policies import Policy
from callback_priority.core.snapshot import Candidate, Entitlements, Reason, Snapshot
from callback_priority.core.units import SlotMicros, VirtualTime

__all__ = ["UNLIMITED", "Line", "Terms", "served"]

UNLIMITED: Final = 1 << 62
"""More slots than there are."""


class Terms:
    """What all parts of one pass go by.

    Args:
        snapshot: What there is and who wants it.
        entitlements: Weights, quotas and policy.
        without: Candidates that an earlier attempt at this pass found their executor full for.
        caps: The most candidates that a backlog may be admitted in its pool, by class and pool, with what
            bound them: what the scheduler's quotas left of it in an earlier attempt.
    """

    __slots__ = ("by_tag", "caps", "charges", "clocks", "entitlements", "orders", "snapshot", "without")

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
        self.clocks = clocks(snapshot.flows.values())
        self.charges = {cls: self._charge(cls) for cls in CLASS_ORDER}
        self.by_tag = entitlements.policy is Policy.FAIR
        tasks_at = -1 if entitlements.policy is Policy.TASKS_FIRST else len(CLASS_ORDER)
        self.orders = {cls: at for at, cls in enumerate(CLASS_ORDER)}
        self.orders[ServiceClass.TASK] = tasks_at

    def _charge(self, service_class: ServiceClass) -> SlotMicros:
        """What a grant is charged for one slot, at both levels: a hold has one charge, which is settled once."""
        state = self.snapshot.flows.get(FlowKey(Level.SCHEDULER, SCHEDULER_SCOPE, service_class))
        return state.estimate if state else self.entitlements.initial_estimate

    def state(self, key: FlowKey, clock: int) -> FlowState:
        """A flow under today's weight."""
        return flow_state(key, self.snapshot.flows, clock, self.entitlements)

    def started(self, service_class: ServiceClass, pool: str) -> Sequence[int] | None:
        """Widths of the task instances that Airflow started in a pool; ``None`` where it was not asked."""
        answer = self.snapshot.answer
        return answer.started.get(pool) if answer and service_class is ServiceClass.TASK else None


class Line:
    """One backlog in the course of a pass.

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
        reason: Why it gets no more.
        contested: Whether the pool was split by turns.
        due: Whether its head is due and too wide for what is left.
        passed: Pool slots admitted to others since.
        state: Its flow in the pool as it went into the split.
    """

    # Defaults of the class, not of the instance: a pass makes thousands of lines and few need them all.
    cap: int = UNLIMITED
    cap_reason: Reason | None = None
    allowed: int = 0
    position: int = 0
    granted: int = 0
    granted_slots: int = 0
    last_width: int = 0
    limit_left: int = UNLIMITED
    unmet: int = 0
    reason: Reason | None = None
    contested: bool = False
    due: bool = False
    passed: int = 0
    state: FlowState | None = None

    def __init__(
        self,
        service_class: ServiceClass,
        pool: str,
        candidates: Sequence[Candidate],
        startable: int | None = None,
    ) -> None:
        self.service_class = service_class
        self.pool = pool
        self.key = FlowKey(Level.POOL, pool, service_class)
        self.candidates = candidates
        self.startable = len(candidates) if startable is None else startable

    @property
    def is_waiting(self) -> bool:
        """Whether it has a candidate that was not dealt with."""
        return self.position < len(self.candidates)


def served(
    state: FlowState,
    *,
    tag: int,
    remainder: int,
    clock: int,
    eligible: bool,
    bypassed: int = 0,
    granted: int = 0,
    charge: int = 0,
    now: int = 0,
) -> FlowState:
    """A flow after a pass. Written out, since a pass makes thousands and `attrs.evolve` takes three times as long.

    Args:
        state: The flow as it went in.
        tag: Its tag after the pass.
        remainder: What is left over of it.
        clock: The virtual time at which it was last granted.
        eligible: Whether it still has a head that fits.
        bypassed: Slots granted past its due head.
        granted: How many grants it got.
        charge: Slot-microseconds charged for them.
        now: Microseconds since the epoch.
    """
    return FlowState(
        key=state.key,
        weight=state.weight,
        estimate=state.estimate,
        tag=VirtualTime(tag),
        remainder=remainder,
        clock=VirtualTime(clock),
        eligible=eligible,
        bypassed=bypassed,
        service=SlotMicros(state.service + charge),
        recent=recent(state, charge, now) if charge else state.recent,
        recent_at=max(state.recent_at, now) if charge else state.recent_at,
        granted=state.granted + granted,
    )
