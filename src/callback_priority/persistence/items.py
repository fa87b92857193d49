"""The items: one row per callback, from waiting to done.

An item waits, is granted, and is done; one whose executor is missing is parked in between. Items of one batch
may share the run of a worker: one of them leads and holds the slot, its companions are granted with it and name
it as their leader. What the triggerer runs takes no slot at all and is there to be seen. Each function is one
statement (or as many as its docstring says) on the caller's connection and in its transaction.

Everything that runs in each scheduler loop is a scan of an index range that ends after the rows it returns,
however many items wait or are done. Statements are built once per shape, so that SQLAlchemy finds the compiled
form again; see `callback_priority.persistence.tables` for the indexes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import (
    BigInteger,
    Connection,
    Insert,
    Integer,
    Select,
    String,
    Text,
    Update,
    Uuid,
    bindparam,
    case,
    cast,
    func,
    literal,
    null,
    select,
    union_all,
    update,
)

from callback_priority.core.classes import CALLBACK_CLASSES, CLASS_ORDER, ServiceClass
from callback_priority.core.ranking import next_turn_us, rank_us
from callback_priority.core.units import MICROSECONDS, SlotMicros
from callback_priority.persistence.airflow_tables import CALLBACK_PENDING, callback_table
from callback_priority.persistence.statements import (
    KEYS_PER_STATEMENT,
    PARTS_PER_STATEMENT,
    chunks,
    upsert,
    write_rows,
)
from callback_priority.persistence.tables import (
    DAG_ID_LENGTH,
    EXECUTOR_LENGTH,
    POOL_LENGTH,
    ItemState,
    UtcDateTime,
    item_table,
)

__all__ = [
    "GrantedItem",
    "Head",
    "Item",
    "NewItem",
    "any_triggered",
    "companions",
    "enqueue",
    "expire_parked",
    "granted_items",
    "heads",
    "mark_companions",
    "mark_decided",
    "mark_done",
    "mark_granted",
    "park",
    "read_item",
    "record_triggered",
    "requeue",
    "unpark_due",
    "waiting_pairs",
]

Pair = tuple[ServiceClass, str]
"""A class and the pool that its callback draws on."""

LARGEST_INTEGER: Final = 2**31 - 1
BATCH_LENGTH: Final = 64

_ITEM = item_table.c
_CLASSES: Final = {service_class.value: service_class for service_class in ServiceClass}
_PLACES: Final = {service_class: place for place, service_class in enumerate(CLASS_ORDER)}


@attrs.frozen(kw_only=True)
class NewItem:
    """A callback that starts to wait.

    Args:
        callback_id: Key of Airflow's ``callback`` row.
        service_class: The class that it competes in.
        kind: What sort of callback it is, for people (``deadline``, ``on_failure``, ...).
        pool: The pool that it draws on.
        dag_id: Its Dag, empty if it has none that can be read.
        dag_run_id: Key of its Dag run; ``None`` if it has none that can be read.
        executor: The executor it asks for; ``None`` for the default one.
        priority: The larger, the sooner.
        batch: Those with the same one may share a run of a worker; ``None`` if it runs alone.
    """

    callback_id: UUID
    service_class: ServiceClass
    kind: str
    pool: str
    dag_id: str = ""
    dag_run_id: int | None = None
    executor: str | None = None
    priority: int = 1
    batch: str | None = None


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


@attrs.frozen(kw_only=True)
class GrantedItem:
    """A callback that holds a slot, or rides along with one that does.

    Args:
        callback_id: Key of Airflow's ``callback`` row.
        service_class: The class that was charged for it.
        pool: The pool of whose slots it holds one.
        granted_at: When it was granted.
        charge: What was booked for it then, in slot-microseconds.
        leader_id: The callback whose run it shares; ``None`` for one that holds a slot itself.
    """

    callback_id: UUID
    service_class: ServiceClass
    pool: str
    granted_at: datetime
    charge: SlotMicros
    leader_id: UUID | None


@attrs.frozen(kw_only=True)
class Item:
    """All that is known of one callback; the columns of its row (`callback_priority.persistence.tables`)."""

    callback_id: UUID
    service_class: ServiceClass
    kind: str
    pool: str
    dag_id: str
    dag_run_id: int | None
    executor: str | None
    priority: int
    turn: int | None
    rank: int
    state: ItemState
    reason: str | None
    enqueued_at: datetime
    decided_at: datetime | None
    granted_at: datetime | None
    finished_at: datetime | None
    retry_at: datetime | None
    scheduler_job_id: int | None
    attempts: int
    charge: SlotMicros
    batch: str | None
    leader_id: UUID | None


# -- starting to wait -----------------------------------------------------------------------------------------


def enqueue(
    conn: Connection, items: Iterable[NewItem], *, now: datetime, turn_length_us: int, aging_us: int
) -> int:
    """Let callbacks wait, ranked after those of the same Dag, class and priority that wait already.

    A callback whose item is still open is left as it is; one whose item is done waits anew (somebody set it
    back to pending). Values that a column cannot hold are cut to what it can, or dropped if they are numbers:
    they come from data that anybody may have written, and an error of the database would cost the caller
    its transaction.

    Two statements for up to a thousand callbacks of up to 128 different (class, Dag, priority).

    Args:
        conn: Connection to Airflow's metadata database.
        items: The callbacks, in the order in which equals of one Dag go.
        now: The present.
        turn_length_us: The spacing between two turns of one Dag, in microseconds.
        aging_us: The head start of each doubling of the priority, in microseconds.

    Returns:
        How many rows were written.
    """
    wanted = {item.callback_id: item for item in items}
    if not wanted:
        return 0
    now_us = round(now.timestamp() * MICROSECONDS)
    rows = [_row(item, now) for item in wanted.values()]
    last_turns: dict[tuple[str, str, int], int | None] = _last_turns(
        conn, {(row["service_class"], row["dag_id"], row["priority"]): None for row in rows}
    )
    for row in rows:
        queue = row["service_class"], row["dag_id"], row["priority"]
        turn = next_turn_us(now_us, last_turns.get(queue), turn_length_us)
        last_turns[queue] = row["turn"] = turn
        row["rank"] = rank_us(turn, row["priority"], aging_us)
    return write_rows(conn, item_table, _upsert_item(conn.dialect.name), rows)


def record_triggered(conn: Connection, items: Iterable[NewItem], *, now: datetime) -> int:
    """Keep track of callbacks that the triggerer runs: they wait for no slot and hold none. One statement.

    Args:
        conn: Connection to Airflow's metadata database.
        items: The callbacks.
        now: The present.

    Returns:
        How many rows were written; an item that is still open is left as it is.
    """
    now_us = round(now.timestamp() * MICROSECONDS)
    changes = {"state": ItemState.TRIGGERED.value, "turn": None, "rank": now_us}
    rows = [_row(item, now) | changes for item in items]
    return write_rows(conn, item_table, _upsert_item(conn.dialect.name), rows)


@lru_cache(maxsize=4)
def _upsert_item(dialect: str) -> Insert:
    return upsert(item_table, dialect, only_when=("state", ItemState.DONE.value))


def _row(item: NewItem, now: datetime) -> dict[str, Any]:
    run = item.dag_run_id
    return {
        "callback_id": item.callback_id,
        "service_class": item.service_class.value,
        "kind": _text(item.kind, 32),
        "pool": _text(item.pool, POOL_LENGTH),
        "dag_id": _text(item.dag_id, DAG_ID_LENGTH),
        "dag_run_id": run if run is not None and abs(run) <= LARGEST_INTEGER else None,
        "executor": None if item.executor is None else _text(item.executor, EXECUTOR_LENGTH),
        "priority": max(-LARGEST_INTEGER, min(LARGEST_INTEGER, item.priority)),
        "state": ItemState.WAITING.value,
        "reason": None,
        "enqueued_at": now,
        "decided_at": None,
        "granted_at": None,
        "finished_at": None,
        "retry_at": None,
        "scheduler_job_id": None,
        "attempts": 0,
        "charge": 0,
        "batch": None if item.batch is None else _text(item.batch, BATCH_LENGTH),
        "leader_id": None,
    }


def _text(value: str, length: int) -> str:
    """What a text column can hold: PostgreSQL refuses NUL and lone surrogates."""
    return value.replace("\0", "").encode(errors="replace").decode()[:length]


def _last_turns(
    conn: Connection, queues: Iterable[tuple[str, str, int]]
) -> dict[tuple[str, str, int], int | None]:
    """The latest turn among the waiting items of each (class, Dag, priority): one probe of an index each."""
    last: dict[tuple[str, str, int], int | None] = {}
    for piece in chunks(queues, PARTS_PER_STATEMENT):
        # Few shapes of the statement, whatever the number: filled up to a power of two.
        shape = 1 << (len(piece) - 1).bit_length()
        parameters: dict[str, Any] = {}
        for place in range(shape):
            service_class, dag_id, priority = piece[min(place, len(piece) - 1)]
            parameters[f"place_{place}"] = place
            parameters[f"class_{place}"] = service_class
            parameters[f"dag_{place}"] = dag_id
            parameters[f"priority_{place}"] = priority
        for place, turn in conn.execute(_last_turns_statement(shape), parameters):
            if place < len(piece):
                last[piece[place]] = turn
    return last


@lru_cache(maxsize=16)
def _last_turns_statement(shape: int) -> Any:
    return union_all(
        *(
            select(
                bindparam(f"place_{place}", type_=Integer).label("place"),
                select(_ITEM.turn)
                .where(
                    _ITEM.service_class == bindparam(f"class_{place}", type_=String),
                    _ITEM.dag_id == bindparam(f"dag_{place}", type_=String),
                    _ITEM.priority == bindparam(f"priority_{place}", type_=Integer),
                    _ITEM.turn.is_not(None),
                )
                .order_by(_ITEM.turn.desc())
                .limit(1)
                .scalar_subquery()
                .label("turn"),
            )
            for place in range(shape)
        )
    )


# -- who is next ----------------------------------------------------------------------------------------------


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


WAITING_PAIRS: Final = _waiting_pairs_statement()


def waiting_pairs(conn: Connection) -> list[Pair]:
    """Which classes have callbacks waiting in which pools, in one statement.

    Complexity: O(pairs) probes of an index, whatever the backlog.
    """
    found = [(_CLASSES[row.service_class], row.pool) for row in conn.execute(WAITING_PAIRS)]
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
    columns = [_ITEM[field.name] for field in attrs.fields(Head)]
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
) -> dict[UUID, list[UUID]]:
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
        Those that ride along, by leader; leaders without any are left out.

    Complexity: O(rows returned + batches * log items).
    """
    by_batch: dict[str, list[UUID]] = {}
    for leader, batch in leaders:
        by_batch.setdefault(batch, []).append(leader)
    granted = sorted({*apart_from, *(leader for leader, _ in leaders)})
    found: dict[UUID, list[UUID]] = {}
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
        for callback_id, batch, _ in sorted(rows, key=lambda row: (row.rank, row.callback_id)):
            leading = by_batch[batch]
            place = dealt[batch] = dealt.get(batch, -1) + 1
            found.setdefault(leading[place % len(leading)], []).append(callback_id)
    return found


