"""The journal of a real scheduler: one entry for each pass that was committed, none for any other, and it adds up."""

from __future__ import annotations

import sqlite3
from collections import Counter
from datetime import timedelta

import attrs
import pytest

from callback_priority.adapter import allocator as allocator_module
from callback_priority.core.classes import ServiceClass
from callback_priority.core.journal import attempts, check, differences, from_checkpoint, outstanding, replay
from callback_priority.core.policies import Policy
from callback_priority.core.quotas import Quota
from callback_priority.persistence import journal
from callback_priority.persistence.flows import read_flows
from callback_priority.policy.settings import Mode, PoolShare, Settings
from tests.support.routed import RoutedBench, Workers
from tests.support.scheduler import Bench, FakeClock, LoopExecutor, Statements, scheduler

ON_SQLITE = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
ACTIVE = Settings(mode=Mode.ACTIVE, sweep_interval_seconds=1.0, journal=True)


def entries_of(connection) -> list:
    return [each.entry for each in journal.read(connection)]


def adds_up(connection) -> None:
    """Replayed from nothing and from a checkpoint it ends at the flows, and nothing in it is impossible."""
    entries = entries_of(connection)
    flows = read_flows(connection)
    assert check({}, entries) == []
    assert differences(flows, replay({}, entries)) == []
    assert differences(flows, replay(*from_checkpoint(entries))) == []


def test_each_pass_that_changes_flows_is_told_once(airflow_database, database):
    """Pools, wide tasks, quotas, deadlines: grants are those of the items, one entry is one statement."""
    bench, clock = Bench(), FakeClock()
    bench.pool("etl", 3)
    bench.pool("alerts", 2)
    bench.tasks(24)
    bench.tasks(3, pool="etl", width=2)
    bench.tasks(4, pool="etl")
    bench.callbacks(20)
    bench.deadlines(5, dag_id="late")
    executor = LoopExecutor(8, clock=clock, task_loops=2)
    settings = attrs.evolve(
        ACTIVE,
        callback_pool={ServiceClass.DEADLINE: "alerts"},
        pool_quotas={"etl": {ServiceClass.TASK: PoolShare(quota=Quota(limit_slots=3))}},
    )
    with scheduler(executor, settings=settings, clock=clock) as run, Statements().recorded() as statements:
        run(30)
    written = Counter(statements.table_of(each) for each in statements.writes())
    entries = entries_of(database)
    assert written["callback_priority_journal"] == len(entries) <= written["callback_priority_flow"]
    adds_up(database)
    assert attempts(entries) == {str(item.callback_id): item.attempts for item in bench.items()}
    widths = Counter(width for entry in entries for each in entry.grants for width in each.widths)
    assert widths == {1: 28, 2: 3}
    assert set(outstanding(entries).values()) == {0}, "all has ended"


@ON_SQLITE
def test_it_costs_nothing_where_it_is_off(airflow_database, database):
    bench, clock = Bench(), FakeClock()
    bench.tasks(10)
    bench.callbacks(10)
    with (
        scheduler(
            LoopExecutor(8, clock=clock), settings=attrs.evolve(ACTIVE, journal=False), clock=clock
        ) as run,
        Statements().recorded() as statements,
    ):
        run(5)
    touching = [each for each in statements.sent if "callback_priority_journal" in each]
    assert not [each for each in touching if not each.startswith("SELECT")], "a sweep looks for old entries"
    assert entries_of(database) == []


