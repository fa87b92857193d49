"""Running units on a worker: real Dag files, real forked processes, and an API server that remembers."""

from __future__ import annotations

import json
import os
import signal
import sys
import textwrap
import threading
import time
from pathlib import Path

import httpx
import pytest

from callback_priority.protocol import ENTRY, UnitOrder
from tests.support.fake_execution_api import (
    LOGICAL_DATE,
    FakeExecutionApi,
    dag_request,
    email_request,
    task_request,
    unit_order,
)

# Airflow leaves its half of one socket to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

HEAD = """
import logging, os, signal, subprocess, sys, time
import structlog
from airflow.sdk import DAG, BaseOperator, Connection, Variable
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A bundle with a Dag file, and a folder for logs."""
    bundles = [
        {
            "name": "lab",
            "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
            "kwargs": {"path": str(tmp_path / "bundle")},
        }
    ]
    (tmp_path / "bundle").mkdir()
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps(bundles))
    monkeypatch.setenv("AIRFLOW__LOGGING__BASE_LOG_FOLDER", str(tmp_path / "logs"))
    monkeypatch.setenv("AIRFLOW__LOGGING__LOGGING_LEVEL", "INFO")
    from airflow.sdk.api.client import Client

    # The client repeats calls, and waits up to minutes in between.
    monkeypatch.setattr(Client.request.retry, "sleep", lambda _seconds: None)
    return Lab(tmp_path)


class Lab:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: list[str] = []

    def write(self, text: str) -> None:
        (self.path / "bundle" / "dag.py").write_text(HEAD + textwrap.dedent(text))

    def failing(self, *functions: str, bodies: str) -> None:
        """A Dag ``d`` with a task ``t`` whose ``on_failure_callback`` holds these functions."""
        self.write(
            textwrap.dedent(bodies)
            + f"""
with DAG("d") as dag:
    BaseOperator(task_id="t", on_failure_callback=[{", ".join(functions)}])
"""
        )
        self.names = list(functions)

    def orders(self, **options) -> list[UnitOrder]:
        return [
            unit_order("task_failure", name, task_request("d", "t"), position=place, **options)
            for place, name in enumerate(self.names)
        ]

    def log(self, order: UnitOrder) -> str:
        file = self.path / "logs" / order.log_path
        return file.read_text() if file.exists() else ""


def supervise(api: FakeExecutionApi) -> bool:
    """Run it; whether the callback that the executor knows of has not failed, as the executor is told."""
    from callback_priority.worker.supervisor import CallbackFailedError
    from callback_priority.worker.supervisor import supervise as ours

    try:
        status = ours(
            id=str(api.leader), callback_path=ENTRY, callback_kwargs={}, dag_rel_path="", client=api.client()
        )
    except CallbackFailedError:
        return False
    assert status == 0
    return True


def run_one(lab: Lab, body: str, **options) -> tuple[FakeExecutionApi, UnitOrder]:
    """Run one callable ``f(context)`` with this body."""
    lab.failing("f", bodies="def f(context):\n" + textwrap.indent(textwrap.dedent(body), "    "))
    limits = {name: options.pop(name) for name in ("limit_seconds",) if name in options}
    (order,) = lab.orders(**limits)
    api = FakeExecutionApi(units=[order], **options)
    well = supervise(api)
    assert well == (api.end_of(order)["state"] == "success")
    return api, order


# What a callable does --------------------------------------------------------------------------------------------


def test_a_callable_runs_once_and_its_result_is_told(lab):
    api, order = run_one(lab, "return {'sent': [1, None]}")
    assert [action for action, _ in api.told] == ["start", "running", "ended"]
    end = api.end_of(order)
    assert (end["state"], end["output"]) == ("success", '{"sent": [1, null]}')


def test_the_token_of_the_run_is_used_once_it_is_there(lab):
    api, _ = run_one(lab, "return 1")
    assert api.tokens == ["workload-token", "run-token", "run-token"]


def test_nothing_returned_is_nothing_told(lab):
    api, order = run_one(lab, "pass")
    assert api.end_of(order)["output"] is None


def test_an_error_is_told_with_its_type_and_message(lab):
    api, order = run_one(lab, "raise ValueError('no such channel')")
    end = api.end_of(order)
    assert end["state"] == "failed"
    assert end["output"].startswith("ValueError: no such channel\n")
    assert "dag.py" in end["output"]
    assert "no such channel" in end["log"]


@pytest.mark.parametrize("body", ["sys.exit(3)", "raise KeyboardInterrupt", "raise GeneratorExit"])
def test_an_error_that_ends_processes_ends_one_unit_only(lab, body):
    lab.failing(
        "f",
        "g",
        bodies=f"""
        def f(context):
            {body}
        def g(context):
            return os.getppid()
        """,
    )
    first, second = lab.orders()
    api = FakeExecutionApi(units=[first, second])
    supervise(api)
    assert api.end_of(first)["state"] == "failed"
    assert api.end_of(second)["state"] == "success"
    assert api.end_of(second)["output"] == str(os.getpid())


