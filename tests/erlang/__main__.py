"""``python -m tests.erlang``: the mean wait of a queue that queuing theory has solved, next to what the simulation finds.

In M/M/16, customers come at random to 16 servers, each is served for a second on average, exponentially distributed, and who came first goes
first. Erlang (1917) gives the mean wait: the chance C that all servers are busy, over what they could serve more in a second. Here
the servers are a scheduler's slots and the customers are alerts: the production slot loop decides every grant, and settles it.

- *Independent runs*: each load is simulated with 60 seeds, each of which gives one mean.
- *No warm-up*: a run begins in the steady state. How many are there at its start is drawn from the queue's stationary distribution; by the
  lack of memory of the exponential distribution, what is left of their service is distributed as all of it. They themselves are not measured.
  Nor are those who still wait at its end: some 15 of 285,000 at 95 % load.
- *Loops whenever something comes or ends*: a loop interval would be waited for, too.
- *Work as a control variate* (Lavenberg, Welch, 1981, "A perspective on the use of control variables to increase the efficiency of
  Monte Carlo simulations"): by chance, a run has more work to do or less, and its waits are longer or shorter for it. What work is expected
  is known, so a straight line through the runs' waits over their work gives the mean wait at the expected work, half as
  uncertain a variance as their mean has at 90 % and 95 % load. The plain mean over the runs is printed beside it.

It ends non-zero unless Erlang's mean is within the 99 % confidence interval at each load, and half the interval's width at most 3 % of the mean.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import takewhile
from random import Random
from statistics import fmean, linear_regression

from callback_priority.core.classes import ServiceClass
from callback_priority.core.units import MICROSECONDS
from callback_priority.policy.settings import Settings
from callback_priority.simulation.arrivals import Poisson, Storms
from callback_priority.simulation.engine import Simulation, Treatment
from callback_priority.simulation.estimates import CONFIDENCE, Estimate, estimate, t_quantile
from callback_priority.simulation.holds import Exponential
from callback_priority.simulation.scenario import Scenario, Stream

SERVERS = 16
RUNS = 60
CUSTOMERS = {0.70: 105_000, 0.90: 115_000, 0.95: 285_000}
"""In each run, by load: the closer to all that the servers can do, the longer do chance fluctuations last."""
MOST = 0.03
"""Half of the interval's width, as a part of the mean."""
FIRST_COME_FIRST_SERVED = Treatment(name="fair", settings=Settings(dag_turn_seconds=0))


def chance_to_wait(load: float) -> float:
    """Erlang C: that a customer finds all servers busy. By way of Erlang B, which has a recursion without large numbers."""
    blocked = 1.0
    for servers in range(1, SERVERS + 1):
        blocked = load * SERVERS * blocked / (servers + load * SERVERS * blocked)
    return blocked / (1 - load * (1 - blocked))


def mean_wait(load: float) -> float:
    """In seconds, that is, in mean times of service."""
    return chance_to_wait(load) / (SERVERS * (1 - load))


def there_at_the_start(load: float, seed: int) -> int:
    """How many customers there are at some moment of the steady state."""
    random = Random(f"{seed} start")  # noqa: S311 - not for secrets
    left = random.random() * sum(_weights(load))
    for count, weight in enumerate(_weights(load)):
        left -= weight
        if left < 0:
            return count
    return SERVERS


def _weights(load: float) -> Iterator[float]:
    """How likely each number of customers is, but for a factor; those further out are too unlikely to be told from nought."""
    weight, count = 1.0, 0
    while weight > sys.float_info.epsilon:
        yield weight
        count += 1
        weight *= load * SERVERS / min(count, SERVERS)


def simulated(load: float, customers: int, seed: int) -> tuple[float, float]:
    """One run: the mean wait in seconds, and how much more work than expected there was, as a part of all servers' time."""
    rate = load * SERVERS
    served = Exponential(mean_seconds=1)
    coming = Stream(
        name="coming",
        service_class=ServiceClass.DEADLINE,
        arrivals=Poisson(rate_per_second=rate),
        holds=served,
    )
    present = Stream(
        name="present",
        service_class=ServiceClass.DEADLINE,
        arrivals=Storms(at_seconds=(0,)),
        batch=there_at_the_start(load, seed),
        holds=served,
    )
    scenario = Scenario(
        name=f"M/M/{SERVERS}",
        seconds=customers / rate,
        slots=SERVERS,
        loop_seconds=0,
        warm_up_seconds=1 / MICROSECONDS,
        streams=(present, coming),
    )
    (waits,) = Simulation(scenario, FIRST_COME_FIRST_SERVED, seed=seed).run().waits
    until = scenario.seconds * MICROSECONDS
    work = sum(each.hold for each in takewhile(lambda each: each.at < until, coming.arriving(seed)))
    return fmean(waits) / MICROSECONDS, work / until / SERVERS - load


def at_expected_work(found: Sequence[tuple[float, float]]) -> Estimate:
    """The mean wait where a straight line through the runs has the work that is expected, with its confidence interval."""
    waits, excesses = zip(*found, strict=True)
    slope, mean = linear_regression(excesses, waits)
    left = sum((wait - mean - slope * excess) ** 2 for wait, excess in found) / (len(found) - 2)
    off = fmean(excesses)
    spread = sum((excess - off) ** 2 for excess in excesses)
    error = math.sqrt(left * (1 / len(found) + off**2 / spread))
    half = t_quantile((1 + CONFIDENCE) / 2, len(found) - 2) * error
    return Estimate(mean=mean, low=mean - half, high=mean + half, n=len(found))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.erlang", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=RUNS, help="so many for each load")
    parser.add_argument("--part", type=float, default=1.0, help="of the customers, to try it out")
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    agree = True
    with ProcessPoolExecutor(arguments.jobs) as processes:
        for load, customers in CUSTOMERS.items():
            began = time.monotonic()
            one = partial(simulated, load, round(customers * arguments.part))
            found = list(processes.map(one, range(1, arguments.runs + 1)))
            theory, measured = mean_wait(load), at_expected_work(found)
            plain = estimate([wait for wait, _ in found]) or measured
            half = (measured.half_width or 0.0) / measured.mean
            agrees = abs(theory / measured.mean - 1) <= half <= MOST
            agree = agree and agrees
            print(
                f"{load:.0%}: Erlang C {theory:.5f} s, simulated {_interval(measured)}, "
                f"{'agrees' if agrees else 'DOES NOT AGREE'}; plain mean {_interval(plain)}; "
                f"{arguments.runs} runs of {round(customers * arguments.part):,}, {time.monotonic() - began:.0f} s",
                flush=True,
            )
    return 0 if agree else 1


def _interval(found: Estimate) -> str:
    half = found.half_width or 0.0
    return f"{found.low:.5f} to {found.high:.5f} s ({found.mean:.5f} +- {half / found.mean:.2%})"


if __name__ == "__main__":
    sys.exit(main())
