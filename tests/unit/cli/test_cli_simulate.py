"""``callback-priority simulate``."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from callback_priority.cli.main import main
from callback_priority.cli.progress import Progress
from callback_priority.simulation.library import scenario_names

MINE = """
description = "Mine."
seconds = 300
slots = 4

[[work]]
name = "tasks"
class = "task"
arrivals = { kind = "endless" }
holds = { kind = "exponential", mean_seconds = 30 }

[[work]]
name = "alerts"
class = "deadline"
dags = 3
arrivals = { kind = "poisson", per_second = 0.3 }
holds = { kind = "exponential", mean_seconds = 3 }

[settings."tasks first"]
policy = "tasks_first"

[settings.fair]
policy = "fair"
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    return str(path)


def documents(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_tables_tell_what_each_class_got(mine, capsys):
    assert main(["simulate", mine, "--seeds", "3", "--dags"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("mine: Mine.\n5m00s, 4 slots, 3 seeds; means with their 0.99 confidence\n")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    never = next(line for line in lines if line.startswith("tasks first deadline never never never never"))
    assert "±" in never
    for header in (
        "wait p50",
        "while these waited",
        "Dag that waited longest",
        "bound",
        "against tasks first",
    ):
        assert header in out


def test_one_seed_has_no_intervals(mine, capsys):
    assert main(["simulate", mine, "--seeds", "1"]) == 0
    out = capsys.readouterr().out
    assert "±" not in out
    assert "confidence" not in out


def test_a_report_is_written(mine, tmp_path, capsys):
    report = tmp_path / "report.html"
    assert main(["simulate", mine, "--seeds", "2", "--report", str(report)]) == 0
    assert f"report: {report}" in capsys.readouterr().err
    assert "<h1>" in report.read_text(encoding="utf-8")
    assert main(["simulate", mine, "--seeds", "1", "--report", str(tmp_path / "no" / "folder.html")]) == 1
    assert "No such file or directory" in capsys.readouterr().err


def test_json_is_the_same_whatever_the_number_of_jobs(mine, capsys):
    assert main(["simulate", mine, "--seeds", "2", "--first-seed", "7", "--json"]) == 0
    (alone,) = documents(capsys)
    assert main(["simulate", mine, "--seeds", "2", "--first-seed", "7", "--json", "--jobs", "2"]) == 0
    assert documents(capsys) == [alone]
    assert alone["seeds"] == [7, 8]


def test_several_scenarios_give_an_object_each(mine, capsys):
    assert main(["simulate", mine, "contention", "--seconds", "60", "--seeds", "1", "--json"]) == 0
    first, second = documents(capsys)
    assert (first["scenario"]["name"], second["scenario"]["name"]) == ("mine", "contention")
    assert first["scenario"]["seconds"] == 60


def test_settings_given_come_after_the_scenarios_and_only_names_some(mine, tmp_path, capsys):
    cfg = tmp_path / "airflow.cfg"
    cfg.write_text(
        '[core]\nparallelism = 1\n[callback_priority]\nmode = active\nweights = {"task": 3}\n'
        'pool_quotas = {"etl": {"task": {"limit": 3}}}\ncallback_pool = {"deadline": "alerts"}\n'
    )
    section = tmp_path / "section"
    section.write_text("policy = callbacks_first\n")
    arguments = ["--settings", str(cfg), "--set", "dag_turn_seconds=5", "--settings", str(section)]
    arguments += ["--name", "both", "--settings", str(cfg), "--policy", "tasks_first", "--name", "none"]
    assert main(["simulate", mine, "--seeds", "1", "--json", *arguments]) == 0
    captured = capsys.readouterr()
    treatments = {each["name"]: each["settings"] for each in json.loads(captured.out)["treatments"]}
    assert list(treatments) == ["tasks first", "fair", "airflow", "section", "both", "none"]
    assert json.loads(treatments["airflow"]["weights"])["task"] == 3
    assert treatments["airflow"]["dag_turn_seconds"] == "5.0"
    assert treatments["section"] == {"policy": "callbacks_first"}
    assert treatments["both"]["policy"] == "tasks_first"
    assert treatments["none"] == {}
    assert "no pool 'etl'" in captured.err
    assert "not on 'alerts'" in captured.err
    assert main(["simulate", mine, "--seeds", "1", "--json", "--set", "mode=off", "--only", "given"]) == 0
    assert [each["name"] for each in documents(capsys)[0]["treatments"]] == ["given"]


def test_the_library_is_listed_and_shown(capsys, tmp_path):
    assert main(["simulate", "--list"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()] == list(scenario_names())
    assert main(["simulate", "contention", "--show"]) == 0
    copy = tmp_path / "copy.toml"
    copy.write_text(capsys.readouterr().out)
    assert main(["simulate", str(copy), "--seconds", "60", "--seeds", "1"]) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["contentoin"],
        ["--list", "contention"],
        ["contention", "--seeds", "0"],
        ["contention", "--seeds", "many"],
        ["contention", "--seconds", "nan"],
        ["contention", "--confidence", "1"],
        ["contention", "--policy", "fare"],
        ["contention", "--set", "weights"],
        ["contention", "--set", "wieghts={}"],
        ["contention", "contention-flood", "--report", "x.html"],
        ["mine.toml", "--show"],
    ],
)
def test_wrong_usage_ends_2(arguments, capsys):
    assert main(["simulate", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage: callback-priority simulate" in captured.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--only", "fairr"], "did you mean 'fair'?"),
        (["--name", "fair"], "is the name of two"),
        (["--set", 'weights={"taks": 1}'], "no such service class"),
        (["--set", 'slot_quotas={"task": {"reserve": 9}}'], "slot_quotas"),
        (["--settings", "/nowhere/airflow.cfg"], "No such file or directory: /nowhere/airflow.cfg"),
        (["--settings", __file__], "cannot be understood"),
    ],
)
def test_settings_that_cannot_be_used_end_1(mine, arguments, says, capsys):
    assert main(["simulate", mine, *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err


def test_a_file_without_the_section_is_refused(mine, tmp_path, capsys):
    path = tmp_path / "airflow.cfg"
    path.write_text("[core]\nparallelism = 3\n")
    assert main(["simulate", mine, "--settings", str(path)]) == 1
    assert "add the section" in capsys.readouterr().err


def test_it_needs_neither_airflow_nor_a_database_nor_plots(mine):
    program = (
        "import sys\n"
        "from callback_priority.cli.main import main\n"
        f"assert main(['simulate', {mine!r}, '--seeds', '2']) == 0\n"
        "heavy = {'airflow', 'sqlalchemy', 'alembic', 'matplotlib', 'numpy', 'scipy', 'optuna'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
    )
    result = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_progress_is_told_on_standard_error_of_long_runs_only(capsys):
    now = 0.0
    with Progress(wanted=True, clock=lambda: now) as progress:
        for step in range(1, 101):
            now = step / 10
            progress(step / 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(" 20% in 2.0s, about 8.0s to go")
    assert lines[-1].startswith("100%")
    assert len(lines) == 9


def test_without_a_terminal_there_is_no_progress_unless_asked_for(mine, capsys):
    assert main(["simulate", mine, "--seeds", "1"]) == 0
    assert capsys.readouterr().err == ""
    quiet = Progress(clock=iter(range(0, 1000, 10)).__next__)
    quiet(0.5)
    assert capsys.readouterr().err == ""
