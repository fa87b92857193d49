"""``callback-priority simulate``: what settings would do to work like yours, before they are set."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from callback_priority.cli import numbers
from callback_priority.cli.given import add_given, told_treatments
from callback_priority.cli.scenarios import add_seconds, no_such_scenario, scenario_of

if TYPE_CHECKING:
    from callback_priority.simulation.engine import Treatment
    from callback_priority.simulation.scenario_file import ScenarioFile

__all__ = ["add_to", "run"]

DESCRIPTION = """\
Simulate a scheduler with this library on made-up work, under several settings side
by side: the code that decides is the one that decides in production, the clock is not.
It needs neither Airflow's database nor its configuration, and changes nothing.

A scenario is the name of one that comes along (--list tells them) or a TOML or JSON
file. Its own settings are tried first; those given here come after them.

  share          part of the slot-time that was held, by everyone
  used           part of the slots' time that was held
  Jain           1 if classes that waited got what their weights entitle them to
  never started  still waited at the end
  lag            the furthest that two classes drifted apart while both waited

Each seed is one run; all settings see the same work. A mean over seeds stands
with half the width of its confidence interval, as in 42s ±3s."""

_MOST_SEEDS = 10_000
_MOST_JOBS = 256


def add_to(commands: Any) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "simulate",
        help="what settings would do, on made-up work",
        description=DESCRIPTION,
        epilog="Exit status: 0 simulated, 1 a scenario or settings are invalid or a file cannot be read or written, 2 wrong usage.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "scenarios", nargs="*", metavar="SCENARIO", help="the name of a scenario, or a TOML or JSON file"
    )
    parser.add_argument("--list", action="store_true", help="tell which scenarios come along")
    parser.add_argument(
        "--show", action="store_true", help="print the file of a scenario that comes along, to begin from"
    )
    add_given(parser)
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help="try only these settings, of the scenario's or given here; may be given more than once. "
        "The others are held against the first",
    )
    parser.add_argument(
        "--seeds",
        type=numbers.whole(1, _MOST_SEEDS),
        default=5,
        metavar="COUNT",
        help="so many runs each; 5 if not given",
    )
    parser.add_argument(
        "--first-seed",
        type=numbers.whole(0, 2**31),
        default=0,
        metavar="SEED",
        help="the seeds are SEED and those after it; 0 if not given",
    )
    add_seconds(parser)
    parser.add_argument(
        "--confidence",
        type=numbers.number(0.5, 0.9999),
        default=0.99,
        metavar="PART",
        help="of the intervals, between 0 and 1; 0.99 if not given",
    )
    parser.add_argument("--dags", action="store_true", help="tell which Dags waited longest, too")
    parser.add_argument(
        "--jobs",
        type=numbers.whole(1, _MOST_JOBS),
        default=1,
        metavar="COUNT",
        help="share the runs between so many processes; 1 if not given. The results are the same",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object for each scenario, one a line"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write an HTML page with plots, too")
    parser.add_argument(
        "--progress", action="store_true", help="tell how far it is even if standard error is no terminal"
    )
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Simulate, and print what came of it.

    Returns:
        0.

    Raises:
        SystemExit: The command line makes no sense.
        ConfigurationError: Something given is invalid.
        OSError: It cannot be read, or a report not be written.
    """
    wrong = _wrong_usage(arguments)
    if wrong:
        arguments.parser.error(wrong)
    if arguments.list:
        print(_listing())
        return 0
    return _simulate(arguments)


def _wrong_usage(arguments: argparse.Namespace) -> str:
    """Why the command line makes no sense, if it does not."""
    if arguments.list:
        return "--list takes no scenario" if arguments.scenarios else ""
    if not arguments.scenarios:
        return "name a scenario, or a file; --list tells which come along"
    if arguments.report and len(arguments.scenarios) > 1:
        return "--report takes one scenario"
    refusals = (no_such_scenario(name, files=not arguments.show) for name in arguments.scenarios)
    return next(filter(None, refusals), "")


def _listing() -> str:
    from callback_priority.cli.text import indented
    from callback_priority.simulation.library import named_scenario, scenario_names

    width = max(map(len, scenario_names()))
    return "\n".join(
        indented(named_scenario(name).scenario.description, f"{name:<{width}}  ", " " * (width + 2))
        for name in scenario_names()
    )


def _simulate(arguments: argparse.Namespace) -> int:
    from callback_priority.cli.comparison_text import comparison_text
    from callback_priority.cli.progress import Progress
    from callback_priority.cli.reports import told_report
    from callback_priority.simulation.comparison import compare
    from callback_priority.simulation.library import scenario_text

    if arguments.show:
        print("\n".join(scenario_text(name) for name in arguments.scenarios), end="")
        return 0
    files = [scenario_of(name, arguments.seconds) for name in arguments.scenarios]
    chosen = [(each.scenario, _chosen(each, arguments)) for each in files]
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    for number, (scenario, treatments) in enumerate(chosen):
        with Progress(wanted=arguments.progress) as progress:
            found = compare(
                scenario,
                treatments,
                seeds=seeds,
                jobs=arguments.jobs,
                confidence=arguments.confidence,
                progress=progress,
            )
        if arguments.json:
            print(json.dumps(found.to_json()), flush=True)
        else:
            print(("\n\n" if number else "") + comparison_text(found, dags=arguments.dags), flush=True)
        if arguments.report:
            told_report(found, arguments.report)
    return 0


def _chosen(file: ScenarioFile, arguments: argparse.Namespace) -> Sequence[Treatment]:
    """The treatments to try, in order.

    Raises:
        ConfigurationError: Two have the same name, or one that is asked for is not there.
    """
    from callback_priority.errors import ConfigurationError, Problem
    from callback_priority.policy.spelling import guess

    treatments = [*file.treatments, *told_treatments(arguments.given, file.scenario)]
    names = [each.name for each in treatments]
    problems = [
        Problem(key="--name", value=name, remedy="is the name of two; give one of them another")
        for name in sorted({each for each in names if names.count(each) > 1})
    ]
    problems += [
        Problem(
            key="--only",
            value=name,
            remedy=f"no such settings{guess(name, names)}; there are {', '.join(names)}",
        )
        for name in arguments.only or ()
        if name not in names
    ]
    if problems:
        raise ConfigurationError(problems, "the command line")
    return [each for each in treatments if arguments.only is None or each.name in arguments.only]
