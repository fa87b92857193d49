"""Faults at every statement and call of the hook, each in turn: Airflow's scheduler does not notice.

One rich loop is watched first, so the points are those that the code has today. Then the same loop is run once for
each point, with a fault there. Whatever the point is: the loop ends well, every task instance that waits is started
in that very loop, and once the fault is gone all comes to the same end as if it had never been: no callback is lost,
and none is called twice.

No statement is exempt, and of the calls only two: the entry of what stands in the place of Airflow's method, which
holds nothing but the guard, and the guard's own call of that method (`EXEMPT`, `AIRFLOWS_OWN`). Each run of the tests
strikes at a share of them; ``make faults`` strikes at all, which takes half an hour.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections import Counter
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import attrs
import pytest
import sqlalchemy as sa

from callback_priority.core.classes import ServiceClass
from callback_priority.persistence.enqueueing import NewItem, enqueue, record_triggered
from callback_priority.persistence.tables import item_table, request_table, unit_table
from callback_priority.policy.settings import Mode, Settings
from tests.support.faults import CallPoint, Faults, FunctionPoint, StatementPoint
from tests.support.routed import RoutedBench
from tests.support.saved_rows import SavedRows
from tests.support.scheduler import START, FakeClock, LoopExecutor, hooked, scheduler

SETTINGS = Settings(mode=Mode.ACTIVE)
SLOTS = 30
LONG_AGO = START - timedelta(days=30)
TASKS = 6
DORMANT = "dormant"
ALL = os.environ.get("CALLBACK_PRIORITY_FAULTS") == "all"
EXEMPT = ("adapter/guard.py:guarded.<locals>.method", "adapter/guard.py:_Watched.__init__")
"""The entry of the guard, at which Airflow's own method is what runs."""
AIRFLOWS_OWN = "adapter/guard.py:_Watched.__call__"
"""What calls Airflow's method, and nothing else: an error there is Airflow's own, which is not to be hidden from it."""
ON_SQLITE = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
ON_BOTH_IF_ALL = pytest.mark.parametrize(
    "backend", ["sqlite", "postgresql"] if ALL else ["sqlite"], indirect=True
)

pytestmark = pytest.mark.timeout(3600 if ALL else 600)


