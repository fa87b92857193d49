"""The journal is evidence: replayed it ends at the flows, and whatever was lost, doubled or forged ends elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from callback_priority.core.accounting import REBASE_ABOVE, settle
from callback_priority.core.classes import CLASS_ORDER, FlowKey, ServiceClass
from callback_priority.core.flows import FlowState
from callback_priority.core.journal import (
    Entry,
    Granted,
    Movement,
    Pass,
    attempts,
    check,
    differences,
    entry_of,
    from_checkpoint,
    from_json,
    outstanding,
    replay,
    to_json,
)
from callback_priority.core.ledger import Ledger, Settlement
from callback_priority.core.observed import charge_observed
from callback_priority.core.slot_loop import decide
from callback_priority.core.snapshot import Decision, PoolSlots, Snapshot, TaskAnswer
from callback_priority.core.units import MICROSECONDS
from tests.properties.snapshots import POOLS, Rules, cases
from tests.properties.worlds import DEADLINE, POOL, TASK, pool_key, scheduler_key, waiting

Flows = dict[FlowKey, FlowState]

KEYS = [scheduler_key(cls) for cls in CLASS_ORDER] + [
    pool_key(cls, pool) for pool in POOLS for cls in CLASS_ORDER
]
NOTHING = Settlement(amounts={}, holds={})


def granted_in(decision: Decision, charges: Mapping[ServiceClass, int], counts: dict[str, int]):
    """The grants of a decision as the journal tells them; `counts` is how often each callback was granted."""
    callbacks: dict[tuple, list] = {}
    widths: dict[tuple, list[int]] = {}
    for grant in decision.grants:
        place = (grant.service_class, grant.pool)
        if grant.candidate.id is None:
            widths.setdefault(place, []).append(grant.candidate.width)
        else:
            name = str(grant.candidate.id)
            counts[name] = counts.get(name, 0) + 1
            callbacks.setdefault(place, []).append((name, counts[name]))
    return tuple(
        Granted(
            service_class=place[0],
            pool=place[1],
            charge=charges[place[0]],
            callbacks=tuple(callbacks.get(place, ())),
            widths=tuple(widths.get(place, ())),
        )
        for place in sorted(callbacks.keys() | widths.keys())
    )


def charges_of(flows: Flows, rules: Rules) -> dict[ServiceClass, int]:
    estimates = {cls: flows.get(scheduler_key(cls)) for cls in CLASS_ORDER}
    return {cls: state.estimate if state else rules.initial_estimate for cls, state in estimates.items()}


def one_pass(
    flows: Flows,
    settlement: Settlement,
    snapshot: Snapshot,
    rules: Rules,
    counts: dict[str, int],
    *,
    checkpoint: bool = False,
) -> tuple[Flows, Entry]:
    """What a scheduler does in its critical section, and what it writes of it."""
    settled = {**flows, **settle(flows, settlement, rules, snapshot.now)}
    decision = decide(attrs.evolve(snapshot, flows=settled), rules)
    this = Pass(
        read=flows,
        settled=settled,
        changed=decision.flows,
        settlement=settlement,
        grants=granted_in(decision, charges_of(settled, rules), counts),
    )
    text = to_json(entry_of(this, rules, checkpoint=checkpoint))
    entry = from_json(text)
    assert to_json(entry) == text
    return {**settled, **decision.flows}, entry


amounts = st.one_of(st.integers(-(10**10), 10**10), st.just(0))
settlements = st.builds(
    Settlement,
    amounts=st.dictionaries(st.sampled_from(KEYS), amounts, max_size=6),
    holds=st.dictionaries(
        st.sampled_from(KEYS), st.lists(st.integers(0, 10**9), max_size=3).map(tuple), max_size=4
    ),
)


@attrs.frozen
class Journey:
    """The flows that a journal began with, its entries, and the flows after them."""

    start: Flows
    entries: list[Entry]
    end: Flows


@st.composite
def journeys(draw: st.DrawFn) -> Journey:
    """Passes over any snapshots, with any settlements, while weights and policy change."""
    first = draw(cases())
    start = flows = dict(first.snapshot.flows)
    entries = []
    counts: dict[str, int] = {}
    for number in range(draw(st.integers(1, 3))):
        case = draw(cases()) if number else first
        rules = attrs.evolve(
            case.rules, weights={cls: draw(st.sampled_from([1, 333, 1_000, 3_000])) for cls in CLASS_ORDER}
        )
        settlement = draw(settlements)
        flows, entry = one_pass(
            flows, settlement, case.snapshot, rules, counts, checkpoint=draw(st.booleans())
        )
        entries.append(entry)
    return Journey(start, entries, flows)


@given(journeys())
@settings(max_examples=60)
def test_replayed_the_journal_ends_at_the_flows(journey):
    """Whatever was settled, granted, refused, made, weighed anew: to the last digit, through the written form.

    Without its first entries, too, from the first checkpoint on.
    """
    assert differences(journey.end, replay(journey.start, journey.entries)) == []
    assert check(journey.start, journey.entries) == []
    if any(entry.flows is not None for entry in journey.entries):
        start, rest = from_checkpoint(journey.entries)
        assert differences(journey.end, replay(start, rest)) == []


def test_without_a_checkpoint_there_is_nowhere_to_begin():
    assert from_checkpoint([Entry()]) == ({}, ())


@given(cases(), st.data())
@settings(max_examples=40)
def test_what_airflow_started_is_replayed_too(case, data):
    """The second pass: tasks as they were started, wide ones too, and slots kept for them."""
    first = decide(case.snapshot, case.rules)
    assume(first.task_slots)
    started = {
        pool: data.draw(st.lists(st.just(1), max_size=min(slots, 3)))
        for pool, slots in first.task_pool_slots.items()
    }
    assume(sum(map(len, started.values())) <= first.task_slots)
    snapshot = attrs.evolve(
        case.snapshot, answer=TaskAnswer(started=started, waiting=data.draw(st.booleans()))
    )
    start = dict(snapshot.flows)
    end, entry = one_pass(start, NOTHING, snapshot, case.rules, {})
    assert differences(end, replay(start, [entry])) == []
    assert check(start, [entry]) == []


@given(
    cases(),
    st.lists(st.tuples(st.sampled_from(CLASS_ORDER), st.sampled_from(POOLS), st.integers(1, 4)), max_size=8),
    settlements,
)
@settings(max_examples=40)
def test_what_airflow_granted_in_shadow_mode_is_replayed_too(case, seen, settlement):
    read = dict(case.snapshot.flows)
    settled = {**read, **settle(read, settlement, case.rules, 5)}
    grants = tuple(
        Granted(service_class=cls, pool=pool, charge=7 * MICROSECONDS, widths=(width,))
        for cls, pool, width in seen
    )
    charges: dict[FlowKey, list[int]] = {}
    for each in grants:
        for key, charge in each.charges():
            charges.setdefault(key, []).append(charge)
    changed = charge_observed(settled, charges, case.rules, 5)
    this = Pass(read=read, settled=settled, changed=changed, settlement=settlement, grants=grants)
    entry = from_json(to_json(entry_of(this, case.rules)))
    assert differences({**settled, **changed}, replay(read, [entry])) == []
    assert check(read, [entry]) == []


# A world in which every hold ends ---------------------------------------------------------------------------

RULES = Rules(weights={cls: 1_000 + 333 * at for at, cls in enumerate(CLASS_ORDER)})


@attrs.define
class Replica:
    """A scheduler with a few slots and a ledger of its own; what it holds ends after a few seconds."""

    name: str
    slots: int = 4
    ledger: Ledger = attrs.field(factory=Ledger)
    ends: dict[object, int] = attrs.field(factory=dict)
    number: int = 0

    def settlement(self, now: int) -> Settlement:
        for key in [key for key, end in self.ends.items() if end <= now]:
            del self.ends[key]
            self.ledger.release(key)
        return self.ledger.collect(now * MICROSECONDS)

    def turn(self, flows: Flows, now: int, *, present: bool = True) -> tuple[Flows, Entry]:
        settlement = self.settlement(now)
        settled = {**flows, **settle(flows, settlement, RULES, now)}
        free = self.slots - len(self.ledger)
        snapshot = Snapshot(
            now=now,
            free_slots=free,
            pools={POOL: PoolSlots(open_slots=3)},
            backlogs=[
                attrs.evolve(
                    waiting(cls, free + 1),
                    candidates=[
                        attrs.evolve(each, id=each.id and f"{self.name}-{now}-{each.id}")
                        for each in waiting(cls, free + 1).candidates
                    ],
                )
                for cls in (DEADLINE, TASK)
                if present and free > 0
            ],
            flows=settled,
        )
        decision = decide(snapshot, RULES)
        charges = charges_of(settled, RULES)
        this = Pass(
            read=flows,
            settled=settled,
            changed=decision.flows,
            settlement=settlement,
            grants=granted_in(decision, charges, {}),
        )
        self.ledger.settled()
        for grant in decision.grants:
            self.number += 1
            key = (self.name, self.number)
            cls = grant.service_class
            self.ends[key] = now + 1 + self.number % 7
            self.ledger.grant(
                key, service_class=cls, pool=POOL, executor="e", now=now * MICROSECONDS, charge=charges[cls]
            )
        return {**settled, **decision.flows}, from_json(to_json(entry_of(this, RULES)))


def world(passes: int = 40) -> tuple[Flows, list[Entry]]:
    """Two replicas in turn over the same flows, until all that they held has ended."""
    replicas = [Replica("a"), Replica("b")]
    flows: Flows = {}
    entries = []
    for now in range(passes):
        for replica in replicas:
            flows, entry = replica.turn(flows, now, present=now < passes - 10)
            entries.append(entry)
    assert not any(replica.ends for replica in replicas)
    return flows, entries


def test_a_world_is_replayed_and_owes_nothing_in_the_end():
    """Charged and settled to the microsecond: what each class paid is what it held."""
    flows, entries = world()
    assert differences(flows, replay({}, entries)) == []
    assert check({}, entries) == []
    assert set(outstanding(entries).values()) == {0}
    assert sum(attempts(entries).values()) > 15
    assert set(attempts(entries).values()) == {1}
    scheduler = {key: state for key, state in flows.items() if key in map(scheduler_key, CLASS_ORDER)}
    held = {key: sum(sum(e.movements[key].holds) for e in entries if key in e.movements) for key in scheduler}
    assert held == {key: state.service for key, state in scheduler.items()}


def test_a_rebase_begins_it_anew():
    """A clock passes 2**60 on the way: the entry of that pass says where all flows stand."""
    replica = Replica("a")
    flows, _ = world(12)
    far = REBASE_ABOVE - max(state.clock for state in flows.values()) - 5 * MICROSECONDS
    start = flows = {
        key: attrs.evolve(state, tag=state.tag + far, clock=state.clock + far) for key, state in flows.items()
    }
    entries = []
    for now in range(12, 40):
        flows, entry = replica.turn(flows, now)
        entries.append(entry)
    assert 1 <= sum(entry.rebased for entry in entries) <= 2, "one for each level"
    assert differences(flows, replay(start, entries)) == []
    assert check(start, entries) == []


# What must be caught ----------------------------------------------------------------------------------------


def test_an_entry_that_is_missing_is_caught():
    """A write whose entry was not written: of each entry that granted or settled anything."""
    flows, entries = world()
    telling = [
        at
        for at, entry in enumerate(entries)
        if entry.grants or any(movement.settled for movement in entry.movements.values())
    ]
    assert len(telling) > 40
    for at in telling:
        assert differences(flows, replay({}, entries[:at] + entries[at + 1 :]))


def test_an_entry_whose_write_was_rolled_back_is_caught():
    flows, entries = world()
    assert differences(flows, replay({}, [*entries, entries[0]]))


@given(st.integers(2, 30))
@settings(max_examples=20)
def test_a_lost_update_is_caught(at):
    """Two schedulers read the same flows, and the one that writes later overwrites the other's."""
    replicas = [Replica("a"), Replica("b")]
    flows: Flows = {}
    entries = []
    for now in range(40):
        first, entry = replicas[0].turn(flows, now)
        second, other = replicas[1].turn(flows if now == at else first, now)
        flows = {**first, **second}
        entries += [entry, other]
        if now < at:
            assert differences(flows, replay({}, entries)) == []
    assert differences(flows, replay({}, entries))


