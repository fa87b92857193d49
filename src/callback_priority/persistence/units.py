"""The units: who took them, when each began, when its worker was last heard of, and how it ended.

A unit is one callable of a routed callback; its row stands beside Airflow's ``callback`` row and our item. Any other
callback for an executor gets one when a worker with this library takes it: the request that it names is itself.
Everything here runs on the caller's connection and in its transaction.

What the columns say of a unit without an end:

==============  =================  =======================================================================
``claimed_at``  Airflow's row      it
==============  =================  =======================================================================
no              pending or queued  waits, or nobody has taken it yet
yes             queued or running  is with a worker, which has begun it if ``started_at`` is set
yes             pending            failed and is to be tried again, once the scheduler has released it
==============  =================  =======================================================================

``heartbeat_at`` is set with the claim if the worker is going to tell that it is still there; an older one never does.
The unit that leads a run hears of every heartbeat of the run, even when it has ended itself.

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
    Insert,
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
from sqlalchemy.dialects import mysql, postgresql, sqlite

from callback_priority.core.classes import ServiceClass
from callback_priority.persistence.airflow_tables import (
    CALLBACK_PENDING,
    CALLBACK_QUEUED,
    CALLBACK_RUNNING,
    CALLBACK_TERMINAL,
    callback_table,
)
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
    "LOG_LIMIT_BYTES",
    "OPEN_STATES",
    "OUTPUT_LIMIT_BYTES",
    "Grant",
    "RunUnit",
    "add_unit",
    "beat",
    "claim",
    "companions",
    "end_units",
    "grant_of",
    "lock",
    "mark_attempt_failed",
    "mark_ended",
    "mark_started",
    "read_units",
    "redirect_unit",
    "release",
    "renew",
]

OUTPUT_LIMIT_BYTES: Final = 8 * 1024
"""How much of a unit's output is kept, from its beginning."""

LOG_LIMIT_BYTES: Final = 32 * 1024
"""How much of a unit's log is kept, from its end."""

OPEN_STATES: Final = (CALLBACK_PENDING, CALLBACK_QUEUED, CALLBACK_RUNNING)
"""The states of a callback that can still run. Airflow's own code sets one to running when its executor says
that it was taken, which may be before the run begins."""

