"""Task instances: what Airflow started is charged, what tasks could not use goes on, what is kept stays empty."""

from __future__ import annotations

import attrs
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from callback_priority.core.policies import Policy
from callback_priority.core.quotas import Quota
from callback_priority.core.slot_loop import decide
from callback_priority.core.snapshot import Backlog, Candidate, PoolSlots, Reason, Snapshot, TaskAnswer
from tests.properties.snapshots import Rules, cases
from tests.properties.worlds import DEADLINE, POOL, TASK, pool_key, scheduler_key, waiting


def contested(free=8, **more):
    """Tasks and deadlines wait, more of each than there are slots."""
    return Snapshot(
        now=0,
        free_slots=free,
        pools={POOL: PoolSlots(open_slots=None)},
        backlogs=[waiting(DEADLINE, free + 1), waiting(TASK, free + 1)],
        **more,
    )


def answered(snapshot, started, **more):
    return attrs.evolve(snapshot, answer=TaskAnswer(started={POOL: [1] * started}, **more))


@st.composite
def answers(draw, snapshot, first):
    """Anything that Airflow's selection may do with what it was offered."""
    asked = draw(st.integers(0, first.task_slots))
    left = asked
    started = {}
    for pool, slots in first.task_pool_slots.items():
        widths: list[int] = []
        while left and draw(st.booleans()):
            width = draw(st.sampled_from([1, 1, 2, 3]))
            if sum(widths) + width > slots:
                break
            widths.append(width)
            left -= 1
        started[pool] = widths
    if not left and asked == first.task_slots:
        # It came no further.
        started = {pool: widths for pool, widths in started.items() if widths}
    count = asked - left
    kept = first.task_slots - asked if count == asked else 0
    return TaskAnswer(started=started, kept_slots=kept, waiting=bool(count or kept))


def test_tasks_keep_their_turn_where_those_of_another_pool_took_all_that_was_offered():
    """Unlike where Airflow's selection came to a pool and found nothing there that can run."""
    snapshot = attrs.evolve(
        contested(2),
        pools={POOL: PoolSlots(open_slots=None), "other": PoolSlots(open_slots=None)},
        backlogs=[waiting(DEADLINE, 3), waiting(TASK, 1), waiting(TASK, 3, pool="other")],
    )
    first = decide(snapshot, EQUAL)
    assert first.task_slots == 1
    for started, wait in (({POOL: [1]}, True), ({POOL: [1], "other": []}, False)):
        answer = TaskAnswer(started=started, waiting=True)
        second = decide(attrs.evolve(snapshot, answer=answer), EQUAL)
        assert second.flows[scheduler_key(TASK)].eligible is wait


def test_tasks_that_fill_their_limit_in_a_pool_save_up_no_turns():
    """Else, when the limit goes, they take every slot until they have caught up with what it kept from them."""
    limited = attrs.evolve(EQUAL, pool_quotas={(POOL, TASK): Quota(limit_slots=1)})
    second = decide(answered(contested(3), 1, waiting=True), limited)
    assert not second.flows[scheduler_key(TASK)].eligible
    wider = attrs.evolve(EQUAL, pool_quotas={(POOL, TASK): Quota(limit_slots=2)})
    second = decide(answered(contested(3), 1, waiting=True), wider)
    assert second.flows[scheduler_key(TASK)].eligible


@given(cases(), st.data())
@settings(max_examples=200)
def test_what_airflow_started_is_granted_in_full_and_nothing_else_of_the_tasks(case, data):
    """Started tasks always fit beside the callbacks of the second pass, whatever the selection did."""
    first = decide(case.snapshot, case.rules)
    assume(first.task_slots)
    answer = data.draw(answers(case.snapshot, first))
    second = decide(attrs.evolve(case.snapshot, answer=answer), case.rules)
    started = sorted((pool, width) for pool, widths in answer.started.items() for width in widths)
    granted = sorted(
        (each.pool, each.candidate.width) for each in second.grants if each.service_class is TASK
    )
    assert granted == started
    assert second.task_slots == len(started)
    assert len(second.grants) + answer.kept_slots <= case.snapshot.free_slots
    for name, pool in case.snapshot.pools.items():
        used = sum(grant.candidate.width for grant in second.grants if grant.pool == name)
        assert pool.open_slots is None or used <= max(0, pool.open_slots)


