"""Looking on while a simulation runs, for judges and for policies that want to know more than a snapshot tells."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from callback_priority.core.classes import ServiceClass
from callback_priority.core.snapshot import Decision, Snapshot
from callback_priority.policy.settings import Settings
from callback_priority.simulation.backlog import Waiting
from callback_priority.simulation.scenario import Crash

__all__ = ["Watcher"]


@runtime_checkable
class Watcher(Protocol):
    """Is told of everything that happens, in the order in which it happens. Times are microseconds from the start."""

    def waits(self, now: int, service_class: ServiceClass, pool: str, entry: Waiting) -> None:
        """A workload begins to wait; nothing of a backlog without end is told of here.

        Args:
            now: When; later than ``entry.at`` for a callback that waits again, its scheduler having died.
            service_class: Its class.
            pool: The pool that it draws on.
            entry: The workload.
        """

    def started(
        self, now: int, scheduler: int, service_class: ServiceClass, pool: str, entry: Waiting, number: int
    ) -> None:
        """A workload was granted a slot.

        Args:
            now: When.
            scheduler: Of which scheduler the slot is.
            service_class: Its class.
            pool: The pool that it draws on.
            entry: The workload; its own number is negative if it is of a backlog without end.
            number: Its number, whatever it is of.
        """

    def ended(self, now: int, service_class: ServiceClass, pool: str, entry: Waiting, number: int) -> None:
        """A slot can be granted again.

        Args:
            now: When.
            service_class: The class that held it.
            pool: The pool that it draws on.
            entry: The workload.
            number: Its number, as in `started`.
        """

    def decided(self, now: int, scheduler: int, snapshot: Snapshot, decision: Decision) -> None:
        """A loop is through, and what it granted has been told.

        Args:
            now: When.
            scheduler: Whose loop.
            snapshot: What the last pass was given.
            decision: What it decided.
        """

    def happened(self, now: int, what: Crash | Settings) -> None:
        """A scheduler died, or other settings hold from now on."""
