"""Which ends of a task's process are told, and that telling never gets in the way."""

from __future__ import annotations

import json
import uuid
from types import SimpleNamespace

import httpx
import pytest

from callback_priority.worker import hook
from callback_priority.worker.killed import report_of, tell

TASK = uuid.uuid4()


def process(exit_code=-9, heard=None, *, should_retry=False, pending=None, client=None):
    """An ended task process, as Airflow's supervisor object of it."""
    from airflow.sdk.execution_time.supervisor import ActivitySubprocess

    ended = SimpleNamespace(
        _exit_code=exit_code,
        _terminal_state=heard,
        _pending_terminal_state_msg=pending,
        _should_retry=should_retry,
        _rendered_map_index=None,
        id=TASK,
        client=client,
    )
    ended.final_state = ActivitySubprocess.final_state.fget(ended)
    return ended


def retry():
    from datetime import datetime, timezone

    from airflow.sdk.execution_time.comms import RetryTask

    return RetryTask(end_date=datetime.now(tz=timezone.utc))


@pytest.mark.parametrize(
    ("ended", "told"),
    [
        (process, ("failed", False)),
        (lambda: process(should_retry=True), None),
        (lambda: process(3), ("failed", False)),
        (lambda: process(-9, "failed"), ("failed", True)),
        (lambda: process(-15, "up_for_retry", should_retry=True), ("up_for_retry", True)),
        (lambda: process(-9, "failed", should_retry=True), ("failed", True)),
        (lambda: process(-9, pending=retry(), should_retry=True), ("up_for_retry", True)),
        (lambda: process(1, pending=retry(), should_retry=True), None),
        (lambda: process(0), None),
        (lambda: process(0, "failed"), None),
        (lambda: process(-9, "success"), None),
        (lambda: process(-9, "deferred"), None),
        (lambda: process(-15, "SERVER_TERMINATED"), None),
    ],
)
def test_an_end_is_told_if_callbacks_for_it_may_not_have_run(ended, told):
    report = report_of(ended())
    assert (report and (report.state, report.in_callback)) == told


def client(answers, seen):
    from airflow.sdk.api.client import Client

    def handle(request):
        seen.append((request.url.path, json.loads(request.content)))
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return Client(base_url="http://api/execution/", token="t", transport=httpx.MockTransport(handle))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    from callback_priority.worker import calls

    monkeypatch.setattr(calls.time, "sleep", lambda _seconds: None)


def test_it_is_told_where_the_task_may_tell_it():
    seen = []
    tell(process(client=client([httpx.Response(200, json={"routed": 2})], seen)))
    body = {"state": "failed", "exit_code": -9, "in_callback": False}
    assert seen == [(f"/execution/callback-priority/task-instances/{TASK}/killed", body)]


@pytest.mark.parametrize(
    ("answers", "calls"),
    [
        ([httpx.Response(404, json={"detail": "Not Found"})], 1),
        ([httpx.Response(403, json={"detail": "no"})], 1),
        ([httpx.Response(500)] * 3, 3),
        ([httpx.ConnectError("down")] * 3, 3),
        ([httpx.ConnectError("down"), httpx.Response(200, json={"routed": 0})], 2),
        ([httpx.Response(200, text="what?")], 1),
    ],
)
def test_what_cannot_be_told_is_let_be(answers, calls):
    seen = []
    tell(process(client=client(list(answers), seen)))
    assert len(seen) == calls


# In Airflow ------------------------------------------------------------------------------------------------------


@pytest.fixture
def hooked(monkeypatch):
    import airflow.sdk.execution_time.callback_supervisor  # noqa: F401 - for the hook

    def forget():
        hook.uninstall()

    forget()
    monkeypatch.setenv("AIRFLOW__CALLBACK_PRIORITY__USE_WORKER_CALLBACKS", "task")
    monkeypatch.setenv("AIRFLOW__CALLBACK_PRIORITY__MODE", "active")
    hook.install()
    yield
    forget()


def updated(ended, done: list[str] | None = None) -> list[str]:
    """Run Airflow's method on an ended process; what was called."""
    from airflow.sdk.execution_time.supervisor import ActivitySubprocess

    done = [] if done is None else done
    ended.client = SimpleNamespace(
        task_instances=SimpleNamespace(finish=lambda **_: done.append("finish")),
    )
    ActivitySubprocess.update_task_state_if_needed(ended)
    return done


def test_it_is_told_before_airflow_tells_the_state(hooked, monkeypatch):
    order = []
    monkeypatch.setattr("callback_priority.worker.killed.tell", lambda _process: order.append("told"))
    assert updated(process(), order) == ["told", "finish"]


@pytest.mark.parametrize(
    ("option", "value"),
    [("USE_WORKER_CALLBACKS", "none"), ("USE_WORKER_CALLBACKS", ""), ("MODE", "shadow"), ("MODE", "off")],
)
def test_nothing_is_told_where_callbacks_stay(hooked, monkeypatch, option, value):
    monkeypatch.setenv(f"AIRFLOW__CALLBACK_PRIORITY__{option}", value)
    monkeypatch.setattr("callback_priority.worker.killed.tell", lambda _process: pytest.fail("told"))
    assert updated(process()) == ["finish"]


def test_nothing_is_told_of_a_task_that_ended_well(hooked, monkeypatch):
    monkeypatch.setattr("callback_priority.worker.killed.tell", lambda _process: pytest.fail("told"))
    assert updated(process(0, "skipped")) == ["finish"]


def test_whatever_goes_wrong_airflow_goes_on(hooked, monkeypatch):
    def fail(_process):
        raise RuntimeError

    monkeypatch.setattr("callback_priority.worker.killed.tell", fail)
    assert updated(process()) == ["finish"]


def test_an_airflow_that_is_not_known_is_left_alone(hooked, monkeypatch, caplog):
    from callback_priority import compat

    monkeypatch.setattr(compat, "differences", lambda _known: ["finalize is not the code"])
    monkeypatch.setattr("callback_priority.worker.killed.tell", lambda _process: pytest.fail("told"))
    for _ in range(2):
        assert updated(process()) == ["finish"]
    assert caplog.text.count("does not tell of killed tasks") == 1
