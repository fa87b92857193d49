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
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from callback_priority.demo.components import adopt_orphans, end_descendants
from callback_priority.demo.load import Load, make_load
from callback_priority.demo.phase import Outcome, run_phase
from callback_priority.demo.picture import draw
from callback_priority.demo.promise import Promise, make_promise
from callback_priority.demo.summary import make_summary, table
from callback_priority.demo.surroundings import Home
from callback_priority.errors import CallbackPriorityError

__all__ = ["keep_database", "main"]

KEPT: Final = 0
PROMISE_BROKEN: Final = 1
FAILED: Final = 2
INTERRUPTED: Final = 130

_PHASES: Final = (
    ("stock", "off", "Stock Airflow"),
    ("fair", "active", "callback-priority, equal weights"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both phases and compare them.

    Returns:
        0 if the fair run kept its promise, 1 if not, 2 if a run came to nothing, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="python -m callback_priority.demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="where the results go")
    parser.add_argument("--seed", type=int, default=7, help="of the load")
    options = parser.parse_args(arguments)
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    # A polite request to end, or a closed terminal, is handled as Ctrl-C is.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    adopt_orphans()
    home = Home(path=Path(tempfile.mkdtemp(prefix="callback-priority-demo-")))
    try:
        return _run(make_load(options.seed), home, output)
    except KeyboardInterrupt:
        print("\nInterrupted; everything that was started has been stopped.", flush=True)
        return INTERRUPTED
    except (CallbackPriorityError, OSError, sqlite3.Error, subprocess.SubprocessError) as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr, flush=True)
        _keep_logs(home, output)
        return FAILED
    finally:
        end_descendants()
        shutil.rmtree(home.path, ignore_errors=True)


def _run(load: Load, home: Home, output: Path) -> int:
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - began:4.0f} s] {line}", flush=True)

    promise = make_promise(load)
    print(
        f"{load.slots} slots; {load.tasks} task instances of {_range(load.task_seconds)} keep coming for "
        f"{load.duration_seconds:.0f} s; after {load.flood_at_seconds:.0f} s {load.flood_callbacks} deadline callbacks "
        f"of {_range(load.callback_seconds)} come at once.\n\n{promise.text()}\n",
        flush=True,
    )
    say("migrating a database")
    home.make_template(load)
    outcomes = []
    for phase, mode, title in _PHASES:
        say(f"{title}: starting Airflow with [callback_priority] mode = {mode}")
        outcomes.append(run_phase(phase, mode, load, home, lambda line: say(f"  {line}")))
        keep_database(home.database(phase), output / f"{phase}.db")
    return _report(load, promise, outcomes, home, output, time.monotonic() - began)


def _report(
    load: Load, promise: Promise, outcomes: Sequence[Outcome], home: Home, output: Path, seconds: float
) -> int:
    titles = {phase: title for phase, _, title in _PHASES}
    summaries = [
        (titles[one.phase], make_summary(one.runs, load, one.end_seconds, promise.stretch_seconds))
        for one in outcomes
    ]
    draw(
        output / "comparison.png",
        load,
        [(titles[one.phase], one.runs, one.end_seconds) for one in outcomes],
    )
    fair_outcome, fair_summary = outcomes[-1], summaries[-1][1]
    broken = list(promise.broken(fair_summary))
    if not fair_outcome.granted:
        broken.append("the library granted no callback: its hook was not at work, see the scheduler's log")
    broken += [
        f"{one.failed} workloads failed in the phase {one.phase}, see the logs"
        for one in outcomes
        if one.failed
    ]
    verdict = "\n".join(
        ["Broken:", *(f"  {line}" for line in broken)] if broken else ["The fair run kept its promise."]
    )
    stock = promise.broken(summaries[0][1])
    if stock:
        verdict += "\n" + "\n".join(
            ["Stock Airflow, for comparison, would have broken it:", *(f"  {line}" for line in stock)]
        )
    text = f"{table(summaries, promise.stretch_seconds)}\n\n{promise.text()}\n{verdict}\n"
    (output / "table.txt").write_text(text, encoding="utf-8")
    print(
        f"\n{text}\nTable and picture: {output}/table.txt, {output}/comparison.png   ({seconds:.0f} s in all)\n"
        f"What else settings would have done: callback-priority replay --database {output}/fair.db --slots {load.slots}",
        flush=True,
    )
    if broken:
        _keep_logs(home, output)
    return PROMISE_BROKEN if broken else KEPT


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
