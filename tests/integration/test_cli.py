"""``doctor`` and ``status`` in a real Airflow, as somebody meets them who has just installed it."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta

import pytest
import sqlalchemy as sa

from callback_priority.cli.main import main
from callback_priority.core.classes import SCHEDULER_SCOPE, FlowKey, Level, ServiceClass
from callback_priority.core.flows import FlowState
from callback_priority.core.units import MICROSECONDS, Milliweight, SlotMicros, seconds_to_micros
from callback_priority.persistence.flows import write_flows
from callback_priority.persistence.items import mark_done, park
from callback_priority.persistence.tables import VERSION_TABLE
from tests.support.commands import add_items, add_scheduler, grant, now
from tests.support.scheduler import Bench

ONLY_SQLITE = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
ONLY_POSTGRESQL = pytest.mark.parametrize("backend", ["postgresql"], indirect=True)


@pytest.fixture(autouse=True)
def _leave_airflow_as_it_was():
    """Loading Airflow's plugins in this process, as ``doctor`` does, may install the hook for good."""
    from callback_priority.adapter import hook

    was_installed = hook.installed()
    yield
    if not was_installed:
        hook.uninstall()


def run(environment, *arguments):
    """Run a command as a process of its own."""
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from callback_priority.cli.main import main; raise SystemExit(main())",
            *arguments,
        ],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )


@pytest.mark.contract
def test_a_migrated_airflow_with_the_mode_set_passes_every_check(
    airflow_database, database, configure, doctor
):
    configure(mode="active")
    add_scheduler(database, 1)
    status, checks = doctor()
    assert status == 0
    assert {name: each["status"] for name, each in checks.items()} == dict.fromkeys(checks, "OK")
    assert checks["database"]["values"]["dialect"] == sa.make_url(airflow_database).get_backend_name()
    assert checks["tables"]["values"]["revision"] in checks["tables"]["values"]["heads"]
    assert checks["executors"]["values"]["can_run_callbacks"] == ["LocalExecutor"]
    assert checks["slots"]["values"] == {"parallelism": 32, "schedulers": 1}
    assert checks["mode"]["values"] == {"mode": "active"}


@ONLY_SQLITE
def test_looking_leaves_airflows_methods_in_place(airflow_database, configure, doctor):
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner

    from callback_priority.adapter import hook

    hook.uninstall()
    before = SchedulerJobRunner._do_scheduling
    configure(mode="active")
    _, checks = doctor()
    assert checks["hook"]["found"].endswith("installs")
    assert SchedulerJobRunner._do_scheduling is before


@ONLY_SQLITE
def test_mode_off_is_a_warning_that_says_how_to_switch_it_on(airflow_database, doctor):
    status, checks = doctor()
    assert status == 0
    assert checks["mode"]["status"] == "WARN"
    assert "`[callback_priority] mode`" in checks["mode"]["remedy"]
    assert checks["schedulers"]["status"] == "WARN"


@pytest.mark.contract
def test_missing_tables_fail_with_the_command_that_makes_them(database, configure, doctor):
    for name in ("callback_priority_item", "callback_priority_flow", VERSION_TABLE):
        database.exec_driver_sql(f"DROP TABLE {name}")
    configure(mode="active")
    status, checks = doctor()
    assert status == 1
    assert checks["tables"]["status"] == "FAIL"
    assert checks["tables"]["remedy"] == "run `airflow db migrate`"
    assert checks["tables"]["values"]["missing"] == ["callback_priority_flow", "callback_priority_item"]
    assert checks["configuration"]["status"] == "OK"
    assert (checks["mode"]["status"], checks["mode"]["remedy"]) == ("FAIL", "mend what failed: tables")


