"""No slot stays empty while somebody could use it: what one kind cannot use, the other gets in the same loop."""

from __future__ import annotations

import attrs
import pytest
import sqlalchemy as sa

from callback_priority.core.classes import SCHEDULER_FLOWS, ServiceClass
from callback_priority.persistence.flows import read_flows
from callback_priority.policy.settings import Mode, Settings
from tests.support.scheduler import Bench, FakeClock, LoopExecutor, scheduler

ON_SQLITE = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
ACTIVE = Settings(mode=Mode.ACTIVE, sweep_interval_seconds=1.0)


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def pause(dag_id: str) -> None:
    from airflow.models.dag import DagModel
    from airflow.utils.session import create_session

    with create_session() as session:
        session.execute(sa.update(DagModel.__table__).where(DagModel.dag_id == dag_id).values(is_paused=True))


def test_what_tasks_cannot_use_goes_to_callbacks_in_the_same_loop(airflow_database, bench, clock):
    """Twenty tasks wait, and their Dag lets one of them run at a time."""
    bench.dag("work", max_active_tasks=1)
    executor = LoopExecutor(8, clock=clock, task_loops=30, callback_loops=30)
    with scheduler(executor, settings=ACTIVE, clock=clock) as run:
        bench.callbacks(20)
        run(1)  # the sweep at the start
        executor.inside.clear()
        started = len(executor.started)
        bench.tasks(20)
        run(1)
    assert started == 0
    assert [kind for _, kind, _ in executor.started].count("task") == 1
    assert [kind for _, kind, _ in executor.started].count("callback") == 7


@ON_SQLITE
def test_tasks_of_a_paused_dag_hold_nothing_up(airflow_database, bench, clock):
    bench.tasks(20)
    pause("work")
    bench.callbacks(40)
    executor = LoopExecutor(8, clock=clock)
    with scheduler(executor, settings=ACTIVE, clock=clock) as run:
        run(4)
    assert executor.count("callback") == 24
    assert executor.count("task") == 0


@ON_POSTGRESQL
def test_what_callbacks_cannot_use_goes_to_tasks_in_the_same_loop(airflow_database, bench, clock):
    """Every callback's row is locked by somebody else; more tasks wait than were their share."""
    from airflow.models.callback import Callback
    from airflow.utils.session import create_session

    ids = bench.callbacks(8)
    executor = LoopExecutor(8, clock=clock)
    with scheduler(executor, settings=ACTIVE, clock=clock) as run:
        run(1)
        bench.tasks(20)
        with create_session(scoped=False) as session:
            session.execute(sa.select(Callback.id).where(Callback.id.in_(ids)).with_for_update())
            run(1)
    assert executor.count("task") == 8
    assert executor.count("callback") == 0


@ON_SQLITE
def test_bad_rows_leave_their_slots_to_tasks_in_the_same_loop(airflow_database, bench, clock):
    executor = LoopExecutor(8, clock=clock)
    with scheduler(executor, settings=ACTIVE, clock=clock) as run:
        bench.callbacks(20, data={"dag_run_id": "999999"})
        run(1)
        bench.tasks(20)
        run(1)
    assert executor.count("task") == 8


@ON_SQLITE
def test_a_full_pool_of_callbacks_leaves_the_slots_to_tasks_of_others(airflow_database, bench, clock):
    bench.pool("default_pool", 1)
    bench.pool("etl", 100)
    bench.tasks(60, pool="etl")
    bench.callbacks(40)
    executor = LoopExecutor(8, clock=clock)
    with scheduler(executor, settings=ACTIVE, clock=clock) as run:
        run(6)
    assert executor.held.total() == 6 * 8
    assert executor.count("callback") == 5


