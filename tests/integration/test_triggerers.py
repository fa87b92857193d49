"""Several triggerers, with Airflow's own assignment: each callback with one at a time, and what a dead one leaves."""

from __future__ import annotations

import inspect
import logging
import threading
from collections import Counter
from datetime import datetime, timedelta, timezone

import pytest
from sqlalchemy import select, text, update

from callback_priority import compat
from callback_priority.persistence.tables import item_table

ON_SQLITE = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("backend", ["postgresql"], indirect=True)

BEFORE_3_4 = pytest.mark.skipif(
    compat.series() not in {"3.2", "3.3"}, reason="this Airflow has the condition"
)
ON_3_4 = pytest.mark.skipif(compat.series() in {"3.2", "3.3"}, reason="this Airflow lacks the condition")

THRESHOLD_SECONDS = 30


@pytest.fixture
def option(monkeypatch):
    """Sets options of the section."""

    def set_options(**options: str) -> None:
        from callback_priority.adapter import config

        for name, value in options.items():
            monkeypatch.setenv(f"AIRFLOW__CALLBACK_PRIORITY__{name.upper()}", value)
        config.settings.cache_clear()

    yield set_options
    from callback_priority.adapter import config

    config.settings.cache_clear()


@pytest.fixture
def stock(airflow_database, option):
    """Airflow's own method, with the options of a deployment that is active."""
    from callback_priority.adapter import triggers

    option(mode="active")
    triggers.uninstall()
    yield triggers
    triggers.uninstall()


@pytest.fixture
def ours(stock):
    """The condition is there."""
    assert stock.install()
    assert stock.installed()
    return stock


def triggerer(*, age_seconds: float = 0.0) -> int:
    """A triggerer whose last heartbeat is so old; its job."""
    from airflow.jobs.job import Job
    from airflow.utils.session import create_session

    with create_session() as session:
        job = Job(job_type="TriggererJob", state="running")
        job.latest_heartbeat = datetime.now(timezone.utc) - timedelta(seconds=age_seconds)
        session.add(job)
        session.flush()
        return job.id


def dies(job_id: int) -> None:
    """Its heartbeat has become too old."""
    from airflow.jobs.job import Job
    from airflow.utils.session import create_session

    with create_session() as session:
        old = datetime.now(timezone.utc) - timedelta(seconds=THRESHOLD_SECONDS + 1)
        session.execute(
            update(Job.__table__).where(Job.__table__.c.id == job_id).values(latest_heartbeat=old)
        )


def callbacks(
    count: int, *, priority: int = 1, queue: str | None = None, team: str | None = None
) -> list[int]:
    """Asynchronous callbacks of missed deadlines, queued by Airflow's own class; their triggers."""
    from airflow.models.callback import TriggererCallback
    from airflow.sdk.definitions.callback import AsyncCallback
    from airflow.utils.session import create_session

    with create_session() as session:
        made = []
        for _ in range(count):
            callback = TriggererCallback(
                AsyncCallback("module.alert"),
                priority_weight=priority,
                prefix="deadline_alerts",
                dag_id="work",
            )
            if "session" in inspect.signature(callback.queue).parameters:
                callback.queue(session=session)
            else:
                callback.queue()
            callback.trigger.queue = queue
            if team is not None:
                callback.trigger.team_name = team
            session.add(callback)
            made.append(callback)
        session.flush()
        return [each.trigger.id for each in made]


def loop(job_id: int, capacity: int = 100, **kwargs) -> set[int]:
    """What a triggerer does in each of its loops: it takes what it may, and runs all that it has then."""
    from airflow.models.trigger import Trigger

    Trigger.assign_unassigned(job_id, capacity, THRESHOLD_SECONDS, **kwargs)
    return set(Trigger.ids_for_triggerer(job_id, **kwargs))


def begun(loops: list[set[int]]) -> Counter[int]:
    """How often callbacks begin in these loops of one triggerer: once for each time that it has them anew."""
    found: Counter[int] = Counter()
    before: set[int] = set()
    for running in loops:
        found.update(running - before)
        before = running
    return found


def states() -> Counter[str]:
    from airflow.models.callback import Callback
    from airflow.utils.session import create_session

    with create_session() as session:
        return Counter(session.scalars(select(Callback.__table__.c.state)))


def outputs() -> list[str | None]:
    from airflow.models.callback import Callback
    from airflow.utils.session import create_session

    with create_session() as session:
        return list(session.scalars(select(Callback.__table__.c.output)))


def items():
    from airflow.utils.session import create_session

    with create_session() as session:
        return session.execute(select(item_table)).all()


def interleaved(rounds: int = 3) -> Counter[int]:
    """Two triggerers take turns; how often each callback began."""
    first, second = triggerer(), triggerer()
    turns: dict[int, list[set[int]]] = {first: [], second: []}
    for _ in range(rounds):
        for job_id in (first, second):
            turns[job_id].append(loop(job_id))
    return begun(turns[first]) + begun(turns[second])


@pytest.mark.contract
@BEFORE_3_4
def test_stock_triggerers_each_begin_every_callback(stock):
    """The negative control."""
    made = callbacks(4)
    assert interleaved() == dict.fromkeys(made, 2)