def test_a_callable_that_forks_ends_once(lab):
    lab.failing("f", "g", bodies="def f(context):\n    os.fork()\n    return 1\ndef g(context): ...\n")
    first, second = orders = lab.orders()
    api = FakeExecutionApi(units=orders)
    supervise(api)
    assert [action for action, unit in api.told if unit == str(first.callback_id)][1:] == ["running", "ended"]
    assert api.end_of(first)["output"] == "1"
    assert api.end_of(second)["state"] == "success"


def test_a_result_that_is_no_json_is_a_success_with_a_note(lab):
    api, order = run_one(lab, "return object()")
    end = api.end_of(order)
    assert end["state"] == "success"
    assert "object" in end["output"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("os._exit(7)", "the process exited with code 7 while it ran dag.g"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "the process was killed by SIGKILL while it ran dag.g"),
        ("import ctypes; ctypes.string_at(0)", "the process was killed by SIGSEGV while it ran dag.g"),
    ],
)
def test_a_process_that_is_gone_costs_its_own_unit_only(lab, body, reason):
    lab.failing(
        "f",
        "g",
        "h",
        bodies=f"""
        def f(context):
            return os.getpid()
        def g(context):
            print("last words", flush=True)
            {body}
        def h(context):
            return os.getpid()
        """,
    )
    first, middle, last = orders = lab.orders()
    api = FakeExecutionApi(units=orders)
    assert supervise(api)
    assert [api.end_of(order)["state"] for order in orders] == ["success", "failed", "success"]
    assert api.end_of(middle)["output"].startswith(reason)
    assert "last words" in api.end_of(middle)["log"]
    assert api.end_of(first)["output"] != api.end_of(last)["output"]
    assert [action for action, unit in api.told if unit == str(middle.callback_id)] == ["running", "ended"]


# Time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "time.sleep(60)",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); subprocess.run(['sleep', '60'])",
    ],
)
def test_a_time_limit_is_kept(lab, body):
    lab.failing(
        "f",
        "g",
        bodies=f"""
        def f(context):
            print("before", flush=True)
            {body}
        def g(context):
            return "still here"
        """,
    )
    slow, quick = orders = lab.orders(limit_seconds=1.0)
    api = FakeExecutionApi(units=orders)
    began = time.monotonic()
    supervise(api)
    assert time.monotonic() - began < 12
    end = api.end_of(slow)
    assert end["state"] == "failed"
    assert end["output"] == "exceeded its limit of 1 s while it ran dag.f"
    assert "before" in end["log"]
    assert api.end_of(quick)["output"] == '"still here"'


def test_what_a_callable_started_ends_with_it(lab):
    api, order = run_one(
        lab,
        """
        child = subprocess.Popen(["sleep", "60"])
        print("child", child.pid, flush=True)
        time.sleep(60)
        """,
        limit_seconds=1.0,
    )
    pid = int(api.end_of(order)["log"].split("child ")[1].split()[0])
    with pytest.raises(ProcessLookupError):
        _wait_until_gone(pid)


def _wait_until_gone(pid: int) -> None:
    for _ in range(100):
        os.kill(pid, 0)
        if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            raise ProcessLookupError
        time.sleep(0.05)


def test_a_process_that_a_callable_leaves_behind_holds_nothing_up(lab):
    began = time.monotonic()
    api, order = run_one(lab, "return subprocess.Popen(['sleep', '20'], start_new_session=True).pid")
    assert time.monotonic() - began < 10
    os.kill(int(api.end_of(order)["output"]), signal.SIGKILL)


def test_a_time_limit_holds_while_the_api_server_does_not_answer(lab):
    def hang(_request):
        time.sleep(30)
        return httpx.Response(404)

    began = time.monotonic()
    api, order = run_one(
        lab, "return Variable.get('v')", limit_seconds=1.0, answers={("GET", "/variables/v"): hang}
    )
    assert time.monotonic() - began < 12
    assert api.end_of(order)["output"] == "exceeded its limit of 1 s while it ran dag.f"


def test_loading_has_a_limit_of_its_own(lab):
    lab.failing("f", "g", bodies="time.sleep(60)\ndef f(context): ...\ndef g(context): ...\n")
    orders = lab.orders()
    api = FakeExecutionApi(units=orders, load_limit_seconds=1.0)
    supervise(api)
    for order in orders:
        assert api.end_of(order)["state"] == "failed"
        assert api.end_of(order)["output"] == "exceeded its limit of 1 s while it loaded the Dag file dag.py"


# Logs ------------------------------------------------------------------------------------------------------------


