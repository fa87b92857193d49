"""Airflow's callback rows: what they are for us, whether they can run, and the workload an executor gets."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import attrs
from airflow.executors import workloads
from airflow.models.callback import CallbackType, ExecutorCallback
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.utils.sqlalchemy import with_row_locks
from airflow.utils.state import CallbackState
from sqlalchemy import Connection, bindparam, case, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import contains_eager, load_only

from callback_priority.core.classes import ServiceClass
from callback_priority.persistence.items import NewItem
from callback_priority.persistence.sweep import PendingCallback
from callback_priority.persistence.tables import item_table
from callback_priority.policy.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["Loaded", "fail", "load", "new_item", "queue", "swept_item", "to_pending"]

_CALLBACK: Final = ExecutorCallback.__table__
_LARGEST_KEY: Final = 2**31 - 1


def new_item(callback_id: UUID, data: object, priority_weight: int, settings: Settings) -> NewItem:
    """The item of a callback that became pending.

    Args:
        callback_id: Its key.
        data: Its data, which anybody may have written; what cannot be read is left out and, where it is
            needed to run, found missing when its turn comes.
        priority_weight: Airflow's own priority for it.
        settings: Which pool its class draws on, and priorities by Dag id.
    """
    fields = data if isinstance(data, dict) else {}
    dag_id = fields.get("dag_id")
    dag_id = dag_id if isinstance(dag_id, str) else ""
    executor = fields.get("executor")
    return NewItem(
        callback_id=callback_id,
        service_class=ServiceClass.DEADLINE,
        kind="deadline",
        pool=settings.pool_of(ServiceClass.DEADLINE),
        dag_id=dag_id,
        dag_run_id=_run_key(fields.get("dag_run_id")),
        executor=executor if isinstance(executor, str) else None,
        priority=settings.priority(dag_id, priority_weight),
    )


def swept_item(pending: PendingCallback, settings: Settings) -> NewItem:
    """The item of a pending callback that a sweep found without one."""
    try:
        data = json.loads(pending.data)
        if isinstance(data, dict) and "__var" in data:
            data = data["__var"]
    except (ValueError, RecursionError):
        data = None
    return new_item(pending.callback_id, data, pending.priority_weight, settings)


def _run_key(value: object) -> int | None:
    """A Dag run's key as the column can hold it; ``None`` for anything else that JSON can say."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    try:
        key = int(value)
    except ValueError:
        return None
    return key if 0 <= key <= _LARGEST_KEY else None


@attrs.frozen(kw_only=True)
class Loaded:
    """Callbacks that were asked for.

    Args:
        workloads: What their executors get, by callback.
        unfit: Callbacks that can never run, each with the reason.
        elsewhere: Callbacks that are no longer pending: somebody else took or ended them.
        missing: Callbacks whose row is locked by another transaction or gone.
    """

    workloads: dict[UUID, Any] = attrs.field(factory=dict)
    unfit: dict[UUID, str] = attrs.field(factory=dict)
    elsewhere: set[UUID] = attrs.field(factory=set)
    missing: set[UUID] = attrs.field(factory=set)


def load(session: Session, wanted: Sequence[tuple[UUID, Any]]) -> Loaded:
    """Lock and read callbacks with their Dag runs and Dags in one statement, and make their workloads.

    Args:
        session: The critical section's session.
        wanted: Each callback with the executor that it is to run on.

    A row that cannot be read spoils the statement, so the rows are then read by halves until it stands alone.
    """
    loaded = Loaded()
    executors = dict(wanted)
    _load(session, list(executors), executors, loaded)
    return loaded


def _load(session: Session, ids: list[UUID], executors: dict[UUID, Any], loaded: Loaded) -> None:
    try:
        rows = _rows(session, ids)
    except DBAPIError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a column's decoder raises on hostile data
        if len(ids) == 1:
            loaded.unfit[ids[0]] = f"its row cannot be read: {_brief(error)}"
            return
        middle = len(ids) // 2
        _load(session, ids[:middle], executors, loaded)
        _load(session, ids[middle:], executors, loaded)
        return
    loaded.missing.update(set(ids) - {callback.id for callback, _ in rows})
    for callback, dag_run in rows:
        if callback.state != CallbackState.PENDING:
            loaded.elsewhere.add(callback.id)
            continue
        reason = _unfit(callback, dag_run)
        if reason is not None:
            loaded.unfit[callback.id] = reason
            continue
        try:
            workload = workloads.ExecuteCallback.make(
                callback=callback, dag_run=dag_run, generator=executors[callback.id].jwt_generator
            )
        except Exception as error:  # noqa: BLE001 - hostile data meets Airflow's schemas; one row must not stop the rest
            loaded.unfit[callback.id] = f"its workload cannot be made: {_brief(error)}"
        else:
            loaded.workloads[callback.id] = workload


def _rows(session: Session, ids: list[UUID]) -> Sequence[Any]:
    query = (
        select(ExecutorCallback, DagRun)
        .join(item_table, item_table.c.callback_id == ExecutorCallback.id)
        .outerjoin(DagRun, DagRun.id == item_table.c.dag_run_id)
        .outerjoin(DagModel, DagModel.dag_id == DagRun.dag_id)
        .where(ExecutorCallback.id.in_(ids), ExecutorCallback.type == CallbackType.EXECUTOR)
        .options(
            load_only(DagRun.dag_id, DagRun.run_id, DagRun.bundle_version),
            contains_eager(DagRun.dag_model).load_only(DagModel.bundle_name, DagModel.relative_fileloc),
        )
    )
    locked = with_row_locks(query, session, of=ExecutorCallback, skip_locked=True)
    return session.execute(locked.execution_options(populate_existing=True)).all()


def _unfit(callback: Any, dag_run: Any) -> str | None:
    if not isinstance(callback.data, dict):
        return "its data is not a JSON object"
    if _run_key(callback.data.get("dag_run_id")) is None:
        found = callback.data.get("dag_run_id")
        return f"its data names no Dag run (dag_run_id is {_brief(repr(found))})"
    if dag_run is None:
        return f"its Dag run (id {callback.data['dag_run_id']}) is gone"
    if dag_run.dag_model is None:
        return f"its Dag {dag_run.dag_id!r} is gone"
    return None


def _brief(what: object) -> str:
    text = f"{type(what).__name__}: {what}" if isinstance(what, Exception) else str(what)
    return " ".join(text.split())[:500]


def queue(connection: Connection, ids: Collection[UUID]) -> int:
    """Set pending callbacks to queued, in one statement; returns how many there were."""
    statement = (
        update(_CALLBACK)
        .where(_CALLBACK.c.id.in_(ids), _CALLBACK.c.state == CallbackState.PENDING)
        .values(state=CallbackState.QUEUED)
    )
    return connection.execute(statement).rowcount


def to_pending(connection: Connection, ids: Collection[UUID]) -> None:
    """Set queued callbacks that no executor took back to pending."""
    connection.execute(
        update(_CALLBACK)
        .where(_CALLBACK.c.id.in_(ids), _CALLBACK.c.state == CallbackState.QUEUED)
        .values(state=CallbackState.PENDING)
    )


def fail(connection: Connection, reasons: dict[UUID, str]) -> None:
    """Fail callbacks, each with its reason in ``output``, in one statement; their data is not touched."""
    texts: dict[Any, Any] = {callback_id: bindparam(None, reason) for callback_id, reason in reasons.items()}
    connection.execute(
        update(_CALLBACK)
        .where(_CALLBACK.c.id.in_(texts))
        .values(state=CallbackState.FAILED, output=case(texts, value=_CALLBACK.c.id))
    )
