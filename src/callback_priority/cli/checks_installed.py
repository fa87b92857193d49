"""Checks of what is installed and configured: the package, Airflow, the tables, the section, the executors."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from typing import Final

from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from callback_priority import __version__
from callback_priority.cli.failures import CommandError
from callback_priority.cli.findings import RESTART, Finding, Status, Wanted
from callback_priority.cli.surroundings import (
    MIGRATE,
    database_name,
    first_line,
    missing_tables,
    parallelism,
)
from callback_priority.cli.text import count
from callback_priority.errors import ConfigurationError, Problem
from callback_priority.persistence.tables import VERSION_TABLE
from callback_priority.policy.checks import check_executors, check_slots
from callback_priority.policy.options import OPTIONS_BY_NAME, SECTION
from callback_priority.policy.parse import load_settings, parse_settings
from callback_priority.policy.settings import Mode

__all__ = [
    "airflow",
    "configuration",
    "database",
    "entry_points",
    "executors",
    "hook",
    "package",
    "read_wanted",
    "tables",
    "version",
]

DISTRIBUTION: Final = "callback-priority"
ACTIVATION: Final = "callback_priority"

MOVED: Final = "callbacks moved off the Dag processor"
"""The part of `callback_priority.compat.parts` without which `use_worker_callbacks` does nothing."""


def package() -> Finding:
    """Whether the library itself is installed."""
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


def airflow() -> Finding:
    """Whether there is an Airflow to look at."""
    try:
        from airflow import __version__ as version
        from airflow.configuration import AIRFLOW_HOME
    except Exception as error:  # noqa: BLE001 - as in examine
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


def read_wanted() -> Wanted:
    """Read what the configuration asks for."""
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
    return Wanted(
        raw=raw, mode=settings.mode, sweep_seconds=settings.sweep_interval_seconds, settings=settings
    )


def _raw() -> dict[str, str]:
    from airflow.configuration import conf

    from callback_priority.adapter.config import raw_section

    return raw_section(conf)


def _executors() -> frozenset[str]:
    from callback_priority.adapter.config import configured_executors

    return configured_executors()


def hook(wanted: Wanted) -> Finding:
    """Whether the hook would be installed, or why not."""
    from callback_priority import compat
    from callback_priority.adapter import hook as adapter

    reasons = compat.mismatches()
    if not reasons and wanted.mode is not Mode.OFF and not adapter.installed():
        # Nothing schedules in this process, so trying it is safe.
        if not adapter.install():
            reasons = ["it fits this Airflow's code, but fails to install; `--verbose` shows what it logs"]
        adapter.uninstall()
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


def version(wanted: Wanted) -> Finding:
    """What this version of Airflow can carry, and what it cannot."""
    from callback_priority import compat
    from callback_priority.compat.parts import PARTS, SLOT_LOOP, lacking, versions_of

    installed = compat.airflow_version()
    missing = lacking()
    run = versions_of(compat.series())
    values = {
        "version": installed,
        "tested": run,
        "works": [part.name for part in PARTS if part not in missing],
        "does_not": [part.name for part in missing],
    }
    details = tuple(f"not here: {part.name}; {part.without}" for part in missing)
    tested = f"tested on {' and '.join(run)}" if run else "never tested"
    if SLOT_LOOP in missing:
        return Finding(
            check="version",
            status=wanted.serious,
            found=f"nothing works in Airflow {installed}: {tested}",
            remedy="install the release of callback-priority that is made for this Airflow",
            values=values,
        )
    found = f"Airflow {compat.series()}, {tested}, this is {installed}: "
    found += (
        f"{count(len(missing), 'part does', 'parts do')} not work here" if missing else "everything works"
    )
    moves = wanted.moves and any(part.name == MOVED for part in missing)
    return Finding(
        check="version",
        status=Status.WARN if moves else Status.OK,
        found=found,
        details=details,
        remedy=f"set `[{SECTION}] use_worker_callbacks = none`, or run Airflow 3.3" if moves else "",
        values=values,
    )


def entry_points() -> Finding:
    """Whether Airflow finds what the package registers."""
    from airflow import settings
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
    if not settings.get_policy_plugin_manager().has_plugin(ACTIVATION):
        problems.append("Airflow has not loaded callback_priority.activation (entry point airflow.policy)")
    if problems:
        return Finding(
            check="entry points",
            status=Status.FAIL,
            found="Airflow cannot load the library",
            details=tuple(problems),
            remedy=f"install again: `pip install --force-reinstall --no-deps {DISTRIBUTION}`",
        )
    return Finding(
        check="entry points", status=Status.OK, found="Airflow sees the provider and the activation"
    )


def database(connection: Connection) -> Finding:
    """Which database it is, and whether it is Airflow's."""
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


def tables(connection: Connection) -> Finding:
    """Whether the library's tables are there and of this version."""
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


def configuration(wanted: Wanted, pools: Mapping[str, int | None] | None) -> Finding:
    """Whether the section is valid, with every problem."""
    problems: tuple[Problem, ...] = ()
    slots: int | None = None
    known: frozenset[str] | None = None
    # What is wrong with the number itself, or with the list of executors, is another check's finding.
    with contextlib.suppress(CommandError):
        slots = parallelism()
    with contextlib.suppress(Exception):
        known = _executors()
    try:
        if pools is None:
            settings = parse_settings(wanted.raw)
            problems = check_slots(settings, slots)
            if known is not None:
                problems += check_executors(settings, known)
        else:
            load_settings(wanted.raw, pool_slots=pools, parallelism=slots, executors=known)
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


def executors(wanted: Wanted) -> Finding:
    """Which of the configured executors can run callbacks."""
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
        except Exception as error:  # noqa: BLE001 - as in examine
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
