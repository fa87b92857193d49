"""When our code fails, Airflow's scheduler does not notice: tasks are scheduled in that very loop."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from uuid import UUID

import attrs
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from callback_priority.adapter import allocator as allocator_module
from callback_priority.adapter.allocator import SlotAllocator
from callback_priority.compat.executors import queued_callbacks
from callback_priority.compat.rows import forgets_data
from callback_priority.policy.settings import Mode, Settings
from tests.support.scheduler import Bench, FakeClock, LoopExecutor, around, scheduler

ON_SQLITE = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
ACTIVE = Settings(mode=Mode.ACTIVE, sweep_interval_seconds=1.0)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def messages(caplog, level: int = logging.ERROR) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= level and record.name.startswith("callback_priority")
    ]


def broken(*_args, **_kwargs):
    raise ValueError("broken on purpose")


# The allocator ----------------------------------------------------------------------------------------------------


@pytest.mark.contract
def test_a_raising_allocator_costs_callbacks_a_loop_and_tasks_nothing(
    airflow_database, bench, monkeypatch, caplog
):
    bench.tasks(8)
    bench.callbacks(8)
    executor = LoopExecutor(8)
    with scheduler(executor, settings=ACTIVE) as run:
        with monkeypatch.context() as patch:
            patch.setattr(allocator_module, "decide", broken)
            run(1)
            assert executor.count("task") == 8
            assert bench.callback_states() == {"pending": 8}
            assert {item.state for item in bench.items()} == {"waiting"}
        run(2)
    assert bench.callback_states()["success"] == 8
    [message] = messages(caplog)
    assert "callback-priority failed (plan: ValueError)" in message


@ON_SQLITE
def test_the_same_cause_is_told_once(airflow_database, bench, monkeypatch, caplog):
    settings = attrs.evolve(ACTIVE, failure_threshold=100)
    monkeypatch.setattr(allocator_module, "decide", broken)
    with scheduler(LoopExecutor(2), settings=settings) as run:
        runner = run(5)
    assert runner._callback_priority.breaker.failures == 5
    assert len(messages(caplog)) == 1


@pytest.mark.contract
@ON_SQLITE
def test_after_three_failures_in_a_row_it_steps_aside_and_comes_back(
    airflow_database, bench, monkeypatch, caplog
):
    """Aside, Airflow's own callback step runs; after the back-off the slot loop is at work again."""
    clock = FakeClock()
    bench.callbacks(40)
    executor = LoopExecutor(2, clock=clock)
    with scheduler(executor, settings=ACTIVE, clock=clock) as run:
        run(1)
        with monkeypatch.context() as patch:
            patch.setattr(allocator_module, "decide", broken)
            run(2)
            assert executor.count("callback") == 0
            assert not any("steps aside" in message for message in messages(caplog))
            run(1)
            [message] = [each for each in messages(caplog) if "steps aside" in each]
            assert "failed 3 times in a row and steps aside for 60 s" in message
            run(5)
            assert executor.count("callback") >= 8, "as Airflow would"
        clock.seconds += 60
        before = executor.count("callback")
        runner = run(4)
    assert runner._callback_priority.breaker.failures == 0
    assert executor.count("callback") > before
    assert [item for item in bench.items() if item.granted_at is not None]


@ON_SQLITE
def test_one_success_starts_the_count_anew(airflow_database, bench, monkeypatch):
    with scheduler(LoopExecutor(2), settings=ACTIVE) as run:
        for _ in range(4):
            with monkeypatch.context() as patch:
                patch.setattr(allocator_module, "decide", broken)
                run(2)
            runner = run(1)
    assert runner._callback_priority.breaker.failures == 0
    assert not runner._callback_priority.aside


# The database -----------------------------------------------------------------------------------------------------

NEVER_FAIL = ("SAVEPOINT", "ROLLBACK TO")