@ON_SQLITE
def test_it_goes_on_over_restarts_other_weights_policies_and_modes(airflow_database, database):
    """Shadow, then active, then with other weights, then strict, then without it for a while."""
    bench, clock = Bench(), FakeClock()
    bench.tasks(150)
    bench.callbacks(200)
    for settings in (
        attrs.evolve(ACTIVE, mode=Mode.SHADOW),
        ACTIVE,
        attrs.evolve(ACTIVE, weights={ServiceClass.TASK: 3_333, ServiceClass.DEADLINE: 700}),
        attrs.evolve(ACTIVE, policy=Policy.CALLBACKS_FIRST),
        attrs.evolve(ACTIVE, policy=Policy.TASKS_FIRST),
        attrs.evolve(ACTIVE, mode=Mode.SHADOW),
    ):
        with scheduler(LoopExecutor(8, clock=clock), settings=settings, clock=clock) as run:
            run(5)
        adds_up(database)
    before = len(entries_of(database))
    with scheduler(
        LoopExecutor(8, clock=clock), settings=attrs.evolve(ACTIVE, journal=False), clock=clock
    ) as run:
        run(5)
    entries = entries_of(database)
    assert len(entries) == before
    assert differences(read_flows(database), replay({}, entries)), "what was not told is missing"
    with scheduler(LoopExecutor(8, clock=clock), settings=ACTIVE, clock=clock) as run:
        run(5)
    rest = entries_of(database)[before:]
    assert rest[0].flows is not None, "a scheduler begins with a checkpoint"
    assert differences(read_flows(database), replay(*from_checkpoint(rest))) == []
    assert any("entry" in each for each in check({}, entries_of(database))), "and the gap shows there"


@ON_SQLITE
def test_those_that_share_a_run_are_granted_and_charged_nothing(airflow_database, database):
    routed, clock = RoutedBench(), FakeClock()
    ids = routed.callbacks(9)
    executor = LoopExecutor(1, clock=clock, callback_loops=2)
    Workers(executor, Workers.work)
    with scheduler(executor, settings=ACTIVE, clock=clock) as run:
        run(9)
    entries = entries_of(database)
    adds_up(database)
    assert attempts(entries) == {str(each): 1 for each in ids}
    assert [len(entry.riding) for entry in entries if entry.attempts()] == [7, 0]
    assert set(outstanding(entries).values()) == {0}


@ON_SQLITE
@pytest.mark.parametrize("fails", ["entry", "flows"])
def test_a_pass_that_fails_leaves_no_entry_and_no_change(airflow_database, database, monkeypatch, fails):
    """Whichever of its writes fails: the flows, the entry, the items and Airflow's rows stand as before."""
    bench, clock = Bench(), FakeClock()
    bench.tasks(100)
    ids = bench.callbacks(60)
    executor = LoopExecutor(8, clock=clock)
    with scheduler(executor, settings=ACTIVE, clock=clock) as run:
        runner = run(4)
        flows, told = read_flows(database), len(entries_of(database))
        granted = {item.callback_id: item.attempts for item in bench.items()}

        def fail(*_: object, **__: object) -> None:
            raise sqlite3.OperationalError("the database is gone")

        with monkeypatch.context() as patch:
            if fails == "entry":
                patch.setattr(journal, "append", fail)
            else:
                patch.setattr(allocator_module, "write_flows", fail)
            run(1)
        assert read_flows(database) == flows
        assert len(entries_of(database)) == told
        assert {item.callback_id: item.attempts for item in bench.items()} == granted
        run(4)
        adds_up(database)
        assert runner._callback_priority.breaker.failures == 0
        run(30)
    assert sorted(executor.order("callback")) == sorted(ids), "and none of them was lost, or ran twice"
    assert set(attempts(entries_of(database)).values()) == {1}


@ON_SQLITE
def test_a_row_that_was_changed_behind_its_back_is_found(airflow_database, database):
    """The control: one microsecond of one tag."""
    bench, clock = Bench(), FakeClock()
    bench.tasks(20)
    bench.callbacks(20)
    with scheduler(LoopExecutor(8, clock=clock), settings=ACTIVE, clock=clock) as run:
        run(4)
    adds_up(database)
    database.exec_driver_sql("UPDATE callback_priority_flow SET tag = tag + 1 WHERE service_class = 'task'")
    found = differences(read_flows(database), replay({}, entries_of(database)))
    assert found
    assert all("task" in each and "tag is" in each for each in found)


@ON_SQLITE
def test_entries_go_with_the_history(airflow_database, database):
    bench, clock = Bench(), FakeClock()
    bench.callbacks(40)
    settings = attrs.evolve(ACTIVE, history_seconds=5.0)
    with scheduler(LoopExecutor(2, clock=clock), settings=settings, clock=clock) as run:
        run(20)
    kept = journal.read(database)
    assert 3 <= len(kept) <= 8
    assert min(each.written_at for each in kept) >= clock.utcnow() - timedelta(seconds=8)