@pytest.mark.parametrize(
    ("revision", "remedy"), [(None, "migrate"), ("ffffffffffff", "install that version")]
)
@ONLY_SQLITE
def test_another_revision_fails_and_says_whose_turn_it_is(database, doctor, revision, remedy):
    database.exec_driver_sql(f"DELETE FROM {VERSION_TABLE}")
    if revision:
        database.exec_driver_sql(f"INSERT INTO {VERSION_TABLE} VALUES ('{revision}')")
    status, checks = doctor()
    assert status == 1
    assert checks["tables"]["status"] == "FAIL"
    assert remedy in checks["tables"]["remedy"]


@ONLY_SQLITE
def test_every_problem_of_the_configuration_is_listed(airflow_database, configure, doctor):
    configure(
        mode="active",
        weigths="{}",
        slot_quotas='{"task": {"reserve": 40}}',
        callback_pool='{"deadline": "no_such_pool"}',
    )
    status, checks = doctor()
    assert status == 1
    problems = {each["key"] for each in checks["configuration"]["values"]["problems"]}
    assert {"weigths", "callback_pool.deadline"} <= problems
    assert any(key.startswith("slot_quotas") for key in problems)
    assert checks["mode"]["remedy"] == "mend what failed: configuration"


@ONLY_SQLITE
def test_an_airflow_that_the_hook_does_not_know_is_named(airflow_database, configure, doctor, monkeypatch):
    from callback_priority import compat

    monkeypatch.setattr(compat.targets, "airflow_version", lambda: "9.1.0")
    status, checks = doctor()
    assert (status, checks["hook"]["status"]) == (0, "WARN")
    configure(mode="shadow")
    status, checks = doctor()
    assert (status, checks["hook"]["status"]) == (1, "FAIL")
    assert "9.1.0" in checks["hook"]["details"][0]


def test_what_waits_for_somebody_is_warned_of(database, configure, doctor):
    """Left behind by dead schedulers, set aside, and never noticed."""
    configure(mode="active")
    add_scheduler(database, 1)
    add_scheduler(database, 2, heartbeat_ago=3600)
    add_scheduler(database, 3, state="success")
    ids = add_items(database, 9)
    grant(database, ids[:2], 1)
    grant(database, ids[2:4], 2)
    grant(database, ids[4:5], 3)
    grant(database, ids[5:6], 404)
    park(
        database,
        ids[6:8],
        now=now(),
        retry_at=now() + timedelta(minutes=1),
        reason="executor Celery is missing",
    )
    Bench().callbacks(3)
    status, checks = doctor()
    assert status == 0
    warned = {name for name, each in checks.items() if each["status"] == "WARN"}
    assert warned == {"dead schedulers", "parked", "strays"}
    assert checks["dead schedulers"]["values"]["callbacks"] == {"2": 2, "3": 1, "404": 1}
    assert checks["parked"]["values"]["reasons"] == {"executor Celery is missing": 2}
    assert checks["strays"]["values"]["callbacks"] == 3
    assert "restart the schedulers" in checks["strays"]["remedy"]


@ONLY_SQLITE
def test_a_scheduler_that_grants_nothing_while_callbacks_wait_is_worth_a_look(database, configure, doctor):
    """The breaker is open, or the hook is not there; or all slots are held, which only a person can tell."""
    configure(mode="active")
    add_scheduler(database, 1)
    add_items(database, 1, ago=30)
    assert doctor()[1]["activity"]["status"] == "OK", "it may have come up just now"
    add_items(database, 1, ago=600)
    assert doctor()[1]["activity"]["status"] == "WARN"
    write_flows(database, [flow(ServiceClass.TASK, 30)])
    assert doctor()[1]["activity"]["status"] == "OK"


@ONLY_SQLITE
def test_a_database_that_goes_away_meanwhile_is_one_more_failure(
    airflow_database, configure, doctor, monkeypatch
):
    from callback_priority.persistence import deployment

    def lose_it(*args, **kwargs):
        raise sa.exc.OperationalError("SELECT 1", {}, Exception("server closed the connection"))

    configure(mode="active")
    monkeypatch.setattr(deployment, "living_schedulers", lose_it)
    status, checks = doctor()
    assert status == 1
    assert "server closed the connection" in checks["database"]["found"]
    assert "database" in checks["mode"]["remedy"]


