"""The scenario that ``simulate`` and ``tune`` are given."""

from __future__ import annotations

import attrs
import pytest

from callback_priority.cli.main import main
from callback_priority.cli.scenarios import no_such_scenario, scenario_of
from callback_priority.errors import ConfigurationError
from callback_priority.simulation.library import named_scenario, scenario_names, scenario_text

COMMANDS = pytest.mark.parametrize(
    ("command", "more"), [("simulate", []), ("tune", ["--goal", "deadline p95 <= 1 s"])]
)


@COMMANDS
def test_a_name_that_there_is_not_is_answered_with_those_that_there_are(command, more, capsys):
    assert main([command, "contentoin", *more]) == 2
    err = capsys.readouterr().err
    assert f"callback-priority {command}: error: no such scenario, and no such file: 'contentoin'" in err
    assert f"did you mean 'contention'? There are: {', '.join(scenario_names())}" in err


@COMMANDS
@pytest.mark.parametrize("seconds", ["0", "nan", "40000000"])
def test_a_time_to_watch_that_makes_no_sense_is_wrong_usage(command, more, seconds, capsys):
    assert main([command, "contention", *more, "--seconds", seconds]) == 2
    assert f"--seconds: {seconds!r}: write a number of seconds from 1 to 31622400" in capsys.readouterr().err


def test_a_file_counts_where_files_do(tmp_path):
    path = tmp_path / "mine.toml"
    assert "no such file" in no_such_scenario(str(path))
    path.write_text(scenario_text("contention"))
    assert no_such_scenario(str(path)) == ""
    assert no_such_scenario(str(path), files=False).startswith("no such scenario comes along: '")


def test_it_is_watched_for_as_long_as_it_says_unless_told_otherwise(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(scenario_text("contention"))
    as_it_is = named_scenario("contention")
    assert scenario_of("contention", None) == as_it_is
    assert scenario_of("contention", 60.0).scenario == attrs.evolve(as_it_is.scenario, seconds=60.0)
    assert scenario_of(str(path), 60.0).scenario.seconds == 60.0


def test_a_file_that_is_no_scenario_is_refused(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("secnds = 3\n")
    with pytest.raises(ConfigurationError, match="did you mean 'seconds'"):
        scenario_of(str(path), None)
    with pytest.raises(FileNotFoundError):
        scenario_of(str(tmp_path / "none.toml"), None)
