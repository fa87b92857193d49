"""What the slot loop promises, where Airflow's versions differ below it."""

from __future__ import annotations

import logging
import os
from uuid import UUID

import attrs
import pytest
import sqlalchemy as sa

from callback_priority import compat
from callback_priority.compat.parts import PARTS, RUN, SLOT_LOOP, lacking
from callback_priority.policy.settings import Mode, Settings
from tests.support.scheduler import Bench, FakeClock, LoopExecutor, scheduler

pytestmark = pytest.mark.contract

ACTIVE = Settings(mode=Mode.ACTIVE)
ON_SQLITE = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
MOVES = compat.carries(compat.SINK_TARGETS)


@pytest.fixture
def bench(airflow_database):
    return Bench()


def test_this_is_the_airflow_that_was_asked_for():
    assert compat.airflow_version() in RUN
    assert os.environ.get("TESTED_AIRFLOW", compat.airflow_version()) == compat.airflow_version()


def test_its_code_is_known_for_every_part_that_it_can_carry():
    missing = lacking()
    assert SLOT_LOOP not in missing
    here = [each for part in PARTS if part not in missing for each in part.targets]
    assert compat.differences(here) == []


def test_a_missed_deadline_that_finds_no_slot_keeps_its_run_and_its_context(airflow_database, bench):
    """It waits for a later loop, in which its row is read from the database."""
    clock = FakeClock()
    bench.callbacks(2)
    executor = LoopExecutor(2, clock=clock, callback_loops=6)
    with scheduler(executor, settings=ACTIVE, clock=clock) as run:
        run(2)
        assert executor.count("callback") == 2
        late = bench.deadlines(2)
        run(2)
        assert bench.callback_states() == {"queued": 2, "pending": 2}
        engine = sa.create_engine(airflow_database)
        from airflow.models.callback import Callback

        with engine.connect() as connection:
            found = connection.execute(
                sa.select(Callback.__table__.c.data).where(Callback.__table__.c.id.in_(late))
            ).scalars()
            for data in found:
                assert data["dag_run_id"] == str(bench.dag("alerts"))
                assert data["kwargs"]["context"]["dag_run"]["dag_id"] == "alerts"
        engine.dispose()
        run(20)
    assert bench.callback_states() == {"success": 4}
    assert executor.order("callback")[2:] == late


def test_a_deadline_that_another_scheduler_has_handled_is_let_alone(airflow_database, bench, monkeypatch):
    """Airflow 3.2 reads the deadlines without a lock, and both may find the same; later versions lock them."""
    from airflow.models.deadline import Deadline

    others = sa.create_engine(
        airflow_database, connect_args={"timeout": 1} if "sqlite" in airflow_database else {}
    )
    handled = []

    def by_another(deadline, session):
        handled.append(deadline.id)

    with scheduler(LoopExecutor(2), settings=ACTIVE) as run:
        run(1)
        bench.deadlines(1)
        from airflow.utils.session import create_session

        from callback_priority.adapter import replacements

        with create_session(scoped=False) as session:
            deadline = session.scalar(sa.select(Deadline))
            found = deadline.id
            session.commit()
            with others.begin() as connection:
                connection.execute(sa.update(Deadline.__table__).values(missed=True))
            replacements._handle_miss(by_another, deadline, session)
            session.rollback()
    others.dispose()
    assert handled == ([] if compat.series() == "3.2" else [found])


@pytest.mark.parametrize("exact", [True, False], ids=["by attempt", "by coordinates"])
def test_slots_come_back_by_whatever_key_an_executor_knows_its_tasks(airflow_database, bench, exact):
    """From Airflow 3.4 on an executor says which of the two it knows; before, there is one."""
    clock = FakeClock()
    executor = LoopExecutor(4, clock=clock, task_loops=2, callback_loops=2, fills_running=False)
    executor.__class__ = type("Other", (type(executor),), {"supports_task_instance_uuid": exact})
    bench.tasks(12)
    ids = bench.callbacks(12)
    with scheduler(executor, settings=ACTIVE, clock=clock) as run:
        runner = run(30)
    assert executor.most_inside == 4
    assert bench.task_states() == {"success": 12}
    assert bench.callback_states() == {"success": 12}
    assert sorted(executor.order("callback")) == sorted(ids), "each once"
    assert len(runner._callback_priority.ledger) == 0
    assert runner._callback_priority.breaker.failures == 0


