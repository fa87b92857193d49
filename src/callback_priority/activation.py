"""What Airflow loads in each of its processes: the entry point ``airflow.policy``.

Airflow loads it while ``import airflow`` runs, so in schedulers, triggerers, Dag processors, API servers, workers
of every executor and the command line alike; whatever it raised would break all of them. So it imports next to
nothing, changes nothing, and only waits for the few modules of Airflow's that matter: when a process imports one of
them, the part of this library that belongs to it is imported and asked to install itself. With ``mode = off`` it is
not even imported. Each part decides for itself whether it has anything to do, by the options and by Airflow's
version.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Final

__all__ = ["DECIDING", "SERVING", "register"]

log = logging.getLogger(__name__)

SERVING: Final = (
    ("airflow.api_fastapi.execution_api.routes", "callback_priority.adapter.execution_api", "install"),
    ("airflow.sdk.execution_time.supervisor", "callback_priority.worker.hook", "install"),
    ("airflow.sdk.execution_time.callback_supervisor", "callback_priority.worker.hook", "install"),
)
"""A module of Airflow's, and the function of ours, with its module, that is called once it has been imported."""

DECIDING: Final = (
    ("airflow.jobs.scheduler_job_runner", "callback_priority.adapter.hook", "install"),
    ("airflow.jobs.triggerer_job_runner", "callback_priority.adapter.triggers", "install"),
    ("airflow.callbacks.database_callback_sink", "callback_priority.adapter.routing.sink", "install"),
    # The package, so that none of its modules is there yet, half imported.
    ("airflow.dag_processing", "callback_priority.adapter.references", "install_parse"),
)
"""The same for the parts that have no work with ``mode = off``."""

_registered: list[str] = []


def register() -> None:
    """Wait for Airflow's modules; one that is imported already is seen to now. Idempotent, raises nothing."""
    try:
        # Not at the top: what is wrong with it must not break `import airflow`.
        from wrapt import register_post_import_hook  # noqa: PLC0415

        for parts, needed in ((SERVING, _always), (DECIDING, _is_on)):
            for awaited, module, function in parts:
                if awaited not in _registered:
                    _registered.append(awaited)
                    register_post_import_hook(_calling(module, function, needed), awaited)
    except Exception:
        log.exception("callback-priority is not active in this process")


def _calling(module: str, function: str, needed: Callable[[], bool]) -> Callable[[ModuleType], None]:
    def call(_imported: ModuleType) -> None:
        try:
            if needed():
                getattr(import_module(module), function)()
        except Exception:
            log.exception("%s could not be loaded; this process runs as it would without it", module)

    return call


def _always() -> bool:
    return True


def _is_on() -> bool:
    # Not at the top: Airflow's configuration is being made while this module is imported.
    from airflow.configuration import conf  # noqa: PLC0415

    # A word that is no mode is for the scheduler to report, with everything else that is wrong.
    return conf.get("callback_priority", "mode", fallback="off").strip().lower() != "off"


register()
