"""Shares and entitlements, and how the overview is put together; no database."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from sqlalchemy import CompoundSelect, Select, make_url
from sqlalchemy.dialects import mysql, postgresql, sqlite

from callback_priority.cli.overview import shares, view
from callback_priority.cli.surroundings import database_name, first_line
from callback_priority.core.accounting import RECENT_HALF_LIFE_SECONDS
from callback_priority.core.classes import SCHEDULER_SCOPE, FlowKey, Level, ServiceClass
from callback_priority.core.flows import FlowState
from callback_priority.core.units import MICROSECONDS, Milliweight, SlotMicros, seconds_to_micros
from callback_priority.persistence import deployment, lookup, status
from callback_priority.persistence.deployment import TaskLoad
from callback_priority.persistence.flows import State
from callback_priority.persistence.status import Backlog, Waits
from callback_priority.policy.parse import parse_settings
from callback_priority.policy.settings import Settings

NOW = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
TASK, DEADLINE, DAG_CALLBACK = ServiceClass.TASK, ServiceClass.DEADLINE, ServiceClass.DAG_CALLBACK


def flow(service_class, seconds, *, ago=0.0, level=Level.SCHEDULER, scope=SCHEDULER_SCOPE):
    """A flow that was given so many slot-seconds, as counted some seconds ago."""
    return FlowState(
        key=FlowKey(level, scope, service_class),
        weight=Milliweight(1000),
        estimate=SlotMicros(1),
        recent=seconds_to_micros(seconds),
        recent_at=int((NOW.timestamp() - ago) * MICROSECONDS),
    )


def split(*flows, settings=None, busy=()):
    """Recent and entitled shares by class, without the classes that have neither."""
    found = shares(
        {each.key: each for each in flows},
        level=Level.SCHEDULER,
        scope=SCHEDULER_SCOPE,
        settings=settings or Settings(),
        busy=busy,
        now=NOW,
    )
    pairs = {each: (share.recent, share.entitled) for each, share in found.items()}
    return {each: pair for each, pair in pairs.items() if any(pair)}


def test_shares_are_of_what_was_given_out_and_entitlements_of_who_had_work():
    assert split(flow(TASK, 30), flow(DEADLINE, 10)) == {TASK: (0.75, 0.5), DEADLINE: (0.25, 0.5)}


def test_entitlements_follow_the_weights():
    settings = parse_settings({"weights": '{"task": 3}'})
    assert split(flow(TASK, 1), flow(DEADLINE, 1), settings=settings)[TASK] == (0.5, 0.75)


def test_slot_time_counts_half_after_each_half_life():
    """Counted at different times, both are brought to now before they are compared."""
    old = flow(DEADLINE, 20, ago=RECENT_HALF_LIFE_SECONDS)
    assert split(old, flow(TASK, 10))[DEADLINE][0] == pytest.approx(0.5)


def test_a_class_that_waits_is_entitled_though_it_was_given_nothing():
    """Starvation shows: nothing recently, half by weight."""
    assert split(flow(TASK, 60), busy=[DEADLINE]) == {TASK: (1.0, 0.5), DEADLINE: (0.0, 0.5)}


def test_a_class_that_has_long_been_idle_takes_nothing_from_the_others_entitlement():
    long_ago = flow(DAG_CALLBACK, 60, ago=20 * RECENT_HALF_LIFE_SECONDS)
    assert split(long_ago, flow(TASK, 60))[TASK] == (pytest.approx(1.0, abs=1e-4), 1.0)


def test_a_total_below_nothing_counts_as_nothing():
    """Settlement gives back more than was charged of late."""
    assert split(flow(DEADLINE, -5), flow(TASK, 5)) == {TASK: (1.0, 1.0)}


def test_nothing_given_and_nothing_waiting_is_no_share_at_all():
    assert split() == {}


def put_together(**changes):
    arguments = {
        "settings": Settings(),
        "state": State(flows={}, held={}),
        "backlog": [],
        "waits": [],
        "tasks": [],
        "pool_slots": {"default_pool": 128, "etl": 4},
        "now": NOW,
    }
    classes, pools = view(**(arguments | changes))
    return {each.service_class: each for each in classes}, {each.pool: each for each in pools}


def test_every_class_is_listed_though_nothing_happens_and_no_pool_is():
    classes, pools = put_together()
    assert list(classes) == ["deadline", "task_callback", "dag_callback", "task"]
    assert pools == {}


def test_a_wide_task_holds_one_slot_of_its_scheduler_and_many_of_its_pool():
    load = TaskLoad(
        pool="etl", waiting=2, oldest_scheduled_at=NOW - timedelta(seconds=90), held=1, held_pool_slots=3
    )
    classes, pools = put_together(tasks=[load])
    assert (classes["task"].held, classes["task"].waiting) == (1, 2)
    assert (pools["etl"].classes[0].held, pools["etl"].slots) == (3, 4)
    assert classes["task"].oldest_wait_seconds == 90


def test_callbacks_add_up_over_pools_and_the_oldest_wait_is_the_oldest_of_all():
    backlog = [
        Backlog(service_class=DEADLINE, pool="default_pool", waiting=3, oldest_enqueued_at=NOW),
        Backlog(
            service_class=DEADLINE,
            pool="etl",
            waiting=1,
            parked=2,
            oldest_enqueued_at=NOW - timedelta(seconds=5),
        ),
    ]
    state = State(flows={}, held={("default_pool", DEADLINE): 2, ("etl", DEADLINE): 1})
    classes, pools = put_together(backlog=backlog, state=state)
    line = classes["deadline"]
    assert (line.waiting, line.parked, line.held, line.oldest_wait_seconds) == (4, 2, 3, 5)
    assert [each.service_class for each in pools["default_pool"].classes] == ["deadline"]
    assert pools["default_pool"].classes[0].oldest_wait_seconds == 0


def test_quotas_are_shown_where_nothing_happens():
    settings = parse_settings(
        {"slot_quotas": '{"deadline": {"reserve": 2}}', "pool_quotas": '{"etl": {"task": {"limit": 3}}}'}
    )
    classes, pools = put_together(settings=settings)
    assert classes["deadline"].reserve_slots == 2
    assert [(each.service_class, each.limit_slots) for each in pools["etl"].classes] == [("task", 3)]


def test_a_pool_that_is_gone_is_marked_while_something_waits_for_it():
    _, pools = put_together(backlog=[Backlog(service_class=DEADLINE, pool="gone", waiting=1)])
    assert not pools["gone"].exists
    assert pools["gone"].slots is None


def test_past_waits_stand_with_their_class():
    waited = Waits(service_class=DEADLINE, count=9, p50_seconds=1.0, p95_seconds=2.0, longest_seconds=3.0)
    classes, _ = put_together(waits=[waited])
    line = classes["deadline"]
    assert (line.finished, line.wait_p50_seconds, line.wait_p95_seconds) == (9, 1.0, 2.0)
    assert classes["task"].wait_p95_seconds is None


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("postgresql+psycopg2://me:secret@db:5433/air?password=secret", "postgresql air at db:5433"),
        ("postgresql:///air", "postgresql air at the local socket"),
        ("sqlite:////home/me/airflow.db", "sqlite /home/me/airflow.db"),
    ],
)
def test_a_database_is_named_without_its_password(url, name):
    assert database_name(make_url(url)) == name


def test_an_error_without_words_is_named_by_its_type():
    assert first_line(ValueError()) == "ValueError"
    assert first_line(ValueError("\n first \n second")) == "first"


@pytest.mark.parametrize(
    "dialect", [mysql.dialect(), postgresql.dialect(), sqlite.dialect()], ids=lambda each: each.name
)
def test_every_query_for_people_compiles_for_every_database(dialect):
    statements = [
        each
        for module in (deployment, lookup, status)
        for each in vars(module).values()
        if isinstance(each, Select | CompoundSelect)
    ]
    assert len(statements) == 23
    for statement in statements:
        assert "SELECT" in str(statement.compile(dialect=dialect))
