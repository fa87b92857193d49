"""Each flaw of Airflow's own two steps that the slot loop mends, shown on both.

Every test runs twice: ``stock`` asserts the flaw, so that a flaw that Airflow mends is noticed here, and
``ours`` asserts what holds instead.
"""

from __future__ import annotations

import json
import uuid

import attrs
import pytest
import sqlalchemy as sa

from callback_priority.core.classes import ServiceClass
from callback_priority.core.quotas import Quota
from callback_priority.policy.settings import Mode, Settings
from tests.support.scheduler import Bench, FakeClock, LoopExecutor, scheduler, workload_key

ON_SQLITE = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
ACTIVE = Settings(mode=Mode.ACTIVE, sweep_interval_seconds=1.0)
DEADLINE = ServiceClass.DEADLINE


@pytest.fixture(params=["stock", pytest.param("ours", marks=pytest.mark.contract)])
def ours(request) -> bool:
    """Whether the slot loop is at work."""
    return request.param == "ours"


@pytest.fixture
def bench() -> Bench:
    return Bench()


def active(ours: bool, **changes) -> Settings | None:
    """The settings of the slot loop, none for stock."""
    return attrs.evolve(ACTIVE, **changes) if ours else None


def touch(ids) -> None:
    """Update rows without changing anything that matters."""
    from airflow.models.callback import Callback
    from airflow.utils.session import create_session

    with create_session() as session:
        session.execute(sa.update(Callback.__table__).where(Callback.id.in_(ids)).values(output="seen"))


def write_raw(callback_id: uuid.UUID, text: str) -> None:
    """Write the text of a callback's data past every check that Airflow has."""
    from airflow.models.callback import Callback
    from airflow.utils.session import create_session

    raw = sa.table("callback", sa.column("id", Callback.__table__.c.id.type), sa.column("data", sa.Text))
    with create_session() as session:
        value = sa.cast(text, sa.Text)
        if session.get_bind().dialect.name == "postgresql":
            from sqlalchemy.dialects.postgresql import JSONB

            value = sa.cast(text, JSONB)
            raw = sa.table(
                "callback", sa.column("id", Callback.__table__.c.id.type), sa.column("data", JSONB)
            )
        session.execute(sa.update(raw).where(raw.c.id == callback_id).values(data=value))


# Order ----------------------------------------------------------------------------------------------------------


@ON_POSTGRESQL
def test_the_oldest_of_equals_goes_first_even_after_its_row_was_updated(airflow_database, bench, ours):
    ids = bench.callbacks(12)
    touch(ids[:6])
    executor = LoopExecutor(1)
    with scheduler(executor, settings=active(ours)) as run:
        run(13)
    assert len(executor.order("callback")) == 12
    assert (executor.order("callback") == ids) is ours


# Rows that cannot run -------------------------------------------------------------------------------------------

BLOCKING = {
    "no dag_run_id": {"dag_run_id": ...},
    "deleted run": {"dag_run_id": "999999"},
    "unknown executor": {"executor": "Nowhere"},
}
ENDING = {
    "a word": {"dag_run_id": "abc"},
    "too large": {"dag_run_id": str(2**70)},
    "a list": {"dag_run_id": []},
}


@ON_SQLITE
@pytest.mark.parametrize("data", BLOCKING.values(), ids=BLOCKING)
def test_rows_that_cannot_run_do_not_hold_up_those_behind_them(airflow_database, bench, ours, data):
    bench.callbacks(8, data=data, priority=2)
    good = bench.callbacks(5)
    executor = LoopExecutor(8)
    with scheduler(executor, settings=active(ours)) as run:
        run(4)
    assert sorted(executor.order("callback")) == (sorted(good) if ours else [])


@ON_POSTGRESQL
@pytest.mark.parametrize("data", ENDING.values(), ids=ENDING)
def test_a_run_that_cannot_be_does_not_end_the_scheduler(airflow_database, bench, ours, data):
    bench.tasks(2)
    bad = bench.callbacks(1, data=data)
    good = bench.callbacks(5)
    executor = LoopExecutor(8)
    with scheduler(executor, settings=active(ours)) as run:
        if not ours:
            with pytest.raises(sa.exc.SQLAlchemyError):
                run(4)
            assert bench.callback_states()["pending"] == 6, "and it is there again after a restart"
            return
        run(4)
    assert executor.count("task") == 2
    assert sorted(executor.order("callback")) == sorted(good)
    assert "names no Dag run" in bench.outputs()[bad[0]]


