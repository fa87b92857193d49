"""Which executors there are, and whether they run callbacks, in processes that have none.

Triggerers and API servers route callbacks too, and no process may start an executor for the asking. So executors
are found as the scheduler finds them, among those that are configured, and their classes are looked at.
"""

from __future__ import annotations

import logging
from functools import cache

from airflow.configuration import conf
from airflow.executors.base_executor import BaseExecutor
from airflow.executors.executor_loader import ExecutorLoader
from airflow.executors.executor_utils import ExecutorName

__all__ = ["multi_team", "why_not"]

log = logging.getLogger(__name__)


@cache
def multi_team() -> bool:
    """Whether this deployment has teams."""
    return conf.getboolean("core", "multi_team", fallback=False)


@cache
def why_not(wanted: str | None, team: str | None) -> str | None:
    """Why an executor cannot run callbacks; ``None`` if it can. Found once per process.

    Args:
        wanted: The executor as a callback names it; ``None`` for the default one.
        team: The team of the Dag's bundle.
    """
    # Teams are checked by whoever starts executors; the check would commit the session of the caller.
    configured = ExecutorLoader.get_executor_names(validate_teams=False)
    name = _find(configured, wanted, team)
    if name is None:
        return f"executor {wanted!r} is not configured"
    try:
        executor = ExecutorLoader.import_executor_cls(name)[0]
    except Exception as error:
        log.debug("Executor %s cannot be loaded", name, exc_info=True)
        return f"executor {name.module_path.rpartition('.')[2]} cannot be loaded here: {error}"
    # The flag alone does not tell: an executor that takes workloads in its own way may run callbacks without it.
    if not executor.supports_callbacks and executor.queue_workload is BaseExecutor.queue_workload:
        return f"executor {executor.__name__} does not run callbacks"
    return None


def _find(configured: list[ExecutorName], wanted: str | None, team: str | None) -> ExecutorName | None:
    """As ``SchedulerJobRunner._try_to_load_executor`` does."""
    if wanted is None:
        of_team = [name for name in configured if team and name.team_name == team]
        return (of_team or configured)[0]
    for name in configured:
        names = (name.alias, name.module_path, name.module_path.rpartition(".")[2])
        if wanted in names and name.team_name in {None, team}:
            return name
    return None