@attrs.define
class FailingStatement:
    """Makes one of the allocator's statements a division by zero; Airflow's own are let through.

    Args:
        place: Which, counted from nought; none fails if there are fewer.
        method: In which of the allocator's methods.
    """

    place: int
    method: str = "select"
    seen: list[str] = attrs.field(factory=list)
    ours: bool = False
    armed: bool = False

    @contextmanager
    def planted(self, monkeypatch):
        from airflow import settings

        whole = getattr(SlotAllocator, self.method)

        def airflows(original):
            def call(*args, **kwargs):
                self.ours = False
                try:
                    return original(*args, **kwargs)
                finally:
                    self.ours = True

            return call

        def watched(allocator, original, *args, **kwargs):
            self.ours = True
            try:
                return whole(allocator, around(original, airflows), *args, **kwargs)
            finally:
                self.ours = False

        def send(_connection, _cursor, statement, parameters, _context, many):
            if not (self.ours and self.armed) or statement.startswith(NEVER_FAIL):
                return statement, parameters
            # Airflow's own, sent a moment earlier: the lock and the pools.
            if "pg_try_advisory_xact_lock" in statement or "FOR UPDATE NOWAIT" in statement:
                return statement, parameters
            if "slot_pool" in statement or statement.startswith(
                "SELECT task_instance.pool, task_instance.state"
            ):
                return statement, parameters
            self.seen.append(statement)
            if len(self.seen) == self.place + 1:
                # No parameters at all would send it not even once.
                return "SELECT 1/0", [()] if many else ()
            return statement, parameters

        monkeypatch.setattr(SlotAllocator, self.method, watched)
        sa.event.listen(settings.engine, "before_cursor_execute", send, retval=True)
        try:
            yield self
        finally:
            sa.event.remove(settings.engine, "before_cursor_execute", send)


@ON_POSTGRESQL
@pytest.mark.parametrize("place", range(13))
def test_a_failing_statement_of_the_critical_section_costs_tasks_nothing(
    airflow_database, bench, monkeypatch, caplog, place
):
    """A real error of the database at each statement in turn, with every kind of work to do.

    There are callbacks to be granted, one to be failed, one to be set aside, and holds to be settled.
    """
    bench.pool("narrow", 4)
    bench.callbacks(6)
    clock = FakeClock()
    executor = LoopExecutor(8, clock=clock)
    failing = FailingStatement(place=place)
    with scheduler(executor, settings=ACTIVE, clock=clock) as run, failing.planted(monkeypatch):
        run(3)
        bench.callbacks(1, data={"dag_run_id": ...}, priority=9)
        bench.callbacks(1, executor="Nowhere", priority=9)
        ids = bench.callbacks(4)
        run(1)  # the sweep
        flows = bench.flows()
        before = {item.callback_id: item.state for item in bench.items()}
        bench.tasks(3)
        bench.tasks(3, pool="narrow", width=2)
        failing.armed = True
        run(1)
        failing.armed = False
        assert len(failing.seen) > place, "fewer statements than places: shorten the range"
        assert executor.count("task") >= 4, "their part of the slots, or all that Airflow would give them"
        assert {item.callback_id: item.state for item in bench.items()} == before
        assert bench.flows() == flows
        assert [executor.order("callback").count(each) for each in ids] == [0] * 4
        assert sum("task selection goes on as in Airflow" in each for each in messages(caplog)) == 1
        run(3)
    assert sorted(executor.order("callback")[6:]) == sorted(ids)
    assert bench.callback_states() == {"success": 10, "failed": 1, "pending": 1}
    assert executor.count("task") == 6


@ON_POSTGRESQL
def test_the_places_above_are_all_there_are(airflow_database, bench, monkeypatch):
    """The control: as many statements as the range of the test above has places, in the same loop."""
    bench.pool("narrow", 4)
    bench.callbacks(6)
    clock = FakeClock()
    failing = FailingStatement(place=99)
    with (
        scheduler(LoopExecutor(8, clock=clock), settings=ACTIVE, clock=clock) as run,
        failing.planted(monkeypatch),
    ):
        run(3)
        bench.callbacks(1, data={"dag_run_id": ...}, priority=9)
        bench.callbacks(1, executor="Nowhere", priority=9)
        bench.callbacks(4)
        run(1)
        bench.tasks(3)
        bench.tasks(3, pool="narrow", width=2)
        failing.armed = True
        run(1)
    assert len(failing.seen) == 13


