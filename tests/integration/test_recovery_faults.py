"""Faults that would lose a callback, run it twice, keep its slot, or show a state that is not so.

Each was one, or nearly: a scheduler that is stopped between two of its steps, an event that never comes, a report that
could not be made.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import attrs
import pytest

from callback_priority.core.classes import ServiceClass
from callback_priority.policy.settings import Mode
from tests.integration.test_recovery import (
    ACTIVE,
    FOR_EVER,
    ON_POSTGRESQL,
    ON_SQLITE,
    _CeleryWithoutABroker,
    at_work,
    bury,
    claim,
    end,
    everywhere,
    items,
    results,  # noqa: F401 - a fixture
    states,
)
from tests.support.routed import RoutedBench, read_units, set_state
from tests.support.scheduler import START, Bench, FakeClock, LoopExecutor, Statements

AT_MOST_ONCE = attrs.evolve(ACTIVE, callback_max_attempts=everywhere(1))
AT_ONCE = attrs.evolve(ACTIVE, callback_retry_delay_seconds=everywhere(0.0))


def key_of(callback_id: Any) -> Any:
    from airflow.models.callback import CallbackKey

    return CallbackKey(str(callback_id))


def transaction() -> Any:
    from airflow.utils.session import create_session

    return create_session(scoped=False)


# Attempts that were given up ---------------------------------------------------------------------------------------


@ON_SQLITE
def test_the_end_of_the_next_attempt_counts_where_no_late_one_can_come(airflow_database, results):  # noqa: F811
    """Celery is not asked for an attempt any more that was given up: the next end is that of the next attempt."""
    bench = Bench()
    [each] = bench.callbacks(1)
    clock = FakeClock()
    with at_work(executor=_CeleryWithoutABroker(clock), clock=clock, settings=AT_ONCE) as (run, _, allocator):
        run(2)
        clock.seconds += allocator.recovery.queued_seconds
        run(3)
        assert items(bench)[each].attempts == 2
        results.store_result(f"celery-{each}", 0, "SUCCESS")
        run(2)
        assert len(allocator.ledger) == 0
    assert (bench.callback_states(), states(bench)) == ({"success": 1}, {"done": 1})


@ON_SQLITE
def test_what_was_given_up_is_not_remembered_for_ever(airflow_database):
    """Callbacks that are over leave nothing behind, also where no end was ever reported."""
    routed = RoutedBench()
    routed.callbacks(3, batch=None)
    routed.bench.callbacks(3)
    with at_work(6, callback_loops=FOR_EVER, settings=AT_MOST_ONCE) as (run, _executor, allocator):
        run(2)
        allocator.clock.seconds += allocator.recovery.queued_seconds
        run(1)
        allocator.clock.seconds += 2 * allocator.settings.callback_running_timeout_seconds
        run(1)
        in_flight = allocator.in_flight
        assert (in_flight.abandoned, in_flight.routed, in_flight.running) == ({}, set(), set())


# Whose attempt it is -----------------------------------------------------------------------------------------------


def test_a_scheduler_that_was_stopped_while_it_settled_leaves_the_next_attempt_alone(airflow_database):
    """It had heard the end of its own attempt; when it goes on, another scheduler's attempt is under way."""
    bench = Bench()
    [each] = bench.callbacks(1)
    with at_work(callback_loops=FOR_EVER) as (run, _, sleeper):
        run(2)
        claim(each, heartbeat_at=sleeper.utcnow() - timedelta(days=1))
        bury(sleeper)
        with at_work(callback_loops=FOR_EVER) as (run_other, _, other):
            run_other(2)
            claim(each, worker="there:2", heartbeat_at=other.utcnow())
            with transaction() as session:
                sleeper.settlement.settle(session, [each], sleeper.utcnow())
            item = items(bench)[each]
            assert (item.state, item.attempts, item.failures) == ("granted", 2, 1)
            assert bench.callback_states() == {"running": 1}


@ON_SQLITE
def test_a_scheduler_gives_up_no_attempt_that_is_anothers(airflow_database):
    """Its own executor never says how its attempt ended; meanwhile another scheduler's goes on for long."""
    bench = Bench()
    [each] = bench.callbacks(1)
    clock = FakeClock()
    with at_work(callback_loops=FOR_EVER, clock=clock) as (run, executor, sleeper):
        run(2)
        bury(sleeper)
        with at_work(callback_loops=FOR_EVER) as (run_other, _, other):
            run_other(2)
            claim(each, worker="there:2", heartbeat_at=other.utcnow())
            clock.seconds += sleeper.recovery.queued_seconds + 60
            run(1)
            item = items(bench)[each]
            assert (item.state, item.attempts, item.failures) == ("granted", 2, 1)
            assert bench.callback_states() == {"running": 1}
            assert (len(sleeper.ledger), executor.running) == (0, set()), "its own slot is free"


