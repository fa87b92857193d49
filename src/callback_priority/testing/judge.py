"""The starvation judge: looks on while a simulation runs and says which promise was broken, if any.

It knows the promises (``docs/explanation/algorithm.md``) and plain counting: slots, slot-time, who waits. It reads no tag, no
clock, no estimate and no reason of a refusal, so it judges any policy, and it shares no code with what it judges.

Notation: ``w`` weights; ``S`` slot-time that a class was given; ``N`` how many of it were started; ``d`` the longest hold or
charge of a class until then; K slots altogether. *Waits throughout* means that something of the class that could
ever fit is left waiting by each loop from a moment on.

`Promise.SLOT_TIME`
    While f waits throughout, any g gets at most so much more than f:
    ``S_g / w_g - S_f / w_f <= 2 K (d_f / w_f + d_g / w_g)``, between any two moments
    (``docs/explanation/bounds.md``). Promised at the scheduler's slots where no pool that f draws on can be the
    bottleneck, and, with a pool's weights, in a pool where the scheduler's slots cannot be and in which nothing
    is wide: past wide work others go out of turn. f has no limit there, and never had a reserve; g has none. A
    reserve may give more than a share, and what it gave above it is owed.
`Promise.TURNS`
    Where every hold is the same and known beforehand, starts alternate exactly, on however many schedulers:
    ``N_g / w_g - N_f / w_f <= 1 / w_f + 1 / w_g``. The same conditions.
`Promise.RESERVE`
    What one loop starts beyond its class's reserve never takes from what the others lack of theirs.
`Promise.CONSERVATION`
    No loop leaves a slot empty that the first of a line could have had: within reserves and limits, and apart from what tasks keep
    where Airflow's cap on one selection stopped them, and from a pool that is drained, which it may be after ``wide_bypass_limit`` pool slots went past the first of the tasks.
`Promise.ORDER`
    Within a class and a pool, a callback goes before another only if its *turn* may come first: the n-th of its Dag in a row counts as
    having come no sooner than n turn lengths after the first of that row, and each doubling of ``1 + priority`` is worth one
    period of aging. So no Dag waits behind another's backlog, and no priority waits for ever. One that waits again, since its
    scheduler died, has the turn that it had.
    Of task instances, Airflow chooses.

A crash loses what its scheduler knew of its holds, so that they may be charged a second time: K counts that
scheduler's slots once more. A callback that it ran is held until it is taken over. With other settings, or a crash,
stretches begin anew.
"""

from __future__ import annotations

from collections import Counter
from enum import Enum
from math import log2
from typing import Final

import attrs

from callback_priority.core.classes import CLASS_ORDER, SCHEDULER_SCOPE, Level, ServiceClass
from callback_priority.core.snapshot import Decision, Snapshot
from callback_priority.core.units import MICROSECONDS, MILLI
from callback_priority.policy.settings import Settings
from callback_priority.simulation.backlog import Waiting
from callback_priority.simulation.engine import Decider, Simulation, Treatment
from callback_priority.simulation.holds import Fixed
from callback_priority.simulation.scenario import Crash, Stream
from callback_priority.simulation.watch import Watcher
from callback_priority.testing.cases import Case, treatment_of

__all__ = ["Promise", "Starvation", "judge"]

_TASK: Final = ServiceClass.TASK
_ROUNDING: Final = 1e-6
_GRAIN: Final = 2
"""Tags are compared in whole virtual microseconds: two of them may be off by one each."""
_FAR: Final = 1 << 60

Place = tuple[Level, str]
_SCHEDULER: Final[Place] = (Level.SCHEDULER, SCHEDULER_SCOPE)


class Promise(str, Enum):
    """What can be broken; see the module's docstring."""

    SLOT_TIME = "slot-time"
    TURNS = "turns"
    RESERVE = "reserve"
    CONSERVATION = "conservation"
    ORDER = "order"

    __str__ = str.__str__


@attrs.frozen(kw_only=True)
class Starvation:
    """A promise that was broken.

    Args:
        promise: Which.
        service_class: To whom.
        at_seconds: When, from the start.
        what: What was seen, and what was promised, in words.
        case: Where it was seen.
    """

    promise: Promise
    service_class: ServiceClass
    at_seconds: float
    what: str
    case: Case

    def __str__(self) -> str:
        return (
            f"{self.promise}, {self.service_class} at {self.at_seconds:g} s: {self.what}\n\n{self.case.code}"
        )