@pytest.mark.contract
@ON_POSTGRESQL
@pytest.mark.parametrize("place", range(2))
def test_a_failing_statement_of_the_callback_step_costs_the_loop_nothing(
    airflow_database, bench, monkeypatch, place
):
    """Deadlines that were missed in that transaction stay missed; a sweep finds their callbacks at once.

    Where Airflow forgets what the deadline says of its Dag run, and it cannot be written, they are missed once more.
    """
    failing = FailingStatement(place=place, method="callback_step")
    clock = FakeClock()
    executor = LoopExecutor(8, clock=clock)
    settings = attrs.evolve(ACTIVE, sweep_interval_seconds=86_400)
    with scheduler(executor, settings=settings, clock=clock) as run, failing.planted(monkeypatch):
        run(1)
        ids = bench.deadlines(3)
        failing.armed = True
        run(1)
        failing.armed = False
        assert len(failing.seen) > place
        again = forgets_data() and place == 0
        assert bench.callback_states() == {"scheduled" if again else "pending": 3}
        run(2)
    assert sorted(executor.order("callback")) == sorted(ids)


@pytest.mark.contract
@ON_POSTGRESQL
@pytest.mark.parametrize("place", range(1))
def test_a_failing_statement_after_events_costs_the_loop_nothing(airflow_database, bench, monkeypatch, place):
    failing = FailingStatement(place=place, method="process_events")
    executor = LoopExecutor(8)
    bench.callbacks(4)
    bench.tasks(4)
    with scheduler(executor, settings=ACTIVE) as run, failing.planted(monkeypatch):
        run(1)
        failing.armed = True
        run(1)
        failing.armed = False
        assert len(failing.seen) > place
        assert bench.callback_states() == {"success": 4}
        runner = run(1)
        runner._callback_priority.upkeep.sweep_soon()
        run(1)
    assert {item.state for item in bench.items()} == {"done"}
    assert len(runner._callback_priority.ledger) == 0


# The commit -------------------------------------------------------------------------------------------------------


@pytest.mark.contract
def test_callbacks_reach_their_executor_after_the_commit(airflow_database, bench, monkeypatch):
    """Seen from another connection, each callback is queued by the time its executor is handed it."""
    from airflow.models.callback import Callback

    bench.callbacks(4)
    seen = []
    executor = LoopExecutor(8)
    whole = type(executor).queue_workload
    engine = sa.create_engine(airflow_database)

    def queue_workload(self, workload, session):
        with engine.connect() as connection:
            table = Callback.__table__
            seen.append(
                connection.scalar(sa.select(table.c.state).where(table.c.id == UUID(workload.callback.id)))
            )
        whole(self, workload, session)

    monkeypatch.setattr(type(executor), "queue_workload", queue_workload)
    with scheduler(executor, settings=ACTIVE) as run:
        run(2)
    engine.dispose()
    assert seen == ["queued"] * 4


@pytest.mark.contract
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("the database went away"),
        OperationalError("somebody else has the row", params=None, orig=RuntimeError("55P03")),
    ],
    ids=["ends the loop", "lock not available, which Airflow passes over"],
)
def test_what_is_rolled_back_is_not_handed_over(airflow_database, bench, monkeypatch, error):
    """The critical section fails behind our back, after the grants were written."""
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner

    ids = bench.callbacks(4)
    bench.tasks(4)
    executor = LoopExecutor(8)

    def fail(*_args, **_kwargs):
        raise error

    with scheduler(executor, settings=ACTIVE) as run:
        runner = run(1)
        started = executor.count("task")
        bench.tasks(2)
        with monkeypatch.context() as patch:
            patch.setattr(SchedulerJobRunner, "_enqueue_task_instances_with_queued_state", fail)
            if isinstance(error, RuntimeError):
                with pytest.raises(RuntimeError):
                    run(1)
            else:
                run(1)
        assert executor.count("callback") == 0
        assert not queued_callbacks(executor)
        assert bench.callback_states() == {"pending": 4}
        assert {item.state for item in bench.items()} == {"waiting"}
        assert len(runner._callback_priority.ledger) == 0
        run(3)
    assert executor.count("task") == started + 2
    assert sorted(executor.order("callback")) == sorted(ids)