def test_one_that_is_granted_is_not_unparked_by_a_scheduler_that_was_stopped(airflow_database):
    """It had read that a callback is due; when it goes on, that runs in another scheduler."""
    from callback_priority.persistence import items as queries

    bench = Bench()
    [each] = bench.callbacks(1)
    with at_work(callback_loops=FOR_EVER, settings=AT_ONCE) as (run, _, allocator):
        run(2)
        assert items(bench)[each].state == "granted"
        before = items(bench)[each]
        with transaction() as session:
            assert queries.unpark(session.connection(), [each], allocator.utcnow()) == 0
        assert items(bench)[each] == before


@ON_SQLITE
def test_a_slow_callback_of_airflows_own_step_is_its_executors_to_tell_of(airflow_database, results):  # noqa: F811
    """While the library stands aside Airflow hands callbacks over; the executor still knows that one runs."""
    bench = Bench()
    clock = FakeClock()
    with at_work(executor=_CeleryWithoutABroker(clock), clock=clock) as (run, _, allocator):
        allocator.breaker.open_until = clock() + 3
        [each] = bench.callbacks(1)
        run(4)
        assert bench.callback_states() == {"queued": 1}
        results.store_result(f"celery-{each}", None, "STARTED")
        clock.seconds += 61
        run(2)
        clock.seconds += allocator.recovery.queued_seconds + 60
        run(2)
        clock.seconds += 61
        run(2)
        assert items(bench)[each].failures == 0
        assert bench.callback_states() == {"queued": 1}


# Reports that could not be made ------------------------------------------------------------------------------------


@ON_SQLITE
def test_a_deadline_that_succeeded_and_could_not_tell_has_succeeded(airflow_database):
    """The API server was away for too long when it ended; the executor knows that it ended well."""
    bench = Bench()
    [each] = bench.callbacks(1)
    with at_work(callback_loops=FOR_EVER, settings=AT_MOST_ONCE) as (run, executor, _):
        run(2)
        claim(each, heartbeat_at=START)
        executor.report_end(key_of(each), "success")
        run(2)
    assert (bench.callback_states(), states(bench)) == ({"success": 1}, {"done": 1})
    assert read_units()[each].ended_at is not None


@ON_SQLITE
def test_a_hand_over_that_breaks_off_costs_no_attempt(airflow_database):
    bench = Bench()
    [each] = bench.callbacks(1)
    with at_work(settings=AT_MOST_ONCE) as (run, executor, allocator):

        def broken(session: Any, turn: Any) -> Any:
            if not turn.granted:
                return whole(session, turn)
            allocator.hand._overtaken = whole
            raise RuntimeError("on purpose")

        whole, allocator.hand._overtaken = allocator.hand._overtaken, broken
        run(3)
        assert len(allocator.ledger) == 0
        run(3)
        assert executor.order("callback") == [each]
    assert bench.callback_states() == {"success": 1}
    assert items(bench)[each].failures == 0


@ON_SQLITE
def test_a_deadline_that_no_broker_took_is_sent_again(airflow_database, results):  # noqa: F811
    """Celery could not be reached: nobody has called it, and it has not failed."""
    bench = Bench()
    [each] = bench.callbacks(1)
    clock = FakeClock()
    executor = _CeleryWithoutABroker(clock)
    sent = executor._process_workloads

    def unreachable(workload_items: Any) -> None:
        for workload in workload_items:
            executor.queued_callbacks.pop(workload.callback.key)
            executor.event_buffer[workload.callback.key] = ("failed", None)
        executor._process_workloads = sent

    executor._process_workloads = unreachable
    with at_work(executor=executor, clock=clock, settings=AT_ONCE) as (run, _, allocator):
        run(2)
        item = items(bench)[each]
        assert (item.attempts, item.failures, len(allocator.ledger)) == (1, 1, 0)
        run(3)
        results.store_result(f"celery-{each}", 0, "SUCCESS")
        run(2)
    assert bench.callback_states() == {"success": 1}


@ON_SQLITE
def test_a_token_is_valid_until_its_attempt_is_given_up(airflow_database):
    """Else a worker would be turned away, and the callback with it, after waiting in the broker for a while."""
    import jwt

    bench = Bench()
    bench.callbacks(1)
    settings = attrs.evolve(ACTIVE, callback_queued_timeout_seconds=5_000.0)
    with at_work(settings=settings) as (run, executor, _):
        whole, tokens = executor.queue_workload, []

        def queue_workload(workload: Any, session: Any) -> None:
            tokens.append(workload.token)
            whole(workload, session=session)

        executor.queue_workload = queue_workload
        run(2)
        claims = jwt.decode(tokens[0], options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] > 5_060


