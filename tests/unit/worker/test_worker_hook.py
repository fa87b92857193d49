"""Which callbacks the worker side takes over, and what it leaves as it is."""

from __future__ import annotations

import subprocess
import sys

import pytest

from callback_priority import compat
from callback_priority.protocol import ENTRY
from callback_priority.worker import entry, hook


@pytest.fixture
def calls(monkeypatch):
    """What is called instead of the two supervisors; the hook is in."""
    from airflow.sdk.execution_time import callback_supervisor

    from callback_priority.worker import supervisor

    made = []
    hook.uninstall()
    monkeypatch.setattr(
        callback_supervisor, "supervise_callback", lambda **kwargs: made.append(("theirs", kwargs)) or 1
    )
    monkeypatch.setattr(supervisor, "supervise", lambda **kwargs: made.append(("ours", kwargs)) or 0)
    monkeypatch.setattr(compat, "differences", lambda _known: [])
    hook.install()
    yield made
    hook.uninstall()


def run(path: str) -> int:
    from airflow.sdk.execution_time.callback_supervisor import supervise_callback

    return supervise_callback(id="1", callback_path=path, callback_kwargs={}, dag_rel_path="d.py", token="t")


def test_a_routed_callback_is_ours_and_any_other_is_airflows(calls):
    assert run(ENTRY) == 0
    assert run("mail.tell") == 1
    assert [whose for whose, _ in calls] == ["ours", "theirs"]
    assert calls[0][1]["token"] == "t"


def test_it_goes_in_once_and_comes_out_again(calls):
    from airflow.sdk.execution_time import callback_supervisor

    inside = callback_supervisor.supervise_callback
    hook.install()
    assert callback_supervisor.supervise_callback is inside
    hook.uninstall()
    assert callback_supervisor.supervise_callback is not inside
    assert run(ENTRY) == 1


def test_an_airflow_that_is_not_known_runs_as_it_is_and_it_is_said_once(calls, monkeypatch, caplog):
    monkeypatch.setattr(compat, "differences", lambda _known: ["supervise_callback is not the code"])
    assert [run(ENTRY), run(ENTRY)] == [1, 1]
    assert caplog.text.count("runs no callbacks on this worker: supervise_callback is not the code") == 1


def test_this_airflow_is_known():
    hook.uninstall()
    assert compat.differences(compat.RUNTIME_TARGETS) == []
    assert compat.differences(compat.KILLED_TARGETS) == []


def test_another_airflow_is_not(monkeypatch):
    known = compat.Target(module="json", owner="JSONDecoder", name="decode", known=frozenset({"0"}))
    gone = compat.Target(module="json", owner="", name="nowhere", known=frozenset())
    first, second = compat.differences([known, gone])
    assert "JSONDecoder.decode is not the code" in first
    assert "json.nowhere cannot be read" in second


def test_without_the_hook_a_routed_callback_fails_and_says_why():
    from airflow.sdk.execution_time.callback_supervisor import execute_callback

    class Quiet:
        def __getattr__(self, _name):
            return lambda *_args, **_kwargs: None

    done, message = execute_callback(ENTRY, {"anything": 1}, "d.py", None, Quiet())
    assert not done
    assert "did not take the callback over" in message
    assert f"{entry.run.__module__}.{entry.run.__qualname__}" == ENTRY


def test_the_hook_imports_nothing_of_airflows():
    code = (
        "import sys, callback_priority.worker.hook as hook; hook.install();"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'airflow'], sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("active", [False, True])
def test_what_a_callback_raises_does_not_have_it_run_once_more(monkeypatch, active):
    calls = []

    def original():
        calls.append(1)
        raise ValueError("on purpose")

    monkeypatch.setattr(hook, "_is_active", lambda: active)
    monkeypatch.setattr(hook, "_attempts_are_known", lambda: False)
    with pytest.raises(ValueError, match="on purpose"):
        hook._attempt(original)
    assert len(calls) == 1
