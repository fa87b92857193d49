"""What becomes of an item: from waiting over granted, or parked in between, to done.

A callback whose executor is missing is parked until that comes back. Items of one batch may share the run of a
worker: one of them leads and holds the slot, its companions are granted with it and name it as their leader.
Each function is one statement (or as many as its docstring says) on the caller's connection and in its transaction.

How an item begins is in `callback_priority.persistence.enqueueing`, which of them is next in
`callback_priority.persistence.waiting`, and what is put right later in `callback_priority.persistence.sweep`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import (
    BigInteger,
    Connection,
    Integer,
    String,
    Text,
    Update,
    Uuid,
    and_,
    bindparam,
    case,
    func,
    literal,
    null,
    or_,
    select,
    update,
)

from callback_priority.core.classes import CALLBACK_CLASSES, ServiceClass
from callback_priority.core.units import SlotMicros
from callback_priority.persistence.statements import KEYS_PER_STATEMENT, PARTS_PER_STATEMENT, chunks, storable
from callback_priority.persistence.tables import EXTERNAL_ID_LENGTH, ItemState, UtcDateTime, item_table

__all__ = [
    "GrantedItem",
    "Item",
    "Lost",
    "advance_retries",
    "any_triggered",
    "expired",
    "granted_items",
    "mark_companions",
    "mark_decided",
    "mark_done",
    "mark_granted",
    "name_externally",
    "next_retry",
    "outlived",
    "own",
    "park",
    "read_item",
    "requeue",
    "take_over",
    "try_again",
    "unpark",
    "unpark_due",
]

_ITEM = item_table.c


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
        attempts: How often it was granted, this time included.
    """

    callback_id: UUID
    service_class: ServiceClass
    pool: str
    granted_at: datetime
    charge: SlotMicros
    leader_id: UUID | None
    attempts: int


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
    parked_at: datetime | None
    scheduler_job_id: int | None
    attempts: int
    failures: int
    external_id: str | None
    charge: SlotMicros
    batch: str | None
    leader_id: UUID | None


