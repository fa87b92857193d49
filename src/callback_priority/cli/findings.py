"""What ``doctor`` looks at: each check answers with one finding, and none of them stops the others."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from enum import Enum
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any, Final

import attrs
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect
from sqlalchemy.exc import SQLAlchemyError

from callback_priority import __version__
from callback_priority.cli.surroundings import (
    MIGRATE,
    CommandError,
    connected,
    database_name,
    first_line,
    living_since,
    missing_tables,
    parallelism,
)
from callback_priority.cli.text import count, duration
from callback_priority.core.units import MICROSECONDS
from callback_priority.errors import ConfigurationError, Problem
from callback_priority.persistence import deployment
from callback_priority.persistence.flows import read_flows
from callback_priority.persistence.status import backlog
from callback_priority.persistence.tables import VERSION_TABLE
from callback_priority.policy.checks import check_slots
from callback_priority.policy.options import OPTIONS_BY_NAME, SECTION
from callback_priority.policy.parse import load_settings, parse_settings
from callback_priority.policy.settings import Mode

__all__ = ["Finding", "Status", "examine"]

DISTRIBUTION: Final = "callback-priority"
PLUGIN: Final = "callback_priority"

RESTART: Final = "restart the schedulers"

QUIET_SECONDS: Final = 120
"""A scheduler that hands out nothing for so long while callbacks wait is worth a look."""

NEEDED: Final = ("package", "airflow", "hook", "entry points", "database", "tables", "configuration")
"""The checks without which nothing works."""


class Status(Enum):
    """How bad it is, the worst last."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@attrs.frozen(kw_only=True)
class Finding:
    """What one check found.

    Args:
        check: Its name, stable for scripts.
        status: How bad it is.
        found: What was found, in one sentence.
        remedy: What to do about it; empty if nothing needs doing.
        details: The parts of what was found, where it has parts.
        values: The same for scripts.
    """

    check: str
    status: Status
    found: str
    remedy: str = ""
    details: tuple[str, ...] = ()
    values: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Wanted:
    """What the configuration asks for.

    Args:
        raw: The section's text.
        mode: The mode, as far as it can be read; what is invalid counts as `Mode.OFF`, as it does at work.
        sweep_seconds: How often strays are looked for.
    """

    raw: Mapping[str, str]
    mode: Mode
    sweep_seconds: float

    @property
    def serious(self) -> Status:
        """How bad it is if the library cannot work: not at all what was asked for, or of no effect yet."""
        return Status.WARN if self.mode is Mode.OFF else Status.FAIL


def examine() -> list[Finding]:
    """Look at everything; a check that cannot be made is a finding, too."""
    findings = [_checked("package", _package)]
    version = _checked("airflow", _airflow)
    findings.append(version)
    if version.status is Status.FAIL:
        return findings
    try:
        wanted = _wanted()
    except Exception as error:  # noqa: BLE001 - as in _checked
        findings.append(_cannot_check("configuration", error))
        return findings
    # The code to replace is looked at before Airflow loads its plugins, of which ours replaces it.
    findings.append(_checked("hook", lambda: _hook(wanted)))
    findings.append(_checked("entry points", _entry_points))
    try:
        with connected() as connection:
            findings += _with_database(connection, wanted)
    except CommandError as error:
        findings.append(
            Finding(check="database", status=Status.FAIL, found=error.message, remedy=error.remedy)
        )
        findings.append(_checked("configuration", lambda: _configuration(wanted, None)))
        findings.append(_checked("executors", lambda: _executors(wanted)))
        findings.append(_checked("slots", lambda: _slots(None)))
    except SQLAlchemyError as error:
        findings.append(
            Finding(
                check="database",
                status=Status.FAIL,
                found=f"does not answer any more: {first_line(error)}",
                remedy="run `airflow db check`; if that is well, run this command again",
            )
        )
    findings.append(_verdict(wanted, findings))
    return findings


