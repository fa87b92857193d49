"""``callback-priority show``: everything about one callback."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from callback_priority.persistence.lookup import Callback

__all__ = ["add_to", "run"]

DESCRIPTION = """\
Show everything about one callback: what it is, where it ran, when, how it ended, and
the end of its log. `callback-priority list` tells which there are."""

LOG_BYTES: Final = 8_192
"""What is shown of the end of a log file, where the table holds none."""

MOST_NAMED: Final = 5

_DIGITS: Final = re.compile("[0-9a-f]{1,32}", re.ASCII)
_MOMENTS: Final = (
    ("created", "created_at"),
    ("received", "received_at"),
    ("queued", "enqueued_at"),
    ("granted", "granted_at"),
    ("claimed", "claimed_at"),
    ("started", "started_at"),
    ("heard of", "heartbeat_at"),
    ("ended", "ended_at"),
    ("settled", "finished_at"),
    ("next try", "retry_at"),
)


def add_to(commands: Any) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "show",
        help="everything about one callback",
        description=DESCRIPTION,
        epilog="Exit status: 0 shown, 1 there is no such callback, or more than one, or the database or the "
        "tables are missing, 2 wrong usage.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "callback", type=_prefix, metavar="CALLBACK_ID", help="its id, or as much of its start as is unique"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument(
        "--verbose", action="store_true", help="let through what Airflow logs meanwhile, on standard error"
    )
    parser.set_defaults(run=run)


def _prefix(text: str) -> str:
    digits = text.strip().lower().replace("-", "")
    if _DIGITS.fullmatch(digits):
        return digits
    raise argparse.ArgumentTypeError(
        f"{text!r} is not an id of a callback, nor the start of one: those are hexadecimal digits and dashes; "
        "`callback-priority list` shows them"
    )


def run(arguments: argparse.Namespace) -> int:
    """Show it.

    Returns:
        0.

    Raises:
        CommandError: There is none or more than one, or the database or the tables are missing.
    """
    from callback_priority.cli.surroundings import quiet, reading

    with quiet(verbose=arguments.verbose):
        with reading() as connection:
            found = _find(connection, arguments.callback)
        queue, log_file = _queue(found), _log_file(found)
    log = found.log if found.log is not None else _end_of(log_file)
    if arguments.json:
        print(_json(found, queue, log_file, log))
    else:
        print("\n".join(_text(found, queue, log_file, log)))
    return 0


def _find(connection: Connection, prefix: str) -> Callback:
    from callback_priority.cli.failures import CommandError
    from callback_priority.persistence.lookup import matching_ids, read_callback

    ids = matching_ids(connection, prefix, limit=MOST_NAMED + 1)
    if len(ids) > 1:
        named = ", ".join(map(str, ids[:MOST_NAMED])) + (", ..." if len(ids) > MOST_NAMED else "")
        raise CommandError(f"more than one callback begins with {prefix!r}: {named}", "give more of its id")
    found = read_callback(connection, ids[0]) if ids else None
    if found is None:
        raise CommandError(
            f"no callback begins with {prefix!r}",
            "`callback-priority list` shows those that are known; finished ones are kept for `history_seconds`, "
            "and what fell back to the Dag processor leaves none",
        )
    return found


def _queue(found: Callback) -> str | None:
    """The queue that the configuration has for its class now."""
    from callback_priority.cli.surroundings import settings
    from callback_priority.core.classes import ServiceClass
    from callback_priority.errors import ConfigurationError

    if found.target == "triggerer" or found.service_class is None:
        return None
    try:
        return settings().callback_queue.get(ServiceClass(found.service_class))
    except (ConfigurationError, ValueError):
        return None


def _log_file(found: Callback) -> Path | None:
    """Where its log is on the worker, and here if they share a folder."""
    from airflow.configuration import conf

    path = found.log_path
    if path is None and found.type == "executor" and found.dag_id and found.run_id and found.granted_at:
        path = f"executor_callbacks/{found.dag_id}/{found.run_id}/{found.callback_id}"
    return None if path is None else Path(conf.get("logging", "base_log_folder")) / path


def _end_of(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_BYTES))
            return file.read().decode(errors="replace")
    except (OSError, ValueError):
        return None


def _json(found: Callback, queue: str | None, log_file: Path | None, log: str | None) -> str:
    import attrs

    told = {**attrs.asdict(found), "queue": queue, "log_file": log_file, "log": log}
    return json.dumps(told, default=_plainly, indent=2)


def _plainly(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _text(found: Callback, queue: str | None, log_file: Path | None, log: str | None) -> Iterator[str]:
    from callback_priority.cli.text import count, plain

    facts = {
        "callback": str(found.callback_id),
        "kind": _joined(found.kind, found.service_class and f"class {found.service_class}"),
        "Dag": found.dag_id,
        "run": found.run_id,
        "task": _joined(
            found.task_id,
            None if found.map_index is None else f"map index {found.map_index}",
            None if found.try_number is None or found.task_id is None else f"try {found.try_number}",
        ),
        "name": _joined(found.name, found.callables and f"{found.position} of {found.callables}"),
        "state": _joined(
            found.state,
            found.item_state and f"item {found.item_state}",
            found.airflow_state and f"Airflow's row {found.airflow_state}",
        ),
        "reason": found.reason,
        "runs on": _runs_on(found, queue),
        "attempts": _joined(
            None if found.attempts is None else str(found.attempts),
            found.failures and f"{found.failures} lost or failed",
            found.scheduler_job_id and f"granted by scheduler job {found.scheduler_job_id}",
        ),
        "log": None if log_file is None else str(log_file),
    }
    width = max(map(len, facts)) + 2
    for name, fact in facts.items():
        if fact:
            yield f"{name:<{width}}{' '.join(plain(fact).split())}"
    yield from _times(found, width)
    if found.companions:
        yield ""
        yield f"shares its run with {count(len(found.companions), 'other')}:"
        for mate in found.companions:
            slot = ", has the slot" if mate.leads else ""
            yield f"  {mate.callback_id}  {mate.kind}  {plain(mate.name)}: {mate.state}{slot}"
    for title, text in (("output", found.output), ("end of the log", log)):
        if text:
            yield ""
            yield f"{title}:"
            yield from (f"  {line}".rstrip() for line in plain(text).splitlines())


def _joined(*parts: str | int | None) -> str | None:
    return ", ".join(str(part) for part in parts if part) or None


def _runs_on(found: Callback, queue: str | None) -> str | None:
    if found.type == "triggerer" or found.target == "triggerer":
        return _joined("the triggerer", found.triggerer and f"on {found.triggerer}")
    if found.type == "dag_processor":
        return "the Dag processor"
    return _joined(
        "a worker" if found.worker is None else f"worker {found.worker}",
        f"executor {found.executor or 'by default'}",
        queue and f"queue {queue}",
        found.pool and f"pool {found.pool}",
    )


def _times(found: Callback, width: int) -> Iterator[str]:
    """Each moment, and how long after the one before it."""
    from callback_priority.cli.text import duration

    moments = [(moment, name) for name, field in _MOMENTS if (moment := getattr(found, field)) is not None]
    title, before = "times", None
    for moment, name in sorted(moments, key=itemgetter(0)):
        later = "" if before is None else f"  {duration((moment - before).total_seconds())} later"
        yield f"{title:<{width}}{name:<9} {moment:%Y-%m-%d %H:%M:%S.%f}"[:-3] + f" UTC{later}"
        title, before = "", moment
