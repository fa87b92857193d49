"""Who of the waiting goes next, and who can go along.

These are asked in each scheduler loop, so each is a scan of index ranges that ends after the rows it returns,
however many items wait or are done. Statements are built once per shape, so that SQLAlchemy finds the compiled
form again; see `callback_priority.persistence.tables` for the indexes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import (
    Connection,
    Integer,
    Select,
    String,
    Uuid,
    bindparam,
    case,
    cast,
    func,
    literal,
    select,
    union_all,
)

from callback_priority.core.classes import CALLBACK_CLASSES, CLASS_ORDER, ServiceClass
from callback_priority.persistence.airflow_tables import CALLBACK_PENDING, callback_table
from callback_priority.persistence.statements import PARTS_PER_STATEMENT, chunks
from callback_priority.persistence.tables import ItemState, item_table

__all__ = ["BATCH", "Head", "Pair", "companions", "heads", "waiting_pairs"]

Pair = tuple[ServiceClass, str]
"""A class and the pool that its callback draws on."""

_ITEM = item_table.c
_CLASSES: Final = {service_class.value: service_class for service_class in ServiceClass}
_PLACES: Final = {service_class: place for place, service_class in enumerate(CLASS_ORDER)}


@attrs.frozen(kw_only=True)
class Head:
    """A waiting callback that could be granted next.

    Args:
        callback_id: Key of Airflow's ``callback`` row.
        service_class: The class that it competes in.
        pool: The pool that it draws on.
        dag_id: Its Dag.
        dag_run_id: Key of its Dag run.
        executor: The executor it asks for.
        rank: Its place in its class and pool, in microseconds since the epoch; the smallest goes first.
        priority: The priority that went into the rank.
        enqueued_at: When it began to wait.
        attempts: How often it has been granted before.
        batch: Those with the same one may share a run.
    """

    callback_id: UUID
    service_class: ServiceClass
    pool: str
    dag_id: str
    dag_run_id: int | None
    executor: str | None
    rank: int
    priority: int
    enqueued_at: datetime
    attempts: int
    batch: str | None


BATCH: Final = case((_ITEM.failures == 0, _ITEM.batch)).label("batch")
"""The batch of a callback that may share a run. One that came to nothing before goes alone: what ends its worker
each time must not take others with it."""


def _waiting_pairs_statement() -> Select[Any]:
    """A loose index scan: from each pool of a class jump to the next, so the cost is pairs, not items.

    The first of an order and not ``min()``: where statistics say that nothing waits, PostgreSQL reckons that
    aggregating over the whole range costs the same.
    """
    first = [
        select(
            cast(literal(service_class.value), String(16)).label("service_class"),
            select(_ITEM.pool)
            .where(_ITEM.state == ItemState.WAITING.value, _ITEM.service_class == service_class.value)
            .order_by(_ITEM.pool)
            .limit(1)
            .scalar_subquery()
            .label("pool"),
        )
        for service_class in CALLBACK_CLASSES
    ]
    pairs = select(union_all(*first).subquery("first")).cte("pairs", recursive=True)
    following = (
        select(_ITEM.pool)
        .where(
            _ITEM.state == ItemState.WAITING.value,
            _ITEM.service_class == pairs.c.service_class,
            _ITEM.pool > pairs.c.pool,
        )
        .order_by(_ITEM.pool)
        .limit(1)
        .scalar_subquery()
    )
    pairs = pairs.union_all(select(pairs.c.service_class, following).where(pairs.c.pool.is_not(None)))
    return select(pairs.c.service_class, pairs.c.pool).where(pairs.c.pool.is_not(None))


_WAITING_PAIRS: Final = _waiting_pairs_statement()


def waiting_pairs(conn: Connection) -> list[Pair]:
    """Which classes have callbacks waiting in which pools, in one statement.

    Complexity: O(pairs) probes of an index, whatever the backlog.
    """
    found = [(_CLASSES[row.service_class], row.pool) for row in conn.execute(_WAITING_PAIRS)]
    return sorted(found, key=lambda pair: (_PLACES[pair[0]], pair[1]))


def heads(
    conn: Connection, limits: Mapping[Pair, int], *, passing_over: Collection[str | None] = ()
) -> list[Head]:
    """The first waiting callbacks of each class and pool, in one statement for up to 128 pairs.

    Args:
        conn: Connection to Airflow's metadata database.
        limits: How many to fetch at most of each pair; pairs without a positive number are left out.
        passing_over: Executors, as callbacks ask for them, whose callbacks are left out; those are read all
            the same, so this costs a walk over the ones in front.

    Returns:
        By class and pool, then in the order in which they go.

    Complexity: O(rows returned + pairs * log items).
    """
    found: list[Head] = []
    wanted = [(pair, limit) for pair, limit in limits.items() if limit > 0]
    names = sorted(name or "" for name in passing_over)
    for piece in chunks(wanted, PARTS_PER_STATEMENT):
        parameters: dict[str, Any] = {"passing_over": names} if names else {}
        for place, ((service_class, pool), limit) in enumerate(piece):
            parameters[f"class_{place}"] = service_class.value
            parameters[f"pool_{place}"] = pool
            parameters[f"limit_{place}"] = limit
        rows = conn.execute(_heads_statement(len(piece), passing_over=bool(names)), parameters)
        # Taken apart by position: a row's attributes cost more than all the rest of this loop.
        for (
            callback_id,
            service_class_name,
            pool,
            dag_id,
            dag_run_id,
            executor,
            rank,
            priority,
            enqueued_at,
            attempts,
            batch,
        ) in rows:
            found.append(
                Head(
                    callback_id=callback_id,
                    service_class=_CLASSES[service_class_name],
                    pool=pool,
                    dag_id=dag_id,
                    dag_run_id=dag_run_id,
                    executor=executor,
                    rank=rank,
                    priority=priority,
                    enqueued_at=enqueued_at,
                    attempts=attempts,
                    batch=batch,
                )
            )
    found.sort(key=lambda head: (_PLACES[head.service_class], head.pool, head.rank, head.callback_id))
    return found


@lru_cache(maxsize=2 * PARTS_PER_STATEMENT)
def _heads_statement(pairs: int, *, passing_over: bool) -> Any:
    columns = [_ITEM[field.name] for field in attrs.fields(Head) if field.name != "batch"] + [BATCH]
    others = func.coalesce(_ITEM.executor, "").not_in(bindparam("passing_over", type_=String, expanding=True))
    parts = []
    for place in range(pairs):
        part = (
            select(*columns)
            .where(
                _ITEM.state == ItemState.WAITING.value,
                _ITEM.service_class == bindparam(f"class_{place}", type_=String),
                _ITEM.pool == bindparam(f"pool_{place}", type_=String),
                *([others] if passing_over else []),
            )
            .order_by(_ITEM.rank, _ITEM.callback_id)
            .limit(bindparam(f"limit_{place}", type_=Integer))
            .subquery(f"head_{place}")
        )
        parts.append(select(part))
    return parts[0] if pairs == 1 else union_all(*parts)


def companions(
    conn: Connection, leaders: Sequence[tuple[UUID, str]], limit: int, *, apart_from: Collection[UUID] = ()
) -> dict[UUID, dict[UUID, int]]:
    """Who can share the runs of callbacks that are granted, in one statement for up to 128 batches.

    The waiting callbacks of a batch are dealt out in the order in which they go: several leaders of one batch
    share them, so that no run is long while another is empty. Their callbacks are pending and, where the
    database can, locked; those that somebody else has locked are passed over.

    Args:
        conn: Connection to Airflow's metadata database.
        leaders: The callbacks granted and their batches.
        limit: The most that ride along with one leader.
        apart_from: Others that are granted too.

    Returns:
        Those that ride along, each with how often it was granted before, by leader; leaders without any are left out.

    Complexity: O(rows returned + batches * log items).
    """
    by_batch: dict[str, list[UUID]] = {}
    for leader, batch in leaders:
        by_batch.setdefault(batch, []).append(leader)
    granted = sorted({*apart_from, *(leader for leader, _ in leaders)})
    found: dict[UUID, dict[UUID, int]] = {}
    if limit <= 0:
        return found
    for piece in chunks(by_batch.items(), PARTS_PER_STATEMENT):
        shape = 1 << (len(piece) - 1).bit_length()
        parameters: dict[str, Any] = {"granted": granted}
        for place in range(shape):
            batch, leading = piece[min(place, len(piece) - 1)]
            parameters[f"batch_{place}"] = batch
            # A part that is only there for the shape finds nothing.
            parameters[f"limit_{place}"] = limit * len(leading) if place < len(piece) else 0
        dealt: dict[str, int] = {}
        rows = conn.execute(_companions_statement(shape), parameters).all()
        for callback_id, batch, _, attempts in sorted(rows, key=lambda row: (row.rank, row.callback_id)):
            leading = by_batch[batch]
            place = dealt[batch] = dealt.get(batch, -1) + 1
            found.setdefault(leading[place % len(leading)], {})[callback_id] = attempts
    return found


@lru_cache(maxsize=16)
def _companions_statement(batches: int) -> Any:
    parts = []
    for place in range(batches):
        part = (
            select(_ITEM.callback_id, _ITEM.batch, _ITEM.rank, _ITEM.attempts)
            .join(callback_table, callback_table.c.id == _ITEM.callback_id)
            .where(
                _ITEM.batch == bindparam(f"batch_{place}", type_=String),
                _ITEM.state == ItemState.WAITING.value,
                _ITEM.failures == 0,
                _ITEM.callback_id.not_in(bindparam("granted", type_=Uuid, expanding=True)),
                callback_table.c.state == CALLBACK_PENDING,
            )
            .order_by(_ITEM.rank)
            .limit(bindparam(f"limit_{place}", type_=Integer))
            .with_for_update(of=callback_table, skip_locked=True)
            .subquery(f"batch_{place}")
        )
        parts.append(select(part))
    return parts[0] if batches == 1 else union_all(*parts)