def test_each_callback_begins_once(ours):
    made = callbacks(4)
    assert interleaved() == dict.fromkeys(made, 1)


def test_what_one_has_hides_nothing_from_the_other(ours, monkeypatch):
    """The LIMIT counts what can be assigned: in stock the most important fill it, whoever has them."""
    from airflow.models.trigger import Trigger

    monkeypatch.setattr(Trigger, "max_trigger_to_select_per_loop", 2)
    high = callbacks(2, priority=9)
    low = callbacks(3)
    first, second = triggerer(), triggerer()
    assert loop(first) == set(high)
    assert loop(second) == set(low[:2])
    assert loop(first) == {*high, low[2]}
    assert loop(second) == set(low[:2])


def test_nobody_takes_more_than_it_has_room_for(ours):
    made = callbacks(5)
    first, second = triggerer(), triggerer()
    assert loop(first, capacity=3) == set(made[:3])
    assert loop(first, capacity=3) == set(made[:3])
    assert loop(second, capacity=1) == {made[3]}
    assert loop(second, capacity=2) == set(made[3:])


def test_queues_are_as_they_were(ours):
    [plain], [special] = callbacks(1), callbacks(1, queue="special")
    everything, specialist, another = triggerer(), triggerer(), triggerer()
    assert loop(everything) == {plain}
    assert loop(specialist, queues={"special"}) == {special}
    assert loop(another, queues={"special"}) == set()


@pytest.mark.skipif(compat.series() == "3.2", reason="its triggerers know no teams")
def test_teams_are_as_they_were(ours, monkeypatch):
    from airflow.models.team import Team
    from airflow.utils.session import create_session

    monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
    with create_session() as session:
        session.add(Team(name="red"))
    [plain], [red] = callbacks(1), callbacks(1, team="red")
    assert loop(triggerer()) == {plain}
    assert loop(triggerer(), team_name="red") == {red}
    assert loop(triggerer(), team_name="red") == set()


def statements(job_id: int) -> list[str]:
    from airflow import settings
    from sqlalchemy import event

    found: list[str] = []

    def note(_conn, _cursor, statement, _parameters, _context, _many):
        found.append(" ".join(statement.replace('"', "").split()))

    event.listen(settings.engine, "before_cursor_execute", note)
    try:
        loop(job_id)
    finally:
        event.remove(settings.engine, "before_cursor_execute", note)
    return found


@BEFORE_3_4
def test_only_the_statement_about_callbacks_differs(stock):
    """Order, row locks and limit are Airflow's, and nothing more is asked while no triggerer has died."""
    job_id = triggerer()
    callbacks(1)
    before = statements(job_id)
    stock.install()
    callbacks(1)
    after = statements(job_id)
    assert len(before) == len(after)
    [(was, now)] = [(one, other) for one, other in zip(before, after, strict=True) if one != other]
    of_callbacks = " FROM trigger JOIN callback"
    assert of_callbacks in was
    assert of_callbacks in now
    assert now.split(" ORDER BY ")[1] == was.split(" ORDER BY ")[1]
    added = "(trigger.triggerer_id IS NULL OR (trigger.triggerer_id NOT IN "
    assert added not in was
    assert added in now


@ON_POSTGRESQL
def test_what_another_is_taking_right_now_is_passed_over_without_waiting(ours):
    from airflow.models.trigger import Trigger
    from airflow.utils.session import create_session

    made = callbacks(3)
    first, second = triggerer(), triggerer()
    with create_session(scoped=False) as session:
        found = Trigger.get_sorted_triggers(
            capacity=2, alive_triggerer_ids=[first, second], queues=None, session=session
        )
        assert [row[0] for row in found] == made[:2]
        assert loop(second) == {made[2]}


def _at_once(count: int, rounds: int) -> Counter[int]:
    """Triggerers in threads of their own, as fast as they can; how often each callback began."""
    made = callbacks(count)
    jobs = [triggerer() for _ in range(3)]
    turns: dict[int, list[set[int]]] = {job_id: [] for job_id in jobs}
    together = threading.Barrier(len(jobs))

    def run(job_id: int) -> None:
        for _ in range(rounds):
            together.wait(30)
            turns[job_id].append(loop(job_id, capacity=count))

    threads = [threading.Thread(target=run, args=(job_id,)) for job_id in jobs]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    total: Counter[int] = Counter()
    for each in turns.values():
        total += begun(each)
    assert set(total) == set(made)
    return total


@ON_POSTGRESQL
def test_triggerers_that_take_at_the_same_moment_take_different_ones(ours):
    assert set(_at_once(60, 6).values()) == {1}


@BEFORE_3_4
@ON_POSTGRESQL
def test_stock_triggerers_that_take_at_the_same_moment_take_the_same(stock):
    """The negative control."""
    assert max(_at_once(60, 6).values()) > 1


@pytest.mark.contract
# A triggerer that dies ----------------------------------------------------------------------------------------


