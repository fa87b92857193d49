"""Telling the API server of tasks whose process is gone before, or while, its own callbacks ran.

How it is detected. A task's process runs the task, sends its final state to its supervisor, and only *then* runs
``on_failure_callback`` or ``on_retry_callback`` and sends the e-mails (Airflow's ``task_runner.run`` and
``finalize``). So when the process has ended with another exit code than 0, what its supervisor has heard by then
says how far it came:

- *no final state*: the process was killed (out of memory, ``SIGKILL``), called ``os._exit``, or failed before the
  task began, and none of its callbacks for the end has begun. If the task has no try left, its supervisor sets it
  to *failed* and nobody runs them: told, once. If it has, the supervisor leaves its state alone; the scheduler
  finds that out, and asks for the callbacks of a retry itself: not told, or they would be asked for twice.
- *failed* or *up for retry*: the process was gone in the middle of what follows, perhaps inside a callback. Told
  with ``in_callback``: the callbacks run again from the first, so each runs at least once. Airflow itself ends a
  process that takes too long for this (``[core] task_success_overtime``), which counts as well.
- a *retry that the API server did not take*: the process then runs its callbacks and exits with 1, so with 1 they
  have run; with any other exit code it is as before.
- *any other state*, or the server itself ended the task: its end is not a failure, or somebody else's doing.

The callbacks for the beginning, for success and for a skipped task are not made up for.
"""

from __future__ import annotations

import logging
from typing import Any

from airflow.sdk.api.datamodels._generated import TaskInstanceState
from airflow.sdk.execution_time.comms import RetryTask
from airflow.sdk.execution_time.supervisor import SERVER_TERMINATED, STATES_SENT_DIRECTLY

from callback_priority.protocol import Killed
from callback_priority.worker import calls

__all__ = ["report_of", "tell"]

log = logging.getLogger(__name__)

_FAILURES = frozenset({TaskInstanceState.FAILED, TaskInstanceState.UP_FOR_RETRY})
_AFTER_CALLBACKS = 1
"""The exit code of a process that could not deliver its final state, and then ran its callbacks."""


def report_of(process: Any) -> Killed | None:
    """What to tell of an ended task process.

    Args:
        process: Airflow's ``ActivitySubprocess`` of it.

    Returns:
        ``None`` if its callbacks for the end have run, somebody runs them, or there are none to run.
    """
    exit_code = process._exit_code
    heard = process._terminal_state
    pending = process._pending_terminal_state_msg
    if not exit_code or SERVER_TERMINATED in {heard, process.final_state}:
        return None
    if heard is None and pending is None:
        if process.final_state in STATES_SENT_DIRECTLY:
            return None
        return Killed(state=_text(process.final_state), exit_code=int(exit_code), in_callback=False)
    if heard is None and isinstance(pending, RetryTask):
        if exit_code == _AFTER_CALLBACKS:
            return None
        heard = TaskInstanceState.UP_FOR_RETRY
    if heard in _FAILURES:
        return Killed(state=_text(heard), exit_code=int(exit_code), in_callback=True)
    return None


def tell(process: Any) -> None:
    """Tell the API server of an ended task process, if there is something to tell; never raises."""
    try:
        report = report_of(process)
        if report is None:
            return
        routed = calls.killed(process.client, process.id, report)
    except Exception as error:  # noqa: BLE001 - whatever fails in here, the task's own state goes its way
        log.warning(
            "callback-priority could not tell the API server that the process of task instance %s is gone: %s",
            process.id,
            error,
        )
        return
    if routed:
        log.info(
            "Task instance %s: its process ended with %s, %d callback(s) run in its place",
            process.id,
            report.exit_code,
            routed,
        )


def _text(state: Any) -> str:
    return str(getattr(state, "value", state))
