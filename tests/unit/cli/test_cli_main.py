"""The command line itself, without Airflow."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from callback_priority import __version__
from callback_priority.cli import listing
from callback_priority.cli.main import COMMANDS, main
from callback_priority.cli.narrowing import Narrowing
from callback_priority.core.classes import ServiceClass
from callback_priority.core.kinds import KINDS
from callback_priority.persistence.status import STATES

NAMES = ["doctor", "status", "list", "show", "simulate", "tune", "replay", "lint"]


def test_the_version_is_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"callback-priority {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["diagnose"],
        ["--jsn"],
        ["doctor", "--jso"],
        ["status", "extra"],
        ["list", "--class", "task"],
        ["list", "--limit", "0"],
        ["list", "--limit", "many"],
        ["list", "--limit", "10001"],
        ["show"],
        ["show", ""],
        ["show", "0192-xyz"],
        ["show", "0" * 33],
    ],
)
def test_wrong_usage_ends_2_and_says_on_standard_error_what_there_is(arguments, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage: callback-priority" in captured.err


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon", "100000"])
def test_an_interval_that_makes_no_sense_is_wrong_usage(seconds, capsys):
    assert main(["status", f"--watch={seconds}"]) == 2
    assert (
        f"argument --watch: {seconds!r}: write a number of seconds from 0.1 to 86400"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("command", NAMES)
def test_each_command_explains_itself(command, capsys):
    assert main([command, "--help"]) == 0
    assert "Exit status:" in capsys.readouterr().out


def test_no_command_is_left_out_here():
    commands = argparse.ArgumentParser().add_subparsers()
    for command in COMMANDS:
        command.add_to(commands)
    assert list(commands.choices) == NAMES


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["status", "--class", "deadlines"],
            "no such service class 'deadlines'; did you mean 'deadline'? There are: ",
        ),
        (
            ["status", "--kind", "dag_fail"],
            "no such kind of callback 'dag_fail'; did you mean 'dag_failure'?",
        ),
        (["list", "--class", "task"], "no such service class 'task'"),
        (
            ["list", "--state", "queued"],
            "no such state 'queued'. There are: waiting, parked, granted, running, ",
        ),
    ],
)
def test_a_word_that_there_is_not_is_answered_with_those_that_there_are(arguments, says, capsys):
    assert main(arguments) == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_the_states_of_the_list_are_those_that_the_tables_know():
    """``--help`` does not wait for SQLAlchemy, so the words stand in two places."""
    assert listing.STATES == STATES


def test_nothing_named_is_everything_and_both_narrow():
    dag_failure = Narrowing(kinds=frozenset({"dag_failure"}))
    both = Narrowing(
        classes=frozenset({ServiceClass.TASK_CALLBACK}), kinds=frozenset({"dag_failure", "email_retry"})
    )
    assert all(Narrowing().shows(each) for each in ServiceClass)
    assert all(Narrowing().counts(each) for each in KINDS)
    assert Narrowing().counts("a kind of another version")
    assert [each for each in KINDS if dag_failure.counts(each)] == ["dag_failure"]
    assert [each for each in KINDS if both.counts(each)] == ["email_retry"]
    assert [each for each in ServiceClass if both.shows(each)] == [ServiceClass.TASK_CALLBACK]


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
