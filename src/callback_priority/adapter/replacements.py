"""What takes the place of Airflow's methods; each is handed the original first.

They find the scheduler's allocator, hand it the call, and are the original where there is none. The allocator
is made when the first loop begins, since it needs the database: while the tables are missing there is none,
and with settings that are invalid there never will be, and Airflow's methods are put back.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from airflow.configuration import conf
from airflow.exceptions import AirflowConfigException
from airflow.models.callback import ExecutorCallback
from airflow.models.pool import Pool
from airflow.utils.session import create_session
from sqlalchemy import Connection, inspect, select
from sqlalchemy.exc import OperationalError

from callback_priority import compat
from callback_priority.adapter import patches
from callback_priority.adapter.allocator import NEW_ITEMS, SlotAllocator
from callback_priority.adapter.config import configured_executors, raw_section
from callback_priority.compat.executors import queue_length
from callback_priority.compat.keys import is_connection_test, make_readable
from callback_priority.compat.rows import is_missed_already
from callback_priority.compat.selection import PoolsFirst, WholeSelection
from callback_priority.errors import ConfigurationError
from callback_priority.persistence.tables import metadata
from callback_priority.policy.parse import load_settings, parse_settings
from callback_priority.policy.settings import Settings

if TYPE_CHECKING:
    from airflow.executors.base_executor import BaseExecutor
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
    from airflow.models.deadline import Deadline
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy.orm import Session

__all__ = ["REPLACEMENTS"]

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 60.0
"""How long after a start that failed, or found no tables, the next one is tried."""

FIRST: Final = -1
"""The place of a connection test: somebody sits and waits for it, and no slot is granted to it here."""

Entered = tuple[dict[str, Any], int, set[str]]
"""The pools, the most task instances to select, and the pools that are full."""

_ALLOCATOR: Final = "_callback_priority"
_RETRY_AT: Final = "_callback_priority_retry_at"


def _allocator(runner: SchedulerJobRunner) -> SlotAllocator | None:
    return runner.__dict__.get(_ALLOCATOR)


def _start(runner: SchedulerJobRunner) -> None:
    """Make the scheduler's allocator, once everything it needs is there."""
    if not patches.applied() or _allocator(runner) is not None:
        return
    if time.monotonic() < runner.__dict__.get(_RETRY_AT, 0.0):
        return
    runner.__dict__[_RETRY_AT] = time.monotonic() + RETRY_SECONDS
    try:
        settings = _settings(runner)
    except ConfigurationError as error:
        log.error("callback-priority is off and Airflow runs as it is. %s", error)  # noqa: TRY400 - its text says all
        patches.undo()
    except Exception:
        log.exception("callback-priority could not start and tries again; until then Airflow runs as it is")
    else:
        if settings is not None:
            living = conf.getfloat("scheduler", "scheduler_health_check_threshold", fallback=30.0)
            runner.__dict__[_ALLOCATOR] = SlotAllocator(runner, settings, living_seconds=living)
            log.info(
                "callback-priority is in mode %s with policy %s, in Airflow %s",
                settings.mode,
                settings.policy,
                compat.airflow_version(),
            )


def _settings(runner: SchedulerJobRunner) -> Settings | None:
    """The settings, held against the deployment; ``None`` while tables or columns are missing."""
    raw = raw_section(conf)
    with create_session(scoped=False) as session:
        missing = _missing(session.connection())
        pools = {
            str(name): None if slots == -1 else slots
            for name, slots in session.execute(select(Pool.pool, Pool.slots))
        }
    if missing:
        parse_settings(raw)
        log.error("callback-priority waits and Airflow runs as it is: %s", _what_lacks(missing))
        return None
    try:
        executors = configured_executors()
    except AirflowConfigException:
        executors = None  # Airflow's own complaint about it is better than ours
    return load_settings(raw, pool_slots=pools, parallelism=runner._parallelism, executors=executors)


def _look_for_tables(allocator: SlotAllocator) -> None:
    """Step aside if a table of ours is taken away while the scheduler lives, or one of its columns is.

    Some of the steps would go well without it: callbacks would then be nobody's.
    """
    if not allocator.tables_in_doubt or allocator.aside:
        return
    allocator.tables_in_doubt = False
    try:
        with create_session(scoped=False) as session:
            missing = _missing(session.connection())
    except Exception:  # it fails for all of Airflow then, which says so
        log.debug("The tables could not be looked for", exc_info=True)
    else:
        if missing:
            allocator.step_aside(_what_lacks(missing))


def _what_lacks(missing: list[str]) -> str:
    return f"no {' and no '.join(missing)}; run 'airflow db migrate'"


def _missing(connection: Connection) -> list[str]:
    """The tables of ours that are not there, and the columns of those that an earlier release has made."""
    inspector = inspect(connection)
    missing = []
    for name, table in sorted(metadata.tables.items()):
        if not inspector.has_table(name):
            missing.append(f"table {name}")
            continue
        there = {column["name"] for column in inspector.get_columns(name)}
        missing += [f"column {name}.{column.name}" for column in table.columns if column.name not in there]
    return missing


