"""Draw the plots of ``docs/explanation/bounds.md``: what the engine measures, and the bounds.

Run from the repository: ``python tools/bounds_plots.py``. Needs the extra ``simulation`` (matplotlib), and no Airflow. The same
command draws the same pictures.
"""

from __future__ import annotations

import sys
from itertools import accumulate
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from callback_priority.core.classes import ServiceClass  # noqa: E402
from callback_priority.policy.bounds import Basis  # noqa: E402
from callback_priority.simulation.arrivals import Poisson  # noqa: E402
from callback_priority.simulation.engine import Accounting, Treatment  # noqa: E402
from callback_priority.simulation.holds import Exponential  # noqa: E402
from callback_priority.simulation.results import run  # noqa: E402
from callback_priority.simulation.scenario import Scenario, Stream  # noqa: E402
from tests.properties.waits import overcharged, world  # noqa: E402

IMAGES = ROOT / "docs" / "explanation" / "images"
TASK, DEADLINE = ServiceClass.TASK, ServiceClass.DEADLINE
BLUE, ORANGE, GREY = "#1f77b4", "#d95f02", "#777777"
WORLDS = 200


def _save(name: str) -> None:
    plt.tight_layout()
    plt.savefig(IMAGES / f"{name}.svg", metadata={"Date": None, "Creator": None})
    plt.close()


def drift() -> None:
    """Two classes that both always wait: fair by slot-time stays where it is, fair by starts runs away."""
    scenario = Scenario(
        name="flood",
        seconds=6 * 3_600,
        streams=(
            Stream(name="tasks", service_class=TASK, holds=Exponential(mean_seconds=900)),
            Stream(
                name="flood",
                service_class=DEADLINE,
                holds=Exponential(mean_seconds=6),
                arrivals=Poisson(rate_per_second=4),
            ),
        ),
        slots=16,
    )
    plt.figure(figsize=(6.4, 3.2))
    for accounting, colour, label in (
        (Accounting.STARTS, ORANGE, "fair by starts"),
        (Accounting.SLOT_TIME, BLUE, "fair by slot-time"),
    ):
        found = run(scenario, Treatment(name=label, accounting=accounting), seed=1)
        step = scenario.seconds / len(found.classes[TASK].slots)
        ahead = accumulate(
            (mine - theirs) * step
            for mine, theirs in zip(found.classes[TASK].slots, found.classes[DEADLINE].slots, strict=True)
        )
        hours = [step * place / 3_600 for place in range(1, len(found.classes[TASK].slots) + 1)]
        plt.plot(hours, [each / 1_000 for each in ahead], color=colour, label=label)
        if accounting is Accounting.SLOT_TIME:
            longest = sum(each.longest_hold_seconds for each in found.classes.values())
            bound = (scenario.slots + 1) * longest / 1_000
            plt.axhline(bound, color=GREY, linestyle="--", label="bound from a fresh start")
            plt.axhline(-bound, color=GREY, linestyle="--")
    plt.xlabel("hours")
    plt.ylabel("tasks ahead, 1,000 slot-seconds")
    plt.legend(frameon=False)
    _save("bounds-drift")


def newcomer() -> None:
    """The worst that can befall a newcomer: the tasks' second round begins just before its turn."""
    case = overcharged(16)
    treatment = Treatment(name="fair", settings=case.settings)
    found = run(case.scenario, treatment, seed=0)
    bound = next(wait.after_quiet_seconds for wait in case.bounds.waits if wait.service_class is DEADLINE)
    waited = case.longest_waits(0)[DEADLINE]
    step = case.scenario.seconds / len(found.classes[TASK].slots)
    arrived = case.scenario.streams[1].work[0][0]
    at = [step * place - arrived for place in range(len(found.classes[TASK].slots))]
    plt.figure(figsize=(6.4, 2.8))
    plt.step(at, found.classes[TASK].slots, color=BLUE, where="post", label="tasks")
    plt.step(at, found.classes[DEADLINE].slots, color=ORANGE, where="post", label="deadlines")
    plt.axvline(waited, color=ORANGE, linestyle=":", label=f"first deadline, after {waited:.0f} s")
    plt.axvline(bound or 0.0, color=GREY, linestyle="--", label=f"bound, {bound:.0f} s")
    plt.xlim(0, 300)
    plt.xlabel("seconds since the deadlines arrived")
    plt.ylabel("slots held")
    plt.legend(frameon=False, loc="center left")
    _save("bounds-newcomer")


def waits() -> None:
    """How near random worlds come to the bounds."""
    parts: dict[Basis, list[float]] = {Basis.TURN: [], Basis.RESERVE: [], Basis.ORDER: []}
    for seed in range(WORLDS):
        case = world(seed, reserves=seed % 2 == 0)
        waited = case.longest_waits(seed)
        for wait in case.bounds.waits:
            if wait.seconds is not None and waited[wait.service_class]:
                parts[wait.basis].append(waited[wait.service_class] / wait.seconds)
    plt.figure(figsize=(6.4, 2.8))
    edges = [place / 20 for place in range(22)]
    colours = {Basis.TURN: BLUE, Basis.RESERVE: ORANGE, Basis.ORDER: "#1b9e77"}
    plt.hist(
        list(parts.values()),
        bins=edges,
        stacked=True,
        color=[colours[basis] for basis in parts],
        label=[f"by {basis}" for basis in parts],
    )
    plt.axvline(1.0, color=GREY, linestyle="--")
    plt.xlabel(f"longest wait of the first in line, as a part of its bound ({WORLDS} random worlds)")
    plt.ylabel("classes")
    plt.legend(frameon=False)
    _save("bounds-waits")


def main() -> None:
    """Draw all of them."""
    mpl.rcParams.update(
        {"svg.hashsalt": "bounds", "svg.fonttype": "none", "font.size": 10, "axes.spines.top": False}
    )
    mpl.rcParams["axes.spines.right"] = False
    IMAGES.mkdir(exist_ok=True)
    for draw in (drift, newcomer, waits):
        draw()


if __name__ == "__main__":
    main()
