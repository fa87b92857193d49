"""``callback-priority replay``: your own history as the workload, under the settings that were active and under others."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from callback_priority.cli import numbers
from callback_priority.cli.given import Given, add_given, told_treatments

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from callback_priority.cli.recollection import Recollection
    from callback_priority.simulation.comparison import ClassSummary, Comparison
    from callback_priority.simulation.engine import Treatment
    from callback_priority.simulation.replay import Recorded, Replay

__all__ = ["AGREES_WITHIN", "Deviation", "add_to", "deviations", "run"]

DESCRIPTION = """\
Simulate what really happened: task instances and callbacks as the metadata database has
them, with their arrivals, holds, pools, widths and priorities, and the code that decides
in production. The waits of each class stand as they were recorded, then under the settings
that were active, then under others. Nothing is written to the database.

Without --database it is the configured Airflow's, whose settings, parallelism and
max_tis_per_query then stand for those that were active. With it, give them with --active,
--slots and --tasks-per-query; what is not given is inferred or the default, and said so.

  arrived             how many began to wait in the stretch; waits are theirs
  waiting             how many waited at its end
  against the record  how far the simulation under the active settings is off. What it
                      says of other settings is worth no more than this."""

ACTIVE: Final = "active"
"""What the settings are called that were active."""

AGREES_WITHIN: Final = {0.5: 0.15, 0.95: 0.25}
"""How far a simulated quantile may be from the recorded one, as a part of it, or one interval between loops where that is more."""

_UNIT_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DEFAULT_LAST: Final = "24h"
_DEFAULT_LOOP_SECONDS: Final = 1.0
_DEFAULT_TASKS_PER_QUERY: Final = 16
_MOST: Final = 1_000_000


@attrs.frozen(kw_only=True)
class Deviation:
    """How far a simulated quantile is from the recorded one.

    Args:
        service_class: The class.
        quantile: Of its waits.
        recorded_seconds: As it was.
        simulated_seconds: As it came out; ``None`` if nothing was started.
        allowed_seconds: How far it may be off.
    """

    service_class: str
    quantile: float
    recorded_seconds: float
    simulated_seconds: float | None
    allowed_seconds: float

    @property
    def agrees(self) -> bool:
        """Whether it is no further off than it may be.

        >>> off = Deviation(service_class="task", quantile=0.5, recorded_seconds=10.0, simulated_seconds=11.6, allowed_seconds=1.5)
        >>> off.agrees
        False
        """
        return (
            self.simulated_seconds is not None
            and abs(self.simulated_seconds - self.recorded_seconds) <= self.allowed_seconds
        )


def add_to(commands: Any) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "replay",
        help="what settings would have done to your own history",
        description=DESCRIPTION,
        epilog="Exit status: 0 simulated, 1 the database cannot be read, has no history, or settings are invalid, 2 wrong usage.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    source = parser.add_argument_group("history")
    source.add_argument(
        "--database",
        metavar="URL",
        help="SQLAlchemy's URL of a metadata database, or the path of an SQLite file; the configured Airflow's if not given",
    )
    source.add_argument(
        "--from",
        dest="since",
        type=_moment,
        metavar="TIME",
        help="from then, such as 2026-01-31T08:00 (UTC unless it says otherwise)",
    )
    source.add_argument(
        "--to",
        dest="until",
        type=_moment,
        metavar="TIME",
        help="until then; until the last grant if not given",
    )
    source.add_argument(
        "--last",
        type=_length,
        default=None,
        metavar="LENGTH",
        help=f"so long before --to, such as 90m, 6h, 2d; {_DEFAULT_LAST} if neither this nor --from is given",
    )
    there = parser.add_argument_group("what there was")
    there.add_argument(
        "--active",
        type=Path,
        metavar="FILE",
        help="the file with the settings that were active; the configured Airflow's if not given, with --database the defaults",
    )
    there.add_argument(
        "--slots", type=numbers.whole(1, _MOST), metavar="COUNT", help="slots of each scheduler (parallelism)"
    )
    there.add_argument(
        "--schedulers", type=numbers.whole(1, _MOST), metavar="COUNT", help="how many schedulers there were"
    )
    there.add_argument(
        "--loop-seconds",
        type=numbers.seconds(0.001, 3_600),
        metavar="SECONDS",
        help="the interval between two loops of a scheduler",
    )
    there.add_argument(
        "--tasks-per-query",
        type=numbers.whole(1, _MOST),
        metavar="COUNT",
        help="the most task instances that one selection finds (max_tis_per_query)",
    )
    add_given(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write an HTML page with plots, too")
    parser.add_argument(
        "--verbose", action="store_true", help="let through what Airflow logs meanwhile, on standard error"
    )
    parser.set_defaults(run=run, parser=parser)


def _moment(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: write a time such as 2026-01-31T08:00") from error
    return found.replace(tzinfo=timezone.utc) if found.tzinfo is None else found.astimezone(timezone.utc)


def _length(text: str) -> timedelta:
    """A length of time.

    >>> _length("90m")
    datetime.timedelta(seconds=5400)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip())
    seconds = float(found[1]) * _UNIT_SECONDS[found[2]] if found else 0.0
    if not 1 <= seconds <= 366 * 86_400:
        raise argparse.ArgumentTypeError(f"{text!r}: write a length of time such as 90m, 6h or 2d")
    return timedelta(seconds=seconds)


