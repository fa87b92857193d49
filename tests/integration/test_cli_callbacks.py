"""``list``, ``show``, ``status`` and ``doctor`` tell of single callbacks and of what became of requests."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from uuid import UUID

import pytest
import sqlalchemy as sa

from callback_priority.cli.main import main
from tests.support.commands import (
    add_dag,
    add_items,
    add_reference,
    add_request,
    add_scheduler,
    add_unit,
    now,
)
from tests.support.scheduler import Bench

ONLY_SQLITE = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)


def ids(number):
    """A key that sorts by number."""
    return UUID(int=(0x0192F3 << 104) + number)


def some_of_each_state(database):
    """One callback in each state that `list` knows; by state."""
    ran = {"granted_at": now(), "attempts": 1, "scheduler_job_id": 1}
    done = ran | {"state": "done", "finished_at": now()}
    first = now() - timedelta(hours=1)
    each = {
        "waiting": {},
        "parked": {"state": "parked", "reason": "executor Celery is missing"},
        "granted": {"state": "granted", "airflow_state": "queued", **ran},
        "running": {"state": "granted", "airflow_state": "running", "started_at": now(), **ran},
        "triggered": {"state": "triggered", "airflow_type": "triggerer", "target": "triggerer"},
        "success": {"airflow_state": "success", "output": '"sent"', **done},
        "failed": {"airflow_state": "failed", "output": "KeyError: 'x'\n  alerts.py:3 in alert", **done},
        "done": {"airflow_state": "queued", **done},
    }
    return {
        state: add_unit(
            database, callback_id=ids(place), enqueued_at=first + timedelta(minutes=place), **columns
        )
        for place, (state, columns) in enumerate(each.items())
    }


def listed(call, *arguments):
    status, shown = call("list", *arguments)
    assert status == 0
    return shown["callbacks"]


def test_the_list_says_where_each_callback_stands_the_newest_first(database, call):
    by_state = some_of_each_state(database)
    shown = listed(call)
    assert {each["state"]: UUID(each["callback_id"]) for each in shown} == by_state
    assert [each["state"] for each in shown] == list(reversed(by_state))
    failed = next(each for each in shown if each["state"] == "failed")
    assert (failed["kind"], failed["service_class"], failed["name"]) == (
        "dag_failure",
        "dag_callback",
        "a.alert_0",
    )
    for state, callback_id in by_state.items():
        assert [each["callback_id"] for each in listed(call, "--state", state)] == [str(callback_id)]


def test_the_list_is_narrowed_by_class_kind_dag_and_number(database, call):
    Bench().callbacks(1)
    wanted = {
        ("dag_failure", "a"): add_unit(database, "dag_failure", dag_id="a"),
        ("dag_failure", "b"): add_unit(database, "dag_failure", dag_id="b"),
        ("dag_success", "a"): add_unit(database, "dag_success", dag_id="a"),
        ("email_retry", "a"): add_unit(database, "email_retry", dag_id="a"),
    }

    def found(*arguments):
        return {(each["kind"], each["dag_id"]) for each in listed(call, *arguments)}

    assert found() == set(wanted), "a callback that has no item is not in the list"
    assert found("--kind", "dag_failure") == {("dag_failure", "a"), ("dag_failure", "b")}
    assert found("--class", "task_callback") == {("email_retry", "a")}
    assert found("--class", "dag_callback", "--dag", "a") == {("dag_failure", "a"), ("dag_success", "a")}
    assert found("--dag", "a", "--dag", "b", "--kind", "dag_failure", "--kind", "dag_success") == set(
        list(wanted)[:3]
    )
    assert found("--dag", "c") == set()
    assert len(listed(call, "--limit", "3")) == 3


@ONLY_SQLITE
def test_the_list_as_text_is_one_line_each_that_no_output_can_break(database, capsys):
    add_unit(
        database,
        callback_id=ids(7),
        state="done",
        airflow_state="failed",
        output="Odd\x1b[2J: " + "x" * 300 + "\nsecond line",
        enqueued_at=now() - timedelta(seconds=90),
    )
    assert main(["list"]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["id", "kind", "name", "Dag", "state", "age", "output"]
    assert line.split()[:5] == [str(ids(7)), "dag_failure", "a.alert_0", "a", "failed"]
    assert "\x1b" not in line
    assert line.endswith("xxx...")
    assert main(["list", "--dag", "b"]) == 0
    assert capsys.readouterr().out == "no callbacks\n"


def test_show_tells_all_that_the_tables_know(database, configure, call):
    """By the start of its id, dashes or not."""
    configure(callback_queue='{"task_callback": "alerts"}')
    request_id = add_request(database, "task_failure", units=2, ago=60)
    moments = {
        name: now() - timedelta(seconds=place)
        for place, name in enumerate(
            reversed(["enqueued_at", "granted_at", "claimed_at", "started_at", "ended_at", "finished_at"])
        )
    }
    leader = add_unit(
        database,
        "task_failure",
        request_id=request_id,
        callback_id=ids(1),
        position=1,
        name="alerts.page",
        state="done",
        airflow_state="failed",
        output="KeyError: 'x'",
        reason="",
        executor="LocalExecutor",
        worker="myhost:123",
        log="one\ntwo",
        log_path="executor_callbacks/a/manual__1/1",
        attempts=2,
        scheduler_job_id=5,
        **moments,
    )
    mate = add_unit(
        database, "task_failure", request_id=request_id, callback_id=ids(2), state="granted",
        leader_id=leader, started_at=now(),
    )  # fmt: skip
    add_unit(database, callback_id=ids(3))
    for prefix in (str(leader), leader.hex, leader.hex[:32].upper()):
        status, shown = call("show", prefix)
        assert status == 0
        assert shown["callback_id"] == str(leader)
    expected = {
        "kind": "task_failure", "service_class": "task_callback", "dag_id": "a", "run_id": "manual__1",
        "task_id": "load", "map_index": 3, "try_number": 2, "name": "alerts.page", "position": 2, "callables": 2,
        "target": "worker", "executor": "LocalExecutor", "queue": "alerts", "pool": "default_pool",
        "worker": "myhost:123", "type": "executor", "state": "failed", "airflow_state": "failed",
        "item_state": "done", "attempts": 2, "scheduler_job_id": 5, "output": "KeyError: 'x'", "log": "one\ntwo",
        "request_id": str(request_id),
    }  # fmt: skip
    assert {name: shown[name] for name in expected} == expected
    assert {name: shown[name] for name in moments} == {
        name: moment.isoformat() for name, moment in moments.items()
    }
    assert shown["received_at"] < shown["enqueued_at"]
    assert shown["log_file"].endswith("/logs/executor_callbacks/a/manual__1/1")
    assert shown["companions"] == [
        {
            "callback_id": str(mate),
            "kind": "task_failure",
            "name": "a.alert_0",
            "state": "running",
            "leads": False,
        }
    ]
    _, follower = call("show", str(mate))
    assert [(each["callback_id"], each["leads"]) for each in follower["companions"]] == [(str(leader), True)]


def test_show_finds_a_callback_by_the_start_of_its_id_if_no_other_begins_so(database, capsys):
    first, second = UUID("0192f300-0000-7000-8000-000000000001"), UUID("0192f3ff-ffff-7fff-bfff-ffffffffffff")
    for callback_id in (first, second):
        add_unit(database, callback_id=callback_id)
    assert main(["show", "0192f30"]) == 0
    assert str(first) in capsys.readouterr().out
    assert main(["show", "0192F3F"]) == 0
    assert str(second) in capsys.readouterr().out
    assert main(["show", "0192f3"]) == 1
    error = capsys.readouterr().err
    assert f"more than one callback begins with '0192f3': {first}, {second}" in error
    assert main(["show", "0192f4"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no callback begins with '0192f4'" in captured.err
    assert "`callback-priority list`" in captured.err


def test_show_knows_what_is_not_ours(database, call, airflow_home):
    """Airflow's own rows: a deadline's before it is pending, and one that ran, with its log beside."""
    bench = Bench()
    bench.callbacks(1)
    (callback_id,) = database.scalars(sa.text("SELECT id FROM callback")).all()
    callback_id = UUID(str(callback_id))
    status, shown = call("show", str(callback_id))
    assert (status, shown["type"], shown["airflow_state"]) == (0, "executor", "pending")
    assert shown["name"]
    assert (shown["item_state"], shown["request_id"], shown["companions"]) == (None, None, [])


@ONLY_SQLITE
def test_the_end_of_a_log_is_read_from_its_file_where_the_table_has_none(database, airflow_home, capsys):
    path = airflow_home.path / "logs" / "executor_callbacks" / "a" / "x"
    path.parent.mkdir(parents=True)
    path.write_text("start " + "." * 20_000 + "\nthe last line\n", encoding="utf-8")
    add_unit(database, callback_id=ids(1), log_path="executor_callbacks/a/x", granted_at=now())
    assert main(["show", str(ids(1))]) == 0
    out = capsys.readouterr().out
    assert "end of the log:" in out
    assert "  the last line" in out
    assert "start" not in out


@ONLY_SQLITE
def test_show_as_text_has_a_line_for_each_fact_and_none_for_what_is_unknown(database, capsys):
    add_unit(
        database, "email_retry", callback_id=ids(1), state="triggered", target="triggerer",
        airflow_type="triggerer",
    )  # fmt: skip
    assert main(["show", str(ids(1))]) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines() if line[:1].strip())
    assert lines["kind"] == "email_retry, class task_callback"
    assert lines["task"] == "load, map index 3, try 2"
    assert lines["state"] == "triggered, item triggered, Airflow's row pending"
    assert lines["runs"].split(None, 1) == ["on", "the triggerer"]
    assert "reason" not in lines
    assert "log" not in lines


@ONLY_SQLITE
@pytest.mark.parametrize("command", [["list"], ["show", "0192"]])
def test_missing_tables_are_one_message_with_the_remedy(database, capsys, command):
    database.exec_driver_sql("DROP TABLE callback_priority_unit")
    assert main(command) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "tables are missing: callback_priority_unit\n  -> run `airflow db migrate`" in captured.err


def test_status_counts_callbacks_by_kind_and_requests_by_what_became_of_them(database, call):
    some_of_each_state(database)
    start = now() - timedelta(seconds=100)
    for seconds in (1, 2, 9):
        add_unit(
            database, "task_failure", state="done", airflow_state="success", enqueued_at=start,
            granted_at=start + timedelta(seconds=10 * seconds), finished_at=now(),
            started_at=start, ended_at=start + timedelta(seconds=seconds),
        )  # fmt: skip
    for reason in ("its Dag run is gone", "its Dag run is gone", "the worker has no library"):
        add_request(database, "dag_success", outcome="fallback", reason=reason, units=0, ago=30)
    add_request(database, "email_retry", outcome="shadow", reason="routed", units=1)
    _, shown = call("status")
    kinds = {each["kind"]: each for each in shown["kinds"]}
    assert kinds["dag_failure"]["states"] == dict.fromkeys(
        ["waiting", "parked", "granted", "running", "triggered", "success", "failed", "done"], 1
    )
    task = kinds["task_failure"]
    assert task["states"] == {"success": 3}
    assert (task["wait_p50_seconds"], task["wait_p95_seconds"]) == (20, 90)
    assert (task["run_p50_seconds"], task["run_p95_seconds"]) == (2, 9)
    requests = [
        (each["kind"], each["outcome"], each["reason"], each["requests"], each["units"])
        for each in shown["requests"]
    ]
    assert requests == [
        ("dag_success", "fallback", "its Dag run is gone", 2, 0),
        ("dag_success", "fallback", "the worker has no library", 1, 0),
        ("dag_failure", "routed", None, 8, 8),
        ("task_failure", "routed", None, 3, 3),
        ("email_retry", "shadow", "routed", 1, 1),
    ]
    _, narrow = call("status", "--class", "task_callback")
    assert [each["kind"] for each in narrow["kinds"]] == ["task_failure"]
    assert {each["kind"] for each in narrow["requests"]} == {"task_failure", "email_retry"}
    assert [each["service_class"] for each in narrow["classes"]] == ["task_callback"]


def test_status_by_kind_counts_those_kinds_beside_the_shares_of_their_class(database, call):
    add_scheduler(database, 1)
    add_scheduler(database, 2, heartbeat_ago=3600)
    held = {"state": "granted", "granted_at": now(), "scheduler_job_id": 1}
    for kind in ("dag_failure", "dag_success"):
        add_unit(database, kind, enqueued_at=now() - timedelta(seconds=60))
        leader = add_unit(database, kind, **held)
        add_unit(database, kind, leader_id=leader, **held)
        add_unit(database, kind, **(held | {"scheduler_job_id": 2}))
    add_unit(database, "dag_success", state="parked")
    add_items(database, 2)
    _, whole = call("status")
    _, part = call("status", "--kind", "dag_failure")
    (line,) = part["classes"]
    everything = next(each for each in whole["classes"] if each["service_class"] == "dag_callback")
    assert (everything["waiting"], everything["parked"], everything["held"]) == (2, 1, 2)
    assert (line["waiting"], line["parked"], line["held"]) == (1, 0, 1), (
        "who shares a run holds no slot of its own"
    )
    assert line["oldest_wait_seconds"] == pytest.approx(60, abs=20)
    assert line["entitled_share"] == everything["entitled_share"] == 0.5
    (pool,) = part["pools"]
    assert [(each["service_class"], each["held"]) for each in pool["classes"]] == [("dag_callback", 1)]
    _, nothing = call("status", "--kind", "dag_failure", "--class", "task")
    assert (nothing["classes"], nothing["pools"], nothing["kinds"]) == ([], [], [])


@ONLY_SQLITE
def test_status_as_text_has_a_table_of_kinds_and_one_of_requests(database, capsys):
    some_of_each_state(database)
    add_request(database, "dag_success", outcome="fallback", reason="its Dag run is gone", ago=30)
    assert main(["status"]) == 0
    blocks = capsys.readouterr().out.split("\n\n")
    kinds, requests = blocks[-2].splitlines(), blocks[-1].splitlines()
    assert kinds[0].split()[:4] == ["kind", "class", "waiting", "parked"]
    assert kinds[1].split()[:10] == ["dag_failure", "dag_callback", *("1" for _ in range(8))]
    assert requests[1].split()[:4] == ["dag_success", "fallback", "1", "1"]
    assert requests[1].endswith("30s ago  its Dag run is gone")
    add_unit(database, "task_retry")
    assert main(["status", "--class", "deadline"]) == 0
    assert "dag_failure" not in capsys.readouterr().out


# -- doctor

MOVES = {"mode": "active", "use_worker_callbacks": "all"}
OF_MOVED = {"moved callbacks", "references", "fallbacks", "dag processor", "triggerers"}


def send_to_dag_processor(database, *, ago=0.0):
    """A request as Airflow's sink leaves it."""
    from airflow.models.callback import Callback

    database.execute(
        sa.insert(Callback.__table__).values(
            id=UUID(int=9), type="dag_processor", fetch_method="dag_attribute", state=None, priority_weight=1,
            data={"req_class": "DagCallbackRequest", "req_data": "{}"}, created_at=now() - timedelta(seconds=ago),
        )
    )  # fmt: skip


