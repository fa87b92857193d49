"""What the database itself saw: every change of a callback's state and of its owner, written by triggers of its own.

The library's journal says what it meant to do. This says what was committed, independently of it and in the same
transactions.
"""

from __future__ import annotations

from tests.support.deployment import Deployment

__all__ = ["install"]

_STATEMENTS = (
    """
    CREATE TABLE chaos_item_change (
        id bigserial PRIMARY KEY, at timestamptz NOT NULL, callback_id uuid NOT NULL,
        old_state text, state text, old_job integer, job integer, old_attempts integer, attempts integer
    )
    """,
    """
    CREATE FUNCTION chaos_note_item() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO chaos_item_change (at, callback_id, old_state, state, old_job, job, old_attempts, attempts)
        VALUES (clock_timestamp(), NEW.callback_id, OLD.state, NEW.state, OLD.scheduler_job_id,
                NEW.scheduler_job_id, OLD.attempts, NEW.attempts);
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER chaos_item AFTER UPDATE ON callback_priority_item FOR EACH ROW
    WHEN (OLD.state IS DISTINCT FROM NEW.state OR OLD.scheduler_job_id IS DISTINCT FROM NEW.scheduler_job_id
          OR OLD.attempts IS DISTINCT FROM NEW.attempts)
    EXECUTE FUNCTION chaos_note_item()
    """,
    """
    CREATE TABLE chaos_callback_change (
        id bigserial PRIMARY KEY, at timestamptz NOT NULL, callback_id uuid NOT NULL, old_state text, state text
    )
    """,
    """
    CREATE FUNCTION chaos_note_callback() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO chaos_callback_change (at, callback_id, old_state, state)
        VALUES (clock_timestamp(), NEW.id, OLD.state, NEW.state);
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER chaos_callback AFTER UPDATE ON callback FOR EACH ROW
    WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION chaos_note_callback()
    """,
)


def install(airflow: Deployment) -> None:
    """Have a deployment's database write it down."""
    for statement in _STATEMENTS:
        airflow.execute(statement)