def test_each_unit_has_a_log_of_its_own(lab):
    words = ["alpha", "beta", "gamma"]
    functions = "".join(
        f"""
def {word}(context):
    print("{word} out")
    print("{word} err", file=sys.stderr)
    logging.getLogger("user").warning("{word} logged")
    structlog.get_logger("user").warning("{word} structured", number=1)
    os.write(1, b"{word} raw")
    sys.stdout.write("{word} unfinished")
"""
        for word in words
    )
    lab.failing(*words, bodies=functions)
    orders = lab.orders()
    api = FakeExecutionApi(units=orders)
    supervise(api)
    for word, order in zip(words, orders, strict=True):
        text = lab.log(order)
        for said in ("out", "err", "logged", "structured", "raw", "unfinished"):
            assert f"{word} {said}" in text
            assert f"{word} {said}" in api.end_of(order)["log"]
        for other in set(words) - {word}:
            assert f"{other} " not in text.replace(f"dag.{other}", "")
        assert all(json.loads(line)["event"] for line in text.splitlines())


def test_a_flooded_log_is_cut_and_does_not_hold_the_callable_up(lab):
    api, order = run_one(
        lab,
        """
        for number in range(200_000):
            print("line", number, "x" * 100)
        logging.getLogger("user").warning("after the flood")
        return "through"
        """,
        log_limit_bytes=100_000,
    )
    end = api.end_of(order)
    assert (end["state"], end["output"]) == ("success", '"through"')
    text = lab.log(order)
    assert len(text) < 110_000
    assert text.count("has reached its limit of 100000 bytes") == 1
    assert "has reached its limit of 100000 bytes" in end["log"]
    assert "after the flood" not in text
    assert len(end["log"]) <= 16_384


def test_a_line_without_an_end_takes_no_more_than_the_limit(lab):
    api, order = run_one(lab, "os.write(1, b'x' * 10_000_000)\nreturn 'through'", log_limit_bytes=100_000)
    assert api.end_of(order)["output"] == '"through"'
    assert len(lab.log(order)) < 110_000
    assert "has reached its limit" in lab.log(order)


def test_a_log_that_cannot_be_written_fails_its_own_unit(lab):
    lab.failing("f", "g", bodies="def f(context): ...\ndef g(context): ...\n")
    first, second = orders = lab.orders()
    (lab.path / "logs" / "units").mkdir(parents=True)
    (lab.path / "logs" / first.log_path).mkdir()
    api = FakeExecutionApi(units=orders)
    assert not supervise(api)
    assert api.end_of(first)["output"].startswith("its log cannot be written: ")
    assert api.end_of(second)["state"] == "success"


def test_what_a_dag_file_says_is_at_the_top_of_the_first_log(lab):
    lab.failing("f", "g", bodies="print('loading')\ndef f(context): ...\ndef g(context): ...\n")
    first, second = orders = lab.orders()
    supervise(FakeExecutionApi(units=orders))
    assert "loading" in lab.log(first)
    assert "loading" not in lab.log(second)


# Requests --------------------------------------------------------------------------------------------------------


def test_a_variable_a_connection_and_an_xcom_can_be_read(lab):
    connection = {"conn_id": "db", "conn_type": "postgres", "host": "h", "password": "s3cr3t-horse"}
    connection |= dict.fromkeys(("schema", "login", "port", "extra"))
    answers = {
        ("GET", "/variables/city"): lambda _: httpx.Response(200, json={"key": "city", "value": "Ulm-on-D"}),
        ("GET", "/connections/db"): lambda _: httpx.Response(200, json=connection),
        ("GET", "/xcoms/d/r1/t/answer/slice"): lambda _: httpx.Response(200, json=[42]),
    }
    api, order = run_one(
        lab,
        """
        connection = Connection.get("db")
        print("the password is", connection.password)
        return [Variable.get("city"), connection.host, context["ti"].xcom_pull(task_ids="t", key="answer"),
                "said " + connection.password]
        """,
        answers=answers,
    )
    end = api.end_of(order)
    assert end["state"] == "success", end
    # A Variable's value is a secret only if its name says so.
    assert json.loads(end["output"]) == ["Ulm-on-D", "h", 42, "said ***"]
    assert "s3cr3t-horse" not in lab.log(order)
    assert "the password is ***" in end["log"]


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_read_that_the_server_refuses_is_an_error_in_the_callable(lab, status):
    answers = {
        ("GET", "/variables/city"): lambda _: httpx.Response(status, json={"detail": {"reason": "no"}}),
        ("GET", "/connections/db"): lambda _: httpx.Response(status, json={"detail": {"reason": "no"}}),
    }
    api, order = run_one(
        lab,
        """
        for read in (lambda: Variable.get("city"), lambda: Connection.get("db")):
            try:
                read()
            except Exception as error:
                print("refused with", type(error).__name__)
            else:
                raise AssertionError("it was answered")
        return "went on"
        """,
        answers=answers,
    )
    assert api.end_of(order)["output"] == '"went on"'


def test_what_a_callback_may_not_ask_is_refused_by_name(lab):
    api, order = run_one(lab, "context['ti'].xcom_push(key='a', value=1)", limit_seconds=10.0)
    end = api.end_of(order)
    assert end["state"] == "failed"
    assert "SetXCom" in end["output"]
    assert not [path for _, path in api.requests if "xcoms" in path]