def judge(subject: Decider | Treatment, case: Case) -> Starvation | None:
    """Run a case and judge it.

    Args:
        subject: The policy; see `callback_priority.testing.find_starvation`.
        case: What it is tried on.

    Returns:
        The first promise that was broken; ``None`` if all were kept.
    """
    treatment, also = treatment_of(subject, case)
    watcher = _Judge(case)
    both: Watcher = watcher if also is None else _Both(also, watcher)
    simulation = Simulation(case.scenario, treatment, seed=case.seed, bins=1, watch=both)
    try:
        simulation.run()
        watcher.end()
    except _Found as found:
        return found.starvation
    return None


class _Found(Exception):  # noqa: N818 - no error: how the judge ends a run
    def __init__(self, starvation: Starvation) -> None:
        super().__init__(str(starvation))
        self.starvation = starvation


class _Both:
    """Two who look on; the first is told first."""

    def __init__(self, first: Watcher, second: Watcher) -> None:
        self._all = (first, second)

    def waits(self, now: int, service_class: ServiceClass, pool: str, entry: Waiting) -> None:
        for each in self._all:
            each.waits(now, service_class, pool, entry)

    def started(
        self, now: int, scheduler: int, service_class: ServiceClass, pool: str, entry: Waiting, number: int
    ) -> None:
        for each in self._all:
            each.started(now, scheduler, service_class, pool, entry, number)

    def ended(self, now: int, service_class: ServiceClass, pool: str, entry: Waiting, number: int) -> None:
        for each in self._all:
            each.ended(now, service_class, pool, entry, number)

    def decided(self, now: int, scheduler: int, snapshot: Snapshot, decision: Decision) -> None:
        for each in self._all:
            each.decided(now, scheduler, snapshot, decision)

    def happened(self, now: int, what: Crash | Settings) -> None:
        for each in self._all:
            each.happened(now, what)


@attrs.define
class _Row:
    """The callbacks of one Dag and priority that wait without a break.

    Args:
        waiting: How many wait.
        came: How many came without a break, to count the turns of the next ones by.
        earliest: When the turn of the first of those may come at the earliest.
        latest: And at the latest.
    """

    waiting: int = 0
    came: int = 0
    earliest: float = 0.0
    latest: float = 0.0

    def next(self, at: int, turn_length: float) -> tuple[float, float]:
        """One comes: when its turn may come, at the earliest and at the latest."""
        if not self.waiting:
            self.came, self.earliest, self.latest = 0, at, at
        length = self.came * turn_length
        self.waiting += 1
        self.came += 1
        return max(at, self.earliest + length), max(at, self.latest) + length

    def goes_on(self, earliest: float, latest: float) -> None:
        """One waits again, whose turn may come between these."""
        if not self.waiting:
            self.came, self.earliest, self.latest = 1, earliest, latest
        self.latest = max(self.latest, latest)
        self.waiting += 1


class _Lines:
    """What waits, by class and pool, and when the turn of each callback may come."""

    def __init__(self, case: Case) -> None:
        self.entries: dict[tuple[ServiceClass, str], dict[int, Waiting]] = {}
        self.endless: dict[tuple[ServiceClass, str], int] = {}
        self._turn_length = case.settings.dag_turn_seconds * MICROSECONDS
        self._aging = case.settings.priority_aging_seconds * MICROSECONDS
        self._rows: dict[tuple[int, int], _Row] = {}
        self._turns: dict[int, tuple[float, float]] = {}
        for stream in case.scenario.streams:
            key = (stream.service_class, stream.pool)
            self.entries[key] = {}
            if stream.endless:
                self.endless[key] = stream.width

    def add(self, cls: ServiceClass, pool: str, entry: Waiting) -> None:
        self.entries[cls, pool][entry.number] = entry
        if cls is _TASK:
            return
        head_start = log2(1 + abs(entry.priority)) * self._aging * (1 if entry.priority > 0 else -1)
        row = self._rows.setdefault((entry.dag, entry.priority), _Row())
        before = self._turns.get(entry.number)
        if before is not None:
            row.goes_on(before[0] + head_start, before[1] + head_start)
            return
        earliest, latest = row.next(entry.at, self._turn_length)
        self._turns[entry.number] = (earliest - head_start, latest - head_start)

    def take(self, cls: ServiceClass, pool: str, number: int) -> Waiting | None:
        """One starts; returns one that it may not go before, if there is such a one."""
        them = self.entries[cls, pool]
        entry = them.pop(number, None)
        if cls is _TASK or entry is None:
            return None
        self._rows[entry.dag, entry.priority].waiting -= 1
        turns = self._turns
        earliest, _ = turns[number]
        for other in them.values():
            if earliest > turns[other.number][1] + 1:
                return other
        return None

    def first_width(self, cls: ServiceClass, pool: str, widest: int) -> int:
        """How wide the first is of those that can ever fit; nought if there is none."""
        them = self.entries[cls, pool]
        if cls is not _TASK:
            return 1 if them and widest >= 1 else 0
        first = min(
            (
                (-each.priority, each.at, each.number, each.width)
                for each in them.values()
                if each.width <= widest
            ),
            default=None,
        )
        if first is not None:
            return first[3]
        width = self.endless.get((cls, pool), 0)
        return width if width <= widest else 0


