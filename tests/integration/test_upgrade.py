"""Switched off and on again, tables taken away and given back, Airflow itself up, down and reset: nothing is stuck."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import attrs
import pytest
import sqlalchemy as sa

from callback_priority.adapter.upkeep import FORGOTTEN
from callback_priority.core.classes import CALLBACK_CLASSES
from callback_priority.persistence.tables import VERSION_TABLE, metadata
from callback_priority.policy.settings import Mode, Settings
from tests.support.routed import RoutedBench, Workers, set_state
from tests.support.scheduler import START, Bench, FakeClock, LoopExecutor, scheduler
from tests.support.without_library import WithoutLibrary

ON_SQLITE = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
ACTIVE = Settings(mode=Mode.ACTIVE, callback_retry_delay_seconds=dict.fromkeys(CALLBACK_CLASSES, 0.0))
FOR_EVER = 10**9
FLOWS_AND_ITEMS, REQUESTS, NONE = "8c1f4e0a7d35", "3d7a52c9e6b1", "base"


@contextmanager
def at_work(clock: FakeClock, slots: int = 4, *, reports: bool = False, settings=ACTIVE, **options: Any):
    """A scheduler with the library, or (without settings) without: its loops, its executor, its allocator if any."""
    executor = LoopExecutor(slots, clock=clock, **options)
    if reports:
        Workers(executor, Workers.work)
    with scheduler(executor, settings=settings, clock=clock) as run:
        yield run, executor, run(0).__dict__.get("_callback_priority")


def bury_schedulers() -> None:
    """What Airflow writes of schedulers whose heartbeat is too old."""
    from airflow.jobs.job import Job
    from airflow.utils.session import create_session

    with create_session() as session:
        session.execute(sa.update(Job).where(Job.job_type == "SchedulerJob").values(state="failed"))


def states(bench: Bench) -> Counter[str]:
    return Counter(item.state for item in bench.items())


def migrate(action: str, *arguments: str) -> None:
    from airflow.utils.session import create_session

    from callback_priority.adapter.db_manager import CallbackPriorityDBManager

    with create_session(scoped=False) as session:
        getattr(CallbackPriorityDBManager(session), action)(*arguments)


# Off, and on again -------------------------------------------------------------------------------------------------


def test_what_was_in_flight_when_it_was_switched_off_and_on_ends(airflow_database):
    """Waiting, granted by ours, granted by stock and lost there: each comes to its end after its time."""
    bench = Bench()
    clock = FakeClock()
    ours = bench.callbacks(4)
    with at_work(clock, 2, callback_loops=FOR_EVER) as (run, _, _):
        run(2)
    assert states(bench) == {"granted": 2, "waiting": 2}
    bury_schedulers()

    with at_work(clock, 1, settings=None, callback_loops=FOR_EVER) as (run, executor, _):
        run(2)
        stock = executor.order("callback")
    assert len(stock) == 1
    assert set(stock) < set(ours)
    assert bench.callback_states() == {"queued": 3, "pending": 1}
    assert states(bench) == {"granted": 2, "waiting": 2}
    bury_schedulers()

    with at_work(clock, 4) as (run, executor, allocator):
        # The one of stock's may yet be running, and is given its time. All others are granted.
        run(4)
        assert states(bench) == {"granted": 1, "done": 3}
        assert stock[0] not in executor.order("callback")
        clock.seconds += allocator.recovery.queued_seconds
        run(1)
        clock.seconds += 61
        run(4)
        assert executor.order("callback").count(stock[0]) == 1
    assert bench.callback_states() == {"success": 4}
    assert states(bench) == {"done": 4}


@ON_SQLITE
def test_what_ended_while_it_was_off_is_done(airflow_database):
    bench = Bench()
    clock = FakeClock()
    bench.callbacks(6)
    with at_work(clock, 2, callback_loops=FOR_EVER) as (run, _, _):
        run(2)
    bury_schedulers()
    with at_work(clock, 2, settings=None) as (run, _, _):
        run(6)
        assert bench.callback_states() == {"queued": 2, "success": 4}
    # An executor of the first scheduler that lived on, as Celery does.
    for item in bench.items():
        set_state(item.callback_id, "success")
    with at_work(clock, 2) as (run, executor, allocator):
        run(2)
        assert executor.count("callback") == 0
        assert len(allocator.ledger) == 0
    assert states(bench) == {"done": 6}


@ON_SQLITE
@pytest.mark.parametrize("off", [False, True], ids=["control", "off for a while"])
def test_no_class_is_punished_for_the_time_that_it_was_off(airflow_database, off):
    """Stock gives callbacks all slots for a while; when tasks are owed half again, they get half, and not more."""
    bench = Bench()
    clock = FakeClock()
    bench.tasks(200)
    bench.callbacks(350)
    with at_work(clock, 4) as (run, _, _):
        run(10)
    if off:
        bury_schedulers()
        with at_work(clock, 4, settings=None) as (run, executor, _):
            run(40)
            assert executor.share("callback") > 0.8
    bury_schedulers()
    with at_work(clock, 4) as (run, executor, _):
        run(20)
        assert executor.share("callback") == pytest.approx(0.5, abs=0.06)


# Our tables are taken away -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("revision", [NONE, FLOWS_AND_ITEMS, REQUESTS])
def test_a_living_scheduler_goes_on_without_the_tables_and_with_them(airflow_database, revision, caplog):
    """It steps aside, and takes up its work when they are there again; it need not be restarted."""
    bench = Bench()
    clock = FakeClock()
    bench.tasks(4)
    bench.callbacks(4)
    with at_work(clock, 4, callback_loops=2) as (run, executor, allocator):
        run(2)
        migrate("downgrade", revision)
        bench.tasks(4)
        bench.callbacks(4)
        run(8)
        assert allocator.aside
        assert (executor.count("task"), executor.count("callback")) == (8, 8)
        assert bench.callback_states() == {"success": 8}
        assert "steps aside for 60 s: no " in caplog.text
        assert "run 'airflow db migrate'" in caplog.text

        migrate("upgradedb")
        clock.seconds += allocator.settings.sweep_interval_seconds + allocator.breaker.back_off_seconds
        bench.tasks(4)
        bench.callbacks(4)
        run(8)
        assert not allocator.aside
        assert len(allocator.ledger) == 0
    assert (executor.count("task"), executor.count("callback")) == (12, 12)
    assert bench.callback_states() == {"success": 12}
    assert states(bench) == {"done": 4 if revision == NONE else 8}
    assert bench.task_states() == {"success": 12}


def test_routed_callbacks_whose_tables_were_removed_fail_and_say_so(airflow_database):
    """Waiting, on their way and running: what they were to call nobody knows, and nobody waits for it."""
    routed = RoutedBench()
    clock = FakeClock()
    lost = routed.callbacks(4, batch=None)
    with at_work(clock, 2, callback_loops=FOR_EVER) as (run, _, _):
        run(2)
        [running, _] = sorted(each.callback_id for each in routed.bench.items() if each.state == "granted")
        set_state(running, "running")
    bury_schedulers()
    migrate("downgrade", NONE)
    migrate("upgradedb")
    kept = routed.callbacks(2, batch=None)
    deadlines = routed.bench.callbacks(2)
    with at_work(clock, reports=True) as (run, executor, _):
        run(6)
        assert set(executor.order("callback")) == {*kept, *deadlines}
    outputs = routed.bench.outputs()
    assert {outputs[each] for each in lost} == {FORGOTTEN}
    assert routed.bench.callback_states() == {"failed": 4, "success": 4}
    assert states(routed.bench) == {"done": 4}


@ON_SQLITE
def test_in_shadow_no_callback_is_failed(airflow_database):
    """The control: with ``mode = active`` nobody knows what to call any more."""
    routed = RoutedBench()
    clock = FakeClock()
    routed.callbacks(1)
    routed.bench.tasks(1)
    migrate("downgrade", NONE)
    migrate("upgradedb")
    settings = attrs.evolve(ACTIVE, callback_time_to_live_seconds=dict.fromkeys(CALLBACK_CLASSES, 5.0))
    shadow = attrs.evolve(settings, mode=Mode.SHADOW)
    with at_work(clock, 1, settings=shadow, task_loops=FOR_EVER) as (run, executor, _):
        run(1)
        clock.seconds += 61
        run(1)
        assert executor.count("task") == 1
    assert routed.bench.callback_states() == {"pending": 1}
    assert states(routed.bench) == {"waiting": 1}
    bury_schedulers()
    migrate("downgrade", NONE)
    migrate("upgradedb")
    with at_work(clock, 1, settings=settings) as (run, executor, _):
        run(1)
    assert routed.bench.callback_states() == {"failed": 1}


# Airflow goes down, up, and back to nothing -----------------------------------------------------------------------


def rows_of(url: str, *names: str) -> dict[str, list[Any]]:
    """All rows of tables, as they stand in the database."""
    engine = sa.create_engine(url)
    tables = sa.MetaData()
    try:
        tables.reflect(engine, only=names)
        with engine.connect() as connection:
            return {
                name: sorted(map(repr, connection.execute(tables.tables[name].select()))) for name in names
            }
    finally:
        engine.dispose()


def something_of_everything() -> RoutedBench:
    """Callbacks of both sorts, that wait and that have ended, with all rows that belong to them."""
    routed = RoutedBench()
    routed.callbacks(3, batch=None)
    routed.bench.callbacks(3)
    with at_work(FakeClock(), 2, reports=True) as (run, _, _):
        run(2)
    assert routed.bench.callback_states() == {"success": 4, "pending": 2}
    bury_schedulers()
    return routed


def finish(routed: RoutedBench) -> None:
    clock = FakeClock()
    clock.seconds += 61
    with at_work(clock, 4, reports=True) as (run, _, allocator):
        run(6)
        assert allocator.breaker.failures == 0


def test_airflow_is_downgraded_and_upgraded_with_our_rows_there(airflow_database):
    """To the oldest version that this library is made for; every row of both is what it was."""
    from airflow.utils import db

    routed = something_of_everything()
    names = ["callback", *metadata.tables, VERSION_TABLE]
    before = rows_of(airflow_database, *names)
    oldest = min(version for version in db._REVISION_HEADS_MAP if version.startswith("3.2."))
    db.downgrade(to_revision=db._REVISION_HEADS_MAP[oldest])
    assert rows_of(airflow_database, *names) == before
    db.upgradedb()
    assert rows_of(airflow_database, *names) == before
    finish(routed)
    assert routed.bench.callback_states() == {"success": 6}


def test_airflow_cleans_its_tables_and_ours_follow(airflow_database):
    from airflow.utils.db_cleanup import run_cleanup

    routed = something_of_everything()
    ours = rows_of(airflow_database, *metadata.tables)
    run_cleanup(
        clean_before_timestamp=START + timedelta(days=1),
        table_names=["callback", "job"],
        confirm=False,
        skip_archive=True,
    )
    assert rows_of(airflow_database, *metadata.tables) == ours
    finish(routed)
    assert set(routed.bench.callback_states()) == {"success"}
    assert set(states(routed.bench)) == {"done"}


WITHOUT = """
import importlib.util
assert importlib.util.find_spec("callback_priority") is None
from airflow.models.callback import Callback
from airflow.models.trigger import Trigger
from airflow.utils import db
from airflow.utils.session import create_session
from sqlalchemy import select
with create_session() as session:
    for each in session.scalars(select(Callback)):
        assert isinstance(each.data, dict), each.data
        print("read", type(each).__name__, each.state)
    for each in session.scalars(select(Trigger)):
        assert isinstance(each.kwargs, dict), each.kwargs
db.check_migrations(5)
db.upgradedb()
db.resetdb()
with create_session() as session:
    print("left", len(session.scalars(select(Callback)).all()))
"""


def test_without_the_package_airflow_reads_migrates_and_resets_what_is_its_own(
    airflow_database, airflow_home, tmp_path
):
    """Our tables are left alone; when the package is back, what is about callbacks that are gone is swept."""
    routed = something_of_everything()
    ours = rows_of(airflow_database, *metadata.tables)
    without = WithoutLibrary.create(tmp_path / "without")
    told = without.run(["-c", WITHOUT], airflow_home.subprocess_environment(airflow_database))
    assert told.count("read ExecutorCallback success") == 4
    assert told.count("read ExecutorCallback pending") == 2
    assert "left 0" in told
    assert rows_of(airflow_database, *metadata.tables) == ours
    finish(routed)
    assert set(states(routed.bench)) == {"done"}
    assert routed.bench.callback_states() == {}
