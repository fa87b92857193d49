"""The ledger against a naive one: every slot-microsecond is charged once, whatever happens in between."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from callback_priority.core.accounting import serve, settle
from callback_priority.core.classes import CLASS_ORDER
from callback_priority.core.flows import FlowState
from callback_priority.core.ledger import Ledger
from callback_priority.core.slot_loop import decide
from callback_priority.core.snapshot import Backlog, Candidate, PoolSlots, Snapshot
from callback_priority.core.units import MICROSECONDS
from tests.properties.snapshots import Rules
from tests.properties.worlds import TASK, pool_key, scheduler_key, waiting


class LedgerMachine(RuleBasedStateMachine):
    """Grants, releases, failed and committed collections, in any order."""

    @initialize()
    def begin(self):
        self.ledger = Ledger()
        self.now = 0
        self.serial = 0
        self.running = {}
        self.paid = Counter()
        self.due = Counter()
        self.collected = None

    @rule(
        cls=st.sampled_from(CLASS_ORDER),
        pool=st.sampled_from([None, "etl", "reports"]),
        width=st.integers(1, 5),
        charge=st.integers(0, 50),
    )
    def grant(self, cls, pool, width, charge):
        self.serial += 1
        hold = self.ledger.grant(
            self.serial, service_class=cls, pool=pool, executor="e", now=self.now, charge=charge, width=width
        )
        self.running[self.serial] = hold
        for flow, wide in hold.flows():
            self.paid[flow] += wide * charge

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def release(self, data):
        """A released slot counts as held until the next collection, when it can be granted again."""
        key = data.draw(st.sampled_from(sorted(self.running)))
        assert self.ledger.release(key) is self.running[key]
        assert key not in self.ledger
        hold = self.running.pop(key)
        for flow, wide in hold.flows():
            self.due[flow] += wide * -hold.granted_at
            self.due["pending", flow] += wide

    @rule(seconds=st.integers(0, 40))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def collect(self):
        self.collected = self.ledger.collect(self.now)
        for place in [place for place in self.due if place[0] == "pending"]:
            self.due[place[1]] += self.due.pop(place) * self.now

    @precondition(lambda self: self.collected is not None)
    @rule()
    def commit(self):
        """Amounts that were not committed come again; those that were do not."""
        settlement = self.ledger.collect(self.now)
        self.collect()
        for flow, amount in settlement.amounts.items():
            self.paid[flow] += amount
        self.ledger.settled()
        self.collected = None
        self.balance()

    def balance(self):
        """Naively: each flow has paid the real holds, and of what still runs the larger of charge and time."""
        owed = Counter({flow: amount for flow, amount in self.due.items() if flow[0] != "pending"})
        for hold in self.running.values():
            for flow, wide in hold.flows():
                owed[flow] += wide * max(hold.charge, self.now - hold.granted_at)
        assert {f: a for f, a in self.paid.items() if a} == {f: a for f, a in owed.items() if a}

    @rule(key=st.integers(1, 5))
    def grant_again(self, key):
        """A key that holds a slot keeps the hold that it has."""
        if key in self.running:
            hold = self.ledger.grant(key, service_class=TASK, pool=None, executor="x", now=self.now, charge=9)
            assert hold is self.running[key]

    @rule()
    def release_unknown(self):
        assert self.ledger.release("nobody") is None

    @invariant()
    def the_ledger_keeps_its_promises(self):
        if hasattr(self, "ledger"):
            self.ledger.check_invariants()
            assert len(self.ledger) == len(self.running)
            assert self.ledger.held() == Counter(hold.service_class for hold in self.running.values())


LedgerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLedger = LedgerMachine.TestCase


@given(
    st.lists(
        st.tuples(st.sampled_from(CLASS_ORDER), st.sampled_from(["etl", "reports"]), st.integers(1, 90)),
        min_size=1,
        max_size=40,
    ),
    st.integers(1, 7),
    st.integers(1, 4),
)
@settings(max_examples=50)
def test_in_the_end_every_flow_was_charged_the_real_holds_and_nothing_else(work, loop, width):
    """Through the slot loop, the ledger and the settlement, at both levels, however wrong the estimates were."""
    rules = Rules()
    ledger, flows, ends, real = Ledger(), {}, {}, Counter()
    queue = list(enumerate(work))
    now = 0
    while queue or len(ledger):
        now += loop * MICROSECONDS
        for key in [key for key, end in ends.items() if end <= now]:
            del ends[key]
            hold = ledger.release(key)
            for flow, wide in hold.flows():
                real[flow] += wide * (now - hold.granted_at)
        flows.update(settle(flows, ledger.collect(now), rules, now))
        ledger.settled()
        candidates = {}
        for number, (cls, pool, _) in queue:
            wide = width if cls is TASK else 1
            candidates.setdefault((cls, pool), []).append(Candidate(id=number, width=wide, rank=number))
        free = 5 - len(ledger)
        snapshot = Snapshot(
            now=now,
            free_slots=free,
            pools={name: PoolSlots(open_slots=max(4, width) if free else 0) for name in ("etl", "reports")},
            backlogs=[
                Backlog(service_class=cls, pool=pool, candidates=some[: free + 1])
                for (cls, pool), some in candidates.items()
            ],
            flows=dict(flows),
        )
        estimates = {
            cls: getattr(flows.get(scheduler_key(cls)), "estimate", MICROSECONDS) for cls in CLASS_ORDER
        }
        decision = decide(snapshot, rules)
        flows.update(decision.flows)
        for grant in decision.grants:
            number = grant.candidate.id
            ends[number] = now + work[number][2] * MICROSECONDS
            ledger.grant(
                number,
                service_class=grant.service_class,
                pool=grant.pool,
                executor="e",
                now=now,
                charge=estimates[grant.service_class],
                width=grant.candidate.width,
            )
        taken = {grant.candidate.id for grant in decision.grants}
        queue = [(number, each) for number, each in queue if number not in taken]
    assert {key: state.service for key, state in flows.items() if state.service} == dict(real)


@given(st.lists(st.integers(-(10**12), 10**12), max_size=60), st.integers(1, 10**9))
def test_any_number_of_charges_adds_up_to_one(amounts, weight):
    """Exactness: tag and remainder are where one charge of the sum would put them."""
    start = FlowState(key=pool_key(TASK), weight=weight, estimate=1)
    state = start
    for amount in amounts:
        state = serve(state, amount, 0)
    once = serve(start, sum(amounts), 0)
    assert (state.tag, state.remainder, state.service) == (once.tag, once.remainder, once.service)


def test_a_hold_that_outruns_its_charge_pays_while_it_runs():
    ledger = Ledger()
    ledger.grant("slow", service_class=TASK, pool=None, executor="e", now=0, charge=10)
    assert ledger.collect(10).amounts == {}
    ledger.settled()
    assert ledger.collect(25).amounts == {scheduler_key(TASK): 15}
    ledger.settled()
    assert ledger.collect(30).amounts == {scheduler_key(TASK): 5}


def test_a_failed_transaction_loses_nothing():
    ledger = Ledger()
    ledger.grant("quick", service_class=TASK, pool="etl", executor="e", now=0, charge=100, width=3)
    ledger.release("quick")
    first = ledger.collect(40)
    assert first.amounts == {scheduler_key(TASK): -60, pool_key(TASK, "etl"): -180}
    assert ledger.collect(90) == first
    assert first.holds == {scheduler_key(TASK): (40,), pool_key(TASK, "etl"): (40,)}
    ledger.settled()
    after = ledger.collect(200)
    assert not after.amounts
    assert not after.holds


def test_a_clock_that_goes_back_charges_nobody():
    ledger = Ledger()
    ledger.grant("slow", service_class=TASK, pool=None, executor="e", now=100, charge=10)
    ledger.collect(200)
    ledger.settled()
    assert not ledger.collect(150).amounts
    assert ledger.collect(210).amounts == {scheduler_key(TASK): 10}


def test_waiting_is_not_holding():
    snapshot = Snapshot(
        now=0,
        free_slots=0,
        pools={"etl": PoolSlots(open_slots=None)},
        backlogs=[waiting(TASK, 3, pool="etl")],
    )
    assert not decide(snapshot, Rules()).flows