def run(arguments: argparse.Namespace) -> int:
    """Simulate history, and print what came of it.

    Returns:
        0.

    Raises:
        SystemExit: The command line makes no sense.
        CommandError: The database cannot be read, or has no history.
        ConfigurationError: Something given is invalid.
        OSError: A file cannot be read, or a report not be written.
    """
    if arguments.since is not None and arguments.last is not None:
        arguments.parser.error("give --from or --last, not both")
    return _replay(arguments)


@attrs.define(kw_only=True)
class _There:
    """What there was, as far as it is known, and what was assumed of it."""

    active: Given
    slots: int | None = None
    tasks_per_query: int = _DEFAULT_TASKS_PER_QUERY
    idle_seconds: float | None = None
    assumptions: list[str] = attrs.field(factory=list)


def _replay(arguments: argparse.Namespace) -> int:
    from callback_priority.cli.progress import Progress
    from callback_priority.cli.reports import told_report
    from callback_priority.cli.surroundings import quiet, reading, reading_from
    from callback_priority.simulation.comparison import compare

    with quiet(verbose=arguments.verbose):
        there = _there(arguments)
        with reading() if arguments.database is None else reading_from(arguments.database) as conn:
            recollection = _recollect(conn, arguments)
    replay, treatments = _made_ready(arguments, there, recollection)
    with Progress() as progress:
        found = compare(replay.scenario, treatments, seeds=(0,), progress=progress)
    assumptions = [*there.assumptions, *recollection.left_out, *replay.assumptions]
    if arguments.json:
        print(json.dumps(_document(recollection, replay, found, assumptions), indent=2))
    else:
        print(_text(recollection, replay, found, assumptions))
    if arguments.report:
        told_report(found, arguments.report, notes=assumptions)
    return 0


def _there(arguments: argparse.Namespace) -> _There:
    """What the configured Airflow says, or the command line."""
    there = _There(active=Given(name=ACTIVE, is_named=True))
    if arguments.active is not None:
        there.active.files.append(arguments.active)
    if arguments.database is None:
        from airflow.configuration import conf

        from callback_priority.adapter.config import raw_section
        from callback_priority.cli.surroundings import parallelism

        if arguments.active is None:
            there.active.options |= raw_section(conf)
        there.assumptions.append(
            "Settings, parallelism and max_tis_per_query are taken to have been those that are configured now."
        )
        there.slots = parallelism()
        there.tasks_per_query = conf.getint("scheduler", "max_tis_per_query")
        there.idle_seconds = conf.getfloat("scheduler", "scheduler_idle_sleep_time")
    elif arguments.active is None:
        there.assumptions.append(
            "The settings that were active are taken to be the defaults, since --active names no others."
        )
    there.slots = arguments.slots or there.slots
    if arguments.tasks_per_query:
        there.tasks_per_query = arguments.tasks_per_query
    if not there.tasks_per_query or there.tasks_per_query > (there.slots or there.tasks_per_query):
        # Airflow takes nought for no cap of its own, and never asks for more than its slots.
        there.tasks_per_query = there.slots or _DEFAULT_TASKS_PER_QUERY
    return there


