"""What came of a run, as values: what tables, JSON and reports are made of.

Shares, Jain's index and lag are taken where they mean something, in contended stretches; see `callback_priority.simulation.meter`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import attrs

from callback_priority.core.classes import SCHEDULER_SCOPE, Level, ServiceClass
from callback_priority.core.units import MICROSECONDS, MILLI, seconds_to_micros
from callback_priority.simulation.engine import Simulation, Treatment
from callback_priority.simulation.meter import Meter
from callback_priority.simulation.scenario import Scenario

__all__ = [
    "QUANTILES",
    "ClassResult",
    "Contention",
    "Lag",
    "RunResult",
    "class_results",
    "percentile",
    "place_of",
    "run",
]

QUANTILES = (0.5, 0.95, 0.99)
"""Of waits, what is told: the median, and how long the unlucky wait."""


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """The smallest value that at least this fraction of the values does not exceed (nearest rank).

    Args:
        ordered: The values, in ascending order, at least one.
        fraction: Between 0 and 1.

    >>> percentile([10, 20, 30, 40], 0.5), percentile([10, 20, 30, 40], 0.95)
    (20, 40)
    """
    return ordered[max(0, place_of(fraction, len(ordered)) - 1)]


def place_of(fraction: float, count: int) -> int:
    """The place of a quantile among so many values in ascending order, counted from one.

    >>> place_of(0.95, 200), place_of(0.95, 201), place_of(1.0, 7)
    (190, 191, 7)
    """
    return int(-(-Fraction(str(fraction)) * count // 1))


@attrs.frozen(kw_only=True)
class ClassResult:
    """What one class got in one run.

    Args:
        arrived: How many workloads arrived; none of a backlog without end.
        started: How many were started.
        waiting: How many were waiting at the end, a backlog without end aside.
        wait_seconds: Quantiles of the waits from arrival to grant, and the longest as the quantile 1; of what was started,
            and what arrived after the warm-up. Empty if there is none.
        mean_wait_seconds: Their mean; ``None`` if there is none.
        measured: How many waits these are of.
        delay_seconds: Quantiles as of ``wait_seconds``, with what still waited at the end: it counts as having waited until then,
            which is the least that it waits. A class that is starved has few waits, and those are the short ones.
        mean_delay_seconds: Their mean; ``None`` if there is none.
        delays: How many these are of.
        oldest_seconds: How long the first that still waited at the end had waited; nought if none did.
        slot_seconds: Slot-time held, to the end for what still ran.
        longest_hold_seconds: The longest hold that ended.
        slots: Slots held on average, over time: one number for each stretch of equal length.
        wanting: The part of each stretch in which some of it waited while another class waited too.
        kept_share: The part of all slots' time that it held while some of it waited; ``None`` if it never waited.
    """

    arrived: int
    started: int
    waiting: int
    wait_seconds: Mapping[float, float]
    mean_wait_seconds: float | None
    measured: int
    delay_seconds: Mapping[float, float]
    mean_delay_seconds: float | None
    delays: int
    oldest_seconds: float
    slot_seconds: float
    longest_hold_seconds: float
    slots: tuple[float, ...]
    wanting: tuple[float, ...]
    kept_share: float | None


@attrs.frozen(kw_only=True)
class Contention:
    """What the classes got while certain of them, and no others, waited.

    Args:
        classes: Those that waited.
        seconds: For how long altogether.
        share: Each one's part of the slot-time that they held together.
        entitlement: The part that its weight entitles it to.
        jain: Jain's index of shares over weights: 1 is fair, one over their number is one class having everything.
    """

    classes: tuple[ServiceClass, ...]
    seconds: float
    share: Mapping[ServiceClass, float]
    entitlement: Mapping[ServiceClass, float]
    jain: float


@attrs.frozen(kw_only=True)
class Lag:
    """How far two classes drifted apart, in slot-seconds over weight, while both waited.

    Args:
        first: The one.
        second: The other.
        seconds: The furthest.
        bound: What start-time fair queuing promises of any two moments of such a stretch,
            ``2 * K * (d_f / w_f + d_g / w_g)`` with all slots K and, of each class, the longest hold d that came up or, if that
            is more, the first charge. ``docs/explanation/bounds.md`` derives it.
    """

    first: ServiceClass
    second: ServiceClass
    seconds: float
    bound: float


@attrs.frozen(kw_only=True)
class RunResult:
    """What one run came to.

    Args:
        scenario: The scenario's name.
        treatment: The treatment's name.
        seed: The seed.
        seconds: How long was simulated.
        slots: Slots of all schedulers together.
        classes: What each class got.
        dags: Of each class, the median and the 95th percentile of the waits of each Dag of which something was started.
        contention: What they got in contended stretches, the longest such stretch first.
        lags: How far each two of them drifted apart.
        utilisation: The part of the slots' time that was held.
        decisions: How many passes the slot loop made.
    """

    scenario: str
    treatment: str
    seed: int
    seconds: float
    slots: int
    classes: Mapping[ServiceClass, ClassResult]
    dags: Mapping[ServiceClass, Mapping[int, tuple[float, float]]]
    contention: tuple[Contention, ...]
    lags: tuple[Lag, ...]
    utilisation: float
    decisions: int

    def share(self, service_class: ServiceClass) -> float:
        """The class's part of all slot-time that was held."""
        total = sum(each.slot_seconds for each in self.classes.values())
        return self.classes[service_class].slot_seconds / total if total else 0.0

    @property
    def jain(self) -> float | None:
        """Jain's index over all contended stretches, by their length; ``None`` if there was none."""
        total = sum(each.seconds for each in self.contention)
        return sum(each.jain * each.seconds for each in self.contention) / total if total else None