def test_doctor_is_content_where_every_dag_is_known_and_nothing_fell_back(database, configure, doctor):
    configure(**MOVES)
    add_scheduler(database, 1)
    add_scheduler(database, 2, job_type="TriggererJob")
    add_dag(database, "a")
    add_dag(database, "b", bundle_version="v2")
    add_dag(database, "gone", is_stale=True)
    add_reference(database, "a")
    add_reference(database, "b", bundle_version="v2")
    add_request(database, ago=30)
    add_request(database, "dag_success", outcome="fallback", reason="its Dag run is gone", ago=30)
    add_request(
        database, "task_failure", outcome="fallback", reason="executor 'x' is missing", ago=2 * 86_400
    )
    _, checks = doctor()
    assert {name: each["status"] for name, each in checks.items() if name in OF_MOVED} == dict.fromkeys(
        OF_MOVED, "OK"
    )
    assert checks["moved callbacks"]["values"] == {
        "use_worker_callbacks": "all",
        "dags": 2,
        "covered_dags": 2,
    }
    assert checks["fallbacks"]["values"]["reasons"] == {"its Dag run is gone": 1}
    assert checks["triggerers"]["values"] == {"triggerers": 1, "callbacks": 0}


def test_doctor_names_what_keeps_callbacks_with_the_dag_processor(database, configure, doctor):
    configure(**MOVES)
    add_scheduler(database, 1)
    add_scheduler(database, 2, job_type="TriggererJob", heartbeat_ago=3600)
    add_dag(database, "a", bundle_version="v2")
    add_reference(database, "a", bundle_version="v1")
    add_unit(database, state="triggered", target="triggerer", airflow_type="triggerer")
    too_old = "no worker took it: the one that was to run it ended first, or is without callback-priority"
    for _ in range(2):
        add_request(database, "task_failure", outcome="fallback", reason=too_old, ago=30)
    add_request(database, "dag_failure", outcome="fallback", reason="executor 'x' is not configured", ago=60)
    send_to_dag_processor(database, ago=300)
    status, checks = doctor()
    assert status == 0
    assert {name for name in OF_MOVED if checks[name]["status"] == "WARN"} == OF_MOVED - {"moved callbacks"}
    assert checks["references"]["values"]["missing"] == ["a"]
    fallbacks = checks["fallbacks"]
    assert fallbacks["details"][0].startswith(f"2: {too_old} (last 3")
    assert "install this version" in fallbacks["remedy"]
    assert "`callback_executor`" in fallbacks["remedy"]
    assert fallbacks["values"]["kinds"] == {"dag_failure": 1, "task_failure": 2}
    assert "the oldest for 5m0" in checks["dag processor"]["found"]
    assert checks["triggerers"]["remedy"] == "start one: `airflow triggerer`"


