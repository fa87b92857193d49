"""An executor that starts no process: it holds each workload for a while and then reports how its rows say it ended.

What it holds is worked on elsewhere (`tests.soak.crowd`), so that the memory of the scheduler's process is that of
Airflow's scheduler and of what is installed with it.
"""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

from airflow.executors.base_executor import BaseExecutor
from airflow.models.callback import Callback, CallbackKey
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from airflow.utils.state import CallbackState, TaskInstanceState
from sqlalchemy import select

HOLD_SECONDS = 1.0
ROUTED = "callback_priority.worker.entry.run"


class SoakExecutor(BaseExecutor):
    """Takes as many workloads as there are slots."""

    supports_callbacks = True
    is_local = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.until: dict[Any, float] = {}
        self.reported: set[Any] = set()
        """Those whose end is in their rows before the executor tells of it, as where there are workers."""

    def start(self) -> None:
        """Nothing to start."""

    def end(self) -> None:
        """Nothing to end."""

    def terminate(self) -> None:
        """Nothing to end."""

    def _process_workloads(self, workload_items: Any) -> None:
        for workload in workload_items:
            callback = getattr(workload, "callback", None)
            key = workload.ti.key if callback is None else workload.key
            (self.queued_tasks if callback is None else self.queued_callbacks).pop(key)
            self.running.add(key)
            self.until[key] = time.monotonic() + HOLD_SECONDS
            if callback is None or callback.data.get("path") == ROUTED:
                self.reported.add(key)

    def sync(self) -> None:
        """Report what has ended."""
        now = time.monotonic()
        due = [key for key, until in self.until.items() if until <= now]
        waiting = [key for key in due if key in self.reported]
        ended = self._ended(waiting) if waiting else set()
        for key in due:
            if key in self.reported and key not in ended:
                continue
            del self.until[key]
            self.reported.discard(key)
            is_callback = isinstance(key, CallbackKey)
            self.change_state(key, CallbackState.SUCCESS if is_callback else TaskInstanceState.SUCCESS)

    @staticmethod
    def _ended(keys: list[Any]) -> set[Any]:
        ended: set[Any] = set()
        callbacks = {UUID(key.id): key for key in keys if isinstance(key, CallbackKey)}
        tasks = [key for key in keys if not isinstance(key, CallbackKey)]
        with create_session() as session:
            if callbacks:
                over = select(Callback.id).where(
                    Callback.id.in_(callbacks), Callback.state.in_(("success", "failed"))
                )
                ended |= {callbacks[each] for each in session.scalars(over)}
            if tasks:
                rows = session.execute(
                    select(
                        TaskInstance.dag_id,
                        TaskInstance.task_id,
                        TaskInstance.run_id,
                        TaskInstance.try_number,
                        TaskInstance.map_index,
                    ).where(TaskInstance.filter_for_tis(tasks), TaskInstance.state == "success")
                )
                ended |= {type(tasks[0])(*row) for row in rows}
        return ended