def test_a_settlement_that_is_applied_twice_is_caught():
    """In one transaction: the flows moved twice, the entry says once."""
    replica = Replica("a")
    flows: Flows = {}
    entries = []
    for now in range(12):
        settlement = replica.settlement(now)
        if now == 9:
            assert settlement.amounts
            flows = {**flows, **settle(flows, settlement, RULES, now)}
        flows, entry = replica.turn(flows, now)
        entries.append(entry)
    assert differences(flows, replay({}, entries))


def test_a_settlement_that_is_collected_twice_is_caught():
    """In two transactions, each with its entry: the replay agrees, the holds do not."""
    _, entries = world()
    at = next(
        number
        for number, entry in enumerate(entries)
        if any(movement.settled for movement in entry.movements.values())
    )
    again = Entry(
        movements={
            key: Movement(holds=movement.holds, settled=movement.settled)
            for key, movement in entries[at].movements.items()
        }
    )
    assert set(outstanding([*entries, again]).values()) != {0}


def forged(change: Callable[[Entry], Entry]) -> list[str]:
    """What is found in a journal, one entry of which was changed."""
    _, entries = world()
    at = next(number for number, entry in enumerate(entries) if number > 4 and entry.attempts())
    return check({}, [*entries[:at], change(entries[at]), *entries[at + 1 :]])


