"""Ways of sharing that starve somebody: a judge that does not catch them judges nothing.

Each is what somebody would build first. All of them keep reserves, limits and pools, so that what they are caught at is how
they share, not that they cannot count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

import attrs

from callback_priority.core.classes import CLASS_ORDER, SCHEDULER_SCOPE, Level, ServiceClass
from callback_priority.core.policies import Policy
from callback_priority.core.quotas import NO_QUOTA
from callback_priority.core.slot_loop import decide
from callback_priority.core.snapshot import Backlog, Candidate, Decision, Entitlements, Grant, Snapshot
from callback_priority.policy.settings import Settings
from callback_priority.simulation.backlog import Waiting
from callback_priority.simulation.engine import Accounting, Treatment
from callback_priority.simulation.scenario import Crash

__all__ = [
    "CALLBACKS_FIRST",
    "CONTROLS",
    "FAIR",
    "FAIR_BY_STARTS",
    "FIFO",
    "LOCAL_TAGS",
    "TASKS_FIRST",
    "OldestFirst",
]

_TASK: Final = ServiceClass.TASK
_ENDLESS: Final = 1 << 62


class OldestFirst:
    """First come, first served: one line for all classes.

    A decider that is told of arrivals too, since a snapshot does not say how old a task is.
    """

    def __init__(self) -> None:
        self._waiting: dict[tuple[ServiceClass, str], dict[int, Waiting]] = {}

    def __call__(self, snapshot: Snapshot, entitlements: Entitlements) -> Decision:
        """Hand out the slots, one after another, to the oldest head that fits."""
        ages = {
            key: sorted((entry.rank, entry.at) for entry in them.values())
            for key, them in self._waiting.items()
        }

        def age(backlog: Backlog, place: int) -> int:
            if snapshot.answer is not None and backlog.service_class is _TASK:
                return 0
            them = ages.get((backlog.service_class, backlog.pool), [])
            return them[place][1] if place < len(them) else _ENDLESS

        return one_by_one(snapshot, entitlements, age)

    def afresh(self) -> OldestFirst:
        """See `Stateful`."""
        return OldestFirst()

    def waits(self, now: int, service_class: ServiceClass, pool: str, entry: Waiting) -> None:
        """See `Watcher`."""
        self._waiting.setdefault((service_class, pool), {})[entry.number] = entry

    def started(
        self, now: int, scheduler: int, service_class: ServiceClass, pool: str, entry: Waiting, number: int
    ) -> None:
        """See `Watcher`."""
        self._waiting.get((service_class, pool), {}).pop(number, None)

    def ended(self, now: int, service_class: ServiceClass, pool: str, entry: Waiting, number: int) -> None:
        """See `Watcher`."""

    def decided(self, now: int, scheduler: int, snapshot: Snapshot, decision: Decision) -> None:
        """See `Watcher`."""

    def happened(self, now: int, what: Crash | Settings) -> None:
        """See `Watcher`."""


def one_by_one(
    snapshot: Snapshot, entitlements: Entitlements, turn: Callable[[Backlog, int], int]
) -> Decision:
    """Hand out slots one after another within quotas, by plain counting: the frame of a policy of one's own.

    Args:
        snapshot: What there is and who wants it.
        entitlements: The quotas; weights are nobody's business here.
        turn: When the turn of a backlog's n-th candidate is; the smallest goes first, ties in the order of the classes.

    Complexity: O(slots times backlogs times classes).
    """
    answer = snapshot.answer
    left = _Left(snapshot, entitlements)
    places = dict.fromkeys(range(len(snapshot.backlogs)), 0)
    grants: list[Grant] = []
    if answer is not None:
        # What Airflow has started is no longer a question.
        for pool, widths in answer.started.items():
            for width in widths:
                left.take(_TASK, pool, width)
                grants.append(Grant(_TASK, pool, Candidate(width=width)))
    while True:
        open_to = [
            (turn(backlog, place), CLASS_ORDER.index(backlog.service_class), at)
            for at, place in places.items()
            if place < len((backlog := snapshot.backlogs[at]).candidates)
            and not (answer is not None and backlog.service_class is _TASK)
            and left.fits(backlog.service_class, backlog.pool, backlog.candidates[place].width)
        ]
        if not open_to:
            break
        at = min(open_to)[2]
        backlog = snapshot.backlogs[at]
        candidate = backlog.candidates[places[at]]
        left.take(backlog.service_class, backlog.pool, candidate.width)
        grants.append(Grant(backlog.service_class, backlog.pool, candidate))
        places[at] += 1
    task_slots: Counter[str] = Counter()
    for cls, pool, candidate in grants:
        if cls is _TASK:
            task_slots[pool] += candidate.width
    return Decision(
        grants=tuple(grants),
        task_slots=sum(grant.service_class is _TASK for grant in grants),
        task_pool_slots=dict(task_slots),
        refusals=(),
        flows={},
        unused_slots=max(0, left.free),
    )


class _Left:
    """What is left of a snapshot's slots while they are handed out."""

    def __init__(self, snapshot: Snapshot, entitlements: Entitlements) -> None:
        self.free = snapshot.free_slots - (snapshot.answer.kept_slots if snapshot.answer else 0)
        self._entitlements = entitlements
        self._pools = snapshot.pools
        self._open = {name: slots.open_slots for name, slots in snapshot.pools.items()}
        self._held = Counter(snapshot.held)
        self._pool_held = {name: Counter(slots.held) for name, slots in snapshot.pools.items()}

    def fits(self, service_class: ServiceClass, pool: str, width: int) -> bool:
        if pool not in self._pools:
            return False
        return self._within(Level.SCHEDULER, SCHEDULER_SCOPE, service_class, 1, self.free, self._held) and (
            self._within(Level.POOL, pool, service_class, width, self._open[pool], self._pool_held[pool])
        )

    def _within(
        self,
        level: Level,
        scope: str,
        service_class: ServiceClass,
        width: int,
        free: int | None,
        held: Mapping[ServiceClass, int],
    ) -> bool:
        quotas = self._entitlements.quotas(level, scope)
        limit = quotas.get(service_class, NO_QUOTA).limit_slots
        if limit is not None and held.get(service_class, 0) + width > limit:
            return False
        if free is None:
            return True
        kept_for_others = sum(
            max(0, quota.reserve_slots - held.get(cls, 0))
            for cls, quota in quotas.items()
            if cls is not service_class
        )
        return width <= free - kept_for_others

    def take(self, service_class: ServiceClass, pool: str, width: int) -> None:
        self.free -= 1
        self._held[service_class] += 1
        self._pool_held[pool][service_class] += width
        open_slots = self._open[pool]
        if open_slots is not None:
            self._open[pool] = open_slots - width


