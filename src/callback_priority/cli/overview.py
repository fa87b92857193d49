"""What ``status`` shows: both levels of contention, class by class, as values."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, Final

import attrs
from sqlalchemy import Connection

from callback_priority.cli.narrowing import Narrowing
from callback_priority.cli.surroundings import living_since, parallelism, reading
from callback_priority.cli.surroundings import settings as read_settings
from callback_priority.cli.text import count
from callback_priority.core.accounting import recent
from callback_priority.core.classes import CLASS_ORDER, SCHEDULER_SCOPE, FlowKey, Level, ServiceClass
from callback_priority.core.flows import FlowState
from callback_priority.core.units import MICROSECONDS, MILLI
from callback_priority.errors import ConfigurationError
from callback_priority.persistence import deployment, status
from callback_priority.persistence.flows import State, read_state
from callback_priority.policy.settings import Mode, Settings

__all__ = ["ClassLine", "Overview", "PoolLines", "Share", "overview", "shares", "view"]

EVERYTHING: Final = Narrowing()

THE_BEGINNING: Final = datetime(1970, 1, 2, tzinfo=timezone.utc)

RECENT_WAITS: Final = timedelta(hours=1)

STILL_COUNTS: Final = 0.01
"""A class had work of late if it was given this part of a scope's recent slot-time, though it is idle now."""


@attrs.frozen(kw_only=True)
class Share:
    """What one class got of a scope, and what its weight entitles it to.

    Args:
        recent: Its share of the recent slot-time; ``None`` if there was none.
        entitled: Its weight's share among the classes that had work of late; ``None`` if it had none.
    """

    recent: float | None
    entitled: float | None


@attrs.frozen(kw_only=True)
class ClassLine:
    """One class in one scope.

    Args:
        service_class: The class.
        weight: Its weight there.
        waiting: Workloads that wait for a slot.
        parked: Callbacks set aside.
        held: Slots held: of the schedulers, or of the pool.
        recent_share: Its share of the slot-time given out of late, from 0 to 1.
        entitled_share: Its share by weight, from 0 to 1.
        oldest_wait_seconds: How long the oldest waiting workload has waited.
        reserve_slots: Slots held back for it, of the pool or of each scheduler.
        limit_slots: The most that it may hold, of the pool or of each scheduler; ``None`` for no limit.
        finished: Callbacks that finished within the last hour; for the scheduler only.
        wait_p50_seconds: How long half of those had waited at most.
        wait_p95_seconds: How long 95% of those had waited at most.
    """

    service_class: str
    weight: float
    waiting: int
    parked: int
    held: int
    recent_share: float | None
    entitled_share: float | None
    oldest_wait_seconds: float | None
    reserve_slots: int
    limit_slots: int | None
    finished: int | None = None
    wait_p50_seconds: float | None = None
    wait_p95_seconds: float | None = None


@attrs.frozen(kw_only=True)
class PoolLines:
    """One pool.

    Args:
        pool: Its name.
        slots: Its slots; ``None`` for no end.
        exists: Whether Airflow has it (still).
        classes: The classes that use it or have a quota in it.
    """

    pool: str
    slots: int | None
    exists: bool
    classes: tuple[ClassLine, ...]


@attrs.frozen(kw_only=True)
class Overview:
    """The whole picture.

    Args:
        at: When it was taken.
        mode: The mode that is configured.
        policy: The policy that is configured.
        schedulers: How many schedulers are alive.
        parallelism: The slots of each.
        pending_without_item: Pending callbacks that the library does not know of.
        notes: What a reader has to know to read it.
        classes: Every class, over all pools.
        pools: The pools that are used or have quotas.
        kinds: Where the callbacks of each kind stand, the history included.
        requests: What became of the requests in the history.
    """

    at: datetime
    mode: str
    policy: str
    schedulers: int
    parallelism: int
    pending_without_item: int
    notes: tuple[str, ...]
    classes: tuple[ClassLine, ...]
    pools: tuple[PoolLines, ...]
    kinds: tuple[status.KindCount, ...]
    requests: tuple[status.RequestCount, ...]


def overview(narrow: Narrowing = EVERYTHING) -> Overview:
    """Read the database and the configuration.

    Args:
        narrow: What is asked for.

    Raises:
        CommandError: The database cannot be reached, or the tables are missing.
    """
    with reading() as connection:
        return _read(connection, narrow)


