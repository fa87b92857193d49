"""Installing the slot loop into Airflow's scheduler, and taking it out again.

`install_on_import` waits for the scheduler's module; in processes that never import it (workers, API server)
nothing happens. What is replaced is checked first (`callback_priority.adapter.compat`). With ``mode = off``
nothing is touched at all.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

import wrapt
from sqlalchemy import inspect

from callback_priority.adapter import compat
from callback_priority.adapter.config import raw_section
from callback_priority.errors import ConfigurationError
from callback_priority.persistence.tables import flow_table, item_table
from callback_priority.policy.parse import load_settings, parse_settings
from callback_priority.policy.settings import Mode, Settings

__all__ = ["install", "install_on_import", "installed", "uninstall"]

log = logging.getLogger(__name__)

SCHEDULER_MODULE: Final = "airflow.jobs.scheduler_job_runner"
TABLES_RETRY_SECONDS: Final = 60.0
"""How often missing tables are looked for again."""

_originals: dict[str, Any] = {}
_registered: list[str] = []


def install_on_import() -> None:
    """Install as soon as the scheduler's module is there, which may be now. Idempotent, raises nothing."""
    if not _registered:
        _registered.append(SCHEDULER_MODULE)
        wrapt.register_post_import_hook(lambda _: install(), SCHEDULER_MODULE)
    elif not _originals:
        import sys

        if SCHEDULER_MODULE in sys.modules:
            install()


def installed() -> bool:
    """Whether Airflow's methods are replaced in this process."""
    return bool(_originals)


def install() -> bool:
    """Replace Airflow's methods, unless the mode is off or this Airflow is not known.

    Returns:
        Whether they are replaced.
    """
    if _originals:
        return True
    try:
        if _mode() == Mode.OFF:
            return False
        if differences := compat.mismatches():
            log.error(
                "callback-priority is off and Airflow runs as it is: %s", "; ".join(differences)
            )
            return False
        for name, target in compat.REPLACED.items():
            _originals[name] = target.cls.__dict__[name]
        for name, target in compat.REPLACED.items():
            setattr(target.cls, name, _wrap(name, _originals[name]))
    except Exception:
        log.exception("callback-priority could not be installed; Airflow runs as it is")
        uninstall()
        return False
    return True


def uninstall() -> None:
    """Put Airflow's methods back."""
    for name, original in _originals.items():
        setattr(compat.REPLACED[name].cls, name, original)
    _originals.clear()


def _mode() -> str:
    """The mode as written; a wrong one is reported with everything else when the scheduler starts."""
    from airflow.configuration import conf

    return raw_section(conf).get("mode", Mode.OFF.value).strip().lower()


