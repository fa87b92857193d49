"""``callback-priority lint``, without Airflow."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from callback_priority.cli.main import main

SECTION = """
[core]
parallelism = 8

[callback_priority]
slot_quotas = {"deadline": {"reserve": 2}}
"""
HOLDS = '{"task": 899, "deadline": 29}'


@pytest.fixture
def given(tmp_path):
    """Write the files; returns the arguments that name them."""

    def write(config=SECTION, pools='{"default_pool": 128, "endless": -1}'):
        (tmp_path / "airflow.cfg").write_text(config)
        (tmp_path / "pools.json").write_text(pools)
        return ["lint", "--config", str(tmp_path / "airflow.cfg"), "--pools", str(tmp_path / "pools.json")]

    return write


def answer(capsys, arguments):
    status = main([*arguments, "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_sound_settings_end_0_with_guarantees_and_waits(given, capsys):
    status, found = answer(capsys, [*given(), "--holds", HOLDS])
    assert status == 0
    assert found["problems"] == []
    assert found["deployment"]["slots"] == 8
    assert {each["service_class"]: each["slots"] for each in found["guarantees"] if not each["scope"]} == {
        "deadline": 4.0,
        "task": 4.0,
    }
    waits = {(each["service_class"], each["pool"]): each for each in found["waits"]}
    assert waits["deadline", "default_pool"]["seconds"] == 31
    assert waits["task", "endless"]["basis"] == "turn"


def test_every_problem_is_told_at_once_and_ends_1(given, capsys):
    quotas = '{"etl": {"deadline": {"limit": 1}}, "*": {"task": {"limit": 0}}}'
    config = (
        f'[callback_priority]\nslot_quotas = {{"dag_callback": {{"reserve": 40}}}}\npool_quotas = {quotas}\n'
    )
    status, found = answer(capsys, given(config))
    assert status == 1
    keys = {each["key"] for each in found["problems"]}
    assert keys >= {
        "pool_quotas['etl']",
        "pool_quotas['*'].task.limit",
        "slot_quotas, reserves together",
        "slot_quotas.dag_callback.reserve",
    }


@pytest.mark.parametrize(
    ("config", "pools", "key"),
    [
        ("[callback_priority]\nweights = {'task': 1}\n", "{}", "weights"),
        ("[core]\nparallelism = 3\n", "{}", "callback_priority"),
        (SECTION, '{"etl": "many"}', "etl"),
    ],
)
def test_what_cannot_be_understood_is_a_problem_too(given, capsys, config, pools, key):
    status, found = answer(capsys, given(config, pools))
    assert status == 1
    assert [each["key"] for each in found["problems"]] == [key]


def test_a_file_that_is_not_there_ends_1(given, capsys, tmp_path):
    given()
    arguments = ["lint", "--config", str(tmp_path / "none.cfg"), "--pools", str(tmp_path / "pools.json")]
    assert main(arguments) == 1
    assert "none.cfg" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more",
    [
        ["--holds", "900"],
        ["--holds", '{"tasks": 900}'],
        ["--holds", '{"task": -1}'],
        ["--holds", '{"task": true}'],
        ["--holds", HOLDS, "--observed"],
        ["--slots", "0"],
        ["--loop-seconds", "-1"],
    ],
)
def test_wrong_usage_ends_2(given, capsys, more):
    assert main([*given(), *more]) == 2
    assert capsys.readouterr().out == ""


def test_people_get_tables_and_the_reason_of_each_wait_without_a_bound(given, capsys):
    assert main([*given(pools='{"default_pool": {"slots": 4, "widest": 9}}'), "--holds", HOLDS]) == 1
    out = capsys.readouterr().out
    assert "schedulers         deadline       1        2      -" in out
    assert "- deadline in default_pool, task in default_pool: task instances of the pool are wider" in out
    assert "FAIL  pool 'default_pool', widest task instance = 9" in out
    assert out.endswith("1 problem\n")


def test_airflow_is_not_loaded_where_all_is_given(given):
    code = "import sys; from callback_priority.cli.main import main; main(sys.argv[1:]); sys.exit('airflow' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code, *given()], check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
