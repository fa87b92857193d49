"""What a policy is tried on, and how: values that print as the code that makes them again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

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


@attrs.frozen(kw_only=True)
class Case:
    """Work, and the settings under which it is shared out.

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