def environment_of(airflow_home, url=None, **options):
    return airflow_home.subprocess_environment(
        url, options={"callback_priority": options} if options else None
    )


@ONLY_POSTGRESQL
def test_an_unreachable_server_is_one_failure_without_traceback_or_password(airflow_home, backend):
    """What needs no database is checked all the same."""
    url = "postgresql+psycopg2://me:hush@127.0.0.1:9/air"
    result = run(environment_of(airflow_home, url, mode="active", slot_quotas='{"x": 1}'), "doctor")
    assert result.returncode == 1
    failures = [line for line in result.stdout.splitlines() if line.startswith("FAIL")]
    assert [line.split()[1] for line in failures] == ["database", "configuration", "mode"]
    assert "cannot be reached: postgresql air at 127.0.0.1:9" in failures[0]
    assert "Traceback" not in result.stdout + result.stderr
    assert "hush" not in result.stdout + result.stderr


@ONLY_SQLITE
def test_a_missing_file_is_not_made_by_looking(airflow_home, backend, tmp_path):
    path = tmp_path / "none.db"
    environment = environment_of(airflow_home, f"sqlite:///{path}")
    for command in ("doctor", "status"):
        result = run(environment, command)
        assert result.returncode == 1
        assert "does not exist" in result.stdout + result.stderr
        assert "Traceback" not in result.stdout + result.stderr
    assert not path.exists()


@ONLY_SQLITE
def test_an_empty_database_is_told_from_a_migrated_one(airflow_home, backend, tmp_path):
    path = tmp_path / "empty.db"
    path.touch()
    environment = environment_of(airflow_home, f"sqlite:///{path}")
    found = run(environment, "doctor")
    assert found.returncode == 1
    assert "Airflow's tables are missing" in found.stdout
    assert "airflow db migrate" in found.stdout
    shown = run(environment, "status")
    assert shown.returncode == 1
    assert shown.stdout == ""
    assert "airflow db migrate" in shown.stderr


