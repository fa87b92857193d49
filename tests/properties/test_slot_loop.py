"""What a pass of the slot loop promises, for any snapshot, checked by plain counting."""

from __future__ import annotations

import random
from collections import Counter
from math import inf

import attrs
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from callback_priority.core.classes import CLASS_ORDER
from callback_priority.core.policies import Policy
from callback_priority.core.quotas import Quota
from callback_priority.core.slot_loop import decide
from callback_priority.core.snapshot import Backlog, PoolSlots, Reason, Snapshot
from tests.properties.snapshots import Case, Rules, cases, pool_slots, scheduler_slots, waits_after
from tests.properties.worlds import DEADLINE, POOL, TASK, granted_by_class, waiting

ITS_OWN_ACCOUNT = {Reason.EXECUTOR_FULL, Reason.NEVER_FITS}

LIMITED_AT_THE_SCHEDULER = Case(
    snapshot=Snapshot(
        now=0,
        free_slots=10,
        pools={POOL: PoolSlots(open_slots=4, total_slots=4)},
        backlogs=[waiting(DEADLINE, 11), waiting(TASK, 11)],
    ),
    rules=Rules(slot_quotas={DEADLINE: Quota(limit_slots=1)}),
)
"""The pool admits two of each class, the scheduler takes one of the first: the second must take three."""


def decided(case):
    return decide(case.snapshot, case.rules)


@given(cases())
def test_no_more_is_granted_than_there_is(case):
    """Capacity: of the scheduler's slots, of each pool's and of each executor's; negative counts as none."""
    decision = decided(case)
    assert len(decision.grants) <= max(0, case.snapshot.free_slots)
    for name, pool in case.snapshot.pools.items():
        used = sum(grant.candidate.width for grant in decision.grants if grant.pool == name)
        assert used <= max(0, inf if pool.open_slots is None else pool.open_slots)
    executors = Counter(grant.candidate.executor for grant in decision.grants)
    for name, free in case.snapshot.executor_slots.items():
        assert executors[name] <= max(0, free)


@given(cases())
def test_no_candidate_is_granted_twice_or_out_of_its_order(case):
    decision = decided(case)
    for backlog in case.snapshot.backlogs:
        order = [id(candidate) for candidate in backlog.candidates]
        places = [
            order.index(id(grant.candidate))
            for grant in decision.grants
            if (grant.service_class, grant.pool) == (backlog.service_class, backlog.pool)
        ]
        assert places == sorted(set(places))


@given(cases())
def test_no_class_is_granted_more_than_its_limits(case):
    decision = decided(case)
    for slots in [scheduler_slots(case, decision)] + [
        pool_slots(case, decision, name) for name in case.snapshot.pools
    ]:
        for cls in CLASS_ORDER:
            assert slots.took[cls] <= max(0, slots.room[cls])


@given(cases())
def test_a_reserve_is_never_lent(case):
    """Whoever is granted anything leaves what is lacking to every other class's reserve."""
    decision = decided(case)
    for slots in [scheduler_slots(case, decision)] + [
        pool_slots(case, decision, name) for name in case.snapshot.pools
    ]:
        free = slots.left + sum(slots.took.values())
        for cls in CLASS_ORDER:
            if slots.took[cls]:
                others = sum(max(slots.unmet[o], slots.took[o]) for o in CLASS_ORDER if o is not cls)
                # Two reserves that cannot both be met may each be used; what matters is what others took.
                own = max(0, slots.took[cls] - slots.unmet[cls])
                assert not own or slots.took[cls] + others <= free


@given(cases())
@example(LIMITED_AT_THE_SCHEDULER)
@settings(max_examples=150)
def test_no_slot_stays_empty_that_a_waiting_candidate_could_use(case):
    """Work conservation: within reserves and limits, executors and drains."""
    decision = decided(case)
    scheduler = scheduler_slots(case, decision)
    reasons = {(each.service_class, each.pool): each.reason for each in decision.refusals}
    used = Counter(grant.candidate.executor for grant in decision.grants)
    for (cls, pool), left in waits_after(case, decision).items():
        ready = [
            candidate
            for candidate in left
            if used[candidate.executor] < case.snapshot.executor_slots.get(candidate.executor, inf)
        ]
        if not ready or pool not in case.snapshot.pools or reasons.get((cls, pool)) is Reason.DRAINING:
            continue
        head = left[0] if cls is TASK else ready[0]
        in_pool = pool_slots(case, decision, pool)
        if any(each.reason is Reason.NEVER_FITS for each in decision.refusals):
            continue
        assert not (scheduler.fits(cls, 1) and in_pool.fits(cls, head.width)), (cls, pool, head, reasons)


@given(cases())
def test_every_backlog_with_something_left_has_one_reason(case):
    decision = decided(case)
    own = [refusal for refusal in decision.refusals if refusal.reason in ITS_OWN_ACCOUNT]
    heads = Counter((each.service_class, each.pool) for each in decision.refusals if each not in own)
    assert all(count == 1 for count in heads.values())
    passed_over = {id(each.candidate) for each in own}
    assert len(passed_over) == len(own)
    for place, left in waits_after(case, decision).items():
        rest = [candidate for candidate in left if id(candidate) not in passed_over]
        assert heads[place] == bool(rest)


