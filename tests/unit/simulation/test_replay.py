"""History that a simulation made is told from its records alone; what had no record is said."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import attrs
import pytest

from callback_priority.core.classes import ServiceClass
from callback_priority.core.units import MICROSECONDS
from callback_priority.policy.parse import parse_settings
from callback_priority.simulation.arrivals import Poisson
from callback_priority.simulation.engine import Simulation, Treatment
from callback_priority.simulation.holds import Exponential, LogNormal
from callback_priority.simulation.past import (
    Past,
    SeenPass,
    Turn,
    loop_seconds_of,
    loops_of,
    most_held,
    when_freed,
)
from callback_priority.simulation.replay import Recorded, rebuild
from callback_priority.simulation.results import ClassResult, run
from callback_priority.simulation.scenario import Scenario, Stream

TASK, DEADLINE = ServiceClass.TASK, ServiceClass.DEADLINE
EPOCH = 1_800_000_000 * MICROSECONDS + 123_457
"""When the recorded stretch began; no multiple of any interval between loops."""

BUSY = Scenario(
    name="busy",
    seconds=1_200.0,
    streams=(
        Stream(
            name="steps",
            service_class=TASK,
            arrivals=Poisson(rate_per_second=1.45),
            holds=LogNormal(median_seconds=4.0, sigma=0.6),
            dags=5,
        ),
        Stream(
            name="alerts",
            service_class=DEADLINE,
            arrivals=Poisson(rate_per_second=0.02),
            holds=Exponential(mean_seconds=3.0),
            batch=12,
            dags=7,
        ),
    ),
    slots=8,
    loop_seconds=0.5,
    pools={"default_pool": 128},
)


class Recorder:
    """Writes down what a metadata database would hold, and in a journal, if one is kept, when slots came free."""

    def __init__(self, settle_seconds: float, seed: int = 1) -> None:
        self.random = Random(seed)  # noqa: S311 - not for secrets
        self.settle_seconds = settle_seconds
        self.turns: dict[int, Turn] = {}
        self.freed: dict[int, int] = {}
        self.holds: dict[tuple[int, int], dict[ServiceClass, list[int]]] = {}

    def waits(self, now, service_class, pool, entry):
        self.turns[entry.number] = Turn(
            service_class=service_class,
            dag=f"{service_class} {entry.dag}",
            pool=pool,
            width=entry.width,
            since=EPOCH + entry.at,
            order=(entry.at,),
        )

    def started(self, now, scheduler, service_class, pool, entry, number):
        self.turns[number] = attrs.evolve(self.turns[number], granted=EPOCH + now, scheduler=scheduler)
        self.holds.setdefault((now, scheduler), {})

    def ended(self, now, service_class, pool, entry, number):
        turn = self.turns[number]
        assert turn.granted is not None
        self.freed[number] = EPOCH + now
        # The work itself was over a while before its slot could be granted again.
        settling = round(self.random.uniform(0.2, 1.0) * self.settle_seconds * MICROSECONDS)
        over = max(turn.granted, EPOCH + now - settling)
        self.turns[number] = attrs.evolve(turn, ended=over)
        of_pass = self.holds.setdefault((now, turn.scheduler or 0), {})
        of_pass.setdefault(service_class, []).append(EPOCH + now - turn.granted)

    def decided(self, now, scheduler, snapshot, decision):
        pass

    def happened(self, now, what):
        pass

    def past(self, scenario: Scenario, *, journal: bool) -> Past:
        passes = [
            SeenPass(at=EPOCH + at, scheduler=scheduler, holds=holds)
            for (at, scheduler), holds in sorted(self.holds.items())
        ]
        return Past(
            since=EPOCH,
            until=EPOCH + round(scenario.seconds * MICROSECONDS),
            turns=list(self.turns.values()),
            passes=passes if journal else [],
            pools=scenario.pools,
        )


def recorded(scenario: Scenario, treatment: Treatment, settle_seconds: float = 1.5) -> Recorder:
    recorder = Recorder(settle_seconds)
    Simulation(scenario, treatment, seed=3, watch=recorder).run()
    return recorder


def agrees(was: Recorded, came_out: ClassResult, loop_seconds: float) -> bool:
    return all(
        abs(came_out.wait_seconds[quantile] - was.wait_seconds[quantile])
        <= max(part * was.wait_seconds[quantile], loop_seconds)
        for quantile, part in ((0.5, 0.15), (0.95, 0.25))
    )


FAIR = Treatment(name="fair")
TASKS_FIRST = Treatment(name="tasks first", settings=parse_settings({"policy": "tasks_first"}))


@pytest.fixture(scope="module")
def busy() -> Recorder:
    """What one scheduler's busy stretch left behind."""
    return recorded(BUSY, FAIR)


