"""The virtual clock of a simulation never goes back, whichever scheduler has slept how long."""

from __future__ import annotations

import pytest

from callback_priority.core.classes import ServiceClass
from callback_priority.core.quotas import Quota
from callback_priority.policy.settings import Settings
from callback_priority.simulation.arrivals import Poisson, Storms
from callback_priority.simulation.engine import Simulation, Treatment
from callback_priority.simulation.holds import Fixed
from callback_priority.simulation.results import run
from callback_priority.simulation.scenario import Crash, Scenario, Stream

DEADLINE, TASK = ServiceClass.DEADLINE, ServiceClass.TASK


class Chronicle:
    """Keeps when what happened, in the order in which it was told."""

    def __init__(self):
        self.times = []
        self.waits_of = []

    def waits(self, now, service_class, pool, entry):
        """Told of when it arrives, which is before the loop that sees it."""

    def started(self, now, scheduler, service_class, pool, entry, number):
        self.times.append(now)
        self.waits_of.append(now - entry.at)

    def ended(self, now, service_class, pool, entry, number):
        self.times.append(now)

    def decided(self, now, scheduler, snapshot, decision):
        self.times.append(now)

    def happened(self, now, what):
        self.times.append(now)


def scenario(*streams, **kwargs):
    defaults = {"name": "by hand", "seconds": 300.0, "slots": 2, "schedulers": 3}
    return Scenario(**(defaults | kwargs), streams=streams)


RARE = Stream(
    name="rare", service_class=DEADLINE, holds=Fixed(seconds=2.0), arrivals=Poisson(rate_per_second=0.05)
)
FLOOD = Stream(
    name="flood",
    service_class=TASK,
    holds=Fixed(seconds=20.0),
    arrivals=Storms(at_seconds=(20.0,)),
    batch=30,
)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"loop_seconds": 0.0},
        {"slots": 9, "pools": {"default_pool": 1}},
        {"crashes": (Crash(at_seconds=70.0, scheduler=1, takeover_seconds=20.0),)},
        {"schedulers": 1},
    ],
    ids=["idle", "no-loops", "full-pool", "crash", "alone"],
)
def test_time_never_goes_back(kwargs):
    chronicle = Chronicle()
    limited = Settings(slot_quotas={TASK: Quota(limit_slots=1)})
    treatment = Treatment(name="fair", settings=limited, changes=((150.0, Settings()),))
    Simulation(scenario(RARE, FLOOD, **kwargs), treatment, seed=1, watch=chronicle).run()
    assert chronicle.times == sorted(chronicle.times)
    assert min(chronicle.waits_of) >= 0


def test_nobody_starts_before_it_came():
    """Of several idle schedulers, one sees what came; the others wake up at that time, not where they fell asleep."""
    found = run(scenario(RARE, slots=1), Treatment(name="fair"), seed=1).classes[DEADLINE]
    assert found.wait_seconds
    assert all(0 <= wait <= 2.0 for wait in found.wait_seconds)