@ONLY_SQLITE
@pytest.mark.parametrize(("known", "status"), [(True, "OK"), (False, "WARN")])
def test_doctor_warns_of_several_triggerers_that_may_run_the_same(
    database, configure, doctor, monkeypatch, known, status
):
    from callback_priority.adapter import triggers

    monkeypatch.setattr(triggers, "assigned_once", lambda: known)
    configure(**MOVES)
    for job_id in (1, 2):
        add_scheduler(database, job_id, job_type="TriggererJob")
    _, checks = doctor()
    assert checks["triggerers"]["status"] == status
    assert checks["triggerers"]["found"].startswith("2 are alive")


@ONLY_SQLITE
def test_doctor_warns_of_moved_callbacks_that_the_mode_keeps_where_they_are(database, configure, doctor):
    configure(use_worker_callbacks="dag")
    for mode in ("off", "shadow"):
        configure(mode=mode)
        _, checks = doctor()
        assert checks["moved callbacks"]["status"] == "WARN"
        assert mode in checks["moved callbacks"]["found"]
        assert "references" not in checks


@ONLY_SQLITE
def test_what_may_stay_with_the_dag_processor_is_no_reason_to_warn(database, configure, doctor):
    configure(**MOVES, worker_callbacks_exclude="legacy_*")
    send_to_dag_processor(database)
    _, checks = doctor()
    assert checks["dag processor"]["status"] == "OK"
    assert checks["dag processor"]["values"] == {"requests": 1}


