"""What ``doctor`` does: every check in turn, none of which stops the others, and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from callback_priority.cli import celery_workers as celery
from callback_priority.cli import checks_callbacks as callbacks
from callback_priority.cli import checks_installed as installed
from callback_priority.cli import checks_running as running
from callback_priority.cli.failures import CommandError
from callback_priority.cli.findings import RESTART, Finding, Status, Wanted
from callback_priority.cli.surroundings import (
    connected,
    first_line,
    living_since,
    triggering_since,
)
from callback_priority.persistence import deployment
from callback_priority.policy.options import SECTION
from callback_priority.policy.settings import Mode

__all__ = ["examine"]

NEEDED: Final = ("package", "airflow", "hook", "entry points", "database", "tables", "configuration")
"""The checks without which nothing works."""


def examine() -> list[Finding]:
    """Look at everything; a check that cannot be made is a finding, too."""
    findings = [_checked("package", installed.package)]
    version = _checked("airflow", installed.airflow)
    findings.append(version)
    if version.status is Status.FAIL:
        return findings
    try:
        wanted = installed.read_wanted()
    except Exception as error:  # noqa: BLE001 - as in _checked
        findings.append(_cannot_check("configuration", error))
        return findings
    findings.append(_checked("hook", lambda: installed.hook(wanted)))
    findings.append(_checked("version", lambda: installed.version(wanted)))
    findings.append(_checked("entry points", installed.entry_points))
    try:
        with connected() as connection:
            findings += _with_database(connection, wanted)
    except CommandError as error:
        findings.append(
            Finding(check="database", status=Status.FAIL, found=error.message, remedy=error.remedy)
        )
        findings.append(_checked("configuration", lambda: installed.configuration(wanted, None)))
        findings.append(_checked("executors", lambda: installed.executors(wanted)))
        findings.append(_checked("slots", lambda: running.slots(None)))
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

    database = checked("database", lambda: installed.database(connection))
    yield database
    has_airflow = database.status is Status.OK
    tables = checked("tables", lambda: installed.tables(connection)) if has_airflow else None
    if tables:
        yield tables
    pools = deployment.pool_slots(connection) if has_airflow else None
    yield checked("configuration", lambda: installed.configuration(wanted, pools))
    yield checked("executors", lambda: installed.executors(wanted))
    if not has_airflow:
        yield checked("slots", lambda: running.slots(None))
        return
    now = datetime.now(timezone.utc)
    schedulers = deployment.living_schedulers(connection, living_since=living_since(now))
    yield checked("slots", lambda: running.slots(len(schedulers)))
    yield checked("schedulers", lambda: running.schedulers(schedulers, now))
    if tables and tables.status is not Status.FAIL:
        if wanted.mode is not Mode.OFF:
            yield checked("activity", lambda: running.activity(connection, now))
        yield checked("dead schedulers", lambda: running.dead_schedulers(connection, now))
        yield checked("parked", lambda: running.parked(connection))
        yield checked("strays", lambda: running.strays(connection, wanted, now, bool(schedulers)))
        dags = deployment.dags_with_references(connection)
        yield checked("moved callbacks", lambda: callbacks.moved(wanted, dags))
        if wanted.moves:
            yield checked("references", lambda: callbacks.references(wanted, dags))
            yield checked("fallbacks", lambda: callbacks.fallbacks(connection, now))
            yield checked("dag processor", lambda: callbacks.dag_processor(connection, wanted, now))
            alive = deployment.living_triggerers(connection, living_since=triggering_since(now))
            yield checked("triggerers", lambda: callbacks.triggerers(connection, alive))
    if wanted.mode is Mode.ACTIVE:
        yield from _with_celery(wanted, len(schedulers), sorted(pools or ()))


def _with_celery(wanted: Wanted, schedulers: int, pools: Sequence[str]) -> Iterator[Finding]:
    """Checks that are only made where callbacks run on Celery."""
    try:
        classes = celery.classes_on_celery(wanted.settings)
    except Exception:  # noqa: BLE001 - the check of the executors tells of it
        return
    if classes:
        answer = celery.ask()
        yield _checked(
            "workers",
            lambda: callbacks.workers(wanted, classes, answer, schedulers=schedulers, pools=pools),
        )
        yield _checked("queues", lambda: callbacks.queues(wanted, classes, answer))


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
