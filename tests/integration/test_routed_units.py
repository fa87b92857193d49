"""Callbacks that this library routes, in Airflow's real scheduler: who shares a run, and how runs are settled."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import pairwise

import attrs
import pytest
from sqlalchemy import delete, update

from callback_priority.adapter import settlement as settlement_module
from callback_priority.adapter.routing import fallback
from callback_priority.core.classes import CALLBACK_CLASSES, ServiceClass
from callback_priority.persistence import items, settling, units
from callback_priority.persistence.flows import read_state
from callback_priority.persistence.tables import item_table, unit_table
from callback_priority.policy.settings import Mode, Settings
from tests.support.routed import RoutedBench, Workers, read_units, set_state, withdrawn
from tests.support.scheduler import START, Bench, FakeClock, LoopExecutor, Statements, scheduler

ACTIVE = Settings(mode=Mode.ACTIVE, callback_retry_delay_seconds=dict.fromkeys(CALLBACK_CLASSES, 0.0))
AT_MOST_ONCE = attrs.evolve(ACTIVE, callback_max_attempts=dict.fromkeys(CALLBACK_CLASSES, 1))
ON_SQLITE = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
TASK_CALLBACK, DAG_CALLBACK = ServiceClass.TASK_CALLBACK, ServiceClass.DAG_CALLBACK
DEAD = "the worker ended while it ran"


@pytest.fixture
def routed() -> RoutedBench:
    return RoutedBench()


@contextmanager
def at_work(slots: int = 1, *, script=Workers.work, settings: Settings = ACTIVE, **options):
    """A scheduler with an executor whose workers do as the script says: the loops, the workers, its allocator."""
    clock = FakeClock()
    executor = LoopExecutor(slots, clock=clock, **options)
    workers = Workers(executor, script)
    with scheduler(executor, settings=settings, clock=clock) as run:
        yield run, workers, run(0)._callback_priority


def dies_amid_its_first_run(workers: Workers, leader: uuid.UUID, riding: list[uuid.UUID]) -> str:
    """One ends well, the next is begun, the rest is not; from the second run on all goes well."""
    if len(workers.runs) > 1:
        return workers.work(leader, riding)
    workers.claim(leader, *riding)
    workers.start(leader, riding[0])
    workers.end(leader)
    return "failed"


def by_id(bench: Bench) -> dict[uuid.UUID, object]:
    return {item.callback_id: item for item in bench.items()}


def states(bench: Bench) -> Counter[str]:
    return Counter(item.state for item in bench.items())


def held(allocator) -> dict[object, int]:
    """The pool slots that callbacks hold, by class."""
    from airflow.utils.session import create_session

    with create_session() as session:
        state = read_state(
            session.connection(),
            living_since=START - timedelta(days=1),
            own_job_id=allocator.runner.job.id,
        )
    return {service_class: slots for (_, service_class), slots in state.held.items()}


# Who shares a run -------------------------------------------------------------------------------------------------


def test_eight_share_one_workload_and_one_slot(airflow_database, routed):
    ids = routed.callbacks(9)
    with at_work(1, callback_loops=2) as (run, workers, allocator):
        run(1)
        assert held(allocator) == {TASK_CALLBACK: 1}
        assert states(routed.bench) == {"granted": 8, "waiting": 1}
        items = by_id(routed.bench)
        leader = workers.executor.order("callback")[0]
        assert items[leader].leader_id is None
        assert {items[each].leader_id for each in ids[:8]} == {None, leader}
        assert [items[each].charge > 0 for each in ids[:8]] == [True] + [False] * 7
        run(8)
    assert workers.runs == [ids[:8], ids[8:]]
    assert routed.bench.callback_states() == {"success": 9}
    assert states(routed.bench) == {"done": 9}
    assert len(allocator.ledger) == 0


@ON_SQLITE
def test_where_slots_are_free_for_all_each_has_its_own(airflow_database, routed):
    ids = routed.callbacks(4)
    with at_work(8) as (run, workers, _):
        run(3)
    assert workers.runs == [[each] for each in ids]


@ON_SQLITE
def test_where_slots_are_scarce_a_batch_takes_no_more_of_them_than_it_has_runs(airflow_database, routed):
    """Tasks get the slots that four of one batch would have taken, had each had its own."""
    ids = routed.callbacks(4)
    routed.bench.tasks(40)
    with at_work(8) as (run, workers, _):
        run(2)
        assert workers.runs == [ids]
        assert workers.executor.started[:1] == [(0, "callback", workers.executor.started[0][2])]
        assert Counter(kind for at, kind, _ in workers.executor.started if at == 0) == {
            "callback": 1,
            "task": 7,
        }


@ON_SQLITE
def test_a_long_batch_keeps_its_class_at_its_share(airflow_database, routed):
    """Sharing runs must not look like having nothing to do: 4 of 8 slots, each for a full run."""
    routed.callbacks(100)
    routed.bench.tasks(40)
    with at_work(8) as (run, workers, _):
        run(1)
    assert Counter(kind for _, kind, _ in workers.executor.started) == {"callback": 4, "task": 4}
    assert [len(each) for each in workers.runs] == [8, 8, 8, 8]


@ON_SQLITE
def test_only_a_batch_is_shared(airflow_database, routed):
    first = routed.callbacks(3, batch="one")
    second = routed.callbacks(3, batch="two", dag_id="other")
    alone = routed.callbacks(2, batch=None, dag_id="third")
    deadlines = routed.bench.callbacks(2, dag_id="fourth")
    with at_work(1, settings=attrs.evolve(ACTIVE, callback_batch_size=2)) as (run, workers, _):
        run(20)
    assert sorted(map(sorted, workers.runs)) == sorted(
        [first[:2], first[2:], second[:2], second[2:], *([each] for each in alone + deadlines)]
    )


@ON_SQLITE
def test_a_batch_size_of_one_shares_nothing(airflow_database, routed):
    ids = routed.callbacks(4)
    with at_work(1, settings=attrs.evolve(ACTIVE, callback_batch_size=1)) as (run, workers, _):
        run(8)
    assert workers.runs == [[each] for each in ids]


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_a_companion_that_somebody_has_locked_is_passed_over(airflow_database, routed):
    import sqlalchemy as sa
    from airflow.models.callback import Callback

    ids = routed.callbacks(4)
    table = Callback.__table__
    engine = sa.create_engine(airflow_database)
    with at_work(1) as (run, workers, _):
        with engine.begin() as connection:
            connection.execute(sa.select(table.c.id).where(table.c.id == ids[1]).with_for_update())
            run(2)
        assert workers.runs == [[ids[0], ids[2], ids[3]]]
        run(4)
    assert workers.runs[1:] == [[ids[1]]]
    engine.dispose()


def test_it_takes_two_statements_more_however_many(airflow_database, routed):
    counts = {}
    for batch in (None, "batch"):
        for count in (2, 60):
            with at_work(8 if count > 8 else 1, callback_loops=2) as (run, _, _):
                run(1)
                routed.callbacks(count, batch=batch)
                with Statements().recorded() as statements:
                    run(1)
                counts[batch, count] = sum("callback_priority_item" in each for each in statements.sent)
                run(40)
    assert counts["batch", 60] == counts["batch", 2]
    assert counts["batch", 2] == counts[None, 2] + 2
    assert states(routed.bench) == {"done": 2 * 62}


# Who is next ------------------------------------------------------------------------------------------------------


def test_a_dags_two_hundred_failures_hold_back_no_other_dag(airflow_database, routed):
    """The other Dag's starts within the first two grants of its class."""
    routed.callbacks(200, dag_id="mapped", batch="mapped")
    [other] = routed.callbacks(1, dag_id="other", batch="other")
    with at_work(1) as (run, workers, allocator):
        run(3)
        assert [other] in workers.runs[:2]
        run(60)
    assert routed.bench.callback_states() == {"success": 201}
    assert len(workers.runs) == 26
    assert len(allocator.ledger) == 0


