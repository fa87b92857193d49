"""Sweeps: items for callbacks that came in without one, and no items for callbacks that are gone.

Items are written in the transaction in which a callback becomes pending. What a sweep finds came in otherwise:
before the library was installed, from a scheduler without it, or by somebody's hand. A sweep reads all open
items and all pending callbacks, so it belongs into a timer and not into the scheduler's loop.

Only open items are compared with Airflow's rows. Done ones are history, for the statistics of past waits, and
leave by age.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import (
    Connection,
    Integer,
    Select,
    Text,
    Uuid,
    and_,
    bindparam,
    cast,
    delete,
    exists,
    or_,
    select,
)

from callback_priority.persistence.airflow_tables import (
    CALLBACK_PENDING,
    CALLBACK_QUEUED,
    CALLBACK_RUNNING,
    CALLBACK_TERMINAL,
    CALLBACK_TYPE_EXECUTOR,
    callback_table,
)
from callback_priority.persistence.items import mark_done, requeue
from callback_priority.persistence.statements import KEYS_PER_STATEMENT, chunks
from callback_priority.persistence.tables import ItemState, UtcDateTime, item_table, unit_table

__all__ = [
    "PendingCallback",
    "Settled",
    "callbacks_granted_without_item",
    "callbacks_without_item",
    "remove_orphans",
    "settle_foreign",
    "trim_history",
]

OPEN: Final = (
    ItemState.WAITING.value,
    ItemState.PARKED.value,
    ItemState.GRANTED.value,
    ItemState.TRIGGERED.value,
)

_ITEM = item_table.c
_CALLBACK = callback_table.c


@attrs.frozen(kw_only=True)
class PendingCallback:
    """A callback of Airflow's that has no open item.

    Args:
        callback_id: Its key.
        data: Its data as the JSON text that the database holds, not parsed: one that cannot be read must not
            spoil the fetch of the others.
        priority_weight: Airflow's own priority for it.
        created_at: When the row was made, which may be long before it became pending.
    """

    callback_id: UUID
    data: str
    priority_weight: int
    created_at: datetime


@attrs.frozen(kw_only=True)
class Settled:
    """What `settle_foreign` did.

    Args:
        done: Items closed, since their callback ended or moved on without them.
        requeued: Items that wait again, since their callback was set back to pending.
    """

    done: int
    requeued: int


def _most() -> Any:
    return bindparam("most", type_=Integer)


_WITHOUT_ITEM: Final[Select[Any]] = (
    select(
        _CALLBACK.id,
        cast(_CALLBACK.data, Text).label("data"),
        _CALLBACK.priority_weight,
        _CALLBACK.created_at,
    )
    .where(
        _CALLBACK.type == CALLBACK_TYPE_EXECUTOR,
        _CALLBACK.state == CALLBACK_PENDING,
        # "Not done" and not "open": a list of states offers the planner the index that begins with the state,
        # and with statistics from when nothing waited it then reads all open items for each callback.
        ~exists().where(_ITEM.callback_id == _CALLBACK.id, _ITEM.state != ItemState.DONE.value),
    )
    .limit(_most())
)
_UNRECORDED: Final[Select[Any]] = (
    select(
        _CALLBACK.id,
        cast(_CALLBACK.data, Text).label("data"),
        _CALLBACK.priority_weight,
        _CALLBACK.created_at,
    )
    .where(
        _CALLBACK.type == CALLBACK_TYPE_EXECUTOR,
        _CALLBACK.state.in_([CALLBACK_QUEUED, CALLBACK_RUNNING]),
        ~exists().where(_ITEM.callback_id == _CALLBACK.id, _ITEM.state != ItemState.DONE.value),
    )
    .limit(_most())
)
_ORPHANS: Final[Select[Any]] = (
    select(_ITEM.callback_id)
    .where(_ITEM.state.in_(OPEN), ~exists().where(_CALLBACK.id == _ITEM.callback_id))
    .limit(_most())
)
_COMPANION = item_table.alias("companion")
_COMPANIONS_CALLBACK = callback_table.alias("companions_callback")
_HAS_UNFINISHED_COMPANIONS: Final = exists().where(
    _COMPANION.c.leader_id == _ITEM.callback_id,
    _COMPANION.c.state == ItemState.GRANTED.value,
    _COMPANIONS_CALLBACK.c.id == _COMPANION.c.callback_id,
    _COMPANIONS_CALLBACK.c.state.not_in(CALLBACK_TERMINAL),
)
_IS_CLAIMED: Final = exists().where(
    unit_table.c.callback_id == _ITEM.callback_id, unit_table.c.claimed_at.is_not(None)
)
_FOREIGN: Final[Select[Any]] = (
    select(_ITEM.callback_id, _CALLBACK.state)
    .join(callback_table, _CALLBACK.id == _ITEM.callback_id)
    .where(
        or_(
            and_(
                _ITEM.state.in_([ItemState.WAITING.value, ItemState.PARKED.value]),
                or_(_CALLBACK.state != CALLBACK_PENDING, _CALLBACK.state.is_(None)),
            ),
            and_(
                _ITEM.state == ItemState.GRANTED.value,
                or_(
                    # One that failed and is tried again is pending while others of its run go on.
                    and_(_CALLBACK.state == CALLBACK_PENDING, ~_IS_CLAIMED),
                    # One that leads a run holds its slot until the last that shares the run has ended.
                    and_(_CALLBACK.state.in_(CALLBACK_TERMINAL), ~_HAS_UNFINISHED_COMPANIONS),
                ),
            ),
        ),
        _ITEM.state.in_(OPEN),
    )
    .limit(_most())
    # Nobody grants one of them, or settles it, between this and the change; what is being settled is passed over.
    .with_for_update(of=item_table, skip_locked=True)
)
_HISTORY: Final[Select[Any]] = (
    select(_ITEM.callback_id)
    .where(_ITEM.finished_at < bindparam("finished_before", type_=UtcDateTime))
    .order_by(_ITEM.finished_at)
    .limit(_most())
)
_IDS = bindparam("ids", type_=Uuid, expanding=True)
_REMOVE: Final = delete(item_table).where(_ITEM.callback_id.in_(_IDS))
_REMOVE_UNITS: Final = delete(unit_table).where(unit_table.c.callback_id.in_(_IDS))


def callbacks_without_item(conn: Connection, limit: int) -> list[PendingCallback]:
    """Pending executor callbacks that nothing will ever fetch, in one statement; by key, which is by age.

    Complexity: reads Airflow's whole ``callback`` table, which has no index beside its key.
    """
    return _found(conn, _WITHOUT_ITEM, limit)


def callbacks_granted_without_item(conn: Connection, limit: int) -> list[PendingCallback]:
    """Executor callbacks that a scheduler without this library gave to an executor, in one statement; as above."""
    return _found(conn, _UNRECORDED, limit)


def _found(conn: Connection, statement: Select[Any], limit: int) -> list[PendingCallback]:
    found = [
        PendingCallback(
            callback_id=row.id,
            data=row.data,
            priority_weight=row.priority_weight,
            created_at=row.created_at,
        )
        for row in conn.execute(statement, {"most": limit})
    ]
    # Ordered here: for an order and a limit PostgreSQL would walk the key of the whole table.
    return sorted(found, key=lambda callback: callback.callback_id)


def settle_foreign(conn: Connection, *, now: datetime, limit: int) -> Settled:
    """Bring open items in line with what others did to their callbacks; up to three statements.

    A callback that leads a run is left alone until those that share the run have ended too.

    Args:
        conn: Connection to Airflow's metadata database.
        now: The present.
        limit: The most items to change in one call.
    """
    moved_on: list[UUID] = []
    set_back: list[UUID] = []
    for callback_id, state in conn.execute(_FOREIGN, {"most": limit}):
        (set_back if state == CALLBACK_PENDING else moved_on).append(callback_id)
    return Settled(
        done=mark_done(conn, moved_on, now, "ended or taken outside of this library"),
        requeued=requeue(conn, set_back, "set back to pending outside of this library"),
    )


def remove_orphans(conn: Connection, *, limit: int) -> int:
    """Remove open items whose callback is gone (a Dag run was deleted, a database cleaned), and their units."""
    return _remove(conn, conn.scalars(_ORPHANS, {"most": limit}).all())


def trim_history(conn: Connection, *, finished_before: datetime, limit: int) -> int:
    """Remove done items that finished before a time, oldest first, and their units.

    Args:
        conn: Connection to Airflow's metadata database.
        finished_before: Older ones go.
        limit: The most to remove in one call, so that no transaction grows long.
    """
    return _remove(conn, conn.scalars(_HISTORY, {"finished_before": finished_before, "most": limit}).all())


def _remove(conn: Connection, ids: Any) -> int:
    removed = 0
    for piece in chunks(sorted(ids), KEYS_PER_STATEMENT):
        conn.execute(_REMOVE_UNITS, {"ids": piece})
        removed += conn.execute(_REMOVE, {"ids": piece}).rowcount
    return removed
