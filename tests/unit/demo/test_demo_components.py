"""Whatever the demo starts is stopped again, and one that ends by itself is named."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from callback_priority.demo.components import ComponentDiedError, Components
from callback_priority.demo.load import make_load
from callback_priority.demo.surroundings import Home, free_ports

NESTED = """
import ctypes, os, signal, subprocess, sys, time
from callback_priority.demo import components
components.adopt_orphans()
child = subprocess.Popen(
    [sys.executable, "-c", '''
import os, subprocess, sys, time
# A grandchild in a session of its own, then an end that leaves it an orphan.
subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
                  "print('up', flush=True); time.sleep(600)"], start_new_session=True)
time.sleep(0.2)
'''], stdout=subprocess.PIPE)
assert child.stdout.readline() == b"up\\n"
child.wait()
before = [process.pid for process in components.descendants()]
components.end_descendants()
after = [process.pid for process in components.descendants()]
print(len(before), len(after))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lets a process adopt orphans")
def test_an_orphan_that_left_its_group_and_ignores_requests_is_ended_too():
    """In a process of its own: adopting orphans is for good."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(NESTED)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stdout.split() == ["1", "0"]


def test_a_component_that_ends_is_named_with_the_end_of_its_log(tmp_path):
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path)}
    with Components(environment=environment, log_directory=tmp_path) as components:
        components.start("the-one", ["config", "get-value", "core", "no-such-option"])
        component = components.named("the-one")
        component.process.wait(timeout=60)
        with pytest.raises(ComponentDiedError, match=r"the-one ended with status 0(.|\n)*no-such-option"):
            components.check()


def test_what_ran_before_is_left_alone(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        with Components(environment=dict(os.environ), log_directory=tmp_path) as components:
            components.start("the-one", ["version"])
        assert bystander.poll() is None
        bystander.communicate(b"\n")
    assert bystander.returncode == 0


def test_the_environment_has_nothing_of_the_callers_airflow(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv("AIRFLOW__SMTP__SMTP_HOST", "mail.example.com")
    environment = Home(path=tmp_path).environment("stock", "off", make_load(1), ports=free_ports())
    assert environment["AIRFLOW__CORE__EXECUTOR"] == "LocalExecutor"
    assert environment["AIRFLOW__CALLBACK_PRIORITY__MODE"] == "off"
    assert "AIRFLOW__SMTP__SMTP_HOST" not in environment
    assert environment["AIRFLOW_HOME"] == str(tmp_path)
