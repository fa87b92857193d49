"""``lint`` on the metadata database of a real Airflow: its pools and schedulers, and the holds that it remembers."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
import sqlalchemy as sa

from callback_priority.cli.main import main
from tests.support.commands import add_scheduler, add_unit, now
from tests.support.scheduler import Bench

SLACK = 120
"""Seconds that a slow test may take while something still holds its slot."""


def ran(database, task_id, *, ago, seconds=None):
    """A task instance that was queued so long ago, and ended, or still runs."""
    from airflow.models.taskinstance import TaskInstance

    table = TaskInstance.__table__
    queued_at = now() - timedelta(seconds=ago)
    times = {"scheduled_dttm": queued_at, "queued_dttm": queued_at, "start_date": queued_at}
    if seconds is None:
        times |= {"state": "running"}
    else:
        times |= {"state": "success", "end_date": queued_at + timedelta(seconds=seconds)}
    assert database.execute(sa.update(table).where(table.c.task_id == task_id).values(times)).rowcount == 1


def held(database, kind, *, ago, seconds=None, **more):
    """A callback that was granted a slot so long ago, and gave it back, or still has it."""
    granted_at = now() - timedelta(seconds=ago)
    more |= {"enqueued_at": granted_at, "granted_at": granted_at, "scheduler_job_id": 1, "attempts": 1}
    if seconds is None:
        more |= {"state": "granted"}
    else:
        more |= {"state": "done", "finished_at": granted_at + timedelta(seconds=seconds)}
    return add_unit(database, kind, **more)


@pytest.fixture
def week(database):
    """What the last days left: of each class a longest hold, and longer ones that do not count."""
    add_scheduler(database, 1)
    add_scheduler(database, 2)
    add_scheduler(database, 3, heartbeat_ago=3_600)
    bench, day = Bench(), 86_400
    bench.pool("etl", 16)
    bench.tasks(3, dag_id="work")
    bench.tasks(2, dag_id="wide", pool="etl", width=3)
    bench.tasks(1, dag_id="of old", pool="etl", width=9)
    ran(database, "task_0", ago=3 * day, seconds=900)
    ran(database, "task_1", ago=2 * day, seconds=30)
    ran(database, "task_3", ago=400)
    ran(database, "task_5", ago=9 * day, seconds=day)
    leader = held(database, "dag_failure", ago=day, seconds=120)
    held(database, "dag_failure", ago=day, seconds=4_000, leader_id=leader)
    held(database, "dag_failure", ago=9 * day, seconds=5_000)
    held(database, "task_failure", ago=300)
    held(database, "deadline", ago=day, seconds=20)


@pytest.mark.usefixtures("week")
def test_the_longest_holds_of_the_week_are_taken_from_the_database(call, configure):
    configure(mode="active")
    status, found = call("lint", "--observed")
    assert (status, found["problems"]) == (0, [])
    assert (found["deployment"]["schedulers"], found["deployment"]["pools"]["etl"]) == (2, 16)
    assert found["deployment"]["widest_tasks"] == {"etl": 3}
    holds = found["deployment"]["hold_seconds"]
    assert holds == {
        "task": 900,
        "deadline": 20,
        "dag_callback": 120,
        "task_callback": pytest.approx(300 + SLACK / 2, abs=SLACK / 2),
    }
    _, told = call("lint", "--holds", json.dumps(holds))
    waits, as_told = (
        [each for each in one["waits"] if each["pool"] == "default_pool"] for one in (found, told)
    )
    assert waits == as_told
    assert next(each["seconds"] for each in waits if each["service_class"] == "task") > 900


@pytest.mark.usefixtures("week")
def test_another_database_is_asked_without_airflows_configuration(call, airflow_database, tmp_path):
    config, pools = tmp_path / "section", tmp_path / "pools.json"
    config.write_text("[callback_priority]\nmode = active\n")
    pools.write_text('{"default_pool": 128, "etl": {"slots": 16, "widest": 2}}')
    given = ["--config", str(config), "--pools", str(pools), "--database", airflow_database]
    _, found = call("lint", *given, "--observed")
    assert found["deployment"]["hold_seconds"]["task"] == 900
    assert found["deployment"]["widest_tasks"] == {"etl": 2}, "what is given stands"
    _, found = call("lint", *given)
    assert found["deployment"]["hold_seconds"] == {}


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_where_nothing_was_ever_held_no_wait_is_bounded(database, call, configure):
    configure(mode="active")
    status, found = call("lint", "--observed")
    assert (status, found["deployment"]["hold_seconds"]) == (0, {})
    assert {each["seconds"] for each in found["waits"]} == {None}


def test_a_database_that_is_not_there_is_not_made(tmp_path, capsys):
    (tmp_path / "pools.json").write_text('{"default_pool": 128}')
    (tmp_path / "section").write_text("mode = active\n")
    given = ["--config", str(tmp_path / "section"), "--pools", str(tmp_path / "pools.json")]
    assert main(["lint", *given, "--observed", "--database", str(tmp_path / "none.db")]) == 1
    assert "callback-priority lint: there is no such database" in capsys.readouterr().err
    assert not (tmp_path / "none.db").exists()
