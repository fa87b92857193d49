"""``callback-priority lint``: what settings promise when everyone is busy, what they rule out, and what is in vain."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from callback_priority.cli import numbers
from callback_priority.cli.failures import FAILED
from callback_priority.cli.narrowing import one_of
from callback_priority.core.classes import CLASS_ORDER, Level, ServiceClass

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from callback_priority.errors import Problem
    from callback_priority.policy.bounds import Bounds, Deployment
    from callback_priority.policy.settings import Settings

__all__ = ["add_to", "run"]

DESCRIPTION = """\
Check settings before they are set: what each class is guaranteed when every class is
busy, how long the first in its line waits at worst, what can never run, which reserve
is out of reach. All problems are told at once. Nothing is simulated: the waits are
worst cases, worked out from the longest holds and from proven bounds.

  reserve, limit  of all schedulers' slots together, or of the pool's
  guaranteed      slots held on average while every class has work
  bounded by      turn: fair queuing; reserve: slots that nobody else can take;
                  order: a strict policy's first; never, none: why is told below
  at worst        the longest wait of the first in line
  after quiet     the same, if the class runs nothing and owes nothing

Give --config and --pools, and Airflow is not loaded. What is not given is the
configured Airflow's, and its database's."""

_DAYS = 7
_MOST = 2**31 - 1
_LONGEST = 1e10
_HOLDS = '{"task": 900, "deadline": 30}'


def add_to(commands: Any) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "lint",
        help="what settings guarantee, and what in them is wrong",
        description=DESCRIPTION,
        epilog="Exit status: 0 nothing is wrong, 1 something is, or cannot be read, 2 wrong usage.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="take the settings from its section [callback_priority], such as airflow.cfg; FILE may be the section alone",
    )
    parser.add_argument(
        "--pools",
        type=Path,
        metavar="FILE",
        help='JSON with the slots of each pool, as in {"default_pool": 128, "etl": {"slots": 4, "widest": 2}, "all": -1}, '
        "-1 for one without end, or what `airflow pools export` wrote; widest is the most pool_slots of a task",
    )
    parser.add_argument(
        "--slots", type=numbers.whole(1, _MOST), metavar="COUNT", help="slots of each scheduler (parallelism)"
    )
    parser.add_argument(
        "--schedulers", type=numbers.whole(1, _MOST), metavar="COUNT", help="how many schedulers there are"
    )
    parser.add_argument(
        "--loop-seconds",
        type=numbers.seconds(0, 86_400),
        default=1.0,
        metavar="SECONDS",
        help="the longest time from one loop of a scheduler to the next; 1 if not given",
    )
    parser.add_argument(
        "--tasks-per-query",
        type=numbers.whole(1, _MOST),
        metavar="COUNT",
        help="the most task instances that one selection finds (max_tis_per_query)",
    )
    holds = parser.add_mutually_exclusive_group()
    holds.add_argument(
        "--holds",
        type=_holds,
        metavar="JSON",
        help=f"the longest hold of each class in seconds, as in '{_HOLDS}'",
    )
    holds.add_argument(
        "--observed",
        action="store_true",
        help=f"take the longest hold of each class in the last {_DAYS} days from the metadata database",
    )
    parser.add_argument(
        "--database",
        metavar="URL",
        help="SQLAlchemy's URL of that database, or the path of an SQLite file; the configured Airflow's if not given",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument(
        "--verbose", action="store_true", help="let through what Airflow logs meanwhile, on standard error"
    )
    parser.set_defaults(run=run)


def _holds(text: str) -> dict[ServiceClass, float]:
    try:
        given = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: write JSON such as {_HOLDS}: {error}") from error
    if not isinstance(given, dict):
        raise argparse.ArgumentTypeError(
            f"{text!r}: write an object of classes and seconds, such as {_HOLDS}"
        )
    known = one_of("service class", map(str, CLASS_ORDER))
    for name, seconds in given.items():
        known(name)
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < _LONGEST:
            raise argparse.ArgumentTypeError(
                f"{name} = {seconds!r}: write a number of seconds from 0 to below {_LONGEST:.0f}"
            )
    return {ServiceClass(name): float(seconds) for name, seconds in given.items()}


def run(arguments: argparse.Namespace) -> int:
    """Check, and print what was found.

    Returns:
        1 if something is wrong, else 0.

    Raises:
        CommandError: The database or Airflow's configuration cannot be read.
        OSError: A file cannot be read.
    """
    from callback_priority.cli.surroundings import quiet
    from callback_priority.errors import ConfigurationError
    from callback_priority.policy.bounds import bounds

    try:
        with quiet(verbose=arguments.verbose):
            settings = _settings(arguments)
            deployment = _deployment(arguments)
    except ConfigurationError as error:
        print(_refused(error.problems) if arguments.json else str(error))
        return FAILED
    found = bounds(settings, deployment)
    print(_json(found, deployment) if arguments.json else _text(found, settings, deployment))
    return FAILED if found.problems else 0


# What is checked ------------------------------------------------------------------------------------------


def _settings(arguments: argparse.Namespace) -> Settings:
    from callback_priority.cli import surroundings
    from callback_priority.policy.parse import parse_settings
    from callback_priority.policy.section import section_of

    if arguments.config is None:
        return surroundings.settings()
    return parse_settings(section_of(arguments.config))


def _deployment(arguments: argparse.Namespace) -> Deployment:
    from callback_priority.cli import surroundings
    from callback_priority.policy.bounds import Deployment

    airflow = arguments.config is None or arguments.pools is None
    slots, cap = arguments.slots, arguments.tasks_per_query
    if slots is None:
        slots = (
            surroundings.parallelism() if airflow else _of_file(arguments.config, "core", "parallelism", 32)
        )
    if cap is None:
        cap = (
            _of_airflow("scheduler", "max_tis_per_query")
            if airflow
            else _of_file(arguments.config, "scheduler", "max_tis_per_query", 16)
        )
    pools: dict[str, int | None]
    widest: dict[str, int] = {}
    schedulers = arguments.schedulers
    if arguments.pools is not None:
        pools, widest = _pools(arguments.pools)
    else:
        pools, living = _pools_of_database(arguments)
        schedulers = schedulers or living
    holds = arguments.holds or {}
    if arguments.observed:
        holds, seen = _observed(arguments)
        widest = {**seen, **widest}
    return Deployment(
        slots=slots,
        schedulers=schedulers or 1,
        pools=pools,
        widest_tasks=widest,
        loop_seconds=arguments.loop_seconds,
        # Nought is no cap of its own in Airflow: as many as there are slots.
        tasks_per_query=cap or None,
        hold_seconds=holds,
    )


def _of_airflow(section: str, option: str) -> int:
    from airflow.configuration import conf

    return int(conf.getint(section, option))


def _of_file(path: Path, section: str, option: str, default: int) -> int:
    """A number of Airflow's own in the file with the settings; Airflow's default if it says none."""
    import configparser

    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read(path, encoding="utf-8")
        return parser.getint(section, option, fallback=default)
    except (configparser.Error, ValueError):
        return default


def _pools(path: Path) -> tuple[dict[str, int | None], dict[str, int]]:
    """Slots and widest task instances by pool, from a file."""
    from callback_priority.errors import ConfigurationError, Problem

    def whole(number: object, least: int) -> bool:
        return isinstance(number, int) and not isinstance(number, bool) and number >= least

    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        problem = Problem(key=str(path), value="the file", remedy=f"is not JSON: {error}")
        raise ConfigurationError([problem], str(path)) from error
    example = '{"default_pool": 128, "etl": {"slots": 4, "widest": 2}}'
    if not isinstance(given, dict):
        problem = Problem(key=str(path), value="the file", remedy=f"write an object such as {example}")
        raise ConfigurationError([problem], str(path))
    problems = []
    pools: dict[str, int | None] = {}
    widest: dict[str, int] = {}
    for name, value in given.items():
        entry = value if isinstance(value, dict) else {"slots": value}
        slots, width = entry.get("slots"), entry.get("widest", 1)
        if not whole(slots, -1) or not whole(width, 1):
            remedy = f"write its slots, -1 for a pool without end, and its widest task from 1 on: {example}"
            problems.append(Problem(key=name, value=value, remedy=remedy))
            continue
        pools[name] = None if slots == -1 else slots
        if width > 1:
            widest[name] = width
    if problems:
        raise ConfigurationError(problems, str(path))
    return pools, widest


def _connection(arguments: argparse.Namespace) -> Any:
    from callback_priority.cli import surroundings

    if arguments.database is None:
        return surroundings.reading()
    return surroundings.reading_from(arguments.database)


def _pools_of_database(arguments: argparse.Namespace) -> tuple[dict[str, int | None], int]:
    from callback_priority.cli import surroundings
    from callback_priority.persistence.deployment import living_schedulers, pool_slots

    with _connection(arguments) as conn:
        since = surroundings.living_since(datetime.now(timezone.utc))
        return dict(pool_slots(conn)), len(living_schedulers(conn, living_since=since))


def _observed(arguments: argparse.Namespace) -> tuple[dict[ServiceClass, float], dict[str, int]]:
    """The longest holds by class, and the widest task instances by pool."""
    with _connection(arguments) as conn:
        return longest_holds(conn, until=datetime.now(timezone.utc))


def longest_holds(conn: Connection, *, until: datetime) -> tuple[dict[ServiceClass, float], dict[str, int]]:
    """What the database remembers of the last days.

    Args:
        conn: Connection to a metadata database.
        until: The present. What still holds its slot has held it until then.

    Returns:
        The longest hold of each class that held a slot, in seconds, and the widest task instance of each pool.
    """
    from callback_priority.persistence import history

    since = until - timedelta(days=_DAYS)
    holds: dict[ServiceClass, float] = {}
    widest: dict[str, int] = {}

    def note(cls: ServiceClass, begin: datetime | None, end: datetime | None) -> None:
        if begin is not None:
            holds[cls] = max(holds.get(cls, 0.0), ((end or until) - begin).total_seconds())

    with history.read_only(conn):
        for task in history.task_turns(conn, since=since, until=until):
            note(ServiceClass.TASK, task.queued_at, task.ended_at)
            widest[task.pool] = max(widest.get(task.pool, 1), task.pool_slots)
        for callback in history.callback_turns(conn, since=since, until=until):
            if not callback.rides:
                note(callback.service_class, callback.granted_at, callback.finished_at)
    return holds, {pool: width for pool, width in widest.items() if width > 1}


# What is told ---------------------------------------------------------------------------------------------


def _problems(problems: Sequence[Problem]) -> list[dict[str, object]]:
    return [{"key": each.key, "value": str(each.value), "remedy": each.remedy} for each in problems]


def _refused(problems: Sequence[Problem]) -> str:
    return json.dumps({"problems": _problems(problems), "guarantees": [], "waits": []}, indent=2)


def _json(found: Bounds, deployment: Deployment) -> str:
    import attrs

    return json.dumps(
        {
            "problems": _problems(found.problems),
            "deployment": {
                "slots": deployment.slots,
                "schedulers": deployment.schedulers,
                "pools": dict(deployment.pools),
                "widest_tasks": dict(deployment.widest_tasks),
                "loop_seconds": deployment.loop_seconds,
                "tasks_per_query": deployment.tasks_per_query,
                "hold_seconds": dict(deployment.hold_seconds),
            },
            "guarantees": [attrs.asdict(each) for each in found.guarantees],
            "waits": [attrs.asdict(each) for each in found.waits],
        },
        indent=2,
    )


def _text(found: Bounds, settings: Settings, deployment: Deployment) -> str:
    from callback_priority.cli.text import NOTHING, columns, count, duration, indented

    def slots(number: float | None) -> str:
        return "no end" if number is None else f"{number:.1f}".removesuffix(".0")

    guarantees = [
        [
            f"pool {each.scope}" if each.level is Level.POOL else "schedulers",
            each.service_class,
            f"{each.weight:g}",
            str(each.reserve_slots),
            NOTHING if each.limit_slots is None else str(each.limit_slots),
            slots(each.slots),
        ]
        for each in found.guarantees
    ]
    holds: Mapping[ServiceClass, float] = deployment.hold_seconds
    waits = [
        [
            each.service_class,
            each.pool,
            duration(holds.get(each.service_class)),
            each.basis,
            duration(each.seconds),
            duration(each.after_quiet_seconds),
        ]
        for each in found.waits
    ]
    schedulers = count(deployment.schedulers, "scheduler")
    head = (
        f"mode {settings.mode}, policy {settings.policy}; {schedulers}, {deployment.slots} slots each; "
        f"{count(len(deployment.pools), 'pool')}"
    )
    lines = [
        head,
        "",
        *columns(
            ["where", "class", "weight", "reserve", "limit", "guaranteed"],
            guarantees,
            left=(0, 1),
        ),
        "",
        *columns(
            ["class", "pool", "longest hold", "bounded by", "at worst", "after quiet"], waits, left=(0, 1, 3)
        ),
    ]
    reasons: dict[str, list[str]] = {}
    for wait in found.waits:
        if wait.why:
            reasons.setdefault(wait.why, []).append(f"{wait.service_class} in {wait.pool}")
    if reasons:
        lines.append("")
        lines += [indented(f"{', '.join(who)}: {why}", "- ", "  ") for why, who in reasons.items()]
    lines.append("")
    for problem in found.problems:
        lines += [
            indented(f"{problem.key} = {problem.value!r}", "FAIL  ", "      "),
            indented(problem.remedy, "      -> ", "         "),
        ]
    lines.append(f"{count(len(found.problems), 'problem')}")
    return "\n".join(lines)
