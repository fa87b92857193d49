"""The units: who took them, when each began and how it ended.

A unit is one callable of a routed callback; its row stands beside Airflow's ``callback`` row and our item.
Everything here runs on the caller's connection and in its transaction.

Whoever changes units calls `lock` first and reads afterwards. It takes the rows in the order of their keys, so
two that want some of the same rows wait for each other instead of blocking each other for ever; and units come
before Airflow's callback rows, which are only ever locked last, by the statement that changes one. SQLite has
one lock for the whole database and takes it with the first write, so there `lock` writes, and what is read after
it cannot change any more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import (
    Connection,
    String,
    Text,
    Uuid,
    bindparam,
    func,
    null,
    or_,
    select,
    update,
)

from callback_priority.persistence.airflow_tables import CALLBACK_PENDING, CALLBACK_RUNNING, callback_table
from callback_priority.persistence.requests import Target
from callback_priority.persistence.statements import KEYS_PER_STATEMENT, chunks, storable
from callback_priority.persistence.tables import (
    ItemState,
    UtcDateTime,
    item_table,
    request_table,
    unit_table,
)

__all__ = [
    "CALLBACK_QUEUED",
    "LOG_LIMIT_BYTES",
    "OPEN_STATES",
    "OUTPUT_LIMIT_BYTES",
    "RunUnit",
    "claim",
    "companions",
    "end_units",
    "lock",
    "mark_ended",
    "mark_started",
    "read_units",
    "redirect_unit",
    "release",
]

OUTPUT_LIMIT_BYTES: Final = 8 * 1024
"""How much of a unit's output is kept, from its beginning."""

LOG_LIMIT_BYTES: Final = 32 * 1024
"""How much of a unit's log is kept, from its end."""

CALLBACK_QUEUED: Final = "queued"

OPEN_STATES: Final = (CALLBACK_PENDING, CALLBACK_QUEUED, CALLBACK_RUNNING)
"""The states of a callback that can still run. Airflow's own code sets one to running when its executor says
that it was taken, which may be before the run begins."""

_WORKER_LENGTH: Final = 300
_LOG_PATH_LENGTH: Final = 1000

_UNIT: Final = unit_table.c
_ITEM: Final = item_table.c
_REQUEST: Final = request_table.c
_CALLBACK: Final = callback_table.c


@attrs.frozen(kw_only=True)
class RunUnit:
    """One callable with all that its run needs to know.

    Args:
        callback_id: Its key, which is that of its callback.
        state: The state of Airflow's callback row.
        target: Who calls it: ``worker`` or ``triggerer``.
        kind: Of `callback_priority.core.kinds.KINDS`.
        position: Its place in the Dag's or task's list of callables.
        name: What people call it.
        reference: Where it is found, as JSON text.
        dag_id: The Dag that was called for.
        run_id: The Dag run that was called for.
        body: Airflow's request, as JSON text; ``None`` if it was not kept.
        item_state: Where its item stands; ``None`` if it has none.
        leader_id: The callback whose run it shares; ``None`` if it has a run of its own.
        rank: Its item's place in its class and pool.
        claimed_at: When a worker took it.
        worker: Which worker did.
        started_at: When it began.
        ended_at: When it ended.
    """

    callback_id: UUID
    state: str | None
    target: str
    kind: str
    position: int
    name: str
    reference: str
    dag_id: str
    run_id: str
    body: str | None
    item_state: ItemState | None
    leader_id: UUID | None
    rank: int | None
    claimed_at: datetime | None
    worker: str | None
    started_at: datetime | None
    ended_at: datetime | None

    @property
    def place(self) -> tuple[bool, int, UUID]:
        """What units are sorted by: the rank of their item, those without one last."""
        return self.rank is None, self.rank or 0, self.callback_id


_IDS: Final = bindparam("ids", type_=Uuid, expanding=True)
_ID: Final = bindparam("unit_id", type_=Uuid)
_NOW: Final = bindparam("now", type_=UtcDateTime)

