"""What is spoilt from outside: flow rows, item rows, pools, clocks, metrics and logs. Tasks go on, and callbacks resume."""

from __future__ import annotations

import errno
import logging
import resource
import uuid
from datetime import timedelta

import attrs
import pytest
import sqlalchemy as sa

from callback_priority.adapter import metrics
from callback_priority.core.classes import ServiceClass
from callback_priority.persistence.enqueueing import NewItem, enqueue
from callback_priority.persistence.tables import flow_table, item_table
from callback_priority.policy.settings import Mode, Settings
from tests.support.scheduler import START, Bench, FakeClock, LoopExecutor, scheduler

ON_SQLITE = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
ACTIVE = Settings(mode=Mode.ACTIVE, sweep_interval_seconds=1.0, executor_retry_seconds=30.0)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def execute(*statements) -> None:
    from airflow.utils.session import create_session

    with create_session() as session:
        for statement in statements:
            session.connection().execute(statement)


def give_items(bench: Bench, ids, pool: str = "default_pool") -> None:
    from airflow.utils.session import create_session

    new = [
        NewItem(
            callback_id=each,
            service_class=ServiceClass.DEADLINE,
            kind="deadline",
            pool=pool,
            dag_id="alerts",
            dag_run_id=bench.dag("alerts"),
        )
        for each in ids
    ]
    with create_session() as session:
        enqueue(session.connection(), new, now=START, turn_length_us=10_000_000, aging_us=600_000_000)


SPOILT = {
    "weight of nought": {"weight": 0},
    "negative weight": {"weight": -1_000},
    "estimate of ages": {"estimate": 2**62},
    "negative estimate": {"estimate": -(2**40)},
    "tag at the lower end": {"tag": -(2**63)},
    "tag at the upper end": {"tag": 2**63 - 1},
    "clock at the upper end": {"clock": 2**63 - 1},
    "everything": {
        "weight": 2**63 - 1,
        "estimate": 2**63 - 1,
        "tag": 2**63 - 1,
        "remainder": -(2**63),
        "clock": -(2**63),
        "bypassed": -(2**31),
        "service": 2**63 - 1,
        "recent": -(2**63),
        "recent_at": 2**63 - 1,
        "granted": -(2**63),
    },
    "an unknown class": {"service_class": "nonsense"},
    "an unknown level": {"level": "nonsense"},
}


@pytest.mark.parametrize("spoilt", SPOILT.values(), ids=SPOILT)
@ON_SQLITE
def test_a_flow_that_cannot_be_begins_anew(airflow_database, bench, spoilt, caplog):
    """Shares are as they should be soon after, and what is wrong is told of once for each flow."""
    bench.tasks(400)
    bench.callbacks(400)
    clock = FakeClock()
    executor = LoopExecutor(8, clock=clock)
    with scheduler(executor, settings=ACTIVE, clock=clock) as run:
        run(4)
        deadlines = flow_table.c.service_class == "deadline"
        execute(sa.update(flow_table).where(deadlines).values(**spoilt))
        before = executor.count("task"), executor.count("callback")
        runner = run(20)
    assert runner._callback_priority.breaker.failures == 0
    assert executor.count("task") - before[0] >= 60
    assert executor.count("callback") - before[1] >= 60
    told = [each for each in caplog.messages if "begins anew" in each]
    assert len(told) == len(set(told))


@ON_SQLITE
def test_item_rows_that_cannot_be_hold_up_nobody(airflow_database, bench):
    """Whatever stands in one row, the others' callbacks run."""
    spoilt = [
        {"state": "nonsense"},
        {"service_class": "nonsense"},
        {"pool": "no such pool"},
        {"rank": 2**63 - 1},
        {"rank": -(2**63)},
        {"turn": 2**63 - 1},
        {"priority": -(2**31)},
        {"kind": ""},
        {"dag_id": "\U0001f525" * 60},
        {"executor": "Nowhere"},
        {"batch": "x"},
        {"leader_id": uuid.uuid4()},
        {"attempts": 2**31 - 1},
        {"charge": -(2**63)},
    ]
    ids = bench.callbacks(len(spoilt))
    good = bench.callbacks(20)
    give_items(bench, [*ids, *good])
    execute(
        *(
            sa.update(item_table).where(item_table.c.callback_id == each).values(**values)
            for each, values in zip(ids, spoilt, strict=True)
        )
    )
    bench.tasks(8)
    clock = FakeClock()
    executor = LoopExecutor(8, clock=clock)
    with scheduler(executor, settings=ACTIVE, clock=clock) as run:
        runner = run(12)
    assert runner._callback_priority.breaker.failures == 0
    assert set(good) <= set(executor.order("callback"))
    assert executor.count("task") == 8
    assert len(executor.order("callback")) == len(set(executor.order("callback")))
    reasons = {item.callback_id: item.reason for item in bench.items()}
    assert reasons[ids[2]] == "pool 'no such pool' does not exist"


