"""The few columns of Airflow's tables that this library reads, described without importing Airflow."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Integer, String, Text, Uuid, column, table

from callback_priority.persistence.tables import UtcDateTime

__all__ = [
    "CALLBACK_PENDING",
    "CALLBACK_TERMINAL",
    "CALLBACK_TYPE_EXECUTOR",
    "JOB_RUNNING",
    "SCHEDULER_JOB",
    "TASK_HOLDS_SLOTS",
    "TASK_WAITS",
    "callback_table",
    "job_table",
    "pool_table",
    "task_instance_table",
]

CALLBACK_TYPE_EXECUTOR: Final = "executor"
CALLBACK_PENDING: Final = "pending"
CALLBACK_TERMINAL: Final = ("success", "failed")
JOB_RUNNING: Final = "running"
SCHEDULER_JOB: Final = "SchedulerJob"
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
)

job_table = table(
    "job",
    column("id", Integer()),
    column("job_type", String(30)),
    column("state", String(20)),
    column("latest_heartbeat", UtcDateTime()),
    column("hostname", String(500)),
)

pool_table = table("slot_pool", column("pool", String(256)), column("slots", Integer()))

task_instance_table = table(
    "task_instance",
    column("state", String(20)),
    column("pool", String(256)),
    column("pool_slots", Integer()),
    column("scheduled_dttm", UtcDateTime()),
)