@given(cases(), st.data())
@settings(max_examples=200)
def test_a_first_pass_that_is_to_be_followed_by_another_only_leaves_out_what_the_other_tells(case, data):
    plain, asking = case.snapshot, attrs.evolve(case.snapshot, asks=True)
    first, offer = decide(plain, case.rules), decide(asking, case.rules)
    if not first.task_slots:
        assert offer == first
        return
    assert offer == attrs.evolve(first, flows={}, refusals=())
    answer = data.draw(answers(plain, first))
    assert decide(attrs.evolve(asking, answer=answer), case.rules) == decide(
        attrs.evolve(plain, answer=answer), case.rules
    )


@given(cases(), st.data())
@settings(max_examples=200)
def test_candidates_that_a_pool_has_no_slot_for_need_not_be_shown(case, data):
    """But one of them, if all are one slot wide and their executors have room."""
    snapshot = attrs.evolve(case.snapshot, executor_slots={})
    shown = []
    for backlog in snapshot.backlogs:
        pool = snapshot.pools.get(backlog.pool)
        most = None if pool is None or pool.open_slots is None else max(0, pool.open_slots) + 1
        short = backlog.candidates if backlog.widest > 1 else backlog.candidates[:most]
        shown.append(attrs.evolve(backlog, candidates=short))
    short = attrs.evolve(snapshot, backlogs=shown)
    first = decide(snapshot, case.rules)
    assert decide(short, case.rules) == first
    if first.task_slots:
        answer = data.draw(answers(snapshot, first))
        assert decide(attrs.evolve(short, answer=answer), case.rules) == decide(
            attrs.evolve(snapshot, answer=answer), case.rules
        )


def test_what_tasks_could_not_use_goes_to_callbacks():
    snapshot = contested()
    assert decide(snapshot, Rules(weights={DEADLINE: 1, TASK: 1})).task_slots == 4
    second = decide(answered(snapshot, 1, waiting=True), Rules(weights={DEADLINE: 1, TASK: 1}))
    assert sum(grant.service_class is DEADLINE for grant in second.grants) == 7
    assert second.unused_slots == 0


def test_kept_slots_stay_empty():
    second = decide(answered(contested(), 2, kept_slots=2, waiting=True), Rules())
    assert len(second.grants) == 6
    assert second.task_slots == 2


def test_kept_slots_count_towards_the_reserve_of_the_tasks():
    """Else both together took the slot that is reserved for a deadline."""
    quotas = {DEADLINE: Quota(reserve_slots=1), TASK: Quota(reserve_slots=3)}
    rules = Rules(policy=Policy.TASKS_FIRST, slot_quotas=quotas)
    assert decide(contested(6), rules).task_slots == 5
    second = decide(answered(contested(6), 1, kept_slots=4, waiting=True), rules)
    assert [grant.service_class for grant in second.grants] == [TASK, DEADLINE]


EQUAL = Rules(weights={DEADLINE: 1_000, TASK: 1_000})


def owed_to_tasks():
    """A past in which tasks waited and are owed a lot: their tag is far behind the clock."""
    flows = dict(decide(contested(), EQUAL).flows)
    key = scheduler_key(TASK)
    flows[key] = attrs.evolve(flows[key], tag=flows[key].tag - 50_000_000, eligible=True)
    return contested(flows=flows), flows[key]


