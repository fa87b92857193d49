"""A simulation runs with Python's collector of cycles off, so it must leave none, and must put the collector back."""

from __future__ import annotations

import gc

import pytest

from callback_priority.simulation.engine import Simulation, Treatment
from callback_priority.simulation.library import named_scenario


@pytest.mark.parametrize("scenario", ["contention", "wide-tasks"])
def test_a_run_leaves_no_cycles(scenario):
    simulation = Simulation(named_scenario(scenario).scenario, Treatment(name="fair"), seed=1)
    gc.collect()
    simulation.run()
    assert gc.isenabled()
    assert gc.collect() == 0


def test_the_collector_is_on_again_after_a_run_that_failed():
    def fail(snapshot, entitlements):
        assert not gc.isenabled()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Simulation(named_scenario("contention").scenario, Treatment(name="broken", decide=fail), seed=1).run()
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        Simulation(named_scenario("contention").scenario, Treatment(name="fair"), seed=1).run()
        assert not gc.isenabled()
    finally:
        gc.enable()
