"""What becomes of callbacks whose scheduler, worker or message is gone, in Airflow's real scheduler."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import attrs
import pytest

from callback_priority.adapter.settlement import DIED, NOT_TAKEN
from callback_priority.core.classes import CALLBACK_CLASSES, ServiceClass
from callback_priority.persistence import units
from callback_priority.policy.settings import Mode, Settings
from tests.support.routed import RoutedBench, Workers
from tests.support.scheduler import START, Bench, FakeClock, LoopExecutor, scheduler

ON_SQLITE = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
ACTIVE = Settings(mode=Mode.ACTIVE)
FOR_EVER = 10**9


def everywhere(value: Any) -> dict[ServiceClass, Any]:
    return dict.fromkeys(CALLBACK_CLASSES, value)


@contextmanager
def at_work(
    slots: int = 4,
    *,
    settings: Settings = ACTIVE,
    executor: Any = None,
    clock: FakeClock | None = None,
    **options: Any,
) -> Iterator[tuple[Callable[[int], Any], Any, Any]]:
    """A scheduler: its loops, its executor and its allocator."""
    clock = clock or FakeClock()
    executor = executor or LoopExecutor(slots, clock=clock, **options)
    with scheduler(executor, settings=settings, clock=clock) as run:
        yield run, executor, run(0)._callback_priority


def bury(allocator: Any) -> None:
    """What Airflow writes of a scheduler whose heartbeat is too old."""
    from airflow.jobs.job import Job
    from airflow.utils.session import create_session

    with create_session() as session:
        session.get(Job, allocator.runner.job.id).state = "failed"


def claim(*ids: uuid.UUID, worker: str = "here:1", heartbeat_at: Any = None, started: bool = True) -> None:
    """What the API server writes when a worker asks for callbacks that are no request's."""
    from airflow.utils.session import create_session

    with create_session() as session:
        connection = session.connection()
        for each in ids:
            units.add_unit(connection, each, "builtins.print")
            units.claim(connection, {each: None}, worker=worker, now=START, heartbeat_at=heartbeat_at)
            if started:
                assert units.mark_started(connection, each, START)


def beat(*ids: uuid.UUID, at: Any) -> None:
    from airflow.utils.session import create_session

    with create_session() as session:
        assert units.beat(session.connection(), ids, claimed_at=START, now=at) == len(ids)


def end(callback_id: uuid.UUID, state: str = "success", output: str | None = None) -> None:
    from airflow.utils.session import create_session

    with create_session() as session:
        connection = session.connection()
        assert units.mark_ended(connection, callback_id, state=state, output=output, log=None, now=START)


def items(bench: Bench) -> dict[uuid.UUID, Any]:
    return {item.callback_id: item for item in bench.items()}


def states(bench: Bench) -> Counter[str]:
    return Counter(item.state for item in bench.items())


# The scheduler is gone ---------------------------------------------------------------------------------------------


@pytest.mark.contract
@pytest.mark.parametrize("as_airflow_sees_it", ["queued", "running"])
def test_a_dead_schedulers_callbacks_are_granted_again_up_to_their_limit(
    airflow_database, as_airflow_sees_it
):
    """Three schedulers die over it, and then it has failed, and says why."""
    from callback_priority.compat.keys import callback_key
    from callback_priority.compat.rows import events_say_what_runs

    bench = Bench()
    ids = bench.callbacks(3)
    for attempt in range(1, 4):
        with at_work(callback_loops=FOR_EVER) as (run, executor, allocator):
            run(2)
            if as_airflow_sees_it == "running":
                for each in ids:
                    executor.event_buffer[callback_key(each)] = ("running", None)
                run(1)
            state = as_airflow_sees_it if events_say_what_runs() else "queued"
            assert bench.callback_states() == {state: 3}
            assert {(item.attempts, item.failures) for item in bench.items()} == {(attempt, attempt - 1)}
        bury(allocator)
    with at_work() as (run, executor, allocator):
        run(2)
        assert executor.count("callback") == 0
    assert bench.callback_states() == {"failed": 3}
    reasons = {"the scheduler that had granted it is gone (attempt 3 was its last)"}
    assert set(bench.outputs().values()) == reasons
    assert states(bench) == {"done": 3}