def _under(policy: Policy) -> Callable[[Snapshot, Entitlements], Decision]:
    def decide_under(snapshot: Snapshot, entitlements: Entitlements) -> Decision:
        if not isinstance(entitlements, Settings):
            raise TypeError(f"settings are wanted, not {type(entitlements).__name__}")
        return decide(snapshot, attrs.evolve(entitlements, policy=policy))

    return decide_under


FAIR: Final = Treatment(name="fair")
"""No control: the library as it is."""

FIFO: Final = Treatment(name="FIFO", decide=OldestFirst())
"""The oldest first, whatever its class: a flood of one class is ahead of everybody who comes after it."""

CALLBACKS_FIRST: Final = Treatment(name="callbacks first", decide=_under(Policy.CALLBACKS_FIRST))
"""Strict priority, as Airflow's executors have it."""

TASKS_FIRST: Final = Treatment(name="tasks first", decide=_under(Policy.TASKS_FIRST))
"""Strict priority the other way round, as a task step that sees the free slots first has it."""

FAIR_BY_STARTS: Final = Treatment(name="fair by starts", accounting=Accounting.STARTS)
"""One start each: who holds its slots for long gets nearly everything."""

LOCAL_TAGS: Final = Treatment(name="local tags", shared_tags=False)
"""Each scheduler shares fairly for itself: what a class got from the others does not count."""

CONTROLS: Final = (FIFO, CALLBACKS_FIRST, TASKS_FIRST, FAIR_BY_STARTS, LOCAL_TAGS)
"""All that must be caught."""