class _Counts:
    """Slot-time and starts at one place: the scheduler's slots, or a pool's."""

    def __init__(self) -> None:
        self.held: dict[ServiceClass, int] = dict.fromkeys(CLASS_ORDER, 0)
        self.time: dict[ServiceClass, int] = dict.fromkeys(CLASS_ORDER, 0)
        self.starts: dict[ServiceClass, int] = dict.fromkeys(CLASS_ORDER, 0)

    def advance(self, elapsed: int) -> None:
        time = self.time
        for cls, held in self.held.items():
            if held:
                time[cls] += held * elapsed


@attrs.define
class _Stretch:
    """f waits throughout. What is remembered of it: by how much least the others were ahead since it began.

    Args:
        place: Where.
        cls: Who waits.
        others: Those it is compared with.
        time: For each other, the least of ``S_g / w_g - S_f / w_f``.
        starts: For each other, the least of ``N_g / w_g - N_f / w_f``.
    """

    place: Place
    cls: ServiceClass
    others: tuple[ServiceClass, ...]
    time: dict[ServiceClass, float] = attrs.field(factory=dict)
    starts: dict[ServiceClass, float] = attrs.field(factory=dict)


class _Judge:
    """Looks on; raises `_Found` at the first promise that is broken."""

    def __init__(self, case: Case) -> None:
        scenario = case.scenario
        self._case = case
        self._lines = _Lines(case)
        self._step = round(scenario.loop_seconds * MICROSECONDS)
        self._classes = tuple(
            cls for cls in CLASS_ORDER if any(s.service_class is cls for s in scenario.streams)
        )
        self._pools_of = {
            cls: tuple({s.pool for s in scenario.streams if s.service_class is cls}) for cls in self._classes
        }
        self._counts: dict[Place, _Counts] = {_SCHEDULER: _Counts()}
        self._counts.update({(Level.POOL, pool): _Counts() for pool in scenario.pools})
        self._longest: dict[ServiceClass, int] = dict.fromkeys(CLASS_ORDER, 0)
        self._running: dict[ServiceClass, dict[int, int]] = {cls: {} for cls in CLASS_ORDER}
        self._passed: Counter[str] = Counter()
        self._lost_slots = 0
        self._last = 0
        self._in_loop: Counter[ServiceClass] = Counter()
        self._in_pool: dict[str, Counter[ServiceClass]] = {pool: Counter() for pool in scenario.pools}
        self._stretches: list[_Stretch] = []
        self._have_had_reserves: set[tuple[Place, ServiceClass]] = set()
        self._learn(case.settings)

    # What is promised under these settings --------------------------------------------------------------------

    def _learn(self, settings: Settings) -> None:
        """Which classes are promised what, and where."""
        scenario = self._case.scenario
        self._settings = settings
        charge = round(settings.initial_hold_seconds * MICROSECONDS)
        self._longest = {cls: max(charge, longest) for cls, longest in self._longest.items()}
        self._weights: dict[Place, dict[ServiceClass, float]] = {}
        self._reserves: dict[Place, dict[ServiceClass, int]] = {}
        self._limits: dict[Place, dict[ServiceClass, int | None]] = {}
        for place in self._counts:
            quotas = {cls: settings.quota(*place, cls) for cls in CLASS_ORDER}
            self._weights[place] = {cls: settings.weight(*place, cls) / MILLI for cls in CLASS_ORDER}
            self._reserves[place] = {cls: q.reserve_slots for cls, q in quotas.items() if q.reserve_slots}
            self._have_had_reserves.update((place, cls) for cls in self._reserves[place])
            self._limits[place] = {cls: q.limit_slots for cls, q in quotas.items()}
        self._widest = {
            (cls, pool): self._widest_of(cls, pool) for cls, pools in self._pools_of.items() for pool in pools
        }
        places: list[Place] = []
        crashed = sum(1 for _ in scenario.crashes)
        slots = scenario.slots * (scenario.schedulers + crashed)
        self._stretched: list[_Stretch] = []
        for cls in self._classes:
            if all(self._has_room(pool, slots) for pool in self._pools_of[cls]):
                places = [_SCHEDULER]
            elif self._slots_never_bind():
                places = [(Level.POOL, pool) for pool in self._pools_of[cls] if self._widest_in(pool) == 1]
            else:
                places = []
            for place in places:
                if (place, cls) in self._have_had_reserves:
                    continue
                if any(self._limits[each][cls] is not None for each in self._limits_of(cls, place)):
                    continue
                others = tuple(g for g in self._classes if g is not cls and not self._reserves[place].get(g))
                if others:
                    self._stretched.append(_Stretch(place=place, cls=cls, others=others))
        self._even = self._all_holds_are_known()
        self._stretches = []
        for counts in self._counts.values():
            counts.starts = dict.fromkeys(CLASS_ORDER, 0)

    def _limits_of(self, cls: ServiceClass, place: Place) -> list[Place]:
        pools: list[Place] = [(Level.POOL, pool) for pool in self._pools_of[cls]]
        return [_SCHEDULER, *pools] if place == _SCHEDULER else [_SCHEDULER, place]

    def _widest_of(self, cls: ServiceClass, pool: str) -> int:
        total, place = self._case.scenario.pools.get(pool, 0), (Level.POOL, pool)
        limit = self._limits[place][cls]
        if total is None:
            return _FAR if limit is None else limit
        left = total - sum(reserve for g, reserve in self._reserves[place].items() if g is not cls)
        return left if limit is None else min(left, limit)

    def _has_room(self, pool: str, slots: int) -> bool:
        """Whether a pool has room for whatever the schedulers' slots can hold."""
        total = self._case.scenario.pools.get(pool, 0)
        if total is None:
            return True
        return total >= slots * self._widest_in(pool) + sum(self._reserves[Level.POOL, pool].values())

    def _widest_in(self, pool: str) -> int:
        return max(stream.width for stream in self._case.scenario.streams if stream.pool == pool)

    def _slots_never_bind(self) -> bool:
        """Whether one is left when all pools are full; else who is due in a pool may not be who is due a slot."""
        scenario = self._case.scenario
        total = sum(self._reserves[_SCHEDULER].values())
        for slots in scenario.pools.values():
            if slots is None:
                return False
            total += slots
        return scenario.slots > total

    def _all_holds_are_known(self) -> bool:
        scenario, known = self._case.scenario, self._settings.initial_hold_seconds
        return (
            not scenario.crashes
            and scenario.tasks_per_query is None
            and self._step > 0
            and round(known * MICROSECONDS) % self._step == 0
            and all(
                isinstance(each, Stream)
                and isinstance(each.holds, Fixed)
                and each.holds.seconds == known
                and each.width == 1
                for each in scenario.streams
            )
        )

    # What happens ---------------------------------------------------------------------------------------------

    def _advance(self, now: int) -> None:
        elapsed = now - self._last
        if elapsed > 0:
            for counts in self._counts.values():
                counts.advance(elapsed)
            self._last = now
            if self._stretches:
                self._compare(now)

    def waits(self, now: int, service_class: ServiceClass, pool: str, entry: Waiting) -> None:
        """See `Watcher`."""
        self._lines.add(service_class, pool, entry)

    def started(
        self, now: int, scheduler: int, service_class: ServiceClass, pool: str, entry: Waiting, number: int
    ) -> None:
        """See `Watcher`."""
        self._advance(now)
        before = self._lines.take(service_class, pool, entry.number)
        if before is not None:
            self._found(
                Promise.ORDER,
                service_class,
                now,
                f"one of Dag {entry.dag} that came at {entry.at / MICROSECONDS:g} s with priority {entry.priority} went before "
                f"one of Dag {before.dag} that came at {before.at / MICROSECONDS:g} s with priority {before.priority}",
            )
        self._running[service_class][number] = now
        self._in_loop[service_class] += 1
        self._in_pool[pool][service_class] += entry.width
        for place, width in ((_SCHEDULER, 1), ((Level.POOL, pool), entry.width)):
            counts = self._counts[place]
            counts.held[service_class] += width
            counts.starts[service_class] += width
        if service_class is _TASK:
            self._passed[pool] = 0
        else:
            self._passed[pool] += entry.width

    def ended(self, now: int, service_class: ServiceClass, pool: str, entry: Waiting, number: int) -> None:
        """See `Watcher`."""
        self._advance(now)
        self._counts[_SCHEDULER].held[service_class] -= 1
        self._counts[Level.POOL, pool].held[service_class] -= entry.width
        self._longest[service_class] = self._hold(service_class, now)
        del self._running[service_class][number]

    def happened(self, now: int, what: Crash | Settings) -> None:
        """See `Watcher`."""
        self._advance(now)
        if isinstance(what, Crash):
            self._lost_slots += self._case.scenario.slots
            self._stretches = []
        else:
            self._learn(what)

    def decided(self, now: int, scheduler: int, snapshot: Snapshot, decision: Decision) -> None:
        """See `Watcher`."""
        self._advance(now)
        taken = self._in_loop
        held = {cls: snapshot.held.get(cls, 0) - taken[cls] for cls in CLASS_ORDER}
        unmet = {cls: max(0, r - held[cls]) for cls, r in self._reserves[_SCHEDULER].items()}
        self._reserves_are_there(now, "the scheduler's slots", snapshot.free_slots, unmet, taken)
        left = snapshot.free_slots - sum(taken.values())
        left -= snapshot.answer.kept_slots if snapshot.answer is not None else 0
        pools = {}
        for pool, total in self._case.scenario.pools.items():
            counts, took = self._counts[Level.POOL, pool], self._in_pool[pool]
            lack = {
                cls: max(0, r - counts.held[cls] + took[cls])
                for cls, r in self._reserves[Level.POOL, pool].items()
            }
            room = _FAR if total is None else total - sum(counts.held.values())
            self._reserves_are_there(now, f"pool {pool}", room + sum(took.values()), lack, took)
            pools[pool] = (room, {cls: r - took[cls] for cls, r in lack.items() if r > took[cls]})
        lacking = {cls: r - taken[cls] for cls, r in unmet.items() if r > taken[cls]}
        waiting = self._nothing_stays_empty(now, snapshot, left, lacking, pools)
        self._note_stretches(waiting)
        self._compare(now)
        self._in_loop = Counter()
        for took in self._in_pool.values():
            took.clear()

    def end(self) -> None:
        """The simulation is over."""
        self._advance(round(self._case.scenario.seconds * MICROSECONDS))

    # The promises ---------------------------------------------------------------------------------------------

    def _reserves_are_there(
        self,
        now: int,
        where: str,
        free: int,
        unmet: dict[ServiceClass, int],
        taken: Counter[ServiceClass],
    ) -> None:
        if not unmet:
            return
        beyond = sum(max(0, number - unmet.get(cls, 0)) for cls, number in taken.items())
        spare = max(0, free - sum(unmet.values()))
        if beyond > spare:
            cls = next(cls for cls, number in unmet.items() if number > taken[cls])
            self._found(
                Promise.RESERVE,
                cls,
                now,
                f"of {free} free of {where}, {beyond} were granted beyond reserves, though {dict(unmet)} were lacking to them",
            )

    def _nothing_stays_empty(
        self,
        now: int,
        snapshot: Snapshot,
        left: int,
        lacking: dict[ServiceClass, int],
        pools: dict[str, tuple[int, dict[ServiceClass, int]]],
    ) -> dict[tuple[ServiceClass, str], int]:
        """Returns how wide the first of each line is that can ever fit; nought where nothing waits."""
        waiting = {}
        drained = set()
        all_lacking = sum(lacking.values())
        for (cls, pool), widest in self._widest.items():
            width = waiting[cls, pool] = self._lines.first_width(cls, pool, widest)
            if cls is _TASK:
                room, lack = pools[pool]
                others = sum(number for g, number in lack.items() if g is not cls)
                if width > max(1, room - others) and self._passed[pool] >= self._settings.wide_bypass_limit:
                    drained.add(pool)
        most = self._case.scenario.tasks_per_query
        capped = most is not None and self._in_loop[_TASK] >= most
        for (cls, pool), width in waiting.items():
            if capped and waiting.get((_TASK, pool)):
                continue
            if not width or left - all_lacking + lacking.get(cls, 0) <= 0:
                continue
            limit = self._limits[_SCHEDULER][cls]
            if limit is not None and snapshot.held.get(cls, 0) >= limit:
                continue
            room, lack = pools[pool]
            place = (Level.POOL, pool)
            limit = self._limits[place][cls]
            if limit is not None and self._counts[place].held[cls] + width > limit:
                continue
            room -= sum(number for g, number in lack.items() if g is not cls)
            if width <= room and (pool not in drained or lack.get(cls, 0)):
                self._found(
                    Promise.CONSERVATION,
                    cls,
                    now,
                    f"{left} slots of a scheduler stay empty, and {room} of pool {pool}, but one {width} wide waits for them",
                )
        return waiting

    def _note_stretches(self, waiting: dict[tuple[ServiceClass, str], int]) -> None:
        """Who waits throughout goes on, whoever has begun to begins, before what this loop started."""
        going_on = {(each.place, each.cls): each for each in self._stretches}
        self._stretches = []
        for kind in self._stretched:
            level, scope = kind.place
            pools = self._pools_of[kind.cls] if level is Level.SCHEDULER else (scope,)
            if not any(waiting[kind.cls, pool] for pool in pools):
                continue
            stretch = going_on.get((kind.place, kind.cls)) or self._begin(kind)
            self._stretches.append(stretch)

    def _begin(self, kind: _Stretch) -> _Stretch:
        stretch = _Stretch(place=kind.place, cls=kind.cls, others=kind.others)
        counts, weights = self._counts[kind.place], self._weights[kind.place]
        taken: Counter[ServiceClass] = (
            self._in_loop if kind.place == _SCHEDULER else self._in_pool[kind.place[1]]
        )
        f = kind.cls
        for g in kind.others:
            stretch.time[g] = self._ahead(counts, kind, g, weights)
            stretch.starts[g] = (counts.starts[g] - taken[g]) / weights[g] - (
                counts.starts[f] - taken[f]
            ) / weights[f]
        return stretch

    def _ahead(
        self, counts: _Counts, stretch: _Stretch, g: ServiceClass, weights: dict[ServiceClass, float]
    ) -> float:
        return counts.time[g] / weights[g] - counts.time[stretch.cls] / weights[stretch.cls]

    def _compare(self, now: int) -> None:
        for stretch in self._stretches:
            place, f = stretch.place, stretch.cls
            counts, weights = self._counts[place], self._weights[place]
            for g in stretch.others:
                ahead = self._ahead(counts, stretch, g, weights)
                least = stretch.time[g]
                if ahead < least:
                    stretch.time[g] = ahead
                elif ahead - least > (bound := self._bound(place, f, g, now)):
                    self._found(
                        Promise.SLOT_TIME,
                        f,
                        now,
                        f"{g} got {(ahead - least) / MICROSECONDS:g} slot-seconds over weight more at {' '.join(place).strip()} "
                        f"while it waited, the bound is {bound / MICROSECONDS:g}",
                    )
                if not self._even or place != _SCHEDULER:
                    continue
                ahead = counts.starts[g] / weights[g] - counts.starts[f] / weights[f]
                least = stretch.starts[g]
                if ahead < least:
                    stretch.starts[g] = ahead
                elif ahead - least > 1 / weights[f] + 1 / weights[g] + _ROUNDING:
                    self._found(
                        Promise.TURNS,
                        f,
                        now,
                        f"{g} was started {ahead - least:g} times over weight more while it waited, the bound is "
                        f"{1 / weights[f] + 1 / weights[g]:g}",
                    )

    def _bound(self, place: Place, f: ServiceClass, g: ServiceClass, now: int) -> float:
        """``2 K (d_f / w_f + d_g / w_g)``."""
        scenario = self._case.scenario
        slots = scenario.slots * scenario.schedulers if place == _SCHEDULER else scenario.pools[place[1]] or 0
        slots += self._lost_slots
        weights = self._weights[place]
        return 2 * slots * sum(self._hold(cls, now) / weights[cls] for cls in (f, g)) + _GRAIN

    def _hold(self, cls: ServiceClass, now: int) -> int:
        """The longest charge or hold until now; those that run are in the order in which they were started."""
        return max(self._longest[cls], now - next(iter(self._running[cls].values()), now))

    def _found(self, promise: Promise, cls: ServiceClass, now: int, what: str) -> None:
        raise _Found(
            Starvation(
                promise=promise, service_class=cls, at_seconds=now / MICROSECONDS, what=what, case=self._case
            )
        )
