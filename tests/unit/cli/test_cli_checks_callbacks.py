"""What ``doctor`` makes of what it reads about callbacks that leave the Dag processor; no database, no Celery."""

from __future__ import annotations

import threading
from unittest.mock import MagicMock

import pytest

from callback_priority.cli import celery_workers, checks_callbacks
from callback_priority.cli.celery_workers import Answer, Worker
from callback_priority.cli.findings import Status, Wanted
from callback_priority.core.classes import ServiceClass
from callback_priority.policy.parse import parse_settings

DEADLINE, TASK_CALLBACK = ServiceClass.DEADLINE, ServiceClass.TASK_CALLBACK
DAG_CALLBACK = ServiceClass.DAG_CALLBACK
DAGS = {"billing": True, "reports": False, "legacy_1": False}


def wanted(**options):
    settings = parse_settings(options)
    return Wanted(raw=options, mode=settings.mode, sweep_seconds=60, settings=settings)


# -- which callbacks move


def test_nothing_moves_by_default_and_that_is_well():
    found = checks_callbacks.moved(wanted(mode="active"), DAGS)
    assert (found.status, found.values) == (Status.OK, {"use_worker_callbacks": "none"})


@pytest.mark.parametrize(
    ("mode", "status", "says"),
    [
        ("off", Status.WARN, "mode is off, so none does"),
        ("shadow", Status.WARN, "only counted"),
        ("active", Status.OK, "task callbacks of 2 of 3 Dags leave the Dag processor"),
    ],
)
def test_callbacks_move_in_mode_active_only(mode, status, says):
    found = checks_callbacks.moved(
        wanted(mode=mode, use_worker_callbacks="task", worker_callbacks_exclude="legacy_*"), DAGS
    )
    assert found.status is status
    assert says in found.found
    assert ("`active`" in found.remedy) is (status is Status.WARN)
    assert found.values["covered_dags"] == 2


def test_patterns_that_match_no_dag_are_worth_a_warning():
    some = wanted(mode="active", use_worker_callbacks="all", worker_callbacks_include="Billing")
    assert checks_callbacks.moved(some, DAGS).status is Status.WARN
    assert checks_callbacks.moved(some, {}).status is Status.OK, "nothing was parsed yet"


def test_dags_whose_callbacks_are_not_known_are_named_if_they_are_covered():
    some = {"mode": "active", "use_worker_callbacks": "all"}
    found = checks_callbacks.references(wanted(**some, worker_callbacks_exclude="legacy_*"), DAGS)
    assert (found.status, found.details) == (Status.WARN, ("reports",))
    assert "Dag processor" in found.remedy
    well = checks_callbacks.references(wanted(**some, worker_callbacks_include="billing"), DAGS)
    assert (well.status, well.values) == (Status.OK, {"covered_dags": 1, "missing": []})
    many = checks_callbacks.references(wanted(**some), dict.fromkeys(map(str, range(9)), False))
    assert many.details == ("0", "1", "2", "3", "4", "and 4 more")
    assert len(many.values["missing"]) == 9


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("its Dag has not been parsed with the library yet", "parsed again"),
        ("the references of its Dag are older than the Dag", "parsed again"),
        ("its Dag run does not exist", None),
        ("executor PodExecutor cannot be loaded here: No module named 'gone'", "install what provides"),
        ("executor 'pods' is not configured", "callback_executor"),
        (
            "no worker took it: the one that was to run it ended first, or is without callback-priority",
            "install",
        ),
        ("the worker has an older library", "install"),
        ("something new", "logs"),
    ],
)
def test_each_reason_has_its_remedy(reason, remedy):
    found = checks_callbacks.remedy_of(reason)
    assert found == "" if remedy is None else remedy in found


# -- Celery


@pytest.fixture(autouse=True)
def _configured(monkeypatch):
    """What Airflow's configuration says of Celery."""
    monkeypatch.setattr(celery_workers, "default_queue", lambda: "default")
    monkeypatch.setattr(celery_workers, "concurrency", lambda: 16)
    monkeypatch.setattr(checks_callbacks, "parallelism", lambda: 32)


def worker(*queues, processes=8):
    return Worker(name=f"celery@{queues[0]}", processes=processes, queues=frozenset(queues))


def look_at_workers(answer, *, schedulers=1, classes=(DEADLINE, TASK_CALLBACK), **options):
    return checks_callbacks.workers(
        wanted(mode="active", **options),
        classes,
        answer,
        schedulers=schedulers,
        pools=["default_pool", "etl"],
    )


def test_without_reserves_nothing_is_promised():
    found = look_at_workers(Answer(workers=(worker("default", processes=1),)))
    assert (found.status, found.found) == (Status.OK, "1 Celery worker answers")


def test_a_reserve_is_held_against_the_workers_of_its_queue_for_all_schedulers():
    options = {
        "slot_quotas": '{"deadline": {"reserve": 3}, "task_callback": {"reserve": 2}}',
        "callback_queue": "alerts",
    }
    enough = Answer(workers=(worker("alerts", processes=10), worker("default", processes=99)))
    assert look_at_workers(enough, schedulers=2, **options).status is Status.OK
    found = look_at_workers(enough, schedulers=3, **options)
    assert found.status is Status.WARN
    (detail,) = found.details
    assert detail.startswith(
        "slot_quotas reserve 15 slots for deadline and task_callback in queue 'alerts', "
    )
    assert detail.endswith("but its living workers have 10 processes")
    assert "start more workers" in found.remedy
    assert found.values["promises"] == [{"option": "slot_quotas", "queue": "alerts", "slots": 15}]