@ONLY_SQLITE
def test_an_executor_that_is_not_configured_is_a_problem_of_the_configuration(database, configure, doctor):
    configure(**MOVES, callback_executor='{"dag_callback": "localexecutor"}')
    status, checks = doctor()
    assert status == 1
    (problem,) = checks["configuration"]["values"]["problems"]
    assert problem["key"] == "callback_executor.dag_callback"
    assert "did you mean 'LocalExecutor'" in problem["remedy"]
    configure(callback_executor='{"dag_callback": "airflow.executors.local_executor.LocalExecutor"}')
    assert doctor()[1]["configuration"]["status"] == "OK"


def test_the_reasons_that_routing_gives_are_known_to_doctor():
    """A reason in other words would only get the advice to look into logs."""
    from callback_priority.adapter import settlement
    from callback_priority.adapter.routing import executors, router
    from callback_priority.cli.checks_callbacks import remedy_of

    assert remedy_of(router.NO_RUN) == ""
    assert "parsed again" in remedy_of(router.NOT_PARSED)
    assert "parsed again" in remedy_of(router.OUT_OF_DATE)
    assert "every worker" in remedy_of(settlement.NOT_TAKEN)
    assert "callback_executor" in remedy_of(executors.why_not("no_such_executor", None))


@pytest.fixture
def _two_executors(monkeypatch):
    """Celery first, LocalExecutor second; Airflow remembers what it has read."""
    from airflow.executors import executor_loader

    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor,here:LocalExecutor")
    remembered = [each for name, each in vars(executor_loader).items() if name.startswith("_") and name.endswith(
        ("_per_team", "_to_executors", "_executor_names")
    )]  # fmt: skip
    for each in remembered:
        each.clear()
    yield
    for each in remembered:
        each.clear()


