"""Worlds for the bounds on waits: random ones, run by the engine, and an onlooker that times who is first in line."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import attrs

from callback_priority.core.classes import CLASS_ORDER, ServiceClass
from callback_priority.core.policies import Policy
from callback_priority.core.quotas import Quota
from callback_priority.core.slot_loop import decide
from callback_priority.core.snapshot import Decision, Entitlements, Snapshot
from callback_priority.core.units import MICROSECONDS, MILLI, seconds_to_micros
from callback_priority.policy.bounds import Basis, Bounds, Deployment, bounds
from callback_priority.policy.settings import PoolShare, Settings
from callback_priority.simulation.arrivals import Poisson, Storms
from callback_priority.simulation.engine import Accounting, Simulation, Treatment
from callback_priority.simulation.holds import Empirical
from callback_priority.simulation.results import run
from callback_priority.simulation.scenario import Arriving, Scenario, Stream

POOL = "default_pool"
TASK = ServiceClass.TASK
_MANY = 64
"""So many holds of the same length bring an estimate within a thousandth of it."""


class Onlooker:
    """Decides as it is told to, and keeps the longest time that the first in line of each class waited.

    The first in line is whoever waits since the class was last granted anything, or since it had nothing waiting.
    """

    def __init__(self, decider: Callable[[Snapshot, Entitlements], Decision] = decide) -> None:
        self.decider = decider
        self.since: dict[ServiceClass, int] = {}
        self.longest: dict[ServiceClass, int] = dict.fromkeys(CLASS_ORDER, 0)

    def __call__(self, snapshot: Snapshot, entitlements: Entitlements) -> Decision:
        decision = self.decider(snapshot, entitlements)
        if decision.task_slots and snapshot.answer is None:
            return decision
        waiting = {backlog.service_class for backlog in snapshot.backlogs if backlog.candidates}
        granted = {grant.service_class for grant in decision.grants}
        for cls in CLASS_ORDER:
            if cls not in waiting:
                self.since.pop(cls, None)
                continue
            began = self.since.setdefault(cls, snapshot.now)
            self.longest[cls] = max(self.longest[cls], snapshot.now - began)
            if cls in granted:
                # Those behind it, if any, are looked at from here on.
                self.since[cls] = snapshot.now
                if sum(g.service_class is cls for g in decision.grants) >= sum(
                    len(b.candidates) for b in snapshot.backlogs if b.service_class is cls
                ):
                    del self.since[cls]
        return decision

    def end(self, now: int) -> None:
        """Count those who still wait."""
        for cls, began in self.since.items():
            self.longest[cls] = max(self.longest[cls], now - began)


@attrs.frozen
class World:
    """A deployment, settings and work."""

    deployment: Deployment
    settings: Settings
    scenario: Scenario
    classes: tuple[ServiceClass, ...]

    @property
    def bounds(self) -> Bounds:
        return bounds(self.settings, self.deployment, classes=self.classes)

    def longest_waits(
        self,
        seed: int,
        decider: Callable[[Snapshot, Entitlements], Decision] = decide,
        accounting: Accounting = Accounting.SLOT_TIME,
    ) -> dict[ServiceClass, float]:
        """How long the first in line of each class waited at most, in seconds."""
        onlooker = Onlooker(decider)
        treatment = Treatment(name="watched", settings=self.settings, decide=onlooker, accounting=accounting)
        Simulation(self.scenario, treatment, seed=seed).run()
        onlooker.end(round(self.scenario.seconds * MICROSECONDS))
        # Whoever arrived between two loops is seen at the second.
        loop = self.deployment.loop_seconds
        return {cls: micros / MICROSECONDS + loop * (micros > 0) for cls, micros in onlooker.longest.items()}

    def worst(
        self,
        seed: int,
        decider: Callable[[Snapshot, Entitlements], Decision] = decide,
        accounting: Accounting = Accounting.SLOT_TIME,
    ) -> tuple[float, ServiceClass | None, Basis | None]:
        """The largest part of its bound that any class waited."""
        waited = self.longest_waits(seed, decider, accounting)
        found = [
            (waited[wait.service_class] / wait.seconds, wait.service_class, wait.basis)
            for wait in self.bounds.waits
            if wait.seconds is not None
        ]
        return max(found, default=(0.0, None, None))


@attrs.frozen(kw_only=True)
class Told:
    """Work that is told one by one.

    Args:
        service_class: Its class.
        work: When each arrives and how long it holds its slot, in seconds.
    """

    service_class: ServiceClass
    work: Sequence[tuple[float, float]]
    pool: str = POOL
    width: int = 1
    priority: int = 0
    dags: int = 1
    endless: bool = False

    @property
    def name(self) -> str:
        return f"told {self.service_class}"

    def arriving(self, seed: int) -> Iterator[Arriving]:
        for at, hold in self.work:
            yield Arriving(seconds_to_micros(at), seconds_to_micros(hold), 0)


def drifts(
    world: World, seed: int, accounting: Accounting = Accounting.SLOT_TIME
) -> dict[tuple[ServiceClass, ServiceClass], tuple[float, float]]:
    """How far each two classes drifted apart in slot-seconds over weight, between any two moments while both waited.

    With it the bound, ``2 K (d_f / w_f + d_g / w_g)``, for the longest hold or charge d until the slot can be granted again.
    """
    result = run(
        world.scenario, Treatment(name="watched", settings=world.settings, accounting=accounting), seed=seed
    )
    deployment, found = world.deployment, {}
    slots = deployment.pools[POOL] or deployment.slots * deployment.schedulers
    loops = (1 if deployment.schedulers == 1 else 2) * deployment.loop_seconds
    for lag in result.lags:
        both = [
            max(deployment.hold_seconds[cls] + loops, world.settings.initial_hold_seconds)
            * MILLI
            / world.settings.weights[cls]
            for cls in (lag.first, lag.second)
        ]
        found[lag.first, lag.second] = (lag.seconds, 2 * slots * sum(both))
    return found


def overcharged(slots: int = 16, longest: float = 100.0) -> World:
    """The worst that can befall a newcomer.

    Tasks have been long until now, so more of them are charged for the longest hold, and end at once: the clock has moved on,
    their tag falls back behind it. While a deadline waits at the clock, short tasks make the estimate small and use up what
    they got back; and just before their tag is at the clock, all slots go to long ones.
    """
    before = -(-_MANY // slots)
    behind = round((slots - 1) * longest)
    short = (behind - 2 * slots) // slots * slots
    tasks = [(0.0, longest)] * (before * slots)
    tasks += [(0.0, 1.0)] * (slots + short) + [(0.0, longest)] * slots + [(0.0, 1.0)] * slots
    arrives = before * longest + 0.5
    classes = (ServiceClass.DEADLINE, TASK)
    holds = {ServiceClass.DEADLINE: 1.0, TASK: longest}
    scenario = Scenario(
        name="overcharged",
        seconds=arrives + 4 * longest,
        streams=(
            Told(service_class=TASK, work=tasks),
            Told(service_class=ServiceClass.DEADLINE, work=[(arrives, 1.0)] * (4 * slots)),
        ),
        slots=slots,
        loop_seconds=1.0,
    )
    deployment = Deployment(slots=slots, pools={POOL: None}, loop_seconds=1.0, hold_seconds=holds)
    return World(deployment, Settings(initial_hold_seconds=1.0), scenario, classes)


def world(seed: int, *, reserves: bool = True, quotas_at_all: bool = True) -> World:
    """Any world: holds that vary wildly, bursts, limits and reserves, one scheduler or several, a pool that is short or not.

    Args:
        seed: Which.
        reserves: Whether there may be reserves.
        quotas_at_all: Whether there may be reserves and limits; without them, the policy is fair, too.
    """
    dice = random.Random(seed)  # noqa: S311 - not for secrets
    classes = tuple(sorted(dice.sample(CLASS_ORDER, dice.choice([2, 2, 3, 4])), key=CLASS_ORDER.index))
    schedulers = dice.choice([1, 1, 1, 2, 3])
    pooled = dice.random() < 0.3
    shared = dice.randint(1, 6)
    slots = shared * 2 + 4 if pooled else shared
    loop = dice.choice([0.5, 1.0, 2.0, 5.0])
    quotas = {}
    left = shared - 1
    for cls in classes:
        reserve = dice.randint(0, left) if reserves and dice.random() < 0.35 else 0
        left -= reserve
        limit = dice.randint(max(1, reserve), shared) if dice.random() < 0.2 else None
        if quotas_at_all and (reserve or limit is not None):
            quotas[cls] = Quota(reserve_slots=reserve, limit_slots=limit)
    settings = Settings(
        policy=dice.choice([Policy.FAIR] * 8 + [Policy.CALLBACKS_FIRST, Policy.TASKS_FIRST] * quotas_at_all),
        weights={cls: dice.choice([250, 500, 1000, 1000, 1000, 2000, 4000]) for cls in classes},
        slot_quotas={} if pooled else quotas,
        pool_quotas={POOL: {cls: PoolShare(quota=quota) for cls, quota in quotas.items()}} if pooled else {},
        initial_hold_seconds=dice.choice([0.1, 1.0, 30.0]),
    )
    holds, streams = {}, []
    for cls in classes:
        longest = dice.choice([1.0, 5.0, 20.0, 60.0])
        short = [longest * dice.choice([0.001, 0.01, 0.1, 0.5]) for _ in range(dice.randint(1, 6))]
        holds[cls] = longest
        drawn = Empirical(seconds=(longest, *short))
        count = dice.randint(1, 3)
        for number in range(count):
            storms = Storms(at_seconds=tuple(dice.uniform(0, 400) for _ in range(dice.randint(1, 4))))
            steady = Poisson(rate_per_second=dice.choice([0.02, 0.1, 0.5]))
            streams.append(
                Stream(
                    name=f"{cls} {number}",
                    service_class=cls,
                    holds=drawn,
                    arrivals=storms if dice.random() < 0.7 else steady,
                    batch=dice.choice([1, 5, 40]),
                )
            )
        if cls is TASK and dice.random() < 0.5:
            streams.append(Stream(name="endless", service_class=cls, holds=drawn))
    cap = dice.choice([None, None, None, 1, 2]) if not pooled else None
    pools = {POOL: shared if pooled else None}
    deployment = Deployment(
        slots=slots,
        schedulers=schedulers,
        pools=pools,
        loop_seconds=loop,
        tasks_per_query=cap,
        hold_seconds=holds,
    )
    scenario = Scenario(
        name=str(seed),
        seconds=600,
        streams=tuple(streams),
        slots=slots,
        schedulers=schedulers,
        pools=pools,
        loop_seconds=loop,
        tasks_per_query=cap,
    )
    return World(deployment, settings, scenario, classes)