def _do_scheduling(original: Callable[..., int], runner: SchedulerJobRunner, session: Session) -> int:
    _start(runner)
    allocator = _allocator(runner)
    if allocator is None:
        return original(runner, session)
    _look_for_tables(allocator)
    allocator.calm()
    with allocator.following(session):
        queued = original(runner, session)
    return queued + allocator.hand_over(session)


def _executable_task_instances_to_queued(
    original: Callable[..., list[TaskInstance]], runner: SchedulerJobRunner, max_tis: int, session: Session
) -> list[TaskInstance]:
    allocator = _allocator(runner)
    if allocator is None:
        return original(runner, max_tis, session=session)
    selection = WholeSelection(original=functools.partial(original, runner), max_tis=max_tis, session=session)
    return allocator.select(selection, session)


def _acquire_pool_capacity(
    original: Callable[..., Entered], runner: SchedulerJobRunner, max_tis: int, *, session: Session
) -> Entered:
    """Airflow goes no further with full pools; there may be callbacks that draw on none, and others to set aside."""
    allocator = _allocator(runner)
    if allocator is None:
        return original(runner, max_tis, session=session)
    try:
        pools, _, starved_pools = original(runner, max_tis, session=session)
    except OperationalError:
        allocator.hurry()
        raise
    return pools, max_tis, starved_pools


def _select_task_instances_to_queue(
    original: Callable[..., list[TaskInstance]],
    runner: SchedulerJobRunner,
    max_tis: int,
    pools: dict[str, Any],
    starved_pools: set[str],
    *,
    session: Session,
) -> list[TaskInstance]:
    allocator = _allocator(runner)
    if allocator is None:
        return original(runner, max_tis, pools, starved_pools, session=session)
    stock = functools.partial(original, runner)
    return allocator.select(
        PoolsFirst(original=stock, max_tis=max_tis, pools=pools, session=session), session
    )


def _enqueue_executor_callbacks(
    original: Callable[..., None], runner: SchedulerJobRunner, session: Session
) -> None:
    allocator = _allocator(runner)
    if allocator is None:
        session.info.pop(NEW_ITEMS, None)  # the session lives as long as the process
        original(runner, session)
    else:
        allocator.callback_step(functools.partial(original, runner, session), session)


def _process_executor_events(
    original: Callable[..., int], runner: SchedulerJobRunner, executor: BaseExecutor, session: Session
) -> int:
    allocator = _allocator(runner)

    def stock() -> int:
        make_readable(executor)
        return original(runner, executor=executor, session=session)

    return stock() if allocator is None else allocator.process_events(stock, executor, session)


def _adopt_or_reset_orphaned_tasks(
    original: Callable[..., int], runner: SchedulerJobRunner, *args: Any, **kwargs: Any
) -> int:
    """Airflow's own check first: it finds out which schedulers are dead."""
    reset = original(runner, *args, **kwargs)
    _start(runner)
    if (allocator := _allocator(runner)) is not None:
        allocator.take_over()
    return reset


def _handle_miss(original: Callable[..., None], deadline: Deadline, session: Session) -> None:
    """Note the callback that became pending: its item is written in the same transaction."""
    if is_missed_already(deadline, session):
        return
    original(deadline, session)
    callback = deadline.callback
    if isinstance(callback, ExecutorCallback):
        noted = session.info.setdefault(NEW_ITEMS, [])
        noted.append((callback.id, callback.data, callback.priority_weight))


def _get_workloads_to_schedule(original: Callable[..., Any], executor: BaseExecutor, open_slots: int) -> Any:
    """Airflow's choice in the order of the grants, where an executor takes fewer than it was handed."""
    ledger = executor.__dict__.get("_callback_priority_ledger")
    queued = queue_length(executor)
    if ledger is None or queued <= open_slots:
        return original(executor, open_slots)
    everything = original(executor, queued)
    granted = {key: hold.sequence for key, _ in everything if (hold := ledger.get(key)) is not None}
    after_all = max(granted.values(), default=0) + 1
    everything.sort(
        key=lambda entry: granted.get(entry[0], FIRST if is_connection_test(entry[0]) else after_all)
    )
    return everything[: max(0, open_slots)]


REPLACEMENTS: Final[Mapping[str, Callable[..., Any]]] = {
    "_do_scheduling": _do_scheduling,
    "_executable_task_instances_to_queued": _executable_task_instances_to_queued,
    "_acquire_pool_capacity": _acquire_pool_capacity,
    "_select_task_instances_to_queue": _select_task_instances_to_queue,
    "_enqueue_executor_callbacks": _enqueue_executor_callbacks,
    "_process_executor_events": _process_executor_events,
    "adopt_or_reset_orphaned_tasks": _adopt_or_reset_orphaned_tasks,
    "handle_miss": _handle_miss,
    "_get_workloads_to_schedule": _get_workloads_to_schedule,
}
"""By the name of the method, as in `callback_priority.compat.REPLACED`."""