@attrs.define
class World:
    """Rows that give a scheduler loop every kind of work there is, set aside to be put back for each fault.

    Most of them sleep through the first loop, which only brings workloads under way that end in the second.
    """

    url: str
    routed: RoutedBench = attrs.field(factory=RoutedBench)
    names: dict[uuid.UUID, str] = attrs.field(factory=dict)
    prompt: list[uuid.UUID] = attrs.field(init=False)
    rows: SavedRows = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        bench = self.routed.bench
        bench.pool("narrow", 4)
        bench.pool("wide", 8)
        # Under way when the fault strikes, and ended in that loop.
        bench.tasks(3)
        self.items(bench.callbacks(3))
        self.routed.callbacks(3, dag_id="early", batch="early", kind="dag_failure")
        awake = self.callbacks()
        # Asleep until then.
        bench.tasks(TASKS - 2, dag_id="later")
        bench.tasks(2, dag_id="later", pool="wide", width=2)
        self.add("default_pool", *bench.callbacks(6))
        self.add("narrow", *bench.callbacks(2))
        self.add("wide", *bench.callbacks(2))
        self.named("batch", self.routed.callbacks(14, batch="late", kind="task_failure"))
        self.named("alone", self.routed.callbacks(1, batch=None, kind="dag_success", pool="narrow"))
        self.prompt = list(self.names)
        # In the way.
        unfit = bench.callbacks(1, data={"dag_run_id": ...}, priority=9)
        self.items(self.named("unfit", unfit))
        self.named(
            "unfit, routed", self.routed.callbacks(1, data={"dag_run_id": ...}, batch=None, priority=9)
        )
        [nowhere, due, expired] = bench.callbacks(3, executor="Nowhere", priority=9)
        self.items([nowhere, due, expired], executor="Nowhere")
        self.names |= {expired: "expired"}
        taken = self.named("taken", bench.callbacks(1, state="success"))
        self.items([*taken, uuid.uuid4()])
        self.named("deadline", bench.deadlines(2))
        # For upkeep.
        self.named("no item", bench.callbacks(2))
        lost = self.named("no item, routed", self.routed.callbacks(1, batch=None))
        history, handed, dead = bench.callbacks(3)
        self.names |= {history: "history", handed: "never handed over", dead: "dead"}
        held = self.named("dead, routed", self.routed.callbacks(3, dag_id="dead", batch=None))
        self.items([history, handed, dead])
        ended = self.named("triggered", bench.callbacks(1, state="success"))
        self.triggered(ended)
        with self.transaction() as connection:
            change = sa.update(item_table)
            identity = item_table.c.callback_id
            connection.execute(sa.delete(item_table).where(identity.in_(lost)))
            connection.execute(
                change.where(identity.in_([due, expired])).values(state="parked", reason="gone")
            )
            connection.execute(
                change.where(identity == due).values(parked_at=START + timedelta(seconds=1_000))
            )
            connection.execute(change.where(identity == expired).values(parked_at=LONG_AGO))
            connection.execute(change.where(identity == history).values(state="done", finished_at=LONG_AGO))
            # Nobody's job is 0: its number is written once the scheduler's is known.
            granted = {"state": "granted", "granted_at": START, "attempts": 1, "charge": 1_000_000}
            connection.execute(change.where(identity == handed).values(scheduler_job_id=0, **granted))
            self.dead_scheduler(connection, [dead, *held], granted)
            connection.execute(
                sa.insert(request_table).values(
                    id=uuid.uuid4(),
                    dedupe_key="old",
                    kind="dag_failure",
                    dag_id="alerts",
                    run_id="run",
                    task_id="",
                    map_index=-1,
                    outcome="empty",
                    units=0,
                    received_at=LONG_AGO,
                )
            )
            callback = self.callback_table()
            connection.execute(sa.update(callback).where(callback.c.id == history).values(state="success"))
            connection.execute(
                sa.update(callback).where(callback.c.id.in_([handed, dead, *held])).values(state="queued")
            )
            self.put_to_sleep(connection, awake)
        self.rows = SavedRows(self.url)

    def named(self, name: str, ids):
        self.names |= dict.fromkeys(ids, name)
        return ids

    def add(self, pool: str, *ids) -> None:
        """Callbacks that wait and can go at once."""
        self.items(self.named(pool, ids), pool=pool)

    @staticmethod
    def callback_table() -> Any:
        from airflow.models.callback import Callback

        return Callback.__table__

    @staticmethod
    @contextmanager
    def transaction():
        from airflow.utils.session import create_session

        with create_session() as session:
            yield session.connection()

    def callbacks(self) -> list[uuid.UUID]:
        with self.transaction() as connection:
            return list(connection.scalars(sa.select(self.callback_table().c.id)))

    def items(self, ids, pool="default_pool", executor=None) -> None:
        run = self.routed.bench.dag("alerts")
        new = [
            NewItem(
                callback_id=each,
                service_class=ServiceClass.DEADLINE,
                kind="deadline",
                pool=pool,
                dag_id="alerts",
                dag_run_id=run,
                executor=executor,
            )
            for each in ids
        ]
        with self.transaction() as connection:
            enqueue(connection, new, now=START, turn_length_us=10_000_000, aging_us=600_000_000)

    def triggered(self, ids) -> None:
        new = [
            NewItem(
                callback_id=each,
                service_class=ServiceClass.DAG_CALLBACK,
                kind="dag_failure",
                pool="default_pool",
            )
            for each in ids
        ]
        with self.transaction() as connection:
            record_triggered(connection, new, now=START)

    @staticmethod
    def dead_scheduler(connection, ids, granted) -> None:
        from airflow.jobs.job import Job

        job = Job.__table__
        long_ago = datetime(2025, 1, 1, tzinfo=timezone.utc)
        [number] = connection.execute(
            sa.insert(job).values(
                job_type="SchedulerJob",
                state="running",
                latest_heartbeat=long_ago,
                start_date=long_ago,
                hostname="gone",
            )
        ).inserted_primary_key
        connection.execute(
            sa.update(item_table)
            .where(item_table.c.callback_id.in_(ids))
            .values(**granted, scheduler_job_id=number)
        )

    def put_to_sleep(self, connection, awake) -> None:
        """All but a few rows keep their state where nobody looks for it."""
        from airflow.models.deadline import Deadline
        from airflow.models.taskinstance import TaskInstance

        callback, instance, deadline = self.callback_table(), TaskInstance.__table__, Deadline.__table__
        asleep = callback.c.id.not_in(awake)
        connection.execute(sa.update(callback).where(asleep).values(output=callback.c.state, state=DORMANT))
        connection.execute(
            sa.update(item_table)
            .where(item_table.c.callback_id.not_in(awake))
            .values(kind=item_table.c.state, state=DORMANT)
        )
        connection.execute(sa.update(instance).where(instance.c.dag_id == "later").values(state="skipped"))
        connection.execute(sa.update(deadline).values(missed=True))

    def wake(self, job_id: int) -> None:
        from airflow.models.deadline import Deadline
        from airflow.models.taskinstance import TaskInstance

        callback, instance, deadline = self.callback_table(), TaskInstance.__table__, Deadline.__table__
        with self.transaction() as connection:
            connection.execute(
                sa.update(callback)
                .where(callback.c.state == DORMANT)
                .values(state=callback.c.output, output=None)
            )
            connection.execute(
                sa.update(item_table)
                .where(item_table.c.state == DORMANT)
                .values(state=item_table.c.kind, kind="deadline")
            )
            connection.execute(
                sa.update(item_table).where(item_table.c.state == "parked").values(retry_at=START)
            )
            connection.execute(
                sa.update(item_table)
                .where(item_table.c.scheduler_job_id == 0)
                .values(scheduler_job_id=job_id)
            )
            connection.execute(
                sa.update(instance).where(instance.c.dag_id == "later").values(state="scheduled")
            )
            connection.execute(sa.update(deadline).values(missed=False))

    def work(self, executor) -> None:
        """Have the workers call what they were handed, all in one transaction."""
        leaders = [
            uuid.UUID(key.id)
            for key, until in executor.inside.items()
            if executor.kind(key) == "callback" and until <= executor.now + 1
        ]
        callback = self.callback_table()
        executor.runs = runs = getattr(executor, "runs", [])
        if not leaders:
            return
        with self.transaction() as connection:
            riding: dict[Any, list[uuid.UUID]] = {each: [each] for each in leaders}
            for each, leader in connection.execute(
                sa.select(item_table.c.callback_id, item_table.c.leader_id).where(
                    item_table.c.leader_id.in_(leaders)
                )
            ):
                riding[leader].append(each)
            runs += riding.values()
            ids = [each for run in riding.values() for each in run]
            times = dict.fromkeys(("claimed_at", "started_at", "ended_at"), START)
            connection.execute(sa.update(unit_table).where(unit_table.c.callback_id.in_(ids)).values(**times))
            connection.execute(sa.update(callback).where(callback.c.id.in_(ids)).values(state="success"))

    def label(self, kind: str, callback_id: uuid.UUID) -> str:
        return f"{kind} {callback_id} ({self.names[callback_id]})"

    def fate(self) -> dict[str, str]:
        """What has become of every callback, item and task instance."""
        from airflow.models.taskinstance import TaskInstance

        callback, instance = self.callback_table(), TaskInstance.__table__
        with self.transaction() as connection:
            found: dict[str, str] = {}
            for kind, table, key in (("callback", callback, "id"), ("item", item_table, "callback_id")):
                for each, state in connection.execute(sa.select(table.c[key], table.c.state)):
                    if each in self.names:
                        found[self.label(kind, each)] = state
            given = sa.select(sa.func.count()).where(callback.c.type == "dag_processor")
            found["given to the Dag processor"] = str(connection.scalar(given))
            for each, state in connection.execute(sa.select(instance.c.task_id, instance.c.state)):
                found[f"task {each}"] = str(state)
        return found


