"""Airflow's callback rows: what they are for us, whether they can run, and the workload an executor gets."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeGuard
from uuid import UUID

import attrs
from airflow.configuration import conf
from airflow.executors import workloads
from airflow.executors.workloads import base as workload_base
from airflow.models.callback import CallbackType, ExecutorCallback
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.utils.sqlalchemy import with_row_locks
from airflow.utils.state import CallbackState
from sqlalchemy import Connection, bindparam, case, or_, select, update
from sqlalchemy.exc import DBAPIError

from callback_priority.compat.rows import RunOfCallback, events_say_what_runs, with_version_data
from callback_priority.core.classes import ServiceClass
from callback_priority.core.kinds import KINDS, CallbackKind, DeadlineCallback
from callback_priority.persistence.airflow_tables import CALLBACK_TERMINAL
from callback_priority.persistence.enqueueing import NewItem
from callback_priority.persistence.sweep import PendingCallback
from callback_priority.persistence.tables import item_table
from callback_priority.persistence.waiting import BATCH
from callback_priority.policy.settings import Settings
from callback_priority.protocol import ENTRY

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = [
    "Loaded",
    "fail",
    "is_routed",
    "kind_of",
    "load",
    "lock_pending",
    "new_item",
    "queue",
    "swept_item",
    "to_pending",
    "to_running",
]

_CALLBACK: Final = ExecutorCallback.__table__
_RUN: Final = DagRun.__table__
_DAG: Final = DagModel.__table__
_LARGEST_KEY: Final = 2**31 - 1
_SPOILED: Final = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What decoders and schemas raise on data that is not what it should be."""
_CLASSES: Final = {each.value: each for each in ServiceClass}


def kind_of(data: object) -> type[CallbackKind]:
    """What a callback is called for, by the data of its row: only rows that this library wrote say."""
    if _is_ours(data):
        kind = data.get("kind")
        if isinstance(kind, str):
            return KINDS.get(kind, DeadlineCallback)
    return DeadlineCallback


def _is_ours(data: object) -> TypeGuard[dict[str, object]]:
    return isinstance(data, dict) and data.get("path") == ENTRY


def new_item(callback_id: UUID, data: object, priority_weight: int, settings: Settings) -> NewItem:
    """The item of a callback that became pending.

    Args:
        callback_id: Its key.
        data: Its data, which anybody may have written; what cannot be read is left out and, where it is
            needed to run, found missing when its turn comes.
        priority_weight: Airflow's own priority for it.
        settings: Which pool and executor its class is for, and priorities by Dag id.

    A callback that this library wrote says what it is for and what it draws on, and its priority is settled; any
    other is a deadline's.
    """
    fields = data if isinstance(data, dict) else {}
    kind = kind_of(data)
    service_class = kind.service_class
    dag_id = _text(fields, "dag_id") or ""
    return NewItem(
        callback_id=callback_id,
        service_class=service_class,
        kind=kind.kind,
        pool=settings.pool_of(service_class, _text(fields, "pool")),
        dag_id=dag_id,
        dag_run_id=_run_key(fields.get("dag_run_id")),
        executor=_text(fields, "executor") or settings.callback_executor.get(service_class),
        priority=priority_weight if _is_ours(data) else settings.priority(dag_id, priority_weight),
    )


def _text(fields: Mapping[str, object], name: str) -> str | None:
    value = fields.get(name)
    return value if isinstance(value, str) else None


def swept_item(pending: PendingCallback, settings: Settings) -> NewItem:
    """The item of a pending callback that a sweep found without one."""
    return new_item(pending.callback_id, _data_of(pending), pending.priority_weight, settings)


def is_routed(pending: PendingCallback) -> bool:
    """Whether a callback is one that this library wrote, so that what it calls stands in its tables only."""
    return _is_ours(_data_of(pending))


