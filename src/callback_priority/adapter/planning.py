"""From Airflow's state to the core's snapshot, and from a decision to what Airflow's selection is offered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from datetime import datetime
from math import inf
from typing import TYPE_CHECKING, Any, Final, Protocol
from uuid import UUID

import attrs
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.pool import Pool
from airflow.models.taskinstance import TaskInstance
from airflow.utils.state import DagRunState, TaskInstanceState
from sqlalchemy import func, select

from callback_priority.compat.executors import may_run_callbacks
from callback_priority.compat.rows import selection_order
from callback_priority.core.classes import CLASS_ORDER, FlowKey, ServiceClass
from callback_priority.core.flows import FlowState
from callback_priority.core.snapshot import Backlog, Candidate, Decision, PoolSlots, Snapshot
from callback_priority.persistence.waiting import Head, Pair, heads

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from callback_priority.adapter.inflight import InFlight, Occupancy

__all__ = ["Aside", "PlanInput", "Planned", "Router", "offered_pools", "snapshot_of", "without"]

_NARROW: Final = Candidate()
_ENDLESS: Final = 1 << 60
_AT_ONCE: Final = 1_000
"""The most callbacks of one class and pool that are set aside in one pass."""


@attrs.frozen(kw_only=True)
class PlanInput:
    """What a snapshot is made of.

    Args:
        epoch_us: The present, in microseconds since the epoch.
        pools: Airflow's pool statistics.
        held: Pool slots held by granted callbacks of living schedulers.
        occupancy: What this scheduler's executors hold.
        parallelism: The scheduler's slots.
        flows: The flows, settled.
        pairs: Which classes wait in which pools.
        batch_size: The most callbacks that share a run.
        alive_since: Of the classes whose callbacks have a time to live, when the oldest began to wait that still may run.
        asks: Whether Airflow's selection is sure to be asked if tasks are offered slots.
    """

    epoch_us: int
    pools: Mapping[str, Any]
    held: Mapping[tuple[str, ServiceClass], int]
    occupancy: Occupancy
    parallelism: int
    flows: Mapping[FlowKey, FlowState]
    pairs: Sequence[Pair]
    batch_size: int = 1
    alive_since: Mapping[ServiceClass, datetime] = attrs.field(factory=dict)
    asks: bool = False

    def may_run(self, head: Head) -> bool:
        """Whether a callback's time to live has not passed."""
        since = self.alive_since.get(head.service_class)
        return since is None or head.enqueued_at >= since

    @property
    def free_slots(self) -> int:
        """The scheduler's free slots, as far as its executors have room."""
        room = sum(max(0, free) for free in self.occupancy.free.values())
        return min(self.parallelism - self.occupancy.total, room)


@attrs.frozen(kw_only=True)
class Planned:
    """What waits, as far as it could be granted.

    Args:
        snapshot: What is decided upon.
        aside: Callbacks to set aside.
        never: Callbacks that can never run, each with the reason.
        outlived: Whether some were left out that have waited longer than their time to live.
    """

    snapshot: Snapshot
    aside: list[Aside]
    never: dict[UUID, str]
    outlived: bool


@attrs.frozen(kw_only=True)
class Aside:
    """A callback that cannot run now, though it may later."""

    callback_id: UUID
    reason: str


class Routable(Protocol):
    """Says where a callback wants to run."""

    @property
    def callback_id(self) -> UUID: ...
    @property
    def dag_id(self) -> str: ...
    @property
    def pool(self) -> str: ...
    @property
    def executor(self) -> str | None: ...


class _Wanted:
    """What Airflow's routing asks of a workload."""

    def __init__(self, dag_id: str, executor: str | None) -> None:
        self._dag_id, self._executor = dag_id, executor

    def get_dag_id(self) -> str | None:
        return self._dag_id or None

    def get_executor_name(self) -> str | None:
        return self._executor


