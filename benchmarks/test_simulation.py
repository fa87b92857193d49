"""What a simulation costs: next to one that has no scheduler in it, and a day of a large deployment."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from random import Random
from time import process_time

import pytest
import simpy

from callback_priority.core.classes import ServiceClass
from callback_priority.simulation.arrivals import DAY_SECONDS, Diurnal, Poisson
from callback_priority.simulation.engine import Simulation, Treatment
from callback_priority.simulation.holds import Exponential, LogNormal
from callback_priority.simulation.scenario import Scenario, Stream

SERVERS = 16
UTILISATION = 0.9
CUSTOMERS = 10_000
ROUNDS = 15
DAYS = 3
RATE = SERVERS * UTILISATION
"""Customers per second; each is served for a second on average."""

QUEUE = Scenario(
    name="M/M/16",
    seconds=CUSTOMERS / RATE,
    slots=SERVERS,
    loop_seconds=0,
    streams=(
        Stream(
            name="customers",
            service_class=ServiceClass.DEADLINE,
            arrivals=Poisson(rate_per_second=RATE),
            holds=Exponential(mean_seconds=1),
        ),
    ),
)

POOLS = [f"pool_{number}" for number in range(20)]
DAGS = 500
DAILY = {
    # A class's workloads in a day, and the median of their holds in seconds.
    ServiceClass.TASK: (600_000, 37.5),
    ServiceClass.TASK_CALLBACK: (200_000, 2.5),
    ServiceClass.DAG_CALLBACK: (150_000, 3.0),
    ServiceClass.DEADLINE: (50_000, 2.0),
}
DAY = Scenario(
    name="a day",
    seconds=DAY_SECONDS,
    slots=500,
    pools=dict.fromkeys(POOLS, 28),
    streams=tuple(
        Stream(
            name=f"{service_class} {pool}",
            service_class=service_class,
            arrivals=Diurnal(rate_per_second=daily / len(POOLS) / DAY_SECONDS),
            holds=LogNormal(median_seconds=median, sigma=1.0),
            pool=pool,
            dags=DAGS // len(POOLS),
        )
        for pool in POOLS
        for service_class, (daily, median) in DAILY.items()
    ),
)


def ours() -> int:
    """The queue, every grant decided by the slot loop, charged, and settled through the ledger."""
    return sum(Simulation(QUEUE, Treatment(name="fair"), seed=1).run().started)


def theirs() -> int:
    """The same queue in SimPy: whoever waits longest takes the free server."""
    random = Random(1)  # noqa: S311 - not for secrets
    environment = simpy.Environment()
    servers = simpy.Resource(environment, SERVERS)
    waits: list[float] = []

    def customer() -> Iterator[simpy.Event]:
        arrived = environment.now
        with servers.request() as server:
            yield server
            waits.append(environment.now - arrived)
            yield environment.timeout(random.expovariate(1.0))

    def customers() -> Iterator[simpy.Event]:
        for _ in range(CUSTOMERS):
            yield environment.timeout(random.expovariate(RATE))
            environment.process(customer())

    environment.process(customers())
    environment.run()
    return len(waits)


def least_for_each(*works: Callable[[], int]) -> list[float]:
    """The least CPU seconds for one customer, of many runs of each in alternating rounds."""
    best = [float("inf")] * len(works)
    gc.collect()
    gc.disable()
    try:
        for _ in range(ROUNDS):
            for place, work in enumerate(works):
                began = process_time()
                served = work()
                best[place] = min(best[place], (process_time() - began) / served)
                gc.collect()
    finally:
        gc.enable()
    return best


def test_the_scheduler_in_a_simulation_costs_little_more_than_the_simulation(benchmark, claim):
    simulated, plain = least_for_each(ours, theirs)
    print(f"\nM/M/16: {simulated * 1e6:.1f} us for each customer, in SimPy {plain * 1e6:.1f} us")
    claim("CPU of M/M/16 through the slot loop / the same queue in SimPy", simulated / plain, 4.0)
    served = benchmark.pedantic(ours, rounds=3, iterations=1)
    assert served == pytest.approx(CUSTOMERS, rel=0.05)


def a_day() -> tuple[int, float, float]:
    """Simulate the day: how many workloads arrived, in how many CPU seconds, with how many MiB at the peak."""
    simulation = Simulation(DAY, Treatment(name="fair"), seed=1)
    arrived = sum(simulation.run().arrived)
    (peak,) = [line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
    return arrived, process_time(), int(peak.split()[1]) / 1024


def test_a_day_of_a_million_workloads_takes_a_minute(claim):
    """Each in a process of its own, so that its memory is its own: with the imports, both are what a user pays."""
    runs = []
    for _ in range(DAYS):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            runs.append(process.submit(a_day).result())
    arrived, seconds, mebibytes = min(runs, key=lambda run: run[1])
    told = ", ".join(f"{run[1]:.1f}" for run in runs)
    print(f"\n{arrived:,} workloads: {told} s of CPU, {mebibytes:.0f} MiB")
    assert arrived == pytest.approx(sum(daily for daily, _ in DAILY.values()), rel=0.02)
    claim(
        f"a day of 1,000,000 workloads, 4 classes x 20 pools, 500 Dags: least CPU seconds of {DAYS}",
        seconds,
        60,
    )
    claim("the same: MiB at the peak", mebibytes, 1024)