def _recollect(conn: Connection, arguments: argparse.Namespace) -> Recollection:
    from callback_priority.cli.failures import CommandError
    from callback_priority.cli.recollection import recollect
    from callback_priority.persistence import history

    with history.read_only(conn):
        spans = history.span(conn)
        if spans is None:
            raise CommandError(
                "the database has no history: nothing in it was ever granted a slot",
                "name another with --database",
            )
        whole = f"the history is from {spans[0]:%Y-%m-%d %H:%M:%S} to {spans[1]:%Y-%m-%d %H:%M:%S} UTC"
        until = arguments.until or spans[1] + timedelta(microseconds=1)
        since = arguments.since or max(spans[0], until - (arguments.last or _length(_DEFAULT_LAST)))
        if since >= until:
            raise CommandError(
                f"nothing lies between {since:%Y-%m-%d %H:%M:%S} and {until:%Y-%m-%d %H:%M:%S} UTC",
                whole,
            )
        found = recollect(conn, since=since, until=until)
        if not any(turn.since >= found.past.since for turn in found.past.turns):
            raise CommandError(
                f"nothing began to wait between {since:%Y-%m-%d %H:%M:%S} and {until:%Y-%m-%d %H:%M:%S} UTC",
                whole,
            )
        return found


def _made_ready(
    arguments: argparse.Namespace, there: _There, recollection: Recollection
) -> tuple[Replay, list[Treatment]]:
    from callback_priority.errors import ConfigurationError, Problem
    from callback_priority.simulation.past import loop_seconds_of, most_held
    from callback_priority.simulation.replay import rebuild

    past = recollection.past
    slots = there.slots
    if slots is None:
        slots = max(1, most_held(past.turns))
        there.assumptions.append(
            f"Each scheduler has {slots:,} slots, the most that one was seen to hold at once; give --slots if it had more."
        )
    elif (most := most_held(past.turns)) > slots:
        there.assumptions.append(
            f"A scheduler was seen to hold {most:,} slots at once, not {slots:,}: parallelism was not always what it is now, or what --slots says."
        )
    schedulers = arguments.schedulers
    if schedulers is None:
        schedulers = max(1, recollection.schedulers)
        there.assumptions.append(
            f"The most schedulers that were there at once is {schedulers:,}: so many there are all the time."
        )
    loop_seconds = arguments.loop_seconds
    if loop_seconds is None:
        loop_seconds = loop_seconds_of(past)
        if loop_seconds is None:
            loop_seconds = there.idle_seconds or _DEFAULT_LOOP_SECONDS
            there.assumptions.append(
                f"Too few passes left a record to tell the interval between loops; it is taken to be {loop_seconds:g} s."
            )
        else:
            there.assumptions.append(
                f"A scheduler's loop is taken to come every {loop_seconds:.2f} s: a quarter of the intervals between passes that granted or"
                " settled something while others waited are shorter."
            )
    replay = rebuild(
        past,
        slots=slots,
        schedulers=schedulers,
        loop_seconds=loop_seconds,
        tasks_per_query=there.tasks_per_query,
    )
    given = [there.active, *arguments.given]
    if len({each.name for each in given}) < len(given):
        problem = Problem(
            key="--name", value=ACTIVE, remedy="two have the same name; give one of them another"
        )
        raise ConfigurationError([problem], "the command line")
    treatments = told_treatments(given, replay.scenario)
    there.assumptions += _other_weights(treatments[0], recollection)
    return replay, treatments


def _other_weights(active: Treatment, recollection: Recollection) -> list[str]:
    from callback_priority.core.classes import SCHEDULER_SCOPE, Level
    from callback_priority.core.units import MILLI

    differ = [
        f"{cls} {weight / MILLI:g} instead of {active.settings.weight(Level.SCHEDULER, SCHEDULER_SCOPE, cls) / MILLI:g}"
        for cls, weight in recollection.weights.items()
        if weight != active.settings.weight(Level.SCHEDULER, SCHEDULER_SCOPE, cls)
    ]
    if not differ:
        return []
    return [
        f"The schedulers last shared their slots by other weights than those taken to be active: {', '.join(differ)}."
    ]


# What came of it ------------------------------------------------------------------------------------------------


def deviations(replay: Replay, found: Comparison) -> list[Deviation]:
    """How far the simulation under the active settings is from the record, class by class.

    Args:
        replay: History.
        found: What came of it; the first treatment is what was active.
    """
    told = []
    for cls, recorded in replay.recorded.items():
        simulated = found.treatments[0].classes.get(cls)
        for quantile, part in AGREES_WITHIN.items():
            if quantile in recorded.wait_seconds:
                seconds = recorded.wait_seconds[quantile]
                estimate = simulated.wait_seconds[quantile] if simulated else None
                told.append(
                    Deviation(
                        service_class=str(cls),
                        quantile=quantile,
                        recorded_seconds=seconds,
                        simulated_seconds=estimate.mean if estimate else None,
                        allowed_seconds=max(part * seconds, replay.scenario.loop_seconds),
                    )
                )
    return told