def _data_of(pending: PendingCallback) -> object:
    try:
        data = json.loads(pending.data)
    except (ValueError, RecursionError):
        return None
    return data["__var"] if isinstance(data, dict) and "__var" in data else data


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
        batches: Of these, which may share a run with others that wait, by what they must have in common.
        attempts: How often each of them was granted before.
        unfit: Callbacks that can never run, each with the reason.
        later: Callbacks that cannot be made out now for a reason that is not in their data, each with that reason.
        elsewhere: Callbacks that are no longer pending: somebody else took or ended them.
        missing: Callbacks whose row is locked by another transaction or gone.
    """

    workloads: dict[UUID, Any] = attrs.field(factory=dict)
    batches: dict[UUID, str] = attrs.field(factory=dict)
    attempts: dict[UUID, int] = attrs.field(factory=dict)
    unfit: dict[UUID, str] = attrs.field(factory=dict)
    later: dict[UUID, str] = attrs.field(factory=dict)
    elsewhere: set[UUID] = attrs.field(factory=set)
    missing: set[UUID] = attrs.field(factory=set)


def load(
    session: Session,
    wanted: Sequence[tuple[UUID, Any]],
    queues: Mapping[ServiceClass, str] | None = None,
    *,
    valid_seconds: float | None = None,
) -> Loaded:
    """Lock and read callbacks with their Dag runs and Dags in one statement, and make their workloads.

    Args:
        session: The critical section's session.
        wanted: Each callback with the executor that it is to run on.
        queues: The queues of the classes that have one of their own, for executors that have queues.
        valid_seconds: How long a worker's token is valid on its way; ``None`` for as long as Airflow has it.

    A row that cannot be read spoils the statement, so the rows are then read by halves until it stands alone.

    Raises:
        DBAPIError: The database failed.
    """
    loaded = Loaded()
    executors = dict(wanted)
    queue_of = _Queues(queues or {}, conf.get("operators", "default_queue", fallback="default"))
    with _configuration_read_once(valid_seconds):
        _load(session, list(executors), executors, queue_of, loaded)
    return loaded


@attrs.frozen
class _Queues:
    """Where an executor with queues sends callbacks: it reads the queue from their data."""

    by_class: Mapping[ServiceClass, str]
    default: str

    def queue(self, row: Any) -> str:
        """The queue that the row itself names, its class's, or that of tasks which name none."""
        return _text(row.data, "queue") or self.by_class.get(_CLASSES[row.service_class]) or self.default


def _load(
    session: Session, ids: list[UUID], executors: dict[UUID, Any], queues: _Queues, loaded: Loaded
) -> None:
    try:
        rows = _rows(session, ids)
    except DBAPIError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a column's decoder raises on hostile data
        if len(ids) == 1:
            _cannot(loaded, ids[0], f"its row cannot be read: {_brief(error)}", error)
            return
        middle = len(ids) // 2
        _load(session, ids[:middle], executors, queues, loaded)
        _load(session, ids[middle:], executors, queues, loaded)
        return
    loaded.missing.update(set(ids) - {row.id for row in rows})
    for row in rows:
        if row.state != CallbackState.PENDING:
            loaded.elsewhere.add(row.id)
            continue
        reason = _unfit(row)
        if reason is not None:
            loaded.unfit[row.id] = reason
            continue
        run: Any = RunOfCallback(
            dag_id=row.dag_id,
            run_id=row.run_id,
            bundle_version=row.bundle_version,
            bundle_name=row.bundle_name,
            relative_fileloc=row.relative_fileloc,
            version_data=row.version_data,
        )
        try:
            workload = workloads.ExecuteCallback.make(
                callback=row, dag_run=run, generator=executors[row.id].jwt_generator
            )
            workload.callback.data["queue"] = queues.queue(row)
        except Exception as error:  # noqa: BLE001 - hostile data meets Airflow's schemas; one row must not stop the rest
            _cannot(loaded, row.id, f"its workload cannot be made: {_brief(error)}", error)
        else:
            loaded.workloads[row.id] = workload
            loaded.attempts[row.id] = row.attempts
            if row.batch is not None:
                loaded.batches[row.id] = row.batch


