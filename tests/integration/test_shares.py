"""Tasks and callbacks always waiting: who gets which share of the slots of Airflow's real scheduler.

The loops are the real scheduler's; workloads are held for a number of loops by an executor that runs nothing,
and the slot loop's clock goes on by a second in each loop.
"""

from __future__ import annotations

import attrs
import pytest

from callback_priority.core.classes import ServiceClass
from callback_priority.policy.settings import Mode, Settings
from tests.support.scheduler import Bench, FakeClock, LoopExecutor, scheduler

LOOPS = 100
ON_SQLITE = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
ACTIVE = Settings(mode=Mode.ACTIVE)


@attrs.define
class Backlog:
    """Task instances that wait, topped up; many rows at once would make each selection slow."""

    bench: Bench
    slots: int
    made: int = 0

    def top_up(self, started: int) -> None:
        if self.made - started < 3 * self.slots:
            self.bench.tasks(8 * self.slots)
            self.made += 8 * self.slots


def shares(
    settings: Settings | None,
    *,
    slots: int = 8,
    task_loops: int = 1,
    callbacks: int,
    loops: int = LOOPS,
    use: float = 0.97,
):
    """The executor after some loops in which both kinds always waited, as is asserted."""
    bench, clock = Bench(), FakeClock()
    backlog = Backlog(bench=bench, slots=slots)
    executor = LoopExecutor(
        slots,
        task_loops=task_loops,
        clock=clock,
        each_loop=lambda: backlog.top_up(executor.count("task")),
    )
    backlog.top_up(0)
    bench.callbacks(callbacks)
    bench.pool("default_pool", 1_000_000)
    with scheduler(executor, settings=settings, clock=clock) as run:
        run(loops)
    assert executor.most_inside <= slots
    assert executor.held.total() >= use * slots * loops, "slots stood empty though both kinds waited"
    assert bench.callback_states()["pending"] > 0
    assert bench.task_states()["scheduled"] > 0
    return executor


@ON_SQLITE
def test_equal_weights_share_the_slots_evenly(airflow_database):
    """8 slots, 200 loops, holds of equal length: between 45% and 55% of the slot-time is the tasks'."""
    assert 0.45 <= shares(ACTIVE, callbacks=1_000, loops=200).share("task") <= 0.55


@ON_SQLITE
def test_stock_gives_tasks_next_to_nothing(airflow_database):
    """The control: the same rows in the same loops under Airflow's own two steps."""
    assert shares(None, callbacks=900).share("task") < 0.03


@ON_SQLITE
def test_three_to_one_gives_tasks_three_quarters(airflow_database):
    settings = attrs.evolve(ACTIVE, weights={ServiceClass.TASK: 3_000})
    assert 0.70 <= shares(settings, callbacks=400).share("task") <= 0.80


@ON_SQLITE
def test_weights_hold_for_callbacks_too(airflow_database):
    """A weight below one is a weight: 0.25 for tasks is a fifth."""
    settings = attrs.evolve(ACTIVE, weights={ServiceClass.TASK: 250})
    assert 0.15 <= shares(settings, callbacks=1_000, loops=60).share("task") <= 0.25


@ON_SQLITE
def test_tasks_held_twenty_times_as_long_get_no_more(airflow_database):
    """Slot-time is shared, not starts."""
    executor = shares(ACTIVE, task_loops=20, callbacks=600)
    assert 0.42 <= executor.share("task") <= 0.58
    assert executor.count("callback") > 10 * executor.count("task")


@ON_SQLITE
def test_airflows_cap_on_one_selection_does_not_cap_the_tasks_share(airflow_database):
    """64 slots, ``max_tis_per_query`` 16: slots due to tasks that one selection cannot fill are kept for them.

    Holds end within a loop here, so the cap binds in each: tasks never hold more than 16, and callbacks, if
    they were given what is left over, would hold 48.
    """
    executor = shares(ACTIVE, slots=64, callbacks=1_500, loops=60, use=0.45)
    assert 0.43 <= executor.share("task") <= 0.57
