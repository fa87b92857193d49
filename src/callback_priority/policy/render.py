"""Settings as the text of options again: what an operator would write to get them."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING

from callback_priority.core.units import MILLI, Milliweight
from callback_priority.policy.options import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from callback_priority.core.quotas import Quota
    from callback_priority.policy.settings import PoolShare, Settings

__all__ = ["render_settings"]


def render_settings(settings: Settings) -> dict[str, str]:
    """Write settings down, so that ``parse_settings`` gives equal ones.

    Returns:
        The text of every option, by option name, in the order of the table of options.

    >>> from callback_priority.policy.settings import Settings
    >>> render_settings(Settings())["weights"]
    '{"deadline": 1, "task_callback": 1, "dag_callback": 1, "task": 1}'
    """
    structured = {
        "weights": _json({cls.value: _weight(weight) for cls, weight in settings.weights.items()}),
        "slot_quotas": _json({cls.value: _quota(quota) for cls, quota in settings.slot_quotas.items()}),
        "pool_quotas": _json(
            {
                pool: {cls.value: _share(share) for cls, share in shares.items()}
                for pool, shares in settings.pool_quotas.items()
            }
        ),
        "callback_pool": _json({cls.value: pool for cls, pool in settings.callback_pool.items()}),
        "dag_priorities": _json({rule.pattern: rule.priority for rule in settings.dag_priorities}),
        "worker_callbacks_include": _patterns(settings.worker_callbacks_include),
        "worker_callbacks_exclude": _patterns(settings.worker_callbacks_exclude),
        "callback_executor": _json({cls.value: name for cls, name in settings.callback_executor.items()}),
        "callback_queue": _json({cls.value: name for cls, name in settings.callback_queue.items()}),
        "callback_max_attempts": _json(
            {cls.value: most for cls, most in settings.callback_max_attempts.items()}
        ),
        "callback_retry_on_failure": ", ".join(sorted(settings.callback_retry_on_failure)) or "none",
        "callback_retry_delay_seconds": _json(
            {cls.value: delay for cls, delay in settings.callback_retry_delay_seconds.items()}
        ),
        "callback_time_to_live_seconds": _json(
            {cls.value: seconds for cls, seconds in settings.callback_time_to_live_seconds.items()}
        ),
    }
    return {
        option.name: structured[option.name]
        if option.name in structured
        else str(getattr(settings, option.name))
        for option in OPTIONS
    }


def _patterns(patterns: Iterable[str]) -> str:
    return ", ".join(patterns)


def _weight(weight: Milliweight) -> int | float:
    """The weight as a number whose shortest decimal form is exact: 3 decimals and 10 digits at most."""
    whole, rest = divmod(weight, MILLI)
    return float(Decimal(weight) / MILLI) if rest else whole


def _quota(quota: Quota) -> dict[str, int | float | None]:
    return {"reserve": quota.reserve_slots, "limit": quota.limit_slots}


def _share(share: PoolShare) -> dict[str, int | float | None]:
    weight = None if share.weight is None else _weight(share.weight)
    return {**_quota(share.quota), "weight": weight}


def _json(value: Mapping[str, object]) -> str:
    return json.dumps(value, ensure_ascii=False)