class Episode:
    """One run of the loop with a fault, and what comes after.

    Args:
        world: What there is to do.
        faults: Strikes at the point.
        point: Where; nowhere if not given, and the points are recorded.
        fate: What becomes of everything in the end; the loops go on until it has, or for long enough.
        also: A function that is broken besides.
    """

    def __init__(
        self, world: World, faults: Faults, point: Any = None, fate: Any = None, also: Any = None
    ) -> None:
        self.world = world
        world.rows.put_back()
        clock = FakeClock()
        self.executor = executor = LoopExecutor(SLOTS, task_loops=2, callback_loops=2, clock=clock)
        executor.runs = []
        whole = executor.sync

        def sync() -> None:
            with faults.paused():  # what workers do is no part of the hook
                world.work(executor)
                whole()

        executor.sync = sync
        takes = executor._process_workloads

        def process_workloads(workloads: Any) -> None:
            with faults.paused():
                takes(workloads)

        executor._process_workloads = process_workloads
        with scheduler(executor, settings=SETTINGS, clock=clock) as run:
            runner = run(0)
            runner._scheduler_use_job_schedule = False  # no Dag is due
            self.allocator = runner._callback_priority
            run(1)
            world.wake(runner.job.id)
            executor.loops = dict.fromkeys(executor.loops, 1)
            clock.seconds += 100  # every timer is due
            self.error: Exception | None = None
            try:
                with faults.watching(point, also):
                    run(1)
            except Exception as error:  # noqa: BLE001 - what came through is what is looked for
                self.error = error
                return
            self.struck = faults.struck
            self.tasks = executor.count("task")
            self.loops = 0
            # Where a function failed at every call, so did the sweep that was to put it right; the next one does.
            at_every_call = isinstance(point, FunctionPoint)
            while self.loops < 2 + 2 * at_every_call and not (
                self.called() >= set(world.prompt) and self.is_empty()
            ):
                if at_every_call and self.loops == 2:
                    clock.seconds += SETTINGS.sweep_interval_seconds
                run(1)
                self.loops += 1
            self.fate = world.fate()
            self.prompt = {
                each
                for each in world.prompt
                if each in self.called() or self.fate.get(world.label("item", each)) == "parked"
            }
            while self.loops < (6 if fate is None else 9) and (fate is None or self.fate != fate):
                clock.seconds += 400
                run(1)
                self.loops += 1
                self.fate = world.fate()
            self.twice = [each for each, times in Counter(self.all_called()).items() if times > 1]
            self.empty = self.is_empty()

    def all_called(self) -> list[uuid.UUID]:
        return [each for run in self.executor.runs for each in run]

    def called(self) -> set[uuid.UUID]:
        return set(self.all_called())

    def is_empty(self) -> bool:
        executor = self.executor
        return not (
            executor.inside or executor.queued_tasks or executor.queued_callbacks or self.allocator.ledger
        )

    def problems(self, base: Episode) -> list[str]:
        """What is not as it must be."""
        if self.error is not None:
            return [f"the loop ended: {type(self.error).__name__}: {str(self.error)[:200]}"]
        found = []
        if not self.struck:
            found.append("it was not reached")
        if self.tasks != base.tasks:
            found.append(f"{self.tasks} instead of {base.tasks} task instances were started in the loop")
        if missing := set(self.world.prompt) - self.prompt:
            found.append(
                f"{len(missing)} callbacks did not go on: {Counter(map(self.world.names.get, missing))}"
            )
        if self.twice:
            found.append(f"called twice: {[self.world.names.get(each) for each in self.twice]}")
        if self.fate != base.fate:
            changed = {
                each: (self.fate.get(each), base.fate.get(each))
                for each in {*self.fate, *base.fate}
                if self.fate.get(each) != base.fate.get(each)
            }
            found.append(f"another end: {changed}")
        if not self.empty:
            found.append("slots are still held")
        return found