def _read(connection: Connection, narrow: Narrowing) -> Overview:
    now = datetime.now(timezone.utc)
    alive_since = living_since(now)
    notes = []
    try:
        settings = read_settings()
    except ConfigurationError as error:
        settings = Settings()
        notes.append(
            f"the configuration has {count(len(error.problems), 'problem')}, so Airflow runs unchanged; weights "
            "and quotas shown are the defaults; `callback-priority doctor` lists each"
        )
    if settings.mode is Mode.OFF:
        notes.append("mode is off: Airflow runs unchanged, and nothing is recorded")
    elif settings.mode is Mode.SHADOW:
        notes.append("mode is shadow: Airflow runs unchanged, what it grants is recorded")
    schedulers = deployment.living_schedulers(connection, living_since=alive_since)
    strays = deployment.pending_without_item(connection)
    if strays.count:
        notes.append(f"{count(strays.count, 'pending callback')} not in the queue yet, and not counted below")
    state = read_state(connection, living_since=alive_since)
    put_together = functools.partial(
        view,
        settings=settings,
        tasks=deployment.task_loads(connection),
        pool_slots=deployment.pool_slots(connection),
        now=now,
    )
    hour_ago = now - RECENT_WAITS
    classes, pools = put_together(
        state=state, backlog=status.backlog(connection), waits=status.waits(connection, since=hour_ago)
    )
    if narrow.kinds:
        held = status.held_by_kinds(connection, kinds=narrow.kinds, living_since=alive_since)
        part = put_together(
            state=attrs.evolve(state, held=held),
            backlog=status.backlog(connection, kinds=narrow.kinds),
            waits=status.waits(connection, since=hour_ago, kinds=narrow.kinds),
        )
        classes, pools = with_counts_of(part, (classes, pools))
    classes, pools = narrowed(classes, pools, narrow)
    return Overview(
        at=now,
        mode=str(settings.mode),
        policy=str(settings.policy),
        schedulers=len(schedulers),
        parallelism=parallelism(),
        pending_without_item=strays.count,
        notes=tuple(notes),
        classes=classes,
        pools=pools,
        kinds=tuple(each for each in status.kind_counts(connection) if narrow.counts(each.kind)),
        requests=tuple(
            each
            for each in status.request_counts(connection, since=THE_BEGINNING)
            if narrow.counts(each.kind)
        ),
    )


def shares(
    flows: Mapping[FlowKey, FlowState],
    *,
    level: Level,
    scope: str,
    settings: Settings,
    busy: Collection[ServiceClass],
    now: datetime,
) -> dict[ServiceClass, Share]:
    """What each class got of a scope of late, beside what its weight entitles it to.

    Args:
        flows: Every flow.
        level: Pool or scheduler.
        scope: The pool's name, or `SCHEDULER_SCOPE`.
        settings: Today's weights.
        busy: Classes that want or hold slots of the scope now.
        now: The present.
    """
    now_us = int(now.timestamp() * MICROSECONDS)
    given = {}
    for service_class in CLASS_ORDER:
        flow = flows.get(FlowKey(level, scope, service_class))
        given[service_class] = max(0, recent(flow, 0, now_us)) if flow else 0
    total = sum(given.values())
    had_work = [
        each for each in CLASS_ORDER if each in busy or (total and given[each] / total >= STILL_COUNTS)
    ]
    weights = {each: settings.weight(level, scope, each) for each in had_work}
    return {
        each: Share(
            recent=given[each] / total if total else None,
            entitled=weights[each] / sum(weights.values()) if each in weights else None,
        )
        for each in CLASS_ORDER
    }


@attrs.define
class _Use:
    """What a class wants and holds of a scope."""

    waiting: int = 0
    parked: int = 0
    held: int = 0
    since: datetime | None = None

    def add(self, waiting: int, parked: int, held: int, since: datetime | None) -> None:
        self.waiting += waiting
        self.parked += parked
        self.held += held
        if since is not None:
            self.since = since if self.since is None else min(self.since, since)


