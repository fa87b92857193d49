"""The calls of workers, on Airflow's own execution API with real tokens."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from callback_priority.persistence import units
from callback_priority.persistence.requests import Target
from callback_priority.persistence.tables import ItemState, item_table, request_table, unit_table
from callback_priority.protocol import BUSY, OVER, PREFIX, PROTOCOL, Run
from tests.support.airflow_env import AirflowHome
from tests.support.execution_server import (
    ME,
    OTHER,
    ROOT,
    Server,
    application,
    claims_of,
    fresh,
    ours_in,
    signed,
)
from tests.support.scheduler import Bench

CALLS = 7
"""How many calls there are."""

postgresql_only = pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
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


# -- being there ----------------------------------------------------------------------------------------------


@sqlite_only
def test_without_the_install_there_is_no_such_call(airflow_database: str) -> None:
    from fastapi.testclient import TestClient

    from callback_priority.adapter import execution_api

    assert not execution_api.installed()
    with TestClient(application()) as client:
        answer = Server(client=client, bench=Bench()).start(uuid.uuid4())
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})


def test_installing_twice_adds_the_calls_once_and_uninstalling_takes_them_out() -> None:
    from airflow.api_fastapi.execution_api.routes import execution_api_router as router

    from callback_priority.adapter import execution_api

    def ours() -> list[str]:
        return [route.path for route in router.routes if route.path.startswith(PREFIX)]

    for _ in range(2):
        execution_api.install()
        assert execution_api.installed()
    assert len(ours()) == len(set(ours())) == CALLS
    before = len(router.routes)
    execution_api.uninstall()
    assert not execution_api.installed()
    assert (ours(), len(router.routes)) == ([], before - CALLS)
    execution_api.install()
    assert len(ours()) == CALLS


def python(code: str, airflow_home: AirflowHome) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env=airflow_home.subprocess_environment(),
        timeout=120,
    )
    return done.stdout


ROUTES = "airflow.api_fastapi.execution_api.routes"


@pytest.mark.parametrize(
    "code",
    [
        f"install(); install(); assert not installed(); import {ROUTES}",
        f"import {ROUTES}; install(); install()",
    ],
    ids=["before", "after"],
)
def test_the_routes_may_be_imported_before_or_after(code: str, airflow_home: AirflowHome) -> None:
    whole = f"""
from callback_priority.adapter.execution_api import install, installed
{code}
assert installed()
from {ROUTES} import execution_api_router
print(sum(route.path.startswith({PREFIX!r}) for route in execution_api_router.routes))
"""
    assert python(whole, airflow_home).split()[-1] == str(CALLS)


def test_waiting_for_the_routes_imports_nothing_heavy(airflow_home: AirflowHome) -> None:
    code = """
import sys
from callback_priority.adapter import execution_api
execution_api.install()
print(sorted({"airflow", "fastapi", "cadwyn", "sqlalchemy"} & set(sys.modules)))
"""
    assert python(code, airflow_home).splitlines()[-1] == "[]"


def test_a_failure_to_install_is_told_and_not_raised(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Raising there would fail Airflow's own import."""
    from callback_priority.adapter import execution_api

    module = SimpleNamespace()  # half imported: no router yet
    monkeypatch.setitem(sys.modules, execution_api.ROUTES_MODULE, module)
    with caplog.at_level(logging.ERROR):
        execution_api.install()
    assert not execution_api.installed()
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_another_airflow_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from callback_priority import compat
    from callback_priority.adapter import execution_api

    monkeypatch.setattr(compat.targets, "airflow_version", lambda: "3.4.0b2")
    execution_api.install()
    assert not execution_api.installed()


