"""The command line itself, without Airflow."""

from __future__ import annotations

import subprocess
import sys

import pytest

from callback_priority import __version__
from callback_priority.cli.main import main


def test_the_version_is_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"callback-priority {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["diagnose"], ["--jsn"], ["doctor", "--jso"], ["status", "extra"]])
def test_wrong_usage_ends_2_and_says_on_standard_error_what_there_is(arguments, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage: callback-priority" in captured.err


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon", "100000"])
def test_an_interval_that_makes_no_sense_is_wrong_usage(seconds, capsys):
    assert main(["status", f"--watch={seconds}"]) == 2
    assert "is not a number of seconds" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["doctor", "status"])
def test_each_command_explains_itself(command, capsys):
    assert main([command, "--help"]) == 0
    assert "Exit status:" in capsys.readouterr().out


def test_help_imports_neither_airflow_nor_sqlalchemy():
    """What makes ``--help`` and ``--version`` answer at once."""
    program = (
        "import sys\n"
        "from callback_priority.cli.main import main\n"
        "main(['--help'])\n"
        "assert not {'airflow', 'sqlalchemy', 'alembic'} & sys.modules.keys(), sorted(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