@pytest.mark.parametrize(
    "message",
    [
        '{"type": "NeverHeardOf", "x": 1}',
        '{"x": 1}',
        '{"type": "GetVariable"}',
        '{"type": "callback_priority.UnitStarting", "callback_id": "6f2b1a52-0000-0000-0000-000000000000"}',
        """{"type": "callback_priority.UnitEnded", "callback_id": "6f2b1a52-0000-0000-0000-000000000000",
            "state": "success", "output": None}""",
    ],
)
def test_a_request_that_nobody_knows_is_answered_at_once(lab, message):
    api, order = run_one(
        lab,
        f"""
        from airflow.sdk.execution_time import task_runner
        from airflow.sdk.exceptions import AirflowRuntimeError
        class Odd:
            def model_dump(self):
                return {message}
        try:
            task_runner.SUPERVISOR_COMMS.send(Odd())
        except AirflowRuntimeError as error:
            return str(error)
        """,
        limit_seconds=10.0,
    )
    assert "is refused" in api.end_of(order)["output"]


def test_what_cannot_be_read_at_all_ends_the_unit_and_not_the_run(lab):
    lab.failing(
        "f",
        "g",
        bodies="""
        def f(context):
            from airflow.sdk.execution_time import task_runner
            task_runner.SUPERVISOR_COMMS.socket.sendall((3).to_bytes(4, "big") + b"\\xc1\\xc1\\xc1")
            time.sleep(60)
        def g(context):
            return 1
        """,
    )
    first, second = orders = lab.orders()
    api = FakeExecutionApi(units=orders)
    began = time.monotonic()
    supervise(api)
    assert time.monotonic() - began < 15
    assert "could not be read while it ran dag.f" in api.end_of(first)["output"]
    assert api.end_of(second)["state"] == "success"


def test_a_program_that_a_callable_starts_has_an_empty_input(lab):
    api, order = run_one(
        lab,
        """
        done = subprocess.run(["cat"], capture_output=True, timeout=5)
        return [done.stdout.decode(), sys.stdin.fileno()]
        """,
    )
    assert api.end_of(order)["output"] == '["", 0]'


def test_the_previous_successful_run_is_asked_for_by_unit(lab):
    order = unit_order("task_failure", "f", task_request("d", "t"))
    lab.failing("f", bodies="def f(context):\n    return str(context['prev_start_date_success'])\n")
    path = f"/callback-priority/callbacks/{order.callback_id}/units/{order.callback_id}/previous-successful-dagrun"
    found = {"start_date": LOGICAL_DATE, "end_date": LOGICAL_DATE}
    api = FakeExecutionApi(units=[order], answers={("GET", path): lambda _: httpx.Response(200, json=found)})
    supervise(api)
    assert api.end_of(order)["output"] == '"2026-01-02 03:04:05+00:00"'


# What is not there -----------------------------------------------------------------------------------------------


def test_a_dag_file_that_does_not_parse_fails_every_unit_with_its_error(lab):
    lab.failing(
        "f", "g", bodies="def f(context): ...\ndef g(context): ...\nraise RuntimeError('half written')\n"
    )
    orders = lab.orders()
    api = FakeExecutionApi(units=orders)
    supervise(api)
    for order in orders:
        end = api.end_of(order)
        assert end["state"] == "failed"
        assert end["output"].startswith("the Dag file dag.py has an error: RuntimeError: half written")


def test_a_dag_file_that_exits_fails_every_unit(lab):
    lab.failing("f", bodies="def f(context): ...\nos._exit(5)\n")
    (order,) = lab.orders()
    api = FakeExecutionApi(units=[order])
    supervise(api)
    assert api.end_of(order)["output"] == "the process exited with code 5 while it loaded the Dag file dag.py"


def test_what_is_gone_is_named(lab):
    lab.failing("f", bodies="def f(context): ...\n")
    task = unit_order("task_failure", "f", task_request("d", "elsewhere"))
    dag = unit_order("task_failure", "f", task_request("nowhere", "t"), position=1)
    place = unit_order("task_failure", "g", task_request("d", "t"), position=5)
    none = unit_order("dag_failure", "f", dag_request("d"))
    orders = [task, dag, place, none]
    api = FakeExecutionApi(units=orders)
    supervise(api)
    outputs = [api.end_of(order)["output"] for order in orders]
    assert "Task 'elsewhere' not found in DAG 'd'" in outputs[0]
    assert "DAG 'nowhere' not found" in outputs[1]
    assert "dag.g was number 6" in outputs[2]
    assert outputs[3] == "Callback requested, but dag didn't have any"
    assert {api.end_of(order)["state"] for order in orders} == {"failed"}


def test_a_file_and_a_bundle_that_are_gone_are_named(lab, monkeypatch):
    lab.failing("f", bodies="def f(context): ...\n")
    (order,) = lab.orders()
    api = FakeExecutionApi(units=[order], filepath="moved.py")
    supervise(api)
    assert api.end_of(order)["output"] == "the Dag file moved.py is not in bundle 'lab'"
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", "[]")
    supervise(api)
    assert "bundle 'lab' cannot be loaded: ValueError" in api.end_of(order)["output"]