@ON_SQLITE
@pytest.mark.parametrize("weights", [(1000, 1000, 1000), (1000, 1000, 2000)])
def test_classes_share_slot_time_by_weight(airflow_database, routed, weights):
    """Tasks, task callbacks and Dag callbacks always waiting; who holds the slots for how long."""
    by_class = dict(zip([ServiceClass.TASK, TASK_CALLBACK, DAG_CALLBACK], weights, strict=True))
    routed.bench.pool("default_pool", 100_000)
    routed.bench.tasks(700)
    kinds = dict.fromkeys(routed.callbacks(700, kind="task_retry", batch=None), TASK_CALLBACK)
    kinds |= dict.fromkeys(routed.callbacks(700, kind="dag_failure", batch=None), DAG_CALLBACK)
    settings = attrs.evolve(ACTIVE, weights=by_class)
    taken: Counter[ServiceClass] = Counter()
    with at_work(8, settings=settings) as (run, workers, _):
        run(120)
        for _, kind, key in workers.executor.started:
            taken[kinds[uuid.UUID(key.id)] if kind == "callback" else ServiceClass.TASK] += 1
    assert taken.total() >= 0.95 * 8 * 120
    for service_class, weight in by_class.items():
        assert taken[service_class] / taken.total() == pytest.approx(weight / sum(weights), abs=0.03)


