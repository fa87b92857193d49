"""Runs of workers, on the side of the database: who may start one, what is in it, and what is said of it.

A *run* is a callback that was handed to an executor, the *leader*, with the callbacks that were granted
together with it. A worker claims all of it at once, and the claim is told from any other by its time: when a
worker is given up and another takes the callbacks over, the first one is no longer believed.

A callback that Airflow's own code calls on the worker, a deadline's say, is claimed in the same way and is a run of
its own: an *attempt*. Only here it can be that nobody with this library has granted it; then it is left alone.

What is kept true:

- One worker has a callback at a time, and no other can begin it.
- What has ended keeps its state. What somebody set by hand, or withdrew, does not run. What waits for another
  attempt does not run before that is granted.
- Asking the same thing twice, as a client does that got no answer, changes nothing.

These functions change units and Airflow's callback rows only; items are the scheduler's. They never commit.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import attrs
from sqlalchemy import Connection

from callback_priority.errors import CallbackPriorityError
from callback_priority.persistence import units
from callback_priority.persistence.airflow_tables import CALLBACK_QUEUED
from callback_priority.persistence.requests import Target
from callback_priority.persistence.tables import ItemState
from callback_priority.persistence.units import OPEN_STATES, RunUnit
from callback_priority.policy.settings import Settings
from callback_priority.protocol import PROTOCOL, Attempt, Ended, Run, Start, UnitOrder, UnitState

__all__ = [
    "MARGIN_SECONDS",
    "Claim",
    "RunBusyError",
    "RunError",
    "RunOverError",
    "RunRefusedError",
    "Started",
    "UnitUnknownError",
    "UnknownProtocolError",
    "attempt",
    "beat",
    "end",
    "run",
    "start",
    "task_instance_id",
]


MARGIN_SECONDS: Final = 60
"""What a run may take beyond its limits: stopping a process and telling of it take a while."""

SILENCE_SECONDS: Final = 900.0
"""For how long a worker is waited for that was to tell that it is still there, and does not. A scheduler gives it up
earlier, and then there is nothing to wait for; this holds if there is none with this library any more."""


class RunError(CallbackPriorityError):
    """A worker asked for something that cannot be."""


class UnknownProtocolError(RunError, ValueError):
    """The worker speaks another protocol than this side."""

    def __init__(self, protocol: int, library: str) -> None:
        self.protocol = protocol
        super().__init__(
            f"the worker's callback-priority {library} speaks protocol {protocol}, and this side {PROTOCOL}; "
            "install the same release on workers and API servers"
        )


class UnitUnknownError(RunError, LookupError):
    """There is no such routed callback."""

    def __init__(self, callback_id: UUID) -> None:
        self.callback_id = callback_id
        super().__init__(f"there is no routed callback {callback_id}; it may have been withdrawn")


class RunRefusedError(RunError):
    """The callback is not the worker's to run: leave it."""

    def __init__(self, callback_id: UUID, why: str) -> None:
        self.callback_id = callback_id
        super().__init__(f"callback {callback_id} {why}")


class RunOverError(RunRefusedError):
    """The callback has ended, or waits for another attempt: this comes too late."""


class RunBusyError(RunRefusedError):
    """Another worker has the run and may well be at it: how it ends is not known yet."""


@attrs.frozen(kw_only=True)
class Claim:
    """What tells one run from another.

    Args:
        leader_id: The callback that the executor was given.
        claimed_at: When a worker took the run.
    """

    leader_id: UUID
    claimed_at: datetime


@attrs.frozen(kw_only=True)
class Started:
    """A run that a worker may go on with.

    Args:
        claim: What it is known by from now on.
        run: What is to be done.
        limit_seconds: How long it takes at most, by its own limits.
        task_instance_id: A task instance that it is about; ``None`` if there is none.
    """

    claim: Claim
    run: Run
    limit_seconds: float
    task_instance_id: UUID | None


@attrs.frozen
class _Order:
    """A unit and its request, read."""

    unit: RunUnit
    reference: dict[str, Any]
    request: dict[str, Any]
    request_class: str
    bundle_name: str
    bundle_version: str | None
    filepath: str

    def shares_file(self, other: _Order) -> bool:
        """Whether one Dag file serves both."""
        mine = self.bundle_name, self.bundle_version, self.filepath
        return mine == (other.bundle_name, other.bundle_version, other.filepath)