_COMPANIONS: Final = select(_ITEM.callback_id).where(
    _ITEM.leader_id == bindparam("leader", type_=Uuid), _ITEM.state == ItemState.GRANTED.value
)
_LOCK: Final = (
    select(_UNIT.callback_id).where(_UNIT.callback_id.in_(_IDS)).order_by(_UNIT.callback_id).with_for_update()
)
_LOCK_SQLITE: Final = update(unit_table).where(_UNIT.callback_id.in_(_IDS)).values(worker=_UNIT.worker)
_READ: Final = (
    select(
        _UNIT.callback_id,
        _CALLBACK.state,
        _UNIT.target,
        _REQUEST.kind,
        _UNIT.position,
        _UNIT.name,
        _UNIT.reference,
        _REQUEST.dag_id,
        _REQUEST.run_id,
        _REQUEST.body,
        _ITEM.state.label("item_state"),
        _ITEM.leader_id,
        _ITEM.rank,
        _UNIT.claimed_at,
        _UNIT.worker,
        _UNIT.started_at,
        _UNIT.ended_at,
    )
    .select_from(unit_table)
    .join(callback_table, _CALLBACK.id == _UNIT.callback_id)
    .join(request_table, _REQUEST.id == _UNIT.request_id)
    .outerjoin(item_table, _ITEM.callback_id == _UNIT.callback_id)
    .where(_UNIT.callback_id.in_(_IDS))
)
_CLAIM: Final = (
    update(unit_table)
    .where(_UNIT.callback_id == _ID)
    .values(
        claimed_at=_NOW,
        worker=bindparam("new_worker", type_=String),
        log_path=bindparam("new_log_path", type_=String),
    )
)
_RELEASE: Final = (
    update(unit_table)
    .where(_UNIT.callback_id.in_(_IDS), _UNIT.ended_at.is_(None))
    .values(
        claimed_at=null(),
        started_at=null(),
        worker=null(),
        log_path=null(),
        heartbeat_at=null(),
    )
)
_START: Final = (
    update(unit_table)
    .where(_UNIT.callback_id == _ID)
    .values(started_at=func.coalesce(_UNIT.started_at, _NOW))
)
_RUNS: Final = (
    update(callback_table)
    .where(_CALLBACK.id == _ID, _CALLBACK.state.in_(OPEN_STATES))
    .values(state=CALLBACK_RUNNING)
)
_END: Final = (
    update(unit_table)
    .where(_UNIT.callback_id == _ID)
    .values(ended_at=_NOW, log=bindparam("new_log", type_=Text))
)
_END_UNREPORTED: Final = (
    update(unit_table).where(_UNIT.callback_id.in_(_IDS), _UNIT.ended_at.is_(None)).values(ended_at=_NOW)
)
_REDIRECT: Final = (
    update(unit_table).where(_UNIT.callback_id == _ID).values(target=bindparam("new_target", type_=String))
)
_RESULT: Final = (
    update(callback_table)
    .where(
        _CALLBACK.id == _ID,
        or_(_CALLBACK.state.in_(OPEN_STATES), _CALLBACK.state == bindparam("new_state", type_=String)),
    )
    .values(state=bindparam("new_state", type_=String), output=bindparam("new_output", type_=Text))
)


def companions(conn: Connection, leader_id: UUID) -> list[UUID]:
    """The callbacks that were granted together with one and share its run; without itself."""
    found = conn.scalars(_COMPANIONS, {"leader": leader_id})
    return sorted(each for each in found if each != leader_id)


def lock(conn: Connection, ids: Collection[UUID]) -> None:
    """Keep everybody else from these units until the transaction ends; see the head of this module."""
    statement = _LOCK_SQLITE if conn.dialect.name == "sqlite" else _LOCK
    for piece in chunks(sorted(ids), KEYS_PER_STATEMENT):
        conn.execute(statement, {"ids": piece}).close()


