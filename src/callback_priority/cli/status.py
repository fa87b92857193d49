"""``callback-priority status``: who waits, who holds slots, and who got its share."""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

from callback_priority.cli import numbers
from callback_priority.cli.narrowing import add_narrowing, narrowing
from callback_priority.core.classes import CLASS_ORDER

if TYPE_CHECKING:
    from callback_priority.cli.overview import ClassLine, Overview
    from callback_priority.persistence.status import KindCount

__all__ = ["add_to", "run"]

DESCRIPTION = """\
Show who waits for slots, who holds them, and who got which share of late.

  waiting    workloads that wait for a slot
  parked     callbacks set aside until what they lack comes back
  held       slots held now (of a pool: pool slots)
  recent     share of the slot-time given out of late, older slot-time counting less
             (half after ten minutes)
  entitled   share by weight, among the classes that had work of late; a class that
             wants less leaves the rest to the others
  oldest     how long the oldest waiting workload has waited
  p50, p95   waits of the callbacks that finished within the last hour
  reserve    slots held back for the class (scheduler: of each scheduler's slots)
  limit      the most slots that the class may hold (scheduler: of each scheduler's)

Then, over the history that is kept: where the callbacks of each kind stand (triggered:
the triggerer has them), how long they waited and ran; and what became of the requests
that Airflow made for the Dag processor. With --kind the counts and waits are of those
kinds; weights, shares and quotas stay those of their class."""

CLEAR_SCREEN = "\x1b[H\x1b[2J\x1b[3J"


def add_to(commands: Any) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "status",
        help="who waits, who holds slots, and who got its share",
        description=DESCRIPTION,
        epilog="Exit status: 0 shown, 1 the database or the tables are missing, 2 wrong usage.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_narrowing(parser, CLASS_ORDER)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object (with --watch: one a line)"
    )
    parser.add_argument(
        "--watch",
        type=numbers.seconds(0.1, 86_400),
        metavar="SECONDS",
        help="show it again every SECONDS, until Ctrl-C",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="let through what Airflow logs meanwhile, on standard error"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show the overview, once or again and again.

    Returns:
        0.

    Raises:
        CommandError: The database or the tables are missing.
    """
    from callback_priority.cli.overview import overview
    from callback_priority.cli.surroundings import quiet

    while True:
        with quiet(verbose=arguments.verbose):
            found = overview(narrowing(arguments))
        if arguments.json:
            print(_json(found, compact=arguments.watch is not None), flush=True)
        else:
            clear = CLEAR_SCREEN if arguments.watch is not None and sys.stdout.isatty() else ""
            print(clear + _text(found), flush=True)
        if arguments.watch is None:
            return 0
        if not arguments.json and not sys.stdout.isatty():
            print()
        time.sleep(arguments.watch)


def _json(found: Overview, *, compact: bool) -> str:
    import attrs

    return json.dumps(attrs.asdict(found), default=datetime.isoformat, indent=None if compact else 2)


def _text(found: Overview) -> str:
    from callback_priority.cli.text import NOTHING, columns, count, duration, share

    def line(each: ClassLine) -> list[str]:
        return [
            each.service_class,
            f"{each.weight:g}",
            f"{each.waiting:,}",
            f"{each.parked:,}",
            f"{each.held:,}",
            share(each.recent_share),
            share(each.entitled_share),
            duration(each.oldest_wait_seconds),
        ]

    def quota(each: ClassLine) -> list[str]:
        return [str(each.reserve_slots), NOTHING if each.limit_slots is None else str(each.limit_slots)]

    names = ["class", "weight", "waiting", "parked", "held", "recent", "entitled", "oldest"]
    schedulers = count(found.schedulers, "scheduler")
    head = (
        f"mode {found.mode}, policy {found.policy}; {schedulers} alive, "
        f"{found.parallelism} slots each; {found.at:%Y-%m-%d %H:%M:%S} UTC"
    )
    lines = [
        head,
        *(f"note: {note}" for note in found.notes),
        "",
        *columns(
            [*names, "p50", "p95", "reserve", "limit"],
            [
                [*line(each), duration(each.wait_p50_seconds), duration(each.wait_p95_seconds), *quota(each)]
                for each in found.classes
            ],
        ),
    ]
    rows = []
    for pool in found.pools:
        slots = str(pool.slots) if pool.slots is not None else "no end" if pool.exists else "gone"
        rows += [[pool.pool, slots, *line(each), *quota(each)] for each in pool.classes]
    if rows:
        lines += ["", *columns(["pool", "slots", *names, "reserve", "limit"], rows, left=(0, 2))]
    return "\n".join([*lines, *_kinds(found), *_requests(found)])


def _kinds(found: Overview) -> list[str]:
    from callback_priority.cli.text import columns, duration
    from callback_priority.persistence.status import STATES

    def line(each: KindCount) -> list[str]:
        times = each.wait_p50_seconds, each.wait_p95_seconds, each.run_p50_seconds, each.run_p95_seconds
        return [
            each.kind,
            each.service_class,
            *(f"{each.states.get(state, 0):,}" for state in states),
            *map(duration, times),
        ]

    if not found.kinds:
        return []
    states = [
        state for state in STATES if state != "done" or any(state in each.states for each in found.kinds)
    ]
    header = ["kind", "class", *states, "wait p50", "wait p95", "ran p50", "ran p95"]
    return ["", *columns(header, [line(each) for each in found.kinds], left=(0, 1))]


def _requests(found: Overview) -> list[str]:
    from callback_priority.cli.text import columns, cut, duration

    if not found.requests:
        return []
    rows = [
        [
            each.kind,
            each.outcome,
            f"{each.requests:,}",
            f"{each.units:,}",
            f"{duration((found.at - each.last_at).total_seconds())} ago",
            cut(each.reason, 200),
        ]
        for each in found.requests
    ]
    header = ["request", "outcome", "requests", "callables", "last", "reason"]
    return ["", *columns(header, rows, left=(0, 1, 5))]