def run(
    scenario: Scenario,
    treatment: Treatment,
    *,
    seed: int,
    progress: Callable[[float], None] = lambda _part: None,
) -> RunResult:
    """Simulate a scenario under a treatment once.

    Args:
        scenario: What wants slots, and what there is.
        treatment: How they are shared.
        seed: Which random numbers.
        progress: Is told now and then which part of the time has passed, from 0 to 1.
    """
    simulation = Simulation(scenario, treatment, seed=seed)
    meter = simulation.run(progress)
    slots = scenario.slots * scenario.schedulers
    weights = {
        cls: treatment.settings.weight(Level.SCHEDULER, SCHEDULER_SCOPE, cls) / MILLI for cls in meter.classes
    }
    classes = class_results(simulation, scenario)
    used = sum(each.slot_seconds for each in classes.values())
    return RunResult(
        scenario=scenario.name,
        treatment=treatment.name,
        seed=seed,
        seconds=scenario.seconds,
        slots=slots,
        classes=classes,
        dags={cls: _by_dag(meter, place) for place, cls in enumerate(meter.classes)},
        contention=_contention(meter, weights),
        lags=_lags(simulation, weights, scenario, treatment),
        utilisation=used / (slots * scenario.seconds),
        decisions=simulation.decisions,
    )


def class_results(simulation: Simulation, scenario: Scenario) -> dict[ServiceClass, ClassResult]:
    """What each class got in a simulation that is over.

    Args:
        simulation: The simulation.
        scenario: What was run, for as long as it was.
    """
    return {
        cls: _class_result(simulation, place, scenario) for place, cls in enumerate(simulation.meter.classes)
    }


def _class_result(simulation: Simulation, place: int, scenario: Scenario) -> ClassResult:
    meter = simulation.meter
    until, warm_up = seconds_to_micros(scenario.seconds), seconds_to_micros(scenario.warm_up_seconds)
    waits = sorted(meter.waits[place])
    arrived = simulation.left_waiting(meter.classes[place])
    delays = sorted([*waits, *(until - at for at in arrived if at >= warm_up)]) if arrived else waits
    kept, elapsed = meter.kept(place)
    return ClassResult(
        arrived=meter.arrived[place],
        started=meter.started[place],
        waiting=len(arrived),
        wait_seconds=_quantiles(waits),
        mean_wait_seconds=_mean_seconds(waits),
        measured=len(waits),
        delay_seconds=_quantiles(delays),
        mean_delay_seconds=_mean_seconds(delays),
        delays=len(delays),
        oldest_seconds=(until - min(arrived, default=until)) / MICROSECONDS,
        slot_seconds=meter.slot_micros[place] / MICROSECONDS,
        longest_hold_seconds=meter.longest_hold[place] / MICROSECONDS,
        slots=tuple(each / meter.bin_length for each in meter.binned[place]),
        wanting=tuple(each / meter.bin_length for each in meter.demand[place]),
        kept_share=kept / (scenario.slots * scenario.schedulers * elapsed) if elapsed else None,
    )


def _quantiles(ordered: Sequence[int]) -> Mapping[float, float]:
    if not ordered:
        return {}
    found = {each: percentile(ordered, each) / MICROSECONDS for each in QUANTILES}
    found[1.0] = ordered[-1] / MICROSECONDS
    return found


def _mean_seconds(micros: Sequence[int]) -> float | None:
    return sum(micros) / len(micros) / MICROSECONDS if micros else None


def _by_dag(meter: Meter, place: int) -> Mapping[int, tuple[float, float]]:
    of_dag: dict[int, list[int]] = {}
    for dag, wait in zip(meter.waited_dags[place], meter.waits[place], strict=True):
        of_dag.setdefault(dag, []).append(wait)
    found = {}
    for dag, waits in of_dag.items():
        waits.sort()
        found[dag] = (percentile(waits, 0.5) / MICROSECONDS, percentile(waits, 0.95) / MICROSECONDS)
    return found


def _contention(meter: Meter, weights: Mapping[ServiceClass, float]) -> tuple[Contention, ...]:
    found = []
    for waiting, (*micros, elapsed) in meter.contended_micros.items():
        classes = tuple(cls for place, cls in enumerate(meter.classes) if waiting >> place & 1)
        held = {cls: micros[meter.place[cls]] for cls in classes}
        total, weight = sum(held.values()), sum(weights[cls] for cls in classes)
        rates = [held[cls] / weights[cls] for cls in classes]
        squares = sum(rate * rate for rate in rates)
        found.append(
            Contention(
                classes=classes,
                seconds=elapsed / MICROSECONDS,
                share={cls: held[cls] / total if total else 0.0 for cls in classes},
                entitlement={cls: weights[cls] / weight for cls in classes},
                jain=sum(rates) ** 2 / (len(rates) * squares) if squares else 1.0,
            )
        )
    return tuple(sorted(found, key=lambda each: (-each.seconds, each.classes)))


def _lags(
    simulation: Simulation, weights: Mapping[ServiceClass, float], scenario: Scenario, treatment: Treatment
) -> tuple[Lag, ...]:
    meter, slots = simulation.meter, scenario.slots * scenario.schedulers
    # A scheduler learns of another one's overruns a loop late.
    late = scenario.loop_seconds if scenario.schedulers > 1 else 0.0
    first_charge = treatment.settings.initial_estimate / MICROSECONDS
    longest = [
        max(micros / MICROSECONDS + late, first_charge) / weights[cls]
        for cls, micros in zip(meter.classes, simulation.longest_holds(), strict=True)
    ]
    return tuple(
        Lag(
            first=meter.classes[pair.first],
            second=meter.classes[pair.second],
            seconds=pair.furthest / MICROSECONDS,
            bound=2 * slots * (longest[pair.first] + longest[pair.second]),
        )
        for pair in meter.lags()
    )