@ON_SQLITE
def test_from_34_on_only_the_worker_says_that_a_callback_runs(airflow_database, bench):
    """Its token is only good for a callback that is queued: an executor's event must not come first."""
    executor = LoopExecutor(2, callback_loops=5)
    executor.each_loop = lambda: executor.event_buffer.update(
        dict.fromkeys(executor.inside, ("running", None))
    )
    bench.callbacks(2)
    with scheduler(executor, settings=ACTIVE) as run:
        run(3)
        assert bench.callback_states() == {"queued" if compat.series() == "3.4" else "running": 2}
        run(6)
    assert bench.callback_states() == {"success": 2}


def test_full_pools_hide_no_callback_that_can_never_run(airflow_database, bench):
    """From Airflow 3.4 on a critical section with full pools ends before anything is selected."""
    bench.pool("default_pool", 1)
    bench.tasks(2)
    clock = FakeClock()
    executor = LoopExecutor(4, clock=clock, task_loops=50)
    with scheduler(executor, settings=ACTIVE, clock=clock) as run:
        run(2)
        assert executor.count("task") == 1
        bench.pool("alerts", -1)
        settings = attrs.evolve(
            ACTIVE, callback_pool={cls: "alerts" for cls in ACTIVE.weights if cls != "task"}
        )
        runner = run(1)
        runner._callback_priority.upkeep.settings = settings
        bench.callbacks(3)
        runner._callback_priority.upkeep.sweep_soon()
        run(6)
    assert executor.count("callback") == 3


@ON_SQLITE
@pytest.mark.skipif(MOVES, reason="this Airflow can have its callbacks moved")
def test_where_callbacks_cannot_move_the_dag_processor_keeps_them_and_the_slot_loop_works(
    airflow_database, bench, configure, caplog, doctor
):
    from airflow.callbacks.database_callback_sink import DatabaseCallbackSink

    from callback_priority.adapter.routing import sink

    configure(mode="active", use_worker_callbacks="all")
    stock = DatabaseCallbackSink.send
    sink.uninstall()
    with caplog.at_level(logging.ERROR):
        assert not sink.install()
    assert DatabaseCallbackSink.send is stock
    [line] = [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]
    assert f"Airflow {compat.airflow_version()} is not supported" in line
    _, checks = doctor()
    assert checks["version"]["status"] == "WARN"
    assert "use_worker_callbacks" in checks["version"]["remedy"]
    bench.tasks(2)
    bench.callbacks(2)
    with scheduler(LoopExecutor(4), settings=ACTIVE) as run:
        run(4)
    assert bench.callback_states() == {"success": 2}


@ON_SQLITE
def test_doctor_says_what_this_airflow_can_and_cannot(airflow_database, configure, doctor):
    configure(mode="active")
    _, checks = doctor()
    said = checks["version"]
    missing = [part.name for part in lacking()]
    assert said["status"] == "OK"
    assert said["values"]["does_not"] == missing
    assert said["values"]["works"] == [part.name for part in PARTS if part.name not in missing]
    assert len(said["details"]) == len(missing)
    assert compat.airflow_version() in said["found"]
    assert checks["hook"]["status"] == "OK"


def test_a_callback_is_known_by_its_key_and_its_key_by_it():
    from callback_priority.compat.keys import callback_key, callback_of, is_callback

    callback_id = UUID(int=7)
    assert is_callback(callback_key(callback_id))
    assert callback_of(callback_key(callback_id)) == callback_id
