"""What the slot loop is given and what it answers: plain values, so that the same snapshot has one answer."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from enum import Enum
from typing import Final, NamedTuple, Protocol

import attrs

from callback_priority.core.classes import FlowKey, Level, ServiceClass
from callback_priority.core.flows import FlowState
from callback_priority.core.policies import Policy
from callback_priority.core.quotas import Quota
from callback_priority.core.units import Milliweight, SlotMicros
from callback_priority.core.values import value

__all__ = [
    "Backlog",
    "Candidate",
    "Decision",
    "Entitlements",
    "Grant",
    "PoolSlots",
    "Reason",
    "Refusal",
    "Snapshot",
    "TaskAnswer",
]


_TASK: Final = ServiceClass.TASK


class Entitlements(Protocol):
    """What the classes are due; the settings are one implementation."""

    @property
    def policy(self) -> Policy:
        """What is followed when classes compete."""

    @property
    def wide_bypass_limit(self) -> int:
        """Pool slots that others may be granted past a due head that is too wide, before they wait for it."""

    @property
    def initial_estimate(self) -> SlotMicros:
        """A class's hold before any was seen."""

    def quotas(self, level: Level, scope: str) -> Mapping[ServiceClass, Quota]:
        """Reserves and limits of the classes that have any in a scope."""

    def weight(self, level: Level, scope: str, service_class: ServiceClass) -> Milliweight:
        """Weight of a class in a scope."""


@value(kw_only=True)
class Candidate:
    """A workload that waits for a slot.

    Args:
        id: Which; ``None`` for task instances, which Airflow chooses by its own rules.
        width: Pool slots it takes; only task instances take more than one. Whatever its width, it takes one
            slot of the scheduler.
        executor: The executor it must run on; ``None`` when that is not known or not limited.
        rank: Its place among the candidates of its class in all pools; the smallest goes first.
    """

    id: Hashable = None
    width: int = 1
    executor: str | None = None
    rank: int = 0


@value(kw_only=True)
class Backlog:
    """What waits of one class in one pool, in the order in which it is to be served.

    Args:
        service_class: The class.
        pool: The pool they draw on.
        candidates: The first of them: as many as there are free slots, and one more. Where all are one slot wide, as many
            as the pool has open slots, and one more, are enough.

    Attributes:
        widest: The width of the widest of them; 1 if there are none. O(candidates) of tasks, once.
    """

    service_class: ServiceClass
    pool: str
    candidates: Sequence[Candidate]
    widest: int = attrs.field(init=False)

    @widest.default
    def _width_of_the_widest(self) -> int:
        if self.service_class is not _TASK:
            return 1
        return max([candidate.width for candidate in self.candidates], default=1)


@value(kw_only=True)
class PoolSlots:
    """A pool as it stands.

    Args:
        open_slots: Pool slots nobody holds, possibly negative; ``None`` for a pool without end.
        total_slots: All its slots; ``None`` for a pool without end.
        held: Pool slots held, by class; matters where a class has a quota.
    """

    open_slots: int | None
    total_slots: int | None = None
    held: Mapping[ServiceClass, int] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class TaskAnswer:
    """What became of the slots offered to tasks.

    Args:
        started: Widths of the task instances started, by pool, for each pool in which tasks were offered slots;
            without those in which none was started because others took all the slots that were offered.
        kept_slots: Scheduler slots that stay empty for tasks: their due, which Airflow's cap on one
            selection kept them from filling.
        waiting: Whether more of them wait that could have run.
    """

    started: Mapping[str, Sequence[int]]
    kept_slots: int = 0
    waiting: bool = False


@value(kw_only=True)
class Snapshot:
    """Everything one pass of the slot loop looks at.

    Args:
        now: The present, in microseconds since the epoch; used for what is shown, never for a decision.
        free_slots: The scheduler's free slots; nothing is granted when negative.
        held: The scheduler's slots held, by class.
        pools: The pools, by name. A backlog whose pool is not among them waits.
        backlogs: What waits, at most one for each class and pool.
        executor_slots: Free slots of the executors that candidates name.
        flows: The flows as the last pass left them; what is missing starts at the clock.
        asks: Whether a second pass is sure to come if this one offers slots to tasks.
        answer: In the second of two passes, what Airflow's selection did with the tasks' slots.
    """

    now: int
    free_slots: int
    pools: Mapping[str, PoolSlots]
    backlogs: Sequence[Backlog]
    held: Mapping[ServiceClass, int] = attrs.field(factory=dict)
    executor_slots: Mapping[str, int] = attrs.field(factory=dict)
    flows: Mapping[FlowKey, FlowState] = attrs.field(factory=dict)
    asks: bool = False
    answer: TaskAnswer | None = None


class Reason(str, Enum):
    """Why a candidate was not granted a slot: the one constraint that bound when it was looked at."""

    NO_FREE_SLOT = "no_free_slot"
    """The scheduler's free slots were used up before its turn."""
    SLOT_RESERVE = "slot_reserve"
    """The scheduler's slots that are left are reserved for other classes."""
    SLOT_LIMIT = "slot_limit"
    """Its class holds as many of the scheduler's slots as it may."""
    POOL_MISSING = "pool_missing"
    """There is no such pool."""
    POOL_FULL = "pool_full"
    """The pool's open slots were used up before its turn."""
    POOL_RESERVE = "pool_reserve"
    """The pool's slots that are left are reserved for other classes."""
    POOL_LIMIT = "pool_limit"
    """Its class holds as many of the pool's slots as it may."""
    TOO_WIDE = "too_wide"
    """It needs more pool slots at once than are left; others pass it, a bounded number of times."""
    DRAINING = "draining"
    """The pool is held empty for a wide workload that was passed often enough."""
    NEVER_FITS = "never_fits"
    """It needs more pool slots than its class can ever have there."""
    EXECUTOR_FULL = "executor_full"
    """Its executor has no free slot."""

    __str__ = str.__str__
    __hash__ = str.__hash__  # see `ServiceClass`


class Grant(NamedTuple):
    """A slot for a candidate. A named tuple, since a pass makes thousands."""

    service_class: ServiceClass
    pool: str
    candidate: Candidate


class Refusal(NamedTuple):
    """Why a candidate, and what waits behind it in its backlog, got nothing in this pass. See `Grant`."""

    service_class: ServiceClass
    pool: str
    candidate: Candidate
    reason: Reason


@value(kw_only=True)
class Decision:
    """What a pass of the slot loop decided.

    Args:
        grants: Who gets a slot, in the order of the decisions.
        task_slots: How many of them are for task instances.
        task_pool_slots: By pool, the pool slots that task instances may use; zero elsewhere.
        refusals: One for the head of each backlog that has a candidate left, and one for each candidate
            that was passed over on its own account (`Reason.EXECUTOR_FULL`, `Reason.NEVER_FITS`); none in the first of
            two passes (`Snapshot.asks`), since the second tells them.
        flows: The flows that changed; none in the first of two passes, since it changes nothing.
        unused_slots: Free slots that nobody was granted, without those kept for tasks.
    """

    grants: tuple[Grant, ...]
    task_slots: int
    task_pool_slots: Mapping[str, int]
    refusals: tuple[Refusal, ...]
    flows: Mapping[FlowKey, FlowState]
    unused_slots: int