def view(
    *,
    settings: Settings,
    state: State,
    backlog: Collection[status.Backlog],
    waits: Collection[status.Waits],
    tasks: Collection[deployment.TaskLoad],
    pool_slots: Mapping[str, int | None],
    now: datetime,
) -> tuple[tuple[ClassLine, ...], tuple[PoolLines, ...]]:
    """Put together what was read.

    Returns:
        Every class over all pools, and the pools that are used or have quotas.
    """
    everywhere = {each: _Use() for each in CLASS_ORDER}
    by_pool: dict[str, dict[ServiceClass, _Use]] = {}

    def use(pool: str, service_class: ServiceClass) -> _Use:
        return by_pool.setdefault(pool, {each: _Use() for each in CLASS_ORDER})[service_class]

    for each in backlog:
        for target in (everywhere[each.service_class], use(each.pool, each.service_class)):
            target.add(each.waiting, each.parked, 0, each.oldest_enqueued_at)
    for (pool, service_class), slots in state.held.items():
        for target in (everywhere[service_class], use(pool, service_class)):
            target.add(0, 0, slots, None)
    for load in tasks:
        everywhere[ServiceClass.TASK].add(load.waiting, 0, load.held, load.oldest_scheduled_at)
        use(load.pool, ServiceClass.TASK).add(load.waiting, 0, load.held_pool_slots, load.oldest_scheduled_at)

    finished = {each.service_class: each for each in waits}
    classes = []
    for line in _lines(settings, state, Level.SCHEDULER, SCHEDULER_SCOPE, everywhere, now):
        past = finished.get(ServiceClass(line.service_class))
        known: dict[str, Any] = {}
        if past is not None:
            known = {
                "finished": past.count,
                "wait_p50_seconds": past.p50_seconds,
                "wait_p95_seconds": past.p95_seconds,
            }
        classes.append(attrs.evolve(line, **known))
    names = {key.scope for key in state.flows if key.level is Level.POOL} | by_pool.keys()
    names |= {pool for pool in pool_slots if pool in settings.pool_quotas}
    pools = []
    for pool in sorted(names):
        uses = by_pool.get(pool) or {each: _Use() for each in CLASS_ORDER}
        lines = _lines(settings, state, Level.POOL, pool, uses, now)
        shown = tuple(line for line in lines if _worth_showing(line))
        if shown:
            pools.append(
                PoolLines(pool=pool, slots=pool_slots.get(pool), exists=pool in pool_slots, classes=shown)
            )
    return tuple(classes), tuple(pools)


Lines = tuple[tuple[ClassLine, ...], tuple[PoolLines, ...]]
"""Every class over all pools, and the pools."""


def with_counts_of(part: Lines, whole: Lines) -> Lines:
    """What some kinds of callbacks want and hold, beside the shares that are their whole class's.

    Args:
        part: What `view` makes of those kinds.
        whole: What it makes of everything.
    """
    none: dict[str, Any] = {"waiting": 0, "parked": 0, "held": 0, "oldest_wait_seconds": None}
    none |= dict.fromkeys(("finished", "wait_p50_seconds", "wait_p95_seconds"))

    def counted(lines: Iterable[ClassLine], counts: Iterable[ClassLine]) -> tuple[ClassLine, ...]:
        by_class = {each.service_class: each for each in counts}
        return tuple(
            attrs.evolve(
                line,
                **{
                    name: getattr(by_class[line.service_class], name)
                    if line.service_class in by_class
                    else nothing
                    for name, nothing in none.items()
                },
            )
            for line in lines
        )

    in_pools = {pool.pool: pool.classes for pool in part[1]}
    return counted(whole[0], part[0]), tuple(
        attrs.evolve(pool, classes=counted(pool.classes, in_pools.get(pool.pool, ()))) for pool in whole[1]
    )


def narrowed(classes: Iterable[ClassLine], pools: Iterable[PoolLines], narrow: Narrowing) -> Lines:
    """The lines of the classes that are asked for, and the pools that have any."""

    def asked_for(lines: Iterable[ClassLine]) -> tuple[ClassLine, ...]:
        return tuple(line for line in lines if narrow.shows(ServiceClass(line.service_class)))

    left = [attrs.evolve(pool, classes=asked_for(pool.classes)) for pool in pools]
    return asked_for(classes), tuple(pool for pool in left if pool.classes)


def _lines(
    settings: Settings,
    state: State,
    level: Level,
    scope: str,
    uses: Mapping[ServiceClass, _Use],
    now: datetime,
) -> list[ClassLine]:
    busy = [each for each in CLASS_ORDER if uses[each].waiting or uses[each].held]
    split = shares(state.flows, level=level, scope=scope, settings=settings, busy=busy, now=now)
    lines = []
    for each in CLASS_ORDER:
        use, quota = uses[each], settings.quota(level, scope, each)
        lines.append(
            ClassLine(
                service_class=str(each),
                weight=settings.weight(level, scope, each) / MILLI,
                waiting=use.waiting,
                parked=use.parked,
                held=use.held,
                recent_share=split[each].recent,
                entitled_share=split[each].entitled,
                oldest_wait_seconds=max(0.0, (now - use.since).total_seconds()) if use.since else None,
                reserve_slots=quota.reserve_slots,
                limit_slots=quota.limit_slots,
            )
        )
    return lines


def _worth_showing(line: ClassLine) -> bool:
    return bool(
        line.waiting
        or line.parked
        or line.held
        or line.entitled_share is not None
        or line.reserve_slots
        or line.limit_slots is not None
    )
