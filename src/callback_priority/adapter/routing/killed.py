"""Callbacks of tasks whose process is gone: killed for its memory, say, or by a signal.

Airflow runs a task's callbacks in the task's own process. Where that is killed, the worker's supervisor sets the
task instance's state, and nobody calls anything. The supervisor tells us (`callback_priority.worker.killed`), and
here the requests are made that the scheduler makes for tasks which it finds dead, and take the same way. They
have the same keys too, so that a request of the scheduler's for the same try is not run again.
"""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from airflow.api_fastapi.execution_api.datamodels.taskinstance import (
    DagRun as DagRunModel,
)
from airflow.api_fastapi.execution_api.datamodels.taskinstance import (
    TaskInstance as TaskInstanceModel,
)
from airflow.api_fastapi.execution_api.datamodels.taskinstance import (
    TIRunContext,
)
from airflow.callbacks.callback_requests import EmailRequest, TaskCallbackRequest
from airflow.callbacks.database_callback_sink import DatabaseCallbackSink
from airflow.models.dag import DagModel
from airflow.models.taskinstance import TaskInstance
from airflow.models.taskinstancehistory import TaskInstanceHistory
from airflow.utils.state import TaskInstanceState

from callback_priority.adapter.routing import sink
from callback_priority.core.classes import ServiceClass
from callback_priority.persistence import references
from callback_priority.policy.settings import Mode
from callback_priority.protocol import Killed

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["route_killed"]

log = logging.getLogger(__name__)


def route_killed(session: Session, ti_id: UUID, killed: Killed) -> int:
    """Route the callbacks and e-mails of a task whose process is gone.

    What cannot be routed goes to the Dag processor, as any other request.

    Args:
        session: The API server's; not committed here.
        ti_id: The try: of a task instance, or of its history where it is to be tried again already.
        killed: What its supervisor says.

    Returns:
        How many callables were routed.
    """
    router = sink.router() if sink.installed() else None
    if router is None or router.settings.mode is not Mode.ACTIVE:
        return 0
    found: Any = session.get(TaskInstance, ti_id) or session.get(TaskInstanceHistory, ti_id)
    if found is None or not router.settings.moves(ServiceClass.TASK_CALLBACK, found.dag_id):
        return 0
    dag = session.get(DagModel, found.dag_id)
    if found.dag_version_id is None or found.dag_run is None or dag is None:
        log.warning("The task instance %s was killed, and too little is known of it to call anything", ti_id)
        return 0
    about = _about(found, dag, killed)
    retries = killed.state == TaskInstanceState.UP_FOR_RETRY
    state = TaskInstanceState.UP_FOR_RETRY if retries else TaskInstanceState.FAILED
    requests: list[Any] = [TaskCallbackRequest(**about, task_callback_type=state)]
    document = references.read(session.connection(), found.dag_id, about["bundle_version"])
    email: Literal["retry", "failure"] = "retry" if retries else "failure"
    if document is not None and email in document.emails(found.task_id):
        requests.append(EmailRequest(**about, email_type=email))
    routed = 0
    for request in requests:
        answer = router.route(request, session)
        routed += answer.units
        if not answer.taken:
            sink.original()(DatabaseCallbackSink(), request, session=session)
    return routed


def _about(found: Any, dag: DagModel, killed: Killed) -> dict[str, Any]:
    """What the scheduler would say of it; see ``SchedulerJobRunner.process_executor_events``."""
    version, run = found.dag_version, found.dag_run
    return {
        "filepath": dag.relative_fileloc or "",
        "bundle_name": version.bundle_name if version else dag.bundle_name,
        "bundle_version": version.bundle_version
        if version and run.bundle_version is not None
        else run.bundle_version,
        "ti": TaskInstanceModel(
            id=found.id,
            task_id=found.task_id,
            dag_id=found.dag_id,
            run_id=found.run_id,
            try_number=found.try_number,
            dag_version_id=found.dag_version_id,
            map_index=found.map_index,
            hostname=found.hostname,
            context_carrier=found.context_carrier,
            queue=found.queue or "default",
        ),
        "msg": _message(killed),
        "context_from_server": TIRunContext(
            dag_run=DagRunModel.model_validate(run, from_attributes=True),
            max_tries=found.max_tries if found.max_tries is not None else -1,
            variables=[],
            connections=[],
            xcom_keys_to_clear=[],
        ),
    }


def _message(killed: Killed) -> str:
    code = killed.exit_code
    try:
        what = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    except ValueError:
        what = f"signal {-code}"
    when = "while it ran its callbacks" if killed.in_callback else "before it could run its callbacks"
    return f"The process of the task was killed {when} ({what})."