@pytest.mark.contract
def test_airflows_own_check_takes_them_over_and_does_to_tasks_what_it_does(airflow_database):
    """At start and at intervals; task instances are reset as stock does it."""
    bench = Bench()
    bench.tasks(3)
    bench.callbacks(3)
    with at_work(6, task_loops=FOR_EVER, callback_loops=FOR_EVER) as (run, _, allocator):
        run(2)
    assert (bench.task_states(), bench.callback_states()) == ({"queued": 3}, {"queued": 3})
    bury(allocator)
    quiet = attrs.evolve(ACTIVE, sweep_interval_seconds=86_400.0)
    with at_work(6, settings=quiet) as (run, _, living):
        living.upkeep._sweep_at = living.clock() + 86_400
        assert living.runner.adopt_or_reset_orphaned_tasks() == 3
        assert (bench.task_states(), bench.callback_states()) == ({"None": 3}, {"pending": 3})
        assert {item.failures for item in bench.items()} == {1}
        run(3)
    assert bench.callback_states() == {"success": 3}


@ON_SQLITE
def test_with_the_mode_off_airflow_adopts_as_ever(airflow_database):
    bench = Bench()
    bench.tasks(2)
    with at_work(6, task_loops=FOR_EVER) as (run, _, allocator):
        run(2)
    bury(allocator)
    with scheduler(LoopExecutor(4)) as run:
        assert run(0).adopt_or_reset_orphaned_tasks() == 2


def test_a_worker_that_is_heard_of_keeps_what_it_has(airflow_database):
    """Whatever became of the scheduler: it is watched, and closed when it has ended."""
    bench = Bench()
    ids = bench.callbacks(2)
    with at_work(callback_loops=FOR_EVER) as (run, _, dead):
        run(2)
        claim(*ids, heartbeat_at=dead.utcnow())
    bury(dead)
    with at_work() as (run, executor, allocator):
        run(2)
        assert states(bench) == {"granted": 2}
        assert {item.scheduler_job_id for item in bench.items()} == {allocator.runner.job.id}
        for each in ids:
            end(each)
        allocator.clock.seconds += 61
        run(2)
        assert executor.count("callback") == 0
    assert (states(bench), bench.callback_states()) == ({"done": 2}, {"success": 2})
    assert {item.failures for item in bench.items()} == {0}


def test_a_worker_that_was_not_heard_of_has_lost_it(airflow_database):
    bench = Bench()
    [each] = bench.callbacks(1)
    with at_work(callback_loops=FOR_EVER) as (run, _, dead):
        run(2)
        claim(each, heartbeat_at=dead.utcnow() - timedelta(seconds=dead.recovery.silence_seconds + 60))
    bury(dead)
    with at_work() as (run, executor, _):
        run(3)
        assert executor.order("callback") == [each]
    assert bench.callback_states() == {"success": 1}