@pytest.mark.parametrize("schedulers", [1, 2])
@pytest.mark.parametrize("journal", [True, False])
def test_waits_come_out_as_they_were_recorded(journal, schedulers):
    """Under the settings that were active: p50 within 15%, p95 within 25%, or one interval between loops."""
    scenario = attrs.evolve(BUSY, slots=BUSY.slots // schedulers, schedulers=schedulers)
    past = recorded(scenario, FAIR).past(scenario, journal=journal)
    loop_seconds = loop_seconds_of(past)
    assert loop_seconds == pytest.approx(0.5, abs=0.05)
    replay = rebuild(past, slots=scenario.slots, schedulers=schedulers, loop_seconds=loop_seconds)
    came_out = run(replay.scenario, FAIR, seed=0)
    assert replay.recorded[TASK].wait_seconds[0.5] > 2 * loop_seconds
    for cls in (TASK, DEADLINE):
        assert agrees(replay.recorded[cls], came_out.classes[cls], loop_seconds)


@pytest.mark.parametrize(
    ("slots", "treatment"), [(BUSY.slots + 4, FAIR), (BUSY.slots - 2, FAIR), (BUSY.slots, TASKS_FIRST)]
)
def test_other_slots_or_settings_do_not_agree_with_the_record(busy, slots, treatment):
    """The negative control: agreeing is not a matter of course."""
    past = busy.past(BUSY, journal=True)
    replay = rebuild(past, slots=slots, schedulers=1, loop_seconds=0.5)
    came_out = run(replay.scenario, treatment, seed=0)
    assert not all(agrees(replay.recorded[cls], came_out.classes[cls], 0.5) for cls in (TASK, DEADLINE))


def test_what_it_says_of_other_settings_is_what_they_would_have_done(busy):
    """History made under one policy, replayed under another, comes out as if the other had been active all along."""
    replay = rebuild(busy.past(BUSY, journal=True), slots=BUSY.slots, schedulers=1, loop_seconds=0.5)
    under_other = recorded(BUSY, TASKS_FIRST).past(BUSY, journal=True)
    would_have_been = rebuild(under_other, slots=BUSY.slots, schedulers=1, loop_seconds=0.5).recorded
    came_out = run(replay.scenario, TASKS_FIRST, seed=0)
    for cls in (TASK, DEADLINE):
        assert agrees(would_have_been[cls], came_out.classes[cls], 0.5)


def test_the_journal_tells_when_slots_came_free(busy):
    """To the microsecond, but for turns that one pass granted and whose ends crossed over: of these the moments are right."""
    past = busy.past(BUSY, journal=True)
    freed = when_freed(past, slots=BUSY.slots, loop_seconds=0.5)
    truth = {busy.turns[number]: at for number, at in busy.freed.items()}
    assert freed.journalled > 0.99 * len(truth)
    assert sum(freed.at[turn] == at for turn, at in truth.items()) > 0.95 * len(truth)
    assert sorted(freed.at.values()) == sorted(truth.values())


def test_without_a_journal_the_grants_tell_it(busy):
    """While all slots are held and others wait, a grant is when a slot came free; the rest takes the median."""
    past = busy.past(BUSY, journal=False)
    freed = when_freed(past, slots=BUSY.slots, loop_seconds=0.5)
    truth = {busy.turns[number]: at for number, at in busy.freed.items()}
    assert freed.journalled == 0
    assert freed.seen > 0.5 * len(truth)
    told = sum(freed.at[turn] - (turn.granted or 0) for turn in truth) / len(truth)
    really = sum(at - (turn.granted or 0) for turn, at in truth.items()) / len(truth)
    assert told == pytest.approx(really, rel=0.03)


def test_a_scheduler_has_at_least_the_slots_that_it_was_seen_to_hold(busy):
    past = busy.past(BUSY, journal=False)
    assert most_held(past.turns) == BUSY.slots


# Single turns -------------------------------------------------------------------------------------------------


def turn(cls: ServiceClass, since: float, granted: float | None, over: float | None, **more) -> Turn:
    def at(seconds: float | None) -> int | None:
        return None if seconds is None else EPOCH + round(seconds * MICROSECONDS)

    return Turn(
        service_class=cls,
        dag=more.pop("dag", "a"),
        pool=more.pop("pool", "default_pool"),
        since=at(since),
        granted=at(granted),
        ended=at(over),
        scheduler=1,
        **more,
    )


def past_of(turns: Sequence[Turn], seconds: float = 100.0) -> Past:
    return Past(
        since=EPOCH, until=EPOCH + round(seconds * MICROSECONDS), turns=turns, pools={"default_pool": 16}
    )


def test_tasks_of_equal_priority_keep_airflows_order():
    """Which goes on with the logical date, the map index, the Dag and the run; not with how long they have waited."""
    held = turn(TASK, 0, 0, 10)
    waiting = [turn(TASK, 1 + at, 10 + at, 11 + at, order=(9 - at,), dag=f"d{at}") for at in range(4)]
    urgent = turn(TASK, 6, 20, 21, priority=5, order=(100,), dag="urgent")
    replay = rebuild(past_of([held, *waiting, urgent]), slots=1, schedulers=1, loop_seconds=0.5)
    order = []

    class Watcher(Recorder):
        def started(self, now, scheduler, service_class, pool, entry, number):
            order.append(entry.dag)

        def ended(self, now, service_class, pool, entry, number):
            pass

    Simulation(replay.scenario, FAIR, seed=0, watch=Watcher(0.0)).run()
    (trace,) = replay.scenario.streams
    assert [each.priority for each in trace.arriving(0)] == [
        trace.priority + place for place in (-1, -5, -4, -3, -2, 0)
    ]
    assert order == [0, 5, 4, 3, 2, 1]


def test_who_held_a_slot_when_the_stretch_began_holds_it_for_the_rest_of_its_hold():
    """And is not measured, nor is who had waited since before."""
    turns = [
        turn(TASK, -50, -40, 30),
        turn(TASK, -20, 30.5, 40),
        turn(DEADLINE, 5, 40.5, 41),
        turn(DEADLINE, -90, -80, -45),
    ]
    replay = rebuild(past_of(turns), slots=1, schedulers=1, loop_seconds=0.5)
    result = run(replay.scenario, FAIR, seed=0)
    assert result.classes[TASK].measured == 0
    assert result.classes[TASK].started == 2
    assert result.classes[DEADLINE].measured == 1
    # The alert comes before the task: in this simulation tasks have held the slot all the time.
    assert result.classes[DEADLINE].wait_seconds[0.5] == pytest.approx(25.5, abs=1.0)
    assert replay.recorded[DEADLINE].wait_seconds[0.5] == 35.5
    assert any("1 held slots then and 1 waited" in each for each in replay.assumptions)


def test_a_stretch_in_the_middle_of_a_backlog_is_begun_where_nobody_waited(busy):
    """What stands where in the lines, and what classes owe each other, is then as it was."""
    past = busy.past(BUSY, journal=True)
    middle = attrs.evolve(past, since=EPOCH + 700 * MICROSECONDS, known_from=EPOCH)
    assert EPOCH <= middle.begin <= middle.since
    replay = rebuild(middle, slots=BUSY.slots, schedulers=1, loop_seconds=0.5)
    came_out = run(replay.scenario, FAIR, seed=0)
    for cls in (TASK, DEADLINE):
        assert came_out.classes[cls].measured < replay.recorded[cls].arrived + 1
        assert agrees(replay.recorded[cls], came_out.classes[cls], 0.5)


def test_where_nobody_waited_is_where_the_simulation_begins():
    """But not before it is known who waited."""
    turns = [turn(TASK, -50, -40, 30), turn(TASK, -20, 30.5, 40), turn(TASK, 5, 41, 42)]
    past = attrs.evolve(past_of(turns), known_from=EPOCH - 60 * MICROSECONDS)
    assert past.begin == EPOCH - 20 * MICROSECONDS - 1
    assert attrs.evolve(past, known_from=EPOCH - 10 * MICROSECONDS).begin == EPOCH - 10 * MICROSECONDS
    assert past_of(turns).begin == EPOCH


def test_what_has_no_recorded_hold_takes_that_of_another_of_its_dag():
    """One that still runs a longer one than it has had so far."""
    known = [turn(TASK, at, at, at + 1 + at, dag="a") for at in range(10)]
    known += [turn(TASK, at, at, at + 60, dag="b") for at in range(10)]
    running = turn(TASK, 90, 93.5, None, dag="a")
    waiting = turn(TASK, 99, None, None, dag="b")
    replay = rebuild(past_of([*known, running, waiting]), slots=16, schedulers=1, loop_seconds=0.1)
    (trace,) = replay.scenario.streams
    of_running, of_waiting = list(trace.arriving(0))[-2:]
    assert 6.5 * MICROSECONDS < of_running.hold < 12 * MICROSECONDS
    assert of_waiting.hold == pytest.approx(60 * MICROSECONDS, rel=0.01)
    assert any(each.startswith("1 that still ran") for each in replay.assumptions)
    assert any(each.startswith("1 that were never granted a slot") for each in replay.assumptions)


def test_one_that_was_tried_again_is_there_and_not_measured():
    """When it was first granted a slot has no record."""
    turns = [turn(DEADLINE, 1, 50, 51, again=True), turn(DEADLINE, 1, 2, 3)]
    replay = rebuild(past_of(turns), slots=4, schedulers=1, loop_seconds=0.5)
    assert replay.recorded[DEADLINE].wait_seconds[1.0] == 1.0
    assert replay.recorded[DEADLINE].arrived == 2
    assert any("tried more than once" in each for each in replay.assumptions)


def test_a_pool_that_is_gone_is_without_end():
    replay = rebuild(past_of([turn(TASK, 1, 2, 3, pool="old")]), slots=4, schedulers=1, loop_seconds=0.5)
    assert replay.scenario.pools == {"old": None}
    assert any("old" in each for each in replay.assumptions)


def test_the_interval_between_loops_is_not_told_from_nothing():
    assert loop_seconds_of(past_of([turn(TASK, 1, 2, 3)])) is None


def test_loops_come_when_they_left_a_record():
    """However uneven they were, a slot is granted when it was; between them and beyond there are others."""
    granted = [1.0, 2.3, 2.4, 8.0, 8.9]
    turns = [turn(TASK, 0.5, at, end) for at, end in zip(granted, [2.2, 2.35, 7.9, 8.8, 9.9], strict=True)]
    past = past_of(turns, seconds=12)
    (loops,) = loops_of(past, schedulers=1, loop_seconds=2.0)
    assert [(each - EPOCH) / MICROSECONDS for each in loops] == [1.0, 2.3, 2.4, 4.4, 6.4, 8.0, 8.9]
    replay = rebuild(past, slots=1, schedulers=1, loop_seconds=2.0)
    found = run(replay.scenario, FAIR, seed=0).classes[TASK]
    recorded = replay.recorded[TASK].wait_seconds
    assert {each: found.wait_seconds[each] for each in recorded} == pytest.approx(recorded)
    assert any("when they left a record" in each for each in replay.assumptions)


def test_loops_are_evenly_spaced_where_it_cannot_be_told_whose_they_are():
    """Of two at a time, one took the place of a third."""
    turns = [attrs.evolve(turn(TASK, 0, at, 9), scheduler=at) for at in (1, 2, 3)]
    past = past_of(turns)
    assert loops_of(past, schedulers=2, loop_seconds=1.0) == []
    assert len(loops_of(past, schedulers=3, loop_seconds=1.0)) == 3
    replay = rebuild(past, slots=4, schedulers=2, loop_seconds=1.0)
    assert any("evenly spaced" in each for each in replay.assumptions)


def test_callbacks_that_came_together_go_in_the_order_of_production():
    """By their identifiers, in whatever order the database gave their rows."""
    turns = [turn(DEADLINE, 1, None, None, order=(f"{9 - at}",), dag=f"d{at}", priority=1) for at in range(3)]
    (trace,) = rebuild(past_of(turns), slots=1, schedulers=1, loop_seconds=0.5).scenario.streams
    again = rebuild(past_of(turns[::-1]), slots=1, schedulers=1, loop_seconds=0.5).scenario.streams
    assert [each.dag for each in trace.arriving(0)] == [0, 1, 2]
    assert trace == again[0]