class Router:
    """Finds each callback's executor by Airflow's own rules, teams included.

    Args:
        runner: Airflow's scheduler.
        in_flight: Knows the executors' labels.
    """

    def __init__(self, runner: Any, in_flight: InFlight) -> None:
        self.runner = runner
        self.in_flight = in_flight
        self.unsupported: set[str] = set()

    def cannot_run(self, label: str) -> bool:
        """Whether an executor is known to refuse callbacks.

        The flag alone does not tell (EdgeExecutor runs callbacks without setting it): an executor that takes
        workloads in its own way is tried once, and its NotImplementedError remembered.
        """
        if label in self.unsupported:
            return True
        return not may_run_callbacks(self.in_flight.by_label[label])

    def route(
        self, session: Session, found: Iterable[Routable]
    ) -> tuple[dict[UUID, str], list[Aside], dict[UUID, str]]:
        """Find where callbacks can run.

        Returns:
            The executor's label by callback; those to be set aside, since what they lack may come back; and
            those that can never run, with the reason.
        """
        labels: dict[UUID, str] = {}
        aside: list[Aside] = []
        never: dict[UUID, str] = {}
        known: dict[tuple[str | None, str | None], str | None] = {}
        found = list(found)
        teams: Mapping[str, str | None] = {}
        pool_teams: Mapping[str, str | None] = {}
        if self.runner._multi_team and found:
            teams = self.runner._get_team_names_for_dag_ids({head.dag_id for head in found}, session)
            pool_teams = Pool.get_name_to_team_name_mapping(
                sorted({head.pool for head in found}), session=session
            )
        for head in found:
            team = teams.get(head.dag_id)
            pool_team = pool_teams.get(head.pool)
            if pool_team and pool_team != team:
                aside.append(
                    Aside(
                        callback_id=head.callback_id,
                        reason=f"pool {head.pool!r} belongs to team {pool_team!r}, its Dag to {team!r}",
                    )
                )
                continue
            wanted = (head.executor, team)
            if wanted not in known:
                executor = self.runner._try_to_load_executor(
                    _Wanted(head.dag_id, head.executor), session, team_name=team
                )
                known[wanted] = None if executor is None else self.in_flight.label_of[id(executor)]
            label = known[wanted]
            if label is None:
                aside.append(
                    Aside(
                        callback_id=head.callback_id,
                        reason=f"executor {head.executor!r} is not configured in this scheduler",
                    )
                )
            elif self.cannot_run(label):
                name = type(self.in_flight.by_label[label]).__name__
                never[head.callback_id] = f"executor {name} does not run callbacks"
            else:
                labels[head.callback_id] = label
        return labels, aside, never


def snapshot_of(session: Session, plan: PlanInput, router: Router) -> Planned:
    """Read what waits, as much of it as could be granted, into a snapshot.

    Args:
        session: The critical section's session.
        plan: What is known already.
        router: Finds executors.
    """
    free = plan.free_slots
    pools = {name: _pool_slots(name, stats, plan.held) for name, stats in plan.pools.items()}
    open_pools = {name for name, slots in pools.items() if slots.open_slots is None or slots.open_slots > 0}
    open_pairs = {pair: free + 1 for pair in plan.pairs if free > 0 and pair[1] in open_pools}
    fetched = _fetch(session, plan, router, open_pairs)
    aside = [*fetched.aside, *_without_pool(session, plan.pairs, pools)]
    found, labels = fetched.heads, fetched.labels
    waiting: dict[Pair, list[Candidate]] = {}
    batches: dict[Hashable, str] = {}
    for head in found:
        if head.callback_id in labels:
            waiting.setdefault((head.service_class, head.pool), []).append(
                Candidate(id=head.callback_id, executor=labels[head.callback_id], rank=head.rank)
            )
            if head.batch is not None:
                batches[head.callback_id] = head.batch
    tasks: list[Backlog] = []
    if free > 0:
        shared = {pool for _, pool in waiting if pools[pool].open_slots is not None}
        tasks = _task_backlogs(session, plan.pools, shared, free)
    if batches and plan.batch_size > 1:
        sizes = Counter((head.service_class, head.pool) for head in found)
        whole = [pair for pair in waiting if sizes[pair] <= free]
        if sum(map(len, waiting.values())) + sum(len(each.candidates) for each in tasks) > free:
            waiting |= {pair: _leading(waiting[pair], batches, plan.batch_size) for pair in whole}
    backlogs = [
        Backlog(service_class=service_class, pool=pool, candidates=candidates)
        for (service_class, pool), candidates in waiting.items()
    ]
    backlogs += tasks
    snapshot = Snapshot(
        now=plan.epoch_us,
        free_slots=free,
        pools=pools,
        backlogs=backlogs,
        held=plan.occupancy.held,
        executor_slots=plan.occupancy.free,
        flows=plan.flows,
        asks=plan.asks,
    )
    return Planned(snapshot=snapshot, aside=aside, never=fetched.never, outlived=fetched.outlived)