def test_every_version_of_the_api_has_the_calls(server: Server) -> None:
    from airflow.api_fastapi.execution_api.versions import bundle

    versions = [str(version.value) for version in bundle.versions]
    assert len(versions) > 5
    for version in versions:
        (leader,) = server.routed()
        headers = {"Airflow-API-Version": version}
        path = f"{ROOT}/callbacks/{leader}"
        answer = server.call("POST", f"{path}/start", signed(leader), ME, **headers)
        assert answer.status_code == 200, (version, answer.text)
        assert Run.model_validate_json(answer.content).units[0].callback_id == leader
        token = answer.headers["Refreshed-API-Token"]
        unit = f"{path}/units/{leader}"
        assert server.call("POST", f"{unit}/running", token, **headers).status_code == 204
        beat = {"units": [str(leader)]}
        assert server.call("POST", f"{path}/heartbeat", token, beat, **headers).status_code == 204
        alert = server.deadline()
        asked = {**ME, "path": "mail.late", "log_path": None}
        answer = server.call("POST", f"{ROOT}/callbacks/{alert}/attempt", signed(alert), asked, **headers)
        assert (answer.status_code, answer.json()) == (200, {"ours": True}), (version, answer.text)
        previous = server.call("GET", f"{unit}/previous-successful-dagrun", token, **headers)
        assert previous.status_code == 200, (version, previous.text)
        end = {"state": "success", "output": None, "log": None}
        assert server.call("POST", f"{unit}/ended", token, end, **headers).status_code == 204


@sqlite_only
def test_the_dag_processors_own_execution_api_goes_on_working(server: Server) -> None:
    """It has our calls too, and no token that any of them would accept."""
    import httpx
    from airflow.api_fastapi.execution_api.app import InProcessExecutionAPI

    from callback_priority.adapter import execution_api

    execution_api.install()
    inside = InProcessExecutionAPI()
    with httpx.Client(transport=inside.transport, base_url="http://in-process") as client:
        assert client.get("/variables/none").status_code == 404
        (leader,) = server.routed()
        answer = client.post(f"{PREFIX}/callbacks/{leader}/start", json=ME)
        assert answer.status_code == 403
    assert server.unit(leader).claimed_at is None


@sqlite_only
def test_the_schema_names_the_calls_once_each(server: Server) -> None:
    paths = server.call("GET", "/execution/openapi.json?version=2026-06-30", None).json()["paths"]
    ours = {path: list(calls) for path, calls in paths.items() if path.startswith(PREFIX)}
    assert len(ours) == CALLS
    names = [call["operationId"] for calls in paths.values() for call in calls.values()]
    assert len(names) == len(set(names))


# -- starting -------------------------------------------------------------------------------------------------


def test_a_run_is_the_callback_and_those_granted_with_it_in_their_order(server: Server) -> None:
    before = server.routed()
    leader, second = server.routed(2)
    server.change(item_table, item_table.c.callback_id, second, leader_id=leader)
    (third,) = server.routed(leader=leader, request={"type": "EmailRequest"})
    server.change(item_table, item_table.c.callback_id, before[0], leader_id=leader)
    run, _ = server.started(leader)
    assert [unit.callback_id for unit in run.units] == [before[0], leader, second, third]
    assert (run.protocol, run.bundle_name, run.bundle_version) == (PROTOCOL, "dags-folder", None)
    assert (run.filepath, run.load_limit_seconds, run.log_limit_bytes) == ("sales.py", 120, 1 << 20)
    unit = run.units[2]
    assert (unit.kind, unit.position, unit.name) == ("task_failure", 1, "sales.tell_1")
    assert unit.reference == {"name": "sales.tell", "async": False}
    assert unit.request["filepath"] == "sales.py"
    assert [unit.request_class for unit in run.units] == ["TaskCallbackRequest"] * 3 + ["EmailRequest"]
    assert unit.time_limit_seconds == 300
    assert unit.log_path == f"executor_callbacks/sales/run/{second}"
    for each in run.units:
        row = server.unit(each.callback_id)
        assert (row.worker, row.log_path, row.started_at) == ("worker-1:7", each.log_path, None)
        assert row.claimed_at is not None
        assert server.callback(each.callback_id) == ("queued", None)


def test_companions_that_cannot_run_are_left_out(server: Server) -> None:
    (leader,) = server.routed()
    good = server.routed(leader=leader)
    bad = [
        *server.routed(leader=leader, state="failed"),
        *server.routed(leader=leader, state="pending"),
        *server.routed(leader=leader, item_state=ItemState.WAITING),
        *server.routed(leader=leader, item_state=ItemState.DONE),
        *server.routed(leader=leader, target=Target.TRIGGERER),
        *server.routed(leader=leader, request={"filepath": "another.py"}),
        *server.routed(leader=uuid.uuid4()),
    ]
    (unreadable,) = server.routed(leader=leader)
    request_id = server.unit(unreadable).request_id
    server.change(request_table, request_table.c.id, request_id, body="no JSON")
    (elsewhere,) = server.routed(leader=leader)
    server.started(elsewhere, OTHER)
    run, _ = server.started(leader)
    assert [unit.callback_id for unit in run.units] == [leader, *good]
    assert all(server.unit(each).claimed_at is None for each in [*bad, unreadable])
    assert server.unit(elsewhere).worker == "worker-2:7"