def test_tasks_below_the_cap_of_one_selection_keep_what_they_are_owed():
    """The cap started 2 of 8 due and 6 are kept: the tag moved by two grants and was not clamped."""
    snapshot, before = owed_to_tasks()
    assert decide(snapshot, EQUAL).task_slots == 8
    after = decide(answered(snapshot, 2, kept_slots=6, waiting=True), EQUAL).flows[scheduler_key(TASK)]
    assert after.eligible
    assert after.tag == before.tag + 2 * before.estimate
    again = attrs.evolve(snapshot, flows={**snapshot.flows, after.key: after})
    assert decide(again, EQUAL).task_slots == 8


def test_a_short_answer_does_not_cost_tasks_what_they_are_owed():
    snapshot, before = owed_to_tasks()
    after = decide(answered(snapshot, 3, waiting=True), EQUAL).flows[scheduler_key(TASK)]
    assert after.eligible
    assert after.tag == before.tag + 3 * before.estimate


def test_an_empty_answer_does():
    """Nothing that waits could run: what was owed is gone when something can."""
    snapshot, _ = owed_to_tasks()
    second = decide(answered(snapshot, 0), EQUAL)
    flows = {**snapshot.flows, **second.flows}
    assert not flows[scheduler_key(TASK)].eligible
    assert decide(contested(flows=flows), EQUAL).task_slots in {4, 5}


def test_no_tasks_at_all_does_too():
    """A class that is not there any more is not eligible any more, at both levels."""
    pools = {POOL: PoolSlots(open_slots=4)}
    busy = attrs.evolve(contested(), pools=pools)
    flows = decide(busy, EQUAL).flows
    assert flows[scheduler_key(TASK)].eligible is False  # the pool, not the scheduler, was short
    assert flows[pool_key(TASK)].eligible
    gone = attrs.evolve(busy, flows=flows, backlogs=[waiting(DEADLINE, 9)])
    assert not decide(gone, EQUAL).flows[pool_key(TASK)].eligible


def wide(width, *, open_slots, total=8, bypassed=0, backlog=None, **more):
    """A wide task is due in a pool, narrow callbacks wait beside it."""
    flows = {
        pool_key(cls): attrs.evolve(state, eligible=True)
        for cls in (DEADLINE, TASK)
        for state in [decide(contested(), EQUAL).flows.get(pool_key(cls))]
        if state
    }
    if TASK in {key.service_class for key in flows}:
        flows[pool_key(TASK)] = attrs.evolve(flows[pool_key(TASK)], tag=0, bypassed=bypassed)
    tasks = Backlog(service_class=TASK, pool=POOL, candidates=backlog or [Candidate(width=width)])
    return Snapshot(
        now=0,
        free_slots=20,
        pools={POOL: PoolSlots(open_slots=open_slots, total_slots=total)},
        backlogs=[waiting(DEADLINE, 21), tasks],
        flows=flows,
        **more,
    )


LIMIT_4 = attrs.evolve(EQUAL, wide_bypass_limit=4)


def test_a_wide_head_is_passed_up_to_the_limit():
    decision = decide(wide(6, open_slots=3), LIMIT_4)
    assert sum(grant.service_class is DEADLINE for grant in decision.grants) == 3
    assert decision.flows[pool_key(TASK)].bypassed == 3
    assert {each.service_class: each.reason for each in decision.refusals} == {
        TASK: Reason.TOO_WIDE,
        DEADLINE: Reason.POOL_FULL,
    }


def test_then_the_pool_is_drained_for_it():
    decision = decide(wide(6, open_slots=5, bypassed=4), LIMIT_4)
    assert not decision.grants
    assert {each.service_class: each.reason for each in decision.refusals} == {
        TASK: Reason.TOO_WIDE,
        DEADLINE: Reason.DRAINING,
    }


def test_a_reserve_is_served_in_a_drain():
    rules = attrs.evolve(LIMIT_4, pool_quotas={(POOL, DEADLINE): Quota(reserve_slots=1)})
    decision = decide(wide(6, open_slots=5, bypassed=4), rules)
    assert [grant.service_class for grant in decision.grants] == [DEADLINE]


