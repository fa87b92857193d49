"""Ways back: a routed request to the Dag processor, and what the triggerer could not import to a worker."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import attrs
import uuid6
from airflow.callbacks.callback_requests import CallbackRequest
from airflow.configuration import conf
from airflow.executors.workloads.callback import CallbackFetchMethod
from airflow.models.callback import Callback, CallbackType, DagProcessorCallback
from airflow.models.dag import DagModel
from airflow.models.trigger import Trigger
from airflow.utils.state import CallbackState
from pydantic import TypeAdapter
from sqlalchemy import Connection, delete, insert, select, update

from callback_priority.adapter import callbacks, metrics, triggers
from callback_priority.adapter.config import settings as settings_of_process
from callback_priority.adapter.routing import executors
from callback_priority.adapter.routing.units import Call, Occasion, executor_data
from callback_priority.adapter.savepoints import savepoint
from callback_priority.core.kinds import KINDS
from callback_priority.errors import TransactionLostError
from callback_priority.persistence import items, requests, triggered, units
from callback_priority.persistence.enqueueing import enqueue
from callback_priority.persistence.items import Item
from callback_priority.persistence.requests import Outcome, Request, Target
from callback_priority.persistence.tables import unit_table
from callback_priority.persistence.triggered import Triggered
from callback_priority.persistence.units import RunUnit
from callback_priority.policy.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["NOT_IMPORTED", "request_of", "reroute_triggered", "withdraw"]

log = logging.getLogger(__name__)

NOT_IMPORTED: Final = "Failed to import the callable on the triggerer"
"""How Airflow's trigger begins its output where our module, or the callable's own, cannot be imported."""

UNTAKEN_SECONDS: Final = 60.0
"""How long a callback waits for a triggerer to take it, before a worker calls it: the triggerer may have ended, be
full, or serve other queues only. The same time counts from the death of the triggerer that had it."""

_CALLBACK: Final = Callback.__table__
_TRIGGER: Final = Trigger.__table__
_REQUESTS: Final[TypeAdapter[Any]] = TypeAdapter(CallbackRequest)
_OPEN: Final = (CallbackState.QUEUED, CallbackState.RUNNING)


def request_of(body: str) -> CallbackRequest:
    """Airflow's request, of its own text."""
    found: CallbackRequest = _REQUESTS.validate_json(body)
    return found


def withdraw(session: Session, request_id: UUID, reason: str) -> bool:
    """Give a request to the Dag processor after all, if none of its callables has been called.

    Its callbacks, items and units are removed, and the row is written that Airflow would have written. Whoever
    asks for one of the units after that is told that it is not known.

    Args:
        session: A transaction of the scheduler's; not committed here.
        request_id: The request.
        reason: Why it cannot run here.

    Returns:
        Whether the Dag processor runs it now.
    """
    connection = session.connection()
    ids = requests.units_of(connection, request_id)
    with savepoint(connection, "callback_priority_withdrawal"):
        units.lock(connection, ids)
        found = units.read_units(connection, ids)
        request = requests.read_request(connection, request_id)
        if request is None or request.outcome is not Outcome.ROUTED or request.body is None:
            return False
        if any(_begun(connection, unit) for unit in found):
            return False
        original = request_of(request.body)
        stock = DagProcessorCallback(priority_weight=1, callback=original)
        triggers = select(_CALLBACK.c.trigger_id).where(
            _CALLBACK.c.id.in_(ids), _CALLBACK.c.trigger_id.is_not(None)
        )
        trigger_ids = connection.scalars(triggers).all()
        connection.execute(delete(_CALLBACK).where(_CALLBACK.c.id.in_(ids)))
        if trigger_ids:
            connection.execute(delete(_TRIGGER).where(_TRIGGER.c.id.in_(trigger_ids)))
        requests.remove_units(connection, request_id)
        requests.conclude(connection, request_id, Outcome.FALLBACK, reason=reason)
        connection.execute(
            insert(_CALLBACK).values(
                id=uuid6.uuid7(),
                type=CallbackType.DAG_PROCESSOR,
                fetch_method=stock.fetch_method,
                data=stock.data,
                bundle_name=stock.bundle_name,
                state=stock.state,
                priority_weight=stock.priority_weight,
                created_at=datetime.now(timezone.utc),
            )
        )
    metrics.count("requests", kind=request.kind, outcome="withdrawn")
    metrics.count("callbacks_withdrawn", len(ids))
    return True