# Settling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["success", "failed"])
def test_what_was_reported_is_what_stands(airflow_database, routed, event):
    """An executor's event overwrites neither a failure nor a success that the worker reported."""
    ids = routed.callbacks(3)

    def script(workers, leader, riding):
        workers.claim(leader, *riding)
        workers.start(leader, *riding)
        workers.end(leader, state="failed", output="ValueError: on purpose")
        workers.end(*riding)
        return event

    with at_work(1, script=script) as (run, _, allocator):
        run(3)
    outputs = routed.bench.outputs()
    assert routed.bench.callback_states() == {"failed": 1, "success": 2}
    assert outputs[ids[0]] == "ValueError: on purpose"
    assert outputs[ids[1]] is None
    assert states(routed.bench) == {"done": 3}
    assert len(allocator.ledger) == len(allocator.in_flight.routed) == 0


def test_what_a_worker_died_in_runs_again_and_so_does_what_it_had_not_begun(airflow_database, routed):
    """Each by itself: what ends its worker each time must not take others with it."""
    ids = routed.callbacks(4)

    with at_work(1, script=dies_amid_its_first_run) as (run, workers, allocator):
        run(1)
        assert states(routed.bench) == {"done": 1, "waiting": 3}
        assert routed.bench.callback_states() == {"success": 1, "pending": 3}
        assert {unit.claimed_at for unit in read_units().values() if unit.ended_at is None} == {None}
        run(6)
    assert workers.runs == [ids, *([each] for each in ids[1:])]
    assert routed.bench.callback_states() == {"success": 4}
    assert [by_id(routed.bench)[each].attempts for each in ids] == [1, 2, 2, 2]
    assert [by_id(routed.bench)[each].failures for each in ids] == [0, 1, 1, 1]
    assert all(unit.ended_at is not None for unit in read_units().values())
    assert len(allocator.ledger) == 0


def test_at_most_once_is_kept_where_it_is_asked_for(airflow_database, routed):
    """What a worker died in has failed; what it had certainly not begun runs again all the same."""
    ids = routed.callbacks(4)

    with at_work(1, script=dies_amid_its_first_run, settings=AT_MOST_ONCE) as (run, workers, _):
        run(6)
    assert workers.runs == [ids, *([each] for each in ids[2:])]
    assert routed.bench.callback_states() == {"success": 3, "failed": 1}
    assert routed.bench.outputs()[ids[1]] == f"{DEAD} (attempt 1 was its last)"


def test_three_workers_may_end_before_it_runs_and_no_more(airflow_database, routed):
    ids = routed.callbacks(2)

    def script(workers, leader, riding):
        workers.claim(leader, *riding)
        return "failed"

    with at_work(1, script=script, settings=AT_MOST_ONCE) as (run, workers, allocator):
        run(12)
    assert workers.runs[0] == ids
    assert sorted(workers.runs[1:]) == sorted([[each] for each in ids] * 2)
    assert routed.bench.callback_states() == {"failed": 2}
    assert set(routed.bench.outputs().values()) == {"its worker ended before it ran (attempt 3 was its last)"}
    assert states(routed.bench) == {"done": 2}
    assert len(allocator.ledger) == 0


@ON_SQLITE
def test_only_workers_that_took_it_and_ended_are_counted(airflow_database, routed):
    """Four workers never take it, two take it and end, and the next one runs it."""
    ids = routed.callbacks(2, batch=None, per_request=2)
    doings = ["nothing"] * 4 + ["claim"] * 2

    def script(workers, leader, riding):
        if leader == ids[0] or not doings:
            return workers.work(leader, riding)
        if doings.pop(0) == "claim":
            workers.claim(leader)
        return "failed"

    with at_work(1, script=script) as (run, workers, allocator):
        for _ in range(6):
            run(3)
            allocator.clock.seconds += 61
        run(6)
    assert workers.runs == [[ids[0]], *[[ids[1]]] * 7]
    assert routed.bench.callback_states() == {"success": 2}
    assert [by_id(routed.bench)[each].failures for each in ids] == [0, 2]
    assert by_id(routed.bench)[ids[1]].attempts == 7


def test_what_no_worker_takes_goes_back_to_the_dag_processor(airflow_database, routed):
    """Every request of the run: the worker is without the library, or an older one."""
    ids = routed.callbacks(6, per_request=2)
    with at_work(1, script=lambda *_: "failed") as (run, workers, allocator):
        run(4)
    assert workers.runs == [ids]
    assert withdrawn() == dict.fromkeys(ids, settlement_module.NOT_TAKEN)
    assert routed.bench.callback_states() == {}
    assert routed.bench.items() == []
    assert len(allocator.ledger) == 0


