"""The point at which chaos has a scheduler kill itself: in the critical section, and nowhere else."""

from __future__ import annotations

import json

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Engine

from tests.chaos.fault_point import COMMITTED, LOCK, PATIENCE_SECTIONS, FaultPoint

GRANT = "UPDATE callback_priority_item SET turn=NULL, granted_at=1"


class Killed(BaseException):
    """In place of a signal."""


@pytest.fixture
def point(tmp_path, monkeypatch):
    """A fault point that raises."""

    def kill(pid, number):
        raise Killed

    monkeypatch.setattr("os.kill", kill)
    made = FaultPoint(str(tmp_path / "order"), str(tmp_path / "kills"), "scheduler")
    listeners = {
        "before_cursor_execute": made.before,
        "after_cursor_execute": made.after,
        "commit": made.commit,
        "rollback": made.leave,
    }
    made.install()
    yield made
    for name, listener in listeners.items():
        event.remove(Engine, name, listener)


@pytest.fixture
def engine():
    """A database in which any statement is one."""
    made = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    with made.begin() as connection:
        connection.execute(sa.text("CREATE TABLE callback_priority_item (turn, granted_at)"))
    return made


def section(engine, statements=5, grant=False):
    """A critical section with so many statements."""
    with engine.begin() as connection:
        connection.execute(sa.text(f"SELECT '{LOCK}'"))
        for number in range(statements):
            connection.execute(sa.text(f"SELECT {number}"))
        if grant:
            connection.execute(sa.text(GRANT))


def kills(point):
    return [json.loads(line) for line in point.kills.read_text().splitlines()] if point.kills.exists() else []


def test_it_kills_at_the_statement_that_it_is_told(point, engine):
    point.orders.write_text("3")
    with engine.begin() as connection:
        for number in range(9):
            connection.execute(sa.text(f"SELECT {number}"))
    assert kills(point) == [], "outside of the section nothing counts"
    with pytest.raises(Killed):
        section(engine)
    [told] = kills(point)
    assert (told["statement"], told["text"], told["component"]) == (3, "SELECT 2", "scheduler")


def test_it_does_nothing_if_it_is_told_nothing(point, engine):
    for _ in range(PATIENCE_SECTIONS + 1):
        section(engine)
    assert kills(point) == []


def test_where_no_section_is_so_long_it_kills_at_a_commit(point, engine):
    point.orders.write_text("100")
    for _ in range(PATIENCE_SECTIONS - 1):
        section(engine)
    with pytest.raises(Killed):
        section(engine)
    assert [each["text"] for each in kills(point)] == ["COMMIT"]


def test_after_the_commit_of_what_granted_something_it_kills_before_the_next_statement(point, engine):
    point.orders.write_text(str(COMMITTED))
    section(engine)
    assert kills(point) == [], "that one granted nothing"
    section(engine, grant=True)
    assert kills(point) == []
    with pytest.raises(Killed), engine.begin() as connection:
        connection.execute(sa.text("SELECT 1"))
    assert [(each["statement"], each["text"]) for each in kills(point)] == [(COMMITTED, "after COMMIT")]
