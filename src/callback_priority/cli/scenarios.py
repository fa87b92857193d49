"""The scenario that a command line names: one that comes along, or a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from callback_priority.cli import numbers

if TYPE_CHECKING:
    from callback_priority.simulation.scenario_file import ScenarioFile

__all__ = ["add_seconds", "no_such_scenario", "scenario_of"]


def add_seconds(parser: argparse.ArgumentParser) -> None:
    """Add ``--seconds``, which `scenario_of` takes."""
    parser.add_argument(
        "--seconds",
        type=numbers.seconds(1, 366 * 86_400),
        metavar="SECONDS",
        help="watch for so long, not as long as the scenario says",
    )


def no_such_scenario(name: str, *, files: bool = True) -> str:
    """Why there is nothing of that name; empty if there is.

    Args:
        name: As it was given.
        files: Whether it may be a file.
    """
    from callback_priority.policy.spelling import guess
    from callback_priority.simulation.library import scenario_names

    names = scenario_names()
    if name in names or (files and Path(name).exists()):
        return ""
    what = "no such scenario, and no such file" if files else "no such scenario comes along"
    return f"{what}: {name!r}{guess(name, names) or '.'} There are: {', '.join(names)}"


def scenario_of(name: str, seconds: float | None) -> ScenarioFile:
    """Read it.

    Args:
        name: Of one that comes along, or of a file.
        seconds: Watch for so long; as long as it says if not given.

    Raises:
        ConfigurationError: It is invalid.
        OSError: It cannot be read.
    """
    import attrs

    from callback_priority.simulation.library import named_scenario, scenario_names
    from callback_priority.simulation.scenario_file import read_scenario

    file = named_scenario(name) if name in scenario_names() else read_scenario(Path(name))
    if seconds is None:
        return file
    return attrs.evolve(file, scenario=attrs.evolve(file.scenario, seconds=seconds))