def lifted(case, refusal):
    """The case without what the reason names."""
    snapshot, rules = case.snapshot, case.rules
    cls, pool = refusal.service_class, refusal.pool
    more = (
        attrs.evolve(snapshot.pools[pool], open_slots=None)
        if pool in snapshot.pools
        else PoolSlots(open_slots=None)
    )
    endless = attrs.evolve(snapshot, pools={**snapshot.pools, pool: more})
    if refusal.reason is Reason.NO_FREE_SLOT:
        snapshot = attrs.evolve(snapshot, free_slots=1_000)
    elif refusal.reason is Reason.SLOT_RESERVE:
        reserves = {c: attrs.evolve(q, reserve_slots=0) for c, q in rules.slot_quotas.items()}
        rules = attrs.evolve(rules, slot_quotas=reserves)
    elif refusal.reason is Reason.SLOT_LIMIT:
        rules = attrs.evolve(rules, slot_quotas={**rules.slot_quotas, cls: Quota()})
    elif refusal.reason in {Reason.POOL_MISSING, Reason.POOL_FULL, Reason.TOO_WIDE}:
        snapshot = endless
    elif refusal.reason is Reason.POOL_RESERVE:
        reserves = {place: attrs.evolve(q, reserve_slots=0) for place, q in rules.pool_quotas.items()}
        rules = attrs.evolve(rules, pool_quotas=reserves)
    elif refusal.reason is Reason.POOL_LIMIT:
        rules = attrs.evolve(rules, pool_quotas={**rules.pool_quotas, (pool, cls): Quota()})
    elif refusal.reason is Reason.DRAINING:
        rules = attrs.evolve(rules, wide_bypass_limit=1_000)
    elif refusal.reason is Reason.NEVER_FITS:
        snapshot = attrs.evolve(
            snapshot, pools={**snapshot.pools, pool: attrs.evolve(more, total_slots=None)}
        )
    else:
        assert refusal.reason is Reason.EXECUTOR_FULL
        snapshot = attrs.evolve(snapshot, executor_slots=dict.fromkeys(snapshot.executor_slots, 1_000))
    return Case(snapshot=snapshot, rules=rules)


@given(cases())
@settings(max_examples=150)
def test_the_reason_is_what_binds(case):
    """Lifting what a refusal names changes the answer: a grant, or something else that binds."""
    for refusal in decided(case).refusals:
        after = decided(lifted(case, refusal))
        assert refusal not in after.refusals


@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(case, shuffler):
    """Permutation invariance: backlogs, pools and flows come in any order."""

    def shuffled(mapping):
        items = list(mapping.items())
        shuffler.shuffle(items)
        return dict(items)

    backlogs = list(case.snapshot.backlogs)
    shuffler.shuffle(backlogs)
    other = attrs.evolve(
        case.snapshot,
        backlogs=backlogs,
        pools=shuffled(case.snapshot.pools),
        flows=shuffled(case.snapshot.flows),
        executor_slots=shuffled(case.snapshot.executor_slots),
    )
    first, second = decided(case), decide(other, case.rules)
    assert first.grants == second.grants
    assert first.flows == second.flows
    assert Counter(map(repr, first.refusals)) == Counter(map(repr, second.refusals))


@given(cases(widths=False), st.integers(0, 12))
def test_two_passes_grant_what_one_pass_of_both_grants(case, k):
    """k-split: it does not matter to the scheduler's slots how many of them come free at once."""
    rules = attrs.evolve(case.rules, slot_quotas={}, pool_quotas={})
    endless = {name: PoolSlots(open_slots=None) for name in case.snapshot.pools}
    backlogs = [each for each in case.snapshot.backlogs if each.pool in endless]
    free = max(0, case.snapshot.free_slots)
    snapshot = attrs.evolve(
        case.snapshot, pools=endless, executor_slots={}, backlogs=backlogs, free_slots=free
    )
    at_once = decide(snapshot, rules)
    k = min(k, free)
    first = decide(attrs.evolve(snapshot, free_slots=k), rules)
    left = waits_after(Case(snapshot=snapshot, rules=rules), first)
    rest = attrs.evolve(
        snapshot,
        free_slots=free - k,
        flows={**snapshot.flows, **first.flows},
        backlogs=[attrs.evolve(each, candidates=left[each.service_class, each.pool]) for each in backlogs],
    )
    second = decide(rest, rules)
    assert first.grants + second.grants == at_once.grants