def test_a_reserve_of_a_class_that_runs_elsewhere_promises_nothing_here():
    found = look_at_workers(
        Answer(workers=(worker("default", processes=1),)),
        classes=[DAG_CALLBACK],
        slot_quotas='{"deadline": {"reserve": 9}}',
    )
    assert found.status is Status.OK


def test_what_pools_reserve_is_held_against_the_workers_too():
    found = look_at_workers(
        Answer(workers=(worker("alerts", processes=4),)),
        pool_quotas='{"*": {"deadline": {"reserve": 5}}, "etl": {}}',
        callback_queue="alerts",
    )
    assert [detail.split(" for ")[0] for detail in found.details] == ["pool_quotas reserve 5 slots"]


def test_a_queue_that_is_shared_with_tasks_keeps_no_promise_if_tasks_can_fill_the_workers():
    """The broker knows no classes: who comes first waits first."""
    quotas = {"slot_quotas": '{"deadline": {"reserve": 1}}'}
    found = look_at_workers(Answer(workers=(worker("default", processes=16),)), **quotas)
    assert "wait in the broker behind tasks" in found.details[0]
    assert "`callback_queue`" in found.remedy
    assert look_at_workers(Answer(workers=(worker("default", processes=32),)), **quotas).status is Status.OK
    own = look_at_workers(Answer(workers=(worker("alerts", processes=1),)), callback_queue="alerts", **quotas)
    assert own.status is Status.OK


@pytest.mark.parametrize("answer", [Answer(), Answer(why_not="OperationalError: refused")])
def test_without_an_answer_one_worker_as_configured_is_reckoned_with(answer):
    options = {"callback_queue": "alerts"}
    found = look_at_workers(answer, slot_quotas='{"deadline": {"reserve": 17}}', **options)
    assert found.status is Status.WARN
    assert "16 processes (`[celery] worker_concurrency`)" in found.details[0]
    assert look_at_workers(answer, slot_quotas='{"deadline": {"reserve": 16}}', **options).details == ()
    assert (answer.why_not or "no Celery worker answered") in found.found


def test_a_worker_that_does_not_say_has_as_many_processes_as_configured():
    assert (
        celery_workers.processes([worker("a", processes=None), worker("a", "b", processes=2)], "a", 16) == 18
    )


def test_a_queue_that_nobody_listens_to_is_named_with_the_command_that_starts_a_worker():
    some = wanted(mode="active", callback_queue='{"deadline": "alerts"}')
    deaf = checks_callbacks.queues(some, [DEADLINE, TASK_CALLBACK], Answer(workers=(worker("default"),)))
    assert deaf.status is Status.WARN
    assert deaf.details == ("'alerts' is for deadline",)
    assert deaf.remedy == "start one: `airflow celery worker --queues alerts`"
    heard = Answer(workers=(worker("default"), worker("alerts")))
    assert checks_callbacks.queues(some, [DEADLINE, TASK_CALLBACK], heard).status is Status.OK
    assert (
        checks_callbacks.queues(some, [TASK_CALLBACK], Answer(workers=(worker("default"),))).status
        is Status.OK
    )
    assert checks_callbacks.queues(some, [DEADLINE], Answer()).status is Status.WARN


@pytest.fixture
def app(monkeypatch):
    """Stands for Celery's app: what its parts do is set on it."""
    app = MagicMock()
    monkeypatch.setattr(celery_workers, "_app", lambda: app)
    return app


def test_a_broker_that_hangs_is_not_waited_for_for_ever(app, monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(celery_workers, "_GIVE_UP_SECONDS", 0.05)
    app.control.inspect.side_effect = lambda timeout: over.wait()
    assert celery_workers.ask().why_not == "no answer within 0.05 s"
    over.set()


def test_a_broker_that_fails_is_an_answer(app):
    app.connection_for_read.side_effect = ConnectionError("refused\nby the host")
    assert celery_workers.ask().why_not == "ConnectionError: refused"


def test_a_provider_that_is_not_there_is_an_answer(monkeypatch):
    def missing():
        raise ModuleNotFoundError("No module named 'celery'")

    monkeypatch.setattr(celery_workers, "_app", missing)
    assert celery_workers.ask().why_not == "ModuleNotFoundError: No module named 'celery'"


def test_workers_are_read_as_celery_tells_them(app):
    inspect = app.control.inspect.return_value
    inspect.stats.return_value = {"celery@b": {"pool": {"max-concurrency": 4}}, "celery@a": {"pool": None}}
    inspect.active_queues.return_value = {
        "celery@b": [{"name": "default"}, {"name": "alerts"}, {}],
        "celery@a": None,
    }
    assert celery_workers.ask() == Answer(
        workers=(
            Worker(name="celery@a", processes=None, queues=frozenset()),
            Worker(name="celery@b", processes=4, queues=frozenset({"default", "alerts"})),
        )
    )
    app.control.inspect.assert_called_once_with(timeout=celery_workers.ANSWER_SECONDS)


def test_nobody_who_answers_is_nobody(app):
    app.control.inspect.return_value.stats.return_value = None
    assert celery_workers.ask() == Answer()