@ON_SQLITE
def test_what_fails_and_what_goes_back_is_counted(airflow_database, routed, monkeypatch):
    from callback_priority.adapter import metrics

    counted: Counter[str] = Counter()

    def incr(name, number=1, *_args, **_options):
        counted[name] += number

    monkeypatch.setattr(metrics.stats, "incr", incr)
    lost = routed.callbacks(1, batch="lost")
    routed.callbacks(4, dag_id="untaken", batch="untaken", per_request=2)
    never = routed.bench.callbacks(1, dag_id="deadline", data={"dag_run_id": "none"})

    def script(workers, leader, riding):
        if leader in lost:
            workers.claim(leader)
            workers.start(leader)
        return "failed"

    with at_work(1, script=script, settings=AT_MOST_ONCE) as (run, _, _):
        run(6)
    assert len(withdrawn()) == 4
    assert routed.bench.outputs().keys() == {*lost, *never}
    assert counted["callback_priority.callbacks_failed"] == 2
    assert counted["callback_priority.callbacks_withdrawn"] == 4
    assert counted["callback_priority.requests"] == 2
    assert counted["callback_priority.callbacks_granted"] == 5
    assert counted["callback_priority.failures"] == 0


def test_a_request_that_has_begun_is_set_aside_until_its_time_to_live_ends(airflow_database, routed):
    """Its first callable ran, so the Dag processor must not run it again; its second finds no worker any more."""
    ids = routed.callbacks(2, batch=None, per_request=2)

    def script(workers, leader, riding):
        return workers.work(leader, riding) if leader == ids[0] else "failed"

    with at_work(1, script=script) as (run, workers, allocator):
        run(4)
        item = by_id(routed.bench)[ids[1]]
        assert (item.state, item.reason) == ("parked", settlement_module.NOT_TAKEN)
        assert routed.bench.callback_states() == {"success": 1, "pending": 1}
        allocator.clock.seconds += 61
        run(3)
        assert workers.runs.count([ids[1]]) == 2, "looked at again after a while"
        allocator.clock.seconds += 4_000
        run(3)
    assert routed.bench.callback_states() == {"success": 1, "failed": 1}
    assert routed.bench.outputs()[ids[1]].startswith("expired after 3600 s: no worker took it")
    assert withdrawn() == {}
    assert states(routed.bench) == {"done": 2}
    assert len(allocator.ledger) == 0


def test_a_request_that_cannot_be_taken_back_stops_no_other(airflow_database, routed, monkeypatch):
    ids = routed.callbacks(3)
    whole = fallback.withdraw
    calls = []

    def withdraw(session, request_id, reason):
        calls.append(request_id)
        if len(calls) == 1:
            session.connection().exec_driver_sql("SELECT nothing FROM nowhere")
        return whole(session, request_id, reason)

    monkeypatch.setattr(fallback, "withdraw", withdraw)
    with at_work(1, script=lambda *_: "failed") as (run, _, allocator):
        run(1)
    went = withdrawn()
    assert len(went) == 2
    assert went.keys() < set(ids)
    assert states(routed.bench) == {"parked": 1}
    assert routed.bench.callback_states() == {"pending": 1}
    assert len(allocator.ledger) == 0


def test_that_one_runs_is_the_workers_to_say(airflow_database, routed):
    """Airflow would call it running as soon as a process has it, and queued ones could not be told from it."""
    from airflow.models.callback import CallbackKey

    [each] = routed.callbacks(1)
    with at_work(1, callback_loops=3) as (run, workers, _):
        run(1)
        workers.executor.event_buffer[CallbackKey(str(each))] = ("running", None)
        run(1)
        assert routed.bench.callback_states() == {"queued": 1}
        assert states(routed.bench) == {"granted": 1}
        run(3)
    assert routed.bench.callback_states() == {"success": 1}


@ON_SQLITE
def test_in_shadow_mode_airflow_handles_events_as_it_does(airflow_database, routed):
    ids = routed.callbacks(2)
    settings = attrs.evolve(ACTIVE, mode=Mode.SHADOW)
    with at_work(4, script=lambda *_: "failed", settings=settings) as (run, workers, _):
        run(4)
    assert sorted(workers.runs) == [[each] for each in ids]
    assert set(routed.bench.outputs().values()) == {"Execution failed"}


def test_a_run_that_could_not_be_settled_is_by_the_next_sweep(airflow_database, routed, monkeypatch):
    ids = routed.callbacks(3)

    def broken(*_args):
        raise ValueError("broken on purpose")

    with at_work(1, script=dies_amid_its_first_run, settings=AT_MOST_ONCE) as (run, _, allocator):
        with monkeypatch.context() as patch:
            patch.setattr(settling, "runs", broken)
            allocator.upkeep.sweep_soon = lambda: None
            run(1)
        assert len(allocator.ledger) == 0, "its slot is free whatever became of it"
        assert states(routed.bench) == {"granted": 3}
        del allocator.upkeep.sweep_soon
        allocator.upkeep.sweep_soon()
        run(1)
        assert routed.bench.outputs()[ids[1]] == f"{DEAD} (attempt 1 was its last)"
        run(3)
    assert routed.bench.callback_states() == {"success": 2, "failed": 1}
    assert states(routed.bench) == {"done": 3}