def start(conn: Connection, leader_id: UUID, asked: Start, *, settings: Settings, now: datetime) -> Started:
    """Give a run to a worker.

    Args:
        conn: Connection to Airflow's metadata database.
        leader_id: The callback that the executor gave to the worker.
        asked: What the worker says of itself.
        settings: How long loading and each unit may take.
        now: The present.

    Raises:
        UnknownProtocolError: The worker's protocol is not ours.
        UnitUnknownError: There is no such callback, or Airflow did not get it from us.
        RunBusyError: It is another worker's.
        RunOverError: It has ended, or waits for another attempt.
        RunRefusedError: It has begun, or that other worker must be gone.
    """
    worker = _worker(asked)
    ids = {leader_id, *units.companions(conn, leader_id)}
    units.lock(conn, ids)
    found = {unit.callback_id: unit for unit in units.read_units(conn, ids)}
    if leader_id not in found:
        raise UnitUnknownError(leader_id)
    leader = found[leader_id]
    taken = [unit for unit in found.values() if unit.claimed_at == leader.claimed_at]
    _require_free(leader, worker, taken, now, limit_seconds=_limit_seconds(len(taken), settings))
    first = _order(leader)
    if first is None:
        raise RunRefusedError(leader_id, "has a request that cannot be read")
    orders = [
        order
        for unit in found.values()
        if (order := first if unit is leader else _companion(unit, leader)) is not None
        and order.shares_file(first)
    ]
    claim = Claim(leader_id=leader_id, claimed_at=leader.claimed_at or now)
    paths = {order.unit.callback_id: _log_path(order.unit) for order in orders}
    units.claim(
        conn,
        paths,
        worker=worker,
        heartbeat_at=now if asked.heartbeats else None,
        now=claim.claimed_at,
    )
    return Started(
        claim=claim,
        run=Run(
            protocol=PROTOCOL,
            bundle_name=first.bundle_name,
            bundle_version=first.bundle_version,
            filepath=first.filepath,
            load_limit_seconds=settings.callback_load_limit_seconds,
            log_limit_bytes=settings.callback_log_limit_bytes,
            units=[
                UnitOrder(
                    callback_id=order.unit.callback_id,
                    kind=order.unit.kind,
                    position=order.unit.position,
                    name=order.unit.name,
                    reference=order.reference,
                    request_class=order.request_class,
                    request=order.request,
                    time_limit_seconds=settings.callback_time_limit_seconds,
                    log_path=paths[order.unit.callback_id],
                )
                for order in orders
            ],
        ),
        limit_seconds=_limit_seconds(len(orders), settings),
        task_instance_id=_task_instance_id(first.request),
    )


def attempt(conn: Connection, callback_id: UUID, asked: Attempt, *, now: datetime) -> Claim | None:
    """Give a callback that Airflow's own code is going to call to a worker.

    Args:
        conn: Connection to Airflow's metadata database.
        callback_id: The callback.
        asked: What the worker says of itself and of the callback.
        now: The present.

    Returns:
        What the run is known by from now on; ``None`` if no scheduler with this library has granted it.

    Raises:
        UnknownProtocolError: The worker's protocol is not ours.
        RunBusyError: It is another worker's.
        RunOverError: It has ended, or waits for another attempt.
        RunRefusedError: It has begun, or that other worker must be gone.
    """
    worker = _worker(asked)
    units.lock(conn, [callback_id])
    if not units.read_units(conn, [callback_id]):
        grant = units.grant_of(conn, callback_id)
        if grant is None or not grant.ours:
            return None
        if not grant.due:
            raise RunOverError(callback_id, f"is {grant.state}, and not waiting to run")
        units.add_unit(conn, callback_id, asked.path)
        units.lock(conn, [callback_id])
    found = units.read_units(conn, [callback_id])
    if not found or not found[0].grant.ours:
        return None
    [unit] = found
    _require_free(unit, worker, found, now)
    if not unit.grant.due:
        raise RunOverError(callback_id, f"is {unit.state}, and not waiting to run")
    claim = Claim(leader_id=callback_id, claimed_at=unit.claimed_at or now)
    units.claim(
        conn,
        {callback_id: asked.log_path},
        worker=worker,
        heartbeat_at=now if asked.heartbeats else None,
        now=claim.claimed_at,
    )
    return claim


