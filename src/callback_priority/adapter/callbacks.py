"""Airflow's callback rows: what they are for us, whether they can run, and the workload an executor gets."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import attrs
from airflow.executors import workloads
from airflow.executors.workloads import base as workload_base
from airflow.models.callback import CallbackType, ExecutorCallback
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.utils.sqlalchemy import with_row_locks
from airflow.utils.state import CallbackState
from sqlalchemy import Connection, bindparam, case, select, update
from sqlalchemy.exc import DBAPIError

from callback_priority.core.classes import ServiceClass
from callback_priority.persistence.items import NewItem
from callback_priority.persistence.sweep import PendingCallback
from callback_priority.persistence.tables import item_table
from callback_priority.policy.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["Loaded", "fail", "load", "new_item", "queue", "swept_item", "to_pending"]

_CALLBACK: Final = ExecutorCallback.__table__
_RUN: Final = DagRun.__table__
_DAG: Final = DagModel.__table__
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


@attrs.frozen
class _Dag:
    """What a workload takes of Airflow's ``DagModel``."""

    bundle_name: str | None
    relative_fileloc: str | None


@attrs.frozen
class _DagRun:
    """What a workload takes of Airflow's ``DagRun``."""

    dag_id: str
    run_id: str
    bundle_version: str | None
    dag_model: _Dag


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
    loaded.missing.update(set(ids) - {row.id for row in rows})
    with _configuration_read_once():
        for row in rows:
            if row.state != CallbackState.PENDING:
                loaded.elsewhere.add(row.id)
                continue
            reason = _unfit(row)
            if reason is not None:
                loaded.unfit[row.id] = reason
                continue
            dag = _Dag(row.bundle_name, row.relative_fileloc)
            try:
                workload = workloads.ExecuteCallback.make(
                    callback=row,
                    dag_run=_DagRun(row.dag_id, row.run_id, row.bundle_version, dag),  # type: ignore[arg-type]
                    generator=executors[row.id].jwt_generator,
                )
            except Exception as error:  # noqa: BLE001 - hostile data meets Airflow's schemas; one row must not stop the rest
                loaded.unfit[row.id] = f"its workload cannot be made: {_brief(error)}"
            else:
                loaded.workloads[row.id] = workload


def _rows(session: Session, ids: list[UUID]) -> Sequence[Any]:
    """The columns that are needed and not Airflow's objects, which take four times as long to load."""
    query = (
        select(
            _CALLBACK.c.id,
            _CALLBACK.c.state,
            _CALLBACK.c.fetch_method,
            _CALLBACK.c.data,
            _RUN.c.dag_id,
            _RUN.c.run_id,
            _RUN.c.bundle_version,
            _DAG.c.dag_id.label("dag"),
            _DAG.c.bundle_name,
            _DAG.c.relative_fileloc,
        )
        .join(item_table, item_table.c.callback_id == _CALLBACK.c.id)
        .outerjoin(_RUN, _RUN.c.id == item_table.c.dag_run_id)
        .outerjoin(_DAG, _DAG.c.dag_id == _RUN.c.dag_id)
        .where(_CALLBACK.c.id.in_(ids), _CALLBACK.c.type == CallbackType.EXECUTOR)
    )
    return session.execute(with_row_locks(query, session, of=_CALLBACK, skip_locked=True)).all()


def _unfit(row: Any) -> str | None:
    if not isinstance(row.data, dict):
        return "its data is not a JSON object"
    if _run_key(row.data.get("dag_run_id")) is None:
        found = row.data.get("dag_run_id")
        return f"its data names no Dag run (dag_run_id is {_brief(repr(found))})"
    if row.dag_id is None:
        return f"its Dag run (id {row.data['dag_run_id']}) is gone"
    if row.dag is None:
        return f"its Dag {row.dag_id!r} is gone"
    return None


class _ReadOnce:
    """Airflow's configuration, for code that asks for the same number again and again."""

    def __init__(self, configuration: Any) -> None:
        self._configuration = configuration
        self.getfloat = cache(configuration.getfloat)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._configuration, name)


@contextmanager
def _configuration_read_once() -> Iterator[None]:
    """Let Airflow look up how long a token is valid once, and not for each workload.

    The look-up goes through the environment, files and interpolation, and takes longer than signing the token.
    """
    names = vars(workload_base)
    configuration = names["conf"]
    names["conf"] = _ReadOnce(configuration)
    try:
        yield
    finally:
        names["conf"] = configuration


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
