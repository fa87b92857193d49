"""A journal of the fair queue: what each pass did to the flows, kept so that replaying it is evidence.

The flows' rows say where each flow stands; the journal says how it came there. Replayed over the flows that it
began with, it must end exactly at the rows, and what makes that worth something is that an entry holds *amounts
and not results*: what was settled, what each grant was charged, how far a tag was raised. Two schedulers that
start from the same tag, of whom one overwrites what the other wrote, leave two entries and the sum of one; a
settlement that is applied twice is there once; a write without its transaction, or a transaction without
its write, is an entry too few or too many. In each case the replay ends elsewhere (`differences`).

Charges are computed from the grants, never from how far a tag went, so that a flow which moved without a grant, or a
grant that moved no flow, differs too. The one amount that is found by looking at the tag is by how much it was
raised to the clock, and that is checked against the clock of the replay (`check`).

Replayed to the last digit: ``weight``, ``estimate``, ``tag``, ``remainder``, ``clock``, ``service`` and ``granted``. Not
replayed: ``eligible`` and ``bypassed``, which are no sums but what the last pass saw, and ``recent`` with its
time, a decayed figure in floating point for people to look at, by which nothing is decided.

An entry now and then also says where all flows stood after it (a *checkpoint*): there a replay can begin when the
first entries are gone, and there one that began earlier is compared on its way. A pass that rebases a scope (its
clock passed ``2**60``, once in ten thousand years) is one from which replays begin anew.

Settlements are checked against the holds that they settle: over a whole journal, what a class was charged and
settled is the sum of its holds, once nothing is held any more (`outstanding`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import attrs

from callback_priority.core.accounting import FURTHEST, clocks, flow_state, move_average, reweigh, serve
from callback_priority.core.classes import SCHEDULER_SCOPE, FlowKey, Level, ServiceClass
from callback_priority.core.flows import FlowState
from callback_priority.core.ledger import Settlement
from callback_priority.core.snapshot import Entitlements
from callback_priority.core.units import Milliweight, SlotMicros, VirtualTime

__all__ = [
    "Attempt",
    "Entry",
    "Granted",
    "Movement",
    "Pass",
    "attempts",
    "check",
    "differences",
    "entry_of",
    "from_checkpoint",
    "from_json",
    "outstanding",
    "replay",
    "to_json",
]

FORMAT: Final = 1

Attempt = tuple[str, int]
"""A callback's identifier, and which of its attempts a grant is; the first is 1."""

Flows = Mapping[FlowKey, FlowState]

_REPLAYED: Final = ("weight", "estimate", "tag", "remainder", "clock", "service", "granted")


@attrs.frozen(kw_only=True)
class Granted:
    """What one class was granted in one pool, at one charge.

    Args:
        service_class: The class.
        pool: The pool.
        charge: What each grant was charged for one slot of width, in slot-microseconds.
        callbacks: The callbacks, each with its attempt.
        widths: Of task instances: the pool slots that each of them takes.
    """

    service_class: ServiceClass
    pool: str
    charge: int
    callbacks: tuple[Attempt, ...] = ()
    widths: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """How many grants."""
        return len(self.callbacks) + len(self.widths)

    def charges(self) -> tuple[tuple[FlowKey, int], ...]:
        """The flows that pay for the grants, each with its slot-microseconds."""
        slots = len(self.callbacks) + sum(self.widths)
        return (
            (FlowKey(Level.SCHEDULER, SCHEDULER_SCOPE, self.service_class), self.count * self.charge),
            (FlowKey(Level.POOL, self.pool, self.service_class), slots * self.charge),
        )


@attrs.frozen(kw_only=True)
class Movement:
    """What a pass did to one flow beside charging it for grants, in the order in which it is done.

    Args:
        made: The estimate with which the flow came into being, at the clock of its scope; ``None`` if it had a past.
        weight: Its weight, if it was made or its weight has changed.
        holds: The real holds that moved its estimate, in slot-microseconds.
        settled: Slot-microseconds settled.
        raised: By how much its tag was raised to the clock, before it was charged.
        advanced: By how much the grants moved its clock.
    """

    made: int | None = None
    weight: int | None = None
    holds: tuple[int, ...] = ()
    settled: int = 0
    raised: int = 0
    advanced: int = 0


_STILL: Final = Movement()


