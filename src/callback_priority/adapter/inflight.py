"""What each executor really holds.

An executor knows what is in its queues and in ``running``. That is not all: LocalExecutor and EdgeExecutor
never fill ``running``, so what they work on looks like free slots. The ledger knows what was granted and has
not ended; what an executor holds is the union of both. Connection tests hold executor slots too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import attrs
from airflow.utils.state import CallbackState

from callback_priority.adapter.adoption import can_tell
from callback_priority.compat.executors import forget_callback, queued, queued_connection_tests
from callback_priority.core.classes import ServiceClass
from callback_priority.core.ledger import Ledger
from callback_priority.core.units import MICROSECONDS, SlotMicros

__all__ = ["ENDED_NOT", "InFlight", "Occupancy", "executor_label", "queued_and_running"]

ENDED_NOT = frozenset({"queued", "running", "restarting", "pending", "scheduled"})
"""States in executor events that do not end a hold."""

_ROUTED = frozenset({ServiceClass.TASK_CALLBACK, ServiceClass.DAG_CALLBACK})
"""The classes whose callbacks this library wrote: the worker reports on each of them by itself."""


def executor_label(executor: Any, place: int) -> str:
    """A name for an executor that no other executor of this scheduler has."""
    name = executor.name
    return f"{place}:{name.alias or name.module_path}" if name else f"{place}:{type(executor).__name__}"


def queued_and_running(executor: Any) -> set[Hashable]:
    """The keys that an executor itself reports."""
    return {*queued(executor), *executor.running}


@attrs.frozen(kw_only=True)
class Occupancy:
    """What the executors of one scheduler hold.

    Args:
        held: Slots held by class; what no class is known of counts as a task.
        free: Free slots by executor label, possibly negative.
        unreported: Slots by executor label that are in use though the executor does not say so.
        total: All slots held.
    """

    held: Mapping[ServiceClass, int]
    free: Mapping[str, int]
    unreported: Mapping[str, int]
    total: int


class InFlight:
    """The executors' slots in use, by the ledger and by the executors' own word.

    Args:
        executors: The scheduler's executors.
        clock: Seconds of a clock that never goes back.
    """

    def __init__(self, executors: Sequence[Any], clock: Callable[[], float]) -> None:
        self.ledger = Ledger()
        self.clock = clock
        self.by_label = {
            executor_label(executor, place): executor for place, executor in enumerate(executors)
        }
        self.label_of = {id(executor): label for label, executor in self.by_label.items()}
        self.connection_tests: dict[Hashable, str] = {}
        self.routed: set[Hashable] = set()
        """Callbacks of this library's that an executor was given and has not reported the end of; a slot can be
        free before that is reported."""
        self.running: set[Hashable] = set()
        """Callbacks that a worker has, as their executor said."""
        self.abandoned: dict[Hashable, int] = {}
        """Callbacks of which an attempt was given up, whose end may be reported all the same, and when that was."""

    def occupancy(self) -> Occupancy:
        """Count what is held now. O(slots in use)."""
        held = self.ledger.held()
        free: dict[str, int] = {}
        unreported: Counter[str] = Counter()
        granted: Counter[str] = Counter()
        total = 0
        for label, executor in self.by_label.items():
            for key in queued_connection_tests(executor):
                self.connection_tests.setdefault(key, label)
        reported = {label: queued_and_running(executor) for label, executor in self.by_label.items()}
        for hold in self.ledger:
            granted[hold.executor] += 1
            if hold.key not in reported.get(hold.executor, ()):
                unreported[hold.executor] += 1
        for key, label in self.connection_tests.items():
            if key not in reported[label]:
                unreported[label] += 1
        for label, executor in self.by_label.items():
            inside = len(reported[label]) + unreported[label]
            free[label] = executor.parallelism - inside
            total += inside
            tests = sum(1 for where in self.connection_tests.values() if where == label)
            held[ServiceClass.TASK] += max(0, inside - granted[label] - tests)
        return Occupancy(held=held, free=free, unreported=unreported, total=total)

    def now_us(self) -> int:
        """The clock in microseconds, as the ledger counts."""
        return round(self.clock() * MICROSECONDS)

    def hold(
        self,
        key: Hashable,
        service_class: ServiceClass,
        label: str,
        *,
        charge: SlotMicros,
        pool: str | None = None,
        width: int = 1,
        at: int | None = None,
    ) -> None:
        """Enter a slot as taken; one that is entered already stays as it is.

        Args:
            key: What holds it.
            service_class: Its class.
            label: Its executor.
            charge: What its flows were charged.
            pool: The pool it draws on, if known.
            width: Pool slots.
            at: Since when, in microseconds of the clock; now if not given.
        """
        if service_class in _ROUTED:
            self.routed.add(key)
        self.ledger.grant(
            key,
            service_class=service_class,
            pool=pool,
            executor=label,
            now=self.now_us() if at is None else at,
            charge=charge,
            width=width,
        )

    def ended(self, keys: Iterable[Hashable]) -> None:
        """Free the slots of what has ended."""
        for key in keys:
            self.ledger.release(key)
            self.connection_tests.pop(key, None)
            self.running.discard(key)

    def forget(self, key: Hashable) -> None:
        """Another scheduler looks after this callback now: what was known of it here does not count."""
        self.ended([key])
        self.routed.discard(key)
        self.abandoned.pop(key, None)

    def is_late(self, key: Hashable) -> bool:
        """Whether an end that is reported now may be that of an attempt given up before; asked once for each."""
        return self.abandoned.pop(key, None) is not None and key in self.ledger

    def abandon(self, key: Hashable, *, silenced: bool = False) -> None:
        """Free the slot of a callback whose end will not be reported, in its executor's own books too.

        Its key stays in ``routed``: should an end be reported after all, it is not Airflow's to write.

        Args:
            key: The callback.
            silenced: Whether it is certain that no end is reported, so that the next one is that of the next attempt.
        """
        hold = self.ledger.get(key)
        self.ended([key])
        executor = None if hold is None else self.by_label.get(hold.executor)
        # Celery is not asked any more for what its executor has forgotten.
        may_report = self.by_label.values() if executor is None else [executor]
        if not silenced and not all(map(can_tell, may_report)):
            self.abandoned[key] = self.now_us()
        if executor is None:
            return
        forget_callback(executor, key)
        executor.change_state(key, CallbackState.FAILED, remove_running=True)
        # What became of it is for its rows to say.
        executor.event_buffer.pop(key, None)

    def forget_all_but(self, open_keys: Iterable[Hashable], *, abandoned_before: int) -> None:
        """Forget callbacks that hold no slot and are over: where no end is reported, nothing else does.

        Args:
            open_keys: Callbacks that are not over, whether they hold a slot or not.
            abandoned_before: Of attempts that were given up before, in microseconds of the clock, no end is expected.
        """
        kept = {*open_keys, *(hold.key for hold in self.ledger)}
        self.routed &= kept
        self.running &= kept
        self.abandoned = {key: at for key, at in self.abandoned.items() if at >= abandoned_before}

    def unreported_keys(self) -> list[Hashable]:
        """Keys that hold a slot on our word alone: the ones whose end could have been missed."""
        reported: set[Hashable] = set()
        for executor in self.by_label.values():
            reported |= queued_and_running(executor)
        mine = [hold.key for hold in self.ledger]
        return [key for key in (*mine, *self.connection_tests) if key not in reported]