def test_a_drained_pool_is_not_given_away_in_the_second_pass():
    """Tasks elsewhere were started, none in the pool: it goes on draining."""
    snapshot = wide(6, open_slots=5, bypassed=4)
    both = attrs.evolve(
        snapshot,
        pools={**snapshot.pools, "other": PoolSlots(open_slots=None)},
        backlogs=[*snapshot.backlogs, waiting(TASK, 5, pool="other")],
    )
    first = decide(both, LIMIT_4)
    assert first.task_pool_slots.keys() == {"other"}
    answer = TaskAnswer(started={"other": [1] * 2}, waiting=True)
    second = decide(attrs.evolve(both, answer=answer), LIMIT_4)
    assert {grant.pool for grant in second.grants} == {"other"}
    assert second.flows.get(pool_key(TASK), snapshot.flows.get(pool_key(TASK))).bypassed >= 4


def test_nor_is_one_in_which_a_narrower_task_was_started_first():
    backlog = [Candidate(width=1), Candidate(width=6)]
    snapshot = wide(6, open_slots=5, backlog=backlog)
    strict = attrs.evolve(EQUAL, wide_bypass_limit=0)
    first = decide(snapshot, strict)
    assert first.task_pool_slots == {POOL: 1}
    second = decide(answered(snapshot, 1, waiting=True), strict)
    assert [grant.service_class for grant in second.grants].count(TASK) == 1
    assert len(second.grants) <= len(first.grants)


@given(
    width=st.integers(2, 8),
    limit=st.integers(0, 20),
    hold=st.lists(st.integers(1, 6), min_size=1, max_size=6),
)
@settings(max_examples=60)
def test_a_wide_task_waits_for_a_bounded_number_of_others(width, limit, hold):
    """Bounded bypass: past a due wide head, at most the limit is granted; and it is started in the end."""
    rules = attrs.evolve(EQUAL, wide_bypass_limit=limit)
    flows, ends, started = {}, [], 0
    passed = number = 0
    for now in range(300):
        ends = [(end, taken) for end, taken in ends if end > now]
        open_slots = 8 - sum(taken for _, taken in ends)
        snapshot = Snapshot(
            now=now,
            free_slots=20,
            pools={POOL: PoolSlots(open_slots=open_slots, total_slots=8)},
            backlogs=[
                waiting(DEADLINE, 21),
                Backlog(service_class=TASK, pool=POOL, candidates=[Candidate(width=width)] * 21),
            ],
            flows=dict(flows),
        )
        decision = decide(snapshot, rules)
        flows.update(decision.flows)
        due = any(each.reason is Reason.TOO_WIDE for each in decision.refusals)
        tasks = sum(each.service_class is TASK for each in decision.grants)
        passed = 0 if tasks else passed
        if due and not tasks:
            passed += len(decision.grants)
            # Those granted before it was due in its first pass are not past it; there are no more than slots.
            assert passed <= limit + 8
        started += tasks
        for grant in decision.grants:
            ends.append((now + hold[number % len(hold)], grant.candidate.width))
            number += 1
    assert started >= 300 // (max(hold) * (limit + 16) + 1)
    assert started


def test_without_a_limit_on_bypassing_a_wide_task_starves():
    """The control: skipping for ever is what the limit is there for."""
    rules = attrs.evolve(EQUAL, wide_bypass_limit=10**9)
    flows, ends, started = {}, [], 0
    for now in range(400):
        ends = [end for end in ends if end > now]
        snapshot = Snapshot(
            now=now,
            free_slots=20,
            pools={POOL: PoolSlots(open_slots=8 - len(ends), total_slots=8)},
            backlogs=[
                waiting(DEADLINE, 21),
                Backlog(service_class=TASK, pool=POOL, candidates=[Candidate(width=8)] * (now > 0)),
            ],
            flows=dict(flows),
        )
        decision = decide(snapshot, rules)
        flows.update(decision.flows)
        started += sum(each.service_class is TASK for each in decision.grants)
        ends += [now + 3 + number % 5 for number, _ in enumerate(decision.grants)]
    assert not started