def _with_database(connection: Connection, wanted: Wanted) -> Iterator[Finding]:
    def checked(check: str, look: Callable[[], Finding]) -> Finding:
        found = _checked(check, look)
        # A statement that failed must not fail the next check: PostgreSQL refuses all others until then.
        connection.rollback()
        return found

    database = checked("database", lambda: _database(connection))
    yield database
    has_airflow = database.status is Status.OK
    tables = checked("tables", lambda: _tables(connection)) if has_airflow else None
    if tables:
        yield tables
    pools = deployment.pool_slots(connection) if has_airflow else None
    yield checked("configuration", lambda: _configuration(wanted, pools))
    yield checked("executors", lambda: _executors(wanted))
    if not has_airflow:
        yield checked("slots", lambda: _slots(None))
        return
    now = datetime.now(timezone.utc)
    schedulers = deployment.living_schedulers(connection, living_since=living_since(now))
    yield checked("slots", lambda: _slots(len(schedulers)))
    yield checked("schedulers", lambda: _schedulers(schedulers, now))
    if tables and tables.status is not Status.FAIL:
        if wanted.mode is not Mode.OFF:
            yield checked("activity", lambda: _activity(connection, now))
        yield checked("dead schedulers", lambda: _dead(connection, now))
        yield checked("parked", lambda: _parked(connection))
        yield checked("strays", lambda: _strays(connection, wanted, now, bool(schedulers)))