@given(cases(), st.sampled_from([2, 5, 10, 1_000]))
def test_only_the_ratio_of_weights_matters(case, factor):
    """Weight scaling, from an empty past, where no division leaves a remainder."""
    weights = dict(zip(CLASS_ORDER, (1_000, 2_000, 4_000, 500), strict=True))
    rules = attrs.evolve(case.rules, weights=weights, initial_estimate=8_000_000_000)
    scaled = attrs.evolve(rules, weights={cls: weight * factor for cls, weight in weights.items()})
    fresh = attrs.evolve(case.snapshot, flows={})
    assert decide(fresh, rules).grants == decide(fresh, scaled).grants


@given(cases())
def test_strict_policies_serve_one_side_first(case):
    """Callbacks first: no task is granted a slot of a scheduler while a callback is refused it for want of one."""
    for policy, served_first in [(Policy.CALLBACKS_FIRST, False), (Policy.TASKS_FIRST, True)]:
        decision = decide(
            case.snapshot, attrs.evolve(case.rules, policy=policy, slot_quotas={}, pool_quotas={})
        )
        sides = [grant.service_class is TASK for grant in decision.grants]
        assert sides == sorted(sides, reverse=served_first)


@given(cases())
def test_a_pass_leaves_its_input_as_it_was(case):
    before = repr(case)
    decided(case)
    assert repr(case) == before


@given(cases())
def test_the_clock_never_goes_back(case):
    flows = case.snapshot.flows
    clocks = {}
    for key, state in flows.items():
        clocks[key[:2]] = max(clocks.get(key[:2], 0), state.clock)
    for key, state in decided(case).flows.items():
        if state.granted != (flows[key].granted if key in flows else 0):
            assert state.clock >= clocks.get(key[:2], 0)
            assert 0 <= state.remainder < state.weight


@given(cases())
def test_nothing_is_decided_without_free_slots(case):
    for free in (0, -3):
        decision = decide(attrs.evolve(case.snapshot, free_slots=free), case.rules)
        assert not decision.grants
        assert not decision.flows
        assert not decision.unused_slots


def max_min(demands, weights, capacity):
    """The weighted max-min fair allocation, by filling up: the oracle, which knows nothing of tags."""
    share = dict.fromkeys(demands, 0.0)
    open_to = {cls for cls in demands if demands[cls]}
    while open_to and capacity > 1e-9:
        step = min(
            capacity / sum(weights[cls] for cls in open_to),
            *((demands[cls] - share[cls]) / weights[cls] for cls in open_to),
        )
        for cls in open_to:
            share[cls] += step * weights[cls]
        capacity -= step * sum(weights[cls] for cls in open_to)
        open_to = {cls for cls in open_to if demands[cls] - share[cls] > 1e-9}
    return share


@given(
    st.fixed_dictionaries({cls: st.integers(0, 8) for cls in CLASS_ORDER}),
    st.fixed_dictionaries({cls: st.sampled_from([500, 1_000, 2_000, 3_000]) for cls in CLASS_ORDER}),
    st.integers(1, 12),
    st.booleans(),
)
@settings(max_examples=60)
def test_long_run_shares_are_max_min_fair(demands, weights, slots, pooled):
    """Every class gets its weight's share, or what it asks for where that is less; the rest is split again.

    At the scheduler's slots, or at a pool's; before each pass the same number of each class arrives.
    """
    assume(any(demands.values()))
    rules = Rules(weights=weights)
    flows, took, passes = {}, Counter(), 120
    backlog = dict.fromkeys(CLASS_ORDER, 0)
    for number in range(passes):
        snapshot = Snapshot(
            now=number,
            free_slots=30 if pooled else slots,
            pools={POOL: PoolSlots(open_slots=slots if pooled else None)},
            backlogs=[waiting(cls, min(31, backlog[cls] + demand)) for cls, demand in demands.items()],
            flows=dict(flows),
        )
        decision = decide(snapshot, rules)
        flows.update(decision.flows)
        for cls, count in granted_by_class(decision).items():
            took[cls] += count
            backlog[cls] += demands[cls] - count
    fair = max_min(demands, weights, slots)
    for cls, share in fair.items():
        assert abs(took[cls] - passes * share) <= 0.03 * passes * max(1.0, share) + 8, (took, fair)


def test_the_oracle_catches_equal_turns_where_weights_differ():
    """The control: the comparison is sharp enough to tell fair from almost fair."""
    demands, weights = {DEADLINE: 8, TASK: 8}, {DEADLINE: 1_000, TASK: 3_000}
    fair = max_min(demands, weights, 4)
    assert abs(120 * fair[TASK] - 240) > 0.03 * 120 * fair[TASK] + 8


def test_backlogs_shuffled_once_by_hand():
    """The same claim as by search, on a case that is easy to read."""
    backlogs: list[Backlog] = [waiting(cls, 3) for cls in CLASS_ORDER]
    answers = set()
    for seed in range(5):
        random.Random(seed).shuffle(backlogs)  # noqa: S311 - not for secrets
        snapshot = Snapshot(
            now=0, free_slots=5, pools={POOL: PoolSlots(open_slots=None)}, backlogs=list(backlogs)
        )
        answers.add(decide(snapshot, Rules()).grants)
    assert len(answers) == 1