@attrs.frozen(kw_only=True)
class Entry:
    """What one pass through the critical section did to the flows.

    Args:
        grants: What was granted.
        riding: Callbacks that were granted along with others, in whose slots they run; nothing was charged for them.
        movements: What else moved, by flow; those with nothing to tell are left out.
        flows: Where all flows stood afterwards, in a checkpoint.
        rebased: Whether flows were moved for the size of their numbers, so that replays begin anew after it.
    """

    grants: tuple[Granted, ...] = ()
    riding: tuple[Attempt, ...] = ()
    movements: Mapping[FlowKey, Movement] = attrs.field(factory=dict)
    flows: Flows | None = None
    rebased: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing moved."""
        return not (self.grants or self.riding or self.movements or self.rebased)

    def attempts(self) -> list[Attempt]:
        """Every callback that was granted, with its attempt."""
        return [*(attempt for granted in self.grants for attempt in granted.callbacks), *self.riding]


# Writing ------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Pass:
    """One pass, as the shell that carried it out knows it.

    Args:
        read: The flows as they were read.
        settled: All flows after the settlement.
        changed: Those that deciding changed.
        settlement: What was settled.
        grants: What was granted.
        riding: Callbacks that were granted along with others.
    """

    read: Flows
    settled: Flows
    changed: Flows
    settlement: Settlement
    grants: tuple[Granted, ...] = ()
    riding: tuple[Attempt, ...] = ()


def entry_of(this: Pass, entitlements: Entitlements, *, checkpoint: bool = False) -> Entry:
    """The journal's entry for a pass.

    Args:
        this: The pass.
        entitlements: The weights that it went by.
        checkpoint: Whether to say where all flows stand after it.

    Complexity: O(flows + grants).
    """
    final = {**this.settled, **this.changed}
    before, between = clocks(this.read.values()), clocks(this.settled.values())
    charged, _ = _charges(this.grants)
    amounts, holds = this.settlement.amounts, this.settlement.holds
    movements = {}
    for key in sorted(amounts.keys() | holds.keys() | this.changed.keys() | charged.keys()):
        clock = between.get(key[:2], 0)
        start = flow_state(key, this.settled, clock, entitlements)
        read, after = this.read.get(key), final.get(key, start)
        if start.weight != after.weight:
            # Not served, so not weighed anew either.
            start = this.settled[key]
        made = None
        if read is None:
            # The estimate that it began with, before its first holds.
            own = flow_state(key, this.read, before.get(key[:2], 0), entitlements)
            made = int(own.estimate if key in amounts or key in holds else start.estimate)
        movement = Movement(
            made=made,
            weight=int(after.weight) if read is None or read.weight != after.weight else None,
            holds=tuple(int(hold) for hold in holds.get(key, ())),
            settled=amounts.get(key, 0),
            raised=_raised(start, after, charged[key], clock),
            advanced=after.clock - start.clock,
        )
        if movement != _STILL:
            movements[key] = movement
    rebased = _is_rebased(before, final)
    return Entry(
        grants=this.grants,
        riding=this.riding,
        movements=movements,
        flows=final if checkpoint or rebased else None,
        rebased=rebased,
    )


def _raised(start: FlowState, after: FlowState, charge: int, clock: int) -> int:
    """By how much a tag was raised to the clock: none, if the charge alone explains where it stands."""
    unraised = serve(start, charge, start.recent_at)
    stands_there = (unraised.tag, unraised.remainder) == (after.tag, after.remainder)
    return 0 if stands_there else max(0, clock - start.tag)


def _is_rebased(before: Mapping[Any, int], final: Flows) -> bool:
    now = clocks(final.values())
    return any(now.get(scope, 0) < clock for scope, clock in before.items()) or any(
        FURTHEST in (abs(state.tag), abs(state.clock), abs(state.service)) for state in final.values()
    )


def _charges(grants: Iterable[Granted]) -> tuple[Counter[FlowKey], Counter[FlowKey]]:
    """Slot-microseconds and number of grants, by the flow that pays for them."""
    charged: Counter[FlowKey] = Counter()
    counts: Counter[FlowKey] = Counter()
    for granted in grants:
        for key, charge in granted.charges():
            charged[key] += charge
            counts[key] += granted.count
    return charged, counts


# Reading ------------------------------------------------------------------------------------------------------


def replay(flows: Flows, entries: Iterable[Entry]) -> dict[FlowKey, FlowState]:
    """Where the flows stand after what a journal tells; see the module's docstring for what is replayed of them.

    Args:
        flows: The flows before its first entry; empty for a journal that was kept from the beginning.
        entries: Its entries, in their order.
    """
    state = dict(flows)
    for entry in entries:
        state = _replay_one(state, entry)
    return state


def _replay_one(flows: dict[FlowKey, FlowState], entry: Entry) -> dict[FlowKey, FlowState]:
    if entry.rebased:
        return dict(entry.flows or {})
    times = clocks(flows.values())
    charged, counts = _charges(entry.grants)
    moved = dict(flows)
    for key in entry.movements.keys() | charged.keys():
        movement, clock = entry.movements.get(key, _STILL), times.get(key[:2], 0)
        state = _begin(key, movement, clock) if movement.made is not None else flows.get(key)
        if state is None:
            continue  # An entry that made it is missing: it will be missed.
        if movement.weight is not None and movement.weight != state.weight:
            state = reweigh(state, Milliweight(movement.weight), clock)
        estimate = state.estimate
        for hold in movement.holds:
            estimate = move_average(estimate, SlotMicros(hold))
        state = serve(attrs.evolve(state, estimate=estimate), movement.settled, state.recent_at)
        if movement.raised:
            state = attrs.evolve(state, tag=VirtualTime(state.tag + movement.raised), remainder=0)
        state = serve(state, charged[key], state.recent_at)
        moved[key] = attrs.evolve(
            state,
            clock=VirtualTime(state.clock + movement.advanced),
            granted=state.granted + counts[key],
        )
    return moved


def _begin(key: FlowKey, movement: Movement, clock: int) -> FlowState:
    return FlowState(
        key=key,
        weight=Milliweight(movement.weight or 1),
        estimate=SlotMicros(movement.made or 0),
        tag=VirtualTime(clock),
        clock=VirtualTime(clock),
    )


def from_checkpoint(entries: Sequence[Entry]) -> tuple[dict[FlowKey, FlowState], Sequence[Entry]]:
    """Where to begin with a journal whose first entries are gone: the flows at the first checkpoint, and what follows.

    Returns:
        Empty flows and no entries if there is no checkpoint.
    """
    for at, entry in enumerate(entries):
        if entry.flows is not None:
            return dict(entry.flows), entries[at + 1 :]
    return {}, ()


def differences(found: Flows, replayed: Flows) -> list[str]:
    """What a replay says of the flows that they do not say of themselves; empty if they agree.

    Args:
        found: The flows as they stand.
        replayed: The flows as replayed.
    """
    told = []
    for key in sorted(found.keys() | replayed.keys()):
        stands, should = found.get(key), replayed.get(key)
        if stands is None or should is None:
            told.append(f"{_name(key)}: {'not there' if stands is None else 'not in the journal'}")
            continue
        told += [
            f"{_name(key)}: {name} is {getattr(stands, name)}, by the journal {getattr(should, name)}"
            for name in _REPLAYED
            if getattr(stands, name) != getattr(should, name)
        ]
    return told


def check(flows: Flows, entries: Iterable[Entry]) -> list[str]:
    """What in a journal cannot be true; empty if nothing is found.

    Each attempt of a callback is granted once, and the attempts of each go up. A tag is raised to the clock of
    its scope and nowhere else, and never down. A clock goes on with grants only, never back, and a flow that is
    granted a slot is served no earlier than at the lowest tag of its scope (at its own, unless from its reserve, before
    others whose turn it was). Replays agree with the checkpoints on their way.

    Args:
        flows: The flows before its first entry.
        entries: Its entries, in their order.
    """
    told: list[str] = []
    latest: dict[str, int] = {}
    state = dict(flows)
    for number, entry in enumerate(entries, start=1):
        for callback_id, attempt in entry.attempts():
            if attempt <= latest.get(callback_id, 0):
                told.append(f"entry {number}: attempt {attempt} of callback {callback_id} is granted again")
            latest[callback_id] = max(attempt, latest.get(callback_id, 0))
        if not entry.rebased:
            told += [f"entry {number}: {each}" for each in _wrong(state, entry)]
        state = _replay_one(state, entry)
        if entry.flows is not None:
            told += [f"entry {number}: {each}" for each in differences(entry.flows, state)]
    return told


def _wrong(flows: Flows, entry: Entry) -> list[str]:
    """What in an entry cannot follow from the flows before it."""
    told = []
    times = clocks(flows.values())
    charged, counts = _charges(entry.grants)
    settled = _replay_one(
        dict(flows),
        Entry(
            movements={
                key: attrs.evolve(movement, raised=0, advanced=0) for key, movement in entry.movements.items()
            }
        ),
    )
    for key in sorted(entry.movements.keys() | charged.keys()):
        movement, clock, state = entry.movements.get(key, _STILL), times.get(key[:2], 0), settled.get(key)
        if state is None or (movement.made is not None and key in flows):
            told.append(f"{_name(key)} {'has no beginning' if state is None else 'begins a second time'}")
            continue
        if movement.raised < 0 or (movement.raised and state.tag + movement.raised != clock):
            told.append(f"{_name(key)}: raised by {movement.raised} from {state.tag}, the clock is {clock}")
        if movement.advanced < 0 or (movement.advanced and not counts[key]):
            told.append(f"{_name(key)}: its clock moved by {movement.advanced} for {counts[key]} grants")
        served_at = state.clock + movement.advanced
        lowest = min(
            each.tag + entry.movements.get(other, _STILL).raised
            for other, each in settled.items()
            if other[:2] == key[:2]
        )
        if counts[key] and served_at < max(clock, lowest):
            told.append(f"{_name(key)}: served at {served_at}, before the lowest tag or the clock")
        if any(hold < 0 for hold in movement.holds):
            told.append(f"{_name(key)}: a hold of less than nothing")
    return told


def attempts(entries: Iterable[Entry]) -> Counter[str]:
    """How often each callback was granted."""
    return Counter(callback_id for entry in entries for callback_id, _ in entry.attempts())


def outstanding(entries: Iterable[Entry]) -> dict[ServiceClass, int]:
    """What each class was charged and settled beyond the holds that have ended, in slot-microseconds.

    Zero, to the microsecond, when nothing is held and no scheduler has died with holds in its ledger: each hold was
    charged and settled to what it took, once. Over the schedulers' slots, where every hold is one slot wide.
    """
    owed = dict.fromkeys(ServiceClass, 0)
    for entry in entries:
        for key, charge in _charges(entry.grants)[0].items():
            if key.level is Level.SCHEDULER:
                owed[key.service_class] += charge
        for key, movement in entry.movements.items():
            if key.level is Level.SCHEDULER:
                owed[key.service_class] += movement.settled - sum(movement.holds)
    return owed


def _name(key: FlowKey) -> str:
    return f"{key.service_class} in pool {key.scope!r}" if key.scope else f"{key.service_class}"


# The written form ---------------------------------------------------------------------------------------------


def to_json(entry: Entry) -> str:
    """An entry as compact text; what has nothing to tell is left out.

    >>> granted = Granted(service_class=ServiceClass.TASK, pool="etl", charge=5, widths=(1, 1, 2))
    >>> to_json(Entry(grants=(granted,)))
    '{"format":1,"tasks":[["task","etl",5,[1,1,2]]]}'
    """
    of_tasks = [_head(each, list(each.widths)) for each in entry.grants if each.widths]
    of_callbacks = [_head(each, each.callbacks) for each in entry.grants if each.callbacks]
    moved = [
        [*key, attrs.asdict(movement, filter=lambda field, value: value != field.default)]
        for key, movement in entry.movements.items()
    ]
    flows = [
        [*key, *(getattr(state, name) for name in _REPLAYED)]
        for key, state in sorted((entry.flows or {}).items())
    ]
    told = {
        "format": FORMAT,
        "tasks": of_tasks or None,
        "callbacks": of_callbacks or None,
        "riding": entry.riding or None,
        "moved": moved or None,
        "rebased": entry.rebased or None,
        "flows": None if entry.flows is None else flows,
    }
    return json.dumps({name: each for name, each in told.items() if each is not None}, separators=(",", ":"))


def _head(granted: Granted, what: Sequence[object]) -> list[object]:
    return [granted.service_class, granted.pool, granted.charge, what]


def from_json(text: str) -> Entry:
    """An entry from its text.

    Raises:
        ValueError: If it is not one, or one of a newer version of this library.
    """
    told = json.loads(text)
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise ValueError(f"not an entry of a journal that this version writes: {text[:100]}")
    grants = [
        Granted(service_class=ServiceClass(cls), pool=pool, charge=charge, widths=tuple(widths))
        for cls, pool, charge, widths in told.get("tasks", ())
    ]
    grants += [
        Granted(service_class=ServiceClass(cls), pool=pool, charge=charge, callbacks=_attempts(granted))
        for cls, pool, charge, granted in told.get("callbacks", ())
    ]
    return Entry(
        grants=tuple(grants),
        riding=_attempts(told.get("riding", ())),
        movements={
            _key(level, scope, cls): Movement(**{**movement, "holds": tuple(movement.get("holds", ()))})
            for level, scope, cls, movement in told.get("moved", ())
        },
        flows={_key(*row[:3]): _flow(row) for row in told["flows"]} if "flows" in told else None,
        rebased=told.get("rebased", False),
    )


def _attempts(told: Iterable[Sequence[Any]]) -> tuple[Attempt, ...]:
    return tuple((str(callback_id), int(attempt)) for callback_id, attempt in told)


def _key(level: str, scope: str, service_class: str) -> FlowKey:
    return FlowKey(Level(level), scope, ServiceClass(service_class))


def _flow(row: Sequence[Any]) -> FlowState:
    return FlowState(key=_key(*row[:3]), **dict(zip(_REPLAYED, row[3:], strict=True)))
