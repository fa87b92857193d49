"""What a policy is tried on, and how: values that print as the code that makes them again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Protocol

import attrs

from callback_priority.core.snapshot import Decision, Entitlements, Snapshot
from callback_priority.policy.settings import Settings
from callback_priority.simulation.engine import Decider, Treatment
from callback_priority.simulation.scenario import Scenario
from callback_priority.simulation.watch import Watcher

__all__ = ["Case", "Stateful", "treatment_of"]


class Stateful(Protocol):
    """A decider that remembers."""

    def __call__(self, snapshot: Snapshot, entitlements: Entitlements) -> Decision:
        """Decide a pass."""

    def afresh(self) -> Decider:
        """One like it that remembers nothing."""


@attrs.frozen(kw_only=True, repr=False)
class Case:
    """Work, and the settings under which it is shared out.

    >>> from callback_priority.simulation.scenario import Scenario
    >>> case = Case(scenario=Scenario(name="idle", seconds=60.0, streams=(), slots=2))
    >>> case
    Case(scenario=Scenario(name='idle', seconds=60.0, streams=(), slots=2))
    >>> print(case.code)
    from callback_priority.simulation.scenario import Scenario
    from callback_priority.testing.cases import Case
    <BLANKLINE>
    case = Case(scenario=Scenario(name='idle', seconds=60.0, streams=(), slots=2))

    Args:
        scenario: What wants slots, and what there is.
        settings: The settings at the start.
        changes: Other settings, from a time on, in seconds.
        seed: Which random numbers.
    """

    scenario: Scenario
    settings: Settings = attrs.field(factory=Settings)
    changes: tuple[tuple[float, Settings], ...] = ()
    seed: int = 0

    def __repr__(self) -> str:
        return _spell(self, set())

    @property
    def code(self) -> str:
        """Python code that makes it again, with what is to be imported."""
        used: set[type] = set()
        spelled = _spell(self, used)
        names = defaultdict(list)
        for each in used:
            names[each.__module__].append(each.__name__)
        imports = [f"from {module} import {', '.join(sorted(names[module]))}" for module in sorted(names)]
        return "\n".join([*imports, "", f"case = {spelled}"])


def _spell(value: object, used: set[type]) -> str:
    """An expression for a value, without what is by default as it is.

    Args:
        value: The value.
        used: Gets the types that the expression names.
    """
    if isinstance(value, Enum):
        used.add(type(value))
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_spell(k, used)}: {_spell(v, used)}" for k, v in value.items()) + "}"
    if type(value) is tuple:
        return "(" + ", ".join(_spell(each, used) for each in value) + ("," if len(value) == 1 else "") + ")"
    cls = type(value)
    if not attrs.has(cls):
        return repr(value)
    used.add(cls)
    told = [(each, getattr(value, each.name)) for each in attrs.fields(cls) if each.init]
    arguments = [f"{each.alias}={_spell(v, used)}" for each, v in told if v != _default(each)]
    return f"{cls.__name__}({', '.join(arguments)})"


def _default(field: attrs.Attribute[Any]) -> object:
    """What a field is where nobody says; what depends on other fields is always said."""
    default: Any = field.default
    if getattr(default, "takes_self", False):
        return attrs.NOTHING
    if hasattr(default, "factory"):
        default = default.factory()
    convert: Any = field.converter
    return default if convert is None or default is attrs.NOTHING else convert(default)


def treatment_of(subject: Decider | Treatment, case: Case) -> tuple[Treatment, Watcher | None]:
    """What is tried, under a case's settings.

    Args:
        subject: What is tried. A decider that is `Stateful` is made anew for each case; one that is a `Watcher` too is told of
            everything that happens, for policies that want to know more than a snapshot tells.
        case: On what.

    Returns:
        The treatment, and who else is to look on.
    """
    treatment = subject if isinstance(subject, Treatment) else Treatment(name="subject", decide=subject)
    decide = treatment.decide
    afresh: Callable[[], Decider] | None = getattr(decide, "afresh", None)
    if afresh is not None:
        decide = afresh()
    who_decides: object = decide
    watcher = who_decides if isinstance(who_decides, Watcher) else None
    return attrs.evolve(treatment, settings=case.settings, changes=case.changes, decide=decide), watcher