def _checked(check: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except CommandError as error:
        return Finding(check=check, status=Status.FAIL, found=error.message, remedy=error.remedy)
    except Exception as error:  # noqa: BLE001 - whatever is broken here is what the reader wants to know
        return _cannot_check(check, error)


def _cannot_check(check: str, error: Exception) -> Finding:
    return Finding(
        check=check,
        status=Status.FAIL,
        found=f"cannot be checked: {type(error).__name__}: {first_line(error)}",
        remedy="run `callback-priority doctor --verbose` for what Airflow logs meanwhile",
    )


def _package() -> Finding:
    values = {"version": __version__, "python": platform.python_version()}
    found = f"{DISTRIBUTION} {__version__}, Python {platform.python_version()}"
    try:
        installed = distribution(DISTRIBUTION)
    except PackageNotFoundError:
        return Finding(
            check="package",
            status=Status.FAIL,
            found=f"{found}, runs from its source but is not installed: Airflow cannot find it",
            remedy=f"run `pip install {DISTRIBUTION}` in Airflow's environment",
            values=values,
        )
    if installed.version != __version__:
        return Finding(
            check="package",
            status=Status.WARN,
            found=f"{found}, but installed as {installed.version}",
            remedy="install it again, so that code and metadata are of one version",
            values=values,
        )
    return Finding(check="package", status=Status.OK, found=found, values=values)


def _airflow() -> Finding:
    try:
        from airflow import __version__ as version
        from airflow.configuration import AIRFLOW_HOME
    except Exception as error:  # noqa: BLE001 - as in _checked
        return Finding(
            check="airflow",
            status=Status.FAIL,
            found=f"cannot be imported: {type(error).__name__}: {first_line(error)}",
            remedy="run this command with the scheduler's Python and environment; if it is the same there, mend "
            "Airflow's installation or configuration first",
        )
    return Finding(
        check="airflow",
        status=Status.OK,
        found=f"Airflow {version}, home {AIRFLOW_HOME}",
        values={"version": str(version), "home": str(AIRFLOW_HOME)},
    )


def _wanted() -> Wanted:
    raw = _raw()
    try:
        settings = parse_settings(raw)
    except ConfigurationError:
        settings = parse_settings({})
        text = raw.get("mode", "").strip().lower()
        return Wanted(
            raw=raw,
            mode=Mode(text) if text in set(map(str, Mode)) else Mode.OFF,
            sweep_seconds=settings.sweep_interval_seconds,
        )
    return Wanted(raw=raw, mode=settings.mode, sweep_seconds=settings.sweep_interval_seconds)


def _raw() -> dict[str, str]:
    from airflow.configuration import conf

    from callback_priority.adapter.config import raw_section

    return raw_section(conf)


def _hook(wanted: Wanted) -> Finding:
    from callback_priority.adapter import hook
    from callback_priority.adapter.compat import mismatches

    reasons = mismatches()
    if not reasons and wanted.mode is not Mode.OFF and not hook.installed():
        # Nothing schedules in this process, so trying it is safe.
        if not hook.install():
            reasons = ["it fits this Airflow's code, but fails to install; `--verbose` shows what it logs"]
        hook.uninstall()
    if reasons:
        return Finding(
            check="hook",
            status=wanted.serious,
            found="would not be installed, and Airflow runs unchanged",
            details=tuple(reasons),
            remedy="install the release of callback-priority that is made for this Airflow",
        )
    return Finding(
        check="hook",
        status=Status.OK,
        found="fits this Airflow's code, and installs"
        if wanted.mode is not Mode.OFF
        else "fits this Airflow's code",
    )


def _entry_points() -> Finding:
    from airflow import plugins_manager
    from airflow.providers_manager import ProvidersManager

    from callback_priority.adapter.db_manager import CallbackPriorityDBManager

    problems = []
    manager = ProvidersManager()
    if DISTRIBUTION not in manager.providers:
        problems.append("Airflow does not see the provider (entry point apache_airflow_provider)")
    else:
        wanted = f"{CallbackPriorityDBManager.__module__}.{CallbackPriorityDBManager.__qualname__}"
        if wanted not in manager.db_managers:
            problems.append("Airflow does not see the provider's DB manager, which makes the tables")
    errors = {name: error for name, error in plugins_manager.get_import_errors().items() if PLUGIN in name}
    problems += [f"the plugin fails to load: {error}" for error in errors.values()]
    names = {info["name"] for info in plugins_manager.get_plugin_info(["name"])}
    if PLUGIN not in names and not errors:
        problems.append("Airflow does not see the plugin (entry point airflow.plugins)")
    if problems:
        return Finding(
            check="entry points",
            status=Status.FAIL,
            found="Airflow cannot load the library",
            details=tuple(problems),
            remedy=f"install again: `pip install --force-reinstall --no-deps {DISTRIBUTION}`",
        )
    return Finding(check="entry points", status=Status.OK, found="Airflow sees the provider and the plugin")


def _verdict(wanted: Wanted, findings: Sequence[Finding]) -> Finding:
    values = {"mode": str(wanted.mode)}
    if wanted.mode is Mode.OFF:
        return Finding(
            check="mode",
            status=Status.WARN,
            found="off: Airflow runs unchanged",
            remedy=f"set `[{SECTION}] mode` to `shadow` (decide and record) or `active`, and {RESTART}",
            values=values,
        )
    failed = [each.check for each in findings if each.status is Status.FAIL and each.check in NEEDED]
    if failed:
        return Finding(
            check="mode",
            status=Status.FAIL,
            found=f"{wanted.mode} is asked for, but Airflow runs unchanged",
            remedy=f"mend what failed: {', '.join(failed)}",
            values=values,
        )
    told = {Mode.SHADOW: "decides and records, changes nothing", Mode.ACTIVE: "hands out the slots"}
    return Finding(
        check="mode",
        status=Status.OK,
        found=f"{wanted.mode}: {told[wanted.mode]}, in every scheduler that was started with it",
        values=values,
    )


def _database(connection: Connection) -> Finding:
    version = ".".join(str(part) for part in connection.dialect.server_version_info or ())
    found = f"{database_name(connection.engine.url)}, version {version}"
    values = {"dialect": connection.dialect.name, "version": version}
    there = inspect(connection)
    if not all(there.has_table(name) for name in ("job", "slot_pool", "task_instance", "callback")):
        return Finding(
            check="database",
            status=Status.FAIL,
            found=f"{found}: Airflow's tables are missing",
            remedy=MIGRATE,
            values=values,
        )
    if connection.dialect.name == "mysql":
        return Finding(
            check="database",
            status=Status.OK,
            found=f"{found}: the SQL for MySQL is checked by compiling it, and was not run",
            values=values,
        )
    return Finding(check="database", status=Status.OK, found=found, values=values)


def _tables(connection: Connection) -> Finding:
    from callback_priority.adapter.db_manager import CallbackPriorityDBManager

    missing = missing_tables(connection)
    if missing:
        return Finding(
            check="tables",
            status=Status.FAIL,
            found=f"missing: {', '.join(missing)}",
            remedy=MIGRATE,
            values={"missing": missing},
        )
    script = ScriptDirectory(CallbackPriorityDBManager.migration_dir)
    heads = sorted(script.get_heads())
    current = MigrationContext.configure(
        connection, opts={"version_table": VERSION_TABLE}
    ).get_current_revision()
    values = {"revision": current, "heads": heads}
    if [current] == heads:
        return Finding(
            check="tables", status=Status.OK, found=f"at revision {current}, the latest", values=values
        )
    known = {revision.revision for revision in script.walk_revisions()}
    if current is not None and current not in known:
        return Finding(
            check="tables",
            status=Status.FAIL,
            found=f"at revision {current}, which a newer version of this library made",
            remedy="install that version here, too",
            values=values,
        )
    return Finding(
        check="tables",
        status=Status.FAIL,
        found=f"at revision {current}, this version needs {', '.join(heads)}",
        remedy=MIGRATE,
        values=values,
    )


def _configuration(wanted: Wanted, pools: Mapping[str, int | None] | None) -> Finding:
    problems: tuple[Problem, ...] = ()
    slots: int | None = None
    # What is wrong with the number itself is another check's finding.
    with contextlib.suppress(CommandError):
        slots = parallelism()
    try:
        if pools is None:
            problems = check_slots(parse_settings(wanted.raw), slots)
        else:
            load_settings(wanted.raw, pool_slots=pools, parallelism=slots)
    except ConfigurationError as error:
        problems = error.problems
    if problems:
        return Finding(
            check="configuration",
            status=Status.FAIL,
            found=f"[{SECTION}] has {count(len(problems), 'problem')}, so Airflow runs unchanged",
            details=tuple(map(str, problems)),
            remedy=f"mend each of them, and {RESTART}",
            values={
                "problems": [
                    {"key": each.key, "value": str(each.value), "remedy": each.remedy} for each in problems
                ]
            },
        )
    changed = {
        name: text
        for name, text in wanted.raw.items()
        if name in OPTIONS_BY_NAME and text.strip() != OPTIONS_BY_NAME[name].default
    }
    unchecked = "; not held against the pools, which are in the database" if pools is None else ""
    return Finding(
        check="configuration",
        status=Status.OK,
        found=f"valid, {count(len(changed), 'option')} other than the default{unchecked}",
        details=tuple(f"{name} = {text.strip()}" for name, text in changed.items()),
        values={"options": changed},
    )


def _executors(wanted: Wanted) -> Finding:
    from airflow.executors.executor_loader import ExecutorLoader

    able: list[str] = []
    unable: list[str] = []
    broken: list[str] = []
    for executor in ExecutorLoader.get_executor_names(validate_teams=False):
        name = executor.alias or executor.module_path.rpartition(".")[2]
        if executor.team_name:
            name = f"{name} (team {executor.team_name})"
        try:
            cls = ExecutorLoader.import_executor_cls(executor)[0]
        except Exception as error:  # noqa: BLE001 - as in _checked
            broken.append(f"{executor.module_path} cannot be imported: {first_line(error)}")
            continue
        (able if getattr(cls, "supports_callbacks", False) else unable).append(name)
    values = {"can_run_callbacks": able, "cannot_run_callbacks": unable, "broken": broken}
    details = [f"{name} cannot run callbacks" for name in unable] + broken
    if broken:
        status, found = Status.FAIL, f"{count(len(broken), 'executor')} cannot be loaded"
        remedy = "install what provides it, or mend `[core] executor`"
    elif not able:
        status, found = wanted.serious, "none can run callbacks: every callback would fail"
        remedy = "add one that can to `[core] executor`, for example LocalExecutor"
    else:
        status, found, remedy = Status.OK, f"{', '.join(able)} can run callbacks", ""
        if unable:
            status = Status.WARN
            remedy = (
                "give callbacks that are sent there another executor; callbacks that name none take the first"
            )
    return Finding(
        check="executors", status=status, found=found, details=tuple(details), remedy=remedy, values=values
    )


def _slots(schedulers: int | None) -> Finding:
    slots = parallelism()
    values = {"parallelism": slots, "schedulers": schedulers}
    total = f", {slots * schedulers} in all" if schedulers else ""
    return Finding(check="slots", status=Status.OK, found=f"{slots} for each scheduler{total}", values=values)


def _schedulers(schedulers: list[deployment.Scheduler], now: datetime) -> Finding:
    if not schedulers:
        return Finding(
            check="schedulers",
            status=Status.WARN,
            found="none is alive",
            remedy="start one: `airflow scheduler`",
            values={"schedulers": []},
        )
    return Finding(
        check="schedulers",
        status=Status.OK,
        found=count(len(schedulers), "is alive", "are alive"),
        details=tuple(
            f"job {each.job_id} on {each.hostname}, "
            f"heartbeat {duration((now - each.latest_heartbeat).total_seconds())} ago"
            for each in schedulers
        ),
        values={"schedulers": [{"job_id": each.job_id, "hostname": each.hostname} for each in schedulers]},
    )


def _activity(connection: Connection, now: datetime) -> Finding:
    """The only trace, outside of a scheduler's process, of a hook that has stepped aside."""
    latest_us = max((flow.recent_at for flow in read_flows(connection).values()), default=0)
    waits_since = min(
        (each.oldest_enqueued_at for each in backlog(connection) if each.oldest_enqueued_at), default=now
    )
    idle = now.timestamp() - latest_us / MICROSECONDS if latest_us else None
    waited = (now - waits_since).total_seconds()
    values = {"last_seconds_ago": idle, "oldest_wait_seconds": waited}
    found = "nothing was ever granted" if idle is None else f"slot-time last recorded {duration(idle)} ago"
    if waited > QUIET_SECONDS and (idle is None or idle > QUIET_SECONDS):
        return Finding(
            check="activity",
            status=Status.WARN,
            found=f"{found}, though a callback has waited for {duration(waited)}",
            remedy="see in `callback-priority status` whether every slot is held by long work; if not, look for "
            "callback-priority in the schedulers' logs",
            values=values,
        )
    return Finding(check="activity", status=Status.OK, found=found, values=values)


def _dead(connection: Connection, now: datetime) -> Finding:
    granted = deployment.granted_by_the_dead(connection, living_since=living_since(now))
    if not granted:
        return Finding(check="dead schedulers", status=Status.OK, found="none left callbacks behind")
    total = sum(granted.values())
    return Finding(
        check="dead schedulers",
        status=Status.WARN,
        found=f"{count(total, 'granted callback')} belong{'s' * (total == 1)} to schedulers that are not alive",
        details=tuple(
            f"{count(items, 'callback')} of {'no scheduler' if job is None else f'job {job}'}"
            for job, items in granted.items()
        ),
        remedy="they hold no slots; a sweep closes each when its callback ends or is set back to pending",
        values={"callbacks": {str(job): items for job, items in granted.items()}},
    )


def _parked(connection: Connection) -> Finding:
    reasons = deployment.parked_reasons(connection)
    if not reasons:
        return Finding(check="parked", status=Status.OK, found="no callback is set aside")
    return Finding(
        check="parked",
        status=Status.WARN,
        found=f"{count(sum(reasons.values()), 'callback is', 'callbacks are')} set aside until what "
        "they lack comes back",
        details=tuple(f"{items:,}: {reason}" for reason, items in reasons.items()),
        remedy="bring back what is named; after `executor_time_to_live_seconds` they fail",
        values={"reasons": reasons},
    )


def _strays(connection: Connection, wanted: Wanted, now: datetime, alive: bool) -> Finding:
    strays = deployment.pending_without_item(connection)
    values = {"callbacks": strays.count}
    if strays.count == 0 or strays.oldest_created_at is None:
        return Finding(
            check="strays", status=Status.OK, found="every pending callback is in the queue", values=values
        )
    age = (now - strays.oldest_created_at).total_seconds()
    found = f"{count(strays.count, 'pending callback')} not in the queue, the oldest made {duration(age)} ago"
    if wanted.mode is Mode.OFF:
        return Finding(
            check="strays",
            status=Status.OK,
            found=f"{found}; Airflow takes them while mode is off",
            values=values,
        )
    due = age > 2 * wanted.sweep_seconds
    return Finding(
        check="strays",
        status=Status.WARN if due else Status.OK,
        found=found,
        remedy=""
        if not due
        else f"{RESTART}: those that run came up without the hook"
        if alive
        else "start a scheduler: its sweep at start finds them",
        values=values,
    )
