"""In the triggerer a callable is imported, given a context with the Dag processor's keys, and awaited."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import types
import uuid
from datetime import datetime, timezone

import pytest

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)

TASK_INSTANCE = {
    "id": str(uuid.UUID(int=7)),
    "task_id": "group.load",
    "dag_id": "sales",
    "run_id": "r1",
    "try_number": 2,
    "dag_version_id": str(uuid.UUID(int=8)),
    "map_index": 3,
}

DAG_RUN = {
    "dag_id": "sales",
    "run_id": "r1",
    "logical_date": NOW.isoformat(),
    "data_interval_start": NOW.isoformat(),
    "data_interval_end": NOW.isoformat(),
    "run_after": NOW.isoformat(),
    "start_date": NOW.isoformat(),
    "end_date": None,
    "partition_key": None,
    "run_type": "manual",
    "state": "failed",
    "conf": {"channel": "#sales"},
    "consumed_asset_events": [],
}

COMMON = {"filepath": "sales.py", "bundle_name": "b", "bundle_version": None, "msg": "it failed"}

DAG_REQUEST = COMMON | {
    "dag_id": "sales",
    "run_id": "r1",
    "is_failure_callback": True,
    "context_from_server": {"dag_run": DAG_RUN, "last_ti": TASK_INSTANCE},
}

TASK_REQUEST = COMMON | {
    "ti": TASK_INSTANCE,
    "context_from_server": {
        "dag_run": DAG_RUN,
        "max_tries": 4,
        "task_reschedule_count": 0,
        "variables": [],
        "connections": [],
    },
}

SEEN: dict[str, object] = {}


async def keep(context):
    SEEN.update(context)
    return "kept"


async def with_options(to, context):
    SEEN.update(context)
    return {"to": to}


async def without_context(to):
    return to


async def raises(context):
    raise ValueError("no such channel")


async def raises_import_error(context):
    raise ImportError("too late for a worker")


async def times_out_itself(context):
    raise TimeoutError("of its own")


async def exits(context):
    sys.exit(3)


async def cancels_itself(context):
    raise asyncio.CancelledError


async def for_ever(context):
    if "begun" in SEEN:
        SEEN["begun"].set()
    await asyncio.sleep(3600)


async def gives_an_object(context):
    return object()


def not_async(context):
    return "nothing to await"


class Holder:
    @staticmethod
    async def keep(context):
        return "held"


@pytest.fixture(autouse=True)
def here():
    SEEN.clear()
    sys.modules["triggered_under_test"] = sys.modules[__name__]
    yield
    del sys.modules["triggered_under_test"]


def run(name, request=None, *, kwargs=None, limit=None, kind=None):
    from callback_priority.worker.triggerer import run

    request = request or DAG_REQUEST
    reference = {"name": f"m.{name}", "async": True, "path": f"triggered_under_test.{name}"}
    if kwargs is not None:
        reference["kwargs"] = kwargs
    unit = {"name": f"m.{name}", "kind": kind or "dag_failure", "position": 0}
    if limit:
        unit["time_limit_seconds"] = limit
    cls = "TaskCallbackRequest" if "ti" in request else "DagCallbackRequest"
    context = {"reference": reference, "request_class": cls, "request": json.loads(json.dumps(request))}
    return asyncio.run(run(unit=unit, context=context))


def processor_context(request):
    """What Airflow's Dag processor gives to a callable of the same Dag."""
    import structlog
    from airflow.callbacks.callback_requests import DagCallbackRequest, TaskCallbackRequest
    from airflow.dag_processing import processor
    from airflow.sdk import DAG, BaseOperator

    found = []
    dag = DAG("sales", schedule=None, on_failure_callback=found.append, on_success_callback=found.append)
    BaseOperator(
        task_id="group.load", dag=dag, on_failure_callback=found.append, on_retry_callback=found.append
    )
    bag = types.SimpleNamespace(dags={"sales": dag})
    cls = TaskCallbackRequest if "ti" in request else DagCallbackRequest
    execute = processor._execute_task_callbacks if "ti" in request else processor._execute_dag_callbacks
    execute(bag, cls.model_validate(request), structlog.get_logger())
    return found[0]


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (DAG_REQUEST, "dag_failure"),
        (DAG_REQUEST | {"is_failure_callback": False}, "dag_success"),
        (DAG_REQUEST | {"context_from_server": None}, "dag_failure"),
        (DAG_REQUEST | {"context_from_server": {"dag_run": DAG_RUN, "last_ti": None}}, "dag_failure"),
        (TASK_REQUEST, "task_failure"),
        (TASK_REQUEST | {"task_callback_type": "up_for_retry"}, "task_retry"),
        (TASK_REQUEST | {"context_from_server": None}, "task_failure"),
    ],
)
def test_the_context_has_the_keys_of_the_dag_processor(request_, kind):
    assert run("keep", request_, kind=kind) == '"kept"'
    expected = processor_context(request_)
    assert sorted(SEEN) == sorted(expected)
    for key in ("run_id", "ts", "ds", "data_interval_start", "task_instance_key_str", "reason", "dag_run"):
        assert SEEN.get(key) == expected.get(key)
    assert SEEN["dag"].dag_id == "sales"
    if "ti" in SEEN:
        assert SEEN["task"].task_id == SEEN["ti"].task_id == "group.load"
        assert SEEN["ti"].map_index == 3
        assert SEEN["ti"].try_number == 2