@lru_cache(maxsize=16)
def _companions_statement(batches: int) -> Any:
    parts = []
    for place in range(batches):
        part = (
            select(_ITEM.callback_id, _ITEM.batch, _ITEM.rank)
            .join(callback_table, callback_table.c.id == _ITEM.callback_id)
            .where(
                _ITEM.batch == bindparam(f"batch_{place}", type_=String),
                _ITEM.state == ItemState.WAITING.value,
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


# -- what became of them --------------------------------------------------------------------------------------

_IDS = bindparam("ids", type_=Uuid, expanding=True)
_NOW = bindparam("now", type_=UtcDateTime)
_REASON = bindparam("new_reason", type_=Text)

_NOT_TO_GRANT: Final = (ItemState.GRANTED.value, ItemState.DONE.value, ItemState.TRIGGERED.value)
_GRANTED_VALUES: Final[Mapping[str, Any]] = {
    "state": ItemState.GRANTED.value,
    "scheduler_job_id": bindparam("job_id", type_=Integer),
    "granted_at": _NOW,
    "decided_at": func.coalesce(_ITEM.decided_at, _NOW),
    "turn": null(),
    "retry_at": null(),
    "reason": null(),
    "attempts": _ITEM.attempts + 1,
}

# Conditions on the state below are all negative on purpose: "state = 'waiting'" would offer the planner a
# second way in, over the index of the whole backlog, and with poor statistics it takes it.
_GRANT: Final = (
    update(item_table)
    .where(_ITEM.callback_id.in_(_IDS), _ITEM.state.not_in(_NOT_TO_GRANT))
    .values(
        **_GRANTED_VALUES,
        leader_id=null(),
        charge=case(
            *(
                (
                    _ITEM.service_class == service_class.value,
                    bindparam(f"charge_{service_class.value}", type_=BigInteger),
                )
                for service_class in CALLBACK_CLASSES
            ),
            else_=literal(0, BigInteger),
        ),
    )
)
_DECIDE: Final = (
    update(item_table).where(_ITEM.callback_id.in_(_IDS), _ITEM.decided_at.is_(None)).values(decided_at=_NOW)
)
_FINISH: Final = (
    update(item_table)
    .where(_ITEM.callback_id.in_(_IDS), _ITEM.state != ItemState.DONE.value)
    .values(state=ItemState.DONE.value, finished_at=_NOW, turn=null(), retry_at=null(), reason=_REASON)
)
_PARK: Final = (
    update(item_table)
    .where(_ITEM.callback_id.in_(_IDS), _ITEM.state != ItemState.DONE.value)
    .values(
        state=ItemState.PARKED.value,
        turn=null(),
        retry_at=bindparam("new_retry_at", type_=UtcDateTime),
        reason=_REASON,
        scheduler_job_id=null(),
        granted_at=null(),
        leader_id=null(),
        charge=0,
    )
)
_REQUEUE: Final = (
    update(item_table)
    .where(_ITEM.callback_id.in_(_IDS), _ITEM.state != ItemState.DONE.value)
    .values(
        state=ItemState.WAITING.value,
        retry_at=null(),
        reason=_REASON,
        scheduler_job_id=null(),
        granted_at=null(),
        leader_id=null(),
        charge=0,
    )
)
_DUE: Final = (
    select(_ITEM.callback_id)
    .where(_ITEM.retry_at <= _NOW)
    .order_by(_ITEM.retry_at)
    .limit(bindparam("most", type_=Integer))
)
_EXPIRED: Final = (
    select(_ITEM.callback_id, _ITEM.reason)
    .where(
        _ITEM.retry_at.is_not(None),
        _ITEM.state == ItemState.PARKED.value,
        _ITEM.enqueued_at < bindparam("enqueued_before", type_=UtcDateTime),
    )
    .order_by(_ITEM.retry_at)
    .limit(bindparam("most", type_=Integer))
)


def _change(
    conn: Connection, statement: Update, ids: Iterable[UUID], parameters: Mapping[str, object]
) -> int:
    changed = 0
    # In the order of the keys, so that two writers lock rows in the same order.
    for piece in chunks(sorted(ids), KEYS_PER_STATEMENT):
        changed += conn.execute(statement, {**parameters, "ids": piece}).rowcount
    return changed


def mark_granted(
    conn: Connection,
    ids: Iterable[UUID],
    *,
    now: datetime,
    job_id: int,
    charges: Mapping[ServiceClass, int],
) -> int:
    """Give slots to callbacks, in one statement for up to 5,000.

    Args:
        conn: Connection to Airflow's metadata database.
        ids: The callbacks.
        now: The present.
        job_id: The scheduler that grants.
        charges: What is booked for one grant of each class, in slot-microseconds.

    Returns:
        How many rows changed; fewer than asked for if some were granted or done already.
    """
    booked = {f"charge_{each.value}": charges.get(each, 0) for each in CALLBACK_CLASSES}
    return _change(conn, _GRANT, ids, {"now": now, "job_id": job_id, **booked})


@lru_cache(maxsize=16)
def _accompany(shape: int) -> Update:
    leader = case(
        *(
            (
                _ITEM.callback_id.in_(bindparam(f"ids_{place}", type_=Uuid, expanding=True)),
                bindparam(f"leader_{place}", type_=Uuid),
            )
            for place in range(shape)
        )
    )
    return (
        update(item_table)
        .where(_ITEM.callback_id.in_(_IDS), _ITEM.state.not_in(_NOT_TO_GRANT))
        .values(**_GRANTED_VALUES, leader_id=leader, charge=0)
    )


def mark_companions(
    conn: Connection, runs: Mapping[UUID, Collection[UUID]], *, now: datetime, job_id: int
) -> int:
    """Let callbacks share the runs of those that lead them, in one statement for up to 128 runs.

    Args:
        conn: Connection to Airflow's metadata database.
        runs: By leader, those that ride along: they hold no slot, and nothing is booked for them.
        now: The present.
        job_id: The scheduler that grants.

    Returns:
        How many rows changed.
    """
    changed = 0
    for piece in chunks(((leader, ids) for leader, ids in runs.items() if ids), PARTS_PER_STATEMENT):
        shape = 1 << (len(piece) - 1).bit_length()
        parameters: dict[str, Any] = {"job_id": job_id, "now": now}
        for place in range(shape):
            leader, ids = piece[min(place, len(piece) - 1)]
            parameters |= {f"leader_{place}": leader, f"ids_{place}": sorted(ids)}
        everyone = [each for _, ids in piece for each in ids]
        changed += _change(conn, _accompany(shape), everyone, parameters)
    return changed


def mark_decided(conn: Connection, ids: Iterable[UUID], now: datetime) -> int:
    """Record when a grant was first decided, and change nothing else: what shadow mode does."""
    return _change(conn, _DECIDE, ids, {"now": now})


def mark_done(conn: Connection, ids: Iterable[UUID], now: datetime, reason: str | None = None) -> int:
    """Close items, in one statement for up to 5,000; items that are done already keep their time and reason.

    Args:
        conn: Connection to Airflow's metadata database.
        ids: The callbacks.
        now: The present.
        reason: Why, if they did not simply run.
    """
    return _change(conn, _FINISH, ids, {"now": now, "new_reason": reason})


def park(conn: Connection, ids: Iterable[UUID], *, retry_at: datetime, reason: str) -> int:
    """Set callbacks aside that cannot run now, so that they hold up nobody; their rank stays.

    Args:
        conn: Connection to Airflow's metadata database.
        ids: The callbacks.
        retry_at: When to look again.
        reason: What is missing.
    """
    return _change(conn, _PARK, ids, {"new_retry_at": retry_at, "new_reason": reason})


def requeue(conn: Connection, ids: Iterable[UUID], reason: str | None = None) -> int:
    """Take slots back or end a parking: the callbacks wait again, at the rank they had."""
    return _change(conn, _REQUEUE, ids, {"new_reason": reason})


def unpark_due(conn: Connection, now: datetime, limit: int = KEYS_PER_STATEMENT) -> int:
    """Let parked callbacks wait again whose time has come; one probe of an index if there are none.

    Args:
        conn: Connection to Airflow's metadata database.
        now: The present.
        limit: The most to take in one call, those due longest first.

    Returns:
        How many wait again.
    """
    due = conn.scalars(_DUE, {"now": now, "most": limit}).all()
    return requeue(conn, due) if due else 0


def expire_parked(
    conn: Connection, *, enqueued_before: datetime, now: datetime, limit: int = KEYS_PER_STATEMENT
) -> dict[UUID, str]:
    """Close parked items that have waited for too long; failing the callbacks themselves is the caller's.

    Args:
        conn: Connection to Airflow's metadata database.
        enqueued_before: The time to live ends for those that began to wait before then.
        now: The present.
        limit: The most to take in one call.

    Returns:
        The callbacks, each with the reason for which it was parked.
    """
    expired = {
        row.callback_id: row.reason or ""
        for row in conn.execute(_EXPIRED, {"enqueued_before": enqueued_before, "most": limit})
    }
    by_reason: dict[str, list[UUID]] = {}
    for callback_id, reason in expired.items():
        by_reason.setdefault(reason, []).append(callback_id)
    for reason, ids in by_reason.items():
        mark_done(conn, ids, now, reason)
    return expired


# -- looking ---------------------------------------------------------------------------------------------------

_GRANTED: Final = select(*(_ITEM[field.name] for field in attrs.fields(GrantedItem))).where(
    _ITEM.state == ItemState.GRANTED.value, _ITEM.scheduler_job_id == bindparam("job_id", type_=Integer)
)
_TRIGGERED: Final = select(_ITEM.callback_id).where(_ITEM.state == ItemState.TRIGGERED.value).limit(1)
_READ: Final = select(*item_table.columns).where(_ITEM.callback_id == bindparam("id", type_=Uuid))


def any_triggered(conn: Connection) -> bool:
    """Whether the triggerer has callbacks of ours; one probe of an index."""
    return conn.execute(_TRIGGERED).first() is not None


def granted_items(conn: Connection, job_id: int) -> list[GrantedItem]:
    """What a scheduler has granted and is not done, by their identifiers; touches granted rows only."""
    found = [
        GrantedItem(
            callback_id=row.callback_id,
            service_class=_CLASSES[row.service_class],
            pool=row.pool,
            granted_at=row.granted_at,
            charge=row.charge,
            leader_id=row.leader_id,
        )
        for row in conn.execute(_GRANTED, {"job_id": job_id})
    ]
    return sorted(found, key=lambda item: item.callback_id)


def read_item(conn: Connection, callback_id: UUID) -> Item | None:
    """All that is known of one callback; ``None`` if it has no item."""
    row = conn.execute(_READ, {"id": callback_id}).one_or_none()
    if row is None:
        return None
    values: dict[str, Any] = dict(row._mapping)
    values["service_class"] = _CLASSES[row.service_class]
    values["state"] = ItemState(row.state)
    return Item(**values)