@pytest.mark.contract
def test_what_an_executor_does_not_take_waits_again(airflow_database, bench, monkeypatch, caplog):
    ids = bench.callbacks(3)
    bench.tasks(2)
    executor = LoopExecutor(8)
    whole = type(executor).queue_workload
    refusals = [OSError("no broker"), OSError("no broker")]

    def queue_workload(self, workload, session):
        if workload.type == "ExecuteCallback" and refusals:
            raise refusals.pop()
        whole(self, workload, session)

    monkeypatch.setattr(type(executor), "queue_workload", queue_workload)
    with scheduler(executor, settings=ACTIVE) as run:
        run(2)
        assert executor.count("callback") == 1
        assert bench.callback_states() == {"success": 1, "pending": 2} or bench.callback_states() == {
            "queued": 1,
            "pending": 2,
        }
        runner = run(2)
    assert sorted(executor.order("callback")) == sorted(ids)
    assert executor.count("task") == 2
    assert len(runner._callback_priority.ledger) == 0
    assert "queue workload: OSError" in messages(caplog)[0]


@ON_SQLITE
def test_grants_that_fail_on_their_way_to_the_executor_are_not_lost(airflow_database, bench, monkeypatch):
    """The grant is committed, then our hand-over fails: the callbacks wait again, queued for nobody."""
    from callback_priority.adapter.handover import HandOver

    ids = bench.callbacks(3)
    executor = LoopExecutor(8)
    settings = attrs.evolve(ACTIVE, reconcile_interval_seconds=1)
    clock = FakeClock()
    executor.clock = clock
    with scheduler(executor, settings=settings, clock=clock) as run:
        run(1)
        with monkeypatch.context() as patch:
            patch.setattr(HandOver, "_enter", broken)
            run(1)
        run(5)
    assert sorted(executor.order("callback")) == sorted(ids)


@ON_SQLITE
def test_what_an_executor_told_is_not_lost_with_a_transaction(airflow_database, bench, monkeypatch):
    """Airflow had written it down, and the connection died in a statement of ours: it is told once more."""
    from airflow.utils.session import create_session

    from callback_priority.adapter.allocator import SlotAllocator
    from callback_priority.errors import TransactionLostError

    [callback] = bench.callbacks(1)
    bench.tasks(1)
    executor = LoopExecutor(4, task_loops=10**9, callback_loops=10**9)

    def lost(*_args):
        raise TransactionLostError("on purpose")

    with scheduler(executor, settings=ACTIVE) as run:
        allocator = run(2)._callback_priority
        told = dict.fromkeys(executor.inside, ("failed", None))
        executor.event_buffer |= told
        monkeypatch.setattr(SlotAllocator, "_mark_done", staticmethod(lost))
        with create_session() as session:

            def airflows() -> int:
                set_output(session, callback, "written by Airflow")
                executor.get_event_buffer()
                return 2

            allocator.process_events(airflows, executor, session)
        assert executor.event_buffer == told
        assert len(told) == 2
    assert bench.outputs() == {callback: None}


def set_output(session, callback_id, output):
    from airflow.models.callback import Callback

    table = Callback.__table__
    session.execute(sa.update(table).where(table.c.id == callback_id).values(output=output))


# The lock ---------------------------------------------------------------------------------------------------------


@pytest.mark.contract
@ON_POSTGRESQL
def test_a_scheduler_that_misses_the_lock_grants_nothing_and_hurries(
    airflow_database, bench, monkeypatch, caplog
):
    from airflow.utils.db import DBLocks

    bench.callbacks(4)
    bench.tasks(4)
    slept = []
    executor = LoopExecutor(8)
    with scheduler(executor, settings=ACTIVE, idle_sleep_seconds=1.0) as run:
        run(1)
        started = executor.count("task")
        engine = sa.create_engine(airflow_database)
        monkeypatch.setattr("airflow.jobs.scheduler_job_runner.time.sleep", slept.append)
        with engine.begin() as other:
            taken = sa.text("SELECT pg_advisory_xact_lock(:id)")
            other.execute(taken, {"id": DBLocks.SCHEDULER_CRITICAL_SECTION.value})
            runner = run(2)
            assert executor.count("task") == started
            assert executor.count("callback") == 0
            assert slept
            assert max(slept) <= 0.1
        engine.dispose()
        run(2)
    assert executor.count("callback") == 4
    assert runner._callback_priority.breaker.failures == 0
    assert messages(caplog) == []