def test_what_a_dead_scheduler_left_behind_is_granted_by_another(airflow_database, routed):
    """Its executor's queue died with it. What a worker has stays with that worker."""
    from airflow.jobs.job import Job
    from airflow.utils.session import create_session

    taken = routed.callbacks(2, batch="taken")
    left = routed.callbacks(3, batch="left", dag_id="other")
    with at_work(2, callback_loops=10**9) as (run, workers, dead):
        run(1)
        workers.claim(*taken, heartbeat_at=dead.utcnow())
        assert states(routed.bench) == {"granted": 5}
    with at_work(2) as (run, workers, allocator):
        run(2)
        assert workers.runs == [], "it may be slow, or only another scheduler"
        with create_session() as session:
            session.get(Job, dead.runner.job.id).state = "failed"
        allocator.upkeep.sweep_soon()
        run(6)
        assert sorted(each for run_ids in workers.runs for each in run_ids) == left
        assert len(allocator.ledger) == 0
    found = by_id(routed.bench)
    assert Counter(found[each].state for each in taken) == {"granted": 2}
    assert {found[each].scheduler_job_id for each in taken} == {allocator.runner.job.id}, "it is watched"
    assert {found[each].failures for each in left} == {1}


@ON_SQLITE
def test_a_run_whose_worker_falls_silent_is_given_up(airflow_database, routed):
    """By the clock of the scheduler that watches it: as long as its sign changes, it is there."""
    ids = routed.callbacks(2)
    with at_work(1, callback_loops=10**9, settings=AT_MOST_ONCE) as (run, workers, allocator):
        run(2)
        workers.claim(*ids, heartbeat_at=START)
        workers.start(ids[0])
        for beats in range(1, 11):
            allocator.clock.seconds += 61
            run(1)
            workers.beat(*ids, at=START + timedelta(seconds=beats))
        assert states(routed.bench) == {"granted": 2}
        for _ in range(7):
            allocator.clock.seconds += 61
            run(1)
        assert routed.bench.outputs()[ids[0]] == f"{DEAD} (attempt 1 was its last)"
        assert {unit.claimed_at for unit in read_units().values() if unit.started_at is None} == {None}
        assert by_id(routed.bench)[ids[1]].leader_id is None


def test_a_silent_worker_does_not_keep_the_executors_slot(airflow_database, routed):
    """CeleryExecutor counts what it has heard nothing of as running, for ever."""
    ids = routed.callbacks(2, batch=None)
    settings = attrs.evolve(AT_MOST_ONCE, callback_running_timeout_seconds=300.0)
    with at_work(1, callback_loops=10**9, settings=settings) as (run, workers, allocator):
        run(2)
        workers.claim(ids[0])
        workers.start(ids[0])
        for _ in range(6):
            allocator.clock.seconds += 61
            run(1)
        assert workers.executor.running == set()
        assert workers.executor.event_buffer == {}
        assert len(allocator.ledger) == 0
        assert allocator.in_flight.occupancy().free == {"0:_LoopExecutor": 1}
        assert routed.bench.outputs()[ids[0]] == f"{DEAD} (attempt 1 was its last)"
        run(1)
        assert workers.executor.order("callback") == ids


def test_what_was_lost_on_its_way_goes_back_to_the_dag_processor(airflow_database, routed):
    """A message that was lost, a queue without workers, a process that died before it took the run."""
    ids = routed.callbacks(3)
    with at_work(1, callback_loops=10**9) as (run, workers, allocator):
        run(2)
        allocator.clock.seconds += allocator.recovery.queued_seconds - 10
        run(1)
        assert states(routed.bench) == {"granted": 3}, "its token is still valid"
        allocator.clock.seconds += 61
        run(2)
        assert withdrawn() == dict.fromkeys(ids, settlement_module.NOT_TAKEN)
        assert routed.bench.items() == []
        assert workers.executor.running == set()
        assert len(allocator.ledger) == 0


@ON_SQLITE
def test_what_was_lost_on_its_way_is_set_aside_if_its_request_has_begun(airflow_database, routed):
    ids = routed.callbacks(2, batch=None, per_request=2)
    with at_work(2, callback_loops=10**9) as (run, workers, allocator):
        run(2)
        workers.claim(ids[0])
        workers.start(ids[0])
        allocator.clock.seconds += allocator.recovery.queued_seconds + 1
        run(1)
        found = by_id(routed.bench)
        assert [found[each].state for each in ids] == ["granted", "parked"]
        assert found[ids[1]].reason == settlement_module.NOT_TAKEN
        allocator.clock.seconds += 61
        run(2)
        assert workers.executor.order("callback") == [*ids, ids[1]], "it is handed out anew"
    assert withdrawn() == {}


