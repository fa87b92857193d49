"""Create the tables of flows and items.

Revision ID: 8c1f4e0a7d35
Revises:
Create Date: 2026-11-22 00:00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "8c1f4e0a7d35"
down_revision = None
branch_labels = None
depends_on = None

INSTANT = sa.TIMESTAMP(timezone=True).with_variant(mysql.TIMESTAMP(fsp=6), "mysql", "mariadb")


def upgrade() -> None:
    """Apply the revision."""
    op.create_table(
        "callback_priority_flow",
        sa.Column("level", sa.String(10), nullable=False),
        sa.Column("scope", sa.String(256), nullable=False),
        sa.Column("service_class", sa.String(16), nullable=False),
        sa.Column("weight", sa.BigInteger(), nullable=False),
        sa.Column("estimate", sa.BigInteger(), nullable=False),
        sa.Column("tag", sa.BigInteger(), nullable=False),
        sa.Column("remainder", sa.BigInteger(), nullable=False),
        sa.Column("clock", sa.BigInteger(), nullable=False),
        sa.Column("eligible", sa.Boolean(), nullable=False),
        sa.Column("bypassed", sa.Integer(), nullable=False),
        sa.Column("service", sa.BigInteger(), nullable=False),
        sa.Column("recent", sa.BigInteger(), nullable=False),
        sa.Column("recent_at", sa.BigInteger(), nullable=False),
        sa.Column("granted", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("level", "scope", "service_class"),
    )
    op.create_table(
        "callback_priority_item",
        sa.Column("callback_id", sa.Uuid(), nullable=False),
        sa.Column("service_class", sa.String(16), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("pool", sa.String(256), nullable=False),
        sa.Column("dag_id", sa.String(250), nullable=False),
        sa.Column("dag_run_id", sa.Integer(), nullable=True),
        sa.Column("executor", sa.String(256), nullable=True),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("turn", sa.BigInteger(), nullable=True),
        sa.Column("rank", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("enqueued_at", INSTANT, nullable=False),
        sa.Column("decided_at", INSTANT, nullable=True),
        sa.Column("granted_at", INSTANT, nullable=True),
        sa.Column("finished_at", INSTANT, nullable=True),
        sa.Column("retry_at", INSTANT, nullable=True),
        sa.Column("scheduler_job_id", sa.Integer(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("charge", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("callback_id"),
    )
    op.create_index(
        "callback_priority_item_next",
        "callback_priority_item",
        ["state", "service_class", "pool", "rank", "callback_id"],
    )
    op.create_index(
        "callback_priority_item_turn",
        "callback_priority_item",
        ["dag_id", "service_class", "priority", "turn"],
    )
    op.create_index("callback_priority_item_finished", "callback_priority_item", ["finished_at"])
    op.create_index("callback_priority_item_retry", "callback_priority_item", ["retry_at"])


def downgrade() -> None:
    """Take the revision back."""
    op.drop_table("callback_priority_item")
    op.drop_table("callback_priority_flow")