@ON_SQLITE
def test_tasks_keep_their_turn_where_those_of_another_pool_took_all_that_was_offered(
    airflow_database, bench, clock
):
    """Tasks are due one of two slots, and the one that is first is the only one of its pool."""
    bench.pool("etl", 100)
    executor = LoopExecutor(2, clock=clock, task_loops=30, callback_loops=30)
    with scheduler(executor, settings=ACTIVE, clock=clock) as run:
        bench.callbacks(20)
        run(1)
        executor.inside.clear()
        executor.started.clear()
        bench.tasks(1, priority=10)
        bench.tasks(5, pool="etl")
        run(1)
        from airflow.utils.session import create_session

        with create_session() as session:
            flows = read_flows(session.connection())
    assert sorted(kind for _, kind, _ in executor.started) == ["callback", "task"]
    assert flows[SCHEDULER_FLOWS[ServiceClass.TASK]].eligible


@ON_SQLITE
@pytest.mark.parametrize("slots", [-1, 0, 3])
def test_pools_without_end_without_slots_and_with_a_few(airflow_database, bench, clock, slots):
    bench.pool("default_pool", slots)
    bench.tasks(40)
    bench.callbacks(40)
    executor = LoopExecutor(8, clock=clock)
    with scheduler(executor, settings=ACTIVE, clock=clock) as run:
        run(5)
    assert executor.most_inside == {-1: 8, 0: 0, 3: 3}[slots]
    if slots:
        assert min(executor.count("task"), executor.count("callback")) >= 4


@ON_SQLITE
def test_a_pool_that_is_overfull_grants_nothing_and_breaks_nothing(airflow_database, bench, clock):
    """Slots may be taken away from a pool while they are in use."""
    bench.pool("default_pool", 6)
    bench.tasks(3)
    bench.callbacks(20)
    executor = LoopExecutor(16, clock=clock, task_loops=4, callback_loops=4)
    with scheduler(executor, settings=ACTIVE, clock=clock) as run:
        run(2)
        assert len(executor.inside) == 6
        bench.pool("default_pool", 2)
        bench.tasks(10)
        runner = run(8)
        assert runner._callback_priority.breaker.failures == 0
        assert len(executor.inside) <= 2


@ON_SQLITE
def test_a_deleted_pool_leaves_its_callbacks_waiting(airflow_database, bench, clock):
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session

    from callback_priority.core.classes import ServiceClass

    bench.pool("alerts", 4)
    bench.callbacks(3)
    bench.tasks(3)
    settings = attrs.evolve(ACTIVE, callback_pool={ServiceClass.DEADLINE: "alerts"})
    executor = LoopExecutor(8, clock=clock)
    with scheduler(executor, settings=settings, clock=clock) as run:
        with create_session() as session:
            session.execute(sa.delete(Pool.__table__).where(Pool.pool == "alerts"))
        run(3)
        assert executor.count("task") == 3
        assert executor.count("callback") == 0
        bench.pool("alerts", 4)
        clock.seconds += settings.executor_retry_seconds
        run(3)
    assert executor.count("callback") == 3


@ON_SQLITE
def test_deleted_runs_and_callbacks_leave_nothing_open(airflow_database, bench, clock):
    """A cleaned database: items whose callback is gone are removed, and nothing is granted to them."""
    from airflow.models.callback import Callback
    from airflow.utils.session import create_session

    bench.pool("default_pool", 0)
    ids = bench.callbacks(4)
    executor = LoopExecutor(8, clock=clock)
    with scheduler(executor, settings=ACTIVE, clock=clock) as run:
        run(1)
        assert len(bench.items()) == 4
        with create_session() as session:
            session.execute(sa.delete(Callback.__table__).where(Callback.id.in_(ids[:2])))
            table = Callback.__table__
            session.execute(sa.update(table).where(table.c.id == ids[2]).values(state="failed"))
        bench.pool("default_pool", 8)
        runner = run(4)
    assert executor.order("callback") == [ids[3]]
    assert runner._callback_priority.breaker.failures == 0
    assert {item.callback_id: item.state for item in bench.items()} == {ids[2]: "done", ids[3]: "done"}
