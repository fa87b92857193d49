"""Quotas, policies, pools, teams and wide tasks, in Airflow's real scheduler."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import attrs
import pytest
import sqlalchemy as sa

from callback_priority.core.classes import ServiceClass
from callback_priority.core.policies import Policy
from callback_priority.core.quotas import Quota
from callback_priority.policy.settings import DagPriority, Mode, PoolShare, Settings
from tests.support.scheduler import Bench, FakeClock, LoopExecutor, scheduler

ON_SQLITE = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
ACTIVE = Settings(mode=Mode.ACTIVE, sweep_interval_seconds=1.0)
DEADLINE, TASK = ServiceClass.DEADLINE, ServiceClass.TASK


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def flooded(bench, clock, loops: int = 15, slots: int = 8, **changes):
    """Both kinds always waiting; the executor after some loops, and the most of each kind inside at once."""
    bench.tasks(slots * (loops + 2))
    bench.callbacks(slots * (loops + 2))
    bench.pool("default_pool", 1_000)
    most = {"task": 0, "callback": 0}

    def look() -> None:
        kinds = [executor.kind(key) for key in executor.inside]
        most.update({kind: max(before, kinds.count(kind)) for kind, before in most.items()})

    executor = LoopExecutor(slots, clock=clock, task_loops=2, callback_loops=2, each_loop=look)
    with scheduler(executor, settings=attrs.evolve(ACTIVE, **changes), clock=clock) as run:
        run(1)
        run(loops)
    return executor, most


# Policies -----------------------------------------------------------------------------------------------------------


@ON_SQLITE
def test_tasks_first_leaves_callbacks_nothing(airflow_database, bench, clock):
    executor, _ = flooded(bench, clock, policy=Policy.TASKS_FIRST)
    assert executor.count("callback") == 0


@ON_SQLITE
def test_callbacks_first_leaves_tasks_nothing_once_callbacks_wait(airflow_database, bench, clock):
    """But for the first loop, whose tasks were started before the sweep had found a callback."""
    executor, _ = flooded(bench, clock, policy=Policy.CALLBACKS_FIRST)
    assert executor.count("task") == 8


@ON_SQLITE
def test_fair_starves_nobody(airflow_database, bench, clock):
    executor, _ = flooded(bench, clock)
    assert min(executor.count("task"), executor.count("callback")) >= 20


@ON_SQLITE
def test_either_policy_keeps_to_the_quotas(airflow_database, bench, clock):
    quotas = {DEADLINE: Quota(reserve_slots=2)}
    executor, most = flooded(bench, clock, policy=Policy.TASKS_FIRST, slot_quotas=quotas)
    assert most == {"task": 6, "callback": 2}
    assert executor.count("callback") >= 10


@ON_SQLITE
def test_callbacks_first_keeps_to_its_limit(airflow_database, bench, clock):
    quotas = {DEADLINE: Quota(limit_slots=3)}
    executor, most = flooded(bench, clock, policy=Policy.CALLBACKS_FIRST, slot_quotas=quotas)
    assert most["callback"] == 3
    assert executor.count("task") >= 30


# Quotas -------------------------------------------------------------------------------------------------------------


@pytest.mark.contract
@ON_SQLITE
def test_a_pool_limit_is_the_most_that_callbacks_hold_of_the_pool(airflow_database, bench, clock):
    shares = {"default_pool": {DEADLINE: PoolShare(quota=Quota(limit_slots=2))}}
    executor, most = flooded(bench, clock, pool_quotas=shares)
    assert most == {"task": 8, "callback": 2}
    assert executor.held.total() >= 8 * 14, "the rest is the tasks'"


@pytest.mark.contract
def test_a_pool_reserve_stays_empty_until_it_is_needed(airflow_database, bench, clock):
    bench.pool("default_pool", 6)
    bench.tasks(30)
    shares = {"*": {DEADLINE: PoolShare(quota=Quota(reserve_slots=2))}}
    executor = LoopExecutor(16, clock=clock, task_loops=50, callback_loops=3)
    settings = attrs.evolve(ACTIVE, pool_quotas=shares)
    with scheduler(executor, settings=settings, clock=clock) as run:
        run(5)
        assert len(executor.inside) == 4
        bench.deadlines(3)
        run(2)
        assert len(executor.inside) == 6, "two alerts at once, a third when one has ended"
        assert executor.count("callback") == 2
        run(4)
    assert executor.count("callback") == 3
    assert executor.count("task") == 4


@ON_SQLITE
def test_a_weight_in_one_pool_counts_in_that_pool(airflow_database, bench, clock):
    shares = {"default_pool": {TASK: PoolShare(weight=3_000)}}
    bench.tasks(200)
    bench.callbacks(200)
    bench.pool("default_pool", 8)
    executor = LoopExecutor(64, clock=clock)
    with scheduler(executor, settings=attrs.evolve(ACTIVE, pool_quotas=shares), clock=clock) as run:
        run(24)
    assert 0.65 <= executor.share("task") <= 0.85


@ON_SQLITE
def test_alerts_draw_on_the_pool_that_is_theirs(airflow_database, bench, clock):
    bench.pool("alerts", 1)
    bench.pool("default_pool", 0)
    bench.callbacks(5)
    settings = attrs.evolve(ACTIVE, callback_pool={DEADLINE: "alerts"})
    executor = LoopExecutor(8, clock=clock)
    with scheduler(executor, settings=settings, clock=clock) as run:
        run(8)
    assert executor.most_inside == 1
    assert executor.count("callback") == 5


# Priorities ---------------------------------------------------------------------------------------------------------


@ON_SQLITE
def test_priorities_by_dag_id_come_first(airflow_database, bench, clock):
    settings = attrs.evolve(ACTIVE, dag_priorities=(DagPriority(pattern="pay*", priority=50),))
    first = bench.callbacks(4, dag_id="reports")
    urgent = bench.callbacks(2, dag_id="payments")
    executor = LoopExecutor(1, clock=clock)
    with scheduler(executor, settings=settings, clock=clock) as run:
        run(7)
    assert executor.order("callback") == [*urgent, *first]


@ON_SQLITE
def test_airflows_own_priority_counts_where_no_pattern_matches(airflow_database, bench, clock):
    low = bench.callbacks(2)
    high = bench.callbacks(2, priority=5)
    executor = LoopExecutor(1, clock=clock)
    with scheduler(executor, settings=ACTIVE, clock=clock) as run:
        run(5)
    assert executor.order("callback") == [*high, *low]


# Other schedulers ---------------------------------------------------------------------------------------------------


@pytest.mark.contract
@pytest.mark.parametrize("alive", [True, False], ids=["living", "dead"])
def test_what_other_schedulers_granted_counts_while_they_live(airflow_database, bench, alive):
    """A pool of five: three callbacks of another scheduler are in it, as long as that scheduler lives."""
    from airflow.jobs.job import Job
    from airflow.utils.session import create_session

    from callback_priority.persistence.tables import item_table

    bench.pool("default_pool", 5)
    ids = bench.callbacks(3, state="running")
    now = datetime.now(timezone.utc)
    with create_session() as session:
        job = Job(job_type="SchedulerJob", state="running")
        job.latest_heartbeat = now if alive else now - timedelta(seconds=120)
        session.add(job)
        session.flush()
        rows = [
            {
                "callback_id": each,
                "service_class": "deadline",
                "kind": "deadline",
                "pool": "default_pool",
                "dag_id": "alerts",
                "priority": 1,
                "turn": 0,
                "rank": 0,
                "state": "granted",
                "enqueued_at": now,
                "granted_at": now,
                "scheduler_job_id": job.id,
                "attempts": 1,
                "charge": 0,
            }
            for each in ids
        ]
        session.execute(sa.insert(item_table), rows)
    bench.tasks(10)
    bench.callbacks(10)
    executor = LoopExecutor(16, task_loops=50, callback_loops=50)
    with scheduler(executor, settings=ACTIVE) as run:
        run(4)
    assert len(executor.inside) == (2 if alive else 5), "tasks and callbacks together"


@pytest.mark.contract
def test_connection_tests_hold_slots(airflow_database, bench, clock):
    """Two slots and one connection test that lasts: one slot is left for everything else."""
    ConnectionTestRequest = pytest.importorskip(  # noqa: N806 - a class
        "airflow.models.connection_test", reason="Airflow 3.2 has none"
    ).ConnectionTestRequest
    from airflow.utils.session import create_session

    executor = LoopExecutor(2, clock=clock, callback_loops=30, fills_running=False)
    with scheduler(executor, settings=ACTIVE, clock=clock) as run:
        with create_session() as session:
            session.add(ConnectionTestRequest(connection_id="c", conn_type="http"))
        run(2)
        assert executor.count("test") == 1
        bench.tasks(5)
        bench.callbacks(5)
        run(6)
        assert executor.most_inside == 2
        assert executor.count("task") + executor.count("callback") >= 1


# Wide tasks ---------------------------------------------------------------------------------------------------------


@pytest.mark.contract
def test_a_wide_task_starts_within_the_bypass_limit(airflow_database, bench, clock):
    """A pool of four, callbacks always waiting in it: a task of width four is passed eight times at most."""
    bench.pool("default_pool", 4)
    bench.callbacks(200)
    executor = LoopExecutor(8, clock=clock, callback_loops=2)
    settings = attrs.evolve(ACTIVE, wide_bypass_limit=8)
    with scheduler(executor, settings=settings, clock=clock) as run:
        run(4)
        bench.tasks(1, width=4, priority=10)
        bench.tasks(50)
        before = len(executor.started)
        run(16)
    kinds = [kind for _, kind, _ in executor.started[before:]]
    names = [executor.task_ids.get(key, "") for _, _, key in executor.started[before:]]
    assert "task_0" in names
    place = names.index("task_0")
    assert place <= 8 + 4 + 4, kinds[: place + 1]


@ON_SQLITE
def test_wide_tasks_take_their_width_of_the_pool(airflow_database, bench, clock):
    bench.pool("default_pool", 6)
    bench.tasks(20, width=2)
    bench.callbacks(40)
    most = []

    def look() -> None:
        kinds = [executor.kind(key) for key in executor.inside]
        most.append(2 * kinds.count("task") + kinds.count("callback"))

    executor = LoopExecutor(16, clock=clock, task_loops=2, callback_loops=1, each_loop=look)
    with scheduler(executor, settings=ACTIVE, clock=clock) as run:
        run(20)
    assert max(most) <= 6
    assert executor.count("task") >= 10
    assert executor.count("callback") >= 20


# Executors ----------------------------------------------------------------------------------------------------------


@pytest.mark.contract
@ON_SQLITE
def test_where_an_executor_takes_fewer_the_order_of_the_grants_decides(airflow_database, bench, clock):
    """Four slots are granted in turns, and the executor takes two: one of each, not two callbacks."""
    bench.dag("work")
    executor = LoopExecutor(4, clock=clock)
    with scheduler(executor, settings=ACTIVE, clock=clock) as run:
        bench.callbacks(8)
        run(1)
        bench.tasks(8)
        executor.takes = 2
        run(1)
        kinds = [kind for _, kind, _ in executor.started]
        assert sorted(kinds) == ["callback", "task"]
        run(6)
    assert executor.count("task") >= 4
    assert executor.count("callback") >= 4


@pytest.mark.contract
def test_a_full_executor_does_not_hold_up_anothers_callbacks(airflow_database, bench, clock):
    small = LoopExecutor(1, clock=clock, alias="Small", callback_loops=50)
    large = LoopExecutor(8, alias="Large")
    bench.callbacks(10, executor="Small", priority=9)
    others = bench.callbacks(10, executor="Large")
    with scheduler(small, large, parallelism=9, settings=ACTIVE, clock=clock) as run:
        run(6)
    assert small.most_inside == 1
    assert sorted(large.order("callback")) == sorted(others)


@ON_SQLITE
def test_nor_does_one_that_has_a_slot_in_every_loop(airflow_database, bench, clock):
    """The default executor is the small one here, and its callbacks ask for no executor by name."""
    small = LoopExecutor(1, clock=clock, alias="Small")
    large = LoopExecutor(8, alias="Large")
    bench.callbacks(40, priority=9)
    others = bench.callbacks(10, executor="Large")
    bench.callbacks(5, executor="Nowhere", priority=9)
    with scheduler(small, large, parallelism=9, settings=ACTIVE, clock=clock) as run:
        runner = run(6)
    assert runner._callback_priority.breaker.failures == 0
    assert small.count("callback") == 5
    assert large.order("callback") == others


# Teams --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def teams(airflow_database, monkeypatch, bench):
    """Two teams with a bundle each."""
    from airflow.models.dagbundle import DagBundleModel
    from airflow.models.team import Team
    from airflow.utils.session import create_session

    monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
    for name in ("red", "blue"):
        bench.dag(f"{name}_dag", bundle=f"{name}_bundle")
        with create_session() as session:
            team = Team(name=name)
            team.dag_bundles.append(session.get(DagBundleModel, f"{name}_bundle"))
            session.add(team)


@pytest.mark.contract
@ON_SQLITE
def test_a_callback_runs_on_its_teams_executor(teams, bench, clock):
    red = bench.callbacks(3, dag_id="red_dag")
    blue = bench.callbacks(3, dag_id="blue_dag")
    nobodys = bench.callbacks(3, dag_id="free_dag")
    executors = {name: LoopExecutor(8, alias=f"{name}_executor", team_name=name) for name in ("red", "blue")}
    common = LoopExecutor(8, clock=clock, alias="Common")
    with scheduler(common, *executors.values(), parallelism=24, settings=ACTIVE, clock=clock) as run:
        run(4)
    assert sorted(executors["red"].order("callback")) == sorted(red)
    assert sorted(executors["blue"].order("callback")) == sorted(blue)
    assert sorted(common.order("callback")) == sorted(nobodys)


@ON_SQLITE
def test_a_callback_does_not_get_another_teams_executor(teams, bench, clock):
    bench.callbacks(3, dag_id="red_dag", executor="blue_executor")
    blue = LoopExecutor(8, alias="blue_executor", team_name="blue")
    common = LoopExecutor(8, clock=clock, alias="Common")
    with scheduler(common, blue, parallelism=16, settings=ACTIVE, clock=clock) as run:
        run(4)
    assert blue.count("callback") == common.count("callback") == 0
    assert {item.state for item in bench.items()} == {"parked"}


@ON_SQLITE
def test_a_callback_does_not_get_slots_of_another_teams_pool(teams, bench, clock):
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session

    bench.pool("blue_pool", 8)
    with create_session() as session:
        session.execute(sa.update(Pool.__table__).where(Pool.pool == "blue_pool").values(team_name="blue"))
    bench.callbacks(3, dag_id="red_dag")
    blue = bench.callbacks(3, dag_id="blue_dag")
    settings = attrs.evolve(ACTIVE, callback_pool={DEADLINE: "blue_pool"})
    executor = LoopExecutor(8, clock=clock, alias="Common")
    with scheduler(executor, settings=settings, clock=clock) as run:
        run(4)
    assert sorted(executor.order("callback")) == sorted(blue)
    [reason] = {item.reason for item in bench.items() if item.state == "parked"}
    assert reason == "pool 'blue_pool' belongs to team 'blue', its Dag to 'red'"