_NAME_LENGTH: Final = 500
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
        output: What that row holds of an end, or of a failed attempt.
        target: Who calls it: ``worker`` or ``triggerer``.
        kind: Of `callback_priority.core.kinds.KINDS`; like the next but two empty if it is no request's.
        position: Its place in the Dag's or task's list of callables.
        name: What people call it.
        reference: Where it is found, as JSON text.
        dag_id: The Dag that was called for.
        run_id: The Dag run that was called for.
        body: Airflow's request, as JSON text; ``None`` if it was not kept, or there is none.
        item_state: Where its item stands; ``None`` if it has none.
        service_class: Its item's class.
        attempts: How often a scheduler with this library has granted it.
        failures: How many of its attempts were lost or failed, as far as the scheduler has settled them.
        leader_id: The callback whose run it shares; ``None`` if it has a run of its own.
        rank: Its item's place in its class and pool.
        claimed_at: When a worker took it.
        worker: Which worker did.
        heartbeat_at: When that was last heard of; ``None`` if it never tells.
        started_at: When it began.
        ended_at: When it ended.
    """

    callback_id: UUID
    state: str | None
    output: str | None
    target: str
    kind: str
    position: int
    name: str
    reference: str
    dag_id: str
    run_id: str
    body: str | None
    item_state: ItemState | None
    service_class: ServiceClass | None
    attempts: int
    failures: int
    leader_id: UUID | None
    rank: int | None
    claimed_at: datetime | None
    worker: str | None
    heartbeat_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None

    @property
    def place(self) -> tuple[bool, int, UUID]:
        """What units are sorted by: the rank of their item, those without one last."""
        return self.rank is None, self.rank or 0, self.callback_id

    @property
    def waits_again(self) -> bool:
        """Whether an attempt was made and the next one is not granted: what still comes of it comes too late.

        A callback that is pending and was never granted by this library is another matter: Airflow's own scheduler
        hands it over a moment before it commits that it is queued.
        """
        return self.state == CALLBACK_PENDING and self.attempts > 0

    @property
    def grant(self) -> Grant:
        """What is known of how it came to a worker."""
        return Grant(state=self.state, item_state=self.item_state, attempts=self.attempts)


@attrs.frozen(kw_only=True)
class Grant:
    """What is known of how a callback came to a worker, whether it has a unit or not.

    Args:
        state: The state of Airflow's callback row.
        item_state: Where its item stands; ``None`` if it has none.
        attempts: How often a scheduler with this library has granted it.
    """

    state: str | None
    item_state: ItemState | None
    attempts: int

    @property
    def ours(self) -> bool:
        """Whether it is known here: a scheduler with this library granted it, or it came to an end."""
        if self.item_state is None:
            return False
        if self.state == CALLBACK_PENDING:
            return self.attempts > 0
        return self.state in CALLBACK_TERMINAL or self.item_state is ItemState.GRANTED

    @property
    def due(self) -> bool:
        """Whether it may be called now."""
        return self.state in (CALLBACK_QUEUED, CALLBACK_RUNNING) and self.item_state is ItemState.GRANTED


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
        _CALLBACK.output,
        _UNIT.target,
        func.coalesce(_REQUEST.kind, "").label("kind"),
        _UNIT.position,
        _UNIT.name,
        _UNIT.reference,
        func.coalesce(_REQUEST.dag_id, "").label("dag_id"),
        func.coalesce(_REQUEST.run_id, "").label("run_id"),
        _REQUEST.body,
        _ITEM.state.label("item_state"),
        _ITEM.service_class,
        func.coalesce(_ITEM.attempts, 0).label("attempts"),
        func.coalesce(_ITEM.failures, 0).label("failures"),
        _ITEM.leader_id,
        _ITEM.rank,
        _UNIT.claimed_at,
        _UNIT.worker,
        _UNIT.heartbeat_at,
        _UNIT.started_at,
        _UNIT.ended_at,
    )
    .select_from(unit_table)
    .join(callback_table, _CALLBACK.id == _UNIT.callback_id)
    .outerjoin(request_table, _REQUEST.id == _UNIT.request_id)
    .outerjoin(item_table, _ITEM.callback_id == _UNIT.callback_id)
    .where(_UNIT.callback_id.in_(_IDS), or_(_REQUEST.id.is_not(None), _UNIT.request_id == _UNIT.callback_id))
)
_CLAIM: Final = (
    update(unit_table)
    .where(_UNIT.callback_id == _ID)
    .values(
        claimed_at=_NOW,
        worker=bindparam("new_worker", type_=String),
        log_path=bindparam("new_log_path", type_=String),
        heartbeat_at=bindparam("new_heartbeat_at", type_=UtcDateTime),
    )
)
_GRANT: Final = (
    select(_CALLBACK.state, _ITEM.state.label("item_state"), _ITEM.attempts)
    .select_from(item_table)
    .join(callback_table, _CALLBACK.id == _ITEM.callback_id)
    .where(_ITEM.callback_id == _ID)
    .with_for_update(read=True, of=_ITEM.callback_id)
)
_BEAT: Final = (
    update(unit_table)
    .where(_UNIT.callback_id.in_(_IDS), _UNIT.claimed_at == bindparam("its_claim", type_=UtcDateTime))
    .values(heartbeat_at=_NOW)
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
_RENEW: Final = (
    update(unit_table)
    .where(_UNIT.callback_id.in_(_IDS))
    .values(
        claimed_at=null(),
        started_at=null(),
        ended_at=null(),
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
    .where(_CALLBACK.id == _ID, _CALLBACK.state.in_(bindparam("from_states", expanding=True)))
    .values(state=CALLBACK_RUNNING)
)
_END: Final = (
    update(unit_table)
    .where(_UNIT.callback_id == _ID)
    .values(ended_at=_NOW, log=bindparam("new_log", type_=Text))
)
_FAILED_ONCE: Final = (
    update(unit_table)
    .where(_UNIT.callback_id == _ID)
    .values(started_at=null(), log=bindparam("new_log", type_=Text))
)
_AWAITS: Final = (
    update(callback_table)
    .where(_CALLBACK.id == _ID, _CALLBACK.state.in_((CALLBACK_QUEUED, CALLBACK_RUNNING)))
    .values(state=CALLBACK_PENDING, output=bindparam("new_output", type_=Text))
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
            values["service_class"] = None if row.service_class is None else ServiceClass(row.service_class)
            found.append(RunUnit(**values))
    return sorted(found, key=lambda unit: unit.place)


def grant_of(conn: Connection, callback_id: UUID) -> Grant | None:
    """How a callback without a unit came to a worker; ``None`` if it has no item, or no row.

    Its item is locked until the transaction ends, shared with others who ask: the scheduler does not take a callback
    back while a unit is made for it.
    """
    row = conn.execute(_GRANT, {"unit_id": callback_id}).one_or_none()
    if row is None:
        return None
    return Grant(state=row.state, item_state=ItemState(row.item_state), attempts=row.attempts)


def add_unit(conn: Connection, callback_id: UUID, name: str) -> None:
    """Make a unit for a callback that no request of Airflow's led to, unless it has one.

    Args:
        conn: Connection to Airflow's metadata database.
        callback_id: The callback; its unit names it as its own request.
        name: What people call it.
    """
    row = {
        "callback_id": callback_id,
        "request_id": callback_id,
        "position": 0,
        "name": storable(name, _NAME_LENGTH),
        "target": Target.WORKER.value,
        "reference": "{}",
    }
    conn.execute(_insert_if_absent(conn.dialect.name), row)


def _insert_if_absent(dialect: str) -> Insert:
    if dialect in ("mysql", "mariadb"):
        return mysql.insert(unit_table).on_duplicate_key_update(callback_id=_UNIT.callback_id)
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return insert(unit_table).on_conflict_do_nothing(index_elements=[_UNIT.callback_id])


def claim(
    conn: Connection,
    log_paths: Mapping[UUID, str | None],
    *,
    worker: str,
    now: datetime,
    heartbeat_at: datetime | None = None,
) -> None:
    """Give units to a worker.

    Args:
        conn: Connection to Airflow's metadata database; the units are locked.
        log_paths: The units, each with the path of its log.
        worker: Who takes them.
        now: The time of the claim, which tells it from an earlier or later one of the same worker.
        heartbeat_at: When it was last heard of; ``None`` if it is not going to tell that it is still there.
    """
    conn.execute(
        _CLAIM,
        [
            {
                "unit_id": unit_id,
                "now": now,
                "new_worker": storable(worker, _WORKER_LENGTH),
                "new_log_path": None if path is None else storable(path, _LOG_PATH_LENGTH),
                "new_heartbeat_at": heartbeat_at,
            }
            for unit_id, path in sorted(log_paths.items())
        ],
    )


def beat(conn: Connection, ids: Iterable[UUID], *, claimed_at: datetime, now: datetime) -> int:
    """Note that a worker is still there, in those of the units that are still under its claim.

    Args:
        conn: Connection to Airflow's metadata database; the units are locked.
        ids: The units.
        claimed_at: The claim.
        now: The present.

    Returns:
        How many were.
    """
    return sum(
        conn.execute(_BEAT, {"ids": piece, "its_claim": claimed_at, "now": now}).rowcount
        for piece in chunks(sorted(ids), KEYS_PER_STATEMENT)
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


def renew(conn: Connection, ids: Iterable[UUID]) -> int:
    """Let callbacks be called again that somebody has set back to pending, whatever was reported of them before.

    Returns:
        How many of them have a unit.
    """
    return sum(
        conn.execute(_RENEW, {"ids": piece}).rowcount for piece in chunks(sorted(ids), KEYS_PER_STATEMENT)
    )


def redirect_unit(conn: Connection, callback_id: UUID, target: Target) -> None:
    """Have something else call a unit that has not been called."""
    conn.execute(_REDIRECT, {"unit_id": callback_id, "new_target": target.value})


def mark_started(conn: Connection, unit_id: UUID, now: datetime, *, even_pending: bool = False) -> bool:
    """Record that a unit begins, and set its callback to running; one that has begun keeps its time.

    Args:
        conn: Connection to Airflow's metadata database; the unit is locked.
        unit_id: The unit.
        now: The present.
        even_pending: Whether its callback may be pending, see `RunUnit.waits_again`.

    Returns:
        Whether it may: ``False``, with nothing changed, if its callback has ended, waits again or is gone.
    """
    states = OPEN_STATES if even_pending else (CALLBACK_QUEUED, CALLBACK_RUNNING)
    if not conn.execute(_RUNS, {"unit_id": unit_id, "from_states": states}).rowcount:
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


def mark_attempt_failed(conn: Connection, unit_id: UUID, *, output: str, log: str | None) -> bool:
    """Record that a unit failed and is to be tried again: its callback is pending, and says why.

    The claim stays, and no end is set: the scheduler finds it so (see the head of this module), counts the failure,
    and releases the unit.

    Args:
        conn: Connection to Airflow's metadata database; the unit is locked.
        unit_id: The unit.
        output: Why it failed; cut to `OUTPUT_LIMIT_BYTES`.
        log: Its log; the last `LOG_LIMIT_BYTES` are kept.

    Returns:
        Whether it could be: ``False``, with nothing changed, if its callback has ended or is gone.
    """
    told = {"unit_id": unit_id, "new_output": _head(output, OUTPUT_LIMIT_BYTES)}
    if not conn.execute(_AWAITS, told).rowcount:
        return False
    conn.execute(_FAILED_ONCE, {"unit_id": unit_id, "new_log": _tail(log, LOG_LIMIT_BYTES)})
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
