"""Where the worker side enters Airflow: two functions, replaced once their modules are imported.

- ``supervise_callback``, by which every executor's worker runs a callback: a routed one is handed to
  `callback_priority.worker.supervisor`. Every other one goes to Airflow's function as before, by way of
  `callback_priority.worker.attempts`, which asks the API server first whether it is this worker's to run, if this
  worker's own configuration has ``mode = active``.
- ``ActivitySubprocess.update_task_state_if_needed``, by which a task's supervisor sends a last state: before it,
  the API server is told of a process that is gone (`callback_priority.worker.killed`), if this worker's own
  configuration has ``mode = active`` and ``use_worker_callbacks`` set.

Both look first, once in a process and when they are needed, whether Airflow's code is the code that they were made
for (`callback_priority.compat`). If not, Airflow's function runs as it is, and one line says why.

Importing this module imports nothing of Airflow's, since it is imported while Airflow is.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from callback_priority.compat import Target

__all__ = ["install", "uninstall"]

log = logging.getLogger(__name__)

CALLBACK_MODULE: Final = "airflow.sdk.execution_time.callback_supervisor"
TASK_MODULE: Final = "airflow.sdk.execution_time.supervisor"

_originals: dict[str, Any] = {}

_looking: Final = threading.Lock()
"""Of several threads one looks at Airflow's code: whoever has looked replaces some of it, which another must not look at then."""


def install() -> None:
    """Replace what there is to replace of the modules that are imported. Idempotent, raises nothing.

    To be called when either module has been imported; the first imports the second, and is not complete then.
    """
    for module, replace in ((CALLBACK_MODULE, _replace_callbacks), (TASK_MODULE, _replace_tasks)):
        if module in sys.modules and module not in _originals:
            try:
                replace(sys.modules[module])
            except Exception:
                log.exception(
                    "callback-priority could not be installed on this worker; Airflow runs as it is"
                )


def uninstall() -> None:
    """Put Airflow's functions back."""
    modules: dict[str, Any] = dict(sys.modules)
    if (original := _originals.pop(CALLBACK_MODULE, None)) is not None:
        modules[CALLBACK_MODULE].supervise_callback = original
        if (attempts := modules.get("callback_priority.worker.attempts")) is not None:
            attempts.uninstall()
    if (original := _originals.pop(TASK_MODULE, None)) is not None:
        modules[TASK_MODULE].ActivitySubprocess.update_task_state_if_needed = original
    _are_known.cache_clear()


def _replace_callbacks(module: Any) -> None:
    original = getattr(module, "supervise_callback", None)
    if original is None:
        return

    @functools.wraps(original)
    def supervise_callback(*args: Any, **kwargs: Any) -> Any:
        from callback_priority.protocol import ENTRY  # noqa: PLC0415 - see the module's docstring

        if kwargs.get("callback_path") != ENTRY:
            return _attempt(original, *args, **kwargs)
        if not _runtime_is_known():
            return original(*args, **kwargs)
        from callback_priority.worker.supervisor import supervise  # noqa: PLC0415 - see the module's docstring

        return supervise(*args, **kwargs)

    _originals[CALLBACK_MODULE] = original
    module.supervise_callback = supervise_callback


def _attempt(original: Any, *args: Any, **kwargs: Any) -> Any:
    supervise: Any = None
    try:
        if _is_active() and _attempts_are_known():
            from callback_priority.worker.attempts import supervise  # noqa: PLC0415 - see the module's docstring
    except Exception:
        log.exception("callback-priority could not look at a callback; Airflow runs it as it is")
    # Not above: what the callback itself raises must not have it run once more.
    return original(*args, **kwargs) if supervise is None else supervise(original, *args, **kwargs)


def _replace_tasks(module: Any) -> None:
    owner = getattr(module, "ActivitySubprocess", None)
    if owner is None:
        return
    original = owner.update_task_state_if_needed

    @functools.wraps(original)
    def update_task_state_if_needed(self: Any) -> Any:
        _tell_of_killed(self)
        return original(self)

    _originals[TASK_MODULE] = original
    owner.update_task_state_if_needed = update_task_state_if_needed


def _tell_of_killed(process: Any) -> None:
    try:
        if not process._exit_code or not _callbacks_move() or not _tasks_are_known():
            return
        from callback_priority.worker import killed  # noqa: PLC0415 - see the module's docstring

        killed.tell(process)
    except Exception:
        log.exception("callback-priority could not look at an ended task process; Airflow goes on as it is")


def _is_active() -> bool:
    """Whether this worker's own configuration has schedulers with this library grant callbacks."""
    return _configured("mode", "off") == "active"


def _callbacks_move() -> bool:
    """Whether this worker's own configuration moves callbacks off the Dag processor."""
    return _is_active() and _configured("use_worker_callbacks", "none") != "none"


def _configured(option: str, default: str) -> str:
    from airflow.sdk.configuration import conf  # noqa: PLC0415 - see the module's docstring

    return str(conf.get("callback_priority", option, fallback=default) or default).strip().lower()


def _runtime_is_known() -> bool:
    """Whether Airflow's code is what running callbacks was made for; says so once if not."""
    from callback_priority.compat import RUNTIME_TARGETS  # noqa: PLC0415 - see the module's docstring

    return _known(RUNTIME_TARGETS, "runs no callbacks on this worker")


def _attempts_are_known() -> bool:
    """Whether Airflow's code is what claiming callbacks of its own was made for; says so once if not."""
    from callback_priority.compat import ATTEMPT_TARGETS  # noqa: PLC0415 - see the module's docstring

    return _known(ATTEMPT_TARGETS, "claims no callbacks that Airflow calls on this worker")


def _tasks_are_known() -> bool:
    """Whether Airflow's code is what telling of killed tasks was made for; says so once if not."""
    from callback_priority.compat import KILLED_TARGETS  # noqa: PLC0415 - see the module's docstring

    return _known(KILLED_TARGETS, "does not tell of killed tasks on this worker")


def _known(targets: tuple[Target, ...], consequence: str) -> bool:
    with _looking:
        return _are_known(targets, consequence)


@functools.cache
def _are_known(targets: tuple[Target, ...], consequence: str) -> bool:
    from callback_priority import compat  # noqa: PLC0415 - see the module's docstring

    if differences := compat.differences(targets):
        # What a part was never made for is in the documentation, and no news to whoever runs that Airflow.
        level = logging.ERROR if compat.carries(targets) else logging.INFO
        log.log(level, "callback-priority %s: %s", consequence, "; ".join(differences))
    return not differences