@pytest.fixture
def world(airflow_database, monkeypatch):
    from airflow import settings
    from airflow.models.dagrun import DagRun

    # Dag runs are not looked at: that is the dearest part of these loops, and no part of what is tested.
    monkeypatch.setattr(DagRun, "get_running_dag_runs_to_examine", classmethod(lambda cls, **_: []))
    if airflow_database.startswith("postgresql"):
        # Who waits for a lock here waits for ever: it is told of instead.
        with settings.engine.begin() as connection:
            connection.exec_driver_sql(
                f"ALTER DATABASE {connection.engine.url.database} SET lock_timeout = '10s'"
            )
        settings.engine.dispose()
    made = World(airflow_database)
    with hooked():
        yield made
    made.rows.close()


@pytest.fixture
def strike(world, capsys):
    """Runs an episode for each point; says how many there were, and fails with what went wrong at which."""

    def strike(what, base, points, lose=None, also=None):
        found = []
        began = time.perf_counter()
        logging.disable(logging.CRITICAL)
        try:
            for point in points:
                try:
                    episode = Episode(world, Faults(lose), point, base.fate, also)
                    problems = episode.problems(base)
                except Exception as error:  # noqa: BLE001 - at this point, and the others are struck all the same
                    problems = [f"a later loop ended: {type(error).__name__}: {str(error)[:300]}"]
                found += [f"{point}: {problem}" for problem in problems]
        finally:
            logging.disable(logging.NOTSET)
        with capsys.disabled():
            took = time.perf_counter() - began
            print(f"\n  {what}: {len(points)} points struck in {took:.0f} s", flush=True)  # noqa: T201 - counted aloud
        assert not found, "\n".join([f"{len(found)} problems", *found])

    return strike