def test_what_a_dead_triggerer_had_begins_anew_and_counts_as_lost(ours):
    made = callbacks(2)
    first, second, third = triggerer(), triggerer(), triggerer()
    assert loop(first) == set(made)
    assert loop(second) == set()
    dies(first)
    assert loop(second) == set(made)
    assert loop(first) == set(), "it drops them, should it live after all"
    assert [(item.state, item.failures, item.service_class, item.dag_id) for item in items()] == [
        ("triggered", 1, "deadline", "work")
    ] * 2
    dies(second)
    assert loop(third) == set(made)
    assert [item.failures for item in items()] == [2, 2]
    assert states() == {"queued": 2}


def test_what_has_lost_too_many_triggerers_is_failed_and_no_other_gets_it(ours, option):
    option(callback_max_attempts="2")
    made = callbacks(2)
    first = triggerer()
    assert loop(first) == set(made)
    dies(first)
    second = triggerer()
    [fresh] = callbacks(1)
    assert loop(second) == {*made, fresh}
    dies(second)
    third = triggerer()
    assert loop(third) == {fresh}
    assert states() == {"failed": 2, "queued": 1}
    assert [each for each in outputs() if each] == [
        "the triggerer that had it ended, 2 time(s): callback_max_attempts allows no more attempts"
    ] * 2
    from airflow.models.trigger import Trigger

    Trigger.clean_unused()
    assert loop(third) == {fresh}


def test_at_most_once_is_kept(ours, option):
    option(callback_max_attempts='{"deadline": 1}')
    callbacks(2)
    first = triggerer()
    assert len(loop(first)) == 2
    dies(first)
    assert loop(triggerer()) == set()
    assert states() == {"failed": 2}


def test_a_scheduler_closes_what_was_failed_there(ours, option):
    from airflow.utils.session import create_session

    from callback_priority.adapter.routing import fallback

    option(callback_max_attempts="1")
    callbacks(1)
    dead = triggerer()
    loop(dead)
    dies(dead)
    loop(triggerer())
    assert [item.state for item in items()] == ["triggered"]
    with create_session() as session:
        assert fallback.reroute_triggered(session, datetime.now(timezone.utc), 100) == 0
    assert [item.state for item in items()] == ["done"]


@pytest.mark.parametrize(("attempts", "begins"), [("3", True), ("1", False)])
def test_without_our_tables_nothing_is_counted_and_at_most_once_is_kept(
    ours, option, caplog, attempts, begins
):
    from airflow.utils.session import create_session

    option(callback_max_attempts=attempts)
    made = callbacks(2)
    dead = triggerer()
    loop(dead)
    dies(dead)
    with create_session() as session:
        session.execute(text("DROP TABLE callback_priority_item"))
    [fresh] = callbacks(1)
    with caplog.at_level(logging.ERROR, logger="callback_priority"):
        assert loop(triggerer()) == {fresh, *(made if begins else ())}
    assert "could not be counted" in caplog.text


@ON_SQLITE
def test_shadow_counts_nothing(ours, option):
    option(mode="shadow", callback_max_attempts="1")
    made = callbacks(2)
    dead = triggerer()
    loop(dead)
    dies(dead)
    assert loop(triggerer()) == set(made)
    assert items() == []


# Installing ---------------------------------------------------------------------------------------------------


@ON_SQLITE
def test_it_is_replaced_once_and_put_back(stock):
    from airflow.models.trigger import Trigger

    before = Trigger.__dict__["get_sorted_triggers"].__func__
    assert not stock.installed()
    assert stock.install()
    ours = Trigger.__dict__["get_sorted_triggers"].__func__
    assert ours is not before
    assert stock.install()
    assert Trigger.__dict__["get_sorted_triggers"].__func__ is ours
    stock.assigned_once.cache_clear()
    assert stock.assigned_once(), "it is known through the replacement"
    stock.uninstall()
    assert Trigger.__dict__["get_sorted_triggers"].__func__ is before


@ON_SQLITE
def test_switched_off_nothing_is_replaced(stock, option):
    option(mode="off")
    assert not stock.install()
    assert not stock.installed()


@pytest.fixture
def judged_anew(stock):
    stock.assigned_once.cache_clear()
    yield stock.assigned_once
    stock.assigned_once.cache_clear()


@ON_SQLITE
def test_unknown_code_is_left_alone_with_one_line(stock, judged_anew, monkeypatch, caplog):
    from airflow.models.trigger import Trigger

    def get_sorted_triggers(cls):
        raise NotImplementedError

    monkeypatch.setattr(Trigger, "get_sorted_triggers", classmethod(get_sorted_triggers))
    with caplog.at_level(logging.ERROR, logger="callback_priority"):
        assert not stock.install()
    [record] = caplog.records
    assert "Trigger.get_sorted_triggers is not the code that this release was made for" in record.getMessage()
    assert not judged_anew()


@ON_3_4
@ON_SQLITE
def test_where_airflow_has_the_condition_lost_attempts_are_counted_all_the_same(stock, option):
    option(callback_max_attempts="1")
    assert stock.install()
    callbacks(1)
    dead = triggerer()
    loop(dead)
    dies(dead)
    assert loop(triggerer()) == set()
    assert states() == {"failed": 1}