def read_units(conn: Connection, ids: Collection[UUID]) -> list[RunUnit]:
    """These units, in the order in which a run takes them; those that are gone are left out."""
    found: list[RunUnit] = []
    for piece in chunks(sorted(ids), KEYS_PER_STATEMENT):
        for row in conn.execute(_READ, {"ids": piece}):
            values: dict[str, Any] = dict(row._mapping)
            values["item_state"] = None if row.item_state is None else ItemState(row.item_state)
            found.append(RunUnit(**values))
    return sorted(found, key=lambda unit: unit.place)


def claim(conn: Connection, log_paths: Mapping[UUID, str], *, worker: str, now: datetime) -> None:
    """Give units to a worker.

    Args:
        conn: Connection to Airflow's metadata database; the units are locked.
        log_paths: The units, each with the path of its log.
        worker: Who takes them.
        now: The present; it also tells this claim from an earlier or later one of the same worker.
    """
    conn.execute(
        _CLAIM,
        [
            {
                "unit_id": unit_id,
                "now": now,
                "new_worker": storable(worker, _WORKER_LENGTH),
                "new_log_path": storable(path, _LOG_PATH_LENGTH),
            }
            for unit_id, path in sorted(log_paths.items())
        ],
    )


def release(conn: Connection, ids: Iterable[UUID], *, even_started: bool = False) -> int:
    """Take units back from a worker, so that another may have them.

    What the worker still says about them is refused from then on: it says so under the old claim.

    Args:
        conn: Connection to Airflow's metadata database; the units are locked.
        ids: The units.
        even_started: Also take back units that were begun and of which no end is known.

    Returns:
        How many were taken back; units that have ended are left as they are.
    """
    statement = _RELEASE if even_started else _RELEASE.where(_UNIT.started_at.is_(None))
    return sum(
        conn.execute(statement, {"ids": piece}).rowcount for piece in chunks(sorted(ids), KEYS_PER_STATEMENT)
    )


def redirect_unit(conn: Connection, callback_id: UUID, target: Target) -> None:
    """Have something else call a unit that has not been called."""
    conn.execute(_REDIRECT, {"unit_id": callback_id, "new_target": target.value})


def mark_started(conn: Connection, unit_id: UUID, now: datetime) -> bool:
    """Record that a unit begins, and set its callback to running; one that has begun keeps its time.

    Returns:
        Whether it may: ``False``, with nothing changed, if its callback has ended or is gone.
    """
    if not conn.execute(_RUNS, {"unit_id": unit_id}).rowcount:
        return False
    conn.execute(_START, {"unit_id": unit_id, "now": now})
    return True


def mark_ended(
    conn: Connection, unit_id: UUID, *, state: str, output: str | None, log: str | None, now: datetime
) -> bool:
    """Record how a unit ended, in its row and in its callback's.

    Args:
        conn: Connection to Airflow's metadata database; the unit is locked.
        unit_id: The unit.
        state: ``success`` or ``failed``.
        output: What it returned or why it failed; cut to `OUTPUT_LIMIT_BYTES`.
        log: Its log; the last `LOG_LIMIT_BYTES` are kept.
        now: The present.

    Returns:
        Whether it could be: ``False``, with nothing changed, if its callback ended in another state or is gone.
    """
    result = {"unit_id": unit_id, "new_state": state, "new_output": _head(output, OUTPUT_LIMIT_BYTES)}
    if not conn.execute(_RESULT, result).rowcount:
        return False
    conn.execute(_END, {"unit_id": unit_id, "new_log": _tail(log, LOG_LIMIT_BYTES), "now": now})
    return True


def end_units(conn: Connection, ids: Iterable[UUID], now: datetime) -> int:
    """Note that units have ended whose workers did not say so; those that ended before keep their time.

    Returns:
        How many were noted.
    """
    return sum(
        conn.execute(_END_UNREPORTED, {"ids": piece, "now": now}).rowcount
        for piece in chunks(sorted(ids), KEYS_PER_STATEMENT)
    )


def _head(text: str | None, limit_bytes: int) -> str | None:
    return None if text is None else storable(text).encode()[:limit_bytes].decode(errors="ignore")


def _tail(text: str | None, limit_bytes: int) -> str | None:
    return None if text is None else storable(text).encode()[-limit_bytes:].decode(errors="ignore")
