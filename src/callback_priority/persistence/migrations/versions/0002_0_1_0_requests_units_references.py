"""Create the tables of requests, units and references, let items share a run, and count how long they are parked.

Revision ID: 3d7a52c9e6b1
Revises: 8c1f4e0a7d35
Create Date: 2026-11-23 00:00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "3d7a52c9e6b1"
down_revision = "8c1f4e0a7d35"
branch_labels = None
depends_on = None

INSTANT = sa.TIMESTAMP(timezone=True).with_variant(mysql.TIMESTAMP(fsp=6), "mysql", "mariadb")


def upgrade() -> None:
    """Apply the revision."""
    op.add_column("callback_priority_item", sa.Column("batch", sa.String(64), nullable=True))
    op.add_column("callback_priority_item", sa.Column("leader_id", sa.Uuid(), nullable=True))
    op.add_column("callback_priority_item", sa.Column("parked_at", INSTANT, nullable=True))
    op.create_index("callback_priority_item_batch", "callback_priority_item", ["batch", "state", "rank"])
    op.create_index("callback_priority_item_leader", "callback_priority_item", ["leader_id"])
    op.create_table(
        "callback_priority_reference",
        sa.Column("dag_id", sa.String(250), nullable=False),
        sa.Column("bundle_version", sa.String(250), nullable=False),
        sa.Column("bundle_name", sa.String(250), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("written_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("dag_id", "bundle_version"),
    )
    op.create_table(
        "callback_priority_request",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("dedupe_key", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("dag_id", sa.String(250), nullable=False),
        sa.Column("run_id", sa.String(250), nullable=False),
        sa.Column("dag_run_id", sa.Integer(), nullable=True),
        sa.Column("task_id", sa.String(250), nullable=False),
        sa.Column("map_index", sa.Integer(), nullable=False),
        sa.Column("try_number", sa.Integer(), nullable=True),
        sa.Column("outcome", sa.String(10), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("units", sa.Integer(), nullable=False),
        sa.Column("received_at", INSTANT, nullable=False),
        sa.Column("body", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "callback_priority_request_once", "callback_priority_request", ["dedupe_key"], unique=True
    )
    op.create_index("callback_priority_request_received", "callback_priority_request", ["received_at"])
    op.create_table(
        "callback_priority_unit",
        sa.Column("callback_id", sa.Uuid(), nullable=False),
        sa.Column("request_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(500), nullable=False),
        sa.Column("target", sa.String(10), nullable=False),
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("claimed_at", INSTANT, nullable=True),
        sa.Column("started_at", INSTANT, nullable=True),
        sa.Column("ended_at", INSTANT, nullable=True),
        sa.Column("worker", sa.String(300), nullable=True),
        sa.Column("log_path", sa.String(1000), nullable=True),
        sa.Column("log", sa.Text(), nullable=True),
        sa.Column("workers_lost", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("callback_id"),
    )
    op.create_index("callback_priority_unit_request", "callback_priority_unit", ["request_id"])


def downgrade() -> None:
    """Take the revision back."""
    op.drop_table("callback_priority_unit")
    op.drop_table("callback_priority_request")
    op.drop_table("callback_priority_reference")
    op.drop_index("callback_priority_item_leader", table_name="callback_priority_item")
    op.drop_index("callback_priority_item_batch", table_name="callback_priority_item")
    with op.batch_alter_table("callback_priority_item") as items:
        items.drop_column("parked_at")
        items.drop_column("leader_id")
        items.drop_column("batch")