def _wrap(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    replacement = functools.partial(_REPLACEMENTS[name], original)

    @functools.wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        return replacement(*args, **kwargs)

    return method


# The allocator of a scheduler ---------------------------------------------------------------------------------


def _allocator(runner: Any) -> Any:
    """The scheduler's allocator; ``None`` while there is none (tables missing, configuration invalid)."""
    return runner.__dict__.get("_callback_priority")


def _start(runner: Any) -> None:
    """Make the scheduler's allocator, once everything it needs is there."""
    import time

    if not _originals or _allocator(runner) is not None:
        return
    if time.monotonic() < runner.__dict__.get("_callback_priority_retry_at", 0.0):
        return
    try:
        settings = _settings(runner)
        if settings is not None:
            runner._callback_priority = _make(runner, settings)
    except ConfigurationError as error:
        log.error("callback-priority is off and Airflow runs as it is. %s", error)
        uninstall()
    except Exception:
        log.exception("callback-priority could not start; Airflow runs as it is")
        runner._callback_priority_retry_at = time.monotonic() + TABLES_RETRY_SECONDS


def _settings(runner: Any) -> Settings | None:
    """The settings, held against the deployment; ``None`` while the tables are missing."""
    import time

    from airflow.configuration import conf
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session
    from sqlalchemy import select

    raw = raw_section(conf)
    with create_session(scoped=False) as session:
        inspector = inspect(session.connection())
        missing = [table.name for table in (flow_table, item_table) if not inspector.has_table(table.name)]
        if missing:
            parse_settings(raw)
            log.error(
                "callback-priority waits and Airflow runs as it is: table(s) %s missing; run 'airflow db migrate'",
                ", ".join(missing),
            )
            runner._callback_priority_retry_at = time.monotonic() + TABLES_RETRY_SECONDS
            return None
        pools: Mapping[str, int | None] = {
            row.pool: None if row.slots == -1 else row.slots
            for row in session.execute(select(Pool.pool, Pool.slots))
        }
    return load_settings(raw, pool_slots=pools, parallelism=runner._parallelism)


def _make(runner: Any, settings: Settings) -> Any:
    from airflow.configuration import conf

    from callback_priority.adapter.allocator import SlotAllocator

    allocator = SlotAllocator(
        runner,
        settings,
        living_seconds=conf.getfloat("scheduler", "scheduler_health_check_threshold", fallback=30.0),
    )
    log.info(
        "callback-priority is in mode %s, policy %s, in Airflow %s",
        settings.mode,
        settings.policy,
        compat.airflow_version(),
    )
    return allocator


# What takes the place of Airflow's methods; each is handed the original first ----------------------------------


def _do_scheduling(original: Any, runner: Any, session: Any) -> int:
    _start(runner)
    allocator = _allocator(runner)
    if allocator is None:
        return int(original(runner, session))
    allocator.calm()
    try:
        queued = int(original(runner, session))
    except BaseException:
        allocator.abandon()
        raise
    return queued + int(allocator.hand_over(session))


def _executable_task_instances_to_queued(original: Any, runner: Any, max_tis: int, session: Any) -> Any:
    allocator = _allocator(runner)
    if allocator is None:
        return original(runner, max_tis, session=session)
    return allocator.select(functools.partial(original, runner), max_tis, session)


def _enqueue_executor_callbacks(original: Any, runner: Any, session: Any) -> None:
    allocator = _allocator(runner)
    if allocator is None:
        original(runner, session)
    else:
        allocator.callback_step(functools.partial(original, runner, session), session)


def _process_executor_events(original: Any, runner: Any, executor: Any, session: Any) -> int:
    allocator = _allocator(runner)
    if allocator is None:
        return int(original(runner, executor=executor, session=session))
    bound = functools.partial(original, runner, executor=executor, session=session)
    return int(allocator.process_events(bound, executor, session))


def _handle_miss(original: Any, deadline: Any, session: Any) -> None:
    original(deadline, session)
    from airflow.models.callback import ExecutorCallback

    from callback_priority.adapter.allocator import NEW_ITEMS

    callback = deadline.callback
    if isinstance(callback, ExecutorCallback):
        new = session.info.setdefault(NEW_ITEMS, [])
        new.append((callback.id, callback.data, callback.priority_weight))


def _get_workloads_to_schedule(original: Any, executor: Any, open_slots: int) -> Any:
    """Airflow's choice in the order of the grants, where an executor takes fewer than it was handed."""
    ledger = executor.__dict__.get("_callback_priority_ledger")
    queued = len(executor.queued_tasks) + len(executor.queued_callbacks)
    if ledger is None or queued <= open_slots:
        return original(executor, open_slots)
    everything = original(executor, queued)
    last = len(everything)
    granted = {key: hold.sequence for key, _ in everything if (hold := ledger.get(key)) is not None}
    ordered = sorted(everything, key=lambda entry: granted.get(entry[0], last + max(granted.values(), default=0)))
    return ordered[: max(0, open_slots)]


_REPLACEMENTS: Final[Mapping[str, Callable[..., Any]]] = {
    "_do_scheduling": _do_scheduling,
    "_executable_task_instances_to_queued": _executable_task_instances_to_queued,
    "_enqueue_executor_callbacks": _enqueue_executor_callbacks,
    "_process_executor_events": _process_executor_events,
    "handle_miss": _handle_miss,
    "_get_workloads_to_schedule": _get_workloads_to_schedule,
}
