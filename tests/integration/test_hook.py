"""Installing the hook: when it goes in, when it stays out, and that it leaves no trace where it stays out."""

from __future__ import annotations

import inspect
import logging
import os
import textwrap

import pytest

from tests.support.airflow_env import run_airflow
from tests.support.scheduler import Bench, LoopExecutor, hooked, scheduler

pytestmark = pytest.mark.contract

ON_SQLITE = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)


@pytest.fixture(autouse=True)
def not_installed():
    """No test inherits the methods of another."""
    import airflow.jobs.scheduler_job_runner  # noqa: F401

    from callback_priority.adapter import hook

    assert not hook.installed()
    yield
    hook.uninstall()


@pytest.fixture
def option(monkeypatch):
    """Sets an option of the section."""

    def set_option(name: str, value: str) -> None:
        monkeypatch.setenv(f"AIRFLOW__CALLBACK_PRIORITY__{name.upper()}", value)

    return set_option


def methods() -> dict[str, object]:
    """What the hook replaces, as the classes have it now."""
    from callback_priority import compat

    return {name: target.cls.__dict__[name] for name, target in compat.replaced().items()}


def errors(caplog) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.ERROR and record.name.startswith("callback_priority")
    ]


# In ---------------------------------------------------------------------------------------------------------------


def test_it_goes_in_once_and_out_again(option):
    from callback_priority.adapter import hook

    stock = methods()
    option("mode", "active")
    assert hook.install()
    ours = methods()
    assert all(ours[name] is not stock[name] for name in stock)
    assert hook.install()
    assert methods() == ours
    hook.uninstall()
    assert methods() == stock


@ON_SQLITE
@pytest.mark.parametrize("mode", ["active", "off"])
def test_a_scheduler_process_has_it_before_its_first_loop(airflow_home, migrated_database, mode):
    environment = airflow_home.subprocess_environment(
        migrated_database,
        options={
            "callback_priority": {"mode": mode},
            "core": {"parallelism": 2},
            "scheduler": {"scheduler_idle_sleep_time": 0.1},
        },
    )
    output = run_airflow(["scheduler", "--num-runs", "2", "--skip-serve-logs"], environment)
    assert output.count("callback-priority is in mode active") == (1 if mode == "active" else 0)
    assert "Exiting scheduler loop as requested number of runs (2)" in output
    if mode == "off":
        assert "callback-priority" not in output


# Out --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [None, "off", " OFF "])
def test_mode_off_leaves_the_original_methods_in_place(option, mode, caplog):
    from callback_priority.adapter import hook

    if mode is not None:
        option("mode", mode)
    stock = methods()
    assert not hook.install()
    assert all(now is stock[name] for name, now in methods().items())
    assert errors(caplog) == []


@pytest.mark.parametrize("version", ["3.1.8", "3.5.0", "4.0.0"])
def test_another_airflow_is_left_alone_with_one_line(option, monkeypatch, caplog, version):
    from callback_priority import compat
    from callback_priority.adapter import hook

    option("mode", "active")
    monkeypatch.setattr(compat.targets, "airflow_version", lambda: version)
    stock = methods()
    assert not hook.install()
    assert all(now is stock[name] for name, now in methods().items())
    [line] = errors(caplog)
    assert f"Airflow {version} is not supported" in line
    assert "\n" not in line


def rewrite(monkeypatch, tmp_path, owner, name, edit):
    """Put a method in the place of another whose source is an edited copy."""
    original = getattr(owner, name)
    source = edit(textwrap.dedent(inspect.getsource(original)))
    path = tmp_path / f"{name}.py"
    path.write_text(source, encoding="utf-8")
    names: dict[str, object] = {}
    exec(compile(f"from __future__ import annotations\n{source}", path, "exec"), original.__globals__, names)  # noqa: S102
    # The line that was put in front is not in the file.
    replaced = names[name]
    replaced.__code__ = replaced.__code__.replace(co_firstlineno=replaced.__code__.co_firstlineno - 1)
    monkeypatch.setattr(owner, name, replaced)


def the_critical_section():
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner

    return SchedulerJobRunner, "_critical_section_enqueue_task_instances"