def test_a_pool_that_is_deleted_in_mid_flight(airflow_database, bench):
    """What was granted there ends; what waits there says why, expires after a while, or runs once the pool is back."""
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session

    bench.pool("side", 2)
    there = bench.callbacks(6)
    give_items(bench, there, "side")
    elsewhere = bench.callbacks(4)
    bench.tasks(4)
    clock = FakeClock()
    executor = LoopExecutor(8, callback_loops=3, clock=clock)
    with scheduler(executor, settings=ACTIVE, clock=clock) as run:
        run(1)
        assert executor.count("callback") >= 2
        with create_session() as session:
            session.execute(sa.delete(Pool).where(Pool.pool == "side"))
        runner = run(6)
        assert set(elsewhere) <= set(executor.order("callback"))
        assert executor.count("task") == 4
        assert bench.callback_states() == {"success": 6, "pending": 4}
        waiting = {item.reason for item in bench.items() if item.state == "parked"}
        assert waiting == {"pool 'side' does not exist"}
        bench.pool("side", 2)
        clock.seconds += 30
        run(16)
    assert runner._callback_priority.breaker.failures == 0
    assert sorted(executor.order("callback")) == sorted([*there, *elsewhere])
    assert bench.callback_states() == {"success": 10}


@attrs.define
class SteppingClock(FakeClock):
    """One whose wall clock can be set; the other never goes back."""

    step: timedelta = timedelta(0)

    def utcnow(self):
        return FakeClock.utcnow(self) + self.step


@pytest.mark.parametrize("step", [3_600, -3_600, 315_360_000, -315_360_000])
@ON_SQLITE
def test_a_clock_that_is_set_loses_nothing(airflow_database, bench, step):
    """An hour or ten years, forth or back, with callbacks waiting, running and set aside; and back again."""
    bench.tasks(400)
    bench.callbacks(300)
    bench.callbacks(1, executor="Nowhere")
    clock = SteppingClock()
    executor = LoopExecutor(8, callback_loops=2, task_loops=2, clock=clock)
    with scheduler(executor, settings=ACTIVE, clock=clock) as run:
        run(4)
        shares = []
        for way in (step, 0):
            clock.step = timedelta(seconds=way)
            before = executor.held.copy()
            runner = run(24)
            held = executor.held - before
            shares.append(held["task"] / held.total())
    assert runner._callback_priority.breaker.failures == 0
    called = executor.order("callback")
    assert len(called) == len(set(called)), "none is taken for lost"
    assert bench.callback_states()["failed"] <= 1, "none but the one that waits for an executor expires"
    assert all(0.4 <= share <= 0.6 for share in shares)


@ON_SQLITE
def test_metrics_and_logs_that_fail_cost_nothing(airflow_database, bench, monkeypatch):
    """Every count raises, and so does the handler of every line that this library logs."""

    def broken(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    class Full(logging.Handler):
        emit = broken

    class Broken:
        incr = staticmethod(broken)

    monkeypatch.setattr(metrics, "stats", Broken)
    ours = logging.getLogger("callback_priority")
    handler = Full()
    monkeypatch.setattr(ours, "handlers", [handler])
    monkeypatch.setattr(ours, "level", logging.DEBUG)
    bench.callbacks(1, data={"dag_run_id": ...}, priority=9)
    bench.callbacks(1, executor="Nowhere", priority=9)
    ids = bench.callbacks(6)
    bench.tasks(6)
    clock = FakeClock()
    executor = LoopExecutor(8, clock=clock)
    with scheduler(executor, settings=ACTIVE, clock=clock) as run:
        run(8)
    assert executor.count("task") == 6
    assert sorted(executor.order("callback")) == sorted(ids)


@pytest.fixture
def log_folder(tmp_path, monkeypatch):
    """Where Airflow's workers write their logs."""
    monkeypatch.setenv("AIRFLOW__LOGGING__BASE_LOG_FOLDER", str(tmp_path))
    return tmp_path


def test_a_disk_that_fills_up_ends_a_callbacks_log_and_not_the_callback(log_folder):
    """What fitted is kept and told; the next unit's log begins as if nothing had been."""
    from callback_priority.worker.logs import UnitLogs

    logs = UnitLogs(limit_bytes=100_000)
    logs.open("units/first.log")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (1_000, hard)
    )  # the system says EFBIG where it would say ENOSPC
    try:
        for number in range(200):
            logs.msg(f"line {number}")
        assert logs.full
        told = logs.tail()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert told.startswith("line 0\nline 1\n")
    logs.open("units/second.log")
    assert not logs.full
    logs.info("another")
    assert logs.tail() == "another"
    logs.close()


def test_a_disk_without_room_for_a_log_does_not_keep_a_callback_from_running(log_folder, monkeypatch):
    from callback_priority.worker import logs as module

    def full(_path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "init_log_file", full)
    logs = module.UnitLogs(limit_bytes=100_000)
    logs.open("units/first.log")
    logs.info("nobody reads this")
    assert logs.tail() == ""
    logs.close()