@ON_SQLITE
def test_what_an_executor_never_dispatched_is_no_longer_in_its_queue(airflow_database, routed):
    routed.callbacks(1)
    with at_work(1, takes=0) as (run, workers, allocator):
        run(2)
        assert len(workers.executor.queued_callbacks) == 1
        allocator.clock.seconds += allocator.recovery.queued_seconds + 1
        run(1)
        assert workers.executor.queued_callbacks == {}
    assert len(withdrawn()) == 1


@ON_SQLITE
def test_an_executor_that_cannot_let_go_does_not_keep_it_from_being_settled(
    airflow_database, routed, monkeypatch
):
    ids = routed.callbacks(1)
    with at_work(1, callback_loops=10**9) as (run, workers, allocator):
        run(2)

        def change_state(*_args, **_options):
            raise RuntimeError("broken on purpose")

        monkeypatch.setattr(workers.executor, "change_state", change_state)
        allocator.clock.seconds += allocator.recovery.queued_seconds + 1
        run(1)
    assert withdrawn().keys() == set(ids)


@ON_SQLITE
def test_celerys_own_map_forgets_what_is_abandoned(airflow_database):
    from airflow.models.callback import CallbackKey
    from airflow.providers.celery.executors.celery_executor import CeleryExecutor

    from callback_priority.adapter.inflight import InFlight

    executor = CeleryExecutor(parallelism=4)
    lost, other = CallbackKey(str(uuid.uuid4())), CallbackKey(str(uuid.uuid4()))
    in_flight = InFlight([executor], FakeClock())
    for key in (lost, other):
        executor.running.add(key)
        executor.workloads[key] = object()
        in_flight.hold(key, TASK_CALLBACK, next(iter(in_flight.by_label)), charge=0)
    in_flight.abandon(lost)
    assert executor.running == executor.workloads.keys() == {other}
    assert executor.event_buffer == {}
    assert lost not in in_flight.ledger
    assert lost in in_flight.routed, "should it be told of after all, Airflow is not to write that down"
    assert in_flight.occupancy().total == 1


@ON_SQLITE
def test_a_run_whose_local_process_was_killed_is_settled_by_the_next_sweep(airflow_database, routed):
    """A process of LocalExecutor's that is killed says nothing. One that lives is left alone, known or not."""
    import subprocess
    import sys

    from airflow.executors.local_executor import LocalExecutor
    from airflow.utils.net import get_hostname
    from airflow.utils.session import create_session

    class Silent(LocalExecutor):
        def start(self):
            self.workers = {}

        def sync(self):
            clock.seconds += 1

        def _process_workloads(self, workload_list):
            for each in workload_list:
                self.queued_callbacks.pop(each.key)

        def end(self):
            pass

    ids = routed.callbacks(2)
    clock, executor = FakeClock(), Silent(parallelism=1)
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process,
        scheduler(executor, settings=AT_MOST_ONCE, clock=clock) as run,
    ):
        allocator = run(2)._callback_priority
        with create_session() as session:
            worker = f"{get_hostname()}:{process.pid}"
            units.claim(session.connection(), dict.fromkeys(ids, "log"), worker=worker, now=clock.utcnow())
            units.mark_started(session.connection(), ids[0], clock.utcnow())
        clock.seconds += 61
        run(1)
        assert states(routed.bench) == {"granted": 2}
        process.kill()
        process.wait()
        clock.seconds += 61
        run(1)
        assert len(allocator.ledger) == 0
        assert routed.bench.outputs()[ids[0]] == f"{DEAD} (attempt 1 was its last)"
        assert [by_id(routed.bench)[each].state for each in ids] == ["done", "waiting"]
        assert by_id(routed.bench)[ids[1]].failures == 1


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_two_schedulers_that_settle_one_request_do_not_block_each_other(
    airflow_database, routed, monkeypatch
):
    from airflow.utils.session import create_session

    ids = routed.callbacks(2, batch=None, per_request=2)
    with at_work(2, callback_loops=10**9) as (run, _, allocator):
        run(2)
        both, failed, whole = threading.Barrier(2), [], settling.runs

        def runs(conn, leaders):
            found = whole(conn, leaders)
            with suppress(threading.BrokenBarrierError):
                both.wait(2)
            return found

        def settle(callback_id):
            with create_session(scoped=False) as session:
                allocator.settlement.settle(session, [callback_id], START)

        monkeypatch.setattr(settling, "runs", runs)
        monkeypatch.setattr(allocator.settlement, "failed", lambda *error: failed.append(error))
        threads = [threading.Thread(target=settle, args=(each,)) for each in ids]
        for each in threads:
            each.start()
        for each in threads:
            each.join(30)
    assert failed == []
    assert withdrawn().keys() == set(ids)


