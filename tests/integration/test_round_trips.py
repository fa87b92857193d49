"""How many statements the slot loop sends in a scheduler loop, whatever the number of callbacks."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from callback_priority.adapter.allocator import SlotAllocator
from callback_priority.policy.settings import Mode, Settings
from tests.support.scheduler import Bench, FakeClock, LoopExecutor, Statements, around, scheduler

pytestmark = pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
ACTIVE = Settings(mode=Mode.ACTIVE)


@contextmanager
def ours_only(monkeypatch, *names: str):
    """Record what the allocator's methods send, Airflow's own code that they call left out."""
    statements = Statements(listening=False)

    def watch(name: str) -> None:
        whole = getattr(SlotAllocator, name)

        def watched(allocator, first, *args, **kwargs):
            original = first if name == "hand_over" else around(first, quiet)
            statements.listening = True
            try:
                return whole(allocator, original, *args, **kwargs)
            finally:
                statements.listening = False

        monkeypatch.setattr(SlotAllocator, name, watched)

    def quiet(original):
        def airflows(*args, **kwargs):
            statements.listening = False
            try:
                return original(*args, **kwargs)
            finally:
                statements.listening = True

        return airflows

    for name in names:
        watch(name)
    with statements.recorded():
        yield statements


def beyond_airflows(sent: list[str]) -> list[str]:
    """Without the two that read the pools: they are sent in the stead of Airflow's selection, which is handed them."""
    return [
        each
        for each in sent
        if "slot_pool" not in each and not each.startswith("SELECT task_instance.pool, task_instance.state")
    ]


@pytest.mark.parametrize("tasks", [False, True], ids=["no tasks", "with tasks"])
def test_the_critical_section_adds_at_most_twelve_statements_for_16_as_for_256(
    airflow_database, monkeypatch, tasks
):
    counts = {}
    bench, clock = Bench(), FakeClock()
    bench.pool("default_pool", 10_000)
    bench.callbacks(1_000)
    for slots in (16, 256):
        executor = LoopExecutor(2 * slots if tasks else slots, clock=clock)
        with scheduler(executor, settings=ACTIVE, clock=clock, max_tis_per_query=0) as run:
            run(1)  # the sweep at the start
            if tasks:
                bench.tasks(slots)
            before = executor.count("callback")
            with ours_only(monkeypatch, "select", "hand_over") as statements:
                run(1)
            monkeypatch.undo()
            assert executor.count("callback") - before >= slots
            assert executor.count("task") == (slots if tasks else 0)
        counts[slots] = len(beyond_airflows(statements.sent))
    assert counts[16] == counts[256] <= 12, counts


def test_nothing_is_written_when_there_is_nothing_to_do(airflow_database, monkeypatch):
    bench, clock = Bench(), FakeClock()
    bench.dag()
    with scheduler(LoopExecutor(8, clock=clock), settings=ACTIVE, clock=clock) as run:
        run(2)
        with ours_only(monkeypatch, "select", "hand_over", "callback_step", "process_events") as statements:
            run(3)
    assert statements.writes() == []
    assert len(statements.sent) <= 3 * 6


def test_the_callback_step_is_silent_when_nothing_is_due(airflow_database, monkeypatch):
    bench, clock = Bench(), FakeClock()
    bench.callbacks(40)
    with scheduler(LoopExecutor(4, clock=clock), settings=ACTIVE, clock=clock) as run:
        run(2)
        with ours_only(monkeypatch, "callback_step") as statements:
            run(4)
    assert statements.sent == []


def test_missed_deadlines_are_given_items_by_three_statements_however_many(airflow_database, monkeypatch):
    bench, clock = Bench(), FakeClock()
    counts = []
    with scheduler(LoopExecutor(4, clock=clock), settings=ACTIVE, clock=clock) as run:
        run(2)
        for count in (1, 50):
            bench.deadlines(count)
            with ours_only(monkeypatch, "callback_step") as statements:
                run(1)
            monkeypatch.undo()
            counts.append(len(statements.sent))
    assert counts[0] == counts[1] <= 3