@ON_SQLITE
def test_a_clock_that_was_ahead_for_a_while_keeps_no_retry_waiting(airflow_database):
    bench = Bench()
    [each] = bench.callbacks(1)
    with at_work(callback_loops=FOR_EVER) as (run, executor, allocator):
        run(2)
        true_time = allocator.utcnow
        allocator.utcnow = lambda: true_time() + timedelta(days=366)
        claim(each)
        executor.report_end(key_of(each), "failed")
        run(1)
        assert items(bench)[each].state == "parked"
        allocator.utcnow = true_time
        allocator.clock.seconds += 61
        run(3)
        assert items(bench)[each].state == "granted"


# What others write -------------------------------------------------------------------------------------------------


@ON_SQLITE
@pytest.mark.parametrize("state", ["success", "failed"])
def test_a_callback_that_is_set_back_by_hand_runs_again(airflow_database, state):
    """Whatever a worker said of it the first time."""
    bench = Bench()
    [each] = bench.callbacks(1)
    routed = RoutedBench(bench)
    [other] = routed.callbacks(1, batch=None)
    with at_work(2, callback_loops=FOR_EVER) as (run, executor, allocator):
        run(2)
        claim(each, other)
        for one in (each, other):
            end(one, state, "the first time")
            executor.report_end(key_of(one), state)
        run(2)
        assert states(bench) == {"done": 2}
        for one in (each, other):
            set_state(one, "pending")
        allocator.clock.seconds += 61
        run(3)
        assert states(bench) == {"granted": 2}
        for row in read_units().values():
            assert (row.claimed_at, row.started_at, row.ended_at, row.worker) == (None,) * 4


@ON_SQLITE
def test_in_shadow_mode_nothing_expires(airflow_database):
    """Neither what has a time to live nor what was set aside while the mode was active."""
    bench = Bench()
    settings = attrs.evolve(ACTIVE, callback_time_to_live_seconds={ServiceClass.DEADLINE: 5.0})
    bench.callbacks(1, executor="gone.Executor")
    with at_work(1, settings=settings) as (run, _, _):
        run(2)
        assert states(bench) == {"parked": 1}
    bench.callbacks(2)
    bench.pool("default_pool", 0)
    shadow = attrs.evolve(settings, mode=Mode.SHADOW)
    clock = FakeClock(seconds=20_000.0)
    executor = LoopExecutor(1, clock=clock, callback_loops=FOR_EVER)
    with at_work(settings=shadow, executor=executor, clock=clock) as (run, _, allocator):
        run(1)
        clock.seconds += 100
        with Statements().recorded() as sent:
            run(3)
            bench.pool("default_pool", 8)
            run(3)
        assert "failed" not in bench.callback_states()
        assert not [each for each in sent.writes("callback") if "output" in each]
        assert allocator.upkeep._sweep_at > clock(), "it is not swept in each loop"


@ON_POSTGRESQL
def test_a_sweep_leaves_alone_what_another_scheduler_is_settling(airflow_database):
    """It finds an end that seems to be nobody's, and neither waits for the other nor writes over what that writes."""
    from sqlalchemy import select

    from callback_priority.persistence import sweep
    from callback_priority.persistence.tables import item_table

    bench = Bench()
    mine, theirs = bench.callbacks(2)
    with at_work(callback_loops=FOR_EVER) as (run, _, allocator):
        run(2)
        for each in (mine, theirs):
            set_state(each, "failed")
        with transaction() as other, transaction() as session:
            locked = select(item_table).where(item_table.c.callback_id == theirs).with_for_update()
            assert len(other.connection().execute(locked).all()) == 1
            settled = sweep.settle_foreign(session.connection(), now=allocator.utcnow(), limit=10)
        assert (settled.done, settled.requeued) == (1, 0)
    assert (items(bench)[mine].state, items(bench)[theirs].state) == ("done", "granted")


@ON_POSTGRESQL
def test_a_sweep_that_always_fails_does_not_stop_recovery(airflow_database, monkeypatch):
    """A row on which a later step fails again and again."""
    from callback_priority.persistence import sweep

    bench = Bench()
    [each] = bench.callbacks(1)
    with at_work(callback_loops=FOR_EVER, settings=AT_MOST_ONCE) as (run, _, allocator):
        run(2)

        def poisoned(*_: Any, **__: Any) -> Any:
            raise ValueError("on purpose")

        monkeypatch.setattr(sweep, "callbacks_without_item", poisoned)
        allocator.clock.seconds += allocator.recovery.queued_seconds
        run(1)
        assert bench.callback_states() == {"failed": 1}
        assert items(bench)[each].state == "done"


def test_airflow_revives_the_job_of_a_scheduler_that_wakes_up(airflow_database):
    """Else everything that it grants from then on would be taken from it again and again."""
    from airflow.jobs.job import Job

    with at_work() as (_, _, allocator):
        bury(allocator)
        job = allocator.runner.job
        job.heartbeat(heartbeat_callback=lambda **_: None)
        job.heartbeat(heartbeat_callback=lambda **_: None)
        with transaction() as session:
            assert session.get(Job, job.id).state == "running"
