"""The library's own tables: one row per flow, one row per callback.

They live in Airflow's metadata database, in a metadata and under an Alembic version table of their own. Nothing
points into Airflow's tables: a foreign key would stand in the way of Airflow's migrations and of
``airflow db reset``, which drops Airflow's tables first. Rows whose callback is gone are swept instead
(`callback_priority.persistence.sweep`).

While a deployment is upgraded, schedulers of the revision before work with the tables of this one. So a revision takes
no column away that the one before it uses, and a column that it adds may be left out of an insert: it takes null, or
has a default in the database, which must stand here too (`airflow db migrate` makes the tables of a new deployment from
this module, and not by the revisions).

How the indexes of the item table are chosen. Only one index begins with ``state``; so there is one way, and not
the planner's guess among several, to answer "the first waiting items of this class and pool". A second index
with ``state`` in front would look as cheap wherever statistics were taken while nothing waited, and then cost
a scan of the whole backlog. The others need no ``state``: ``finished_at`` is set exactly for done items,
``retry_at`` exactly for parked ones, ``turn`` only while an item waits. The longest key takes 1,264 bytes in MySQL's ``utf8mb4``, of 3,072.
"""

from __future__ import annotations

from datetime import datetime, timezone
from enum import Enum
from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    Uuid,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TIMESTAMP, TypeDecorator, TypeEngine

__all__ = [
    "BATCH_LENGTH",
    "BUNDLE_LENGTH",
    "DAG_ID_LENGTH",
    "EXECUTOR_LENGTH",
    "EXTERNAL_ID_LENGTH",
    "POOL_LENGTH",
    "VERSION_TABLE",
    "ItemState",
    "UtcDateTime",
    "flow_table",
    "item_table",
    "journal_table",
    "metadata",
    "reference_table",
    "request_table",
    "unit_table",
]

VERSION_TABLE: Final = "callback_priority_alembic_version"
"""Where Alembic keeps this library's revision, apart from Airflow's."""

POOL_LENGTH: Final = 256
DAG_ID_LENGTH: Final = 250
EXECUTOR_LENGTH: Final = 256
BUNDLE_LENGTH: Final = 250
BATCH_LENGTH: Final = 64
EXTERNAL_ID_LENGTH: Final = 250


class ItemState(str, Enum):
    """Where a callback's item stands. ``triggered``: the triggerer has it, and it takes no slot."""

    WAITING = "waiting"
    PARKED = "parked"
    GRANTED = "granted"
    TRIGGERED = "triggered"
    DONE = "done"

    def __str__(self) -> str:
        return self.value


