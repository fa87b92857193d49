"""Named scenarios that come with the library: the model behind the algorithm, and the ways in which schedulers are known to starve work."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Final

from callback_priority.simulation.scenario_file import ScenarioFile, load_scenario

__all__ = ["named_scenario", "scenario_names", "scenario_text"]

_FOLDER: Final = files("callback_priority.simulation") / "scenarios"
_SUFFIX: Final = ".toml"


@lru_cache(maxsize=1)
def scenario_names() -> tuple[str, ...]:
    """The names, in alphabetical order."""
    return tuple(
        sorted(each.name.removesuffix(_SUFFIX) for each in _FOLDER.iterdir() if each.name.endswith(_SUFFIX))
    )


def scenario_text(name: str) -> str:
    """The file of a named scenario, to begin one of your own from.

    Args:
        name: One of `scenario_names`.
    """
    return (_FOLDER / f"{name}{_SUFFIX}").read_text(encoding="utf-8")


def named_scenario(name: str) -> ScenarioFile:
    """A scenario with the treatments that show what it is about.

    Args:
        name: One of `scenario_names`.

    >>> named_scenario("contention").scenario.slots
    16
    """
    return load_scenario(scenario_text(name), name)