# The run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [404, 409])
def test_a_unit_that_is_not_to_run_does_not(lab, status):
    lab.failing(
        "f", "g", bodies=f"def f(context):\n    open({str(lab.path)!r} + '/ran', 'w')\ndef g(context): ...\n"
    )
    first, second = orders = lab.orders()
    api = FakeExecutionApi(units=orders, refuse_running={first.callback_id: status})
    assert supervise(api)
    assert not (lab.path / "ran").exists()
    assert not lab.log(first)
    assert list(api.ends) == [str(second.callback_id)]


@pytest.mark.parametrize("status", [400, 401, 404, 409])
def test_without_a_run_nothing_runs(lab, status):
    from callback_priority.worker.calls import StartRefusedError

    lab.failing("f", bodies=f"open({str(lab.path)!r} + '/loaded', 'w')\ndef f(context): ...\n")
    api = FakeExecutionApi(units=lab.orders(), refuse_start=status)
    with pytest.raises(StartRefusedError, match=str(status)):
        supervise(api)
    assert not (lab.path / "loaded").exists()


def test_where_another_worker_is_at_the_run_it_waits(lab, monkeypatch):
    from callback_priority.protocol import BUSY, PREFIX
    from callback_priority.worker import claims
    from callback_priority.worker.calls import StartRefusedError

    monkeypatch.setattr(claims, "BUSY_SECONDS", 0.01)
    lab.failing("f", bodies="def f(context): ...\n")
    api = FakeExecutionApi(units=lab.orders())
    reasons = iter([BUSY, BUSY, "refused"])

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(409, json={"detail": {"reason": next(reasons), "message": "with another"}})

    api.answers["POST", f"{PREFIX}/callbacks/{api.leader}/start"] = answer
    with pytest.raises(StartRefusedError, match="with another"):
        supervise(api)
    assert list(reasons) == []
    assert api.ends == {}


def test_another_protocol_is_not_spoken(lab):
    from callback_priority.worker.calls import StartRefusedError

    lab.failing("f", bodies="def f(context): ...\n")
    with pytest.raises(StartRefusedError, match="protocol 99"):
        supervise(FakeExecutionApi(units=lab.orders(), protocol=99))


def test_a_unit_that_cannot_be_asked_for_does_not_run(lab):
    lab.failing(
        "f", "g", bodies=f"def f(context): ...\ndef g(context):\n    open({str(lab.path)!r} + '/ran', 'w')\n"
    )
    first, second = orders = lab.orders()
    path = f"/callback-priority/callbacks/{first.callback_id}/units/{second.callback_id}/running"
    api = FakeExecutionApi(units=orders, answers={("POST", path): lambda _: httpx.Response(503)})
    with pytest.raises(httpx.HTTPStatusError):
        supervise(api)
    assert list(api.ends) == [str(first.callback_id)]
    assert not (lab.path / "ran").exists()


def test_an_api_server_that_is_down_for_a_while_is_asked_again(lab, monkeypatch):
    from callback_priority.worker import claims

    monkeypatch.setattr(claims, "BUSY_SECONDS", 0.0)
    lab.failing("f", bodies="def f(context): ...\n")
    (order,) = lab.orders()
    path = f"/callback-priority/callbacks/{order.callback_id}/start"
    api = FakeExecutionApi(units=[order])
    refusals = iter(range(6))

    def refused(_request):
        if next(refusals, None) is None:
            del api.answers["POST", path]
        return httpx.Response(503)

    api.answers["POST", path] = refused
    assert supervise(api)
    assert [action for action, _ in api.told] == ["start", "running", "ended"]


def test_an_api_server_that_is_down_is_no_run(lab, monkeypatch):
    from callback_priority.worker import claims

    monkeypatch.setattr(claims, "PATIENCE_SECONDS", 0.0)

    def down(_request):
        raise httpx.ConnectError("down")

    lab.failing("f", bodies=f"open({str(lab.path)!r} + '/loaded', 'w')\ndef f(context): ...\n")
    (order,) = lab.orders()
    path = f"/callback-priority/callbacks/{order.callback_id}/start"
    with pytest.raises(httpx.ConnectError):
        supervise(FakeExecutionApi(units=[order], answers={("POST", path): down}))
    assert not (lab.path / "loaded").exists()


def test_an_end_that_cannot_be_told_is_told_later_or_raised(lab, monkeypatch):
    from callback_priority.worker import claims
    from callback_priority.worker.progress import UnreportedError

    monkeypatch.setattr(claims, "BUSY_SECONDS", 0.0)
    monkeypatch.setattr(claims, "PATIENCE_SECONDS", 0.0)
    lab.failing("f", "g", bodies="def f(context): ...\ndef g(context): ...\n")
    first, second = orders = lab.orders()
    path = f"/callback-priority/callbacks/{first.callback_id}/units/{first.callback_id}/ended"
    broken = [httpx.Response(503)] * 5

    def answer(_request):
        return broken.pop() if broken else httpx.Response(204)

    api = FakeExecutionApi(units=orders, answers={("POST", path): answer})
    supervise(api)
    assert api.end_of(second)["state"] == "success"
    broken.extend([httpx.Response(503)] * 100)
    with pytest.raises(UnreportedError):
        supervise(api)