@pytest.mark.parametrize(("state", "attempts"), [("queued", 1), ("pending", 0), ("running", 1)])
def test_a_callback_that_may_run_starts(server: Server, state: str, attempts: int) -> None:
    """Airflow hands it over before it commits that it is queued, and sets it to running when it hears of it."""
    (leader,) = server.routed(state=state, attempts=attempts)
    assert server.start(leader).status_code == 200


def test_a_callback_that_waits_for_another_attempt_does_not_start(server: Server) -> None:
    """A delivery of the attempt before, that comes late: it would run without a slot."""
    (leader,) = server.routed(state="pending", item_state=ItemState.WAITING)
    answer = server.start(leader)
    assert (answer.status_code, answer.json()["detail"]["reason"]) == (409, OVER)
    assert server.unit(leader).claimed_at is None


@pytest.mark.parametrize("state", ["success", "failed", "scheduled"])
def test_a_callback_that_has_ended_or_is_not_yet_due_does_not_start(server: Server, state: str) -> None:
    (leader,) = server.routed(state=state)
    answer = server.start(leader)
    assert (answer.status_code, answer.json()["detail"]["reason"]) == (409, OVER)
    assert state in answer.json()["detail"]["message"]
    assert server.unit(leader).claimed_at is None


def test_what_nobody_routed_is_unknown(server: Server) -> None:
    (deadline,) = server.bench.callbacks(1, state="queued")
    for leader in (uuid.uuid4(), deadline):
        answer = server.start(leader)
        assert (answer.status_code, answer.json()["detail"]["reason"]) == (404, "not_found")


def test_what_the_triggerer_runs_does_not_start_on_a_worker(server: Server) -> None:
    (leader,) = server.routed(target=Target.TRIGGERER)
    assert server.start(leader).status_code == 409


def test_a_request_that_cannot_be_read_does_not_start(server: Server) -> None:
    (leader,) = server.routed()
    for body in (None, "", "[]", "{}", "no JSON", '{"type": "TaskCallbackRequest"}'):
        server.change(request_table, request_table.c.id, server.unit(leader).request_id, body=body)
        assert server.start(leader).status_code == 409


@sqlite_only
def test_another_protocol_is_refused_with_what_to_do(server: Server) -> None:
    (leader,) = server.routed()
    answer = server.start(leader, {**ME, "protocol": PROTOCOL + 1, "library": "9.9"})
    assert answer.status_code == 400
    detail = answer.json()["detail"]
    assert detail["reason"] == "unknown_protocol"
    for part in ("9.9", f"protocol {PROTOCOL + 1}", "same release"):
        assert part in detail["message"]
    assert server.unit(leader).claimed_at is None
    assert server.start(leader, {"protocol": PROTOCOL}).status_code == 422


def test_asking_again_gives_the_same_run_and_asking_from_elsewhere_none(server: Server) -> None:
    (leader,) = server.routed()
    server.routed(2, leader=leader)
    first, token = server.started(leader)
    for other in (OTHER, {**ME, "pid": 8}):
        answer = server.start(leader, other)
        assert answer.status_code == 409
        assert "worker-1:7" in answer.json()["detail"]["message"]
        assert answer.json()["detail"]["reason"] == BUSY
    again, second_token = server.started(leader)
    assert again == first
    assert claims_of(second_token)["callback_priority"] == claims_of(token)["callback_priority"]
    assert server.running(leader, leader, token).status_code == 204
    assert server.running(leader, first.units[1].callback_id, second_token).status_code == 204


def test_a_run_that_has_begun_does_not_start_again(server: Server) -> None:
    """A broker that delivers twice to the same process must not have anything called twice."""
    (leader,) = server.routed()
    (companion,) = server.routed(leader=leader)
    _, token = server.started(leader)
    assert server.running(leader, companion, token).status_code == 204
    answer = server.start(leader)
    assert (answer.status_code, "has begun" in answer.json()["detail"]["message"]) == (409, True)


