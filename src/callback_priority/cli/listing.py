"""``callback-priority list``: callbacks, the newest first."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

from callback_priority.cli import numbers
from callback_priority.cli.narrowing import add_narrowing, narrowing, one_of
from callback_priority.core.classes import CALLBACK_CLASSES

if TYPE_CHECKING:
    from callback_priority.persistence.lookup import Line

__all__ = ["add_to", "run"]

DESCRIPTION = """\
List callbacks, those that began to wait last first; finished ones are kept for
`history_seconds`.

  waiting    waits for a slot
  parked     set aside until what it lacks comes back
  granted    handed to an executor
  running    a worker says that it runs
  triggered  the triggerer has it
  success, failed
  done       ended, and Airflow's own row is gone or does not say how"""

STATES: Final = ("waiting", "parked", "granted", "running", "triggered", "success", "failed", "done")
"""As in `callback_priority.persistence.status`, which ``--help`` does not wait for."""

MOST: Final = 10_000


def add_to(commands: Any) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "list",
        help="callbacks, the newest first",
        description=DESCRIPTION,
        epilog="Exit status: 0 listed, 1 the database or the tables are missing, 2 wrong usage.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--state",
        dest="states",
        action="append",
        default=[],
        type=one_of("state", STATES),
        metavar="STATE",
        help="only callbacks in this state; may be given more than once",
    )
    add_narrowing(parser, CALLBACK_CLASSES)
    parser.add_argument(
        "--dag",
        dest="dag_ids",
        action="append",
        default=[],
        metavar="DAG_ID",
        help="only callbacks of this Dag; may be given more than once",
    )
    parser.add_argument(
        "--limit",
        type=numbers.whole(1, MOST),
        default=20,
        metavar="COUNT",
        help="list at most so many (default: 20)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument(
        "--verbose", action="store_true", help="let through what Airflow logs meanwhile, on standard error"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """List them.

    Returns:
        0.

    Raises:
        CommandError: The database or the tables are missing.
    """
    from callback_priority.cli.surroundings import quiet, reading
    from callback_priority.persistence.lookup import newest

    narrow = narrowing(arguments)
    with quiet(verbose=arguments.verbose), reading() as connection:
        found = newest(
            connection,
            limit=arguments.limit,
            states=arguments.states,
            classes=list(map(str, narrow.classes)),
            kinds=narrow.kinds,
            dag_ids=arguments.dag_ids,
        )
    print(_json(found) if arguments.json else _text(found, datetime.now(timezone.utc)))
    return 0


def _json(found: Sequence[Line]) -> str:
    import attrs

    return json.dumps({"callbacks": [attrs.asdict(each) for each in found]}, default=str, indent=2)


def _text(found: Sequence[Line], now: datetime) -> str:
    from callback_priority.cli.text import columns, cut, duration

    if not found:
        return "no callbacks"
    rows = [
        [
            str(each.callback_id),
            each.kind,
            cut(each.name, 60),
            cut(each.dag_id, 60),
            each.state,
            duration((now - each.enqueued_at).total_seconds()),
            cut(each.output, 100),
        ]
        for each in found
    ]
    header = ["id", "kind", "name", "Dag", "state", "age", "output"]
    return "\n".join(columns(header, rows, left=(0, 1, 2, 3, 4, 6)))
