"""Ways of sharing the slots as a command line gives them: files with settings, and single options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from callback_priority.cli.narrowing import one_of
from callback_priority.policy.options import OPTIONS_BY_NAME, SECTION

if TYPE_CHECKING:
    from callback_priority.policy.settings import Settings
    from callback_priority.simulation.engine import Treatment
    from callback_priority.simulation.scenario import Scenario

__all__ = ["Given", "add_given", "given_treatments", "notes_on", "told_treatments"]

UNNAMED = "given"
"""The name of a treatment that got none."""


@attrs.define(kw_only=True)
class Given:
    """A treatment as far as the command line has told.

    Args:
        name: Its name.
        is_named: Whether the command line named it.
        files: Files to read options from, later ones over earlier ones.
        options: The text of options, over those of the files.
    """

    name: str
    is_named: bool = False
    files: list[Path] = attrs.field(factory=list)
    options: dict[str, str] = attrs.field(factory=dict)


class _Gather(argparse.Action):
    """Options that belong to one another by their order."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        given: list[Given] = getattr(namespace, self.dest) or []
        if self.const == "name":
            given = [*given, Given(name=values, is_named=True)]
        elif self.const == "settings":
            last = given[-1] if given else None
            if last is None or not last.is_named or last.files or last.options:
                given = [*given, Given(name=values.stem)]
            given[-1].files.append(values)
        else:
            given = given or [Given(name=UNNAMED)]
            name, text = ("policy", values) if self.const == "policy" else values
            given[-1].options[name] = text
        setattr(namespace, self.dest, given)


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: write OPTION=TEXT, such as weights='{{\"task\": 3}}'")
    return one_of("option", OPTIONS_BY_NAME)(name.strip()), value


def add_given(parser: argparse.ArgumentParser) -> None:
    """Add ``--name``, ``--settings``, ``--policy`` and ``--set``, gathered in ``given``."""
    group = parser.add_argument_group("settings to try")

    def add(flag: str, **more: Any) -> None:
        group.add_argument(flag, dest="given", action=_Gather, const=flag.removeprefix("--"), **more)

    parser.set_defaults(given=[])
    add("--name", metavar="NAME", help="begin one more way of sharing the slots; what follows belongs to it")
    add(
        "--settings",
        type=Path,
        metavar="FILE",
        help=f"take its options from the section [{SECTION}] of FILE, such as airflow.cfg; FILE may be the section alone. "
        "Without --name before it, it begins one more way and is named after the file",
    )
    add(
        "--policy",
        type=one_of("policy", OPTIONS_BY_NAME["policy"].choices),
        metavar="POLICY",
        help=f"set its policy: {', '.join(OPTIONS_BY_NAME['policy'].choices)}",
    )
    add(
        "--set",
        type=_option,
        metavar="OPTION=TEXT",
        help="set one of its options, as it would be written in the section; may be given more than once",
    )


def given_treatments(given: Sequence[Given], scenario: Scenario) -> list[tuple[Treatment, tuple[str, ...]]]:
    """What the command line says, made fit for a scenario, each with notes of what had to be made fit.

    Pools that the scenario does not have do not matter to it, and its callbacks draw on the pools that it says.

    Args:
        given: What was gathered.
        scenario: What they are to be tried on.

    Raises:
        ConfigurationError: Options are invalid, or do not suit the scenario's slots.
        OSError: A file cannot be read.
    """
    from callback_priority.policy.parse import load_settings
    from callback_priority.policy.section import section_of
    from callback_priority.simulation.engine import Treatment

    found = []
    for each in given:
        texts: dict[str, str] = {}
        for path in each.files:
            texts |= section_of(path)
        texts |= each.options
        settings = load_settings(texts, pool_slots=_Everywhere(scenario.pools), parallelism=scenario.slots)
        notes = notes_on(settings, scenario)
        homes = {
            work.service_class: work.pool
            for work in scenario.streams
            if work.service_class in settings.callback_pool
        }
        settings = attrs.evolve(settings, callback_pool={**settings.callback_pool, **homes})
        found.append((Treatment(name=each.name, settings=settings), notes))
    return found


def told_treatments(given: Sequence[Given], scenario: Scenario) -> list[Treatment]:
    """`given_treatments`, with the notes told on standard error."""
    found = given_treatments(given, scenario)
    for treatment, notes in found:
        for note in notes:
            print(f"note: {treatment.name}: {note}", file=sys.stderr)
    return [treatment for treatment, _ in found]


class _Everywhere(dict[str, "int | None"]):
    """The scenario's pools, and every other one without end."""

    def __contains__(self, _name: object) -> bool:
        return True

    def __missing__(self, _name: str) -> None:
        return None

    def get(self, name: str, default: Any = None) -> Any:
        """As of a mapping that has every key."""
        return super().get(name)


def notes_on(settings: Settings, scenario: Scenario) -> tuple[str, ...]:
    """What of the settings a scenario cannot show.

    Args:
        settings: Settings that were not made for it.
        scenario: The scenario.
    """
    from callback_priority.policy.settings import EVERY_OTHER_POOL, INHERIT

    notes = []
    foreign = sorted(settings.pool_quotas.keys() - scenario.pools.keys() - {EVERY_OTHER_POOL})
    if foreign:
        notes.append(
            f"the scenario has no pool {', '.join(map(repr, foreign))}; its quotas do not matter there"
        )
    for work in scenario.streams:
        home = settings.callback_pool.get(work.service_class)
        if home not in (None, INHERIT, work.pool):
            notes.append(
                f"{work.name!r} draws on the pool {work.pool!r} in this scenario, not on {home!r} as callback_pool says"
            )
    if settings.dag_priorities:
        notes.append("dag_priorities does not matter: the scenario says the priority of each kind of work")
    return tuple(notes)