def test_a_worker_that_is_told_to_stop_ends_the_callable_and_leaves_the_rest(lab):
    from callback_priority.worker.supervisor import StoppedError

    lab.failing("f", "g", bodies="def f(context):\n    time.sleep(60)\ndef g(context): ...\n")
    first, second = orders = lab.orders()
    api = FakeExecutionApi(units=orders)

    def stop_when_running():
        while ("running", str(first.callback_id)) not in api.told:
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop_when_running)
    before = signal.getsignal(signal.SIGTERM)
    stopper.start()
    with pytest.raises(StoppedError, match=r"SIGTERM.*1 callback"):
        supervise(api)
    stopper.join()
    assert signal.getsignal(signal.SIGTERM) is before
    assert api.end_of(first)["output"] == "the worker was told to stop (SIGTERM) while it ran dag.f"
    assert api.end_of(first)["lost"]
    assert ("running", str(second.callback_id)) not in api.told


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_a_worker_that_is_killed_leaves_no_callable_behind(lab):
    """Another worker will have the run, and nobody could tell this one to stop."""
    mark = lab.path / "pid"
    lab.failing(
        "f",
        bodies=f"def f(context):\n    open({str(mark)!r}, 'w').write(str(os.getpid()))\n    time.sleep(60)\n",
    )
    api = FakeExecutionApi(units=lab.orders())
    worker = os.fork()
    if worker == 0:
        try:
            supervise(api)
        finally:
            os._exit(0)
    for _ in range(400):
        if mark.exists() and mark.read_text():
            break
        time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    with pytest.raises((ProcessLookupError, FileNotFoundError)):
        _wait_until_gone(int(mark.read_text()))


