"""``callback-priority tune``: which settings meet goals, and what they cost everyone else."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from callback_priority.cli import numbers
from callback_priority.cli.failures import FAILED
from callback_priority.cli.given import add_given, given_treatments
from callback_priority.cli.scenarios import add_seconds, no_such_scenario, scenario_of

if TYPE_CHECKING:
    from callback_priority.policy.settings import Settings
    from callback_priority.simulation.scenario import Scenario
    from callback_priority.simulation.tuned import Tuned

__all__ = ["add_to", "run"]

DESCRIPTION = """\
Look for weights and reserves that meet goals and take the least from everyone else,
by simulation: the code that decides is the one that decides in production. It needs
neither Airflow's database nor its configuration, and changes nothing. It needs
Optuna: pip install 'callback-priority[simulation]'.

A goal is "CLASS p50|p95|p99|max|mean <= DURATION", from arrival to start, or
"CLASS keeps >= PERCENT", of all slots' time while the class had work waiting.

A scenario is as for simulate. Its own settings do not matter; the search begins from
the defaults, or from what --settings, --policy and --set say of today."""

EPILOG = """\
Exit status: 0 all goals are met, on seeds that the search did not use, too; 1 they are not, or a scenario or settings are invalid,
a file cannot be read or Optuna is missing; 2 wrong usage."""

_MOST_SEEDS = 1_000
_MOST_TRIALS = 10_000
_MOST_JOBS = 256


def add_to(commands: Any) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "tune",
        help="which settings meet goals, and what they cost",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "scenario",
        metavar="SCENARIO",
        help="the name of a scenario, or a TOML or JSON file; simulate --list tells names",
    )
    parser.add_argument(
        "--goal",
        action="append",
        required=True,
        metavar="GOAL",
        help='such as "deadline p95 <= 30 s" or "task keeps >= 80%%"; may be given more than once',
    )
    add_given(parser)

    def count(flag: str, least: int, most: int, default: int | None, text: str) -> None:
        parser.add_argument(
            flag, type=numbers.whole(least, most), default=default, metavar="COUNT", help=text
        )

    count("--trials", 1, _MOST_TRIALS, None, "so many settings in the search; 30 if not given")
    count("--seeds", 2, _MOST_SEEDS, None, "so many runs of each; 5 if not given")
    count("--unseen", 2, _MOST_SEEDS, None, "so many other runs to check the result with; 20 if not given")
    parser.add_argument(
        "--first-seed",
        type=numbers.whole(0, 2**31),
        default=0,
        metavar="SEED",
        help="the first seed; 0 if not given",
    )
    count(
        "--jobs",
        1,
        _MOST_JOBS,
        1,
        "share the runs between so many processes; 1 if not given. The answer is the same",
    )
    parser.add_argument(
        "--margin",
        type=numbers.number(0, 90, "a percentage"),
        metavar="PERCENT",
        help="look for settings that meet each goal by so much, as the real work is not quite the scenario's; "
        "5 for waits if not given",
    )
    add_seconds(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--progress", action="store_true", help="tell how far it is even if standard error is no terminal"
    )
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        1 if the goals are not met, else 0.

    Raises:
        SystemExit: The command line makes no sense.
        ConfigurationError: Something given is invalid.
        MissingExtraError: There is no Optuna.
        OSError: A file cannot be read.
    """
    wrong = _wrong_usage(arguments)
    if wrong:
        arguments.parser.error(wrong)
    return _print(_tune(arguments), as_json=arguments.json)


def _wrong_usage(arguments: argparse.Namespace) -> str:
    """Why the command line makes no sense, if it does not."""
    if len(arguments.given) > 1:
        return (
            "there is one today: give --name once at most, and all of --settings, --policy and --set after it"
        )
    return no_such_scenario(arguments.scenario)


def _tune(arguments: argparse.Namespace) -> Tuned:
    from callback_priority.cli.progress import Progress
    from callback_priority.simulation import tune
    from callback_priority.simulation.goals import parse_goals

    goals = [goal for text in arguments.goal for goal in parse_goals(text)]
    scenario = scenario_of(arguments.scenario, arguments.seconds).scenario
    today = _today(arguments, scenario)
    with Progress(wanted=arguments.progress) as progress:
        return tune.tune(
            scenario,
            goals,
            today,
            trials=arguments.trials or tune.TRIALS,
            seeds=arguments.seeds or tune.SEEDS,
            unseen_seeds=arguments.unseen or tune.UNSEEN_SEEDS,
            first_seed=arguments.first_seed,
            jobs=arguments.jobs,
            margin=None if arguments.margin is None else arguments.margin / 100,
            progress=progress,
        )


def _today(arguments: argparse.Namespace, scenario: Scenario) -> Settings | None:
    """The settings of the command line, if there are any; with notes of what does not suit the scenario."""
    for treatment, notes in given_treatments(arguments.given, scenario):
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        return treatment.settings
    return None


def _print(found: Tuned, *, as_json: bool) -> int:
    from callback_priority.cli.tuned_text import tuned_text
    from callback_priority.simulation.tuned import Verdict

    print(json.dumps(found.to_json()) if as_json else tuned_text(found))
    return 0 if found.verdict is Verdict.MET else FAILED
