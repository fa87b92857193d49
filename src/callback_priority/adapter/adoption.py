"""What executors know of callbacks that another scheduler gave them.

CeleryExecutor does: its result backend tells what became of a message, whoever sent it. Airflow adopts task instances
by that, in ``CeleryExecutor.try_adopt_task_instances``; this is the same for callbacks, whose message the scheduler
knows by the name that it noted when it was sent. Any other executor keeps what it was given in its own process, and
it ended with that.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Final

__all__ = ["adopt", "can_tell", "is_started"]

_STARTED: Final = "STARTED"
"""Celery's own word, which its workers report as ``task_track_started`` asks; Airflow sets that."""


def can_tell(executor: Any) -> bool:
    """Whether an executor can find out about callbacks that another scheduler gave to its broker."""
    return any(each.__name__ == "CeleryExecutor" for each in type(executor).__mro__) and hasattr(
        executor, "bulk_state_fetcher"
    )


def adopt(executor: Any, names: Mapping[Hashable, str]) -> set[Hashable]:
    """Have an executor look after callbacks from now on, as if it had sent them itself.

    Of those that have ended the executor reports the end at once.

    Args:
        executor: One that can tell.
        names: What the broker knows the callbacks by.

    Returns:
        Those that it looks after. That the broker has lost one cannot be seen: such a message looks as one that waits.
    """
    # Not at the top: only a deployment with Celery has it.
    from celery.result import AsyncResult  # noqa: PLC0415

    results = {key: AsyncResult(name, app=executor.celery_app) for key, name in names.items()}
    states = executor.bulk_state_fetcher.get_many(list(results.values()))
    for key, result in results.items():
        state, info = states.get(result.task_id, (None, None))
        executor.workloads[key] = result
        executor.running.add(key)
        if state is not None:
            executor.update_task_state(key, state, info)
    return set(results)


def is_started(executor: Any, key: Hashable) -> bool:
    """Whether a worker has a callback, by the executor's own word; where nobody else says so."""
    if not can_tell(executor):
        return False
    result = executor.workloads.get(key)
    return result is not None and result.state == _STARTED
