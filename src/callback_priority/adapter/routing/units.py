"""The rows of a routed request: Airflow's callbacks, our items and units, one of each for a callable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol
from uuid import UUID

import attrs
import uuid6
from airflow.configuration import conf
from airflow.executors.workloads.callback import CallbackFetchMethod
from airflow.models.callback import Callback, CallbackType, ExecutorCallback, TriggererCallback
from airflow.models.trigger import Trigger
from airflow.triggers.callback import CallbackTrigger
from airflow.utils.state import CallbackState
from sqlalchemy import Connection, insert, select

from callback_priority.adapter import triggers
from callback_priority.core.classes import ServiceClass
from callback_priority.core.kinds import CallbackKind
from callback_priority.persistence import requests
from callback_priority.persistence.airflow_tables import JOB_RUNNING, TRIGGERER_JOB, job_table
from callback_priority.persistence.enqueueing import NewItem, enqueue, record_triggered
from callback_priority.persistence.requests import NewUnit, Target
from callback_priority.policy.settings import Settings
from callback_priority.protocol import ENTRY

if TYPE_CHECKING:
    from airflow.callbacks.callback_requests import CallbackRequest

__all__ = [
    "PREFIX",
    "TRIGGERER_ENTRY",
    "Call",
    "OfFile",
    "Occasion",
    "batched",
    "executor_data",
    "triggerers_call_once",
    "write",
]

PREFIX: Final = "callback_priority"
"""What Airflow's own metrics of these callbacks begin with."""

TRIGGERER_ENTRY: Final = "callback_priority.worker.triggerer.run"
"""The import path that the trigger of a routed callback names."""

_CALLBACK: Final = Callback.__table__
_TRIGGER: Final = Trigger.__table__


@attrs.frozen(kw_only=True)
class Call:
    """One callable that is to be called.

    Args:
        name: What people call it.
        reference: Where it is found; empty for an e-mail.
        target: What calls it.
        executor: The executor that it names, or its class is given; ``None`` for the default one.
    """

    name: str
    reference: Mapping[str, Any]
    target: Target
    executor: str | None


@attrs.frozen(kw_only=True)
class Occasion:
    """What all callables of a request have in common.

    Args:
        kind: What happened.
        request_id: Our request.
        dag_id: The Dag.
        dag_run_id: The key of its run.
        bundle_name: The Dag's bundle.
        bundle_version: Its version, where the run is bound to one.
        filepath: The Dag file.
        pool: The pool whose slots they take.
        priority: The larger, the sooner.
        team: The team of the Dag's bundle.
    """

    kind: type[CallbackKind]
    request_id: UUID
    dag_id: str
    dag_run_id: int
    bundle_name: str
    bundle_version: str | None
    filepath: str
    pool: str
    priority: int
    team: str | None = None

    @property
    def service_class(self) -> ServiceClass:
        """Who competes."""
        return self.kind.service_class

    def item(self, callback_id: UUID, call: Call, settings: Settings) -> NewItem:
        """The item of a callable."""
        item = NewItem(
            callback_id=callback_id,
            service_class=self.service_class,
            kind=self.kind.kind,
            pool=self.pool,
            dag_id=self.dag_id,
            dag_run_id=self.dag_run_id,
            executor=call.executor,
            priority=self.priority,
        )
        return batched(item, self, settings)


class OfFile(Protocol):
    """Says in which Dag file its callables are."""

    @property
    def bundle_name(self) -> str: ...  # noqa: D102 - see Occasion
    @property
    def bundle_version(self) -> str | None: ...  # noqa: D102
    @property
    def filepath(self) -> str: ...  # noqa: D102


def batched(item: NewItem, file: OfFile, settings: Settings) -> NewItem:
    """An item with its batch, which is equal for all that one process can call.

    That is one Dag file, one place to run, and one share to pay from.

    Args:
        item: The item.
        file: Where its callable is.
        settings: Whether runs are shared, and the queues of classes.
    """
    if settings.callback_batch_size <= 1:
        return item
    alike = [
        file.bundle_name,
        file.bundle_version,
        file.filepath,
        item.executor,
        settings.callback_queue.get(item.service_class),
        item.service_class.value,
        item.pool,
    ]
    return attrs.evolve(item, batch=hashlib.sha256(json.dumps(alike).encode()).hexdigest())


@attrs.frozen(kw_only=True)
class _Definition:
    """What Airflow makes a callback of."""

    path: str
    kwargs: Mapping[str, Any]
    executor: str | None = None

    def serialize(self) -> dict[str, Any]:
        found = {"path": self.path, "kwargs": dict(self.kwargs)}
        return found if self.executor is None else found | {"executor": self.executor}