def test_all_of_them_at_once_and_in_front_are_failed_with_their_reason(airflow_database, bench):
    """Sixty bad rows of the highest priority at eight slots, ten good ones behind them."""
    kinds = {**BLOCKING, **ENDING}
    bad = {name: bench.callbacks(10, data=data, priority=1_000) for name, data in kinds.items()}
    good = bench.callbacks(10)
    bench.tasks(10)
    executor = LoopExecutor(8)
    with scheduler(executor, settings=ACTIVE) as run:
        runner = run(12)
    assert runner._callback_priority.breaker.failures == 0
    assert sorted(executor.order("callback")) == sorted(good)
    assert executor.count("task") == 10
    outputs = bench.outputs()
    reasons = {name: {outputs[each] for each in ids} for name, ids in bad.items()}
    assert reasons["no dag_run_id"] == {"its data names no Dag run (dag_run_id is None)"}
    assert reasons["deleted run"] == {"its Dag run (id 999999) is gone"}
    assert reasons["a word"] == {"its data names no Dag run (dag_run_id is 'abc')"}
    assert reasons["too large"] == {f"its data names no Dag run (dag_run_id is '{2**70}')"}
    assert reasons["a list"] == {"its data names no Dag run (dag_run_id is [])"}
    assert reasons["unknown executor"] == {None}, "its executor may come back"
    assert bench.callback_states() == {"failed": 50, "success": 10, "pending": 10}
    parked = [item for item in bench.items() if item.state == "parked"]
    assert {item.callback_id for item in parked} == set(bad["unknown executor"])


UNREADABLE = {
    "not an object": "[1, 2]",
    "a number": "7",
    "an unknown type": '{"__type": "nonsense", "__var": {"dag_run_id": "1"}}',
    "a type without content": '{"__type": "dict"}',
    "null": "null",
}


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE)
def test_data_that_cannot_be_read_fails_its_own_row_only(airflow_database, bench, ours, text):
    bench.tasks(2)
    bad = bench.callbacks(1, priority=2)
    good = bench.callbacks(3)
    write_raw(bad[0], text)
    executor = LoopExecutor(8)
    with scheduler(executor, settings=active(ours)) as run:
        if not ours:
            with pytest.raises(Exception):  # noqa: B017, PT011 - whatever the decoder makes of it
                run(3)
            return
        runner = run(3)
    assert runner._callback_priority.breaker.failures == 0
    assert sorted(executor.order("callback")) == sorted(good)
    assert bench.callback_states() == {"failed": 1, "success": 3}
    assert executor.count("task") == 2


NOT_JSON = {"no quotes": "{not json", "cut off": '{"dag_run_id": "1', "empty": "", "too deep": "[" * 100_000}


@ON_SQLITE
@pytest.mark.parametrize("text", NOT_JSON.values(), ids=NOT_JSON)
def test_text_that_is_not_json_fails_its_own_row_only(airflow_database, bench, ours, text):
    """SQLite keeps any text; PostgreSQL does not let it in."""
    bad = bench.callbacks(2, priority=2)
    good = bench.callbacks(3)
    for each in bad:
        write_raw(each, text)
    executor = LoopExecutor(8)
    with scheduler(executor, settings=active(ours)) as run:
        if not ours:
            with pytest.raises((json.JSONDecodeError, RecursionError)):
                run(3)
            return
        run(3)
    assert sorted(executor.order("callback")) == sorted(good)
    outputs = bench.outputs()
    assert all(outputs[each].startswith("its row cannot be read: ") for each in bad)


@ON_SQLITE
def test_a_workload_that_cannot_be_made_fails_its_own_row_only(airflow_database, bench, ours):
    """Airflow's own schema of the workload refuses what the row says."""
    from airflow.models.callback import Callback
    from airflow.utils.session import create_session

    bad = bench.callbacks(1, priority=2)
    with create_session() as session:
        table = Callback.__table__
        session.execute(sa.update(table).where(table.c.id == bad[0]).values(fetch_method="by pigeon"))
    good = bench.callbacks(3)
    executor = LoopExecutor(8)
    with scheduler(executor, settings=active(ours)) as run:
        if not ours:
            with pytest.raises(ValueError, match="fetch_method"):
                run(3)
            return
        run(3)
    assert sorted(executor.order("callback")) == sorted(good)
    assert bench.outputs()[bad[0]].startswith("its workload cannot be made: ValidationError")


# Executors ------------------------------------------------------------------------------------------------------