@pytest.mark.contract
@ONLY_SQLITE
def test_standard_output_is_ours_alone(airflow_home, migrated_database):
    """Airflow logs to standard output while it loads and connects; the JSON stands alone all the same."""
    environment = environment_of(airflow_home, migrated_database, mode="active")
    environment["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "DEBUG"
    result = run(environment, "doctor", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["status"] == "WARN"
    aloud = run(environment, "status", "--json", "--verbose")
    assert json.loads(aloud.stdout)["mode"] == "active"


@ONLY_SQLITE
def test_an_airflow_that_cannot_be_loaded_is_one_failure(airflow_home, backend):
    result = run(environment_of(airflow_home, "nonsense://nowhere"), "doctor", "--json")
    assert result.returncode == 1
    report = json.loads(result.stdout)
    assert [each["check"] for each in report["checks"] if each["status"] == "FAIL"] == ["airflow"]
    assert result.stderr == ""


def flow(service_class, seconds, level=Level.SCHEDULER, scope=SCHEDULER_SCOPE):
    return FlowState(
        key=FlowKey(level, scope, service_class),
        weight=Milliweight(1000),
        estimate=SlotMicros(1),
        recent=seconds_to_micros(seconds),
        recent_at=int(now().timestamp() * MICROSECONDS),
    )


@pytest.mark.contract
def test_status_shows_what_each_class_waits_for_holds_and_got(airflow_database, database, configure, call):
    configure(mode="active", weights='{"task": 3}', slot_quotas='{"deadline": {"reserve": 2, "limit": 8}}')
    add_scheduler(database, 1)
    add_scheduler(database, 2, heartbeat_ago=3600)
    Bench().pool("etl", 16)
    Bench().tasks(5, pool="etl", width=2)
    database.execute(
        sa.text("UPDATE task_instance SET state = 'running' WHERE task_id IN ('task_0', 'task_1', 'task_2')")
    )
    done = add_items(database, 4, ago=100)
    grant(database, done, 1)
    mark_done(database, done, now())
    ids = add_items(database, 10, ago=60)
    grant(database, ids[:3], 1)
    grant(database, ids[3:4], 2)
    park(database, ids[4:5], now=now(), retry_at=now() + timedelta(minutes=1), reason="executor is missing")
    write_flows(
        database,
        [
            flow(ServiceClass.TASK, 30),
            flow(ServiceClass.DEADLINE, 10),
            flow(ServiceClass.TASK, 30, Level.POOL, "etl"),
            flow(ServiceClass.DEADLINE, 10, Level.POOL, "default_pool"),
        ],
    )

    status, shown = call("status")
    assert status == 0
    assert (shown["mode"], shown["policy"], shown["schedulers"], shown["parallelism"]) == (
        "active",
        "fair",
        1,
        32,
    )
    classes = {each["service_class"]: each for each in shown["classes"]}
    task, deadline = classes["task"], classes["deadline"]
    assert (task["waiting"], task["held"], task["weight"]) == (2, 3, 3.0)
    assert (deadline["waiting"], deadline["parked"], deadline["held"]) == (5, 1, 3), "the dead hold nothing"
    assert (task["recent_share"], deadline["recent_share"]) == pytest.approx((0.75, 0.25), abs=1e-3)
    assert (task["entitled_share"], deadline["entitled_share"]) == (0.75, 0.25)
    assert (deadline["reserve_slots"], deadline["limit_slots"]) == (2, 8)
    assert deadline["oldest_wait_seconds"] == pytest.approx(60, abs=20)
    assert deadline["finished"] == 4
    assert deadline["wait_p95_seconds"] == pytest.approx(100, abs=20)
    pools = {each["pool"]: each for each in shown["pools"]}
    assert [(each["service_class"], each["held"]) for each in pools["etl"]["classes"]] == [("task", 6)]
    assert pools["etl"]["slots"] == 16
    assert [each["service_class"] for each in pools["default_pool"]["classes"]] == ["deadline"]
    assert pools["default_pool"]["classes"][0]["entitled_share"] == 1.0


@ONLY_SQLITE
def test_status_as_text_has_one_row_for_each_class_and_pool(airflow_database, database, configure, capsys):
    configure(mode="active")
    add_items(database, 2, ago=200, pool="gone")
    assert main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("mode active, policy fair; 0 schedulers alive, 32 slots each; ")
    header = next(line for line in lines if line.startswith("class"))
    row = next(line for line in lines if line.startswith("deadline"))
    assert len(header.split()) == len(row.split())
    assert row.split()[2] == "2"
    assert any(line.split()[:3] == ["gone", "gone", "deadline"] for line in lines)


@ONLY_SQLITE
def test_status_works_with_mode_off_and_says_so(airflow_database, call):
    Bench().callbacks(2)
    status, shown = call("status")
    assert status == 0
    assert shown["pending_without_item"] == 2
    assert any("mode is off" in note for note in shown["notes"])


@ONLY_SQLITE
def test_status_with_an_invalid_configuration_shows_what_it_can(airflow_database, configure, call):
    configure(mode="perhaps")
    status, shown = call("status")
    assert status == 0
    assert any("doctor" in note for note in shown["notes"])


@ONLY_SQLITE
def test_watching_shows_it_again_until_interrupted(airflow_database, capsys, monkeypatch):
    pauses = iter([None, None])

    def sleep(seconds):
        assert seconds == 5
        if next(pauses, "over") == "over":
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", sleep)
    assert main(["status", "--watch", "5", "--json"]) == 130
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["mode"] for line in lines] == ["off"] * 3
