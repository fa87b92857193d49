"""The model that the choice of algorithm rests on: a few slots, tasks that hold them long, quick callbacks.

16 slots; tasks always waiting, holding 900 s on average; callbacks of 6 s on average that arrive at random,
0.25 a second or, in the *flood*, 4 a second, which is more than all slots could take; a loop every 2 s; six
hours. `contend` runs it under each way of sharing the slots and sums up over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Final

import attrs

from callback_priority.core.classes import ServiceClass
from callback_priority.core.policies import Policy
from callback_priority.core.quotas import Quota
from callback_priority.policy.settings import Settings
from callback_priority.simulation.outcome import Outcome
from callback_priority.simulation.scheduler import Accounting, simulate
from callback_priority.simulation.workload import Stream, Workload

__all__ = ["CONTENDERS", "Contender", "Row", "contend", "render"]

SLOTS: Final = 16
QUIET_RATE: Final = 0.25
FLOOD_RATE: Final = 4.0


@attrs.frozen(kw_only=True)
class Contender:
    """A way of sharing the slots.

    Args:
        name: What to call it.
        settings: Policy and quotas.
        accounting: What a class is charged for.
    """

    name: str
    settings: Settings
    accounting: Accounting = Accounting.SLOT_TIME


CONTENDERS: Final = (
    Contender(name="callbacks first", settings=Settings(policy=Policy.CALLBACKS_FIRST)),
    Contender(name="tasks first", settings=Settings(policy=Policy.TASKS_FIRST)),
    Contender(name="fair by starts", settings=Settings(), accounting=Accounting.STARTS),
    Contender(name="fair by slot-time", settings=Settings()),
    Contender(
        name="fair by slot-time, 2 reserved",
        settings=Settings(slot_quotas={ServiceClass.DEADLINE: Quota(reserve_slots=2)}),
    ),
)


@attrs.frozen(kw_only=True)
class Row:
    """What a contender came to: means over the seeds of what each seed gave.

    Args:
        name: The contender's.
        wait_p50_seconds: Median wait of the callbacks that were started; ``None`` if none was.
        wait_p95_seconds: Their 95th percentile.
        never_started: Callbacks still waiting at the end.
        flood_task_share: Tasks' share of the slot-time in the flood.
    """

    name: str
    wait_p50_seconds: float | None
    wait_p95_seconds: float | None
    never_started: float
    flood_task_share: float


def contend(
    contender: Contender,
    *,
    seeds: Sequence[int] = range(5),
    flood_seeds: Sequence[int] | None = None,
    hours: float = 6,
) -> Row:
    """Run the model, quiet and in the flood, for each seed.

    Args:
        contender: How the slots are shared.
        seeds: One run each; the same seeds give every contender the same work.
        flood_seeds: The same for the flood; ``None`` for the same seeds.
        hours: How long to simulate.
    """
    quiet = [_run(contender, QUIET_RATE, seed, hours) for seed in seeds]
    flood = [
        _run(contender, FLOOD_RATE, seed, hours) for seed in (seeds if flood_seeds is None else flood_seeds)
    ]
    callbacks = [outcome.classes[ServiceClass.DEADLINE] for outcome in quiet]
    return Row(
        name=contender.name,
        wait_p50_seconds=_mean([each.wait_seconds(0.5) for each in callbacks]),
        wait_p95_seconds=_mean([each.wait_seconds(0.95) for each in callbacks]),
        never_started=fmean(each.waiting for each in callbacks),
        flood_task_share=fmean(outcome.share(ServiceClass.TASK) for outcome in flood),
    )


def _run(contender: Contender, rate: float, seed: int, hours: float) -> Outcome:
    streams = (
        Stream(service_class=ServiceClass.TASK, mean_hold_seconds=900),
        Stream(service_class=ServiceClass.DEADLINE, mean_hold_seconds=6, rate_per_second=rate),
    )
    return simulate(
        Workload(streams=streams, seconds=hours * 3600),
        contender.settings,
        slots=SLOTS,
        seed=seed,
        accounting=contender.accounting,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def render(rows: Sequence[Row]) -> str:
    """The rows as a table."""
    lines = [f"{'policy':<32}{'p50 wait':>10}{'p95 wait':>10}{'never started':>15}{'tasks, flood':>14}"]
    for row in rows:
        p50, p95 = (
            "never" if wait is None else f"{wait:,.0f} s"
            for wait in (row.wait_p50_seconds, row.wait_p95_seconds)
        )
        lines.append(
            f"{row.name:<32}{p50:>10}{p95:>10}{row.never_started:>15,.0f}{row.flood_task_share:>14.0%}"
        )
    return "\n".join(lines)
