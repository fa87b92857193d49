"""Callbacks that Airflow's own code calls: real processes, Airflow's own function, and an API server that remembers."""

from __future__ import annotations

import itertools
import json
import os
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import httpx
import pytest

from callback_priority.protocol import BUSY, OVER, PREFIX, PROTOCOL
from tests.support.fake_execution_api import FakeExecutionApi, task_request, unit_order

# Airflow leaves its half of one socket to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

_numbers = itertools.count()


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Modules to call, a folder for logs, and the hook."""
    monkeypatch.setenv("AIRFLOW__CALLBACK_PRIORITY__MODE", "active")
    monkeypatch.setenv("AIRFLOW__LOGGING__BASE_LOG_FOLDER", str(tmp_path / "logs"))
    monkeypatch.setenv("AIRFLOW__LOGGING__LOGGING_LEVEL", "INFO")
    monkeypatch.syspath_prepend(tmp_path)
    import airflow.sdk.execution_time.callback_supervisor  # noqa: F401 - for the hook
    from airflow.sdk.api.client import Client

    from callback_priority.worker import claims, hook

    monkeypatch.setattr(Client.request.retry, "sleep", lambda _seconds: None)
    monkeypatch.setattr(claims, "BUSY_SECONDS", 0.01)
    monkeypatch.setattr(claims, "PATIENCE_SECONDS", 0.05)
    # How long Airflow waits for what no socket tells.
    monkeypatch.setattr("airflow.sdk.execution_time.callback_supervisor.MIN_HEARTBEAT_INTERVAL", 0.2)
    hook.uninstall()
    hook.install()
    yield Lab(tmp_path)
    hook.uninstall()


@pytest.fixture
def quick(monkeypatch):
    """Heartbeats come fast."""
    from callback_priority.worker import pulse

    monkeypatch.setattr(pulse, "HEARTBEAT_SECONDS", 0.2)


class Lab:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.api = FakeExecutionApi(units=[unit_order("task_failure", "none", task_request("d", "t"))])

    @property
    def leader(self) -> UUID:
        return self.api.leader

    def answer(self, call: str, *answers: httpx.Response | Exception | None) -> None:
        """Answer a call about the callback so, the last answer for ever; ``None`` is the usual answer."""
        key = "POST", f"{PREFIX}/callbacks/{self.leader}/{call}"
        rest = list(answers)

        def one(request: httpx.Request) -> httpx.Response:
            answer = rest.pop(0) if len(rest) > 1 else rest[0]
            if answer is None:
                del self.api.answers[key]
                return self.api._handle(request)
            if isinstance(answer, Exception):
                raise answer
            return answer

        self.api.answers[key] = one

    def call(self, body: str, **kwargs: object) -> int:
        """Have a worker call a function with this body, as an executor does."""
        from airflow.sdk.execution_time.callback_supervisor import supervise_callback

        name = f"attempted_{next(_numbers)}"
        (self.path / f"{name}.py").write_text(
            "import os, signal, subprocess, sys, time\nfrom airflow.sdk import Variable\n"
            "def late(**kwargs):\n" + textwrap.indent(textwrap.dedent(body), "    ")
        )
        return supervise_callback(
            id=str(self.leader),
            callback_path=f"{name}.late",
            callback_kwargs=kwargs,
            dag_rel_path="d.py",
            log_path="executor_callbacks/d/r/1",
            bundle_info=None,
            client=self.api.client(),
        )

    @property
    def told(self) -> list[str]:
        return [action for action, _ in self.api.told]

    @property
    def end(self) -> dict[str, object]:
        return self.api.ends[str(self.leader)]

    @property
    def log(self) -> str:
        return (self.path / "logs" / "executor_callbacks/d/r/1").read_text()


RAN = "open({path!r}, 'a').write('ran\\n')"


def refusal(status: int, reason: str) -> httpx.Response:
    return httpx.Response(status, json={"detail": {"reason": reason, "message": "so it is"}})


# What ours is -----------------------------------------------------------------------------------------------------


def test_it_is_claimed_begun_and_told_to_have_ended(lab):
    assert lab.call("print('said', kwargs['number'])", number=7) == 0
    assert lab.told == ["attempt", "running", "ended"]
    said = lab.api.attempted
    assert (said["protocol"], said["pid"], said["heartbeats"]) == (PROTOCOL, os.getpid(), True)
    assert said["path"].endswith(".late")
    assert said["log_path"] == "executor_callbacks/d/r/1"
    assert (lab.end["state"], lab.end["output"]) == ("success", None)
    assert "said 7" in lab.end["log"]
    assert "said 7" in lab.log


def test_it_reads_variables_with_the_token_of_the_attempt(lab):
    """With the one that came with the callback, Airflow refuses it."""
    value = httpx.Response(200, json={"key": "city", "value": "Ulm"})
    lab.api.answers["GET", "/variables/city"] = lambda _request: value
    assert lab.call("print('from', Variable.get('city'))") == 0
    assert "from Ulm" in lab.log
    paths = [path for _, path in lab.api.requests]
    assert lab.api.tokens[0] == "workload-token"
    assert lab.api.tokens[paths.index("/variables/city")] == "run-token"


@pytest.mark.parametrize(
    ("body", "raised", "output"),
    [
        (
            "raise ValueError('no such channel')",
            "Callback subprocess exited with code 1",
            "ValueError: no such channel",
        ),
        (
            "sys.exit(3)",
            "Callback subprocess exited with code 3",
            "the process exited with code 3 while it ran",
        ),
        (
            "sys.exit(1)",
            "Callback subprocess exited with code 1",
            "the process exited with code 1 while it ran",
        ),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            "Callback subprocess exited with code",
            "the process was killed by SIGKILL while it ran",
        ),
    ],
)
def test_a_failure_is_told_with_its_reason_and_the_executor_hears_what_it_always_heard(
    lab, body, raised, output
):
    with pytest.raises(RuntimeError, match=raised):
        lab.call(f"print('last words', flush=True)\n{body}")
    assert lab.told == ["attempt", "running", "ended"]
    assert lab.end["state"] == "failed"
    assert lab.end["output"].startswith(output)
    assert "last words" in lab.end["log"]


def test_what_cannot_be_imported_is_named(lab):
    from airflow.sdk.execution_time.callback_supervisor import supervise_callback

    with pytest.raises(RuntimeError, match="exited with code 1"):
        supervise_callback(
            id=str(lab.leader), callback_path="nowhere_at_all.late", callback_kwargs={}, dag_rel_path="d.py",
            client=lab.api.client(),
        )  # fmt: skip
    assert lab.end["output"] == "ModuleNotFoundError: No module named 'nowhere_at_all'"


def test_a_secret_in_an_error_is_masked(lab):
    connection = {"conn_id": "db", "conn_type": "postgres", "host": "h", "password": "s3cr3t-horse"}
    connection |= dict.fromkeys(("schema", "login", "port", "extra"))
    lab.api.answers["GET", "/connections/db"] = lambda _request: httpx.Response(200, json=connection)
    with pytest.raises(RuntimeError):
        lab.call(
            "from airflow.sdk import Connection\nraise ValueError('with ' + Connection.get('db').password)"
        )
    assert lab.end["output"] == "ValueError: with ***"
    assert "s3cr3t-horse" not in lab.end["log"]


def test_airflows_own_time_limit_is_named(lab, monkeypatch):
    monkeypatch.setenv("AIRFLOW__CALLBACKS__CALLBACK_EXECUTION_TIMEOUT", "1")
    with pytest.raises(RuntimeError):
        lab.call("time.sleep(30)")
    assert lab.end["output"].startswith(
        "exceeded its limit, [callbacks] callback_execution_timeout, while it ran"
    )


def test_an_end_that_cannot_be_told_changes_nothing_for_the_executor(lab):
    lab.answer(f"units/{lab.leader}/ended", httpx.Response(503))
    assert lab.call("pass") == 0
    with pytest.raises(RuntimeError, match="exited with code 1"):
        lab.call("raise ValueError")
    assert lab.api.ends == {}


# What is not ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, json={"ours": False}),
        httpx.Response(200, text="what"),
        httpx.Response(404, json={"detail": "Not Found"}),
        refusal(400, "unknown_protocol"),
        httpx.Response(422, json={"detail": []}),
        httpx.Response(503),
        httpx.ConnectError("down"),
    ],
    ids=["not ours", "gibberish", "no such call", "another protocol", "not understood", "failing", "away"],
)
def test_where_nobody_counts_on_it_it_runs_as_in_airflow(lab, answer):
    """Another token is not asked for, and nothing is told of it."""
    lab.answer("attempt", answer)
    assert lab.call(RAN.format(path=str(lab.path / "ran"))) == 0
    with pytest.raises(RuntimeError, match="exited with code 1"):
        lab.call(RAN.format(path=str(lab.path / "ran")) + "\nraise ValueError")
    assert (lab.path / "ran").read_text() == "ran\nran\n"
    assert lab.told == []
    assert set(lab.api.tokens) == {"workload-token"}


def test_with_the_mode_off_nothing_is_asked(lab, monkeypatch):
    monkeypatch.setenv("AIRFLOW__CALLBACK_PRIORITY__MODE", "shadow")
    assert lab.call("pass") == 0
    assert lab.api.requests == []


def test_an_airflow_that_is_not_known_runs_it_as_it_is(lab, monkeypatch, caplog):
    from callback_priority import compat

    monkeypatch.setattr(compat, "differences", lambda _known: ["wait is not the code"])
    assert [lab.call("pass"), lab.call("pass")] == [0, 0]
    assert (
        caplog.text.count("claims no callbacks that Airflow calls on this worker: wait is not the code") == 1
    )
    assert lab.api.requests == []


def test_this_airflow_is_known():
    from callback_priority import compat
    from callback_priority.worker import hook

    hook.uninstall()
    assert compat.differences(compat.ATTEMPT_TARGETS) == []


@pytest.mark.parametrize("answer", [refusal(409, OVER), refusal(409, "refused"), refusal(403, "forbidden")])
def test_a_delivery_that_comes_too_late_does_not_run(lab, answer):
    from callback_priority.worker.calls import StartRefusedError

    lab.answer("attempt", answer)
    with pytest.raises(StartRefusedError, match="so it is"):
        lab.call(RAN.format(path=str(lab.path / "ran")))
    assert not (lab.path / "ran").exists()
    assert lab.told == []


def test_what_is_taken_back_before_it_begins_does_not_run(lab):
    from callback_priority.worker.calls import StartRefusedError

    lab.api.refuse_running[lab.leader] = 409
    with pytest.raises(StartRefusedError, match="taken back before it began"):
        lab.call(RAN.format(path=str(lab.path / "ran")))
    assert not (lab.path / "ran").exists()
    assert lab.api.ends == {}


def test_what_was_claimed_does_not_begin_before_that_is_known(lab):
    """Another worker will be given it, and it must not run twice for that."""
    lab.answer(f"units/{lab.leader}/running", httpx.Response(503))
    with pytest.raises(httpx.HTTPStatusError):
        lab.call(RAN.format(path=str(lab.path / "ran")))
    assert not (lab.path / "ran").exists()


# Two deliveries ---------------------------------------------------------------------------------------------------


def test_while_another_worker_is_at_it_it_waits(lab):
    lab.answer("attempt", refusal(409, BUSY), refusal(409, BUSY), None)
    assert lab.call("pass") == 0
    assert lab.told == ["attempt", "running", "ended"]


def test_a_worker_that_waits_does_so_with_the_token_that_it_is_given(lab):
    """Its own may expire before the other worker is done."""
    renewed = refusal(409, BUSY)
    renewed.headers["Refreshed-API-Token"] = "workload-token-2"
    lab.answer("attempt", renewed, None)
    assert lab.call("pass") == 0
    assert list(dict.fromkeys(lab.api.tokens)) == ["workload-token", "workload-token-2", "run-token"]


def test_in_celery_a_second_delivery_leaves_no_trace(lab, monkeypatch):
    """Celery's executor in Airflow keeps no result of a delivery that ends in this error."""
    from airflow.sdk.exceptions import TaskAlreadyRunningError

    monkeypatch.setitem(sys.modules, "celery", SimpleNamespace(current_task=SimpleNamespace(id="1")))
    lab.answer("attempt", refusal(409, BUSY))
    with pytest.raises(TaskAlreadyRunningError):
        lab.call("pass")
    monkeypatch.setitem(sys.modules, "celery", SimpleNamespace(current_task=None))
    lab.answer("attempt", refusal(409, BUSY), refusal(409, BUSY), None)
    assert lab.call("pass") == 0


