"""Shadow mode decides and records, and changes nothing of Airflow's."""

from __future__ import annotations

from collections import Counter

import pytest

from callback_priority.persistence.tables import metadata
from callback_priority.policy.settings import Mode, Settings
from tests.support.scheduler import Bench, FakeClock, LoopExecutor, Statements, scheduler

pytestmark = pytest.mark.contract

OUR_TABLES = set(metadata.tables)
SHADOW = Settings(mode=Mode.SHADOW, sweep_interval_seconds=1.0)


def a_run(settings: Settings | None, loops: int = 12):
    """Twelve loops with tasks, callbacks and deadlines; what was written, started, and is there at the end."""
    bench, clock = Bench(), FakeClock()
    bench.tasks(40)
    bench.callbacks(20)
    bench.callbacks(2, executor="Nowhere", priority=5)
    bench.callbacks(2, data={"dag_run_id": ...}, priority=5)
    bench.deadlines(5, dag_id="late")
    executor = LoopExecutor(8, clock=clock)
    with scheduler(executor, settings=settings, clock=clock) as run, Statements().recorded() as statements:
        runner = run(loops)
    written = Counter(statements.table_of(each) for each in statements.writes())
    started = [(loop, kind) for loop, kind, _ in executor.started]
    return bench, runner, dict(written), started


def test_airflows_rows_are_written_as_by_stock_and_no_others(
    airflow_database, stock_ends_callbacks, database_templates, request
):
    """The same loops with and without: the same number of writes to each of Airflow's tables."""
    from tests.support.airflow_env import use_database

    bench, runner, written, started = a_run(SHADOW)
    assert runner._callback_priority.breaker.failures == 0
    # A callback that a sweep finds may have a unit of an earlier time, which is made new with it.
    ours = {"callback_priority_flow", "callback_priority_item", "callback_priority_unit"}
    assert OUR_TABLES & written.keys() == ours

    server = request.getfixturevalue("postgres") if airflow_database.startswith("postgresql") else None
    backend = "sqlite" if server is None else "postgresql"
    with database_templates.copy(backend, server) as url, use_database(url):
        stock, _, stock_written, stock_started = a_run(None)
        assert OUR_TABLES & stock_written.keys() == set()
        assert {name: count for name, count in written.items() if name not in OUR_TABLES} == stock_written
        assert started == stock_started
        states = stock.callback_states(), stock.task_states()
    assert (bench.callback_states(), bench.task_states()) == states


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_decisions_and_charges_are_recorded(airflow_database):
    bench, _, _, _ = a_run(SHADOW)
    items = {item.callback_id: item for item in bench.items()}
    decided = [item for item in items.values() if item.decided_at is not None]
    assert decided, "what would have been granted is noted"
    ended = [item for item in items.values() if item.granted_at is not None]
    assert ended, "and what Airflow granted"
    assert {item.state for item in ended} == {"done"}
    granted = {(flow.level, flow.service_class): flow.granted for flow in bench.flows()}
    assert granted["scheduler", "task"] > 0
    assert granted["scheduler", "deadline"] > 0
    tags = {(flow.level, flow.service_class): flow.tag for flow in bench.flows()}
    assert tags["scheduler", "deadline"] > 0, "charged for what it really got"


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_becoming_active_starts_from_what_stock_gave(airflow_database):
    """Callbacks that stock has favoured for a while are not favoured again on top."""
    bench, clock = Bench(), FakeClock()
    bench.tasks(200)
    bench.callbacks(300)
    executor = LoopExecutor(8, clock=clock)
    with scheduler(executor, settings=SHADOW, clock=clock) as run:
        run(10)
    assert executor.share("task") < 0.2
    active = LoopExecutor(8, clock=clock)
    settings = Settings(mode=Mode.ACTIVE, sweep_interval_seconds=1.0)
    with scheduler(active, settings=settings, clock=clock) as run:
        run(20)
    assert active.share("task") >= 0.45