def test_a_worker_that_ignores_an_interrupt_lets_the_callable_end(lab):
    """As a worker of the LocalExecutor does, so that Ctrl-C stops the scheduler and not what runs."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        api, order = run_one(lab, "os.kill(os.getppid(), signal.SIGINT)\ntime.sleep(0.3)\nreturn 'done'")
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert api.end_of(order)["output"] == '"done"'


def test_it_works_in_a_thread_too(lab):
    lab.failing("f", bodies="def f(context):\n    time.sleep(60)\n")
    (order,) = lab.orders(limit_seconds=1.0)
    api = FakeExecutionApi(units=[order])
    thread = threading.Thread(target=supervise, args=(api,))
    thread.start()
    thread.join(timeout=20)
    assert api.end_of(order)["output"] == "exceeded its limit of 1 s while it ran dag.f"


# Heartbeats ------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """Heartbeats come fast."""
    from callback_priority.worker import pulse

    monkeypatch.setattr(pulse, "HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr("callback_priority.worker.supervisor.POLL_SECONDS", 0.1)


def test_heartbeats_name_what_has_not_ended(lab, quick):
    lab.failing("f", "g", bodies="def f(context):\n    time.sleep(1)\ndef g(context):\n    time.sleep(1)\n")
    first, second = orders = lab.orders()
    api = FakeExecutionApi(units=orders)
    assert supervise(api)
    named = [tuple(beat) for beat in api.beats]
    both, rest = (str(first.callback_id), str(second.callback_id)), (str(second.callback_id),)
    assert set(named) == {both, rest}
    assert named == sorted(named, key=len, reverse=True)


def test_loading_a_dag_file_is_no_silence(lab, quick):
    lab.failing("f", bodies="time.sleep(1)\ndef f(context): ...\n")
    api = FakeExecutionApi(units=lab.orders())
    assert supervise(api)
    assert api.beats


@pytest.mark.parametrize(
    "answer",
    [httpx.Response(503), httpx.Response(403), httpx.ConnectError("down")],
    ids=["failing", "refusing", "away"],
)
def test_an_api_server_that_does_not_hear_costs_nothing(lab, quick, answer):
    lab.failing("f", bodies="def f(context):\n    time.sleep(1)\n    return 1\n")
    (order,) = lab.orders()
    api = FakeExecutionApi(units=[order])

    def deaf(_request):
        if isinstance(answer, Exception):
            raise answer
        return answer

    api.answers["POST", f"/callback-priority/callbacks/{order.callback_id}/heartbeat"] = deaf
    assert supervise(api)
    assert api.end_of(order)["output"] == "1"


def test_an_older_api_server_is_told_no_more(lab, quick):
    lab.failing("f", bodies="def f(context):\n    time.sleep(1)\n")
    (order,) = lab.orders()
    path = f"/callback-priority/callbacks/{order.callback_id}/heartbeat"
    api = FakeExecutionApi(
        units=[order],
        answers={("POST", path): lambda _: httpx.Response(404, json={"detail": "Not Found"})},
    )
    assert supervise(api)
    assert [each for _, each in api.requests].count(path) == 1


def test_a_run_that_was_taken_back_stops_at_once_and_tells_nothing_more(lab, quick):
    """Not even of what ended because it was stopped: another worker has it."""
    from airflow.sdk.exceptions import TaskAlreadyRunningError

    from callback_priority.worker.calls import TakenBackError

    pids = lab.path / "pids"
    lab.failing(
        "f",
        "g",
        "h",
        bodies=f"""
        def f(context): ...
        def g(context):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            child = subprocess.Popen(["sleep", "60"])
            open({str(pids)!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
            time.sleep(60)
        def h(context): ...
        """,
    )
    first, second, third = orders = lab.orders()
    api = FakeExecutionApi(units=orders)

    def taken_back_when_it_runs(_request):
        if pids.exists() and pids.read_text():
            return httpx.Response(409, json={"detail": {"reason": "refused", "message": "with another"}})
        return httpx.Response(204)

    path = f"/callback-priority/callbacks/{first.callback_id}/heartbeat"
    api.answers["POST", path] = taken_back_when_it_runs
    began = time.monotonic()
    with pytest.raises(TakenBackError) as raised:
        supervise(api)
    assert time.monotonic() - began < 15
    assert isinstance(raised.value, TaskAlreadyRunningError)
    assert list(api.ends) == [str(first.callback_id)]
    assert ("running", str(second.callback_id)) in api.told
    assert ("running", str(third.callback_id)) not in api.told
    assert "was taken back from this worker" in lab.log(second)
    for pid in pids.read_text().split():
        with pytest.raises((ProcessLookupError, FileNotFoundError)):
            _wait_until_gone(int(pid))


# Contexts --------------------------------------------------------------------------------------------------------

SHOW = """
def show(context):
    def text(value):
        try:
            if type(value).__name__ == "Proxy":
                return "Proxy"
            plain = isinstance(value, (str, int, type(None)))
            return f"{type(value).__name__}:{value}" if plain else type(value).__name__
        except Exception as error:
            return f"error:{type(error).__name__}"
    found = {key: text(context[key]) for key in sorted(context)}
    with open(PATH, "a") as file:
        import json
        file.write(json.dumps(found) + "\\n")

with DAG("d", on_failure_callback=show, on_success_callback=[show], params={"p": 1}) as dag:
    BaseOperator(task_id="t", on_failure_callback=show, on_retry_callback=[show], on_success_callback=show)
"""


@pytest.mark.parametrize(
    ("kind", "request_json"),
    [
        ("task_failure", lambda: task_request("d", "t")),
        ("task_failure", lambda: task_request("d", "t", callback_type=None)),
        ("task_failure", lambda: task_request("d", "t", context=False)),
        ("task_retry", lambda: task_request("d", "t", callback_type="up_for_retry")),
        ("dag_failure", lambda: dag_request("d", last_task="t")),
        ("dag_failure", lambda: dag_request("d")),
        ("dag_failure", lambda: dag_request("d", context=False)),
        ("dag_failure", lambda: dag_request("d", last_task="gone")),
        ("dag_success", lambda: dag_request("d", failure=False, last_task="t")),
    ],
)
def test_the_context_is_the_one_that_the_dag_processor_gives(lab, kind, request_json):
    import structlog
    from airflow.dag_processing import processor

    from callback_priority.worker import child
    from callback_priority.worker.context import request_of

    out = lab.path / "contexts"
    lab.write(SHOW.replace("PATH", repr(str(out))))
    order = unit_order(kind, "show", request_json())
    api = FakeExecutionApi(units=[order])
    supervise(api)
    assert api.end_of(order)["state"] == "success", api.end_of(order)
    processor._execute_callbacks(child.load(api.run()), [request_of(order)], structlog.get_logger())
    ours, theirs = map(json.loads, out.read_text().splitlines())
    assert ours == theirs
    assert len(ours) >= 3


def test_a_success_that_airflow_drops_has_the_context_of_a_failure(lab):
    out = lab.path / "contexts"
    lab.write(SHOW.replace("PATH", repr(str(out))))
    success = unit_order("task_success", "show", task_request("d", "t", callback_type="success"))
    failure = unit_order("task_failure", "show", task_request("d", "t"), position=0)
    failure.log_path = "other.log"
    api = FakeExecutionApi(units=[success, failure])
    supervise(api)
    ours, theirs = map(json.loads, out.read_text().splitlines())
    assert ours == theirs


# E-mails ---------------------------------------------------------------------------------------------------------

MAILING = """
with DAG("d") as dag:
    BaseOperator(task_id="t", email=["ops@example.org"], email_on_retry=False)
    BaseOperator(task_id="quiet")
"""


def test_an_email_that_is_off_is_a_success_that_says_so(lab):
    lab.write(MAILING)
    off = unit_order("email_retry", "", email_request("d", "t", email_type="retry"))
    without = unit_order("email_failure", "", email_request("d", "quiet"))
    api = FakeExecutionApi(units=[off, without])
    supervise(api)
    assert api.end_of(off)["state"] == api.end_of(without)["state"] == "success"
    assert "email_on_retry=False" in api.end_of(off)["output"]
    assert "no email configured" in api.end_of(without)["output"]


def test_an_email_that_fails_is_a_failure_with_the_real_error(lab, monkeypatch):
    lab.write(
        MAILING + "\ndef refuse(*args, **kwargs):\n    raise ConnectionRefusedError('no mail server')\n"
    )
    backend = lab.path / "bundle" / "lab_mail_backend.py"
    backend.write_text("def refuse(*args, **kwargs):\n    raise ConnectionRefusedError('no mail server')\n")
    monkeypatch.setenv("AIRFLOW__EMAIL__EMAIL_BACKEND", "lab_mail_backend.refuse")
    order = unit_order("email_failure", "", email_request("d", "t"))
    api = FakeExecutionApi(units=[order])
    supervise(api)
    end = api.end_of(order)
    assert end["state"] == "failed"
    assert end["output"].startswith("ConnectionRefusedError: no mail server")


def test_an_email_is_sent_with_airflows_subject(lab, monkeypatch):
    lab.write(MAILING)
    backend = lab.path / "bundle" / "lab_mail_backend2.py"
    mail = str(lab.path / "mail")
    backend.write_text(f"def send(to, subject, *args, **kwargs):\n    open({mail!r}, 'w').write(subject)\n")
    monkeypatch.setenv("AIRFLOW__EMAIL__EMAIL_BACKEND", "lab_mail_backend2.send")
    order = unit_order("email_failure", "", email_request("d", "t"))
    api = FakeExecutionApi(units=[order])
    supervise(api)
    assert (api.end_of(order)["state"], api.end_of(order)["output"]) == ("success", None)
    assert (lab.path / "mail").read_text().startswith("Airflow alert: ")


# Killed tasks ----------------------------------------------------------------------------------------------------


def _killed_at_once():
    os.kill(os.getpid(), signal.SIGKILL)


def _killed_after_it_said_that_it_failed():
    from datetime import datetime, timezone

    from airflow.sdk.execution_time.comms import CommsDecoder, TaskState

    comms = CommsDecoder()
    comms._get_response()  # the details of what to run
    comms.send(TaskState(state="failed", end_date=datetime.now(tz=timezone.utc)))
    os.kill(os.getpid(), signal.SIGKILL)


def _killed_after_it_said_that_it_is_retried():
    from datetime import datetime, timezone

    from airflow.sdk.execution_time.comms import CommsDecoder, RetryTask

    comms = CommsDecoder()
    comms._get_response()  # the details of what to run
    comms.send(RetryTask(end_date=datetime.now(tz=timezone.utc)))
    os.kill(os.getpid(), signal.SIGKILL)


def _ends_well():
    pass


@pytest.mark.parametrize(
    ("target", "should_retry", "told"),
    [
        (_killed_at_once, False, ("failed", False)),
        (_killed_at_once, True, None),
        (_killed_after_it_said_that_it_failed, False, ("failed", True)),
        (_killed_after_it_said_that_it_is_retried, True, ("up_for_retry", True)),
        (_ends_well, False, None),
    ],
)
def test_a_task_whose_process_is_killed_is_told_of_first(lab, monkeypatch, target, should_retry, told):
    import airflow.sdk.execution_time.callback_supervisor  # noqa: F401 - for the hook
    from airflow.sdk.api.client import Client
    from airflow.sdk.api.datamodels._generated import BundleInfo, TaskInstance
    from airflow.sdk.execution_time.supervisor import ActivitySubprocess

    from callback_priority.worker import hook

    seen = []

    def handle(request):
        body = json.loads(request.content or b"{}")
        path = request.url.path.rpartition("/")[2]
        seen.append((path, body))
        if path == "run":
            context = task_request("d", "t")["context_from_server"] | {"should_retry": should_retry}
            return httpx.Response(200, json=context)
        return httpx.Response(200, json={"routed": 1})

    client = Client(base_url="http://api/execution/", token="t", transport=httpx.MockTransport(handle))
    monkeypatch.setenv("AIRFLOW__CALLBACK_PRIORITY__MODE", "active")
    monkeypatch.setenv("AIRFLOW__CALLBACK_PRIORITY__USE_WORKER_CALLBACKS", "all")
    what = TaskInstance.model_validate(task_request("d", "t")["ti"])
    hook.install()
    try:
        process = ActivitySubprocess.start(
            what=what, dag_rel_path="dag.py", bundle_info=BundleInfo(name="lab"), client=client, target=target
        )
        process.wait()
    finally:
        hook.uninstall()
    paths = [path for path, _ in seen if path != "heartbeat"]
    if told is None:
        assert paths == ["run"]  # for a retry, that is why the scheduler finds it out
        return
    body = dict(seen)["killed"]
    assert (body["state"], body["in_callback"], body["exit_code"]) == (*told, -9)
    # A retry is reported by the process itself, before its callbacks.
    retried = target is _killed_after_it_said_that_it_is_retried
    assert paths == (["run", "state", "killed"] if retried else ["run", "killed", "state"])