# Heartbeats -------------------------------------------------------------------------------------------------------


def test_while_it_runs_the_server_hears_that_the_worker_is_there(lab, quick):
    assert lab.call("time.sleep(1.2)") == 0
    assert 2 <= len(lab.api.beats) <= 8
    assert all(beat == [str(lab.leader)] for beat in lab.api.beats)


def test_a_server_that_is_away_for_a_while_is_survived(lab, quick):
    lab.answer("heartbeat", httpx.Response(503), httpx.ConnectError("down"), httpx.ReadTimeout("slow"), None)
    assert lab.call("time.sleep(1.5)") == 0
    assert lab.end["state"] == "success"
    assert lab.api.beats
    assert len([path for _, path in lab.api.requests if path.endswith("heartbeat")]) <= 9


def test_a_server_that_knows_no_heartbeats_is_asked_once(lab, quick):
    lab.answer("heartbeat", httpx.Response(404, json={"detail": "Not Found"}))
    assert lab.call("time.sleep(0.8)") == 0
    assert len([path for _, path in lab.api.requests if path.endswith("heartbeat")]) == 1
    assert lab.end["state"] == "success"


@pytest.mark.parametrize("status", [409, 404])
def test_what_was_taken_back_is_stopped_with_all_it_started_and_nothing_is_told(lab, quick, status):
    from airflow.sdk.exceptions import TaskAlreadyRunningError

    from callback_priority.worker.calls import TakenBackError

    pids = lab.path / "pids"

    def taken_back_when_it_runs(_request: httpx.Request) -> httpx.Response:
        return refusal(status, "refused") if pids.exists() and pids.read_text() else httpx.Response(204)

    lab.api.answers["POST", f"{PREFIX}/callbacks/{lab.leader}/heartbeat"] = taken_back_when_it_runs
    began = time.monotonic()
    with pytest.raises(TakenBackError) as raised:
        lab.call(
            f"""
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            child = subprocess.Popen(["sleep", "60"])
            open({str(pids)!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
            time.sleep(60)
            """
        )
    assert time.monotonic() - began < 15
    assert isinstance(raised.value, TaskAlreadyRunningError)
    assert lab.told == ["attempt", "running"]
    for pid in pids.read_text().split():
        assert _ends(int(pid))


def _ends(pid: int) -> bool:
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_two_attempts_in_threads_of_one_process_do_not_meet(lab, quick, monkeypatch):
    """Not when Airflow's code is looked at, either: the first has a class replaced once it has looked."""
    from callback_priority import compat

    first, second = lab, Lab(lab.path)
    failed = []
    real, looks = compat.differences, itertools.count()

    def slower_each_time(targets):
        time.sleep(0.3 * next(looks))
        return real(targets)

    monkeypatch.setattr(compat, "differences", slower_each_time)

    def run(one: Lab, body: str) -> None:
        try:
            one.call(body)
        except RuntimeError as error:
            failed.append(error)

    threads = [
        threading.Thread(target=run, args=(first, "time.sleep(0.8)")),
        threading.Thread(target=run, args=(second, "time.sleep(0.5)\nraise ValueError('mine')")),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert first.end["state"] == "success"
    assert second.end["output"] == "ValueError: mine"
    assert len(failed) == 1
    assert {unit for beat in first.api.beats for unit in beat} == {str(first.leader)}
    assert json.loads(json.dumps(second.api.beats))
