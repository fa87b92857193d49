"""History as a workload: what was recorded in a stretch of time, made into a scenario.

Arrivals are those recorded, and so are holds and the schedulers' loops (`callback_priority.simulation.past` tells how they are read);
nothing is fitted to the waits that are to be compared. A slot that comes free between two loops is granted again in the second, and
a recorded hold contains the wait for it. When in between it came free has no record, so it is taken to be halfway.

The simulation begins before the stretch, where nobody waited if that is known. Who held a slot then is given one again, for what was
left of the hold; who waited waits; nothing is measured of what came before the stretch. What has no recorded hold, because it still ran or waited at the
end, is given the hold of another of its Dag.

Complexity: O(turns log turns).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Final

import attrs

from callback_priority.core.classes import CLASS_ORDER, ServiceClass
from callback_priority.core.units import MICROSECONDS, seconds_to_micros
from callback_priority.simulation.past import SAME_PASS, Freed, Past, Turn, loops_of, when_freed
from callback_priority.simulation.results import QUANTILES, percentile
from callback_priority.simulation.scenario import UNLIMITED_POOL, Arriving, Scenario

__all__ = ["Recorded", "Replay", "Trace", "rebuild"]

_LEAD_SECONDS: Final = 2.0
"""At least this long before the stretch the simulation begins, so that what held slots then holds them again."""


@attrs.frozen(kw_only=True)
class Recorded:
    """What a class really got.

    Args:
        arrived: How many began to wait in the stretch.
        started: How many of them were granted a slot in it.
        waiting: How many waited at its end, whenever they began to.
        wait_seconds: Quantiles of the waits of those that were granted a slot, and the longest as the quantile 1; empty if none was.
        mean_hold_seconds: The mean of the holds that are known; ``None`` if none is.
    """

    arrived: int
    started: int
    waiting: int
    wait_seconds: Mapping[float, float]
    mean_hold_seconds: float | None


@attrs.frozen(kw_only=True)
class Trace:
    """Recorded work of one class, pool and width, of callbacks also one priority: fills `callback_priority.simulation.scenario.Work`.

    Args:
        name: What to call it.
        service_class: Its class.
        pool: The pool that it draws on.
        width: Pool slots that each takes.
        priority: Its priority; each task instance has one of its own.
        dags: How many Dags it comes from.
        all: All of it, in the order of its arrival.
    """

    name: str
    service_class: ServiceClass
    pool: str
    width: int
    priority: int
    dags: int
    all: tuple[Arriving, ...]

    @property
    def endless(self) -> bool:
        """What was recorded ends."""
        return False

    def arriving(self, seed: int) -> Iterator[Arriving]:
        """The same for every seed: nothing of it is drawn."""
        return iter(self.all)


@attrs.frozen(kw_only=True)
class Replay:
    """History made ready to be simulated.

    Args:
        scenario: The work, and what there is to be had.
        recorded: What each class really got.
        freed: When slots could be granted again.
        assumptions: What had no record, and what was put in its place, in sentences.
    """

    scenario: Scenario
    recorded: Mapping[ServiceClass, Recorded]
    freed: Freed
    assumptions: tuple[str, ...]


def rebuild(
    past: Past,
    *,
    slots: int,
    schedulers: int,
    loop_seconds: float,
    tasks_per_query: int | None = None,
) -> Replay:
    """Make a scenario of what was recorded.

    Args:
        past: What was recorded.
        slots: Slots of each scheduler (Airflow's ``parallelism``).
        schedulers: How many there were.
        loop_seconds: The interval between two loops of a scheduler.
        tasks_per_query: The most task instances that one selection finds (Airflow's ``max_tis_per_query``).
    """
    freed = when_freed(past, slots=slots, loop_seconds=loop_seconds)
    step = max(1, seconds_to_micros(loop_seconds))
    loops = loops_of(past, schedulers=schedulers, loop_seconds=loop_seconds)
    holds = _Holds(
        past, freed, step, sorted(each for some in loops for each in some) if schedulers == 1 else []
    )
    lead = max(seconds_to_micros(_LEAD_SECONDS), 2 * step)
    lead += -lead % step
    work = _Work(past.turns)
    begin = past.begin
    held = waited = 0
    for turn in sorted(past.turns, key=lambda turn: (turn.since, turn.service_class, turn.order)):
        if turn.since >= begin:
            if turn.since < past.until:
                work.add(turn, turn.since - begin + lead, holds.of(turn))
        elif turn.granted is None or turn.granted >= begin:
            waited += 1
            work.add(turn, step + waited, holds.of(turn))
        elif (freed.at.get(turn) or past.until) > begin:
            held += 1
            work.add(turn, 0, holds.of(turn) - (begin - turn.granted) + lead)
    pools = {pool: past.pools.get(pool, UNLIMITED_POOL) for pool in sorted(work.pools)}
    scenario = Scenario(
        name="replay",
        seconds=(lead + past.until - begin) / MICROSECONDS,
        warm_up_seconds=(lead + past.since - begin) / MICROSECONDS,
        streams=work.traces(),
        slots=slots,
        schedulers=schedulers,
        loop_seconds=loop_seconds,
        loops=tuple(_shifted(each, lead - begin, lead + past.until - begin, step) for each in loops),
        pools=pools,
        tasks_per_query=tasks_per_query,
        description="What the metadata database has recorded.",
    )
    return Replay(
        scenario=scenario,
        recorded={
            cls: _recorded(past, freed, cls)
            for cls in CLASS_ORDER
            if any(turn.service_class is cls for turn in past.turns)
        },
        freed=freed,
        assumptions=(
            _about_loops(loops, loop_seconds),
            *_assumptions(past, freed, holds, held, waited, frozenset(pools)),
        ),
    )


class _Holds:
    """How long each turn holds its slot in the simulation, in microseconds."""

    def __init__(self, past: Past, freed: Freed, step: int, loops: Sequence[int]) -> None:
        self._freed = freed
        self._loops = loops
        self._until = past.until
        self._half = step // 2
        self._random = Random("replay")  # noqa: S311 - not for secrets
        known: defaultdict[tuple[ServiceClass, str], list[int]] = defaultdict(list)
        for turn, at in freed.at.items():
            if turn.granted is not None:
                known[turn.service_class, turn.dag].append(at - turn.granted)
                known[turn.service_class, ""].append(at - turn.granted)
        self._known = {key: sorted(each) for key, each in known.items()}
        self.drawn = 0
        self.drawn_running = 0
        self.unknown = 0

    def of(self, turn: Turn) -> int:
        """Its hold, or that of another."""
        at = self._freed.at.get(turn)
        if at is not None and turn.granted is not None:
            return max(1, self._free(at) - self._pass_of(turn.granted))
        elapsed = 0 if turn.granted is None else max(0, self._until - turn.granted)
        self.drawn += 1
        self.drawn_running += turn.granted is not None
        cls = turn.service_class
        for known in (self._known.get((cls, turn.dag)), self._known.get((cls, ""))):
            if known:
                longer = bisect_right(known, elapsed)
                if longer < len(known):
                    return max(
                        1, known[longer + int(self._random.random() * (len(known) - longer))] - self._half
                    )
        self.unknown += 1
        return max(1, elapsed + self._half)

    def _free(self, at: int) -> int:
        """When a slot came free that could be granted again in a pass."""
        place = bisect_right(self._loops, at + SAME_PASS) - 1
        if place > 0 and at - self._loops[place] <= SAME_PASS:
            return (self._loops[place - 1] + self._loops[place]) // 2
        return at - self._half

    def _pass_of(self, granted: int) -> int:
        """When the pass began in which a slot was granted; task instances are stamped a moment after."""
        place = bisect_right(self._loops, granted) - 1
        return self._loops[place] if place >= 0 and granted - self._loops[place] <= SAME_PASS else granted


def _shifted(loops: Sequence[int], by: int, until: int, step: int) -> list[int]:
    """Loops as the simulation counts time, with more at even intervals before the first and after the last of which there is a record."""
    found = [each + by for each in loops if each + by > 0] or [until]
    # What holds slots at the beginning is given them there.
    return [0, *range(found[0] % step or step, found[0], step), *found, *range(found[-1] + step, until, step)]


class _Work:
    """Arrivals, sorted into traces.

    Airflow's order among task instances is more than a priority and an age: it goes on with the Dag run's logical date and the
    map index, and what is equal in these comes as the database has it, by Dag and run. So each gets a priority of its
    own, which is its place in that order.
    """

    def __init__(self, turns: Sequence[Turn]) -> None:
        self._arriving: defaultdict[tuple[ServiceClass, str, int, int], list[Arriving]] = defaultdict(list)
        self._dags: defaultdict[tuple[ServiceClass, str, int, int], dict[str, int]] = defaultdict(dict)
        orders = {_order(turn) for turn in turns if turn.service_class is ServiceClass.TASK}
        self._places = {order: -place for place, order in enumerate(sorted(orders))}

    @property
    def pools(self) -> set[str]:
        """The pools that it draws on."""
        return {pool for _, pool, _, _ in self._arriving}

    def add(self, turn: Turn, at: int, hold: int) -> None:
        """One arrives."""
        is_task = turn.service_class is ServiceClass.TASK
        key = (turn.service_class, turn.pool, turn.width, 0 if is_task else turn.priority)
        dag = self._dags[key].setdefault(turn.dag, len(self._dags[key]))
        place = self._places[_order(turn)] if is_task else None
        self._arriving[key].append(Arriving(at, max(1, hold), dag, place))

    def traces(self) -> tuple[Trace, ...]:
        """All of it."""
        found = []
        for key in sorted(self._arriving, key=lambda key: (CLASS_ORDER.index(key[0]), *key[1:])):
            cls, pool, width, priority = key
            found.append(
                Trace(
                    name=f"{cls} in {pool}, width {width}, priority {priority}",
                    service_class=cls,
                    pool=pool,
                    width=width,
                    priority=priority,
                    dags=max(1, len(self._dags[key])),
                    all=tuple(sorted(self._arriving[key], key=lambda each: each.at)),
                )
            )
        return tuple(found)


def _order(turn: Turn) -> tuple[int | str, ...]:
    return (-turn.priority, *turn.order)


def _recorded(past: Past, freed: Freed, cls: ServiceClass) -> Recorded:
    arrived = waiting = 0
    waits: list[int] = []
    holds: list[int] = []
    for turn in past.turns:
        if turn.service_class is not cls or turn.since >= past.until:
            continue
        granted = turn.granted is not None and turn.granted < past.until
        waiting += not granted
        if turn.granted is not None and turn in freed.at:
            holds.append(freed.at[turn] - turn.granted)
        if turn.since >= past.since:
            arrived += 1
            if turn.granted is not None and granted and not turn.again:
                waits.append(turn.granted - turn.since)
    waits.sort()
    quantiles = {each: percentile(waits, each) / MICROSECONDS for each in QUANTILES} if waits else {}
    if waits:
        quantiles[1.0] = waits[-1] / MICROSECONDS
    return Recorded(
        arrived=arrived,
        started=len(waits),
        waiting=waiting,
        wait_seconds=quantiles,
        mean_hold_seconds=sum(holds) / len(holds) / MICROSECONDS if holds else None,
    )


# What is assumed -------------------------------------------------------------------------------------------------


def _about_loops(loops: Sequence[Sequence[int]], loop_seconds: float) -> str:
    if not loops:
        return "Which scheduler's loops are whose cannot be told, since one took another's place: they are taken to be evenly spaced."
    return f"Loops come when they left a record; in between every {loop_seconds:.2f} s, as if nothing could have been done in those without one."


def _assumptions(
    past: Past, freed: Freed, holds: _Holds, held: int, waited: int, pools: frozenset[str]
) -> Iterator[str]:
    yield "Arrivals stay as they were: nothing that would start or end sooner makes its successors come sooner."
    yield (
        "A task instance that waited for a slot waited for nothing else: limits on active tasks and Dag runs, and executors"
        " that were full by themselves, are not simulated."
    )
    turnaround = ", ".join(
        f"{cls} {seconds:.1f} s" for cls, seconds in sorted(freed.turnaround_seconds.items())
    )
    ended = len(freed.at)
    if freed.journalled:
        yield (
            f"Until when slots were held is told by the journal for {freed.journalled:,} of {ended:,} holds; the others are taken to"
            f" have been free this long after the end of the work: {turnaround}."
        )
    elif freed.seen:
        yield (
            f"Without a journal, {freed.seen:,} of {ended:,} holds are taken to have lasted until the grant that took their slot, made while all"
            f" slots were held; the others until this long after the end of the work: {turnaround}."
        )
    elif ended:
        yield (
            "There is no journal, and the schedulers' slots were never all held while somebody waited: a slot is taken to have been free one loop"
            " after its work ended."
        )
    if holds.drawn_running:
        yield (
            f"{holds.drawn_running:,} that still ran, or of which no end is recorded, hold their slots as long as another of the same Dag"
            " that held one for longer."
        )
    if waiting := holds.drawn - holds.drawn_running:
        yield f"{waiting:,} that were never granted a slot would hold one as long as another of the same Dag (else class)."
    if holds.unknown:
        yield f"{holds.unknown:,} have no other to go by: they end at the end, or as soon as they begin."
    if held or waited:
        yield (
            f"The simulation begins {(past.since - past.begin) / MICROSECONDS:,.0f} s before the stretch. {held:,} held slots then and"
            f" {waited:,} waited; they are in it from its beginning, and not measured, and no class owes another anything then."
        )
    if again := sum(turn.again for turn in past.turns):
        yield (
            f"{again:,} callbacks were tried more than once: they arrive once and hold a slot as long as the last time; their recorded"
            " waits are not counted."
        )
    gone = sorted(pools - past.pools.keys())
    if gone:
        yield f"Pools that are not there any more are taken to be without end: {', '.join(gone)}."
    yield "Pools have the slots that they have now."