def _cannot(loaded: Loaded, callback_id: UUID, reason: str, error: Exception) -> None:
    """A row that its data spoils can never run; of any other trouble it is not known, so it is looked at again."""
    if isinstance(error, _SPOILED):
        loaded.unfit[callback_id] = reason
    else:
        loaded.later[callback_id] = reason


def _rows(session: Session, ids: list[UUID]) -> Sequence[Any]:
    """The columns that are needed and not Airflow's objects, which take four times as long to load."""
    query = (
        select(
            _CALLBACK.c.id,
            _CALLBACK.c.state,
            _CALLBACK.c.fetch_method,
            _CALLBACK.c.data,
            item_table.c.service_class,
            item_table.c.attempts,
            BATCH,
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
    query = with_version_data(query)
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

    def __init__(self, configuration: Any, valid_seconds: float | None) -> None:
        self._configuration = configuration
        self._valid_seconds = valid_seconds
        self.getfloat = cache(self._getfloat)

    def _getfloat(self, section: str, key: str, **options: Any) -> float:
        if (section, key) == _VALID and self._valid_seconds is not None:
            return self._valid_seconds
        return float(self._configuration.getfloat(section, key, **options))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._configuration, name)


_VALID: Final = ("scheduler", "task_queued_timeout")
"""For how long Airflow makes the token of a workload valid."""


@contextmanager
def _configuration_read_once(valid_seconds: float | None) -> Iterator[None]:
    """Let Airflow look up how long a token is valid once, and not for each workload.

    The look-up goes through the environment, files and interpolation, and takes longer than signing the token.
    """
    names = vars(workload_base)
    configuration = names["conf"]
    names["conf"] = _ReadOnce(configuration, valid_seconds)
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


def lock_pending(connection: Connection, ids: Collection[UUID]) -> list[UUID]:
    """Keep everybody else from those of the callbacks that wait; what another has locked is left out."""
    if not ids:
        return []
    statement = (
        select(_CALLBACK.c.id)
        .where(_CALLBACK.c.id.in_(ids), _CALLBACK.c.state == CallbackState.PENDING)
        .with_for_update(skip_locked=True)
    )
    return sorted(connection.scalars(statement))


def to_running(connection: Connection, ids: Collection[UUID]) -> None:
    """Set queued callbacks to running that a worker took, by its executor's word; any others stay as they are."""
    if ids and events_say_what_runs():
        connection.execute(
            update(_CALLBACK)
            .where(_CALLBACK.c.id.in_(ids), _CALLBACK.c.state == CallbackState.QUEUED)
            .values(state=CallbackState.RUNNING)
        )


def to_pending(connection: Connection, ids: Collection[UUID], *, even_running: bool = False) -> None:
    """Set callbacks back to pending that no executor took, or whose worker ended before it called them.

    Args:
        connection: Connection to Airflow's metadata database.
        ids: The callbacks; those that are not queued stay as they are.
        even_running: Also set back running ones. Airflow calls a callback running as soon as its executor says
            that a worker took it.
    """
    states = [CallbackState.QUEUED, CallbackState.RUNNING] if even_running else [CallbackState.QUEUED]
    connection.execute(
        update(_CALLBACK)
        .where(_CALLBACK.c.id.in_(ids), _CALLBACK.c.state.in_(states))
        .values(state=CallbackState.PENDING)
    )


def fail(connection: Connection, reasons: dict[UUID, str]) -> None:
    """Fail callbacks, each with its reason in ``output``, in one statement; their data is not touched.

    What has ended already keeps its state and its output.
    """
    texts: dict[Any, Any] = {callback_id: bindparam(None, reason) for callback_id, reason in reasons.items()}
    connection.execute(
        update(_CALLBACK)
        .where(
            _CALLBACK.c.id.in_(texts),
            or_(_CALLBACK.c.state.is_(None), _CALLBACK.c.state.not_in(CALLBACK_TERMINAL)),
        )
        .values(state=CallbackState.FAILED, output=case(texts, value=_CALLBACK.c.id))
    )