@ON_SQLITE
def test_a_slot_is_held_until_the_last_of_a_run_has_ended(airflow_database, routed):
    """Found out from the rows, where the executor does not say: a reconciliation at an interval."""
    ids = routed.callbacks(2)
    with at_work(1, callback_loops=10**9, fills_running=False) as (run, workers, allocator):
        run(1)
        workers.claim(*ids)
        workers.start(*ids)
        workers.end(ids[0])
        allocator.clock.seconds += 61
        run(2)
        assert len(allocator.ledger) == 1
        assert by_id(routed.bench)[ids[0]].state == "granted"
        workers.end(ids[1])
        allocator.clock.seconds += 61
        run(2)
        assert len(allocator.ledger) == 0
        assert states(routed.bench) == {"done": 2}


# What cannot run --------------------------------------------------------------------------------------------------


def test_an_executor_that_refuses_sends_them_to_the_dag_processor(airflow_database, routed, monkeypatch):
    ids = routed.callbacks(5)

    def queue_workload(workload, session):
        raise NotImplementedError("no callbacks here")

    with at_work(1) as (run, workers, allocator):
        monkeypatch.setattr(workers.executor, "queue_workload", queue_workload)
        run(8)
    assert withdrawn().keys() == set(ids)
    assert routed.bench.items() == []
    assert len(allocator.ledger) == len(allocator.in_flight.routed) == 0


def test_an_executor_that_fails_gets_them_again(airflow_database, routed, monkeypatch):
    ids = routed.callbacks(3)
    with at_work(1) as (run, workers, allocator):
        whole = workers.executor.queue_workload
        refusals = iter([RuntimeError("on purpose")])

        def queue_workload(workload, session):
            for error in refusals:
                raise error
            whole(workload, session=session)

        monkeypatch.setattr(workers.executor, "queue_workload", queue_workload)
        run(1)
        assert states(routed.bench) == {"waiting": 3}
        assert routed.bench.callback_states() == {"pending": 3}
        run(4)
    assert workers.runs == [ids]
    assert len(allocator.ledger) == 0


def test_what_is_unfit_goes_to_the_dag_processor_and_fails_if_its_request_has_begun(airflow_database, routed):
    [fit, unfit] = routed.callbacks(2, batch=None, per_request=2)
    [alone] = routed.callbacks(1, batch=None, data={"dag_run_id": None})
    set_run(unfit, None)
    set_run(alone, None)
    with at_work(1) as (run, workers, _):
        run(6)
    assert workers.runs == [[fit]]
    assert withdrawn().keys() == {alone}
    assert routed.bench.callback_states() == {"success": 1, "failed": 1}
    assert "its Dag run" in routed.bench.outputs()[unfit]


@pytest.mark.parametrize("error", ["deadlock", "unreadable"])
def test_what_is_unfit_is_set_aside_while_the_database_fails(airflow_database, routed, monkeypatch, error):
    """A failure that may pass costs no callback; one that cannot, which is no database's, does."""
    from sqlalchemy.exc import OperationalError

    ids = routed.callbacks(2)
    errors = {
        "deadlock": OperationalError("deadlock detected", None, Exception()),
        "unreadable": ValueError("not a request"),
    }

    for each in ids:
        set_run(each, None)
    with at_work(1) as (run, workers, allocator):
        with monkeypatch.context() as patch:
            patch.setattr(fallback, "withdraw", raising(errors[error]))
            run(2)
        if error == "unreadable":
            assert routed.bench.callback_states() == {"failed": 2}
            return
        assert routed.bench.callback_states() == {"pending": 2}
        assert states(routed.bench) == {"parked": 2}
        assert all("its Dag run" in item.reason for item in routed.bench.items())
        allocator.clock.seconds += 61
        run(3)
    assert withdrawn().keys() == set(ids)
    assert workers.runs == []


@ON_SQLITE
def test_what_expires_is_not_lost_while_the_database_fails(airflow_database, routed, monkeypatch):
    from sqlalchemy.exc import OperationalError

    ids = routed.callbacks(1)
    with at_work(1, takes=0) as (run, _, allocator):
        with a_transaction() as connection:
            items.park(connection, ids, now=START, retry_at=START, reason="no executor")
        with monkeypatch.context() as patch:
            patch.setattr(fallback, "withdraw", raising(OperationalError("gone", None, Exception())))
            allocator.clock.seconds += 4_000
            run(1)
            allocator.clock.seconds += 61
            run(1)
        assert [item.reason for item in routed.bench.items()] == ["expired after 3600 s: no executor"]
        assert states(routed.bench) == {"parked": 1}
        allocator.clock.seconds += 61
        run(1)
    assert withdrawn() == {ids[0]: "expired after 3600 s: no executor"}


def raising(error: Exception):
    def broken(*_args):
        raise error

    return broken


@contextmanager
def a_transaction():
    from airflow.utils.session import create_session

    with create_session() as session:
        yield session.connection()


