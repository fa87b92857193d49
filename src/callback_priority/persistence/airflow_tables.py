"""The few columns of Airflow's tables that this library reads, described without importing Airflow."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    Boolean,
    Connection,
    Integer,
    String,
    TableClause,
    Text,
    Uuid,
    column,
    literal_column,
    select,
    table,
)

from callback_priority.persistence.tables import UtcDateTime

__all__ = [
    "CALLBACK_PENDING",
    "CALLBACK_QUEUED",
    "CALLBACK_RUNNING",
    "CALLBACK_TERMINAL",
    "CALLBACK_TYPE_DAG_PROCESSOR",
    "CALLBACK_TYPE_EXECUTOR",
    "JOB_RUNNING",
    "SCHEDULER_JOB",
    "TASK_HOLDS_SLOTS",
    "TASK_WAITS",
    "TRIGGERER_JOB",
    "callback_table",
    "dag_run_table",
    "dag_table",
    "job_table",
    "keeps_tries_together",
    "pool_table",
    "task_instance_history_table",
    "task_instance_table",
    "trigger_table",
]

CALLBACK_TYPE_EXECUTOR: Final = "executor"
CALLBACK_TYPE_DAG_PROCESSOR: Final = "dag_processor"
CALLBACK_PENDING: Final = "pending"
CALLBACK_QUEUED: Final = "queued"
CALLBACK_RUNNING: Final = "running"
CALLBACK_TERMINAL: Final = ("success", "failed")
JOB_RUNNING: Final = "running"
SCHEDULER_JOB: Final = "SchedulerJob"
TRIGGERER_JOB: Final = "TriggererJob"
TASK_WAITS: Final = "scheduled"
TASK_HOLDS_SLOTS: Final = ("queued", "running")

callback_table = table(
    "callback",
    column("id", Uuid()),
    column("type", String(20)),
    column("state", String(10)),
    column("data", Text()),
    column("priority_weight", Integer()),
    column("created_at", UtcDateTime()),
    column("output", Text()),
    column("trigger_id", Integer()),
)

dag_table = table(
    "dag", column("dag_id", String(250)), column("is_stale", Boolean()), column("bundle_version", String(200))
)

dag_run_table = table(
    "dag_run",
    column("id", Integer()),
    column("dag_id", String(250)),
    column("run_id", String(250)),
    column("logical_date", UtcDateTime()),
)

job_table = table(
    "job",
    column("id", Integer()),
    column("job_type", String(30)),
    column("state", String(20)),
    column("latest_heartbeat", UtcDateTime()),
    column("hostname", String(500)),
    column("start_date", UtcDateTime()),
    column("end_date", UtcDateTime()),
)

pool_table = table("slot_pool", column("pool", String(256)), column("slots", Integer()))


def _of_task_instances(name: str) -> TableClause:
    """What a task instance and a try that is over have in common.

    Airflow 3.4 keeps both in one table, where the one that counts is in the working set, and has other names for the map index.
    """
    return table(
        name,
        column("dag_id", String(250)),
        column("task_id", String(250)),
        column("run_id", String(250)),
        column("map_index", Integer()),
        column("region_id"),
        column("region_index", Integer()),
        column("working_set", Boolean()),
        column("state", String(20)),
        column("pool", String(256)),
        column("pool_slots", Integer()),
        column("priority_weight", Integer()),
        column("scheduled_dttm", UtcDateTime()),
        column("queued_dttm", UtcDateTime()),
        column("start_date", UtcDateTime()),
        column("end_date", UtcDateTime()),
        column("queued_by_job_id", Integer()),
    )


task_instance_table = _of_task_instances("task_instance")

task_instance_history_table = _of_task_instances("task_instance_history")


def keeps_tries_together(conn: Connection) -> bool:
    """Whether tries that are over are in the table of the task instances, as Airflow 3.4 has them; one statement."""
    names = conn.execute(select(literal_column("*")).select_from(task_instance_table).limit(0)).keys()
    return "working_set" in names


trigger_table = table("trigger", column("id", Integer()), column("triggerer_id", Integer()))