@pytest.fixture
def watched(world):
    """The loop without a fault, after one that filled every cache; with the points that it has."""
    Episode(world, Faults())
    faults = Faults()
    base = Episode(world, faults)
    assert base.error is None
    assert not base.twice
    assert base.tasks == TASKS + 3
    assert base.prompt == set(world.prompt)
    states = {each.split("(")[-1]: state for each, state in base.fate.items() if each.startswith("callback")}
    assert states == {
        f"{name})": "failed" if name in ("unfit", "expired") else "success"
        for name in world.names.values()
        if name != "unfit, routed"
    }, "every kind of work is done in these loops"
    assert base.fate["given to the Dag processor"] == "1"
    return base, faults


def statements(faults, *ways):
    found = [each for each in faults.points if isinstance(each, StatementPoint)]
    assert len(found) >= 70
    return [attrs.evolve(each, how=way) for way in ways for each in found]


def some(points, one_in: int):
    """All of the points where all are asked for, else a share of them."""
    return points if ALL else points[::one_in]


def test_a_failing_statement_costs_tasks_nothing_and_callbacks_a_loop(world, strike, watched, backend):
    """Raised by the driver on SQLite; on PostgreSQL a real error of the server's, which fails its transaction."""
    base, faults = watched
    ways = ("raise",) if backend == "sqlite" else ("server", "raise") if ALL else ("server",)
    strike(f"statements that fail, {backend}", base, some(statements(faults, *ways), 4))


@ON_POSTGRESQL
def test_a_connection_lost_at_a_statement_costs_tasks_nothing_and_callbacks_a_loop(
    world, strike, watched, postgres
):
    """The server ends the connection as a statement arrives."""
    base, faults = watched
    admin = postgres.connect()

    def lose(connection):
        with admin.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))

    try:
        strike("statements whose connection is lost", base, some(statements(faults, "connection"), 8), lose)
    finally:
        admin.close()


@ON_BOTH_IF_ALL
def test_a_failing_function_costs_tasks_nothing_and_callbacks_a_loop(world, strike, watched, backend):
    """Every function of ours in turn, at each of its calls in that loop."""
    base, faults = watched
    functions = [each for each in faults.functions() if not any(exempt in str(each) for exempt in EXEMPT)]
    assert len(functions) >= 200
    strike(f"functions that fail, {backend}", base, some(functions, 15))


@ON_BOTH_IF_ALL
def test_a_failing_call_costs_tasks_nothing_and_callbacks_a_loop(world, strike, watched, backend):
    """Every place at which our code calls something, or is called, in turn, at its first call in that loop."""
    base, faults = watched
    calls = [
        each
        for each in faults.points
        if isinstance(each, CallPoint)
        and not any(exempt in each.callee for exempt in EXEMPT)
        and AIRFLOWS_OWN not in each.caller
    ]
    assert len(calls) >= 900
    strike(f"calls that fail, {backend}", base, some(calls, 75))


@ON_SQLITE
def test_what_deals_with_a_failure_may_fail_too(world, strike, watched):
    """Deciding fails, and then one of the calls that are only made because of that: logging, counting, giving up."""
    base, faults = watched
    [decide] = [each for each in faults.functions() if "slot_loop.py:decide:" in str(each)]
    more = Faults()
    assert Episode(world, more, None, base.fate, decide).error is None
    calls = [each for each in more.points if isinstance(each, CallPoint) and each not in faults.points]
    assert len(calls) >= 10
    strike("calls that fail while a failure is dealt with", base, some(calls, 2), also=decide)