def the_callback_step():
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner

    return SchedulerJobRunner, "_enqueue_executor_callbacks"


def the_executors_queue():
    from airflow.executors.base_executor import BaseExecutor

    return BaseExecutor, "queue_workload"


METHODS = [the_critical_section, the_callback_step, the_executors_queue]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_was_changed_keeps_it_out_with_one_line(option, monkeypatch, tmp_path, caplog, method):
    from callback_priority.adapter import hook

    option("mode", "active")
    owner, name = method()
    rewrite(monkeypatch, tmp_path, owner, name, lambda source: source + "\n    self.log.debug('patched')\n")
    before = methods()
    assert not hook.install()
    assert all(now is before[each] for each, now in methods().items())
    [line] = errors(caplog)
    assert f"{owner.__name__}.{name} is not the code that this release was made for" in line
    assert "\n" not in line


@pytest.mark.parametrize("method", METHODS)
def test_a_changed_signature_keeps_it_out(option, monkeypatch, tmp_path, caplog, method):
    from callback_priority.adapter import hook

    option("mode", "active")
    owner, name = method()
    rewrite(monkeypatch, tmp_path, owner, name, lambda source: source.replace("session", "session_", 1))
    assert not hook.install()
    assert f"{owner.__name__}.{name}" in errors(caplog)[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_comment_or_a_docstring_does_not_keep_it_out(option, monkeypatch, tmp_path, caplog, method):
    from callback_priority.adapter import hook

    def edit(source: str) -> str:
        lines = source.splitlines()
        end = next(number for number, line in enumerate(lines) if line.rstrip().endswith(":"))
        lines[end] += "  # a comment"
        rest = [line for line in lines[end + 1 :] if '"""' not in line or line.count('"""') == 2]
        if any('"""' in line for line in lines[end + 1 :]):
            rest = "\n".join(lines[end + 1 :]).replace('"""', '"""Other words. ', 1).splitlines()
        return "\n".join([*lines[: end + 1], "    # another one", *rest, ""])

    option("mode", "active")
    rewrite(monkeypatch, tmp_path, *method(), edit)
    assert hook.install()
    assert errors(caplog) == []


# At the first loop ------------------------------------------------------------------------------------------------


def drop_tables() -> None:
    from airflow import settings

    from callback_priority.persistence.tables import metadata

    metadata.drop_all(settings.engine)


def make_tables() -> None:
    from airflow import settings

    from callback_priority.persistence.tables import metadata

    metadata.create_all(settings.engine)


def test_without_its_tables_airflow_runs_as_it_is_until_they_are_there(airflow_database, monkeypatch, caplog):
    from callback_priority.adapter import replacements

    bench = Bench()
    bench.tasks(2)
    bench.callbacks(3)
    drop_tables()
    executor = LoopExecutor(4)
    with hooked(), scheduler(executor) as run:
        runner = run(3)
        assert executor.count("task") == 2
        assert bench.callback_states() == {"success": 3}
        [line] = errors(caplog)
        assert "no table callback_priority_flow" in line
        assert "run 'airflow db migrate'" in line

        make_tables()
        runner._callback_priority_retry_at = 0.0
        bench.callbacks(3)
        runner = run(3)
        assert runner._callback_priority.active
        assert bench.callback_states() == {"success": 6}
        assert {item.state for item in bench.items()} == {"done"}
    assert errors(caplog) == [line]
    assert replacements.RETRY_SECONDS > 0


def test_with_the_tables_of_an_earlier_release_it_waits_for_the_new_ones(airflow_database, caplog):
    from airflow.utils.session import create_session

    from callback_priority.adapter.db_manager import CallbackPriorityDBManager

    def migrate(action, *arguments):
        with create_session(scoped=False) as session:
            getattr(CallbackPriorityDBManager(session), action)(*arguments)

    bench = Bench()
    migrate("downgrade", "8c1f4e0a7d35")
    caplog.clear()
    with hooked(), scheduler(LoopExecutor(4)) as run:
        bench.callbacks(3)
        runner = run(3)
        assert bench.callback_states() == {"success": 3}
        [line] = errors(caplog)
        assert "no column callback_priority_item.leader_id" in line
        assert "no table callback_priority_unit" in line
        assert "run 'airflow db migrate'" in line

        migrate("upgradedb")
        runner._callback_priority_retry_at = 0.0
        bench.callbacks(3)
        assert run(3)._callback_priority.active
        assert {item.state for item in bench.items()} == {"done"}
    assert errors(caplog) == [line]


@ON_SQLITE
def test_deadlines_missed_before_the_tables_are_there_leave_nothing_behind(airflow_database):
    """What was noted for items that cannot be written is dropped, not kept for ever."""
    from airflow.utils.session import create_session

    from callback_priority.adapter.allocator import NEW_ITEMS
    from callback_priority.compat.rows import forgets_data

    bench = Bench()
    drop_tables()
    with hooked(), scheduler(LoopExecutor(4)) as run:
        run(1)
        bench.deadlines(3)
        run(2)
        # Airflow 3.2 by itself loses what all but the last of a loop's deadlines say of their Dag runs.
        assert bench.callback_states() == ({"success": 1, "pending": 2} if forgets_data() else {"success": 3})
        with create_session() as session:
            assert NEW_ITEMS not in session.info


def test_wrong_settings_put_the_original_methods_back_and_say_all_that_is_wrong(
    airflow_database, stock_ends_callbacks, option, caplog
):
    bench = Bench()
    bench.tasks(2)
    bench.callbacks(2)
    stock = methods()
    option("weights", '{"tusk": 1, "task": -1}')
    option("slot_quotas", '{"deadline": {"reserve": 3, "limit": 2}}')
    option("polcy", "fair")
    executor = LoopExecutor(4)
    with hooked(), scheduler(executor) as run:
        assert methods() != stock
        run(3)
        assert all(now is stock[name] for name, now in methods().items())
    assert executor.count("task") == 2
    assert bench.callback_states() == {"success": 2}
    [line] = errors(caplog)
    assert "Airflow runs as it is" in line
    for word in ("tusk", "-1", "reserve", "polcy", "did you mean"):
        assert word in line, word


@ON_SQLITE
def test_a_pool_that_does_not_exist_is_wrong_too(airflow_database, option, caplog):
    option("callback_pool", '{"deadline": "nowhere"}')
    with hooked(), scheduler(LoopExecutor(4)) as run:
        run(1)
    [line] = errors(caplog)
    assert "nowhere" in line


@ON_SQLITE
def test_an_executor_that_is_not_configured_is_wrong_too(airflow_database, option, caplog):
    option("callback_executor", '{"task_callback": "NowhereExecutor"}')
    with hooked(), scheduler(LoopExecutor(4)) as run:
        run(1)
    [line] = errors(caplog)
    assert "NowhereExecutor" in line


@ON_SQLITE
def test_executors_that_airflow_cannot_list_are_left_to_airflow(
    airflow_database, option, caplog, monkeypatch
):
    from airflow.exceptions import AirflowConfigException

    from callback_priority.adapter import replacements

    def unreadable():
        raise AirflowConfigException("on purpose")

    monkeypatch.setattr(replacements, "configured_executors", unreadable)
    option("callback_executor", '{"task_callback": "NowhereExecutor"}')
    with hooked(), scheduler(LoopExecutor(4)) as run:
        assert run(1)._callback_priority.active
    assert errors(caplog) == []


@ON_SQLITE
def test_settings_are_read_at_the_first_loop_and_said(airflow_database, option, caplog):
    caplog.set_level(logging.INFO, logger="callback_priority")
    option("policy", "tasks_first")
    with hooked(), scheduler(LoopExecutor(4)) as run:
        runner = run(2)
    assert str(runner._callback_priority.settings.policy) == "tasks_first"
    lines = [record.getMessage() for record in caplog.records if "is in mode" in record.getMessage()]
    assert len(lines) == 1
    assert "mode active with policy tasks_first" in lines[0]
    assert os.environ.get("AIRFLOW__CALLBACK_PRIORITY__MODE") is None
