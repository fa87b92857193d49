"""What waits in a simulation: the same line, however long it is and in whatever order its entries come."""

from __future__ import annotations

from random import Random

import pytest

from callback_priority.core.classes import ServiceClass
from callback_priority.core.snapshot import Candidate
from callback_priority.errors import ConfigurationError
from callback_priority.simulation import backlog
from callback_priority.simulation.backlog import Line, Waiting
from callback_priority.simulation.engine import Simulation, Treatment
from callback_priority.simulation.holds import Fixed
from callback_priority.simulation.scenario import Scenario, Stream


def entry(rank, number):
    return Waiting(rank, number, 0, 1, 0, 1, 0, Candidate(id=number, rank=rank))


def through_a_line(seed, steps=400):
    """What a line gives, by whatever is done to it: added to, looked at, taken from the front or from behind."""
    dice = Random(seed)  # noqa: S311 - not for secrets
    line, told = Line(ServiceClass.DEADLINE, "default_pool"), []
    for number in range(steps):
        if dice.random() < 0.6 or not line:
            line.add(entry(dice.choice([number, dice.randrange(steps)]), number))
            continue
        shown = line.shown(2, None).candidates
        told.append([each.id for each in shown])
        told.append(line.take_candidate(dice.choice(shown), 0).number)
        told.append(line.peek(1))
        told.append(len(line))
    return [*told, *line]


@pytest.mark.parametrize("seed", range(5))
def test_a_long_line_is_like_a_short_one(monkeypatch, seed):
    short = through_a_line(seed)
    monkeypatch.setattr(backlog, "_LONG", 4)
    assert through_a_line(seed) == short


def test_a_long_line_stays_in_order():
    line = Line(ServiceClass.DEADLINE, "default_pool")
    for number in range(20_000):
        line.add(entry(number if number % 2 else -number, number))
    ranks = [each.rank for each in line]
    assert ranks == sorted(ranks)
    assert [line.take(0).rank for _ in range(20_000)] == ranks
    assert not line.is_waiting


def test_callbacks_without_end_are_one_clear_error():
    streams = tuple(
        Stream(name=f"endless {cls}", service_class=cls, holds=Fixed(seconds=1)) for cls in ServiceClass
    )
    scenario = Scenario(name="for ever", seconds=10, streams=streams, slots=1)
    with pytest.raises(ConfigurationError, match="only tasks have a backlog without end") as told:
        Simulation(scenario, Treatment(name="fair"), seed=1)
    assert len(told.value.problems) == 3
