"""Rows as schedulers, the routing and workers leave them, for the commands to look at."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from uuid import uuid4

import sqlalchemy as sa

from callback_priority.core.classes import ServiceClass
from callback_priority.core.kinds import KINDS
from callback_priority.core.units import SlotMicros
from callback_priority.persistence.enqueueing import NewItem, enqueue
from callback_priority.persistence.items import mark_granted
from callback_priority.persistence.tables import item_table, reference_table, request_table, unit_table

__all__ = [
    "add_dag",
    "add_items",
    "add_reference",
    "add_request",
    "add_scheduler",
    "add_unit",
    "grant",
    "now",
]


def now():
    return datetime.now(timezone.utc)


def add_scheduler(database, job_id, *, heartbeat_ago=0.0, state="running", job_type="SchedulerJob"):
    """A row as a scheduler leaves it."""
    from airflow.jobs.job import Job

    database.execute(
        sa.insert(Job.__table__).values(
            id=job_id,
            job_type=job_type,
            state=state,
            hostname="here",
            latest_heartbeat=now() - timedelta(seconds=heartbeat_ago),
        )
    )


def add_items(database, count, *, ago=0.0, pool="default_pool", service_class=ServiceClass.DEADLINE):
    """Waiting items."""
    ids = [uuid4() for _ in range(count)]
    items = [
        NewItem(
            callback_id=each, service_class=service_class, kind="deadline", pool=pool, dag_id="a", priority=1
        )
        for each in ids
    ]
    enqueue(database, items, now=now() - timedelta(seconds=ago), turn_length_us=0, aging_us=0)
    return ids


def grant(database, ids, job_id):
    mark_granted(database, ids, now=now(), job_id=job_id, charges={ServiceClass.DEADLINE: SlotMicros(1)})


def add_request(database, kind="dag_failure", *, outcome="routed", reason=None, units=1, ago=0.0, dag_id="a"):
    """What became of a request of Airflow's; returns its key."""
    request_id = uuid4()
    task_id = "" if kind.startswith("dag") else "load"
    database.execute(
        sa.insert(request_table).values(
            id=request_id,
            dedupe_key=request_id.hex,
            kind=kind,
            dag_id=dag_id,
            run_id="manual__1",
            task_id=task_id,
            map_index=3 if task_id else -1,
            try_number=2 if task_id else None,
            outcome=outcome,
            reason=reason,
            units=units,
            received_at=now() - timedelta(seconds=ago),
        )
    )
    return request_id


def add_unit(
    database, kind="dag_failure", *, request_id=None, position=0, dag_id="a", callback_id=None, **changes
):
    """A routed callback; `changes` are of the columns of its item, its unit and Airflow's row (as ``airflow_...``)."""
    from airflow.models.callback import Callback

    callback_id = callback_id or uuid4()
    request_id = request_id or add_request(database, kind, dag_id=dag_id)
    rows = {
        Callback.__table__: {
            "id": callback_id,
            "type": changes.pop("airflow_type", "executor"),
            "fetch_method": "import_path",
            "data": {"path": "callback_priority.worker.entry.run", "kwargs": {}, "dag_id": dag_id},
            "state": changes.pop("airflow_state", "pending"),
            "output": changes.pop("output", None),
            "priority_weight": 1,
            "created_at": now(),
        },
        item_table: {
            "callback_id": callback_id,
            "service_class": KINDS[kind].service_class.value,
            "kind": kind,
            "pool": "default_pool",
            "dag_id": dag_id,
            "priority": 1,
            "rank": 0,
            "state": "waiting",
            "enqueued_at": now(),
            "attempts": 0,
            "charge": 0,
        },
        unit_table: {
            "callback_id": callback_id,
            "request_id": request_id,
            "position": position,
            "name": f"{dag_id}.alert_{position}",
            "target": "worker",
            "reference": "{}",
        },
    }
    for table in (item_table, unit_table):
        rows[table] |= {name: changes.pop(name) for name in list(changes) if name in table.c}
    assert not changes, changes
    for table, row in rows.items():
        database.execute(sa.insert(table).values(**row))
    return callback_id


def add_dag(database, dag_id, *, bundle_version=None, is_stale=False):
    """A Dag as a Dag processor leaves it."""
    from airflow.models.dag import DagModel
    from airflow.models.dagbundle import DagBundleModel

    bundles, dags = DagBundleModel.__table__, DagModel.__table__
    if not database.scalar(sa.select(bundles.c.name).where(bundles.c.name == "dags")):
        database.execute(sa.insert(bundles).values(name="dags"))
    database.execute(
        sa.insert(dags).values(
            dag_id=dag_id,
            bundle_name="dags",
            bundle_version=bundle_version,
            is_stale=is_stale,
            max_active_tasks=1,
            max_active_runs=1,
            max_consecutive_failed_dag_runs=0,
            has_task_concurrency_limits=False,
            timetable_type="",
        )
    )


def add_reference(database, dag_id, *, bundle_version="", document="{}"):
    """What is known of a Dag's callbacks."""
    database.execute(
        sa.insert(reference_table).values(
            dag_id=dag_id,
            bundle_version=bundle_version,
            bundle_name="dags",
            digest="",
            document=document,
            written_at=now(),
        )
    )