@ON_POSTGRESQL
def test_two_that_take_over_at_once_take_each_callback_once(airflow_database):
    from airflow.utils.session import create_session

    bench = Bench()
    bench.callbacks(60)
    with at_work(60, callback_loops=FOR_EVER) as (run, _, dead):
        run(4)
    assert bench.callback_states() == {"queued": 60}
    bury(dead)
    with at_work() as (_, _, one), at_work() as (_, _, other):
        both, found = threading.Barrier(2), []

        def take_over(allocator: Any) -> None:
            with create_session(scoped=False) as session:
                both.wait(20)
                found.append(allocator.recovery.take_over(session, allocator.utcnow()))

        threads = [threading.Thread(target=take_over, args=(each,)) for each in (one, other)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(60)
        assert sum(found) == 60
    assert {item.failures for item in bench.items()} == {1}
    assert bench.callback_states() == {"pending": 60}


class _CeleryWithoutABroker:
    """Airflow's CeleryExecutor with a result backend and no broker: nothing is sent, what is told is told by the backend."""

    def __new__(cls, clock: FakeClock) -> Any:
        from airflow.providers.celery.executors.celery_executor import CeleryExecutor

        class Executor(CeleryExecutor):
            __name__ = "CeleryExecutor"

            def start(self) -> None:
                pass

            def end(self) -> None:
                pass

            def sync(self) -> None:
                clock.seconds += 1
                super().sync()

            def _process_workloads(self, workload_items: Any) -> None:
                from celery.result import AsyncResult

                for each in workload_items:
                    key = each.callback.key
                    self.queued_callbacks.pop(key)
                    self.workloads[key] = AsyncResult(f"celery-{key.id}", app=self.celery_app)
                    self.running.add(key)
                    self.event_buffer[key] = ("queued", f"celery-{key.id}")

        return Executor(parallelism=8)


@pytest.fixture
def results(monkeypatch, tmp_path) -> Any:
    """A result backend that both schedulers see."""
    from airflow.providers.celery.executors import celery_executor_utils
    from celery import Celery

    app = Celery("tests", backend=f"db+sqlite:///{tmp_path}/results.db", broker="memory://")
    monkeypatch.setattr(celery_executor_utils, "create_celery_app", lambda _conf: app)
    return app.backend


@ON_SQLITE
def test_what_celery_knows_of_is_adopted(airflow_database, results):
    """One waits in the broker, one has started, one has ended while no scheduler looked; none is granted again."""
    bench = Bench()
    ids = bench.callbacks(3)
    clock = FakeClock()
    with at_work(executor=_CeleryWithoutABroker(clock), clock=clock) as (run, _, dead):
        run(2)
    assert {item.external_id for item in bench.items()} == {f"celery-{each}" for each in ids}
    bury(dead)
    results.store_result(f"celery-{ids[1]}", None, "STARTED")
    results.store_result(f"celery-{ids[2]}", 0, "SUCCESS")
    clock = FakeClock(seconds=2_000.0)
    with at_work(executor=_CeleryWithoutABroker(clock), clock=clock) as (run, executor, allocator):
        run(2)
        assert bench.callback_states() == {"queued": 2, "success": 1}
        assert {UUID(key.id) for key in executor.running} == set(ids[:2])
        assert allocator.in_flight.occupancy().total == 2, "they hold slots here"
        assert {item.scheduler_job_id for item in bench.items() if item.state == "granted"} == {
            allocator.runner.job.id
        }
        for each in ids[:2]:
            results.store_result(f"celery-{each}", 0, "SUCCESS")
        run(2)
        assert len(allocator.ledger) == 0
    assert (bench.callback_states(), states(bench)) == ({"success": 3}, {"done": 3})
    assert {(item.attempts, item.failures) for item in bench.items()} == {(1, 0)}


@ON_SQLITE
def test_what_celery_lost_is_granted_again(airflow_database, results):
    """A broker that forgot a message looks as one in which it waits; only for so long."""
    bench = Bench()
    waiting, started = bench.callbacks(2)
    clock = FakeClock()
    with at_work(executor=_CeleryWithoutABroker(clock), clock=clock) as (run, _, allocator):
        run(2)
        results.store_result(f"celery-{started}", None, "STARTED")
        clock.seconds += allocator.recovery.queued_seconds
        run(1)
        found = items(bench)
        assert (found[waiting].state, found[waiting].reason) == ("parked", NOT_TAKEN)
        assert found[started].state == "granted", "a worker without this library has it, as Celery says"
        clock.seconds += allocator.settings.callback_running_timeout_seconds
        run(1)
        assert items(bench)[started].failures == 1


# Events that come late ---------------------------------------------------------------------------------------------


def test_the_word_of_a_scheduler_that_was_taken_for_dead_does_not_count(airflow_database):
    """It was stopped for a while, and wakes up: its executor tells of an attempt that is not the present one."""
    bench = Bench()
    [each] = bench.callbacks(1)
    with at_work(callback_loops=2) as (run, executor, sleeper):
        run(2)
        bury(sleeper)
        with at_work(callback_loops=FOR_EVER) as (run_other, _, _):
            run_other(2)
            assert items(bench)[each].attempts == 2
            executor.report_end(next(iter(executor.inside)), "failed")
            run(2)
            assert bench.callback_states() == {"queued": 1}
            assert states(bench) == {"granted": 1}
            assert len(sleeper.ledger) == 0, "its own slot is free"


def test_a_scheduler_that_was_stopped_before_the_hand_over_hands_nothing_over(airflow_database):
    bench = Bench()
    ids = bench.callbacks(2)
    with at_work() as (run, executor, sleeper), at_work(callback_loops=FOR_EVER) as (run_other, other, _):
        whole = sleeper.hand_over

        def stopped(session: Any) -> int:
            if not other.started and sleeper.turn.granted:
                bury(sleeper)
                run_other(2)
                sleeper.clock.seconds += 31
            return whole(session)

        sleeper.hand_over = stopped
        run(2)
        assert sorted(other.order("callback")) == ids
        assert executor.count("callback") == 0
        assert len(sleeper.ledger) == 0
    assert {item.attempts for item in bench.items()} == {2}


@ON_SQLITE
def test_the_end_of_an_attempt_given_up_does_not_end_the_next(airflow_database):
    from airflow.models.callback import CallbackKey

    bench = Bench()
    [each] = bench.callbacks(1)
    settings = attrs.evolve(ACTIVE, callback_retry_delay_seconds=everywhere(0.0))
    with at_work(callback_loops=FOR_EVER, settings=settings) as (run, executor, allocator):
        run(2)
        allocator.clock.seconds += allocator.recovery.queued_seconds
        run(2)
        assert items(bench)[each].attempts == 2
        executor.event_buffer[CallbackKey(str(each))] = ("failed", "late")
        run(1)
        assert bench.callback_states() == {"queued": 1}
        executor.report_end(CallbackKey(str(each)), "success")
        run(1)
    assert bench.callback_states() == {"success": 1}


@pytest.mark.contract
@ON_SQLITE
def test_an_end_that_was_reported_and_not_written_is_found(airflow_database):
    """The worker said how it ended; the executor's event went down with a transaction."""
    bench = Bench()
    [each] = bench.callbacks(1)
    with at_work(callback_loops=FOR_EVER, fills_running=False) as (run, executor, allocator):
        run(2)
        claim(each)
        end(each, "failed", "ValueError: on purpose")
        executor.inside.clear()
        allocator.clock.seconds += 61
        run(2)
        assert len(allocator.ledger) == 0
    assert bench.outputs()[each] == "ValueError: on purpose"
    assert states(bench) == {"done": 1}


@ON_SQLITE
@pytest.mark.parametrize("event", ["success", "failed"])
def test_of_a_deadline_that_a_worker_claimed_its_row_says_how_it_ended(airflow_database, event):
    bench = Bench()
    ids = bench.callbacks(2)
    with at_work(callback_loops=2) as (run, executor, _):
        run(2)
        claim(*ids)
        end(ids[0], "failed", "ValueError: on purpose")
        end(ids[1], "success", "42")
        for key in list(executor.inside):
            executor.report_end(key, event)
        run(1)
    assert bench.outputs() == {ids[0]: "ValueError: on purpose", ids[1]: "42"}
    assert bench.callback_states() == {"failed": 1, "success": 1}
    assert states(bench) == {"done": 2}


@ON_SQLITE
def test_a_worker_that_dies_in_a_deadline_has_lost_an_attempt(airflow_database):
    bench = Bench()
    [each] = bench.callbacks(1)
    with at_work(callback_loops=2) as (run, executor, allocator):
        run(2)
        claim(each)
        executor.report_end(next(iter(executor.inside)), "failed")
        run(1)
        item = items(bench)[each]
        assert (item.state, item.reason, item.failures) == ("parked", DIED, 1)
        assert bench.callback_states() == {"pending": 1}
        assert (
            allocator.utcnow() + timedelta(seconds=14)
            < item.retry_at
            < allocator.utcnow() + timedelta(seconds=31)
        )
        allocator.clock.seconds += 31
        run(5)
    assert bench.callback_states() == {"success": 1}


# Retries and time to live ------------------------------------------------------------------------------------------


@ON_SQLITE
def test_a_failure_is_tried_again_where_that_is_asked_for(airflow_database):
    """The worker's report sets it to pending, and the scheduler counts and delays it: 5 s, then 10 s, then it stands."""
    routed = RoutedBench()
    [each] = routed.callbacks(1)
    settings = attrs.evolve(
        ACTIVE,
        callback_retry_on_failure=frozenset({ServiceClass.TASK_CALLBACK}),
        callback_retry_delay_seconds=everywhere(5.0),
    )

    def script(workers: Workers, leader: uuid.UUID, riding: list[uuid.UUID]) -> str:
        workers.claim(leader)
        workers.start(leader)
        if len(workers.runs) < 3:
            output = f"attempt {len(workers.runs)} failed: ValueError"
            workers._in_a_transaction(
                lambda conn: units.mark_attempt_failed(conn, leader, output=output, log=None)
            )
        else:
            workers.end(leader, state="failed", output="ValueError")
        return "failed"

    clock = FakeClock()
    executor = LoopExecutor(1, clock=clock)
    workers = Workers(executor, script)
    starts = []
    with at_work(settings=settings, executor=executor, clock=clock) as (run, _, _):
        for _ in range(40):
            known = len(workers.runs)
            run(2)
            starts += [clock.seconds] * (len(workers.runs) - known)
    assert len(workers.runs) == 3
    assert 2 <= starts[1] - starts[0] <= 8
    assert 5 <= starts[2] - starts[1] <= 13
    assert (routed.bench.callback_states(), routed.bench.outputs()[each]) == ({"failed": 1}, "ValueError")
    item = items(routed.bench)[each]
    assert (item.attempts, item.failures, item.state) == (3, 2, "done")


@ON_SQLITE
def test_what_has_waited_too_long_fails_and_is_never_granted(airflow_database):
    """Also where it is next in line when its time ends; what comes behind it goes at once."""
    bench = Bench()
    old = bench.callbacks(5)
    settings = attrs.evolve(ACTIVE, callback_time_to_live_seconds={ServiceClass.DEADLINE: 100.0})
    with at_work(2, settings=settings, callback_loops=FOR_EVER) as (run, executor, allocator):
        run(2)
        started = executor.order("callback")
        allocator.clock.seconds += 50
        young = bench.callbacks(1)
        allocator.upkeep.sweep_soon()
        run(1)
        allocator.clock.seconds += 49
        for key in list(executor.inside):
            executor.report_end(key, "success")
        run(3)
        assert executor.order("callback")[2:] == young
    outputs = bench.outputs()
    expired = set(old) - set(started)
    assert {outputs[each] for each in expired} == {"expired: it has waited longer than 100 s"}
    assert {items(bench)[each].state for each in expired} == {"done"}


@ON_SQLITE
def test_a_routed_callback_expires_too_and_does_not_go_to_the_dag_processor(airflow_database):
    routed = RoutedBench()
    routed.callbacks(2)
    routed.bench.pool("default_pool", 0)
    settings = attrs.evolve(ACTIVE, callback_time_to_live_seconds={ServiceClass.TASK_CALLBACK: 5.0})
    with at_work(2, settings=settings) as (run, _, allocator):
        allocator.clock.seconds += 61
        run(2)
    assert routed.bench.callback_states() == {"failed": 2}


# Nobody answers for it ---------------------------------------------------------------------------------------------


@pytest.mark.contract
def test_what_a_stock_scheduler_left_queued_is_found(airflow_database):
    """The library was off, and the scheduler died: nobody knows whose it was, and so it is given its time."""
    bench = Bench()
    queued, running = bench.callbacks(1, state="queued"), bench.callbacks(1, state="running")
    with at_work() as (run, _, allocator):
        run(2)
        assert states(bench) == {"granted": 2}
        allocator.clock.seconds += allocator.recovery.queued_seconds - 5
        run(1)
        assert bench.callback_states() == {"queued": 1, "running": 1}
        allocator.clock.seconds += 70
        run(1)
        assert items(bench)[queued[0]].failures == 1
        assert bench.callback_states() == {"pending": 1, "running": 1}
        allocator.clock.seconds += allocator.settings.callback_running_timeout_seconds
        run(1)
        assert items(bench)[running[0]].failures == 1
        allocator.clock.seconds += 61
        run(4)
    assert bench.callback_states() == {"success": 2}


@pytest.mark.contract
@ON_SQLITE
def test_a_callback_that_nobody_takes_frees_its_slot_and_fails_in_the_end(airflow_database):
    bench = Bench()
    bench.callbacks(1)
    with at_work(1, callback_loops=FOR_EVER) as (run, executor, allocator):
        for _ in range(3):
            run(3)
            assert len(allocator.ledger) == 1
            allocator.clock.seconds += allocator.recovery.queued_seconds
            run(1)
            assert len(allocator.ledger) == 0
            assert executor.running == set()
            allocator.clock.seconds += 700
    assert bench.callback_states() == {"failed": 1}
    assert set(bench.outputs().values()) == {f"{NOT_TAKEN} (attempt 3 was its last)"}


@ON_SQLITE
def test_time_in_which_nobody_could_look_is_no_silence(airflow_database):
    """The database was away for an hour: workers could not tell that they are there, and are given time to."""
    bench = Bench()
    [each] = bench.callbacks(1)
    with at_work(callback_loops=FOR_EVER) as (run, _, allocator):
        run(2)
        claim(each, heartbeat_at=START)
        for seconds in (61, 3_600):
            allocator.clock.seconds += seconds
            run(1)
        assert states(bench) == {"granted": 1}
        for _ in range(6):
            allocator.clock.seconds += 61
            run(1)
        assert items(bench)[each].failures == 1


@ON_SQLITE
def test_a_clock_that_is_set_gives_nobody_up(airflow_database):
    """The present jumps by a year, to and fro; workers are judged by a clock that never does."""
    bench = Bench()
    ids = bench.callbacks(2)
    with at_work(callback_loops=FOR_EVER) as (run, _, allocator):
        run(2)
        claim(*ids, heartbeat_at=START)
        true_time = allocator.utcnow
        for days in (366, -366, 0):
            allocator.utcnow = lambda days=days: true_time() + timedelta(days=days)
            for _ in range(3):
                allocator.clock.seconds += 61
                run(1)
                beat(*ids, at=allocator.utcnow())
        assert states(bench) == {"granted": 2}
        assert bench.callback_states() == {"running": 2}