def write(
    conn: Connection,
    occasion: Occasion,
    calls: Sequence[Call],
    request: CallbackRequest,
    settings: Settings,
    now: datetime,
) -> list[UUID]:
    """Write all rows of a request's callables; up to five statements, and one for each trigger.

    Airflow's rows are made by its own classes and written without its session: adding them to the session would
    write what its owner has changed, inside of the savepoint that our failure rolls back.

    Returns:
        The callbacks, in the order of the calls.
    """
    ids: list[UUID] = [uuid6.uuid7() for _ in calls]
    rows = []
    for position, (callback_id, call) in enumerate(zip(ids, calls, strict=True)):
        callback, trigger_id = (
            _triggered(conn, occasion, call, position, request, settings)
            if call.target is Target.TRIGGERER
            else (_executed(occasion, call, settings), None)
        )
        rows.append(
            {
                "id": callback_id,
                "type": CallbackType.TRIGGERER if trigger_id is not None else CallbackType.EXECUTOR,
                "fetch_method": callback.fetch_method,
                "data": callback.data,
                "bundle_name": occasion.bundle_name,
                "state": CallbackState.QUEUED if trigger_id is not None else CallbackState.PENDING,
                "priority_weight": occasion.priority,
                "created_at": now,
                "trigger_id": trigger_id,
            }
        )
    conn.execute(insert(_CALLBACK), rows)
    new: dict[Target, list[NewItem]] = {target: [] for target in Target}
    for callback_id, call in zip(ids, calls, strict=True):
        new[call.target].append(occasion.item(callback_id, call, settings))
    enqueue(
        conn,
        new[Target.WORKER],
        now=now,
        turn_length_us=settings.dag_turn_us,
        aging_us=settings.priority_aging_us,
    )
    record_triggered(conn, new[Target.TRIGGERER], now=now)
    requests.add_units(
        conn,
        [
            NewUnit(
                callback_id=callback_id,
                request_id=occasion.request_id,
                position=position,
                name=call.name,
                target=call.target,
                reference=call.reference,
            )
            for position, (callback_id, call) in enumerate(zip(ids, calls, strict=True))
        ],
    )
    return ids


def executor_data(occasion: Occasion, call: Call, settings: Settings) -> Any:
    """The ``data`` of a callback that an executor runs."""
    return _executed(occasion, call, settings).data


def _executed(occasion: Occasion, call: Call, settings: Settings) -> ExecutorCallback:
    queue = settings.callback_queue.get(occasion.service_class)
    return ExecutorCallback(
        _Definition(path=ENTRY, kwargs={}, executor=call.executor),  # type: ignore[arg-type]
        fetch_method=CallbackFetchMethod.DAG_ATTRIBUTE,
        **_labels(occasion),
        pool=occasion.pool,
        **({} if queue is None else {"queue": queue}),
    )


def _labels(occasion: Occasion) -> dict[str, Any]:
    return {
        "prefix": PREFIX,
        "dag_id": occasion.dag_id,
        "dag_run_id": str(occasion.dag_run_id),
        "kind": occasion.kind.kind,
    }


def _triggered(
    conn: Connection,
    occasion: Occasion,
    call: Call,
    position: int,
    request: CallbackRequest,
    settings: Settings,
) -> tuple[TriggererCallback, int]:
    """A callback for the triggerer, and the key of its trigger, which is written.

    What may be secret is with the trigger, where Airflow encrypts it, and not in the callback's data, which
    Airflow puts into the tags of its metrics.
    """
    unit = {
        "name": call.name,
        "kind": occasion.kind.kind,
        "position": position,
        "time_limit_seconds": settings.callback_time_limit_seconds,
    }
    context = {
        "reference": dict(call.reference),
        "request_class": type(request).__name__,
        "request": json.loads(request.to_json()),
    }
    trigger = Trigger.from_object(
        CallbackTrigger(callback_path=TRIGGERER_ENTRY, callback_kwargs={"unit": unit, "context": context})
    )
    values = {
        "classpath": trigger.classpath,
        "kwargs": trigger.encrypted_kwargs,
        "created_date": trigger.created_date,
        "queue": trigger.queue,
        "team_name": occasion.team,
    }
    inserted: Any = conn.execute(insert(_TRIGGER).values(values)).inserted_primary_key
    definition: Any = _Definition(path=TRIGGERER_ENTRY, kwargs={"unit": unit})
    return TriggererCallback(definition, **_labels(occasion)), inserted[0]


def triggerers_call_once(conn: Connection, now: datetime) -> bool:
    """Whether a triggerer lives, and no two can run the same callback.

    One lives that has sent a heartbeat lately, by Airflow's own threshold. Where this Airflow hands a callback to
    several of them, and that cannot be mended (`callback_priority.adapter.triggers`), there must be exactly one: what one
    has begun would be dropped in the middle, and begun anew by the other.
    """
    threshold = conf.getfloat("triggerer", "triggerer_health_check_threshold")
    job = job_table.c
    living = select(job.id).where(
        job.job_type == TRIGGERER_JOB,
        job.state == JOB_RUNNING,
        job.latest_heartbeat > now - timedelta(seconds=threshold),
    )
    count = len(conn.execute(living.limit(2)).all())
    return count == 1 or (count > 1 and triggers.assigned_once())