def beat(conn: Connection, claim: Claim, unit_ids: Collection[UUID], *, now: datetime) -> None:
    """Note that a worker is still at its run.

    Args:
        conn: Connection to Airflow's metadata database.
        claim: The run that tells.
        unit_ids: The units of which it has not said how they ended.
        now: The present.

    Raises:
        UnitUnknownError: There are no such units any more.
        RunRefusedError: None of them is the worker's any more: it was given up, or they are known to have ended.
    """
    units.lock(conn, {claim.leader_id, *unit_ids})
    found = units.read_units(conn, unit_ids)
    if not found:
        raise UnitUnknownError(claim.leader_id)
    held = [
        unit.callback_id
        for unit in found
        if unit.ended_at is None
        and unit.claimed_at == claim.claimed_at
        and claim.leader_id in (unit.callback_id, unit.leader_id)
    ]
    if not held:
        raise RunRefusedError(claim.leader_id, "is not, or no longer, with this worker")
    units.beat(conn, {claim.leader_id, *held}, claimed_at=claim.claimed_at, now=now)


def run(conn: Connection, claim: Claim, unit_id: UUID, *, now: datetime) -> None:
    """Let a unit begin.

    Args:
        conn: Connection to Airflow's metadata database.
        claim: The run that asks.
        unit_id: The unit.
        now: The present.

    Raises:
        UnitUnknownError: There is no such unit any more.
        RunRefusedError: It is not of this run, or it has ended; it must not be called.
    """
    unit = _of_run(conn, claim, unit_id)
    _require_open(unit)
    if not units.mark_started(conn, unit_id, now, even_pending=unit.attempts == 0):
        raise RunRefusedError(unit_id, "has ended meanwhile")


def end(
    conn: Connection, claim: Claim, unit_id: UUID, ended: Ended, *, settings: Settings, now: datetime
) -> None:
    """Record how a unit ended, or that it failed and is to be tried again.

    Args:
        conn: Connection to Airflow's metadata database.
        claim: The run that tells.
        unit_id: The unit.
        ended: How it ended.
        settings: Which failures are tried again.
        now: The present.

    Raises:
        UnitUnknownError: There is no such unit any more.
        RunRefusedError: It is not of this run, or it is known to have ended in another way.
    """
    unit = _of_run(conn, claim, unit_id)
    if unit.waits_again and ended.state is UnitState.FAILED:
        return
    if unit.state == ended.state.value:
        if unit.ended_at is not None:
            return
    else:
        _require_open(unit)
        if ended.state is UnitState.FAILED and (again := _again(unit, settings, lost=ended.lost)):
            output = f"{again}{ended.output or 'no reason was given'}"
            if not units.mark_attempt_failed(conn, unit_id, output=output, log=ended.log):
                raise RunRefusedError(unit_id, "has ended meanwhile, and otherwise")
            return
    if not units.mark_ended(
        conn, unit_id, state=ended.state.value, output=ended.output, log=ended.log, now=now
    ):
        raise RunRefusedError(unit_id, "has ended meanwhile, and otherwise")


def task_instance_id(conn: Connection, claim: Claim, unit_id: UUID) -> UUID | None:
    """The task instance that a unit's request is about: for a Dag callback, the last one; else ``None``.

    Raises:
        UnitUnknownError: There is no such unit any more.
        RunRefusedError: It is not of this run.
    """
    order = _order(_of_run(conn, claim, unit_id, writes=False))
    return None if order is None else _task_instance_id(order.request)


def _of_run(conn: Connection, claim: Claim, unit_id: UUID, *, writes: bool = True) -> RunUnit:
    if writes:
        units.lock(conn, [unit_id])
    found = units.read_units(conn, [unit_id])
    if not found:
        raise UnitUnknownError(unit_id)
    unit = found[0]
    if unit.claimed_at != claim.claimed_at or claim.leader_id not in (unit.callback_id, unit.leader_id):
        raise RunRefusedError(unit_id, "is not, or no longer, in this run")
    return unit


def _worker(asked: Start) -> str:
    """Who asks.

    Raises:
        UnknownProtocolError: In words that are not ours.
    """
    if asked.protocol != PROTOCOL:
        raise UnknownProtocolError(asked.protocol, asked.library)
    return f"{asked.hostname}:{asked.pid}"


def _again(unit: RunUnit, settings: Settings, *, lost: bool) -> str:
    """What a unit's output begins with if it is tried again after it failed or was lost; empty if it is not.

    Who grants without this library does not count failures. Then the same failure comes a second time, and is the last.
    """
    cls, failures = unit.service_class, unit.failures + 1
    if (
        cls is None
        or unit.item_state is not ItemState.GRANTED
        or not (lost or cls in settings.callback_retry_on_failure)
        or not settings.tries_again(cls, failures)
    ):
        return ""
    became = "was lost" if lost else "failed"
    again = f"attempt {failures} of {settings.callback_max_attempts[cls]} {became}: "
    return "" if (unit.output or "").startswith(again) else again


