"""Scenarios and goals, drawn at random."""

from __future__ import annotations

from random import Random

from callback_priority.core.classes import ServiceClass
from callback_priority.simulation.arrivals import Poisson, Regular
from callback_priority.simulation.holds import Exponential, LogNormal
from callback_priority.simulation.scenario import Scenario, Stream

__all__ = ["generated"]


def generated(number: int) -> tuple[Scenario, str]:
    """A scenario and goals for it.

    Args:
        number: Which.
    """
    draw = Random(f"tuning {number}")  # noqa: S311 - not for secrets
    slots = draw.choice((8, 12, 16, 32))
    hold = draw.uniform(2, 8)
    streams = [
        Stream(
            name="tasks",
            service_class=ServiceClass.TASK,
            holds=LogNormal(median_seconds=draw.uniform(30, 300), sigma=draw.uniform(0.3, 1.0)),
        )
    ]
    if draw.random() < 0.5:
        load = draw.uniform(0.02, 0.1) * slots
        streams.append(
            Stream(
                name="alerts",
                service_class=ServiceClass.DEADLINE,
                holds=Exponential(mean_seconds=hold),
                arrivals=Poisson(rate_per_second=load / hold),
            )
        )
    else:
        streams.append(
            Stream(
                name="alerts",
                service_class=ServiceClass.DEADLINE,
                holds=Exponential(mean_seconds=hold),
                arrivals=Regular(every_seconds=600, from_seconds=draw.uniform(100, 500)),
                batch=draw.randrange(10, 5 * slots),
                spread_seconds=draw.uniform(0, 60),
            )
        )
    if draw.random() < 0.4:
        hold = draw.uniform(10, 30)
        streams.append(
            Stream(
                name="callbacks",
                service_class=ServiceClass.TASK_CALLBACK,
                holds=Exponential(mean_seconds=hold),
                arrivals=Poisson(rate_per_second=draw.uniform(0.3, 1.2) * slots / hold),
            )
        )
    wait, kept = draw.choice((5, 10, 20, 40, 60)), draw.choice((30, 50, 60, 70))
    pools = {"default_pool": draw.choice((None, slots, 128))}
    scenario = Scenario(
        name=f"generated {number}", slots=slots, seconds=1_800, streams=tuple(streams), pools=pools
    )
    return scenario, f"deadline p95 <= {wait} s, task keeps >= {kept}%"