def test_an_executor_without_callback_support_does_not_end_the_scheduler(airflow_database, bench, ours):
    bench.tasks(6)
    bench.callbacks(3)
    executor = LoopExecutor(4)
    executor.supports_callbacks = False
    with scheduler(executor, settings=active(ours)) as run:
        if not ours:
            with pytest.raises(NotImplementedError):
                run(4)
            assert bench.callback_states() == {"pending": 3}
            return
        run(4)
    assert executor.count("task") == 6
    assert bench.callback_states() == {"failed": 3}
    assert set(bench.outputs().values()) == {"executor _LoopExecutor does not run callbacks"}


@ON_SQLITE
def test_an_executor_that_takes_workloads_in_its_own_way_is_asked_whatever_its_flag(airflow_database, bench):
    """As EdgeExecutor does: the flag is unset, and callbacks run."""
    bench.callbacks(3)
    executor = _own_way(LoopExecutor(4), refuses=False)
    with scheduler(executor, settings=ACTIVE) as run:
        run(4)
    assert bench.callback_states() == {"success": 3}


@ON_SQLITE
def test_an_executor_that_refuses_when_asked_is_asked_once(airflow_database, bench):
    bench.tasks(6)
    executor = _own_way(LoopExecutor(1), refuses=True)
    bench.callbacks(3)
    with scheduler(executor, settings=ACTIVE) as run:
        runner = run(10)
    assert executor.asked == 1
    assert bench.callback_states() == {"failed": 3}
    assert all("does not run callbacks" in output for output in bench.outputs().values())
    assert executor.count("task") == 6
    assert len(runner._callback_priority.ledger) == 0


def _own_way(executor, *, refuses: bool):
    from airflow.executors.workloads import ExecuteCallback

    from callback_priority.compat.executors import queued_callbacks

    class OwnWay(type(executor)):
        supports_callbacks = False
        asked = 0

        def queue_workload(self, workload, session):
            if not isinstance(workload, ExecuteCallback):
                super().queue_workload(workload, session)
                return
            self.asked += 1
            if refuses:
                raise NotImplementedError("no callbacks here")
            queued_callbacks(self)[workload_key(self, workload)] = workload

    executor.__class__ = OwnWay
    return executor


@ON_SQLITE
def test_a_callback_whose_executor_is_missing_expires_after_its_time_to_live(airflow_database, bench):
    clock = FakeClock()
    bad = bench.callbacks(2, executor="Nowhere")
    settings = attrs.evolve(ACTIVE, executor_retry_seconds=5, executor_time_to_live_seconds=60)
    with scheduler(LoopExecutor(8, clock=clock), settings=settings, clock=clock) as run:
        run(50)
        assert bench.callback_states() == {"pending": 2}
        assert {item.state for item in bench.items()} == {"parked"}
        run(20)
    assert bench.callback_states() == {"failed": 2}
    assert {bench.outputs()[each] for each in bad} == {
        "expired after 60 s: executor 'Nowhere' is not configured in this scheduler"
    }
    assert {item.state for item in bench.items()} == {"done"}


@ON_SQLITE
def test_a_callback_waits_for_an_executor_that_is_rolled_in_later(airflow_database, bench):
    clock = FakeClock()
    ids = bench.callbacks(2, executor="Later")
    settings = attrs.evolve(ACTIVE, executor_retry_seconds=5)
    with scheduler(LoopExecutor(8, clock=clock), settings=settings, clock=clock) as run:
        run(3)
    later = LoopExecutor(8, alias="Later")
    default = LoopExecutor(8, clock=clock)
    with scheduler(default, later, settings=settings, clock=clock) as run:
        run(8)
    assert sorted(later.order("callback")) == sorted(ids)
    assert default.count("callback") == 0
    assert bench.callback_states() == {"success": 2}


# Slots ----------------------------------------------------------------------------------------------------------


def test_callbacks_keep_to_the_slots_of_their_pool(airflow_database, bench, ours):
    bench.pool("default_pool", 0)
    bench.callbacks(16)
    executor = LoopExecutor(16)
    with scheduler(executor, settings=active(ours)) as run:
        run(3)
        assert executor.count("callback") == (0 if ours else 16)
        if ours:
            bench.pool("default_pool", 3)
            run(4)
            assert executor.most_inside == 3


def test_an_executor_that_never_says_what_it_runs_is_not_overfilled(airflow_database, bench, ours):
    """As LocalExecutor: ``running`` stays empty, so its slots look free while it works."""
    bench.tasks(60)
    bench.callbacks(60)
    clock = FakeClock()
    executor = LoopExecutor(2, task_loops=2, callback_loops=2, fills_running=False, clock=clock)
    with scheduler(executor, settings=active(ours), clock=clock) as run:
        run(24)
    if ours:
        assert executor.most_inside == 2
        assert executor.count("task") >= 8
        assert executor.count("callback") >= 8
    else:
        assert executor.most_inside > 2


