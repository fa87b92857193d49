"""``callback-priority replay`` on the history that a real scheduler left in a real metadata database."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from callback_priority.cli.main import main
from callback_priority.policy.settings import Mode, Settings
from tests.support.scheduler import Bench, FakeClock, LoopExecutor, scheduler

SLOTS = 6
SECOND = timedelta(seconds=1)


@pytest.fixture
def history(request, airflow_database, database):
    """What some minutes left behind in which tasks kept coming and alerts came in bursts; a loop a second."""
    from airflow.models.taskinstance import TaskInstance

    table = TaskInstance.__table__
    bench, clock = Bench(), FakeClock()

    def in_the_clocks_time() -> None:
        """Airflow takes its own times from the real clock: put them where this one was."""
        now = clock.utcnow()
        stamps = (
            ("scheduled_dttm", "scheduled", now),
            ("queued_dttm", "queued", now - SECOND),
            ("end_date", "success", now),
        )
        with sa.create_engine(airflow_database).begin() as connection:
            for name, state, at in stamps:
                column = table.c[name]
                is_real = column.is_(None) | (column > clock.utcnow() + 10_000 * SECOND)
                connection.execute(sa.update(table).where(table.c.state == state, is_real).values({name: at}))

    executor = LoopExecutor(SLOTS, clock=clock, task_loops=5, callback_loops=2, each_loop=in_the_clocks_time)
    settings = Settings(mode=Mode.ACTIVE, sweep_interval_seconds=1.0, journal=request.param)
    with scheduler(executor, settings=settings, clock=clock) as run:
        for number in range(4):
            bench.tasks(12, dag_id="work")
            bench.tasks(3, dag_id=f"late {number}", priority=2)
            in_the_clocks_time()
            run(3)
            bench.callbacks(14)
            run(12)
        run(30)
    return request.param


@pytest.mark.contract
@pytest.mark.parametrize("history", [True, False], indirect=True)
def test_what_a_real_scheduler_did_comes_out_of_its_records(history, call, configure):
    """Under the settings that were active the waits are those recorded; tasks first would have changed them."""
    configure(mode="active")
    status, found = call("replay", "--slots", str(SLOTS), "--name", "other", "--policy", "tasks_first")
    assert status == 0
    assert {cls: each["arrived"] for cls, each in found["recorded"].items()} == {"task": 60, "deadline": 56}
    assert found["comparison"]["scenario"]["loop_seconds"] == pytest.approx(1.0, abs=0.1)
    assert [each for each in found["deviations"] if not each["agrees"]] == []
    active, other = found["comparison"]["treatments"]
    waits = [each["classes"]["deadline"]["wait_seconds"]["0.95"]["mean"] for each in (active, other)]
    assert waits[1] > 1.5 * waits[0]
    assert any("by the journal" in each for each in found["assumptions"]) == history


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_database_without_history_is_said_to_be_one(airflow_database, capsys):
    assert main(["replay", "--database", airflow_database]) == 1
    assert "no history" in capsys.readouterr().err


def test_a_database_that_is_not_there_is_not_made(tmp_path, capsys):
    assert main(["replay", "--database", str(tmp_path / "none.db")]) == 1
    assert "no such database" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