def moved(key: FlowKey, **changes: object) -> Callable[[Entry], Entry]:
    def change(entry: Entry) -> Entry:
        movement = attrs.evolve(entry.movements.get(key, Movement()), **changes)
        return attrs.evolve(entry, movements={**entry.movements, key: movement})

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param(
            lambda entry: attrs.evolve(entry, riding=(entry.attempts()[0],)), "is granted again", id="twice"
        ),
        pytest.param(moved(scheduler_key(DEADLINE), raised=-1), "raised by -1", id="lowered"),
        pytest.param(moved(scheduler_key(DEADLINE), raised=10**9), "the clock is", id="above the clock"),
        pytest.param(moved(scheduler_key(DEADLINE), advanced=-5), "clock moved by -5", id="clock back"),
        pytest.param(moved(scheduler_key(DEADLINE), holds=(-1,)), "less than nothing", id="negative hold"),
        pytest.param(moved(scheduler_key(DEADLINE), made=1, weight=1), "a second time", id="made twice"),
        pytest.param(
            moved(scheduler_key(ServiceClass.DAG_CALLBACK), settled=1), "has no beginning", id="never made"
        ),
        pytest.param(
            lambda entry: attrs.evolve(entry, grants=(), riding=()), "for 0 grants", id="clock without grants"
        ),
    ],
)
def test_what_cannot_be_true_is_found(change, told):
    assert any(told in each for each in forged(change))
    assert forged(lambda entry: entry) == []


def test_a_checkpoint_that_the_entries_do_not_lead_to_is_found():
    flows, entries = world()
    flows[scheduler_key(TASK)] = attrs.evolve(flows[scheduler_key(TASK)], tag=1)
    found = check({}, [*entries, Entry(flows=flows)])
    assert [each.split(": ", 1)[1].split(" is ")[0] for each in found] == ["task: tag"]


def test_a_grant_that_moved_no_flow_is_caught():
    """Charges come from the grants, not from where the tag went."""
    flows, entries = world()
    granted = Granted(service_class=TASK, pool=POOL, charge=1, widths=(1,))
    assert differences(flows, replay({}, [*entries, Entry(grants=(granted,))]))


def test_an_entry_of_a_newer_version_is_refused():
    with pytest.raises(ValueError, match="not an entry"):
        from_json('{"format": 2}')
    with pytest.raises(ValueError, match="not an entry"):
        from_json("[]")
