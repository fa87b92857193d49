"""``python -m tests.chaos``: kill everything again and again under load, and see whether anything is lost.

Two deployments one after the other, each on PostgreSQL with two schedulers: with Celery and two workers, then with
LocalExecutor. It ends non-zero if one figure is not as it must be.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.chaos.judge import Finding
from tests.chaos.load import Amounts
from tests.chaos.phase import Phase
from tests.chaos.supervisor import Plan

FULL = (
    Phase(
        executor="CeleryExecutor",
        amounts=Amounts(
            deadlines=150, task_callbacks=1400, dag_callbacks=1200, mails=200, tasks=500, seconds=480
        ),
        plan=Plan(
            schedulers=36,
            critical=16,
            committed=6,
            workers=10,
            processes=4,
            databases=5,
            pause_seconds=(0.5, 6.0),
        ),
        most_seconds=1500,
    ),
    Phase(
        executor="LocalExecutor",
        amounts=Amounts(
            deadlines=150, task_callbacks=1000, dag_callbacks=800, mails=150, tasks=500, seconds=420
        ),
        plan=Plan(
            schedulers=24,
            critical=12,
            committed=6,
            workers=0,
            processes=12,
            databases=2,
            pause_seconds=(0.5, 6.0),
        ),
        most_seconds=1500,
    ),
)
QUICK = tuple(
    Phase(
        executor=executor,
        amounts=Amounts(deadlines=60, task_callbacks=160, dag_callbacks=160, mails=30, tasks=50, seconds=80),
        plan=Plan(
            schedulers=3,
            critical=3,
            committed=1,
            workers=1 if executor == "CeleryExecutor" else 0,
            processes=1,
            databases=1,
            pause_seconds=(1.0, 8.0),
        ),
        most_seconds=240,
    )
    for executor in ("CeleryExecutor", "LocalExecutor")
)


def main() -> int:
    """Run the phases; 1 if anything does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of kills and load")
    parser.add_argument("--quick", action="store_true", help="a few minutes, with a few kills of each kind")
    parser.add_argument(
        "--executor", choices=("CeleryExecutor", "LocalExecutor"), help="only this one's phase"
    )
    parser.add_argument(
        "--keep", type=Path, help="a new directory for logs and homes, instead of one that is removed"
    )
    arguments = parser.parse_args()
    directory = arguments.keep or Path(tempfile.mkdtemp(prefix="callback-priority-chaos-"))
    # Ending by an exception takes all that was started along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()

    def tell(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {text}", flush=True)

    broken = 0
    try:
        for phase in QUICK if arguments.quick else FULL:
            if arguments.executor in {None, phase.executor}:
                tell(f"{phase.executor}: {phase.amounts.callbacks} callbacks, {phase.amounts.tasks} tasks")
                place = directory / phase.executor
                place.mkdir(parents=True)
                broken += report(phase.executor, phase.run(place, arguments.seed, tell))
    finally:
        if arguments.keep is None:
            shutil.rmtree(directory, ignore_errors=True)
    memory = psutil.virtual_memory().total / 2**30
    print(
        f"\npython -m tests.chaos {' '.join(sys.argv[1:])} (seed {arguments.seed}), {os.cpu_count()} cores, "
        f"{memory:.0f} GiB, Python {platform.python_version()}, {time.monotonic() - began:.0f} s"
    )
    print(f"{broken} figure(s) are not as they must be" if broken else "everything holds")
    return 1 if broken else 0


def report(title: str, findings: list[Finding]) -> int:
    """Print the figures; returns how many are not as they must be."""
    print(f"\n{title}")
    width = max(len(each.name) for each in findings)
    for each in findings:
        verdict = {True: "holds", False: "BROKEN", None: ""}[each.holds]
        wanted = f"(must be {each.wanted})" if each.wanted else ""
        print(f"  {each.name:<{width}}  {each.value!s:>12}  {wanted:<18} {verdict}".rstrip())
        for example in each.examples:
            print(f"      {example}")
    print(flush=True)
    return sum(each.holds is False for each in findings)


if __name__ == "__main__":
    sys.exit(main())