@attrs.frozen(kw_only=True)
class Lost:
    """An attempt that came to nothing.

    Args:
        callback_id: The callback.
        reason: Why.
        retry_at: When it is tried again; ``None`` for at once.
    """

    callback_id: UUID
    reason: str
    retry_at: datetime | None = None


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
    "external_id": null(),
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
        parked_at=func.coalesce(_ITEM.parked_at, _NOW),
        reason=_REASON,
        scheduler_job_id=null(),
        granted_at=null(),
        leader_id=null(),
        external_id=null(),
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
        external_id=null(),
        charge=0,
    )
)
# Asked again, since another scheduler may have granted it by now.
_UNPARK: Final = _REQUEUE.where(_ITEM.retry_at <= _NOW)
_RETRY: Final = (
    update(item_table)
    .where(_ITEM.callback_id == bindparam("id", type_=Uuid), _ITEM.state != ItemState.DONE.value)
    .values(
        state=bindparam("new_state", type_=String),
        turn=null(),
        retry_at=bindparam("new_retry_at", type_=UtcDateTime),
        parked_at=null(),
        reason=_REASON,
        failures=_ITEM.failures + 1,
        scheduler_job_id=null(),
        granted_at=null(),
        leader_id=null(),
        external_id=null(),
        charge=0,
    )
)
_TAKE_OVER: Final = (
    update(item_table)
    .where(
        or_(_ITEM.callback_id.in_(_IDS), _ITEM.leader_id.in_(_IDS)),
        _ITEM.state == ItemState.GRANTED.value,
    )
    .values(scheduler_job_id=bindparam("job_id", type_=Integer))
)
_OWN: Final = (
    update(item_table)
    .where(
        _ITEM.callback_id.in_(_IDS),
        _ITEM.state == ItemState.GRANTED.value,
        _ITEM.scheduler_job_id.is_(None),
    )
    .values(scheduler_job_id=bindparam("job_id", type_=Integer))
)
_NAME: Final = (
    update(item_table)
    .where(
        _ITEM.callback_id == bindparam("id", type_=Uuid),
        _ITEM.state == ItemState.GRANTED.value,
        _ITEM.scheduler_job_id == bindparam("job_id", type_=Integer),
    )
    .values(external_id=bindparam("new_external_id", type_=String))
)
_ADVANCE: Final = (
    update(item_table).where(_ITEM.retry_at > bindparam("latest", type_=UtcDateTime)).values(retry_at=_NOW)
)
_DUE: Final = (
    select(_ITEM.callback_id)
    .where(_ITEM.retry_at <= _NOW)
    .order_by(_ITEM.retry_at)
    .limit(bindparam("most", type_=Integer))
)
_NEXT_RETRY: Final = (
    select(_ITEM.retry_at).where(_ITEM.retry_at.is_not(None)).order_by(_ITEM.retry_at).limit(1)
)
_EXPIRED: Final = (
    select(_ITEM.callback_id, _ITEM.reason)
    .where(
        _ITEM.retry_at.is_not(None),
        _ITEM.state == ItemState.PARKED.value,
        _ITEM.parked_at < bindparam("parked_before", type_=UtcDateTime),
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


def park(conn: Connection, ids: Iterable[UUID], *, now: datetime, retry_at: datetime, reason: str) -> int:
    """Set callbacks aside that cannot run now, so that they hold up nobody; their rank stays.

    Their time to live is counted from the first time that this is done to them.

    Args:
        conn: Connection to Airflow's metadata database.
        ids: The callbacks.
        now: The present.
        retry_at: When to look again.
        reason: What is missing.
    """
    return _change(conn, _PARK, ids, {"now": now, "new_retry_at": retry_at, "new_reason": reason})


def requeue(conn: Connection, ids: Iterable[UUID], reason: str | None = None) -> int:
    """Take slots back or end a parking: the callbacks wait again, at the rank they had."""
    return _change(conn, _REQUEUE, ids, {"new_reason": reason})


def try_again(conn: Connection, lost: Iterable[Lost]) -> None:
    """Count attempts that came to nothing; the callbacks wait for the next. One statement, sent for each of them.

    A callback that waits for a retry is parked, which is not the parking whose time to live ends.
    """
    rows = [
        {
            "id": each.callback_id,
            "new_state": (ItemState.WAITING if each.retry_at is None else ItemState.PARKED).value,
            "new_retry_at": each.retry_at,
            "new_reason": each.reason,
        }
        for each in sorted(lost, key=lambda each: each.callback_id)
    ]
    if rows:
        conn.execute(_RETRY, rows)


def take_over(conn: Connection, leaders: Iterable[UUID], job_id: int) -> int:
    """Put callbacks, and those that share their runs, under the care of another scheduler.

    Args:
        conn: Connection to Airflow's metadata database.
        leaders: The callbacks that hold slots.
        job_id: That scheduler.

    Returns:
        How many rows changed.
    """
    return _change(conn, _TAKE_OVER, leaders, {"job_id": job_id})


def own(conn: Connection, ids: Iterable[UUID], job_id: int) -> int:
    """Put those of the callbacks under a scheduler's care that nobody with this library has granted.

    Args:
        conn: Connection to Airflow's metadata database.
        ids: The callbacks.
        job_id: The scheduler, whose executors have them.

    Returns:
        How many rows changed.
    """
    return _change(conn, _OWN, ids, {"job_id": job_id})


def name_externally(conn: Connection, names: Mapping[UUID, str], job_id: int) -> None:
    """Note what their executor's broker knows callbacks by; one statement, sent for each of them.

    Args:
        conn: Connection to Airflow's metadata database.
        names: The names, by callback; of one that the scheduler has not granted a slot none is noted.
        job_id: The scheduler.
    """
    rows = [
        {"id": callback_id, "job_id": job_id, "new_external_id": storable(name, EXTERNAL_ID_LENGTH)}
        for callback_id, name in sorted(names.items())
    ]
    if rows:
        conn.execute(_NAME, rows)


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
    return unpark(conn, due, now) if due else 0


def unpark(conn: Connection, ids: Iterable[UUID], now: datetime) -> int:
    """Let those of the callbacks wait again that are parked and due."""
    return _change(conn, _UNPARK, ids, {"now": now, "new_reason": None})


def advance_retries(conn: Connection, latest: datetime, now: datetime) -> int:
    """Have parked callbacks be due now whose time is later than any can be: a clock was ahead when it was set.

    Returns:
        How many there were; one probe of an index if none.
    """
    return conn.execute(_ADVANCE, {"latest": latest, "now": now}).rowcount


def next_retry(conn: Connection) -> datetime | None:
    """When the first parked callback is due; one probe of an index."""
    return conn.scalar(_NEXT_RETRY)


def outlived(
    conn: Connection, started_before: Mapping[ServiceClass, datetime], *, limit: int = KEYS_PER_STATEMENT
) -> dict[UUID, ServiceClass]:
    """Find callbacks that have waited longer than their time to live; what becomes of them is the caller's.

    Args:
        conn: Connection to Airflow's metadata database.
        started_before: By class, the time at which those began to wait whose life ends now.
        limit: The most to find in one call.

    Complexity: reads all items that wait or are parked, of these classes.
    """
    if not started_before:
        return {}
    too_old = or_(
        *(
            and_(_ITEM.service_class == cls.value, _ITEM.enqueued_at < at)
            for cls, at in started_before.items()
        )
    )
    waits = _ITEM.state.in_([ItemState.WAITING.value, ItemState.PARKED.value])
    found = conn.execute(select(_ITEM.callback_id, _ITEM.service_class).where(waits, too_old).limit(limit))
    return {row.callback_id: ServiceClass(row.service_class) for row in found}


def expired(conn: Connection, *, parked_before: datetime, limit: int = KEYS_PER_STATEMENT) -> dict[UUID, str]:
    """Find parked items that could not run for too long; what becomes of them is the caller's.

    Args:
        conn: Connection to Airflow's metadata database.
        parked_before: The time to live ends for those that were parked first before then.
        limit: The most to find in one call.

    Returns:
        The callbacks, each with the reason for which it was parked.
    """
    found = conn.execute(_EXPIRED, {"parked_before": parked_before, "most": limit})
    return {row.callback_id: row.reason or "" for row in found}


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
            service_class=ServiceClass(row.service_class),
            pool=row.pool,
            granted_at=row.granted_at,
            charge=row.charge,
            leader_id=row.leader_id,
            attempts=row.attempts,
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
    values["service_class"] = ServiceClass(row.service_class)
    values["state"] = ItemState(row.state)
    return Item(**values)
