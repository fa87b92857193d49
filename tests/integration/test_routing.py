"""Requests for callbacks, with Airflow's real rows: what is routed, what is not, and that nothing is lost or doubled."""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
import textwrap
import uuid
from datetime import datetime, timedelta, timezone

import pytest
import uuid6
from sqlalchemy import delete, func, select, text, update

from callback_priority.persistence import references, requests
from callback_priority.persistence.references import Document, Reference, References, TaskReferences
from callback_priority.persistence.tables import (
    item_table,
    reference_table,
    request_table,
    unit_table,
)
from callback_priority.protocol import ENTRY, Killed
from tests.support.scheduler import Bench, LoopExecutor, scheduler

ON_SQLITE = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("backend", ["postgresql"], indirect=True)

TELL = Reference(name="sales.tell")
PAGE = Reference(name="sales.page")
MAIL_ASYNC = Reference(name="ours.mail", is_async=True, path="ours.mail")
LOCAL_ASYNC = Reference(name="sales.local", is_async=True)

DOCUMENT = Document(
    dag={"failure": (TELL, PAGE), "success": (TELL,)},
    tasks={
        "task_0": TaskReferences(
            callables={
                "failure": (TELL, PAGE),
                "retry": (TELL,),
                "success": (PAGE,),
            },
            emails=frozenset({"failure"}),
        )
    },
)


@pytest.fixture
def option(monkeypatch):
    """Sets an option of the section."""

    def set_option(name: str, value: str) -> None:
        monkeypatch.setenv(f"AIRFLOW__CALLBACK_PRIORITY__{name.upper()}", value)

    return set_option


@pytest.fixture
def routing(airflow_database, option, monkeypatch, caplog):
    """The sink with the router in front of it, for a deployment that moves all callbacks."""
    from callback_priority.adapter import hook
    from callback_priority.adapter.routing import executors, router, sink

    option("mode", "active")
    option("use_worker_callbacks", "all")
    judged_anew = executors.why_not.cache_clear
    judged_anew()
    monkeypatch.setattr(router, "_told", set())
    caplog.set_level(logging.INFO, logger="callback_priority")
    sink.uninstall()
    assert sink.install()
    yield sink
    sink.uninstall()
    hook.uninstall()  # a test that imports the scheduler's code has it installed, as a process has
    judged_anew()


@pytest.fixture
def bench(routing):
    """A Dag ``work`` with a run and a task instance, parsed with the library."""
    made = Bench()
    made.tasks(1, priority=7, pool="etl")
    parsed()
    return made


def parsed(document: Document = DOCUMENT, version: str | None = None, dag_id: str = "work") -> None:
    from airflow.utils.session import create_session

    found = References(
        dag_id=dag_id, bundle_name="dags-folder", bundle_version=version, document=document.to_json()
    )
    with create_session() as session:
        references.write(session.connection(), [found], datetime.now(timezone.utc))


def dag_request(
    *, failure: bool = True, dag_id: str = "work", version: str | None = None, msg="task_failure"
):
    """As ``DagRun.produce_dag_callback`` makes it."""
    from airflow.callbacks.callback_requests import DagCallbackRequest, DagRunContext
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    with create_session() as session:
        run = session.scalar(select(DagRun).where(DagRun.dag_id == dag_id))
        last = session.scalar(select(TaskInstance).where(TaskInstance.dag_id == dag_id))
        return DagCallbackRequest(
            filepath="work.py",
            dag_id=dag_id,
            run_id="run",
            bundle_name="dags-folder",
            bundle_version=version,
            context_from_server=DagRunContext(dag_run=run, last_ti=last),
            is_failure_callback=failure,
            msg=msg,
        )


def task_fields(version: str | None = None, msg: str = "killed"):
    from airflow.api_fastapi.execution_api.datamodels.taskinstance import (
        DagRun as DagRunModel,
    )
    from airflow.api_fastapi.execution_api.datamodels.taskinstance import (
        TaskInstance as TaskInstanceModel,
    )
    from airflow.api_fastapi.execution_api.datamodels.taskinstance import (
        TIRunContext,
    )
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    with create_session() as session:
        found = session.scalar(select(TaskInstance).where(TaskInstance.task_id == "task_0"))
        return {
            "filepath": "work.py",
            "bundle_name": "dags-folder",
            "bundle_version": version,
            "ti": TaskInstanceModel.model_validate(found, from_attributes=True),
            "msg": msg,
            "context_from_server": TIRunContext(
                dag_run=DagRunModel.model_validate(found.dag_run, from_attributes=True),
                max_tries=0,
                variables=[],
                connections=[],
                xcom_keys_to_clear=[],
            ),
        }


def task_request(state: str | None = "failed", **changes):
    from airflow.callbacks.callback_requests import TaskCallbackRequest

    return TaskCallbackRequest(**task_fields(**changes), task_callback_type=state)


def email_request(email_type: str = "failure", **changes):
    from airflow.callbacks.callback_requests import EmailRequest

    return EmailRequest(**task_fields(**changes), email_type=email_type)


def send(request, **kwargs) -> None:
    from airflow.callbacks.database_callback_sink import DatabaseCallbackSink

    DatabaseCallbackSink().send(request, **kwargs)


def rows(table, *order):
    from airflow.utils.session import create_session

    with create_session() as session:
        return list(session.execute(select(table).order_by(*order)))


def request_rows():
    return rows(request_table, request_table.c.received_at, request_table.c.id)


def unit_rows():
    return rows(unit_table, unit_table.c.request_id, unit_table.c.position)


def callback_rows():
    from airflow.models.callback import Callback

    return rows(Callback.__table__, Callback.__table__.c.id)


def stock_rows() -> list[dict[str, object]]:
    """What waits for the Dag processor, without what is made anew for each row."""
    return [
        {name: value for name, value in row._mapping.items() if name not in {"id", "created_at"}}
        for row in callback_rows()
        if row.type == "dag_processor"
    ]


def stock_writes(request) -> dict[str, object]:
    """What Airflow writes for a request where this library is not installed."""
    from airflow.models.db_callback_request import DbCallbackRequest
    from airflow.utils.session import create_session

    before = len(stock_rows())
    with create_session() as session:
        session.add(DbCallbackRequest(callback=request, priority_weight=1))
    [*_, written] = stock_rows()
    assert len(stock_rows()) == before + 1
    from airflow.models.callback import Callback

    newest = next(row for row in reversed(callback_rows()) if row.type == "dag_processor")
    with create_session() as session:
        session.execute(delete(Callback.__table__).where(Callback.__table__.c.id == newest.id))
    return written


def outcomes() -> list[tuple[str, str, str | None, int]]:
    return [(row.kind, row.outcome, row.reason, row.units) for row in request_rows()]


def lines(caplog, level: int) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == level and record.name.startswith("callback_priority")
    ]


# What is routed -----------------------------------------------------------------------------------------------

