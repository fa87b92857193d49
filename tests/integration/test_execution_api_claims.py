"""Attempts, heartbeats and retries, on Airflow's own execution API with real tokens."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from callback_priority.persistence import units
from callback_priority.persistence.tables import ItemState, unit_table
from callback_priority.protocol import BUSY, OVER, PROTOCOL
from tests.support.execution_server import ME, OTHER, Server, claims_of, fresh, ours_in, signed
from tests.support.scheduler import Bench

sqlite_only = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    with fresh():
        yield


@pytest.fixture(scope="module")
def with_our_calls() -> Any:
    return ours_in()


@pytest.fixture
def server(airflow_database: str, with_our_calls: Any) -> Iterator[Server]:
    from fastapi.testclient import TestClient

    with TestClient(with_our_calls, raise_server_exceptions=False) as client:
        yield Server(client=client, bench=Bench())


def reason(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["detail"]["reason"]


# -- attempts -------------------------------------------------------------------------------------------------


def test_an_attempt_is_claimed_runs_and_ends_as_a_run_does(server: Server) -> None:
    alert = server.deadline()
    token = server.attempted(alert)
    row = server.unit(alert)
    assert (row.request_id, row.target, row.name, row.reference) == (alert, "worker", "mail.late", "{}")
    assert (row.worker, row.log_path, row.position) == ("worker-1:7", "executor_callbacks/d/r/1", 0)
    assert row.heartbeat_at == row.claimed_at
    assert server.callback(alert) == ("queued", None)
    assert server.running(alert, alert, token).status_code == 204
    assert server.callback(alert) == ("running", None)
    assert (
        server.ended(alert, alert, token, "failed", output="ValueError: boom", log="it went").status_code
        == 204
    )
    assert server.callback(alert) == ("failed", "ValueError: boom")
    row = server.unit(alert)
    assert (row.log, row.ended_at is not None) == ("it went", True)
    assert reason(server.attempt(alert, OTHER)) == (409, OVER)


def test_the_token_of_an_attempt_reads_variables_and_tells_of_its_own_callback_only(server: Server) -> None:
    from airflow.models.variable import Variable
    from airflow.utils.session import create_session

    with create_session() as session:
        session.add(Variable(key="greeting", val="hello"))
    alert, other = server.deadline(), server.deadline()
    assert server.call("GET", "/execution/variables/greeting", signed(alert)).status_code == 403
    token, others = server.attempted(alert), server.attempted(other)
    assert server.call("GET", "/execution/variables/greeting", token).json()["value"] == "hello"
    claims = claims_of(token)
    assert (claims["sub"], claims["scope"], claims["exp"] - claims["iat"]) == (str(alert), "execution", 600)
    for bad in (others, signed(alert), signed(alert, "execution")):
        assert server.running(alert, alert, bad).status_code == 403
        assert server.beat(alert, bad).status_code == 403
    for bad in (signed(other), others):
        assert server.attempt(alert, token=bad).status_code == 403


@sqlite_only
@pytest.mark.parametrize(
    ("state", "item_state", "attempts"),
    [
        ("queued", None, 0),
        ("pending", None, 0),
        ("success", None, 0),
        ("queued", ItemState.WAITING, 0),
        ("running", ItemState.DONE, 0),
        ("pending", ItemState.WAITING, 0),
        ("queued", ItemState.WAITING, 1),
    ],
)
def test_what_a_scheduler_without_this_library_granted_is_not_ours(
    server: Server, state: str, item_state: ItemState | None, attempts: int
) -> None:
    alert = server.deadline(state, item_state, attempts=attempts)
    answer = server.attempt(alert)
    assert (answer.status_code, answer.json()) == (200, {"ours": False})
    assert "Refreshed-API-Token" not in answer.headers
    assert server.unit(alert) is None
    assert server.callback(alert) == (state, None)


@sqlite_only
def test_what_nobody_knows_is_not_ours(server: Server) -> None:
    assert server.attempt(uuid.uuid4()).json() == {"ours": False}


@sqlite_only
@pytest.mark.parametrize("had_a_unit", [False, True])
@pytest.mark.parametrize(
    ("state", "item_state"),
    [
        ("pending", ItemState.WAITING),
        ("pending", ItemState.PARKED),
        ("pending", ItemState.GRANTED),
        ("success", ItemState.GRANTED),
        ("failed", ItemState.DONE),
    ],
)
def test_a_delivery_that_comes_too_late_is_refused(
    server: Server, state: str, item_state: ItemState, had_a_unit: bool
) -> None:
    alert = server.deadline(state, item_state)
    if had_a_unit:
        server.set_state(alert, "queued")
        server.change(*_item(alert), state=ItemState.GRANTED.value)
        server.attempted(alert)
        server.take_back(alert, state=state)
        server.change(*_item(alert), state=item_state.value)
    assert reason(server.attempt(alert)) == (409, OVER)
    unit = server.unit(alert)
    assert (unit is not None) == had_a_unit
    assert unit is None or unit.claimed_at is None
    assert server.callback(alert) == (state, None)


def _item(callback_id: UUID) -> tuple[Any, Any, UUID]:
    from callback_priority.persistence.tables import item_table

    return item_table, item_table.c.callback_id, callback_id


def test_of_two_deliveries_one_runs_and_the_other_waits_until_it_is_over(server: Server) -> None:
    alert = server.deadline()
    token = server.attempted(alert)
    assert reason(server.attempt(alert, OTHER)) == (409, BUSY)
    server.running(alert, alert, token)
    assert reason(server.attempt(alert, OTHER)) == (409, BUSY)
    server.ended(alert, alert, token)
    assert reason(server.attempt(alert, OTHER)) == (409, OVER)


def test_a_client_that_got_no_answer_may_ask_again_until_it_has_begun(server: Server) -> None:
    alert = server.deadline()
    first, second = server.attempted(alert), server.attempted(alert)
    assert claims_of(first)["callback_priority"] == claims_of(second)["callback_priority"]
    assert server.running(alert, alert, first).status_code == 204
    assert reason(server.attempt(alert)) == (409, "refused")


def test_a_worker_that_has_to_wait_is_given_a_token_to_ask_again_with(server: Server) -> None:
    """It may have to wait for longer than the one that it came with is valid."""
    (leader,) = server.routed()
    alert = server.deadline()
    server.started(leader)
    server.attempted(alert)
    for answer, of, ask in (
        (server.start(leader, OTHER), leader, server.start),
        (server.attempt(alert, OTHER), alert, server.attempt),
    ):
        assert reason(answer) == (409, BUSY)
        again = answer.headers["Refreshed-API-Token"]
        claims = claims_of(again)
        assert (claims["sub"], claims["scope"], claims["exp"] - claims["iat"]) == (str(of), "workload", 600)
        assert reason(ask(of, OTHER, again)) == (409, BUSY)
        assert server.call("GET", "/execution/variables/greeting", again).status_code == 403


def test_a_worker_that_was_to_tell_and_is_silent_for_long_is_waited_for_no_more(server: Server) -> None:
    alert = server.deadline()
    server.attempted(alert)
    long_ago = datetime.now(timezone.utc) - timedelta(seconds=901)
    server.change(unit_table, unit_table.c.callback_id, alert, heartbeat_at=long_ago)
    assert reason(server.attempt(alert, OTHER)) == (409, "refused")


@sqlite_only
def test_another_protocol_is_refused(server: Server) -> None:
    alert = server.deadline()
    assert reason(server.attempt(alert, {**ME, "protocol": PROTOCOL + 1})) == (400, "unknown_protocol")
    assert server.unit(alert) is None


def test_of_many_deliveries_at_once_one_wins(server: Server) -> None:
    for _ in range(5):
        alert = server.deadline()
        token = signed(alert)
        together, answers = threading.Barrier(4), {}

        def attempt(
            pid: int,
            alert: UUID = alert,
            token: str = token,
            together: threading.Barrier = together,
            answers: dict[int, Any] = answers,
        ) -> None:
            together.wait(10)
            answers[pid] = server.attempt(alert, {**ME, "pid": pid}, token)

        threads = [threading.Thread(target=attempt, args=(pid,)) for pid in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(answer.status_code for answer in answers.values()) == [200, 409, 409, 409]
        winner = next(pid for pid, answer in answers.items() if answer.status_code == 200)
        assert server.unit(alert).worker == f"worker-1:{winner}"


def test_an_attempt_that_was_taken_back_is_refused_and_the_next_one_is_anothers(server: Server) -> None:
    for successor in (OTHER, ME):
        alert = server.deadline()
        old = server.attempted(alert)
        assert server.running(alert, alert, old).status_code == 204
        server.take_back(alert)
        assert reason(server.beat(alert, old)) == (409, "refused")
        assert server.running(alert, alert, old).status_code == 409
        server.grant(alert)
        new = server.attempted(alert, successor)
        assert server.running(alert, alert, new).status_code == 204
        assert reason(server.beat(alert, old)) == (409, "refused")
        assert server.ended(alert, alert, old, "failed").status_code == 409
        assert server.ended(alert, alert, new, "success").status_code == 204
        assert server.callback(alert) == ("success", None)


# -- heartbeats -----------------------------------------------------------------------------------------------


def test_a_heartbeat_is_noted_for_what_has_not_ended_and_for_the_leader(server: Server) -> None:
    """By the leader the scheduler sees that the run goes on, even when the leader itself has ended."""
    (leader,) = server.routed()
    companion, other = server.routed(2, leader=leader)
    _, token = server.started(leader, {**ME, "heartbeats": True})
    at_start = server.unit(leader).heartbeat_at
    assert at_start == server.unit(leader).claimed_at == server.unit(companion).heartbeat_at
    for unit in (leader, companion):
        server.running(leader, unit, token)
        server.ended(leader, unit, token)
    assert server.beat(leader, token, companion, other).status_code == 204
    assert server.unit(leader).heartbeat_at == server.unit(other).heartbeat_at > at_start
    assert server.unit(companion).heartbeat_at == at_start


@sqlite_only
def test_of_a_worker_that_does_not_tell_nothing_is_noted(server: Server) -> None:
    """One of an older release: its silence means nothing."""
    (leader,) = server.routed()
    server.started(leader)
    assert server.unit(leader).heartbeat_at is None


@sqlite_only
@pytest.mark.parametrize("took", ["back", "by another", "to its end"])
def test_what_is_no_longer_the_workers_is_refused(server: Server, took: str) -> None:
    (leader,) = server.routed()
    _, token = server.started(leader)
    assert server.running(leader, leader, token).status_code == 204
    if took == "to its end":
        server.change(unit_table, unit_table.c.callback_id, leader, ended_at=datetime.now(timezone.utc))
    else:
        server.take_back(leader)
    if took == "by another":
        server.grant(leader)
        server.started(leader, OTHER)
    before = server.unit(leader)
    assert reason(server.beat(leader, token)) == (409, "refused")
    assert server.unit(leader) == before


def test_what_is_gone_is_unknown(server: Server) -> None:
    from airflow.models.callback import Callback
    from airflow.utils.session import create_session

    (leader,) = server.routed()
    _, token = server.started(leader)
    with create_session() as session:
        session.execute(unit_table.delete())
        session.execute(Callback.__table__.delete())
    assert reason(server.beat(leader, token)) == (404, "not_found")


def test_a_heartbeat_speaks_for_its_own_run_only(server: Server) -> None:
    (leader,), (another,) = server.routed(), server.routed()
    _, token = server.started(leader)
    server.started(another, OTHER)
    before = server.unit(another)
    assert reason(server.beat(leader, token, another)) == (409, "refused")
    assert server.beat(another, token).status_code == 403
    assert server.beat(leader, None).status_code == 401
    assert server.beat(leader, signed(leader)).status_code == 403
    assert server.unit(another) == before


# -- failures that are tried again ----------------------------------------------------------------------------


@pytest.fixture
def trying_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CALLBACK_PRIORITY__CALLBACK_RETRY_ON_FAILURE", "task_callback, deadline")
    monkeypatch.setenv(
        "AIRFLOW__CALLBACK_PRIORITY__CALLBACK_MAX_ATTEMPTS", '{"task_callback": 3, "deadline": 2}'
    )


@pytest.mark.usefixtures("trying_again")
def test_a_failure_that_is_tried_again_waits_and_says_why(server: Server) -> None:
    """The claim stays, and with it the slot, until the scheduler has counted the failure."""
    (leader,) = server.routed()
    for failures in (0, 1):
        _, token = server.started(leader)
        server.running(leader, leader, token)
        for _ in range(2):  # a client that got no answer tells it again
            answer = server.ended(leader, leader, token, "failed", output="ValueError: boom", log="it went")
            assert answer.status_code == 204
        expected = f"attempt {failures + 1} of 3 failed: ValueError: boom"
        assert server.callback(leader) == ("pending", expected)
        row = server.unit(leader)
        assert (row.started_at, row.ended_at, row.log) == (None, None, "it went")
        assert row.claimed_at is not None
        assert server.ended(leader, leader, token, "success").status_code == 409
        assert server.running(leader, leader, token).status_code == 409
        assert reason(server.start(leader)) == (409, OVER)
        assert reason(server.start(leader, OTHER)) == (409, BUSY)
        server.take_back(leader)
        assert server.ended(leader, leader, token, "failed", output="late").status_code == 409
        assert server.callback(leader) == ("pending", expected)
        server.grant(leader, failures=failures + 1)
    _, token = server.started(leader)
    server.running(leader, leader, token)
    assert server.ended(leader, leader, token, "failed", output="ValueError: boom").status_code == 204
    assert server.callback(leader) == ("failed", "ValueError: boom")
    assert server.unit(leader).ended_at is not None


@pytest.mark.usefixtures("trying_again")
def test_a_success_after_a_failure_is_a_success(server: Server) -> None:
    alert = server.deadline()
    token = server.attempted(alert)
    server.running(alert, alert, token)
    server.ended(alert, alert, token, "failed", output="boom")
    assert server.callback(alert) == ("pending", "attempt 1 of 2 failed: boom")
    server.take_back(alert)
    server.grant(alert, failures=1)
    token = server.attempted(alert)
    server.running(alert, alert, token)
    assert server.ended(alert, alert, token, "success").status_code == 204
    assert server.callback(alert) == ("success", None)


@pytest.mark.usefixtures("trying_again")
def test_companions_go_on_when_one_is_to_be_tried_again(server: Server) -> None:
    (leader,) = server.routed()
    (companion,) = server.routed(leader=leader)
    _, token = server.started(leader)
    for unit, state in ((leader, "failed"), (companion, "success")):
        assert server.running(leader, unit, token).status_code == 204
        assert server.beat(leader, token, unit).status_code == 204
        assert server.ended(leader, unit, token, state).status_code == 204
    assert server.callback(leader)[0] == "pending"
    assert server.callback(companion)[0] == "success"


@sqlite_only
def test_without_the_option_a_failure_is_the_end(server: Server) -> None:
    (leader,) = server.routed()
    _, token = server.started(leader)
    server.running(leader, leader, token)
    assert server.ended(leader, leader, token, "failed", output="boom").status_code == 204
    assert server.callback(leader) == ("failed", "boom")


def test_what_its_worker_had_to_leave_is_tried_again_without_the_option(server: Server) -> None:
    (leader,) = server.routed()
    _, token = server.started(leader)
    server.running(leader, leader, token)
    path = f"/execution/callback-priority/callbacks/{leader}/units/{leader}/ended"
    body = {"state": "failed", "output": "the worker was told to stop", "log": None, "lost": True}
    assert server.call("POST", path, token, body).status_code == 204
    assert server.callback(leader) == ("pending", "attempt 1 of 3 was lost: the worker was told to stop")


@sqlite_only
@pytest.mark.usefixtures("trying_again")
def test_where_nobody_counts_failures_the_second_is_the_last(server: Server) -> None:
    """As with a scheduler that lost this library: Airflow's own grants what is pending, again and again."""
    (leader,) = server.routed()
    _, token = server.started(leader)
    server.running(leader, leader, token)
    server.ended(leader, leader, token, "failed", output="boom")
    server.set_state(leader, "queued")
    _, token = server.started(leader)
    server.running(leader, leader, token)
    assert server.ended(leader, leader, token, "failed", output="boom").status_code == 204
    assert server.callback(leader) == ("failed", "boom")


@sqlite_only
@pytest.mark.usefixtures("trying_again")
def test_a_callback_that_this_library_did_not_grant_is_not_tried_again(server: Server) -> None:
    (leader,) = server.routed(item_state=ItemState.WAITING)
    _, token = server.started(leader)
    server.running(leader, leader, token)
    assert server.ended(leader, leader, token, "failed", output="boom").status_code == 204
    assert server.callback(leader) == ("failed", "boom")


@sqlite_only
@pytest.mark.usefixtures("trying_again")
def test_a_long_reason_is_cut_and_keeps_its_beginning(server: Server) -> None:
    (leader,) = server.routed()
    _, token = server.started(leader)
    server.running(leader, leader, token)
    assert (
        server.ended(leader, leader, token, "failed", output="x" * 10**6, log="l\0" * 10**6).status_code
        == 204
    )
    output = server.callback(leader)[1]
    assert output.startswith("attempt 1 of 3 failed: xxx")
    assert len(output) == units.OUTPUT_LIMIT_BYTES
    assert len(server.unit(leader).log) == units.LOG_LIMIT_BYTES