def _begun(connection: Connection, unit: RunUnit) -> bool:
    """Whether a unit has been called, or may be called at any moment without asking first."""
    if unit.started_at is not None or unit.state == CallbackState.SUCCESS:
        return True
    if unit.target != Target.TRIGGERER:
        return False
    # A triggerer asks nobody before it begins, so one that has been given the trigger may have begun.
    trigger = (
        select(_TRIGGER.c.triggerer_id)
        .join(_CALLBACK, _CALLBACK.c.trigger_id == _TRIGGER.c.id)
        .where(_CALLBACK.c.id == unit.callback_id)
        .with_for_update(of=_TRIGGER)
    )
    row = connection.execute(trigger).one_or_none()
    return row is None or row.triggerer_id is not None


def reroute_triggered(session: Session, now: datetime, limit: int) -> int:
    """Settle what triggerers have done, and have workers run what no triggerer could, or does any more.

    A triggerer without this library, or without the module that a callable is in, calls nothing. Airflow's row
    says so, and becomes that of a callback which waits for an executor. So does that of one which no triggerer
    has taken for a while, or whose triggerer has ended and no other has taken it since; the latter may have begun,
    so it has lost an attempt. One that failed does so too where its class is tried again.

    Args:
        session: A transaction of the scheduler's; not committed here.
        now: The present.
        limit: The most to look at in one call.

    Returns:
        How many wait for a worker now.
    """
    connection = session.connection()
    settings = settings_of_process()
    done: list[UUID] = []
    rerouted = 0
    for each in triggered.ended(connection, limit):
        move = None if settings is None else _after_end(each, settings, now)
        if settings is not None and move is not None and _reroute(session, move, settings, now):
            rerouted += 1
        else:
            done.append(each.callback_id)
    if settings is not None:
        untaken_since = now - timedelta(seconds=UNTAKEN_SECONDS)
        threshold = timedelta(seconds=conf.getfloat("triggerer", "triggerer_health_check_threshold"))
        for each in triggered.left(
            connection, untaken_since=untaken_since, dead_since=untaken_since - threshold, limit=limit
        ):
            rerouted += _reroute(session, _of_nobody(each), settings, now)
    if done:
        with savepoint(connection, "callback_priority_triggered"):
            items.mark_done(connection, done, now)
            units.end_units(connection, done, now)
    return rerouted


@attrs.frozen(kw_only=True)
class _Move:
    """What is to become of a callback that a triggerer had, or was to have.

    Args:
        found: As it was found.
        why: Why a worker gets it.
        failures: How many of its attempts were lost or failed, with the last.
        retry_at: When it is tried again; ``None`` for at once.
    """

    found: Triggered
    why: str
    failures: int
    retry_at: datetime | None = None


def _after_end(found: Triggered, settings: Settings, now: datetime) -> _Move | None:
    """What becomes of one that has ended; ``None`` if that is all."""
    if found.state != CallbackState.FAILED:
        return None
    if (found.output or "").startswith(NOT_IMPORTED):
        return _Move(found=found, why="the triggerer could not import it", failures=found.failures)
    failures = found.failures + 1
    if found.service_class not in settings.callback_retry_on_failure or not settings.tries_again(
        found.service_class, failures
    ):
        return None
    delay = settings.retry_delay_seconds(found.service_class, failures, found.callback_id)
    retry_at = now + timedelta(seconds=delay)
    return _Move(found=found, why="it failed on the triggerer", failures=failures, retry_at=retry_at)


def _of_nobody(found: Triggered) -> _Move:
    """What becomes of one that no living triggerer has."""
    if found.triggerer_id is None:
        return _Move(found=found, why="no triggerer has taken it", failures=found.failures)
    return _Move(found=found, why="its triggerer has ended", failures=found.failures + 1)


def _reroute(session: Session, move: _Move, settings: Settings, now: datetime) -> bool:
    connection = session.connection()
    found = move.found
    try:
        with savepoint(connection, "callback_priority_reroute_one"):
            # As in `withdraw`: the unit first, and then its trigger.
            units.lock(connection, [found.callback_id])
            if found.state in _OPEN and not _lock_trigger(connection, found):
                return False
            if move.failures > found.failures and not settings.tries_again(
                found.service_class, move.failures
            ):
                _fail(connection, move, now)
                return False
            return _to_worker(session, connection, move, settings, now)
    except TransactionLostError:
        raise
    except Exception:
        log.exception("Callback %s could not be rerouted, though %s", found.callback_id, move.why)
        return False