KINDS = {
    "dag_failure": (dag_request, ["sales.tell", "sales.page"]),
    "dag_success": (lambda: dag_request(failure=False, msg="success"), ["sales.tell"]),
    "task_failure": (task_request, ["sales.tell", "sales.page"]),
    "task_failure of one stuck in its queue": (lambda: task_request(None), ["sales.tell", "sales.page"]),
    "task_failure of one upstream": (lambda: task_request("upstream_failed"), ["sales.tell", "sales.page"]),
    "task_retry": (lambda: task_request("up_for_retry"), ["sales.tell"]),
    "task_success": (lambda: task_request("success"), ["sales.page"]),
    "email_failure": (email_request, ["e-mail"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_becomes_a_callback_an_item_and_a_unit_for_each_callable(bench, kind):
    make, names = KINDS[kind]
    kind = kind.split()[0]
    request = make()
    send(request)
    [row] = request_rows()
    assert (row.kind, row.outcome, row.reason, row.units) == (kind, "routed", None, len(names))
    assert (row.dag_id, row.run_id, row.dag_run_id) == ("work", "run", bench.dag())
    of_dag = kind.startswith("dag")
    assert (row.task_id, row.map_index, row.try_number) == (("", -1, None) if of_dag else ("task_0", -1, 1))
    assert type(request).model_validate_json(row.body) == request
    assert json.loads(row.body)["type"] == type(request).__name__

    found = unit_rows()
    assert [(unit.position, unit.name, unit.target) for unit in found] == [
        (place, name, "worker") for place, name in enumerate(names)
    ]
    assert {unit.started_at for unit in found} == {None}
    assert [json.loads(unit.reference) for unit in found] == [
        {} if name == "e-mail" else {"name": name, "async": False} for name in names
    ]

    callbacks = {row.id: row for row in callback_rows()}
    assert callbacks.keys() == {unit.callback_id for unit in found}
    for callback in callbacks.values():
        assert (callback.type, callback.state, callback.fetch_method) == (
            "executor",
            "pending",
            "dag_attribute",
        )
        assert callback.data == {
            "path": ENTRY,
            "kwargs": {},
            "dag_id": "work",
            "dag_run_id": str(bench.dag()),
            "kind": kind,
            "pool": "default_pool",
            "prefix": "callback_priority",
        }
        assert callback.bundle_name == "dags-folder"
        assert callback.priority_weight == (1 if of_dag else 7)

    waiting = rows(item_table, item_table.c.rank)
    assert [item.callback_id for item in waiting] == [unit.callback_id for unit in found]
    for item in waiting:
        assert (item.kind, item.state, item.pool) == (kind, "waiting", "default_pool")
        assert item.service_class == ("dag_callback" if of_dag else "task_callback")
        assert (item.dag_id, item.dag_run_id, item.priority) == ("work", bench.dag(), 1 if of_dag else 7)
        assert item.executor is None
    assert len({item.batch for item in waiting}) == 1
    assert len(waiting[0].batch) == 64


def test_airflow_reads_the_callbacks_as_its_own(bench):
    """Its objects load, and the workload of an executor can be made of them."""
    from airflow.executors.workloads import ExecuteCallback
    from airflow.models.callback import Callback, ExecutorCallback
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    send(task_request("up_for_retry"))
    with create_session() as session:
        [callback] = session.scalars(select(Callback))
        assert isinstance(callback, ExecutorCallback)
        run = session.get(DagRun, int(callback.data["dag_run_id"]))
        assert ExecuteCallback.make(callback, run).callback.data["path"] == ENTRY


@ON_SQLITE
def test_the_options_say_where_callbacks_run_and_what_they_draw_on(bench, option, routing):
    option("callback_executor", '{"task_callback": "LocalExecutor"}')
    option("callback_queue", '{"task_callback": "alerts"}')
    option("callback_pool", '{"task_callback": "inherit"}')
    option("callback_batch_size", "1")
    option("dag_priorities", '{"work": 9}')
    routing.settings.cache_clear()
    routing.router.cache_clear()
    send(task_request("up_for_retry"))
    send(dag_request(failure=False))
    by_kind = {row.data["kind"]: row for row in callback_rows()}
    assert by_kind["task_retry"].data["executor"] == "LocalExecutor"
    assert by_kind["task_retry"].data["queue"] == "alerts"
    assert "executor" not in by_kind["dag_success"].data
    assert "queue" not in by_kind["dag_success"].data
    of_task, of_dag = sorted(rows(item_table), key=lambda item: item.kind, reverse=True)
    assert (of_task.pool, of_task.executor, of_task.priority, of_task.batch) == (
        "etl",
        "LocalExecutor",
        7,
        None,
    )
    assert (of_dag.pool, of_dag.executor, of_dag.priority) == ("default_pool", None, 9)


@ON_SQLITE
def test_what_one_process_can_call_is_one_batch_and_nothing_else_is(bench):
    send(task_request("failed"))
    send(task_request("up_for_retry"))
    send(email_request())
    [batch] = {item.batch for item in rows(item_table)}
    send(dag_request(failure=False))
    assert len({item.batch for item in rows(item_table)}) == 2
    parsed(version="v2")
    send(task_request("success", version="v2"))
    assert len({item.batch for item in rows(item_table)}) == 3
    assert batch in {item.batch for item in rows(item_table)}


@ON_SQLITE
def test_a_callable_that_names_its_executor_gets_it(bench):
    named = Reference(name="sales.tell", executor="LocalExecutor", kwargs={"to": "you"})
    parsed(Document(dag={"failure": (named, PAGE)}))
    send(dag_request())
    assert [item.executor for item in rows(item_table, item_table.c.rank)] == ["LocalExecutor", None]
    assert json.loads(unit_rows()[0].reference)["kwargs"] == {"to": "you"}


@ON_SQLITE
@pytest.mark.parametrize(
    "make", [lambda: task_request("success"), lambda: email_request("retry")], ids=["task", "e-mail"]
)
def test_where_there_is_nothing_to_call_nothing_is_sent(bench, make):
    parsed(Document(tasks={"task_0": TaskReferences(emails=frozenset({"failure"}))}))
    send(make())
    [(_, outcome, reason, number)] = outcomes()
    assert (outcome, reason, number) == ("empty", None, 0)
    assert callback_rows() == []


@ON_SQLITE
def test_a_run_that_timed_out_may_have_nothing_to_call(bench):
    parsed(Document())
    send(dag_request(msg="timed_out"))
    assert outcomes() == [("dag_failure", "empty", None, 0)]


# The triggerer ------------------------------------------------------------------------------------------------


@pytest.fixture
def triggerer(bench):
    """A triggerer that is alive."""
    from airflow.jobs.job import Job
    from airflow.utils.session import create_session

    with create_session() as session:
        job = Job(job_type="TriggererJob", state="running")
        job.latest_heartbeat = datetime.now(timezone.utc)
        session.add(job)
        session.flush()
        return job.id


def test_what_the_triggerer_can_import_goes_there(triggerer):
    from airflow.models.callback import Callback, TriggererCallback
    from airflow.utils.session import create_session

    parsed(Document(tasks={"task_0": TaskReferences(callables={"failure": (MAIL_ASYNC, LOCAL_ASYNC, TELL)})}))
    request = task_request()
    send(request)
    assert [unit.target for unit in unit_rows()] == ["triggerer", "worker", "worker"]
    states = {item.callback_id: item for item in rows(item_table)}
    first, *rest = unit_rows()
    assert states[first.callback_id].state == "triggered"
    assert states[first.callback_id].turn is None
    assert {states[unit.callback_id].state for unit in rest} == {"waiting"}
    with create_session() as session:
        callback = session.get(Callback, first.callback_id)
        assert isinstance(callback, TriggererCallback)
        assert callback.state == "queued"
        assert callback.data["path"] == "callback_priority.worker.triggerer.run"
        assert "context" not in callback.data["kwargs"], "metrics would bear it"
        assert "dag_failure" not in callback.data
        kwargs = callback.trigger.kwargs
        assert callback.trigger.classpath == "airflow.triggers.callback.CallbackTrigger"
        assert kwargs["callback_path"] == callback.data["path"]
        assert kwargs["callback_kwargs"] == {
            "unit": {"name": "ours.mail", "kind": "task_failure", "position": 0, "time_limit_seconds": 300.0},
            "context": {
                "reference": {"name": "ours.mail", "async": True, "path": "ours.mail"},
                "request_class": "TaskCallbackRequest",
                "request": json.loads(request.to_json()),
            },
        }


@ON_SQLITE
@pytest.mark.parametrize("state", ["late", "ended", "none"])
def test_without_a_living_triggerer_workers_call_what_is_asynchronous(triggerer, state):
    from airflow.models.callback import Callback
    from airflow.models.trigger import Trigger

    in_the_job(
        {
            "late": {"latest_heartbeat": datetime.now(timezone.utc) - timedelta(minutes=5)},
            "ended": {"state": "success"},
            "none": {"job_type": "SchedulerJob"},
        }[state]
    )
    parsed(Document(dag={"failure": (MAIL_ASYNC,)}))
    send(dag_request())
    assert [unit.target for unit in unit_rows()] == ["worker"]
    assert [row.type for row in rows(Callback.__table__)] == ["executor"]
    assert rows(Trigger.__table__) == []


def another_triggerer() -> int:
    from airflow.jobs.job import Job
    from airflow.utils.session import create_session

    with create_session() as session:
        job = Job(job_type="TriggererJob", state="running")
        job.latest_heartbeat = datetime.now(timezone.utc)
        session.add(job)
        session.flush()
        return job.id


@pytest.mark.parametrize(("fits", "target"), [(True, "triggerer"), (False, "worker")])
def test_several_triggerers_get_what_is_asynchronous_where_each_has_its_own(
    triggerer, monkeypatch, fits, target
):
    """Where Airflow lets them take callbacks from each other and that cannot be mended, workers get it."""
    from callback_priority.adapter import triggers

    monkeypatch.setattr(triggers, "assigned_once", lambda: fits)
    another_triggerer()
    send_async()
    assert [unit.target for unit in unit_rows()] == [target]


@ON_SQLITE
def test_one_triggerer_gets_it_whatever_airflow_does(triggerer, monkeypatch):
    from callback_priority.adapter import triggers

    monkeypatch.setattr(triggers, "assigned_once", lambda: False)
    send_async()
    assert [unit.target for unit in unit_rows()] == ["triggerer"]


def in_the_job(values) -> None:
    from airflow.jobs.job import Job
    from airflow.utils.session import create_session

    with create_session() as session:
        session.execute(update(Job.__table__).values(**values))


def finish(callback_id, state: str, output: str | None) -> None:
    """As the triggerer's event leaves the row."""
    from airflow.models.callback import TriggererCallback
    from airflow.triggers.base import TriggerEvent
    from airflow.utils.session import create_session

    with create_session() as session:
        callback = session.get(TriggererCallback, callback_id)
        callback.handle_event(TriggerEvent({"state": state, "body": output}), session)


def reroute(limit: int = 100) -> int:
    from airflow.utils.session import create_session

    from callback_priority.adapter.routing import fallback

    with create_session() as session:
        return fallback.reroute_triggered(session, datetime.now(timezone.utc), limit)


def test_what_the_triggerer_has_done_is_settled(triggerer):
    parsed(Document(dag={"failure": (MAIL_ASYNC, MAIL_ASYNC, MAIL_ASYNC)}))
    send(dag_request())
    well, badly, _still = [unit.callback_id for unit in unit_rows()]
    assert reroute() == 0
    finish(well, "success", "42")
    finish(badly, "failed", "An error occurred during execution of the callable: boom")
    assert reroute(limit=1) == 0
    assert reroute() == 0
    assert [unit.ended_at is not None for unit in unit_rows()] == [True, True, False]
    assert sorted(item.state for item in rows(item_table)) == ["done", "done", "triggered"]
    assert [row.output for row in callback_rows()][1].endswith("boom")


def test_what_the_triggerer_cannot_import_goes_to_a_worker(triggerer):
    from airflow.models.callback import Callback, ExecutorCallback
    from airflow.utils.session import create_session

    send_async()
    [unit] = unit_rows()
    finish(unit.callback_id, "failed", "Failed to import the callable on the triggerer: ['No module']")
    assert reroute() == 1
    assert reroute() == 0
    [item] = rows(item_table)
    assert (item.state, item.kind, item.pool, item.priority) == ("waiting", "dag_failure", "default_pool", 1)
    assert item.turn is not None
    assert [(unit.target, unit.ended_at) for unit in unit_rows()] == [("worker", None)]
    with create_session() as session:
        callback = session.get(Callback, unit.callback_id)
        assert isinstance(callback, ExecutorCallback)
        assert (callback.state, callback.output, callback.trigger_id) == ("pending", None, None)
        assert callback.fetch_method == "dag_attribute"
        assert callback.data["path"] == ENTRY
        assert callback.data["kind"] == "dag_failure"


def test_what_no_triggerer_takes_goes_to_a_worker(triggerer, monkeypatch):
    """It has ended since, is full, or was started for other queues."""
    from airflow.models.trigger import Trigger

    from callback_priority.adapter.routing import fallback

    parsed(Document(dag={"failure": (MAIL_ASYNC, MAIL_ASYNC)}))
    send(dag_request())
    taken, _left = rows(Trigger.__table__, Trigger.__table__.c.id)
    in_the_trigger(taken.id, triggerer_id=triggerer)
    assert reroute() == 0, "it has only just been sent"
    monkeypatch.setattr(fallback, "UNTAKEN_SECONDS", 0.0)
    assert reroute() == 1
    assert reroute() == 0
    assert [unit.target for unit in unit_rows()] == ["triggerer", "worker"]
    assert sorted(item.state for item in rows(item_table)) == ["triggered", "waiting"]
    of_triggerer, of_executor = (callback_rows()[at] for at in (0, 1))
    assert (of_triggerer.type, of_triggerer.trigger_id) == ("triggerer", taken.id)
    assert (of_executor.type, of_executor.state, of_executor.trigger_id) == ("executor", "pending", None)
    Trigger.assign_unassigned(triggerer, 100, 30)
    assert Trigger.ids_for_triggerer(triggerer) == [taken.id], "nobody runs it beside the worker"


def taken_and_left_behind(triggerer, *, state: str = "queued") -> datetime:
    """A callback whose triggerer has been dead for long; the time of its last heartbeat."""
    from airflow.models.trigger import Trigger

    send_async()
    [trigger] = rows(Trigger.__table__)
    in_the_trigger(trigger.id, triggerer_id=triggerer)
    [unit] = unit_rows()
    if state == "running":
        finish(unit.callback_id, "running", None)
    last = datetime.now(timezone.utc) - timedelta(minutes=5)
    in_the_job({"latest_heartbeat": last})
    return last


@pytest.mark.parametrize("state", ["queued", "running"])
def test_what_a_dead_triggerer_left_and_no_other_takes_goes_to_a_worker(triggerer, state):
    from airflow.models.trigger import Trigger

    taken_and_left_behind(triggerer, state=state)
    assert [row.state for row in callback_rows()] == [state]
    assert reroute() == 1
    assert reroute() == 0
    [item] = rows(item_table)
    assert (item.state, item.failures, item.retry_at) == ("waiting", 1, None)
    assert [unit.target for unit in unit_rows()] == ["worker"]
    [callback] = callback_rows()
    assert (callback.type, callback.state, callback.trigger_id) == ("executor", "pending", None)
    assert rows(Trigger.__table__) == [], "a triggerer that was thought dead drops what has no trigger"


@pytest.mark.parametrize(("seconds", "rerouted"), [(0, False), (31, False), (89, False), (91, True)], ids=str)
@ON_SQLITE
def test_a_triggerer_is_given_up_a_minute_after_airflows_threshold(triggerer, seconds, rerouted):
    taken_and_left_behind(triggerer)
    in_the_job({"latest_heartbeat": datetime.now(timezone.utc) - timedelta(seconds=seconds)})
    assert reroute() == rerouted


@ON_SQLITE
def test_what_another_triggerer_took_over_stays_there(triggerer):
    from airflow.models.trigger import Trigger

    taken_and_left_behind(triggerer)
    other = another_triggerer()
    Trigger.assign_unassigned(other, 100, 30)
    assert reroute() == 0
    assert Trigger.ids_for_triggerer(other) == [rows(Trigger.__table__)[0].id]


@ON_POSTGRESQL
def test_a_triggerer_and_a_worker_never_both_get_it(triggerer):
    """Whoever has locked the trigger first has it; the other passes it over without waiting."""
    from airflow.models.trigger import Trigger
    from airflow.utils.session import create_session

    from callback_priority.adapter.routing import fallback

    taken_and_left_behind(triggerer)
    other = another_triggerer()
    now = datetime.now(timezone.utc)
    with create_session(scoped=False) as taking:
        taken = Trigger.get_sorted_triggers(
            capacity=9, alive_triggerer_ids=[other], queues=None, session=taking
        )
        assert len(taken) == 1
        with create_session(scoped=False) as rerouting:
            assert fallback.reroute_triggered(rerouting, now, 100) == 0
    with create_session(scoped=False) as rerouting:
        assert fallback.reroute_triggered(rerouting, now, 100) == 1
        Trigger.assign_unassigned(other, 100, 30)
        assert Trigger.ids_for_triggerer(other) == []
    Trigger.assign_unassigned(other, 100, 30)
    assert Trigger.ids_for_triggerer(other) == []
    assert rows(Trigger.__table__) == []


def test_what_lost_its_last_attempt_with_its_triggerer_is_failed(triggerer, option, routing):
    from airflow.models.trigger import Trigger

    option("callback_max_attempts", "1")
    routing.settings.cache_clear()
    taken_and_left_behind(triggerer)
    assert reroute() == 0
    [callback] = callback_rows()
    assert (callback.type, callback.state, callback.trigger_id) == ("triggerer", "failed", None)
    assert callback.output.startswith("the triggerer that had it ended, 1 time(s)")
    assert [item.state for item in rows(item_table)] == ["done"]
    assert [unit.ended_at is not None for unit in unit_rows()] == [True]
    assert rows(Trigger.__table__) == []


@ON_SQLITE
def test_what_no_executor_runs_loses_no_attempt_while_it_waits_for_a_triggerer(triggerer, monkeypatch):
    from callback_priority.adapter.routing import executors

    taken_and_left_behind(triggerer)
    monkeypatch.setattr(executors, "why_not", lambda wanted, team: "no executor")
    for _ in range(5):
        assert reroute() == 0
    assert [(row.type, row.state) for row in callback_rows()] == [("triggerer", "queued")]
    assert [(item.state, item.failures) for item in rows(item_table)] == [("triggered", 0)]


BOOM = "An error occurred during execution of the callable: boom"


def test_what_failed_on_the_triggerer_is_tried_again_where_its_class_is(triggerer, option, routing):
    option("callback_retry_on_failure", "dag_callback")
    option("callback_max_attempts", "2")
    routing.settings.cache_clear()
    send_async()
    [unit] = unit_rows()
    finish(unit.callback_id, "failed", BOOM)
    assert reroute() == 1
    [item] = rows(item_table)
    assert (item.state, item.failures) == ("parked", 1)
    delay = (item.retry_at - datetime.now(timezone.utc)).total_seconds()
    assert 10 < delay <= 30
    [callback] = callback_rows()
    assert (callback.type, callback.state, callback.output) == ("executor", "pending", None)


@ON_SQLITE
@pytest.mark.parametrize(
    "options",
    [{"callback_retry_on_failure": "all", "callback_max_attempts": "1"}, {"callback_max_attempts": "9"}],
)
def test_what_failed_on_the_triggerer_stays_failed_otherwise(triggerer, option, routing, options):
    for name, value in options.items():
        option(name, value)
    routing.settings.cache_clear()
    send_async()
    [unit] = unit_rows()
    finish(unit.callback_id, "failed", BOOM)
    assert reroute() == 0
    assert [(row.type, row.state, row.output) for row in callback_rows()] == [("triggerer", "failed", BOOM)]
    assert [item.state for item in rows(item_table)] == ["done"]


def in_the_trigger(trigger_id: int, **values) -> None:
    from airflow.models.trigger import Trigger
    from airflow.utils.session import create_session

    with create_session() as session:
        table = Trigger.__table__
        session.execute(update(table).where(table.c.id == trigger_id).values(**values))


def send_async() -> None:
    parsed(Document(dag={"failure": (MAIL_ASYNC,)}))
    send(dag_request())


@ON_SQLITE
def test_what_no_executor_could_run_either_stays_failed(triggerer, monkeypatch):
    from callback_priority.adapter.routing import executors

    send_async()
    [unit] = unit_rows()
    finish(unit.callback_id, "failed", "Failed to import the callable on the triggerer: x")
    monkeypatch.setattr(executors, "why_not", lambda wanted, team: "no executor")
    assert reroute() == 0
    assert [(row.type, row.state) for row in callback_rows()] == [("triggerer", "failed")]
    assert [item.state for item in rows(item_table)] == ["done"]


@ON_SQLITE
def test_a_callback_that_is_gone_leaves_no_item_open(triggerer):
    from airflow.models.callback import Callback
    from airflow.utils.session import create_session

    send_async()
    with create_session() as session:
        session.execute(delete(Callback.__table__))
    assert reroute() == 0
    assert [item.state for item in rows(item_table)] == ["done"]


# What is not --------------------------------------------------------------------------------------------------

REQUESTS = {"dag": dag_request, "task": task_request, "e-mail": email_request}


@pytest.mark.parametrize("make", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mode", "off"),
        ("use_worker_callbacks", "none"),
        ("worker_callbacks_include", "other_*"),
        ("worker_callbacks_exclude", "wor*"),
        ("use_worker_callbacks", "wrong"),
    ],
)
@ON_SQLITE
def test_what_is_not_covered_is_sent_as_airflow_sends_it(bench, option, routing, make, name, value):
    option(name, value)
    routing.settings.cache_clear()
    routing.router.cache_clear()
    request = make()
    expected = stock_writes(request)
    send(request)
    assert stock_rows() == [expected]
    assert len(callback_rows()) == 1
    assert request_rows() == unit_rows() == rows(item_table) == []


@ON_SQLITE
@pytest.mark.parametrize(("moved", "stays"), [("task", "dag"), ("dag", "task")])
def test_a_class_that_is_not_moved_stays_and_is_told_of_once(bench, option, routing, caplog, moved, stays):
    option("use_worker_callbacks", moved)
    routing.settings.cache_clear()
    routing.router.cache_clear()
    for _ in range(2):
        send(REQUESTS[stays]())
    send(REQUESTS[moved]())
    assert len(stock_rows()) == 2
    assert [row.outcome for row in request_rows()] == ["routed"]
    [line] = lines(caplog, logging.INFO)
    assert f"A {stays}_failure callback of Dag work still goes through the Dag processor" in line


@ON_SQLITE
def test_a_state_that_nothing_is_called_for_is_left_to_airflow(bench):
    request = task_request("removed")
    expected = stock_writes(request)
    send(request)
    assert stock_rows() == [expected]
    assert request_rows() == []


def without_a_run():
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    with create_session() as session:
        session.execute(delete(TaskInstance.__table__))
        session.execute(delete(DagRun.__table__))


def without_references():
    from airflow.utils.session import create_session

    with create_session() as session:
        session.execute(delete(reference_table))


FALLBACKS = {
    "its Dag run does not exist": without_a_run,
    "its Dag has not been parsed with the library yet": without_references,
    "the references of its Dag are older than the Dag": lambda: parsed(Document()),
    "executor 'NoneSuch' is not configured": lambda: parsed(
        Document(dag={"failure": (TELL, Reference(name="x", executor="NoneSuch"))})
    ),
}


@pytest.mark.parametrize("reason", FALLBACKS)
def test_what_cannot_run_falls_back_with_the_reason(bench, caplog, reason):
    request = dag_request()
    expected = stock_writes(request)
    FALLBACKS[reason]()
    send(request)
    assert stock_rows() == [expected]
    assert len(callback_rows()) == 1
    [row] = request_rows()
    assert (row.outcome, row.reason, row.units, row.body) == ("fallback", reason, 0, None)
    assert unit_rows() == rows(item_table) == []
    [line] = lines(caplog, logging.WARNING)
    assert f"Dag work still goes through the Dag processor, which is deprecated: {reason}" in line


@ON_SQLITE
def test_a_pinned_version_that_was_not_parsed_is_not_taken_for_empty(bench):
    """Without this, the callback that only the older version has would be lost."""
    parsed(Document(), version="new")
    request = task_request("success", version="old")
    send(request)
    assert outcomes() == [("task_success", "fallback", "the references of its Dag are older than the Dag", 0)]
    send(task_request("failed", version="new"))
    assert outcomes()[1] == ("task_failure", "empty", None, 0)


@ON_SQLITE
def test_a_fallback_is_told_of_once_for_each_kind_and_reason(bench, caplog):
    without_references()
    for request in (task_request(), task_request("up_for_retry"), email_request(), dag_request()):
        send(request)
        clear()
        send(type(request).model_validate_json(request.to_json()))
    assert len(lines(caplog, logging.WARNING)) == 4


BASE = "from airflow.executors.base_executor import BaseExecutor"
EXECUTORS = {
    "no callbacks": (
        f"{BASE}\nclass Them(BaseExecutor): pass\n",
        "executor Them does not run callbacks",
    ),
    "its own way": (
        f"{BASE}\nclass Them(BaseExecutor):\n    def queue_workload(self, workload, session): pass\n",
        None,
    ),
    "not instantiated": (
        f"{BASE}\nclass Them(BaseExecutor):\n    supports_callbacks = True\n    __init__ = None\n",
        None,
    ),
    "broken": ("raise OSError('no library')\n", "executor Them cannot be loaded here: no library"),
}


@ON_SQLITE
@pytest.mark.parametrize("case", EXECUTORS)
def test_executors_are_judged_by_their_class(bench, monkeypatch, tmp_path, case):
    from airflow.executors import executor_loader

    source, reason = EXECUTORS[case]
    module = f"executor_of_test_{uuid.uuid4().hex}"
    (tmp_path / f"{module}.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", f"them:{module}.Them")
    saved = list(executor_loader._executor_names)
    executor_loader._executor_names.clear()
    try:
        send(dag_request())
    finally:
        executor_loader._executor_names[:] = saved
    [row] = request_rows()
    assert (row.outcome, row.reason) == (("routed", None) if reason is None else ("fallback", reason))


@ON_SQLITE
def test_executors_are_found_as_the_scheduler_finds_them(bench):
    from airflow.executors.executor_utils import ExecutorName

    from callback_priority.adapter.routing.executors import _find

    of_all = ExecutorName("a.b.First", None, None)
    second = ExecutorName("a.b.Second", "alias", None)
    of_team = ExecutorName("a.b.First", "theirs", "red")
    everything = [of_all, second, of_team]
    assert _find(everything, None, None) is of_all
    assert _find(everything, None, "red") is of_team
    assert _find(everything, None, "blue") is of_all
    assert _find(everything, "alias", "blue") is second
    assert _find(everything, "a.b.Second", None) is second
    assert _find(everything, "First", "red") is of_all
    assert _find(everything, "theirs", "red") is of_team
    assert _find(everything, "theirs", "blue") is None
    assert _find(everything, "theirs", None) is None


# Shadow -------------------------------------------------------------------------------------------------------


@ON_SQLITE
def test_shadow_writes_what_would_be_and_sends_as_airflow_sends(bench, option, routing):
    option("mode", "shadow")
    routing.settings.cache_clear()
    routing.router.cache_clear()
    sent = [task_request(), task_request(), email_request("retry"), dag_request()]
    expected = [stock_writes(each) for each in sent]
    for each in sent[:3]:
        send(each)
    without_references()
    send(sent[3])
    assert stock_rows() == expected
    assert len(callback_rows()) == 4
    assert unit_rows() == rows(item_table) == []
    assert outcomes() == [
        ("task_failure", "shadow", "routed", 0),
        ("email_retry", "shadow", "empty", 0),
        ("dag_failure", "shadow", "its Dag has not been parsed with the library yet", 0),
    ]
    assert {row.body for row in request_rows()} == {None}


# Once ---------------------------------------------------------------------------------------------------------


def test_the_doubled_request_of_a_heartbeat_timeout_runs_once(bench):
    """The scheduler sends one when it misses the heartbeat, and one when the executor agrees."""
    send(task_request("failed", msg="{'Message': 'heartbeat'}"))
    send(task_request("failed", msg="Executor reported that the task instance finished with state failed"))
    assert outcomes() == [("task_failure", "routed", None, 2)]
    assert len(callback_rows()) == len(unit_rows()) == 2
    assert "heartbeat" in json.loads(request_rows()[0].body)["msg"]


@ON_SQLITE
def test_a_duplicate_of_what_fell_back_is_not_sent_again(bench):
    without_references()
    send(dag_request())
    parsed()
    send(dag_request())
    assert len(callback_rows()) == 1
    assert [row.outcome for row in request_rows()] == ["fallback"]


def clear() -> None:
    """Clear the run, as a user does, and let it begin again."""
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    with create_session() as session:
        session.execute(update(DagRun.__table__).values(clear_number=DagRun.__table__.c.clear_number + 1))
        session.execute(update(TaskInstance.__table__).values(id=uuid6.uuid7(), try_number=2))


@pytest.mark.parametrize("make", REQUESTS.values(), ids=REQUESTS)
def test_what_happens_again_after_clearing_counts_again(bench, make):
    send(make())
    clear()
    send(make())
    assert [row.outcome for row in request_rows()] == ["routed", "routed"]


@ON_SQLITE
def test_a_run_that_was_set_to_running_again_ends_again(bench):
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from airflow.utils.state import DagRunState

    send(dag_request())
    with create_session() as session:
        run = session.scalar(select(DagRun))
        run.set_state(DagRunState.FAILED)
        session.flush()
        run.set_state(DagRunState.RUNNING)
    send(dag_request())
    assert [row.outcome for row in request_rows()] == ["routed", "routed"]


@ON_SQLITE
def test_different_things_are_not_taken_for_one(bench):
    for request in (
        task_request("failed"),
        task_request("up_for_retry"),
        task_request("success"),
        email_request("failure"),
        email_request("retry"),
        dag_request(),
        dag_request(failure=False),
    ):
        send(request)
    assert len({row.dedupe_key for row in request_rows()}) == 7


SENDER = textwrap.dedent(
    """
    import sys
    from airflow.callbacks.callback_requests import TaskCallbackRequest
    from airflow.callbacks.database_callback_sink import DatabaseCallbackSink
    from callback_priority.adapter.routing import sink
    assert sink.installed()
    requests = [TaskCallbackRequest.model_validate_json(line) for line in sys.argv[1:]]
    print("ready", flush=True)
    sys.stdin.readline()
    for request in requests:
        DatabaseCallbackSink().send(request)
    """
)


def test_two_processes_that_send_the_same_at_once_send_it_once(bench, airflow_home, airflow_database):
    texts = []
    for _ in range(20):
        clear()
        texts.append(task_request().to_json())
    options = {"callback_priority": {"mode": "active", "use_worker_callbacks": "all"}}
    environment = airflow_home.subprocess_environment(airflow_database, options=options)
    senders = [
        subprocess.Popen(
            [sys.executable, "-c", SENDER, *texts],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        for each in senders:
            assert each.stdout is not None
            while (line := each.stdout.readline()).strip() != "ready":
                assert line, each.communicate()
        for each in senders:
            assert each.stdin is not None
            each.stdin.write("\n")
            each.stdin.flush()
        for each in senders:
            _, errors = each.communicate(timeout=60)
            assert each.returncode == 0, errors
    finally:
        for each in senders:
            each.kill()
    assert [(row.outcome, row.units) for row in request_rows()] == [("routed", 2)] * 20
    assert len(unit_rows()) == 40
    assert {row.type for row in callback_rows()} == {"executor"}


# The session --------------------------------------------------------------------------------------------------


def test_a_session_that_is_given_is_left_open_and_uncommitted(bench):
    from airflow.utils.session import create_session

    request = task_request()
    with create_session(scoped=False) as session:
        send(request, session=session)
        assert session.in_transaction()
        assert session.scalar(select(func.count()).select_from(request_table)) == 1
        session.rollback()
    assert request_rows() == unit_rows() == rows(item_table) == callback_rows() == []
    with create_session(scoped=False) as session:
        send(request, session=session)
    assert outcomes() == [("task_failure", "routed", None, 2)]


def test_without_one_airflows_session_of_the_thread_is_used_and_committed(bench):
    """What the caller did in it before is committed too, as with Airflow's own method."""
    from airflow import settings
    from airflow.models.taskinstance import TaskInstance

    request = task_request()
    session = settings.Session()
    session.execute(update(TaskInstance.__table__).values(hostname="seen"))
    send(request)
    assert not session.in_transaction()
    session.rollback()
    assert session.scalar(select(TaskInstance.hostname)) == "seen"
    assert outcomes() == [("task_failure", "routed", None, 2)]
    session.close()


@pytest.mark.parametrize("fails", [False, True])
def test_what_the_caller_has_changed_is_written_when_the_caller_writes_it(bench, monkeypatch, fails):
    """A change written inside of our savepoint would be lost with it, and the session would not know."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    from callback_priority.adapter.routing import units as routed

    if fails:
        monkeypatch.setattr(routed, "write", broken)
    request = task_request()
    with create_session(scoped=False) as session:
        task_instance = session.scalar(select(TaskInstance))
        task_instance.hostname = "changed"
        send(request, session=session)
        assert task_instance in session.dirty
    with create_session() as session:
        assert session.scalar(select(TaskInstance.hostname)) == "changed"


# When something of ours fails ---------------------------------------------------------------------------------


def broken(*_args, **_kwargs):
    raise ValueError("broken by the test")


STEPS = {
    "what_of": ("callback_priority.adapter.routing.router", "what_of"),
    "the run": ("callback_priority.adapter.routing.router", "dag_run_of"),
    "claim": ("callback_priority.persistence.requests", "claim"),
    "references": ("callback_priority.persistence.references", "read"),
    "executors": ("callback_priority.adapter.routing.executors", "why_not"),
    "rows": ("callback_priority.adapter.routing.units", "write"),
    "items": ("callback_priority.adapter.routing.units", "enqueue"),
    "units": ("callback_priority.persistence.requests", "add_units"),
    "conclude": ("callback_priority.persistence.requests", "conclude"),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_failure_in_any_step_leaves_what_airflow_writes(bench, monkeypatch, caplog, step):
    from importlib import import_module

    request = dag_request()
    expected = stock_writes(request)
    monkeypatch.setattr(import_module(STEPS[step][0]), STEPS[step][1], broken)
    send(request)
    assert stock_rows() == [expected]
    assert len(callback_rows()) == 1
    assert request_rows() == unit_rows() == rows(item_table) == []
    [line] = lines(caplog, logging.ERROR)
    assert "goes to the Dag processor" in line


@ON_SQLITE
def test_a_metric_that_cannot_be_counted_sends_nothing_twice(bench, monkeypatch):
    from callback_priority.adapter import metrics

    monkeypatch.setattr(metrics.stats, "incr", broken)
    send(dag_request())
    assert stock_rows() == []
    assert outcomes() == [("dag_failure", "routed", None, 2)]


@ON_SQLITE
def test_a_cause_is_told_in_full_once(bench, monkeypatch, caplog):
    monkeypatch.setattr(requests, "claim", broken)
    for _ in range(3):
        send(dag_request())
    assert len(lines(caplog, logging.ERROR)) == 1
    assert len(lines(caplog, logging.WARNING)) == 2
    assert len(stock_rows()) == 3


def swept() -> None:
    """A scheduler's upkeep has been over the tables."""
    from airflow.utils.session import create_session

    from callback_priority.adapter import config

    with scheduler(LoopExecutor(1), settings=config.settings()) as run:
        allocator = run(0)._callback_priority
        with create_session() as session:
            allocator.upkeep.run(session, datetime.now(timezone.utc))


@pytest.mark.parametrize("batch_size", ["1", "8"])
def test_an_item_that_was_lost_is_made_again_as_routing_made_it(bench, option, batch_size):
    """Its pool, its priority and with whom it shares a run, which none of the options gives a deadline's."""
    from airflow.utils.session import create_session

    option("callback_pool", '{"task_callback": "inherit"}')
    option("dag_priorities", '{"work": 3}')
    option("callback_batch_size", batch_size)
    send(task_request())
    send(dag_request())
    same = [
        item_table.c[name]
        for name in (
            "callback_id",
            "kind",
            "service_class",
            "pool",
            "priority",
            "executor",
            "dag_run_id",
            "batch",
        )
    ]
    with create_session() as session:
        before = session.execute(select(*same).order_by(same[0])).all()
        session.execute(delete(item_table))
    assert {(row.pool, row.priority) for row in before} == {("etl", 7), ("default_pool", 3)}
    assert len({row.batch for row in before}) == (1 if batch_size == "1" else 2)
    swept()
    with create_session() as session:
        assert session.execute(select(*same).order_by(same[0])).all() == before


@ON_SQLITE
def test_an_item_is_made_again_without_a_batch_where_its_request_cannot_be_read(bench):
    from airflow.utils.session import create_session

    send(dag_request())
    with create_session() as session:
        session.execute(delete(item_table))
        session.execute(update(request_table).values(body='{"type": "of a newer Airflow"}'))
    swept()
    assert {(item.kind, item.batch) for item in rows(item_table)} == {("dag_failure", None)}


def test_what_is_known_of_a_dag_goes_with_the_dag(bench):
    parsed(dag_id="gone")
    swept()
    assert {row.dag_id for row in rows(reference_table)} == {"work"}


def test_a_failing_statement_is_told_without_what_was_to_be_written(bench, monkeypatch, caplog):
    def conclude(conn, _request_id, _outcome, **values):
        conn.execute(
            text("UPDATE callback_priority_request SET unheard_of = :body"), {"body": values["body"]}
        )

    monkeypatch.setattr(requests, "conclude", conclude)
    send(task_request(msg="its configuration is secret"))
    assert len(stock_rows()) == 1
    [record] = [each for each in caplog.records if each.levelno == logging.ERROR]
    told = caplog.handler.format(record)
    assert "unheard_of" in told
    assert "is secret" not in told


TABLES = [request_table, unit_table, item_table, reference_table]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_failing_statement_leaves_what_airflow_writes(bench, table):
    """On PostgreSQL a statement that fails would spoil the caller's transaction without a savepoint."""
    from airflow.utils.session import create_session

    request = task_request()
    expected = stock_writes(request)
    with create_session() as session:
        session.execute(text(f"ALTER TABLE {table.name} RENAME TO gone"))
    send(request)
    assert stock_rows() == [expected]
    with create_session() as session:
        session.execute(text(f"ALTER TABLE gone RENAME TO {table.name}"))
    assert request_rows() == unit_rows() == rows(item_table) == []


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_a_connection_that_is_lost_is_the_callers_as_in_airflow(bench, monkeypatch, migrated_database):
    """Airflow's callers know how to try a failure of the database again, and no other; then all is routed."""
    from sqlalchemy import create_engine
    from sqlalchemy.exc import OperationalError

    write = requests.add_units

    def lost(connection, units):
        other = create_engine(migrated_database)
        with other.connect() as elsewhere:
            pid = connection.scalar(text("SELECT pg_backend_pid()"))
            elsewhere.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        other.dispose()
        write(connection, units)

    monkeypatch.setattr(requests, "add_units", lost)
    with pytest.raises(OperationalError):
        send(dag_request())
    assert callback_rows() == request_rows() == []
    monkeypatch.setattr(requests, "add_units", write)
    send(dag_request())
    assert outcomes() == [("dag_failure", "routed", None, 2)]


@ON_SQLITE
def test_invalid_settings_are_told_once_and_nothing_is_routed(bench, option, routing, caplog):
    option("weights", '{"tusk": 1}')
    routing.settings.cache_clear()
    routing.router.cache_clear()
    for _ in range(2):
        send(dag_request())
    assert len(stock_rows()) == 2
    [line] = lines(caplog, logging.ERROR)
    assert "tusk" in line


# Installing ---------------------------------------------------------------------------------------------------


@ON_SQLITE
def test_the_sink_is_replaced_once_and_put_back(airflow_database, option):
    from airflow.callbacks.database_callback_sink import DatabaseCallbackSink

    from callback_priority.adapter.routing import sink

    sink.uninstall()
    stock = DatabaseCallbackSink.send
    option("mode", "active")
    assert not sink.install()
    option("use_worker_callbacks", "all")
    option("mode", "off")
    assert not sink.install()
    assert DatabaseCallbackSink.send is stock
    option("mode", "shadow")
    assert sink.install()
    ours = DatabaseCallbackSink.send
    assert ours is not stock
    assert sink.install()
    assert DatabaseCallbackSink.send is ours
    sink.uninstall()
    assert DatabaseCallbackSink.send is stock


@ON_SQLITE
def test_an_unknown_sink_is_left_alone_with_one_line(airflow_database, option, monkeypatch, caplog):
    from callback_priority import compat
    from callback_priority.adapter.routing import sink

    sink.uninstall()
    option("mode", "active")
    option("use_worker_callbacks", "all")
    monkeypatch.setattr(compat.targets, "airflow_version", lambda: "3.4.0b2")
    assert not sink.install()
    [line] = lines(caplog, logging.ERROR)
    assert "Airflow 3.4.0b2 is not supported" in line


# Back ---------------------------------------------------------------------------------------------------------


def withdraw(request_id, reason: str = "no worker took it") -> bool:
    from airflow.utils.session import create_session

    from callback_priority.adapter.routing import fallback

    with create_session() as session:
        return fallback.withdraw(session, request_id, reason)


def in_units(**values) -> None:
    from airflow.utils.session import create_session

    with create_session() as session:
        session.execute(update(unit_table).where(unit_table.c.position == 1).values(**values))


@pytest.mark.parametrize("make", REQUESTS.values(), ids=REQUESTS)
def test_a_request_goes_back_to_the_dag_processor_as_airflow_would_have_sent_it(bench, make):
    request = make()
    expected = stock_writes(request)
    send(request)
    [row] = request_rows()
    assert withdraw(row.id)
    assert stock_rows() == [expected]
    assert len(callback_rows()) == 1
    assert unit_rows() == rows(item_table) == []
    [row] = request_rows()
    assert (row.outcome, row.reason, row.units, row.body) == ("fallback", "no worker took it", 0, None)
    assert not withdraw(row.id)
    assert len(callback_rows()) == 1
    send(make())
    assert len(callback_rows()) == 1


def test_other_requests_stay_when_one_goes_back(bench):
    send(task_request())
    send(dag_request())
    [first, second] = request_rows()
    assert withdraw(first.id)
    assert {unit.request_id for unit in unit_rows()} == {second.id}
    assert len(rows(item_table)) == 2
    assert sorted(row.type for row in callback_rows()) == ["dag_processor", "executor", "executor"]


@pytest.mark.parametrize("begun", [True, False])
def test_a_request_of_which_something_was_called_does_not_go_back(bench, begun):
    send(task_request())
    in_units(
        claimed_at=datetime.now(timezone.utc), **({"started_at": datetime.now(timezone.utc)} if begun else {})
    )
    [row] = request_rows()
    assert withdraw(row.id) is not begun
    assert len(unit_rows()) == (2 if begun else 0)
    assert [row.outcome for row in request_rows()] == ["routed" if begun else "fallback"]


@pytest.mark.parametrize("given", [True, False])
def test_what_a_triggerer_has_been_given_may_have_been_called(triggerer, given):
    from airflow.models.trigger import Trigger
    from airflow.utils.session import create_session

    send_async()
    if given:
        with create_session() as session:
            session.execute(update(Trigger.__table__).values(triggerer_id=triggerer))
    [row] = request_rows()
    assert withdraw(row.id) is not given
    assert len(rows(Trigger.__table__)) == (1 if given else 0)
    assert len(stock_rows()) == (0 if given else 1)


@ON_SQLITE
def test_a_request_that_nobody_knows_does_not_go_back(bench):
    assert not withdraw(uuid.uuid4())


# Killed -------------------------------------------------------------------------------------------------------


def kill(ti_id, state: str = "failed", code: int = -9, *, in_callback: bool = False) -> int:
    from airflow.utils.session import create_session

    from callback_priority.adapter.routing.killed import route_killed

    with create_session() as session:
        return route_killed(session, ti_id, Killed(state=state, exit_code=code, in_callback=in_callback))


def the_try() -> uuid.UUID:
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    with create_session() as session:
        return session.scalar(select(TaskInstance.id))


def test_a_killed_task_has_its_callbacks_and_e_mail_routed_once(bench):
    assert kill(the_try()) == 3
    assert outcomes() == [("task_failure", "routed", None, 2), ("email_failure", "routed", None, 1)]
    body = json.loads(request_rows()[0].body)
    assert (
        body["msg"]
        == "The process of the task was killed before it could run its callbacks (signal SIGKILL)."
    )
    assert body["context_from_server"]["dag_run"]["run_id"] == "run"
    assert (body["filepath"], body["bundle_name"], body["task_callback_type"]) == (
        "work.py",
        "dags-folder",
        "failed",
    )
    # The scheduler's request for the same try, and the supervisor asking again.
    send(task_request("failed"))
    assert kill(the_try()) == 0
    assert len(request_rows()) == 2
    assert len(callback_rows()) == 3


def test_a_killed_try_is_found_when_the_next_one_has_its_place(bench):
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    killed = the_try()
    with create_session() as session:
        session.scalar(select(TaskInstance)).prepare_db_for_next_try(session)
    assert the_try() != killed
    assert kill(killed, "up_for_retry") == 1
    [row] = request_rows()
    assert (row.kind, row.try_number) == ("task_retry", 1)
    assert json.loads(row.body)["ti"]["id"] == str(killed)
    assert json.loads(row.body)["task_callback_type"] == "up_for_retry"
    assert [item.priority for item in rows(item_table)] == [7]


def test_what_cannot_be_routed_of_a_killed_task_goes_to_the_dag_processor(bench):
    without_references()
    assert kill(the_try()) == 0
    assert outcomes() == [("task_failure", "fallback", "its Dag has not been parsed with the library yet", 0)]
    [row] = stock_rows()
    assert row["data"]["req_class"] == "TaskCallbackRequest"


@ON_SQLITE
@pytest.mark.parametrize(
    ("name", "value"),
    [("mode", "shadow"), ("use_worker_callbacks", "dag"), ("worker_callbacks_exclude", "work")],
)
def test_a_killed_task_is_left_to_airflow_where_its_callbacks_are(bench, option, routing, name, value):
    option(name, value)
    routing.settings.cache_clear()
    routing.router.cache_clear()
    assert kill(the_try()) == 0
    assert request_rows() == callback_rows() == []


@ON_SQLITE
def test_without_the_sink_replaced_killed_tasks_are_left_to_airflow(bench, routing):
    routing.uninstall()
    assert kill(the_try()) == 0
    assert request_rows() == callback_rows() == []


@ON_SQLITE
def test_a_task_instance_that_nobody_knows_has_nothing_to_call(bench):
    assert kill(uuid.uuid4()) == 0


@ON_SQLITE
@pytest.mark.parametrize(
    ("code", "said"),
    [(-9, "signal SIGKILL"), (1, "exit code 1"), (-99, "signal 99"), (-15, "signal SIGTERM")],
)
def test_the_message_says_what_ended_the_process(bench, code, said):
    kill(the_try(), code=code, in_callback=True)
    message = json.loads(request_rows()[0].body)["msg"]
    assert message == f"The process of the task was killed while it ran its callbacks ({said})."


# Airflow's own producers --------------------------------------------------------------------------------------


def serialized() -> None:
    """The Dag as the scheduler reads it: callbacks are only booleans there."""
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.sdk import DAG
    from airflow.serialization.serialized_objects import LazyDeserializedDAG

    with DAG("work", schedule=None, on_failure_callback=print, on_success_callback=print) as dag:
        EmptyOperator(task_id="task_0", on_failure_callback=print, on_success_callback=print)
    SerializedDagModel.write_dag(LazyDeserializedDAG.from_dag(dag), bundle_name="dags-folder")


def in_the_task(**values) -> None:
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    with create_session() as session:
        session.execute(update(TaskInstance.__table__).values(**values))


@contextlib.contextmanager
def sending_scheduler():
    """Airflow's scheduler without our slot loop, with an executor that sends requests as Airflow's do."""
    import airflow.jobs.scheduler_job_runner  # noqa: F401
    from airflow.callbacks.database_callback_sink import DatabaseCallbackSink

    from callback_priority.adapter import hook

    hook.uninstall()
    executor = LoopExecutor(4)
    executor.callback_sink = DatabaseCallbackSink()
    with scheduler(executor) as run:
        yield run


@pytest.mark.parametrize(("state", "kind"), [("failed", "dag_failure"), ("success", "dag_success")])
def test_the_end_of_a_dag_run_is_routed_from_the_schedulers_loop(bench, state, kind):
    serialized()
    in_the_task(state=state)
    with sending_scheduler() as run:
        run(2)
    assert [(row.kind, row.outcome) for row in request_rows()] == [(kind, "routed")]
    assert stock_rows() == []


def test_a_lost_heartbeat_is_routed_once_though_the_scheduler_sends_twice(bench, monkeypatch):
    from airflow.callbacks.database_callback_sink import DatabaseCallbackSink

    serialized()
    sent = []
    ours = DatabaseCallbackSink.send
    monkeypatch.setattr(
        DatabaseCallbackSink,
        "send",
        lambda sink, callback, **kwargs: (sent.append(callback), ours(sink, callback, **kwargs))[1],
    )
    with sending_scheduler() as run:
        runner = run(1)
        in_the_task(
            state="running",
            queued_by_job_id=runner.job.id,
            last_heartbeat_at=datetime.now(timezone.utc) - timedelta(hours=1),
        )
        runner._find_and_purge_task_instances_without_heartbeats()
        run(1)
    of_task = [each for each in sent if type(each).__name__ == "TaskCallbackRequest"]
    assert len(of_task) == 2, "Airflow no longer sends it twice"
    assert [row.kind for row in request_rows()].count("task_failure") == 1
    assert stock_rows() == []