def set_run(callback_id: uuid.UUID, dag_run_id: int | None) -> None:
    """Point an item at another Dag run."""
    from airflow.utils.session import create_session

    with create_session() as session:
        session.execute(
            update(item_table).where(item_table.c.callback_id == callback_id).values(dag_run_id=dag_run_id)
        )


# What is known of a row -------------------------------------------------------------------------------------------


@ON_SQLITE
def test_a_row_without_an_item_is_known_for_what_it_is(airflow_database, routed):
    from airflow.utils.session import create_session

    settings = Settings(
        mode=Mode.ACTIVE,
        callback_pool={TASK_CALLBACK: "inherit"},
        callback_executor={ServiceClass.DEADLINE: "nowhere"},
    )
    routed.bench.pool("narrow", 4)
    [task] = routed.callbacks(1, kind="email_retry", data={"pool": "narrow"})
    [dag] = routed.callbacks(1, kind="dag_success")
    [newer] = routed.callbacks(1, data={"kind": "of a newer release"})
    [foreign] = routed.bench.callbacks(1, data={"kind": "dag_success"})
    with create_session() as session:
        session.execute(delete(item_table))
    with at_work(1, settings=settings, callback_loops=10**9) as (run, _, _):
        run(1)
    found = {key: (item.kind, item.service_class, item.pool) for key, item in by_id(routed.bench).items()}
    assert found == {
        task: ("email_retry", "task_callback", "narrow"),
        dag: ("dag_success", "dag_callback", "default_pool"),
        newer: ("deadline", "deadline", "default_pool"),
        foreign: ("deadline", "deadline", "default_pool"),
    }
    assert by_id(routed.bench)[foreign].executor == "nowhere"


@ON_SQLITE
def test_the_queue_is_the_rows_its_classs_or_that_of_tasks(airflow_database, routed):
    settings = attrs.evolve(ACTIVE, callback_queue={TASK_CALLBACK: "callbacks"})
    own = routed.callbacks(1, batch=None, data={"queue": "mine"})
    by_class = routed.callbacks(1, batch=None)
    deadline = routed.bench.callbacks(1)
    queues = {}
    with at_work(4, settings=settings) as (run, workers, _):
        whole = workers.executor.queue_workload

        def queue_workload(workload, session):
            queues[uuid.UUID(workload.callback.id)] = workload.callback.data["queue"]
            whole(workload, session=session)

        workers.executor.queue_workload = queue_workload
        run(2)
    assert queues == {own[0]: "mine", by_class[0]: "callbacks", deadline[0]: "default"}


@ON_SQLITE
def test_what_airflows_own_step_queued_is_settled_as_well(airflow_database, routed):
    """While the slot loop stands aside, Airflow queues each by itself; a reported failure stands all the same."""
    ids = routed.callbacks(2)

    def script(workers, leader, riding):
        workers.claim(leader)
        workers.start(leader)
        workers.end(leader, state="failed", output="on purpose")
        return "success"

    with at_work(4, script=script) as (run, workers, allocator):
        allocator.breaker.open_until = allocator.clock.seconds + 60
        run(4)
        assert sorted(workers.runs) == [[each] for each in ids]
        assert routed.bench.callback_states() == {"failed": 2}
        assert set(routed.bench.outputs().values()) == {"on purpose"}
        assert len(allocator.ledger) == 0


@ON_SQLITE
def test_what_the_triggerer_runs_is_closed_when_it_has_ended(airflow_database, routed):
    from airflow.utils.session import create_session

    from callback_priority.persistence.enqueueing import NewItem, record_triggered

    [each] = routed.bench.callbacks(1, state="queued")
    new = NewItem(callback_id=each, service_class=TASK_CALLBACK, kind="task_failure", pool="default_pool")
    with create_session() as session:
        record_triggered(session.connection(), [new], now=START)
    with at_work(1) as (run, workers, allocator):
        run(2)
        assert states(routed.bench) == {"triggered": 1}
        assert held(allocator) == {}
        set_state(each, "success")
        allocator.clock.seconds += 31
        run(1)
    assert states(routed.bench) == {"done": 1}
    assert workers.executor.count("callback") == 0


def test_units_leave_with_their_items(airflow_database, routed):
    from airflow.utils.session import create_session

    routed.callbacks(3)
    with at_work(1) as (run, _, allocator):
        run(3)
        assert len(read_units()) == 3
        allocator.clock.seconds += 8 * 86_400
        run(2)
    assert routed.bench.items() == []
    with create_session() as session:
        assert session.execute(unit_table.select()).all() == []


def test_turns_of_one_dag_are_spaced(airflow_database, routed):
    """The control of the two hundred: without turns, the other Dag's would come last."""
    routed.callbacks(3, dag_id="mapped")
    ranks = [item.rank for item in routed.bench.items()]
    assert {later - earlier for earlier, later in pairwise(ranks)} == {10_000_000}
