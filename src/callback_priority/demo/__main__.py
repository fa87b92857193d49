"""Run the demo: `python -m callback_priority.demo`."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs

from callback_priority.demo.components import adopt_orphans, end_descendants
from callback_priority.demo.goals import missed_goals, value_text
from callback_priority.demo.load import Load, make_load
from callback_priority.demo.phase import Outcome, run_phase
from callback_priority.demo.picture import draw
from callback_priority.demo.promise import STRETCH_SECONDS, Promise, make_promise
from callback_priority.demo.summary import Summary, make_summary, table
from callback_priority.demo.surroundings import Home
from callback_priority.errors import CallbackPriorityError
from callback_priority.policy.parse import load_settings
from callback_priority.policy.section import section_of
from callback_priority.policy.settings import DEFAULT_POOL
from callback_priority.simulation.goals import Goal, parse_goals

__all__ = ["keep_database", "main"]

KEPT: Final = 0
PROMISE_BROKEN: Final = 1
FAILED: Final = 2
INTERRUPTED: Final = 130

DEFAULT_POOL_SLOTS: Final = 128
"""As Airflow makes it."""


@attrs.frozen(kw_only=True)
class _Asked:
    """What the command line asks for.

    Args:
        load: What both phases are put under.
        output: Where the results go.
        settings: The file whose settings the library has; those by default if there is none.
        options: What it sets.
        goals: What the library's phase has to meet besides.
    """

    load: Load
    output: Path
    settings: Path | None
    options: Mapping[str, str]
    goals: Sequence[Goal]

    @property
    def phases(self) -> tuple[tuple[str, str, str], ...]:
        """Name, mode and title of each phase."""
        what = self.settings.name if self.settings else "equal weights"
        return ("stock", "off", "Stock Airflow"), ("fair", "active", f"callback-priority, {what}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both phases and compare them.

    Returns:
        0 if the library's run kept its promise and met the goals, 1 if not, 2 if a run came to nothing, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="python -m callback_priority.demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="where the results go")
    parser.add_argument("--seed", type=int, default=7, help="of the load")
    parser.add_argument(
        "--settings",
        type=Path,
        metavar="FILE",
        help="give the library the options of the section [callback_priority] of FILE; FILE may be the section alone",
    )
    parser.add_argument(
        "--goal",
        action="append",
        default=[],
        metavar="GOAL",
        help='hold the outcome against it, such as "deadline p95 <= 70 s"; may be given more than once',
    )
    try:
        asked = _asked(parser.parse_args(arguments))
    except (CallbackPriorityError, OSError) as error:
        parser.error(str(error))
    asked.output.mkdir(parents=True, exist_ok=True)
    # A polite request to end, or a closed terminal, is handled as Ctrl-C is.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    adopt_orphans()
    home = Home(path=Path(tempfile.mkdtemp(prefix="callback-priority-demo-")))
    try:
        return _run(asked, home)
    except KeyboardInterrupt:
        print("\nInterrupted; everything that was started has been stopped.", flush=True)
        return INTERRUPTED
    except (CallbackPriorityError, OSError, sqlite3.Error, subprocess.SubprocessError) as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr, flush=True)
        _keep_logs(home, asked.output)
        return FAILED
    finally:
        end_descendants()
        shutil.rmtree(home.path, ignore_errors=True)


def _asked(given: argparse.Namespace) -> _Asked:
    """What was given on the command line, read and checked.

    Raises:
        ConfigurationError: The settings or the goals are invalid.
        OSError: The file cannot be read.
    """
    load = make_load(given.seed)
    options = section_of(given.settings) if given.settings else {}
    load_settings(options, pool_slots={DEFAULT_POOL: DEFAULT_POOL_SLOTS}, parallelism=load.slots)
    return _Asked(
        load=load,
        output=given.output,
        settings=given.settings,
        options=options,
        goals=[goal for text in given.goal for goal in parse_goals(text)],
    )


def _run(asked: _Asked, home: Home) -> int:
    load, output = asked.load, asked.output
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - began:4.0f} s] {line}", flush=True)

    # It is worked out for equal weights, and says nothing of other settings.
    promise = None if asked.settings else make_promise(load)
    said = [promise.text()] if promise else []
    if asked.goals:
        said.append("The goals: " + ", ".join(goal.text for goal in asked.goals))
    print(
        f"{load.slots} slots; {load.tasks} task instances of {_range(load.task_seconds)} keep coming for "
        f"{load.duration_seconds:.0f} s; after {load.flood_at_seconds:.0f} s {load.flood_callbacks} deadline callbacks "
        f"of {_range(load.callback_seconds)} come at once.\n",
        *(f"{each}\n" for each in said),
        sep="\n",
        flush=True,
    )
    say("migrating a database")
    home.make_template(load)
    outcomes = []
    for phase, mode, title in asked.phases:
        say(f"{title}: starting Airflow with [callback_priority] mode = {mode}")
        outcomes.append(run_phase(phase, mode, load, home, lambda line: say(f"  {line}"), asked.options))
        keep_database(home.database(phase), output / f"{phase}.db")
    return _report(asked, promise, outcomes, home, time.monotonic() - began)


def _report(
    asked: _Asked, promise: Promise | None, outcomes: Sequence[Outcome], home: Home, seconds: float
) -> int:
    load, output = asked.load, asked.output
    titles = {phase: title for phase, _, title in asked.phases}
    summaries = [
        (titles[one.phase], make_summary(one.runs, load, one.end_seconds, STRETCH_SECONDS))
        for one in outcomes
    ]
    draw(
        output / "comparison.png",
        load,
        [(titles[one.phase], one.runs, one.end_seconds) for one in outcomes],
    )
    fair = outcomes[-1]
    parts = [table(summaries, STRETCH_SECONDS)]
    broken = (
        []
        if fair.granted
        else ["the library granted no callback: its hook was not at work, see the scheduler's log"]
    )
    broken += [
        f"{one.failed} workloads failed in the phase {one.phase}, see the logs"
        for one in outcomes
        if one.failed
    ]
    if promise:
        broken += promise.broken(summaries[-1][1])
        parts.append(promise.text())
    if asked.goals:
        missed = missed_goals(asked.goals, fair.runs, slots=load.slots, end_seconds=fair.end_seconds)
        broken += [f"the goal {goal.text!r} was missed" for goal in missed]
        parts.append(_goals_text(asked, outcomes))
    parts.append(_verdict(asked, promise, summaries, broken))
    text = "\n\n".join(filter(None, parts)) + "\n"
    (output / "table.txt").write_text(text, encoding="utf-8")
    print(
        f"\n{text}\nTable and picture: {output}/table.txt, {output}/comparison.png   ({seconds:.0f} s in all)\n"
        f"What else settings would have done: callback-priority replay --database {output}/fair.db --slots {load.slots}",
        flush=True,
    )
    if broken:
        _keep_logs(home, output)
    return PROMISE_BROKEN if broken else KEPT


def _goals_text(asked: _Asked, outcomes: Sequence[Outcome]) -> str:
    rows = [
        [
            goal.text,
            *(
                value_text(goal, one.runs, slots=asked.load.slots, end_seconds=one.end_seconds)
                for one in outcomes
            ),
        ]
        for goal in asked.goals
    ]
    return "\n".join(
        f"{goal:32}{stock:>14}{given:>14}" for goal, stock, given in [["goal", "stock", "library"], *rows]
    )


def _verdict(
    asked: _Asked,
    promise: Promise | None,
    summaries: Sequence[tuple[str, Summary]],
    broken: Sequence[str],
) -> str:
    kept = [
        *(["The fair run kept its promise."] if promise else []),
        *(["All goals are met."] if asked.goals else []),
    ]
    lines = ["Broken:", *(f"  {line}" for line in broken)] if broken else [" ".join(kept)]
    stock = promise.broken(summaries[0][1]) if promise else ()
    if stock:
        lines += ["Stock Airflow, for comparison, would have broken it:", *(f"  {line}" for line in stock)]
    return "\n".join(lines)


def keep_database(database: Path, kept: Path) -> None:
    """Keep a phase's metadata database, for `callback-priority replay`, as one file and without what is empty in it."""
    kept.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("VACUUM INTO ?", (str(kept),))


def _keep_logs(home: Home, output: Path) -> None:
    logs = output / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        shutil.copytree(home.path / "logs", logs)
        print(f"The logs are kept in {logs}", file=sys.stderr, flush=True)


def _range(seconds: tuple[float, float]) -> str:
    return f"{seconds[0]:g} to {seconds[1]:g} s"


if __name__ == "__main__":
    sys.exit(main())