def test_another_worker_is_told_to_wait_until_the_run_is_over(server: Server) -> None:
    """Its end is taken for that of the run, so it must not come first."""
    (leader,) = server.routed()
    (companion,) = server.routed(leader=leader)
    _, token = server.started(leader)

    def answer() -> tuple[int, str]:
        refused = server.start(leader, OTHER)
        return refused.status_code, refused.json()["detail"]["reason"]

    assert answer() == (409, BUSY)
    for each in (leader, companion):
        assert server.running(leader, each, token).status_code == 204
        assert answer() == (409, BUSY), "the companion still waits, or runs"
        assert server.ended(leader, each, token).status_code == 204
    assert answer() == (409, OVER)


def test_a_worker_that_is_long_over_its_limits_is_waited_for_no_more(server: Server) -> None:
    (leader,) = server.routed()
    server.started(leader)
    long_ago = datetime.now(timezone.utc) - timedelta(seconds=120 + 300 + 61)
    server.change(unit_table, unit_table.c.callback_id, leader, claimed_at=long_ago)
    assert server.start(leader, OTHER).json()["detail"]["reason"] == "refused"


@postgresql_only
def test_of_two_that_start_at_once_one_wins(server: Server) -> None:
    for _ in range(10):
        (leader,) = server.routed()
        server.routed(3, leader=leader)
        token = signed(leader)
        together, answers = threading.Barrier(2), {}

        def start(
            pid: int,
            leader: UUID = leader,
            token: str = token,
            together: threading.Barrier = together,
            answers: dict[int, Any] = answers,
        ) -> None:
            together.wait(10)
            answers[pid] = server.start(leader, {**ME, "pid": pid}, token)

        threads = [threading.Thread(target=start, args=(pid,)) for pid in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(answer.status_code for answer in answers.values()) == [200, 409]
        winner = next(pid for pid, answer in answers.items() if answer.status_code == 200)
        run = Run.model_validate_json(answers[winner].content)
        assert len(run.units) == 4
        assert {server.unit(each.callback_id).worker for each in run.units} == {f"worker-1:{winner}"}


@postgresql_only
def test_runs_that_want_the_same_companions_share_them_out_without_a_deadlock(server: Server) -> None:
    """Two leaders at once, each with the other as a companion: each unit comes to one of them."""
    for _ in range(10):
        first, second = server.routed(2)
        server.change(item_table, item_table.c.callback_id, first, leader_id=second)
        server.change(item_table, item_table.c.callback_id, second, leader_id=first)
        together, answers = threading.Barrier(2), {}

        def start(
            leader: UUID, together: threading.Barrier = together, answers: dict[UUID, Any] = answers
        ) -> None:
            together.wait(10)
            answers[leader] = server.start(leader, {**ME, "pid": leader.int % 1000})

        threads = [threading.Thread(target=start, args=(leader,)) for leader in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(answer.status_code for answer in answers.values()) == [200, 409]


# -- tokens ---------------------------------------------------------------------------------------------------


def test_the_workloads_token_is_swapped_for_one_that_reads_variables(server: Server) -> None:
    from airflow.models.variable import Variable
    from airflow.utils.session import create_session

    with create_session() as session:
        session.add(Variable(key="greeting", val="hello"))
    (leader,) = server.routed()
    server.routed(2, leader=leader)
    workload = signed(leader)
    assert server.call("GET", "/execution/variables/greeting", workload).status_code == 403
    _, token = server.started(leader)
    answer = server.call("GET", "/execution/variables/greeting", token)
    assert (answer.status_code, answer.json()["value"]) == (200, "hello")
    claims = claims_of(token)
    assert (claims["sub"], claims["scope"]) == (str(leader), "execution")
    assert claims["exp"] - claims["iat"] == 3 * (120 + 300) + 60


def test_only_the_callbacks_own_token_is_accepted(server: Server) -> None:
    (leader,) = server.routed()
    (another,) = server.routed()
    _, anothers = server.started(another, OTHER)
    for token in (signed(another), signed(uuid.uuid4()), anothers):
        assert server.start(leader, token=token).status_code == 403
    assert server.unit(leader).claimed_at is None
    _, token = server.started(leader)
    wrong = (
        signed(leader),  # of scope workload: good for the start only
        anothers,
        signed(leader, "execution"),  # not from a start
        signed(uuid.uuid4(), "execution"),
    )
    for bad in wrong:
        assert server.running(leader, leader, bad).status_code == 403
        assert server.ended(leader, leader, bad).status_code == 403
        path = f"{ROOT}/callbacks/{leader}/units/{leader}/previous-successful-dagrun"
        assert server.call("GET", path, bad).status_code == 403
    assert server.running(leader, leader, None).status_code == 401
    assert server.running(leader, leader, token + "x").status_code == 403
    assert server.unit(leader).started_at is None
    assert server.callback(leader) == ("queued", None)


@sqlite_only
def test_a_token_that_airflow_renewed_is_still_the_runs(server: Server) -> None:
    """Airflow renews what is used in the last fifth of its life, with all that it carries."""
    (leader,) = server.routed()
    _, token = server.started(leader)
    from airflow.api_fastapi.execution_api.app import _jwt_generator

    claims = {name: value for name, value in claims_of(token).items() if name not in ("exp", "iat", "nbf")}
    old = _jwt_generator().generate(extras=claims, valid_for=20)
    answer = server.running(leader, leader, old)
    assert answer.status_code == 204
    renewed = answer.headers["Refreshed-API-Token"]
    assert claims_of(renewed)["exp"] - time.time() == pytest.approx(600, abs=30)
    assert server.ended(leader, leader, renewed).status_code == 204


@sqlite_only
@pytest.mark.parametrize(
    "about",
    [
        {"ti": ...},
        {"type": "DagCallbackRequest", "context_from_server": {"last_ti": ...}},
        {"type": "DagCallbackRequest", "context_from_server": None},
    ],
    ids=["task", "dag", "nothing"],
)
def test_with_several_teams_the_token_names_the_task_instance(
    server: Server, monkeypatch: pytest.MonkeyPatch, about: dict[str, Any]
) -> None:
    """Airflow finds the team by it; whose run it is, the token says beside it."""
    ti_id = uuid.uuid4()
    request = json.loads(json.dumps(about, default=lambda _: {"id": str(ti_id)}))
    (leader,) = server.routed(request=request)
    monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
    _, token = server.started(leader)
    assert claims_of(token)["sub"] == str(ti_id if "null" not in json.dumps(request) else leader)
    assert server.running(leader, leader, token).status_code == 204
    assert server.ended(leader, leader, token).status_code == 204


# -- telling --------------------------------------------------------------------------------------------------


def test_a_unit_runs_and_ends_and_both_rows_say_so(server: Server) -> None:
    (leader,) = server.routed()
    (companion,) = server.routed(leader=leader)
    _, token = server.started(leader)
    for unit, state in ((leader, "success"), (companion, "failed")):
        assert server.running(leader, unit, token).status_code == 204
        assert server.callback(unit) == ("running", None)
        begun = server.unit(unit).started_at
        assert begun is not None
        assert server.running(leader, unit, token).status_code == 204
        assert server.unit(unit).started_at == begun
        answer = server.ended(leader, unit, token, state, output="it\0 is so", log="line\0\n")
        assert (answer.status_code, answer.content) == (204, b"")
        assert server.callback(unit) == (state, "it is so")
        row = server.unit(unit)
        assert (row.log, row.ended_at is not None) == ("line\n", True)
        # The item is the scheduler's: it learns of the end from its executor.
    states = {row.callback_id: row.state for row in server.bench.items()}
    assert states[leader] == states[companion] == ItemState.GRANTED.value


def test_telling_of_the_same_end_again_changes_nothing_and_another_end_is_refused(server: Server) -> None:
    (leader,) = server.routed()
    _, token = server.started(leader)
    server.running(leader, leader, token)
    assert server.ended(leader, leader, token, "success", output="first", log="log").status_code == 204
    before = server.unit(leader)
    assert server.ended(leader, leader, token, "success", output="second", log="other").status_code == 204
    assert server.ended(leader, leader, token, "failed", output="third").status_code == 409
    assert server.running(leader, leader, token).status_code == 409
    assert server.start(leader).status_code == 409
    assert server.callback(leader) == ("success", "first")
    assert server.unit(leader) == before


def test_long_texts_are_cut_and_not_refused(server: Server) -> None:
    (leader,) = server.routed()
    _, token = server.started(leader)
    answer = server.ended(leader, leader, token, "failed", output="o" * 10**6, log="l" * 10**6 + "end")
    assert answer.status_code == 204
    output = server.callback(leader)[1]
    assert output == "o" * units.OUTPUT_LIMIT_BYTES
    log = server.unit(leader).log
    assert (len(log), log[-4:]) == (units.LOG_LIMIT_BYTES, "lend")


@sqlite_only
def test_an_end_in_another_state_than_the_two_is_no_end(server: Server) -> None:
    (leader,) = server.routed()
    _, token = server.started(leader)
    assert server.ended(leader, leader, token, "running").status_code == 422


def test_a_unit_that_never_began_may_fail(server: Server) -> None:
    """Its Dag file could not be loaded, say."""
    (leader,) = server.routed()
    _, token = server.started(leader)
    assert server.ended(leader, leader, token, "failed", output="ImportError").status_code == 204
    assert server.callback(leader) == ("failed", "ImportError")
    assert server.unit(leader).started_at is None


def test_an_end_that_airflow_already_knows_of_is_completed(server: Server) -> None:
    """With the library switched off, Airflow's scheduler writes the state when its executor tells it."""
    (leader,) = server.routed()
    _, token = server.started(leader)
    server.running(leader, leader, token)
    server.set_state(leader, "failed")
    assert server.ended(leader, leader, token, "success").status_code == 409
    assert server.ended(leader, leader, token, "failed", output="why", log="log").status_code == 204
    assert server.callback(leader) == ("failed", "why")
    assert server.unit(leader).ended_at is not None


@pytest.mark.parametrize("state", ["failed", "success", "scheduled"])
def test_what_somebody_set_by_hand_does_not_run(server: Server, state: str) -> None:
    (leader,) = server.routed()
    _, token = server.started(leader)
    server.set_state(leader, state)
    assert server.running(leader, leader, token).status_code == 409
    assert server.unit(leader).started_at is None
    assert server.callback(leader)[0] == state


def test_what_was_withdrawn_does_not_run(server: Server) -> None:
    from airflow.models.callback import Callback
    from airflow.utils.session import create_session

    (leader,) = server.routed()
    _, token = server.started(leader)
    with create_session() as session:
        session.execute(unit_table.delete())
        session.execute(Callback.__table__.delete())
    assert server.running(leader, leader, token).status_code == 404
    assert server.ended(leader, leader, token).status_code == 404


def test_a_unit_of_another_run_is_refused(server: Server) -> None:
    (leader,), (another,) = server.routed(), server.routed()
    _, token = server.started(leader)
    server.started(another, ME)
    for answer in (server.running(leader, another, token), server.ended(leader, another, token)):
        assert answer.status_code == 409
        assert "in this run" in answer.json()["detail"]["message"]
    assert server.running(leader, uuid.uuid4(), token).status_code == 404
    (late,) = server.routed(leader=leader)
    assert server.running(leader, late, token).status_code == 409


def test_a_worker_that_was_given_up_is_not_believed_any_more(server: Server) -> None:
    """Its callbacks are taken over by another, even if that one is the same process of the same host."""
    from airflow.utils.session import create_session

    for successor in (OTHER, ME):
        (leader,) = server.routed()
        _, old = server.started(leader)
        with create_session() as session:
            assert units.release(session.connection(), [leader]) == 1
        assert server.running(leader, leader, old).status_code == 409
        _, new = server.started(leader, successor)
        assert server.running(leader, leader, old).status_code == 409
        assert server.running(leader, leader, new).status_code == 204
        assert server.ended(leader, leader, old, "failed").status_code == 409
        assert server.ended(leader, leader, new, "success").status_code == 204


def test_the_previous_successful_run_is_airflows_answer(server: Server) -> None:
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from airflow.utils.state import DagRunState
    from airflow.utils.types import DagRunTriggeredByType, DagRunType

    ti_id = server.task_instance()
    earlier = datetime(2025, 12, 31, tzinfo=timezone.utc)
    with create_session() as session:
        session.add(
            DagRun(
                dag_id="sales",
                run_id="earlier",
                logical_date=earlier,
                run_type=DagRunType.MANUAL,
                state=DagRunState.SUCCESS,
                run_after=earlier,
                start_date=earlier,
                triggered_by=DagRunTriggeredByType.TEST,
                data_interval=(earlier, earlier),
            )
        )
    ti = {"id": str(ti_id)}
    (of_task,) = server.routed(request={"ti": ti})
    (of_dag,) = server.routed(
        request={"type": "DagCallbackRequest", "context_from_server": {"dag_run": None, "last_ti": ti}}
    )
    (of_none,) = server.routed(request={"type": "DagCallbackRequest", "context_from_server": None})
    for unit, expected in ((of_task, earlier), (of_dag, earlier), (of_none, None)):
        _, token = server.started(unit)
        path = f"{ROOT}/callbacks/{unit}/units/{unit}/previous-successful-dagrun"
        found = server.call("GET", path, token).json()
        begun = found["start_date"] and datetime.fromisoformat(found["start_date"])
        assert begun == expected
        airflows = server.call(
            "GET", f"/execution/task-instances/{ti_id}/previous-successful-dagrun", signed(ti_id, "execution")
        ).json()
        if expected is not None:
            assert found == airflows


# -- a task's death -------------------------------------------------------------------------------------------


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[UUID, Any]]:
    """What would be routed, in place of the module that routes it."""
    seen: list[tuple[UUID, Any]] = []

    def route_killed(session: Any, ti_id: UUID, what: Any) -> int:
        assert session.connection() is not None
        seen.append((ti_id, what))
        return 3

    stand_in = SimpleNamespace(route_killed=route_killed)
    monkeypatch.setitem(sys.modules, "callback_priority.adapter.routing.killed", stand_in)
    if "callback_priority.adapter.routing" not in sys.modules:
        monkeypatch.setitem(sys.modules, "callback_priority.adapter.routing", SimpleNamespace())
    return seen


@sqlite_only
def test_a_tasks_death_is_routed_by_its_own_token_only(
    server: Server, killed: list[tuple[UUID, Any]]
) -> None:
    ti_id = uuid.uuid4()
    path = f"{ROOT}/task-instances/{ti_id}/killed"
    body = {"state": "failed", "exit_code": -9, "in_callback": True}
    (leader,) = server.routed()
    _, runs_token = server.started(leader)
    for token in (signed(ti_id), signed(uuid.uuid4(), "execution"), runs_token):
        assert server.call("POST", path, token, body).status_code == 403
    assert server.call("POST", path, None, body).status_code == 401
    assert killed == []
    answer = server.call("POST", path, signed(ti_id, "execution"), body)
    assert (answer.status_code, answer.json()) == (200, {"routed": 3})
    ((of, what),) = killed
    assert (of, what.state, what.exit_code, what.in_callback) == (ti_id, "failed", -9, True)


# -- settings -------------------------------------------------------------------------------------------------


@sqlite_only
def test_the_limits_are_the_settings(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CALLBACK_PRIORITY__CALLBACK_TIME_LIMIT_SECONDS", "7")
    monkeypatch.setenv("AIRFLOW__CALLBACK_PRIORITY__CALLBACK_LOAD_LIMIT_SECONDS", "5")
    (leader,) = server.routed()
    run, token = server.started(leader)
    assert (run.load_limit_seconds, run.units[0].time_limit_seconds) == (5, 7)
    assert claims_of(token)["exp"] - claims_of(token)["iat"] == 5 + 7 + 60


@sqlite_only
def test_settings_that_are_wrong_are_told_once_and_the_defaults_hold(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AIRFLOW__CALLBACK_PRIORITY__CALLBACK_TIME_LIMIT_SECONDS", "soon")
    with caplog.at_level(logging.ERROR, logger="callback_priority.adapter.config"):
        for _ in range(2):
            (leader,) = server.routed()
            run, _ = server.started(leader)
            assert run.units[0].time_limit_seconds == 300
    told = [record for record in caplog.records if record.name.startswith("callback_priority")]
    assert len(told) == 1
    assert "callback_time_limit_seconds" in told[0].getMessage()