class UtcDateTime(TypeDecorator[datetime]):
    """An instant: a naive datetime is refused, an aware one in UTC comes back from every database.

    The same storage as Airflow's own columns, so that comparing with them is comparing like with like.
    """

    impl = TIMESTAMP(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[datetime]:
        """MySQL keeps whole seconds unless told otherwise."""
        if dialect.name == "mysql":
            return dialect.type_descriptor(mysql.TIMESTAMP(fsp=6))
        return super().load_dialect_impl(dialect)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert to UTC.

        Raises:
            ValueError: If the value has no time zone.
        """
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a naive datetime is not an instant: {value!r}; give it a time zone")
        in_utc = value.astimezone(timezone.utc)
        return in_utc.replace(tzinfo=None) if dialect.name == "mysql" else in_utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Make aware, in UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            return value.replace(tzinfo=timezone.utc)
        return value.astimezone(timezone.utc)


metadata = MetaData()

flow_table = Table(
    "callback_priority_flow",
    metadata,
    Column("level", String(10), primary_key=True),
    Column("scope", String(POOL_LENGTH), primary_key=True),
    Column("service_class", String(16), primary_key=True),
    Column("weight", BigInteger, nullable=False),
    Column("estimate", BigInteger, nullable=False),
    Column("tag", BigInteger, nullable=False),
    Column("remainder", BigInteger, nullable=False),
    Column("clock", BigInteger, nullable=False),
    Column("eligible", Boolean, nullable=False),
    Column("bypassed", Integer, nullable=False),
    Column("service", BigInteger, nullable=False),
    Column("recent", BigInteger, nullable=False),
    Column("recent_at", BigInteger, nullable=False),
    Column("granted", BigInteger, nullable=False),
)

item_table = Table(
    "callback_priority_item",
    metadata,
    Column("callback_id", Uuid, primary_key=True),
    Column("service_class", String(16), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("pool", String(POOL_LENGTH), nullable=False),
    Column("dag_id", String(DAG_ID_LENGTH), nullable=False),
    Column("dag_run_id", Integer, nullable=True),
    Column("executor", String(EXECUTOR_LENGTH), nullable=True),
    Column("priority", Integer, nullable=False),
    Column("turn", BigInteger, nullable=True),
    Column("rank", BigInteger, nullable=False),
    Column("state", String(10), nullable=False),
    Column("reason", Text, nullable=True),
    Column("enqueued_at", UtcDateTime, nullable=False),
    Column("decided_at", UtcDateTime, nullable=True),
    Column("granted_at", UtcDateTime, nullable=True),
    Column("finished_at", UtcDateTime, nullable=True),
    Column("retry_at", UtcDateTime, nullable=True),
    Column("parked_at", UtcDateTime, nullable=True),
    Column("scheduler_job_id", Integer, nullable=True),
    Column("attempts", Integer, nullable=False),
    Column("failures", Integer, nullable=False, default=0, server_default="0"),
    Column("external_id", String(EXTERNAL_ID_LENGTH), nullable=True),
    Column("charge", BigInteger, nullable=False),
    Column("batch", String(BATCH_LENGTH), nullable=True),
    Column("leader_id", Uuid, nullable=True),
    Index("callback_priority_item_next", "state", "service_class", "pool", "rank", "callback_id"),
    Index("callback_priority_item_turn", "dag_id", "service_class", "priority", "turn"),
    Index("callback_priority_item_finished", "finished_at"),
    Index("callback_priority_item_retry", "retry_at"),
    Index("callback_priority_item_batch", "batch", "state", "rank"),
    Index("callback_priority_item_leader", "leader_id"),
)

reference_table = Table(
    "callback_priority_reference",
    metadata,
    Column("dag_id", String(DAG_ID_LENGTH), primary_key=True),
    Column("bundle_version", String(BUNDLE_LENGTH), primary_key=True),
    Column("bundle_name", String(BUNDLE_LENGTH), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("document", Text, nullable=False),
    Column("written_at", UtcDateTime, nullable=False),
)
"""What each Dag's callbacks are, at each version of its bundle; the empty version is that of a bundle without."""

request_table = Table(
    "callback_priority_request",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("dedupe_key", String(64), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("dag_id", String(DAG_ID_LENGTH), nullable=False),
    Column("run_id", String(250), nullable=False),
    Column("dag_run_id", Integer, nullable=True),
    Column("task_id", String(250), nullable=False),
    Column("map_index", Integer, nullable=False),
    Column("try_number", Integer, nullable=True),
    Column("outcome", String(10), nullable=False),
    Column("reason", Text, nullable=True),
    Column("units", Integer, nullable=False),
    Column("received_at", UtcDateTime, nullable=False),
    Column("body", Text, nullable=True),
    Index("callback_priority_request_once", "dedupe_key", unique=True),
    Index("callback_priority_request_received", "received_at"),
)
"""What Airflow asked to be called: one row for each thing that happened, however often it was sent."""

unit_table = Table(
    "callback_priority_unit",
    metadata,
    Column("callback_id", Uuid, primary_key=True),
    Column("request_id", Uuid, nullable=False),
    Column("position", Integer, nullable=False),
    Column("name", String(500), nullable=False),
    Column("target", String(10), nullable=False),
    Column("reference", Text, nullable=False),
    Column("claimed_at", UtcDateTime, nullable=True),
    Column("started_at", UtcDateTime, nullable=True),
    Column("ended_at", UtcDateTime, nullable=True),
    Column("worker", String(300), nullable=True),
    Column("log_path", String(1000), nullable=True),
    Column("log", Text, nullable=True),
    Column("workers_lost", Integer, nullable=False, server_default="0"),
    Column("heartbeat_at", UtcDateTime, nullable=True),
    Index("callback_priority_unit_request", "request_id"),
)
"""What came of a request: one row for each callable, beside its callback and its item. A deadline callback, which
comes of no request, gets one when a worker takes it; the request that it names is itself. ``workers_lost`` is only for
schedulers of the revision before, which count in it (in this one, an item's ``failures`` do)."""

journal_table = Table(
    "callback_priority_journal",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("scheduler_job_id", Integer, nullable=False),
    Column("written_at", UtcDateTime, nullable=False),
    Column("entry", Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb"), nullable=False),
    Index("callback_priority_journal_written", "written_at"),
)
"""What each pass through the critical section did to the flows, for those who switch the journal on."""