def _document(
    recollection: Recollection, replay: Replay, found: Comparison, assumptions: Sequence[str]
) -> dict[str, object]:
    from callback_priority.cli.recollection import from_micros

    return {
        "from": from_micros(recollection.past.since).isoformat(),
        "to": from_micros(recollection.past.until).isoformat(),
        "assumptions": list(assumptions),
        "recorded": {
            str(cls): {
                "arrived": each.arrived,
                "started": each.started,
                "waiting": each.waiting,
                "wait_seconds": {str(quantile): seconds for quantile, seconds in each.wait_seconds.items()},
                "mean_hold_seconds": each.mean_hold_seconds,
            }
            for cls, each in replay.recorded.items()
        },
        "deviations": [{**attrs.asdict(each), "agrees": each.agrees} for each in deviations(replay, found)],
        "comparison": found.to_json(),
    }


def _text(recollection: Recollection, replay: Replay, found: Comparison, assumptions: Sequence[str]) -> str:
    from callback_priority.cli.recollection import from_micros
    from callback_priority.cli.text import columns, count, duration, indented

    past, scenario = recollection.past, replay.scenario
    schedulers = "" if scenario.schedulers == 1 else f"{scenario.schedulers} schedulers of "
    loop = scenario.loop_seconds
    head = (
        f"{from_micros(past.since):%Y-%m-%d %H:%M:%S} to {from_micros(past.until):%Y-%m-%d %H:%M:%S} UTC, "
        f"{schedulers}{count(scenario.slots, 'slot')}, a loop every {loop:.2g} s"
    )
    lines = [head, ""]
    off = {(each.service_class, each.quantile): each for each in deviations(replay, found)}
    rows = [["recorded", str(cls), *_recorded_cells(each), ""] for cls, each in replay.recorded.items()]
    for number, treatment in enumerate(found.treatments):
        for cls, summary in treatment.classes.items():
            against = [off[str(cls), each] for each in AGREES_WITHIN if (str(cls), each) in off]
            rows.append(
                [
                    treatment.treatment.name,
                    str(cls),
                    *_simulated_cells(summary, replay.recorded.get(cls)),
                    "" if number else ", ".join(map(_off, against)),
                ]
            )
    header = ["", "class", "arrived", "waiting", "wait p50", "p95", "p99", "max", "against the record"]
    lines += [*columns(header, rows, left=(0, 1, 8)), ""]
    wrong = [each for each in off.values() if not each.agrees]
    if not off:
        lines.append("Nothing was recorded to hold the simulation against.")
    elif wrong:
        told = "; ".join(
            f"{each.service_class} p{each.quantile * 100:g} was {duration(each.recorded_seconds)}, not {duration(each.simulated_seconds)}"
            for each in wrong
        )
        lines.append(
            f"Under the settings that were active the simulation does NOT agree with the record: {told}. Something took part that is"
            " not in it; see what was assumed."
        )
    else:
        lines.append(
            "Under the settings that were active the simulation agrees with the record: p50 within 15%, p95 within 25%, or one"
            f" loop ({loop:.2g} s) where that is more."
        )
    lines += ["", "Assumed:", *(indented(each, "- ", "  ") for each in assumptions)]
    return "\n".join(lines)


def _off(each: Deviation) -> str:
    """One deviation, as a part of what was recorded, or in seconds where that is next to nothing."""
    name = f"p{each.quantile * 100:g}"
    if each.simulated_seconds is None:
        return f"{name} never"
    seconds = each.simulated_seconds - each.recorded_seconds
    if each.recorded_seconds < each.allowed_seconds:
        return f"{name} {seconds:+.1f}s"
    return f"{name} {seconds / each.recorded_seconds:+.0%}"


def _recorded_cells(each: Recorded) -> list[str]:
    from callback_priority.cli.text import NOTHING, duration

    waits = [
        duration(each.wait_seconds[at]) if at in each.wait_seconds else NOTHING
        for at in (0.5, 0.95, 0.99, 1.0)
    ]
    return [f"{each.arrived:,}", f"{each.waiting:,}", *waits]


def _simulated_cells(summary: ClassSummary, recorded: Recorded | None) -> list[str]:
    from callback_priority.cli.text import NOTHING, duration

    waits = [NOTHING if each is None else duration(each.mean) for each in summary.wait_seconds.values()]
    arrived = f"{recorded.arrived:,}" if recorded else NOTHING
    return [arrived, f"{summary.waiting.mean:,.0f}", *waits]