def _lock_trigger(connection: Connection, found: Triggered) -> bool:
    """Keep triggerers from a callback, if all is as it was found."""
    holder = _TRIGGER.c.triggerer_id
    trigger = (
        select(_TRIGGER.c.id)
        .join(_CALLBACK, _CALLBACK.c.trigger_id == _TRIGGER.c.id)
        .where(_CALLBACK.c.id == found.callback_id, _CALLBACK.c.state.in_(_OPEN))
        .where(holder.is_(None) if found.triggerer_id is None else holder == found.triggerer_id)
        .with_for_update(of=_TRIGGER, skip_locked=True)
    )
    return connection.execute(trigger).one_or_none() is not None


def _drop_trigger(connection: Connection, callback_id: UUID, trigger_id: int | None) -> None:
    """Have no triggerer run it any more: one that was thought dead drops what has no trigger."""
    connection.execute(update(_CALLBACK).where(_CALLBACK.c.id == callback_id).values(trigger_id=None))
    if trigger_id is not None:
        connection.execute(delete(_TRIGGER).where(_TRIGGER.c.id == trigger_id))


def _fail(connection: Connection, move: _Move, now: datetime) -> None:
    callback_id = move.found.callback_id
    trigger_id = _trigger_of(connection, callback_id)
    callbacks.fail(connection, {callback_id: triggers.lost_reason(move.failures)})
    _drop_trigger(connection, callback_id, trigger_id)
    items.mark_done(connection, [callback_id], now, "failed: its output says why")
    units.end_units(connection, [callback_id], now)
    metrics.count("callbacks_failed", 1)


def _trigger_of(connection: Connection, callback_id: UUID) -> int | None:
    return connection.scalar(select(_CALLBACK.c.trigger_id).where(_CALLBACK.c.id == callback_id))


def _to_worker(
    session: Session, connection: Connection, move: _Move, settings: Settings, now: datetime
) -> bool:
    callback_id = move.found.callback_id
    found = units.read_units(connection, [callback_id])
    item = items.read_item(connection, callback_id)
    request_id = connection.scalar(
        select(unit_table.c.request_id).where(unit_table.c.callback_id == callback_id)
    )
    request = None if request_id is None else requests.read_request(connection, request_id)
    if not found or item is None or request is None:
        return False
    [unit] = found
    team = DagModel.get_team_name(request.dag_id, session=session) if executors.multi_team() else None
    reason = executors.why_not(item.executor, team)
    if reason is not None:
        log.warning("Callback %s stays with the triggerer though %s: %s", callback_id, move.why, reason)
        return False
    occasion = _occasion(request, item, team)
    call = Call(name=unit.name, reference={}, target=Target.WORKER, executor=item.executor)
    trigger_id = _trigger_of(connection, callback_id)
    changed = connection.execute(
        update(_CALLBACK)
        .where(
            _CALLBACK.c.id == callback_id,
            _CALLBACK.c.type == CallbackType.TRIGGERER,
            _CALLBACK.c.state == move.found.state,
        )
        .values(
            type=CallbackType.EXECUTOR,
            fetch_method=CallbackFetchMethod.DAG_ATTRIBUTE,
            data=executor_data(occasion, call, settings),
            state=CallbackState.PENDING,
            output=None,
        )
    ).rowcount
    if not changed:
        return False
    _drop_trigger(connection, callback_id, trigger_id)
    # An item that is done is written anew, with a place in the queue.
    items.mark_done(connection, [callback_id], now)
    enqueue(
        connection,
        [occasion.item(callback_id, call, settings)],
        now=now,
        turn_length_us=settings.dag_turn_us,
        aging_us=settings.priority_aging_us,
    )
    units.redirect_unit(connection, callback_id, Target.WORKER)
    if move.retry_at is None:
        triggered.set_failures(connection, callback_id, move.failures)
    else:
        triggered.set_failures(connection, callback_id, move.failures - 1)
        again = items.Lost(callback_id=callback_id, reason=move.why, retry_at=move.retry_at)
        items.try_again(connection, [again])
    log.warning("A worker calls %s: %s", unit.name, move.why)
    return True


def _occasion(request: Request, item: Item, team: str | None) -> Occasion:
    airflows = request_of(str(request.body))
    return Occasion(
        kind=KINDS[request.kind],
        request_id=request.id,
        dag_id=request.dag_id,
        dag_run_id=item.dag_run_id or 0,
        bundle_name=airflows.bundle_name,
        bundle_version=airflows.bundle_version,
        filepath=airflows.filepath,
        pool=item.pool,
        priority=item.priority,
        team=team,
    )
