"""Who competes for slots, and where: service classes, levels of contention, flows."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from typing import Final, NamedTuple

__all__ = [
    "CALLBACK_CLASSES",
    "CLASS_ORDER",
    "SCHEDULER_FLOWS",
    "SCHEDULER_SCOPE",
    "FlowKey",
    "Level",
    "ServiceClass",
    "pool_flow",
]


class ServiceClass(str, Enum):
    """A kind of workload that competes for slots as one party."""

    DEADLINE = "deadline"
    TASK_CALLBACK = "task_callback"
    DAG_CALLBACK = "dag_callback"
    TASK = "task"

    __str__ = str.__str__
    __hash__ = str.__hash__  # equal to its text, so hashed as its text; and a third of the time of Enum's own


CLASS_ORDER: Final[tuple[ServiceClass, ...]] = tuple(ServiceClass)
"""The order that breaks ties between equal tags: callbacks before tasks, the most urgent kind first."""

CALLBACK_CLASSES: Final[tuple[ServiceClass, ...]] = CLASS_ORDER[:-1]


class Level(str, Enum):
    """A place of contention."""

    POOL = "pool"
    SCHEDULER = "scheduler"

    __str__ = str.__str__
    __hash__ = str.__hash__  # see `ServiceClass`


SCHEDULER_SCOPE: Final = ""
"""The scope of scheduler-level flows: all schedulers share them, so that shares hold over replicas."""


class FlowKey(NamedTuple):
    """One flow of the fair queue.

    Args:
        level: Where it competes.
        scope: The pool's name, or `SCHEDULER_SCOPE`.
        service_class: Who competes.
    """

    level: Level
    scope: str
    service_class: ServiceClass


SCHEDULER_FLOWS: Final[Mapping[ServiceClass, FlowKey]] = {
    cls: FlowKey(Level.SCHEDULER, SCHEDULER_SCOPE, cls) for cls in CLASS_ORDER
}
"""Each class's flow at the scheduler's slots."""


@lru_cache(maxsize=1024)
def pool_flow(pool: str, service_class: ServiceClass) -> FlowKey:
    """A class's flow in a pool. Kept, since each slot that is released asks for it.

    Args:
        pool: The pool's name.
        service_class: The class.
    """
    return FlowKey(Level.POOL, pool, service_class)