@ON_SQLITE
def test_a_reserve_keeps_alerts_from_waiting_for_long_tasks(airflow_database, bench, ours):
    """Tasks of twenty loops fill every slot that they may; then a deadline is missed."""
    bench.tasks(40)
    executor = LoopExecutor(8, task_loops=20)
    settings = active(ours, slot_quotas={DEADLINE: Quota(reserve_slots=1)})
    with scheduler(executor, settings=settings) as run:
        run(2)
        assert executor.count("task") == (7 if ours else 8)
        bench.deadlines(1)
        run(3)
    assert executor.count("callback") == (1 if ours else 0)


@ON_SQLITE
def test_callbacks_always_waiting_do_not_starve_tasks_nor_tasks_callbacks(airflow_database, bench, ours):
    bench.tasks(200)
    bench.callbacks(400)
    clock = FakeClock()
    executor = LoopExecutor(8, clock=clock)
    with scheduler(executor, settings=active(ours), clock=clock) as run:
        run(24)
    if ours:
        assert min(executor.count("task"), executor.count("callback")) >= 80
    else:
        assert executor.count("task") == 8


# Turns ----------------------------------------------------------------------------------------------------------


def test_a_dag_with_thousands_of_callbacks_does_not_hold_back_anothers_alert(airflow_database, bench, ours):
    bench.callbacks(5_000, dag_id="flood")
    executor = LoopExecutor(8)
    with scheduler(executor, settings=active(ours)) as run:
        run(8)
        [alert] = bench.deadlines(1, dag_id="billing")
        run(3)
    assert (alert in executor.order("callback")) is ours


@ON_SQLITE
def test_priority_ages_so_that_nothing_waits_for_ever(airflow_database, bench, ours):
    """One slot, and in each loop two more callbacks of a higher priority."""
    clock = FakeClock()
    executor = LoopExecutor(
        1, clock=clock, each_loop=lambda: bench.callbacks(2, dag_id=f"vip_{executor.now % 7}", priority=10)
    )
    bench.callbacks(2, dag_id="vip_0", priority=10)
    [humble] = bench.callbacks(1, dag_id="humble", priority=1)
    settings = active(ours, priority_aging_seconds=4.0, dag_turn_seconds=0.001)
    with scheduler(executor, settings=settings, clock=clock) as run:
        run(40)
    order = executor.order("callback")
    assert (humble in order) is ours
    if ours:
        assert order.index(humble) >= 5, "priority counts for something"


@ON_SQLITE
def test_a_missed_deadline_has_its_item_in_the_transaction_that_makes_it_pending(airflow_database, bench):
    """Without the sweep, which comes later: the very next loop grants it."""
    clock = FakeClock()
    settings = attrs.evolve(ACTIVE, sweep_interval_seconds=86_400)
    executor = LoopExecutor(8, clock=clock)
    with scheduler(executor, settings=settings, clock=clock) as run:
        run(1)
        ids = bench.deadlines(3)
        run(1)
        assert sorted(item.callback_id for item in bench.items()) == sorted(ids)
        assert {(item.dag_id, item.kind, item.state) for item in bench.items()} == {
            ("alerts", "deadline", "waiting")
        }
        run(1)
    assert sorted(executor.order("callback")) == sorted(ids)


# The loop's pace ------------------------------------------------------------------------------------------------


@ON_SQLITE
def test_a_scheduler_busy_with_callbacks_does_not_sleep(airflow_database, bench, ours, monkeypatch):
    bench.callbacks(40)
    slept = []
    monkeypatch.setattr("airflow.jobs.scheduler_job_runner.time.sleep", slept.append)
    with scheduler(LoopExecutor(4), settings=active(ours), idle_sleep_seconds=1.0) as run:
        run(9)
    long = [seconds for seconds in slept if seconds > 0.1]
    assert (long == []) is ours


@ON_POSTGRESQL
def test_two_schedulers_do_not_take_the_same_callback(airflow_database, bench):
    """The row is locked by somebody else: it is left alone, and granted once it is free."""
    from airflow.models.callback import Callback
    from airflow.utils.session import create_session

    ids = bench.callbacks(4)
    executor = LoopExecutor(8)
    with scheduler(executor, settings=ACTIVE) as run:
        run(1)  # the sweep gives them items
        with create_session(scoped=False) as session:
            session.execute(sa.select(Callback.id).where(Callback.id.in_(ids[:2])).with_for_update())
            run(1)
            assert sorted(executor.order("callback")) == sorted(ids[2:])
        run(2)
    assert sorted(executor.order("callback")) == sorted(ids)
