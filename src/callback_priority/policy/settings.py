"""The settings as values: what the rest of the library is handed, already valid and complete."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import Enum
from fnmatch import fnmatchcase
from hashlib import blake2b
from types import MappingProxyType
from typing import Final
from uuid import UUID

import attrs

from callback_priority.core.classes import CALLBACK_CLASSES, CLASS_ORDER, Level, ServiceClass
from callback_priority.core.policies import Policy
from callback_priority.core.quotas import NO_QUOTA, Quota
from callback_priority.core.units import MILLI, Milliweight, SlotMicros, seconds_to_micros
from callback_priority.policy.options import OPTIONS_BY_NAME

__all__ = [
    "DEFAULT_POOL",
    "EVERY_OTHER_POOL",
    "INHERIT",
    "DagPriority",
    "Mode",
    "PoolShare",
    "Settings",
    "WorkerCallbacks",
]

DEFAULT_POOL: Final = "default_pool"
"""The pool that every Airflow has."""

EVERY_OTHER_POOL: Final = "*"
"""In ``pool_quotas``: every pool that is not named."""

INHERIT: Final = "inherit"
"""In ``callback_pool``: the pool of the task that the callback belongs to."""

_NO_QUOTAS: Final[Mapping[ServiceClass, Quota]] = MappingProxyType({})

_ONE: Final = Milliweight(MILLI)
_MOST_DOUBLINGS: Final = 64
# Members by themselves: up to Python 3.11, finding one in its enumeration is a call, and these are asked in each pass.
_POOL: Final = Level.POOL
_SCHEDULER: Final = Level.SCHEDULER


def _read_only_quotas(quotas: Mapping[ServiceClass, Quota]) -> Mapping[ServiceClass, Quota]:
    return MappingProxyType(dict(quotas))


def _read_only_pools(
    pools: Mapping[str, Mapping[ServiceClass, PoolShare]],
) -> Mapping[str, Mapping[ServiceClass, PoolShare]]:
    return MappingProxyType({pool: MappingProxyType(dict(shares)) for pool, shares in pools.items()})


def _all_weights(weights: Mapping[ServiceClass, Milliweight]) -> Mapping[ServiceClass, Milliweight]:
    return MappingProxyType({cls: weights.get(cls, _ONE) for cls in CLASS_ORDER})


def _all_callback_pools(pools: Mapping[ServiceClass, str]) -> Mapping[ServiceClass, str]:
    return MappingProxyType({cls: pools.get(cls, DEFAULT_POOL) for cls in CALLBACK_CLASSES})


def _read_only_names(names: Mapping[ServiceClass, str]) -> Mapping[ServiceClass, str]:
    return MappingProxyType(dict(names))


def _all_attempts(attempts: Mapping[ServiceClass, int]) -> Mapping[ServiceClass, int]:
    default = _count("callback_max_attempts")
    return MappingProxyType({cls: attempts.get(cls, default) for cls in CALLBACK_CLASSES})


def _all_delays(seconds: Mapping[ServiceClass, float]) -> Mapping[ServiceClass, float]:
    default = _seconds("callback_retry_delay_seconds")
    return MappingProxyType({cls: seconds.get(cls, default) for cls in CALLBACK_CLASSES})


def _read_only_seconds(seconds: Mapping[ServiceClass, float]) -> Mapping[ServiceClass, float]:
    return MappingProxyType(dict(seconds))


def _seconds(name: str) -> float:
    return float(OPTIONS_BY_NAME[name].default)


def _count(name: str) -> int:
    return int(OPTIONS_BY_NAME[name].default)


class WorkerCallbacks(str, Enum):
    """Which callbacks leave the Dag processor."""

    NONE = "none"
    TASK = "task"
    DAG = "dag"
    ALL = "all"

    __str__ = str.__str__


_MOVED: Final[Mapping[WorkerCallbacks, frozenset[ServiceClass]]] = {
    WorkerCallbacks.NONE: frozenset(),
    WorkerCallbacks.TASK: frozenset({ServiceClass.TASK_CALLBACK}),
    WorkerCallbacks.DAG: frozenset({ServiceClass.DAG_CALLBACK}),
    WorkerCallbacks.ALL: frozenset({ServiceClass.TASK_CALLBACK, ServiceClass.DAG_CALLBACK}),
}


class Mode(str, Enum):
    """Whether the library takes part in scheduling."""

    OFF = "off"
    SHADOW = "shadow"
    ACTIVE = "active"

    __str__ = str.__str__


@attrs.frozen(kw_only=True)
class PoolShare:
    """What a class has in one pool.

    Args:
        quota: Its reserve and limit, in pool slots of the whole deployment.
        weight: Its weight in this pool; ``None`` for its weight everywhere.
    """

    quota: Quota = NO_QUOTA
    weight: Milliweight | None = None


@attrs.frozen(kw_only=True)
class DagPriority:
    """The priority of the callbacks of Dags whose id matches a pattern.

    Args:
        pattern: What `fnmatch.fnmatchcase` understands.
        priority: The larger, the sooner.
    """

    pattern: str
    priority: int


@attrs.frozen(kw_only=True)
class Settings:
    """Everything that is configured; ``Settings()`` holds the defaults.

    The fields bear the names of the options and mean what `callback_priority.policy.options` says of them.
    ``parse_settings`` makes and validates them; built by hand, they are taken at their word.

    Args:
        mode: Whether the library takes part in scheduling.
        policy: How slots are split between classes.
        weights: Every class's weight; a class left out has one.
        slot_quotas: Reserve and limit of the classes that have them, in slots of each scheduler.
        pool_quotas: Shares by pool, in pool slots of the deployment. `EVERY_OTHER_POOL` stands for the pools
            that are not keys; what a named pool takes over from it is already in the named pool's shares.
        callback_pool: The pool of each callback class, or `INHERIT`; a class left out draws on `DEFAULT_POOL`.
        dag_priorities: Priorities by Dag id; the first match wins.
        use_worker_callbacks: Which callbacks leave the Dag processor.
        worker_callbacks_include: Patterns of the Dags whose callbacks do.
        worker_callbacks_exclude: Patterns of the Dags whose callbacks do not, whatever is included.
        callback_executor: The executor of the callback classes that have one of their own.
        callback_queue: The queue of the callback classes that have one of their own.
        callback_max_attempts: By callback class; a class left out has the default.
        callback_retry_on_failure: The callback classes that are tried again when their own code failed.
        callback_retry_delay_seconds: By callback class; a class left out has the default.
        callback_time_to_live_seconds: Of the callback classes that have one.
    """

    mode: Mode = Mode.OFF
    policy: Policy = Policy.FAIR
    weights: Mapping[ServiceClass, Milliweight] = attrs.field(factory=dict, converter=_all_weights)
    slot_quotas: Mapping[ServiceClass, Quota] = attrs.field(factory=dict, converter=_read_only_quotas)
    pool_quotas: Mapping[str, Mapping[ServiceClass, PoolShare]] = attrs.field(
        factory=dict, converter=_read_only_pools
    )
    callback_pool: Mapping[ServiceClass, str] = attrs.field(factory=dict, converter=_all_callback_pools)
    dag_priorities: tuple[DagPriority, ...] = ()
    use_worker_callbacks: WorkerCallbacks = WorkerCallbacks.NONE
    worker_callbacks_include: tuple[str, ...] = (OPTIONS_BY_NAME["worker_callbacks_include"].default,)
    worker_callbacks_exclude: tuple[str, ...] = ()
    callback_executor: Mapping[ServiceClass, str] = attrs.field(factory=dict, converter=_read_only_names)
    callback_queue: Mapping[ServiceClass, str] = attrs.field(factory=dict, converter=_read_only_names)
    callback_batch_size: int = _count("callback_batch_size")
    callback_time_limit_seconds: float = _seconds("callback_time_limit_seconds")
    callback_load_limit_seconds: float = _seconds("callback_load_limit_seconds")
    callback_log_limit_bytes: int = _count("callback_log_limit_bytes")
    callback_max_attempts: Mapping[ServiceClass, int] = attrs.field(factory=dict, converter=_all_attempts)
    callback_retry_on_failure: frozenset[ServiceClass] = frozenset()
    callback_retry_delay_seconds: Mapping[ServiceClass, float] = attrs.field(
        factory=dict, converter=_all_delays
    )
    callback_retry_max_delay_seconds: float = _seconds("callback_retry_max_delay_seconds")
    callback_time_to_live_seconds: Mapping[ServiceClass, float] = attrs.field(
        factory=dict, converter=_read_only_seconds
    )
    callback_queued_timeout_seconds: float = _seconds("callback_queued_timeout_seconds")
    callback_heartbeat_timeout_seconds: float = _seconds("callback_heartbeat_timeout_seconds")
    callback_running_timeout_seconds: float = _seconds("callback_running_timeout_seconds")
    initial_hold_seconds: float = _seconds("initial_hold_seconds")
    priority_aging_seconds: float = _seconds("priority_aging_seconds")
    dag_turn_seconds: float = _seconds("dag_turn_seconds")
    wide_bypass_limit: int = _count("wide_bypass_limit")
    sweep_interval_seconds: float = _seconds("sweep_interval_seconds")
    reconcile_interval_seconds: float = _seconds("reconcile_interval_seconds")
    executor_retry_seconds: float = _seconds("executor_retry_seconds")
    executor_time_to_live_seconds: float = _seconds("executor_time_to_live_seconds")
    history_seconds: float = _seconds("history_seconds")
    journal: bool = False
    failure_threshold: int = _count("failure_threshold")
    failure_back_off_seconds: float = _seconds("failure_back_off_seconds")

    @property
    def initial_estimate(self) -> SlotMicros:
        """A class's hold before any was seen, as the core counts it."""
        return seconds_to_micros(self.initial_hold_seconds)

    @property
    def priority_aging_us(self) -> int:
        """``priority_aging_seconds`` in microseconds, as ranks count."""
        return seconds_to_micros(self.priority_aging_seconds)

    @property
    def dag_turn_us(self) -> int:
        """``dag_turn_seconds`` in microseconds, as ranks count."""
        return seconds_to_micros(self.dag_turn_seconds)

    def tries_again(self, service_class: ServiceClass, failures: int) -> bool:
        """Whether a callback may be given another attempt.

        Args:
            service_class: Its class.
            failures: How many of its attempts were lost or failed, the last one included.
        """
        return failures < self.callback_max_attempts[service_class]

    def alive_since(self, now: datetime) -> dict[ServiceClass, datetime]:
        """Of the classes that have a time to live, when the oldest callbacks began to wait that still may run."""
        return {
            cls: now - timedelta(seconds=seconds)
            for cls, seconds in self.callback_time_to_live_seconds.items()
        }

    def retry_delay_seconds(self, service_class: ServiceClass, failures: int, callback_id: UUID) -> float:
        """How long a callback waits for its next attempt: exponential back-off with equal jitter.

        Half of the delay and a share of the other half, so that what failed together does not come back together
        (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015). The share is drawn from the callback's
        identifier and the attempt, so that the same question has the same answer.

        Args:
            service_class: Its class.
            failures: How many of its attempts were lost or failed, at least one.
            callback_id: The callback.

        >>> delay = Settings().retry_delay_seconds(ServiceClass.DEADLINE, 2, UUID(int=7))
        >>> 30.0 <= delay <= 60.0
        True
        """
        longest = self.callback_retry_max_delay_seconds
        doublings = min(failures - 1, _MOST_DOUBLINGS)
        delay = min(longest, self.callback_retry_delay_seconds[service_class] * 2.0**doublings)
        drawn = blake2b(callback_id.bytes + failures.to_bytes(8, "big"), digest_size=4).digest()
        return delay * (1 + int.from_bytes(drawn, "big") / 0xFFFFFFFF) / 2

    def moves(self, service_class: ServiceClass, dag_id: str) -> bool:
        """Whether a Dag's callbacks of a class leave the Dag processor.

        >>> some = Settings(use_worker_callbacks=WorkerCallbacks.DAG, worker_callbacks_exclude=("old_*",))
        >>> some.moves(ServiceClass.DAG_CALLBACK, "sales"), some.moves(ServiceClass.DAG_CALLBACK, "old_sales")
        (True, False)

        Complexity: linear in the number of patterns.
        """
        return (
            service_class in _MOVED[self.use_worker_callbacks]
            and any(fnmatchcase(dag_id, pattern) for pattern in self.worker_callbacks_include)
            and not any(fnmatchcase(dag_id, pattern) for pattern in self.worker_callbacks_exclude)
        )

    def draws_on(self, service_class: ServiceClass, pool: str) -> bool:
        """Whether the class's workloads can take slots of this pool: tasks and heirs of tasks of any."""
        home = self.callback_pool.get(service_class, INHERIT)
        return home in (INHERIT, pool)

    def pool_of(self, service_class: ServiceClass, task_pool: str | None = None) -> str:
        """The pool that a workload of this class draws on.

        Args:
            service_class: The workload's class.
            task_pool: The pool of its task, where it belongs to one.

        >>> Settings().pool_of(ServiceClass.DEADLINE, "etl"), Settings().pool_of(ServiceClass.TASK, "etl")
        ('default_pool', 'etl')
        """
        home = self.callback_pool.get(service_class, INHERIT)
        return (task_pool or DEFAULT_POOL) if home == INHERIT else home

    def quota(self, level: Level, scope: str, service_class: ServiceClass) -> Quota:
        """The class's reserve and limit in a scope.

        A reserve is nothing in a pool that the class does not draw on: ``*`` with a reserve for alerts must
        not keep slots empty in every pool where no alert ever runs. A limit holds wherever it is set, for
        callbacks that were queued under another ``callback_pool``.

        Args:
            level: Pool or scheduler.
            scope: The pool's name; not looked at for the scheduler.
            service_class: Whose.
        """
        return self.quotas(level, scope).get(service_class, NO_QUOTA)

    def quotas(self, level: Level, scope: str) -> Mapping[ServiceClass, Quota]:
        """The `quota` of each class that has one in a scope.

        Args:
            level: Pool or scheduler.
            scope: The pool's name; not looked at for the scheduler.
        """
        if level is _SCHEDULER:
            return self.slot_quotas
        if not self.pool_quotas:
            return _NO_QUOTAS
        found = {}
        for cls in CLASS_ORDER:
            share = self._share(scope, cls)
            if share is None:
                continue
            quota = share.quota
            if quota.reserve_slots and not self.draws_on(cls, scope):
                quota = Quota(limit_slots=quota.limit_slots)
            if quota != NO_QUOTA:
                found[cls] = quota
        return found

    def weight(self, level: Level, scope: str, service_class: ServiceClass) -> Milliweight:
        """The class's weight in a scope: the pool's own where it has one, else the class's."""
        if self.pool_quotas and level is _POOL:
            share = self._share(scope, service_class)
            if share is not None and share.weight is not None:
                return share.weight
        return self.weights[service_class]

    def priority(self, dag_id: str, default: int) -> int:
        """The priority of a Dag's callbacks.

        Args:
            dag_id: The Dag.
            default: What holds if no pattern matches.

        Complexity: linear in the number of patterns.
        """
        for rule in self.dag_priorities:
            if fnmatchcase(dag_id, rule.pattern):
                return rule.priority
        return default

    def _share(self, pool: str, service_class: ServiceClass) -> PoolShare | None:
        shares = self.pool_quotas.get(pool)
        if shares is None:
            shares = self.pool_quotas.get(EVERY_OTHER_POOL, {})
        return shares.get(service_class)
