"""Count attempts that came to nothing, know a workload by its broker's name and a worker by its heartbeat; a journal.

Revision ID: b61f08d2c4e9
Revises: 3d7a52c9e6b1
Create Date: 2026-11-23 00:00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "b61f08d2c4e9"
down_revision = "3d7a52c9e6b1"
branch_labels = None
depends_on = None

INSTANT = sa.TIMESTAMP(timezone=True).with_variant(mysql.TIMESTAMP(fsp=6), "mysql", "mariadb")


def upgrade() -> None:
    """Apply the revision."""
    with op.batch_alter_table("callback_priority_item") as items:
        items.add_column(sa.Column("failures", sa.Integer(), nullable=False, server_default="0"))
        items.add_column(sa.Column("external_id", sa.String(250), nullable=True))
    with op.batch_alter_table("callback_priority_unit") as units:
        units.add_column(sa.Column("heartbeat_at", INSTANT, nullable=True))
        # Nothing of this revision reads it; schedulers of the one before do, until they are restarted.
        units.alter_column("workers_lost", existing_type=sa.Integer(), server_default="0")
    op.create_table(
        "callback_priority_journal",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("scheduler_job_id", sa.Integer(), nullable=False),
        sa.Column("written_at", INSTANT, nullable=False),
        sa.Column("entry", sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("callback_priority_journal_written", "callback_priority_journal", ["written_at"])


def downgrade() -> None:
    """Take the revision back."""
    op.drop_table("callback_priority_journal")
    with op.batch_alter_table("callback_priority_unit") as units:
        units.alter_column("workers_lost", existing_type=sa.Integer(), server_default=None)
        units.drop_column("heartbeat_at")
    with op.batch_alter_table("callback_priority_item") as items:
        items.drop_column("external_id")
        items.drop_column("failures")