@ONLY_SQLITE
@pytest.mark.usefixtures("_two_executors")
def test_celery_is_asked_only_for_classes_that_run_there(database, configure, doctor, monkeypatch):
    from callback_priority.adapter.config import configured_executors
    from callback_priority.cli import celery_workers

    here = celery_workers.Worker(name="celery@here", processes=2, queues=frozenset({"default"}))
    monkeypatch.setattr(celery_workers, "ask", lambda: celery_workers.Answer(workers=(here,)))
    assert configured_executors() == {
        "CeleryExecutor",
        "airflow.providers.celery.executors.celery_executor.CeleryExecutor",
        "here",
        "LocalExecutor",
        "airflow.executors.local_executor.LocalExecutor",
    }
    configure(
        mode="active",
        slot_quotas='{"deadline": {"reserve": 3}, "dag_callback": {"reserve": 3}}',
        callback_executor='{"deadline": "here", "task_callback": "here"}',
        callback_queue='{"dag_callback": "alerts", "deadline": "nobody needs this"}',
    )
    add_scheduler(database, 1)
    _, checks = doctor()
    assert checks["workers"]["values"]["classes"] == ["dag_callback"]
    assert checks["workers"]["status"] == "WARN"
    assert checks["queues"]["values"] == {"queues": {"alerts": ["dag_callback"]}, "unheard": ["alerts"]}
    everywhere = dict.fromkeys(("deadline", "task_callback", "dag_callback"), "LocalExecutor")
    configure(callback_executor=str(everywhere).replace("'", '"'))
    _, checks = doctor()
    assert "workers" not in checks


