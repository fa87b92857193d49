"""Whether settings suit a deployment: its pools, its schedulers' slots and its executors.

Pools are made and resized while Airflow runs, so this is a check at start, not an invariant: the slot loop
itself copes with any sizes. What is refused here is what would be wrong from the first loop on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from callback_priority.core.classes import CLASS_ORDER, SCHEDULER_SCOPE, Level, ServiceClass
from callback_priority.errors import Problem
from callback_priority.policy.json_text import quoted
from callback_priority.policy.settings import EVERY_OTHER_POOL, INHERIT, Settings
from callback_priority.policy.spelling import guess

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from callback_priority.core.quotas import Quota

__all__ = ["check_executors", "check_pools", "check_slots"]

_MOST_NAMED: Final = 3
_STAR: Final = f"pool_quotas[{quoted(EVERY_OTHER_POOL)}]"
_NAME_THEM: Final = ", or name the pool in pool_quotas with quotas of its own"


def check_pools(settings: Settings, pool_slots: Mapping[str, int | None]) -> tuple[Problem, ...]:
    """What is wrong with the settings, given the pools that exist.

    A pool that has no slots at all is paused, and says nothing against what ``*`` reserves in every pool.

    Args:
        settings: What is configured.
        pool_slots: The slots of every pool; ``None`` for a pool without end.

    Returns:
        Unknown pools; reserves that together exceed their pool; classes that draw on a pool and could never
        get the one slot that a callback, or the narrowest task instance, needs.
    """
    problems = [
        _unknown_pool(f"pool_quotas[{quoted(pool)}]", pool, pool_slots)
        for pool in settings.pool_quotas
        if pool != EVERY_OTHER_POOL and pool not in pool_slots
    ]
    problems += [
        _unknown_pool(f"callback_pool.{service_class}", pool, pool_slots)
        for service_class, pool in settings.callback_pool.items()
        if pool != INHERIT and pool not in pool_slots
    ]
    shared = _Findings()
    for pool in sorted(pool_slots):
        slots = pool_slots[pool]
        named = pool in settings.pool_quotas
        if not named and (EVERY_OTHER_POOL not in settings.pool_quotas or slots == 0):
            continue
        findings = _Findings() if named else shared
        _examine(
            findings,
            where=f"pool {quoted(pool)}",
            slots=slots,
            quota_of=lambda cls, pool=pool: settings.quota(Level.POOL, pool, cls),  # type: ignore[misc]
            contenders=[cls for cls in CLASS_ORDER if settings.draws_on(cls, pool)],
        )
        if named:
            problems += findings.problems(f"pool_quotas[{quoted(pool)}]")
    return (*problems, *shared.problems(_STAR))


def check_slots(settings: Settings, parallelism: int | None) -> tuple[Problem, ...]:
    """What is wrong with the settings, given the slots of one scheduler.

    Args:
        settings: What is configured.
        parallelism: The slots of one scheduler; ``None`` for no end.

    Returns:
        Reserves that together exceed the slots; classes that could never get one.
    """
    findings = _Findings()
    _examine(
        findings,
        where="[core] parallelism",
        slots=parallelism,
        quota_of=lambda cls: settings.quota(Level.SCHEDULER, SCHEDULER_SCOPE, cls),
        contenders=CLASS_ORDER,
    )
    return tuple(findings.problems("slot_quotas"))


def check_executors(settings: Settings, executors: Collection[str]) -> tuple[Problem, ...]:
    """What is wrong with the settings, given the executors that are configured.

    Args:
        settings: What is configured.
        executors: Every name that Airflow knows one by: aliases, class names and module paths.

    Returns:
        Executors that do not exist. Whether one can run callbacks shows at work.
    """
    known = sorted(executors)
    return tuple(
        Problem(
            key=f"callback_executor.{service_class}",
            value=name,
            remedy=f"no such executor{guess(name, known)}; `[core] executor` has {', '.join(_shortest(known))}: name "
            "one of those, or add it there",
        )
        for service_class, name in settings.callback_executor.items()
        if name not in executors
    )


@attrs.define
class _Findings:
    """What was found in one scope, or in all the scopes that one entry stands for."""

    over: list[tuple[int, str]] = attrs.field(factory=list)
    shut_out: list[ServiceClass] = attrs.field(factory=list)
    squeezed: dict[ServiceClass, list[tuple[int, str]]] = attrs.field(factory=dict)

    def problems(self, key: str) -> Iterable[Problem]:
        if self.over:
            most = max(total for total, _ in self.over)
            yield Problem(
                key=f"{key}, reserves together",
                value=most,
                remedy=f"is more than {_listing(where for _, where in self.over)}; lower the reserves, or add slots"
                + _NAME_THEM * (key == _STAR),
            )
        for cls in self.shut_out:
            yield Problem(
                key=f"{key}.{cls}.limit",
                value=0,
                remedy=f"no {cls} workload could ever start, and those that come would wait for ever; raise it to "
                "1 or more, or use null for no limit",
            )
        for cls, found in self.squeezed.items():
            yield Problem(
                key=f"{key}, reserves of the others than {cls}",
                value=max(total for total, _ in found),
                remedy=f"leave nothing of {_listing(where for _, where in found)} for {cls}, which would wait for "
                f"ever; lower them, or reserve at least 1 for {cls}" + _NAME_THEM * (key == _STAR),
            )


def _examine(
    findings: _Findings,
    *,
    where: str,
    slots: int | None,
    quota_of: Callable[[ServiceClass], Quota],
    contenders: Iterable[ServiceClass],
) -> None:
    """Add what is wrong in one scope."""
    quotas = {cls: quota_of(cls) for cls in CLASS_ORDER}
    reserved = sum(quota.reserve_slots for quota in quotas.values())
    described = where if slots is None else f"the {slots} slot(s) of {where}"
    if slots is not None and reserved > max(slots, 0):
        findings.over.append((reserved, described))
    for cls in contenders:
        others = reserved - quotas[cls].reserve_slots
        if quotas[cls].limit_slots == 0:
            if cls not in findings.shut_out:
                findings.shut_out.append(cls)
        elif slots is not None and others > 0 and reserved <= slots and slots - others < 1:
            findings.squeezed.setdefault(cls, []).append((others, described))


def _unknown_pool(key: str, pool: str, known: Mapping[str, object]) -> Problem:
    pattern = " ('*' only works alone, not in a name)" if "*" in pool else ""
    return Problem(
        key=key,
        value=pool,
        remedy=f"no such pool{guess(pool, known)}{pattern}; name one that exists (`airflow pools list`), or make it "
        "(`airflow pools set`)",
    )


def _shortest(executors: Iterable[str]) -> list[str]:
    """The names without the module paths, unless there is nothing else."""
    every = list(executors)
    return [name for name in every if "." not in name] or every or ["none"]


def _listing(places: Iterable[str]) -> str:
    every = list(places)
    rest = len(every) - _MOST_NAMED
    return ", ".join(every[:_MOST_NAMED]) + (f" and {rest} more pool(s)" if rest > 0 else "")