def _limit_seconds(units_in_run: int, settings: Settings) -> float:
    """How long a run takes at most: a unit that is stopped costs the next one another load."""
    each = settings.callback_load_limit_seconds + settings.callback_time_limit_seconds
    return units_in_run * each


def _require_free(
    leader: RunUnit,
    worker: str,
    taken: Collection[RunUnit],
    now: datetime,
    *,
    limit_seconds: float | None = None,
) -> None:
    """Make sure that a run is nobody's, or was this worker's, who got no answer.

    Args:
        leader: The callback that the worker was given.
        worker: Who asks.
        taken: The units that are under the same claim as the leader.
        now: The present.
        limit_seconds: How long a run of theirs takes at most; ``None`` if that is not known.

    Raises:
        RunBusyError: It is another worker's.
        RunOverError: It has ended, or waits for another attempt.
        RunRefusedError: It has begun, or that other worker must be gone, or it is not for workers.
    """
    if leader.target != Target.WORKER:
        raise RunRefusedError(leader.callback_id, f"is for the {leader.target}")
    whose = f"is with {leader.worker} since {leader.claimed_at:%F %T%z}" if leader.claimed_at else ""
    if leader.worker != worker and whose and _goes_on(leader, taken, now, limit_seconds):
        raise RunBusyError(leader.callback_id, whose)
    _require_open(leader)
    if whose and leader.worker != worker:
        raise RunRefusedError(leader.callback_id, whose)
    if whose and any(unit.started_at or unit.ended_at for unit in taken):
        # Not a client that got no answer: its run has begun. Most likely a broker delivered it again.
        raise RunRefusedError(leader.callback_id, f"has begun to run on {worker}")


def _goes_on(leader: RunUnit, taken: Iterable[RunUnit], now: datetime, limit_seconds: float | None) -> bool:
    """Whether the worker that took a run may still be at it."""
    if leader.claimed_at is None:
        return False
    heard_at = leader.heartbeat_at or leader.claimed_at
    if leader.heartbeat_at is not None and now - heard_at > timedelta(seconds=SILENCE_SECONDS):
        return False
    if limit_seconds is not None and now - leader.claimed_at > timedelta(
        seconds=limit_seconds + MARGIN_SECONDS
    ):
        return False
    return any(unit.ended_at is None and unit.state in OPEN_STATES for unit in taken)


def _require_open(unit: RunUnit) -> None:
    """Make sure that a unit may still come to run.

    Raises:
        RunOverError: It may not.
    """
    if unit.ended_at is not None or unit.state not in OPEN_STATES or unit.waits_again:
        raise RunOverError(unit.callback_id, f"is {unit.state}, and not waiting to run")


def _companion(unit: RunUnit, leader: RunUnit) -> _Order | None:
    """A unit that shares a run, if it still can; one that cannot is the scheduler's to look at again."""
    fits = (
        unit.item_state is ItemState.GRANTED
        and unit.leader_id == leader.callback_id
        and unit.state == CALLBACK_QUEUED
        and unit.target == Target.WORKER
        and unit.ended_at is None
        and unit.claimed_at in (None, leader.claimed_at)
    )
    return _order(unit) if fits else None


def _order(unit: RunUnit) -> _Order | None:
    """``None`` if its rows cannot be read: that one alone must not stop the others of its run."""
    try:
        request, reference = json.loads(unit.body or ""), json.loads(unit.reference)
        file = [request[name] for name in ("type", "bundle_name", "bundle_version", "filepath")]
    except (ValueError, TypeError, LookupError):
        return None
    return _Order(unit, reference, request, *file)


def _task_instance_id(request: Mapping[str, Any]) -> UUID | None:
    try:
        found = request["ti"] if "ti" in request else request["context_from_server"]["last_ti"]
        return UUID(found["id"])
    except (LookupError, TypeError, ValueError, AttributeError):
        return None


def _log_path(unit: RunUnit) -> str:
    """Where Airflow would have put it, see ``airflow.executors.workloads.ExecuteCallback.make``."""
    return f"executor_callbacks/{unit.dag_id}/{unit.run_id}/{unit.callback_id}"