def test_the_context_of_a_task_that_succeeded_is_there_although_airflow_drops_it():
    """Sent by the triggerer itself; the Dag processor warns of it and calls nothing."""
    assert run("keep", TASK_REQUEST | {"task_callback_type": "success"}, kind="task_success") == '"kept"'
    assert SEEN["ti"].task_id == "group.load"


def test_options_are_passed_and_the_context_if_it_is_taken():
    assert run("with_options", kwargs={"to": [1]}) == '{"to": [1]}'
    assert SEEN["run_id"] == "r1"
    assert run("without_context", kwargs={"to": "a"}) == '"a"'
    assert run("Holder.keep") == '"held"'


def test_a_result_that_is_not_json_is_a_note():
    assert run("gives_an_object") == "returned a object, which is not JSON"


@pytest.fixture
def failed():
    from callback_priority.worker.triggerer import CallbackFailedError

    return CallbackFailedError


def test_what_the_callable_raises_is_told_without_its_chain(failed):
    """Airflow keeps the formatted exception as the output: ours says all, and masked."""
    with pytest.raises(
        failed, match=r"\AValueError: no such channel\n.*test_triggerer.py:\d+ in raises"
    ) as info:
        run("raises")
    assert info.value.__cause__ is None
    assert info.value.__suppress_context__


def test_an_import_error_of_the_callable_itself_is_not_taken_for_one_of_its_module(failed):
    """Or else a worker would call it a second time."""
    with pytest.raises(failed, match="too late"):
        run("raises_import_error")


def test_what_cannot_be_awaited_is_an_error(failed):
    with pytest.raises(failed, match=r"m\.not_async gave str, which cannot be awaited"):
        run("not_async")


@pytest.mark.parametrize("name", ["no_such_name", "json.no_such_module.name"])
def test_what_cannot_be_imported_is_an_import_error(name):
    with pytest.raises(ImportError, match="ImportError"):
        run(name)


def test_a_module_that_fails_to_import_is_an_import_error(tmp_path, monkeypatch):
    """Whatever it raises: nothing has been called, so that a worker may try."""
    from callback_priority.worker.triggerer import run

    (tmp_path / "breaks_here.py").write_text("raise RuntimeError('no database')\n")
    monkeypatch.syspath_prepend(tmp_path)
    context = {"reference": {"name": "x", "path": "breaks_here.tell"}, "request_class": "", "request": {}}
    with pytest.raises(ImportError, match="RuntimeError: no database"):
        asyncio.run(run(unit={}, context=context))


def test_what_takes_too_long_is_stopped(failed):
    with pytest.raises(failed, match=r"stopped after its time limit of 0.01 seconds"):
        run("for_ever", limit=0.01)


def test_a_timeout_of_its_own_is_an_error_like_any_other(failed):
    with pytest.raises(failed, match="TimeoutError: of its own"):
        run("times_out_itself", limit=60)


def test_being_cancelled_from_outside_is_not_a_failure():
    """The triggerer stops: another one runs the callback."""

    async def cancelled():
        from callback_priority.worker.triggerer import run

        reference = {"name": "m", "async": True, "path": "triggered_under_test.for_ever"}
        context = {"reference": reference, "request_class": "DagCallbackRequest", "request": DAG_REQUEST}
        unit = {"name": "m", "kind": "dag_failure", "position": 0, "time_limit_seconds": 60}
        SEEN["begun"] = asyncio.Event()
        task = asyncio.ensure_future(run(unit=unit, context=context))
        await asyncio.wait_for(SEEN["begun"].wait(), 30)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())


def test_an_exit_does_not_end_the_triggerer(failed):
    with pytest.raises(failed, match="SystemExit"):
        run("exits")