A_WORKER_AND_A_QUESTION = """
import json, subprocess, sys, time
worker = subprocess.Popen(
    [sys.executable, "-m", "celery", "-A", "airflow.providers.celery.executors.celery_executor_utils.app",
     "worker", "--concurrency", "2", "--queues", "alerts,default"],
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
)
try:
    from callback_priority.cli import celery_workers
    until = time.monotonic() + 150
    while time.monotonic() < until and not (answer := celery_workers.ask()).workers:
        assert worker.poll() is None, "the worker has ended"
    (found,) = answer.workers
    print(json.dumps({"processes": found.processes, "queues": sorted(found.queues)}))
finally:
    worker.terminate()
    worker.wait(30)
"""


@ONLY_SQLITE
def test_a_worker_of_celery_says_what_it_listens_to_and_how_much_it_runs(airflow_home, backend):
    """With a real broker and a real worker."""
    from tests.support.redis import running_redis

    with running_redis() as server:
        broker = {"broker_url": server.url(0), "result_backend": server.url(1)}
        environment = airflow_home.subprocess_environment(
            options={"celery": broker, "core": {"executor": "CeleryExecutor"}}
        )
        done = subprocess.run(
            [sys.executable, "-c", A_WORKER_AND_A_QUESTION],
            check=False,
            capture_output=True,
            text=True,
            env=environment,
            timeout=240,
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"processes": 2, "queues": ["alerts", "default"]}
