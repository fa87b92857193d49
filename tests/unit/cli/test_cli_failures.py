"""What a command says that cannot do its work, and when it says nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from callback_priority.cli.failures import FAILED, CommandError, told
from callback_priority.cli.main import main
from callback_priority.errors import ConfigurationError, MissingExtraError, Problem


def raising(error):
    def body():
        raise error

    return body


def test_what_the_body_returns_is_the_exit_status(capsys):
    assert [told("status", lambda status=status: status) for status in (0, 1, 2)] == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            CommandError("tables are missing: a", "run `airflow db migrate`"),
            "tables are missing: a\n  -> run `airflow db migrate`\n  -> `callback-priority doctor` checks the rest",
        ),
        (
            ConfigurationError([Problem(key="mode", value="on", remedy="write active")]),
            "[callback_priority] has 1 problem(s):\n  - mode = 'on': write active",
        ),
        (
            MissingExtraError("tune", "Optuna", "simulation"),
            "tune needs Optuna, which is not installed here: pip install 'callback-priority[simulation]'",
        ),
        (FileNotFoundError(2, "No such file or directory", "x.cfg"), "No such file or directory: x.cfg"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("the disk is gone"), "the disk is gone"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_what_went_wrong_is_told_once_on_standard_error(error, says, capsys):
    assert told("tune", raising(error)) == FAILED
    assert capsys.readouterr() == ("", f"callback-priority tune: {says}\n")


@pytest.mark.parametrize(
    "error", [BrokenPipeError(32, "Broken pipe"), KeyboardInterrupt(), ValueError("a bug")]
)
def test_what_is_no_failure_of_the_command_passes(error, capsys):
    with pytest.raises(type(error)):
        told("simulate", raising(error))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["simulate", "none.toml", "--settings", "{folder}"],
        ["tune", "{folder}", "--goal", "deadline p95 <= 1 s"],
        ["lint", "--config", "{folder}", "--pools", "{folder}"],
        ["replay", "--database", "none.db", "--active", "{folder}"],
    ],
)
def test_a_folder_in_place_of_a_file_is_told_of_alike(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none.toml").mkdir()
    status = main([each.format(folder=tmp_path) for each in arguments])
    err = capsys.readouterr().err
    assert status == 1
    assert err.startswith(f"callback-priority {arguments[0]}: ")
    assert "Errno" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["simulate", "contention", "--seconds", "30", "--seeds", "1", "--json"],
        ["simulate", "contention", "--show"],
        ["simulate", "--list"],
    ],
)
def test_a_reader_that_has_seen_enough_is_no_error(arguments):
    """As with ``| head``: nothing on standard error, not even from the interpreter's last flush."""
    reading, writing = os.pipe()
    os.close(reading)
    program = "import sys; from callback_priority.cli.main import main; sys.exit(main(sys.argv[1:]))"
    try:
        ran = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            check=False,
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    finally:
        os.close(writing)
    assert (ran.returncode, ran.stderr) == (1, "")