def _leading(
    candidates: Sequence[Candidate], batches: Mapping[Hashable, str], batch_size: int
) -> list[Candidate]:
    """The candidates without those that ride along with an earlier one of the same batch.

    While slots are free for all, each callback gets one of its own: that is the fastest, and a callback that
    hangs delays nobody. Where there are fewer slots than work, what could share a run would only take slots from
    others, and its class would pay for loading the same Dag file several times; so it shares. This is done where
    all that waits of a class in a pool is at hand: each of them then has a slot or a seat, and the class gives
    up nothing. A longer backlog is left as it is, since its class must be seen to wait for all of its share;
    there each that is granted a slot takes companions from the rest.

    Args:
        candidates: All that waits of one class in one pool, in the order in which they go.
        batches: What those that may share a run have in common.
        batch_size: The most that share a run.
    """
    seats: Counter[tuple[str, str | None]] = Counter()
    leading = []
    for candidate in candidates:
        batch = batches.get(candidate.id)
        if batch is not None:
            run = batch, candidate.executor
            if seats[run]:
                seats[run] -= 1
                continue
            seats[run] = batch_size - 1
        leading.append(candidate)
    return leading


@attrs.frozen(kw_only=True)
class _Fetched:
    """Callbacks that could be granted next.

    Args:
        heads: In the order in which they go.
        labels: Their executors' labels.
        aside: To be set aside.
        never: Can never run.
        outlived: Whether some were left out that have waited for too long.
    """

    heads: list[Head]
    labels: dict[UUID, str]
    aside: list[Aside]
    never: dict[UUID, str]
    outlived: bool


def _fetch(session: Session, plan: PlanInput, router: Router, limits: dict[Pair, int]) -> _Fetched:
    """The callbacks that could be granted next, and where they can run.

    A full executor must not hide what others could run. Where its callbacks fill the fetch and slots would
    stay empty for it, the fetch is done again without them. That needs an executor with fewer slots than the
    scheduler, so in most deployments there is one fetch.
    """
    found: dict[UUID, Head] = {}
    labels: dict[UUID, str] = {}
    aside: list[Aside] = []
    never: dict[UUID, str] = {}
    crowded: set[str | None] = set()
    outlived = False
    while limits:
        fetched = heads(session.connection(), limits, passing_over=crowded)
        unseen = [head for head in fetched if head.callback_id not in found]
        new = [head for head in unseen if plan.may_run(head)]
        outlived = outlived or len(new) < len(unseen)
        found |= {head.callback_id: head for head in new}
        routed = router.route(session, new)
        labels |= routed[0]
        aside += routed[1]
        never |= routed[2]
        asked = Counter(labels.values())
        room = {label: max(0, plan.occupancy.free[label]) for label in asked}
        if sum(min(asked[label], room[label]) for label in asked) >= plan.free_slots:
            break
        full = {label for label in asked if asked[label] > room[label]}
        more = {head.executor for head in new if labels.get(head.callback_id) in full}
        sizes = Counter((head.service_class, head.pool) for head in fetched)
        limits = {pair: limit for pair, limit in limits.items() if sizes[pair] >= limit} if more else {}
        crowded |= more
    in_order = list(found.values())
    if crowded:
        in_order.sort(
            key=lambda head: (CLASS_ORDER.index(head.service_class), head.pool, head.rank, head.callback_id)
        )
    return _Fetched(heads=in_order, labels=labels, aside=aside, never=never, outlived=outlived)


