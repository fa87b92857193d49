"""The picture: who held the slots, who waited, and for how long, over time and side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from callback_priority.demo import measure
from callback_priority.demo.load import LONE_DAG, Load
from callback_priority.demo.measure import Run
from callback_priority.demo.records import DEADLINE, TASK

__all__ = ["draw"]

# Blue and orange differ for all common kinds of colour blindness (Okabe and Ito 2008).
_COLOURS: Final = {TASK: "#0072B2", DEADLINE: "#E69F00"}
_LONE_COLOUR: Final = "#A0153E"
_STEP_SECONDS: Final = 2.0


def draw(path: Path, load: Load, phases: Sequence[tuple[str, Sequence[Run], float]]) -> None:
    """Write the picture.

    Args:
        path: The PNG file.
        load: What the phases were put under.
        phases: For each phase its title, its workloads and its end in seconds.
    """
    figure, grid = plt.subplots(3, len(phases), figsize=(12, 9), sharex=True, sharey="row", squeeze=False)
    for column, (title, runs, end) in enumerate(phases):
        slots, waiting, waits = (grid[row][column] for row in range(3))
        slots.set_title(title)
        _held(slots, load, runs, end)
        _waiting(waiting, runs, end)
        _waits(waits, runs)
        waits.set_xlabel("seconds")
        for axes in (slots, waiting, waits):
            axes.axvline(
                load.flood_at_seconds + load.deadline_seconds, color="0.4", linestyle=":", linewidth=1
            )
            axes.grid(visible=True, color="0.9")
            axes.set_axisbelow(True)
        slots.set_xlim(0, end)
    grid[1][0].set_ylim(bottom=0)
    grid[2][0].set_ylim(bottom=0)
    grid[0][0].set_ylabel("slots at work")
    grid[1][0].set_ylabel("waiting")
    grid[2][0].set_ylabel("waited, seconds, at its start")
    entries = [axes.get_legend_handles_labels() for axes in (grid[2][0], grid[0][0])]
    handles = [handle for found, _ in entries for handle in found]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False)
    figure.suptitle(
        f"The same load on {load.slots} slots; at the dotted line {load.flood_callbacks} deadlines are missed at once"
    )
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _held(axes: Axes, load: Load, runs: Sequence[Run], end: float) -> None:
    middles: list[float] = []
    levels = []
    for name in (TASK, DEADLINE):
        middles, level = measure.series(
            [run for run in runs if run.service_class == name],
            (0.0, end),
            _STEP_SECONDS,
            lambda run: (run.started_at, run.ended_at),
        )
        levels.append(level)
    axes.stackplot(middles, levels, colors=[_COLOURS[TASK], _COLOURS[DEADLINE]], alpha=0.85)
    axes.axhline(load.slots / 2, color="black", linestyle="--", linewidth=1, label="half of the slots")
    axes.set_ylim(0, load.slots)


def _waiting(axes: Axes, runs: Sequence[Run], end: float) -> None:
    for name in (TASK, DEADLINE):
        middles, level = measure.series(
            [run for run in runs if run.service_class == name],
            (0.0, end),
            _STEP_SECONDS,
            lambda run: (run.waiting_at, run.started_at),
        )
        axes.plot(middles, level, color=_COLOURS[name], linewidth=2)


def _waits(axes: Axes, runs: Sequence[Run]) -> None:
    groups = (
        ("task instances", _COLOURS[TASK], [run for run in runs if run.service_class == TASK]),
        (
            "deadline callbacks",
            _COLOURS[DEADLINE],
            [run for run in runs if run.service_class == DEADLINE and run.dag_id != LONE_DAG],
        ),
        (
            f"deadline callbacks of {LONE_DAG}, which does not flood",
            _LONE_COLOUR,
            [run for run in runs if run.service_class == DEADLINE and run.dag_id == LONE_DAG],
        ),
    )
    for label, colour, group in groups:
        started = [run for run in group if run.started]
        axes.scatter(
            [run.started_at for run in started],
            [run.started_at - run.waiting_at for run in started],
            s=16,
            color=colour,
            label=label,
        )
