"""What settings guarantee when everyone is busy: slots, and the longest wait of whoever is first in line.

Worked out from the bounds of start-time fair queuing on slot-time, not simulated: no arrivals and no distributions go in,
only the longest hold of each class. ``docs/explanation/bounds.md`` derives every formula that stands here.

In short, with K slots of which P are nobody else's reserve, longest holds D, weights w, and class f first in line:

- *by turn*: others go first until their tags have passed f's, which is at most ``K D_f / w_f`` beyond the clock; each
  of them began at most ``K D_g / w_g`` before it, and may have K slots just granted at the end. All P slots work
  meanwhile, so f waits ``(sum of (w_g / w_f) K D_f + 2 K D_g over the others, + K D_f) / P`` and a loop.
- *by reserve*: once the class's own holds have ended, a slot that nobody else can take is free: ``D_f`` and a loop.
- *by order*, for the class that a strict policy serves first: until any slot comes free.

These are worst cases over all workloads, and they can be met (``tests/properties/test_bounds.py``). Where neither of the two
levels of contention can be told to be the only one, and where work is wider than a slot in a pool that is short,
nothing is proven, and so nothing is promised here.

Complexity: O(pools * classes squared).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final

import attrs

from callback_priority.core.classes import CLASS_ORDER, SCHEDULER_SCOPE, Level, ServiceClass
from callback_priority.core.lines import UNLIMITED, Terms
from callback_priority.core.policies import Policy
from callback_priority.core.pools import widest
from callback_priority.core.snapshot import PoolSlots, Snapshot
from callback_priority.core.units import MICROSECONDS, MILLI
from callback_priority.errors import Problem
from callback_priority.policy.checks import check_pools, check_slots
from callback_priority.policy.json_text import quoted
from callback_priority.policy.settings import EVERY_OTHER_POOL, Settings, WorkerCallbacks

__all__ = [
    "Basis",
    "Bounds",
    "Deployment",
    "Guarantee",
    "Wait",
    "bounds",
    "classes_in_use",
    "max_min",
]

_TASK: Final = ServiceClass.TASK
_GRAIN_SECONDS: Final = 2 / MICROSECONDS
"""Tags are compared in whole virtual microseconds: two of them may be off by one each."""


def _read_only(mapping: Mapping[str, int | None]) -> Mapping[str, int | None]:
    return MappingProxyType(dict(mapping))


@attrs.frozen(kw_only=True)
class Deployment:
    """What the settings are to work in.

    Args:
        slots: Slots of each scheduler (Airflow's ``parallelism``).
        schedulers: How many schedulers there are.
        pools: Slots of every pool; ``None`` for a pool without end.
        widest_tasks: The ``pool_slots`` of the widest task instance of each pool; one where it is not told.
        loop_seconds: The longest time from one loop of a scheduler to its next.
        tasks_per_query: Airflow's ``max_tis_per_query``; ``None`` for no such cap.
        hold_seconds: The longest time that a workload of each class holds a slot, from its grant to its end.
    """

    slots: int
    schedulers: int = 1
    pools: Mapping[str, int | None] = attrs.field(factory=dict, converter=_read_only)
    widest_tasks: Mapping[str, int] = attrs.field(factory=dict)
    loop_seconds: float = 1.0
    tasks_per_query: int | None = None
    hold_seconds: Mapping[ServiceClass, float] = attrs.field(factory=dict)


class Basis(str, Enum):
    """What bounds a wait."""

    TURN = "turn"
    """Start-time fair queuing."""
    RESERVE = "reserve"
    """Slots that nobody else can take."""
    ORDER = "order"
    """The policy serves this class first."""
    NEVER = "never"
    """It can never run."""
    NONE = "none"
    """Nothing does, or nothing that is proven."""

    __str__ = str.__str__


@attrs.frozen(kw_only=True)
class Guarantee:
    """What a class has in one place while every class has work.

    Args:
        level: Pool or scheduler.
        scope: The pool's name.
        service_class: The class.
        weight: Its weight there.
        reserve_slots: Its reserve; at the scheduler of all schedulers together.
        limit_slots: Its limit, counted in the same way; ``None`` for none.
        slots: How many slots it holds on average; ``None`` in a pool without end.
    """

    level: Level
    scope: str
    service_class: ServiceClass
    weight: float
    reserve_slots: int
    limit_slots: int | None
    slots: float | None


@attrs.frozen(kw_only=True)
class Wait:
    """How long a class may wait at most while every class has work, if the first in its line draws on a certain pool.

    Args:
        service_class: The class.
        pool: The pool.
        basis: What bounds it.
        seconds: The bound, whatever was before; ``None`` if there is none.
        after_quiet_seconds: The bound for a class that neither runs anything nor owes for what it ran.
        why: Why there is no bound; empty if there is.
    """

    service_class: ServiceClass
    pool: str
    basis: Basis
    seconds: float | None = None
    after_quiet_seconds: float | None = None
    why: str = ""


@attrs.frozen(kw_only=True)
class Bounds:
    """What was worked out.

    Args:
        classes: The classes that take part.
        guarantees: Slots, of the schedulers and of each pool.
        waits: Waits, by class and pool.
        problems: What can never run and which reserve is out of reach.
    """

    classes: tuple[ServiceClass, ...]
    guarantees: tuple[Guarantee, ...]
    waits: tuple[Wait, ...]
    problems: tuple[Problem, ...]


def classes_in_use(settings: Settings) -> tuple[ServiceClass, ...]:
    """The classes that can have work at all: callbacks of Dags and tasks only if they leave the Dag processor.

    >>> [str(cls) for cls in classes_in_use(Settings())]
    ['deadline', 'task']
    """
    leaving = settings.use_worker_callbacks
    absent = {
        WorkerCallbacks.NONE: {ServiceClass.TASK_CALLBACK, ServiceClass.DAG_CALLBACK},
        WorkerCallbacks.TASK: {ServiceClass.DAG_CALLBACK},
        WorkerCallbacks.DAG: {ServiceClass.TASK_CALLBACK},
        WorkerCallbacks.ALL: set(),
    }[leaving]
    return tuple(cls for cls in CLASS_ORDER if cls not in absent)


def max_min(
    slots: float,
    weights: Mapping[ServiceClass, float],
    least: Mapping[ServiceClass, float],
    most: Mapping[ServiceClass, float],
) -> dict[ServiceClass, float]:
    """Shares by weight, none below its least nor above its most; what one cannot take, the others split again.

    Args:
        slots: What there is to share.
        weights: Who shares it, each above nought.
        least: Reserves.
        most: Limits.

    >>> D, T = ServiceClass.DEADLINE, ServiceClass.TASK
    >>> max_min(16, {D: 1, T: 3}, {D: 6, T: 0}, {D: 16, T: 16})
    {<ServiceClass.DEADLINE: 'deadline'>: 6.0, <ServiceClass.TASK: 'task'>: 10.0}

    Complexity: O(classes squared).
    """
    level_at = sorted({bound / weights[cls] for bounds in (least, most) for cls, bound in bounds.items()})

    def shares(level: float) -> dict[ServiceClass, float]:
        return {cls: float(min(max(level * weights[cls], least[cls]), most[cls])) for cls in weights}

    low, high = 0.0, 0.0
    for level in level_at:
        high = level
        if sum(shares(level).values()) >= slots:
            break
        low = level
    else:
        return shares(high)
    # Between two kinks the sum is a straight line.
    below, above = sum(shares(low).values()), sum(shares(high).values())
    part = (slots - below) / (above - below) if above > below else 0.0
    return shares(low + max(0.0, part) * (high - low))


def bounds(
    settings: Settings, deployment: Deployment, *, classes: Collection[ServiceClass] | None = None
) -> Bounds:
    """What the settings guarantee in a deployment.

    Args:
        settings: What is configured.
        deployment: What there is.
        classes: The classes that take part; `classes_in_use` if not given.

    Returns:
        All of it, and every problem at once: those of `callback_priority.policy.checks` come first.
    """
    taking_part = classes_in_use(settings) if classes is None else classes
    case = _Case(settings, deployment, tuple(cls for cls in CLASS_ORDER if cls in taking_part))
    return Bounds(
        classes=case.classes,
        guarantees=tuple(case.guarantees()),
        waits=tuple(case.wait(cls, pool) for cls in case.classes for pool in case.pools_of(cls)),
        problems=(
            *check_pools(settings, deployment.pools),
            *check_slots(settings, deployment.slots),
            *case.unreachable(),
            *case.too_wide(),
        ),
    )


class _Case:
    """Settings in a deployment."""

    def __init__(self, settings: Settings, deployment: Deployment, classes: tuple[ServiceClass, ...]) -> None:
        self.settings = settings
        self.deployment = deployment
        self.classes = classes
        pools = {
            name: PoolSlots(open_slots=slots, total_slots=slots) for name, slots in deployment.pools.items()
        }
        self.terms = Terms(Snapshot(now=0, free_slots=0, pools=pools, backlogs=()), settings)
        self.all_slots = deployment.slots * deployment.schedulers

    # Slots ------------------------------------------------------------------------------------------------

    def pools_of(self, cls: ServiceClass) -> list[str]:
        """The pools that a class draws on, and that there are."""
        return [pool for pool in sorted(self.deployment.pools) if self.settings.draws_on(cls, pool)]

    def reserve(self, level: Level, scope: str, cls: ServiceClass) -> int:
        return self.settings.quota(level, scope, cls).reserve_slots

    def reserves(self, level: Level, scope: str, without: ServiceClass | None = None) -> int:
        return sum(self.reserve(level, scope, cls) for cls in CLASS_ORDER if cls is not without)

    def limit(self, level: Level, scope: str, cls: ServiceClass) -> int:
        limit = self.settings.quota(level, scope, cls).limit_slots
        return UNLIMITED if limit is None else limit

    def most_of_one_scheduler(self, cls: ServiceClass) -> int:
        """The most slots of one scheduler that a class can ever hold."""
        room = self.deployment.slots - self.reserves(Level.SCHEDULER, SCHEDULER_SCOPE, without=cls)
        return max(0, min(room, self.limit(Level.SCHEDULER, SCHEDULER_SCOPE, cls)))

    def most_of_pool(self, cls: ServiceClass, pool: str) -> int:
        """The most slots of a pool that a class can ever hold."""
        return max(0, widest(self.terms, cls, pool))

    def most(self, cls: ServiceClass) -> int:
        """The most slots of all schedulers that a class can ever hold."""
        in_pools = sum(self.most_of_pool(cls, pool) for pool in self.pools_of(cls))
        return min(self.most_of_one_scheduler(cls) * self.deployment.schedulers, in_pools)

    def guarantees(self) -> Iterator[Guarantee]:
        """What each class holds on average while all have work, the schedulers' slots first."""
        in_pools: dict[ServiceClass, float] = dict.fromkeys(self.classes, 0.0)
        of_pools = []
        for pool, slots in sorted(self.deployment.pools.items()):
            drawing = [cls for cls in self.classes if pool in self.pools_of(cls)]
            if slots is None:
                shares: dict[ServiceClass, float] = {}
            else:
                most = {cls: self.most_of_pool(cls, pool) for cls in drawing}
                shares = self._share(Level.POOL, pool, slots, drawing, most)
            for cls in drawing:
                # A pool that is never short lets each take what it may, whatever the shares in it.
                in_pools[cls] += shares[cls] if self._can_be_short(pool) else self.most_of_pool(cls, pool)
                of_pools.append(self._guarantee(Level.POOL, pool, cls, 1, shares.get(cls)))
        most = {cls: self.most(cls) for cls in self.classes}
        shares = self._share(Level.SCHEDULER, SCHEDULER_SCOPE, self.all_slots, self.classes, most)
        for cls in self.classes:
            slots_of = min(shares[cls], in_pools[cls])
            yield self._guarantee(Level.SCHEDULER, SCHEDULER_SCOPE, cls, self.deployment.schedulers, slots_of)
        yield from of_pools

    def _share(
        self,
        level: Level,
        scope: str,
        slots: int,
        classes: Iterable[ServiceClass],
        most: Mapping[ServiceClass, int],
    ) -> dict[ServiceClass, float]:
        times = self.deployment.schedulers if level is Level.SCHEDULER else 1
        sharing = list(classes)
        least = {cls: self.reserve(level, scope, cls) * times for cls in sharing}
        idle = self.reserves(level, scope) * times - sum(least.values())
        left = max(0, slots - idle)
        if self.settings.policy is not Policy.FAIR:
            return self._in_order(left, least, most)
        return max_min(
            left,
            {cls: self.settings.weight(level, scope, cls) / MILLI for cls in sharing},
            {cls: min(least[cls], most[cls]) for cls in sharing},
            most,
        )

    def _in_order(
        self, slots: int, least: Mapping[ServiceClass, int], most: Mapping[ServiceClass, int]
    ) -> dict[ServiceClass, float]:
        """What a strict policy leaves to each: its reserve, and to the first one all that is nobody's."""
        spare = max(0, slots - sum(least.values()))
        shares = {}
        for cls in sorted(least, key=self._place):
            extra = max(0, min(most[cls] - least[cls], spare))
            spare -= extra
            shares[cls] = float(min(least[cls], most[cls]) + extra)
        return shares

    def _place(self, cls: ServiceClass) -> int:
        return self.terms.orders[cls]

    def _guarantee(
        self, level: Level, scope: str, cls: ServiceClass, times: int, slots: float | None
    ) -> Guarantee:
        quota = self.settings.quota(level, scope, cls)
        return Guarantee(
            level=level,
            scope=scope,
            service_class=cls,
            weight=self.settings.weight(level, scope, cls) / MILLI,
            reserve_slots=quota.reserve_slots * times,
            limit_slots=None if quota.limit_slots is None else quota.limit_slots * times,
            slots=slots,
        )

    # Waits ------------------------------------------------------------------------------------------------

    def wait(self, cls: ServiceClass, pool: str) -> Wait:
        """The longest wait of the first in line of a class, which draws on this pool."""

        def none(why: str, basis: Basis = Basis.NONE) -> Wait:
            return Wait(service_class=cls, pool=pool, basis=basis, why=why)

        width = self._width(pool) if cls is _TASK else 1
        if not self.most_of_one_scheduler(cls):
            return none("limits or the reserves of others leave it no slot of a scheduler", Basis.NEVER)
        if self.most_of_pool(cls, pool) < 1:
            return none("limits or the reserves of others leave it no slot of the pool", Basis.NEVER)
        unknown = [each for each in self.classes if each not in self.deployment.hold_seconds]
        if cls in unknown:
            return none(f"its longest hold is not given: {cls}")
        overdrawn = self._overdrawn(pool)
        if overdrawn:
            return none(overdrawn)
        pool_is_short = self._can_be_short(pool)
        schedulers_are_short = self._schedulers_can_be_short()
        loop = self.deployment.loop_seconds
        places = [(Level.SCHEDULER, SCHEDULER_SCOPE, 1)] if schedulers_are_short else []
        places += [(Level.POOL, pool, width)] if pool_is_short else []
        if all(self.reserve(level, scope, cls) >= least for level, scope, least in places):
            hold = self.deployment.hold_seconds[cls] + loop
            return Wait(
                service_class=cls,
                pool=pool,
                basis=Basis.RESERVE,
                seconds=hold + loop,
                after_quiet_seconds=loop,
            )
        if len(places) > 1:
            return none(
                "both its pool and the schedulers can be short of slots; a reserve at both would bound it"
            )
        level, scope, _ = places[0]
        if level is Level.POOL and self._width(pool) > 1:
            return none("task instances of the pool are wider than one slot; a reserve would bound it")
        contenders = [
            each
            for each in self.classes
            if each is not cls and (level is Level.SCHEDULER or pool in self.pools_of(each))
        ]
        missing = [str(each) for each in contenders if each in unknown]
        if missing:
            return none(f"the longest hold of {', '.join(missing)} is not given")
        if self.settings.policy is not Policy.FAIR:
            if any(self._place(each) < self._place(cls) for each in contenders):
                return none("others always go first under this policy; a reserve would bound it")
            return self._by_order(cls, pool, contenders)
        return self._by_turn(cls, pool, level, scope, contenders, none)

    def _by_order(self, cls: ServiceClass, pool: str, contenders: Iterable[ServiceClass]) -> Wait:
        others = max((self._longest(each) for each in contenders), default=0.0)
        loop = self.deployment.loop_seconds
        return Wait(
            service_class=cls,
            pool=pool,
            basis=Basis.ORDER,
            seconds=max(others, self._longest(cls)) + loop,
            after_quiet_seconds=others + loop,
        )

    def _by_turn(
        self,
        cls: ServiceClass,
        pool: str,
        level: Level,
        scope: str,
        contenders: Iterable[ServiceClass],
        none: Callable[[str], Wait],
    ) -> Wait:
        weigh = self.settings.weight
        loop = self.deployment.loop_seconds
        slots, times = self.deployment.slots, self.deployment.schedulers
        if level is Level.POOL:
            slots, times = self.deployment.pools[pool] or 0, 1
        shared = slots - self.reserves(level, scope, without=cls)
        cap = self.deployment.tasks_per_query
        if cap is not None and cap < slots and _TASK in self.classes:
            if level is Level.POOL or self.reserve(level, scope, _TASK):
                return none("max_tis_per_query is less than the slots; a reserve would bound it")
            # Slots kept for the tasks' next query stay empty, but as many as one query starts are held.
            shared = min(shared, cap)
        most = {
            each: min(slots * times, self.limit(level, scope, each) * times, self.most(each))
            for each in (cls, *contenders)
        }
        debt = most[cls] * self._longest(cls) / weigh(level, scope, cls)
        after_quiet = ahead = 0.0
        for each in contenders:
            weight = weigh(level, scope, each)
            after_quiet += 2 * most[each] * self._longest(each) + weight / MILLI * _GRAIN_SECONDS
            ahead += weight * debt
        working = shared * times
        own = most[cls] * self._longest(cls)
        # Stopped by its own limit, it begins to wait for its turn when one of its holds ends.
        stopped = self._longest(cls) if most[cls] < slots * times else 0.0
        return Wait(
            service_class=cls,
            pool=pool,
            basis=Basis.TURN,
            seconds=loop + stopped + (after_quiet + ahead + own) / working,
            after_quiet_seconds=loop + after_quiet / working,
        )

    def _longest(self, cls: ServiceClass) -> float:
        """The longest that one of the class is charged for or holds its slot, until it can be granted again."""
        # With several schedulers, one learns of the others' overruns up to a loop late.
        loops = 1 if self.deployment.schedulers == 1 else 2
        hold = self.deployment.hold_seconds[cls] + loops * self.deployment.loop_seconds
        return max(hold, self.settings.initial_hold_seconds)

    def _width(self, pool: str) -> int:
        return max(1, self.deployment.widest_tasks.get(pool, 1))

    def _overdrawn(self, pool: str) -> str:
        if self.reserves(Level.SCHEDULER, SCHEDULER_SCOPE) > self.deployment.slots:
            return "the reserves are more than a scheduler's slots"
        total = self.deployment.pools[pool]
        if total is not None and self.reserves(Level.POOL, pool) > total:
            return "the reserves are more than the pool's slots"
        return ""

    def _can_be_short(self, pool: str) -> bool:
        """Whether a pool may ever have less room than the schedulers have slots to fill."""
        total = self.deployment.pools[pool]
        if total is None:
            return False
        width = self._width(pool)
        return total < self.all_slots * width + self.reserves(Level.POOL, pool)

    def _schedulers_can_be_short(self) -> bool:
        """Whether a scheduler may ever have fewer slots than the pools have room."""
        totals = [self.deployment.pools[pool] for cls in self.classes for pool in self.pools_of(cls)]
        if None in totals:
            return True
        if any(
            self.limit(Level.SCHEDULER, SCHEDULER_SCOPE, cls) < self.deployment.slots for cls in self.classes
        ):
            return True
        used = {pool for cls in self.classes for pool in self.pools_of(cls)}
        room = sum(self.deployment.pools[pool] or 0 for pool in used)
        return self.deployment.slots < room + self.reserves(Level.SCHEDULER, SCHEDULER_SCOPE)

    # Problems ---------------------------------------------------------------------------------------------

    def unreachable(self) -> Iterator[Problem]:
        """Reserves that are held empty in vain: the class can never hold as many slots at once."""
        times = self.deployment.schedulers
        for cls in CLASS_ORDER:
            reserve = self.reserve(Level.SCHEDULER, SCHEDULER_SCOPE, cls)
            if not reserve:
                continue
            in_pools = sum(self.most_of_pool(cls, pool) for pool in self.pools_of(cls))
            limit = self.limit(Level.SCHEDULER, SCHEDULER_SCOPE, cls)
            key = f"slot_quotas.{cls}.reserve"
            if cls not in self.classes:
                yield Problem(key=key, value=reserve, remedy=_never_there(cls))
            elif limit < reserve:
                yield Problem(key=key, value=reserve, remedy=_above_the_limit(limit))
            elif in_pools < reserve * times:
                yield Problem(
                    key=key,
                    value=reserve,
                    remedy=f"{reserve * times} slots of {times} scheduler(s), but its pools let it hold only "
                    f"{in_pools} at once; the rest stays empty: lower the reserve, or give it more in its pools",
                )
        for pool, shares in self.settings.pool_quotas.items():
            if pool == EVERY_OTHER_POOL or pool not in self.deployment.pools:
                continue
            for cls, share in shares.items():
                if share.quota.reserve_slots:
                    key = f"pool_quotas[{quoted(pool)}].{cls}.reserve"
                    yield from self._unreachable_in_pool(key, pool, cls, share.quota.reserve_slots)

    def _unreachable_in_pool(self, key: str, pool: str, cls: ServiceClass, reserve: int) -> Iterator[Problem]:
        of_schedulers = self.most_of_one_scheduler(cls) * self.deployment.schedulers
        limit = self.limit(Level.POOL, pool, cls)
        width = self._width(pool) if cls is _TASK else 1
        remedy = ""
        if cls not in self.classes:
            remedy = _never_there(cls)
        elif not self.settings.draws_on(cls, pool):
            remedy = f"{cls} workloads do not draw on this pool (callback_pool says on which); remove it"
        elif limit < reserve:
            remedy = _above_the_limit(limit)
        elif of_schedulers * width < reserve:
            remedy = (
                f"the schedulers let {cls} hold only {of_schedulers} slots at once; the rest stays empty: lower the "
                "reserve, or give it more in slot_quotas"
            )
        if remedy:
            yield Problem(key=key, value=reserve, remedy=remedy)

    def too_wide(self) -> Iterator[Problem]:
        """Task instances that are wider than tasks can ever have of their pool."""
        for pool, width in sorted(self.deployment.widest_tasks.items()):
            if pool in self.deployment.pools and width > (most := self.most_of_pool(_TASK, pool)):
                yield Problem(
                    key=f"pool {quoted(pool)}, widest task instance",
                    value=width,
                    remedy=f"tasks can never hold more than {most} of the pool's slots, so it can never run; lower "
                    "its pool_slots or the others' reserves, or raise the tasks' limit or the pool's slots",
                )


def _never_there(cls: ServiceClass) -> str:
    return (
        f"no {cls} workload ever comes, since use_worker_callbacks keeps them in the Dag processor; remove it"
    )


def _above_the_limit(limit: int) -> str:
    return f"is more than the limit of {limit}; the rest stays empty: lower the reserve, or raise the limit"