def test_an_exit_of_a_module_is_an_import_error(tmp_path, monkeypatch):
    (tmp_path / "exits_when_imported.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    from callback_priority.worker.triggerer import run

    reference = {"name": "m", "async": True, "path": "exits_when_imported.tell"}
    context = {"reference": reference, "request_class": "DagCallbackRequest", "request": DAG_REQUEST}
    with pytest.raises(ImportError, match="SystemExit"):
        asyncio.run(run(unit={"name": "m", "kind": "dag_failure", "position": 0}, context=context))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="a task does not know whether it is cancelled")
def test_a_cancellation_of_its_own_is_an_error_like_any_other(failed):
    """Airflow takes it for one that came from outside, and begins the callback anew."""
    with pytest.raises(failed, match="CancelledError"):
        run("cancels_itself")


def test_the_event_loop_goes_on_while_modules_are_imported(tmp_path, monkeypatch):
    """A slow import stands in a thread."""
    from callback_priority.worker.triggerer import run

    started, release = threading.Event(), threading.Event()
    gate = types.ModuleType("gate_under_test")
    gate.started, gate.release = started, release
    monkeypatch.setitem(sys.modules, "gate_under_test", gate)
    (tmp_path / "slow_to_import.py").write_text(
        "import gate_under_test as g\ng.started.set()\nassert g.release.wait(30)\n"
        "async def tell(context):\n    return 'told'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    async def both():
        reference = {"name": "m", "async": True, "path": "slow_to_import.tell"}
        context = {"reference": reference, "request_class": "DagCallbackRequest", "request": DAG_REQUEST}
        task = asyncio.ensure_future(
            run(unit={"name": "m", "kind": "dag_failure", "position": 0}, context=context)
        )
        while not started.is_set():  # noqa: ASYNC110 - an event of threads, set by an import
            await asyncio.sleep(0)
        release.set()  # reached only if the loop is not held up
        return await task

    assert asyncio.run(both()) == '"told"'


def test_airflows_trigger_awaits_it_and_logs_no_secret(caplog):
    """The whole way through `CallbackTrigger`, with the real encoding of its arguments."""
    from airflow.triggers.callback import CallbackTrigger

    def events(name, **reference):
        reference = {"name": name, "async": True, "path": f"triggered_under_test.{name}"} | reference
        context = {"reference": reference, "request_class": "DagCallbackRequest", "request": DAG_REQUEST}
        trigger = CallbackTrigger(
            callback_path="callback_priority.worker.triggerer.run",
            callback_kwargs={
                "unit": {"name": name, "kind": "dag_failure", "position": 0},
                "context": context,
            },
        )

        async def collect():
            return [event.payload async for event in trigger.run()]

        return asyncio.run(collect())

    assert events("keep") == [{"state": "running"}, {"state": "success", "body": '"kept"'}]
    failed = events("raises")[-1]
    assert failed["state"] == "failed"
    assert failed["body"].startswith("An error occurred during execution of the callable: ")
    assert "ValueError: no such channel" in failed["body"]
    missing = events("no_such_name")[-1]
    assert missing["body"].startswith("Failed to import the callable on the triggerer: ")
    assert "#sales" not in caplog.text


def test_what_the_triggerer_does_not_answer_is_refused_and_others_are_let_be():
    from airflow.jobs.triggerer_job_runner import TriggerCommsDecoder
    from airflow.sdk.execution_time.comms import GetPrevSuccessfulDagRun, GetVariable

    from callback_priority.worker import triggerer

    original = TriggerCommsDecoder.asend
    try:
        triggerer._have_the_unanswered_refused()
        triggerer._have_the_unanswered_refused()  # once is enough
        ours, theirs = socket.socketpair()
        with ours, theirs:
            decoder = TriggerCommsDecoder(async_writer=None, async_reader=None, socket=ours)

        async def ask(message, asking):
            token = triggerer._asking.set(asking)
            try:
                await decoder.asend(message)
            finally:
                triggerer._asking.reset(token)

        unknown = GetPrevSuccessfulDagRun(ti_id=uuid.UUID(int=7))
        with pytest.raises(triggerer.NotAnsweredError, match="GetPrevSuccessfulDagRun is not answered"):
            asyncio.run(ask(unknown, asking=True))
        for message, asking in ((unknown, False), (GetVariable(key="x"), True)):
            with pytest.raises(RuntimeError, match="start_reader"):
                asyncio.run(ask(message, asking=asking))
    finally:
        TriggerCommsDecoder.asend = original
