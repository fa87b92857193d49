"""Where only one backlog waits, the slot loop takes a shorter way, which must come to the same decision to the last digit."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
from hypothesis import HealthCheck, Phase, assume, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from callback_priority.core import slot_loop
from callback_priority.core.accounting import REBASE_ABOVE
from callback_priority.core.classes import CALLBACK_CLASSES, CLASS_ORDER
from callback_priority.core.flows import FlowState
from callback_priority.core.policies import Policy
from callback_priority.core.pools import PoolPass
from callback_priority.core.quotas import Quota
from callback_priority.core.snapshot import Backlog, Decision, Entitlements, PoolSlots, Snapshot
from tests.properties.snapshots import EXECUTORS, POOLS, Case, Rules, cases, flow_states
from tests.properties.worlds import pool_key, scheduler_key, waiting

Shortcut = Callable[[Snapshot, Entitlements], Decision | None]


@st.composite
def sole(draw: st.DrawFn) -> Case:
    """One backlog of callbacks, and any past: most of these take the shorter way."""
    pool = draw(st.sampled_from(POOLS[:2]))
    cls = draw(st.sampled_from(CALLBACK_CLASSES))
    open_slots = draw(st.one_of(st.none(), st.integers(0, 20)))
    eligible = draw(st.booleans())
    flows: dict = {}
    for key in [scheduler_key(each) for each in CLASS_ORDER] + [
        pool_key(each, name) for name in POOLS[:2] for each in CLASS_ORDER
    ]:
        if draw(st.booleans()):
            state: FlowState = draw(flow_states(key))
            far = draw(st.sampled_from([0, 0, 0, 0, REBASE_ABOVE]))
            mine = key == scheduler_key(cls)
            flows[key] = attrs.evolve(
                state,
                eligible=state.eligible and (mine or eligible),
                clock=state.clock + far,
                tag=state.tag + far,
                recent_at=draw(st.integers(0, 10**12)),
                remainder=draw(st.integers(0, state.weight - 1)),
            )
    snapshot = Snapshot(
        now=draw(st.integers(0, 10**12)),
        free_slots=draw(st.integers(-1, 8)),
        pools={pool: PoolSlots(open_slots=open_slots, total_slots=open_slots)},
        backlogs=[
            waiting(
                cls, draw(st.integers(0, 9)), pool=pool, executor=draw(st.sampled_from([None, *EXECUTORS]))
            )
        ],
        held={each: draw(st.integers(0, 3)) for each in CLASS_ORDER},
        flows=flows,
    )
    return Case(snapshot=snapshot, rules=Rules(policy=draw(st.sampled_from(Policy))))


def alone(case: Case) -> Case:
    """Any case, with but one of its backlogs, and without executors that are full."""
    backlogs: list[Backlog] = [each for each in case.snapshot.backlogs if each.candidates][:1]
    return attrs.evolve(case, snapshot=attrs.evolve(case.snapshot, backlogs=backlogs, executor_slots={}))


def the_long_way(case: Case) -> Decision:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(slot_loop, "_of_one_backlog", lambda _snapshot, _entitlements: None)
        return slot_loop.decide(case.snapshot, case.rules)


def differs(case: Case, shortcut: Shortcut = slot_loop._of_one_backlog) -> bool:
    short = shortcut(case.snapshot, case.rules)
    return short is not None and short != the_long_way(case)


@given(sole())
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_the_shorter_way_comes_to_the_same_decision(case):
    short = slot_loop._of_one_backlog(case.snapshot, case.rules)
    assume(short is not None)
    assert short == the_long_way(case)


@given(cases().map(alone))
@settings(max_examples=150, deadline=None)
def test_wherever_it_is_taken(case):
    assert not differs(case)


def forgets_who_left(snapshot: Snapshot, entitlements: Entitlements) -> Decision | None:
    nobody = {key: attrs.evolve(state, eligible=False) for key, state in snapshot.flows.items()}
    return slot_loop._of_one_backlog(attrs.evolve(snapshot, flows=nobody), entitlements)


def counts_every_order_as_fair(snapshot: Snapshot, entitlements: Rules) -> Decision | None:
    return slot_loop._of_one_backlog(snapshot, attrs.evolve(entitlements, policy=Policy.FAIR))


def limited(case: Case) -> Case:
    quotas = dict.fromkeys(CLASS_ORDER, Quota(limit_slots=1))
    return attrs.evolve(case, rules=attrs.evolve(case.rules, slot_quotas=quotas))


def takes_no_notice_of_quotas(snapshot: Snapshot, entitlements: Rules) -> Decision | None:
    bare = attrs.evolve(entitlements, slot_quotas={}, pool_quotas={})
    return slot_loop._of_one_backlog(snapshot, bare)


@pytest.mark.parametrize(
    ("shortcut", "strategy"),
    [
        (forgets_who_left, sole()),
        (counts_every_order_as_fair, sole()),
        (takes_no_notice_of_quotas, sole().map(limited)),
    ],
)
def test_a_shorter_way_that_looks_at_less_is_caught(shortcut, strategy):
    quick = settings(
        max_examples=2_000,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    try:
        find(strategy, lambda case: differs(case, shortcut), settings=quick)
    except NoSuchExample:
        pytest.fail("nothing found")


@st.composite
def pools_of_one(draw: st.DrawFn) -> Case:
    """Any case, but in each pool only one class waits, and the pools are short of slots."""
    case = draw(cases())
    first = {each.pool: each for each in reversed(case.snapshot.backlogs) if each.candidates}
    pools = {
        name: attrs.evolve(slots, open_slots=draw(st.integers(1, 4)))
        for name, slots in case.snapshot.pools.items()
    }
    snapshot = attrs.evolve(case.snapshot, backlogs=list(first.values()), pools=pools)
    return attrs.evolve(case, snapshot=snapshot)


@given(pools_of_one())
@settings(max_examples=250, deadline=None)
def test_who_waits_alone_for_a_pool_is_admitted_as_if_there_were_turns(case):
    short = slot_loop.decide(case.snapshot, case.rules)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            PoolPass,
            "_admit_alone",
            lambda pool, _line, open_slots: pool._split(open_slots, sum(pool._reserved.values())),
        )
        assert short == slot_loop.decide(case.snapshot, case.rules)


def test_who_waits_alone_takes_the_shorter_way(monkeypatch):
    taken = []
    admit_alone = PoolPass._admit_alone
    monkeypatch.setattr(PoolPass, "_admit_alone", lambda *args: taken.append(admit_alone(*args)))
    snapshot = Snapshot(
        now=0,
        free_slots=8,
        pools={"default_pool": PoolSlots(open_slots=2, total_slots=2)},
        backlogs=[waiting(CALLBACK_CLASSES[0], 5)],
    )
    assert len(slot_loop.decide(snapshot, Rules()).grants) == 2
    assert len(taken) == 1