def _without_pool(session: Session, pairs: Sequence[Pair], pools: Collection[str]) -> list[Aside]:
    """The first of those that wait in pools which do not exist: such a pool may be made again.

    Airflow lets task instances of a missing pool wait without a word; a callback says what it waits for, and not for
    ever.
    """
    limits = {pair: _AT_ONCE for pair in pairs if pair[1] not in pools}
    if not limits:
        return []
    return [
        Aside(callback_id=head.callback_id, reason=f"pool {head.pool!r} does not exist")
        for head in heads(session.connection(), limits)
    ]


def _pool_slots(
    name: str, stats: Mapping[str, Any], held: Mapping[tuple[str, ServiceClass], int]
) -> PoolSlots:
    """A pool net of what callbacks hold; Airflow's statistics count task instances only."""
    by_class = {service_class: slots for (pool, service_class), slots in held.items() if pool == name}
    callbacks = sum(by_class.values())
    if stats["total"] == inf:
        by_class[ServiceClass.TASK] = stats["running"] + stats["queued"]
        return PoolSlots(open_slots=None, held=by_class)
    by_class[ServiceClass.TASK] = stats["total"] - stats["open"]
    return PoolSlots(open_slots=stats["open"] - callbacks, total_slots=stats["total"], held=by_class)


def _task_backlogs(session: Session, pools: Mapping[str, Any], shared: set[str], free: int) -> list[Backlog]:
    """What waits of task instances, by pool: anonymous candidates, with the width of a wide head."""
    scheduled = {pool: int(stats["scheduled"]) for pool, stats in pools.items() if stats["scheduled"] > 0}
    widths = _wide_heads(session, sorted(shared & scheduled.keys()))
    backlogs = []
    for pool, slots in scheduled.items():
        candidates = [_NARROW] * min(slots, free + 1)
        if pool in widths:
            candidates[0] = Candidate(width=widths[pool])
        backlogs.append(Backlog(service_class=ServiceClass.TASK, pool=pool, candidates=candidates))
    return backlogs


def _wide_heads(session: Session, pools: Sequence[str]) -> dict[str, int]:
    """The width of the first waiting task instance, for those pools where it takes more than one slot."""
    if not pools:
        return {}
    state, pool, width = TaskInstance.state, TaskInstance.pool, TaskInstance.pool_slots
    wide = session.scalars(
        select(pool).where(state == TaskInstanceState.SCHEDULED, pool.in_(pools), width > 1).group_by(pool)
    ).all()
    if not wide:
        return {}
    place = func.row_number().over(partition_by=pool, order_by=selection_order()).label("place")
    ranked = (
        select(pool.label("pool"), width.label("width"), place)
        .join(TaskInstance.dag_run)
        .join(TaskInstance.dag_model)
        .where(
            state == TaskInstanceState.SCHEDULED,
            pool.in_(wide),
            DagRun.state == DagRunState.RUNNING,
            ~DagModel.is_paused,
        )
        .subquery()
    )
    first = select(ranked.c.pool, ranked.c.width).where(ranked.c.place == 1, ranked.c.width > 1)
    return {row.pool: row.width for row in session.execute(first)}


def offered_pools(pools: Mapping[str, Any], decision: Decision) -> dict[str, Any]:
    """Airflow's pool statistics with only those slots open that are the tasks'."""
    offered = {}
    for name, stats in pools.items():
        slots = decision.task_pool_slots.get(name, 0)
        offered[name] = {**stats, "open": inf if slots > _ENDLESS else slots}
    return offered


def without(snapshot: Snapshot, ids: set[UUID]) -> Snapshot:
    """The snapshot without some callbacks."""
    return attrs.evolve(
        snapshot,
        backlogs=[
            attrs.evolve(
                backlog,
                candidates=[each for each in backlog.candidates if each.id is None or each.id not in ids],
            )
            for backlog in snapshot.backlogs
        ],
    )
