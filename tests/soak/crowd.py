"""Keeps one deployment overloaded, does what workers would do to the rows, and clears what is old away.

Run in the deployment's environment, for a time. It tops up what waits, so that the overload is steady however fast
the scheduler is; it ends what is queued; it removes ended Dag runs and callbacks after a while, as ``airflow db
clean`` does, so that Airflow's own tables stay as large as they are.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import itertools
import os
import time
from typing import Any

import sqlalchemy as sa

WAITING = 150
"""As many of each kind wait at least."""
DEADLINES = 40
REQUESTS = 10
EVERY_SECONDS = 0.5

_COUNTS = """
    SELECT (SELECT count(*) FROM callback WHERE state = 'pending' AND type = 'executor')
         + (SELECT count(*) FROM deadline WHERE NOT missed) AS callbacks,
           (SELECT count(*) FROM task_instance WHERE state = 'scheduled' OR state IS NULL AND dag_id = 'crowd') AS tasks
"""
_END_TASKS = """
    UPDATE task_instance SET state = 'success', start_date = now() - interval '1 second', end_date = now(),
           updated_at = now()
    WHERE state = 'queued' AND queued_dttm < now() - interval '0.7 second'
"""
_ROUTED = """
    SELECT i.callback_id FROM callback_priority_item i JOIN callback_priority_unit u ON u.callback_id = i.callback_id
    JOIN callback c ON c.id = i.callback_id
    WHERE i.state = 'granted' AND i.leader_id IS NULL AND c.state IN ('queued', 'running') AND u.ended_at IS NULL
"""
_CLEAR = (
    "DELETE FROM dag_run WHERE dag_id = 'crowd' AND state IN ('success', 'failed') AND end_date < :before",
    "DELETE FROM callback WHERE type = 'dag_processor'",
    "DELETE FROM callback WHERE state IN ('success', 'failed') AND created_at < :before",
    "DELETE FROM log WHERE dttm < :before",
    "DELETE FROM job WHERE state != 'running' AND latest_heartbeat < :before",
)


class Crowd:
    """The load of one deployment.

    Args:
        keep_seconds: For how long what has ended stays.
    """

    def __init__(self, keep_seconds: float) -> None:
        from airflow.configuration import conf

        from callback_priority.adapter.config import raw_section
        from callback_priority.policy.parse import parse_settings
        from callback_priority.policy.settings import Mode

        self.settings = parse_settings(raw_section(conf))
        self.ours = self.settings.mode is Mode.ACTIVE
        self.keep = dt.timedelta(seconds=keep_seconds)
        self.numbers = itertools.count(1)
        self.run_key = 0
        self.fields: dict[str, Any] = {}

    def run(self, seconds: float) -> None:
        """Go on for that long."""
        self.make_run("alerts", "alerts", "success")
        until = time.monotonic() + seconds
        clear_at = 0.0
        while (now := time.monotonic()) < until:
            if now >= clear_at:
                self.clear()
                clear_at = now + 20.0
            self.end()
            self.top_up()
            time.sleep(max(0.0, EVERY_SECONDS - (time.monotonic() - now)))

    def top_up(self) -> None:
        from airflow.utils.session import create_session

        with create_session() as session:
            waiting = session.execute(sa.text(_COUNTS)).one()
        if waiting.callbacks < WAITING:
            self.make_deadlines()
            for _ in range(REQUESTS):
                self.send()
        if waiting.tasks < WAITING:
            for _ in range(4):
                self.make_run("crowd", f"run_{next(self.numbers)}", "queued")

    def end(self) -> None:
        """What workers would say."""
        from airflow.utils.session import create_session

        with create_session() as session:
            session.execute(sa.text(_END_TASKS))
        if not self.ours:
            return
        with create_session() as session:
            leaders = list(session.scalars(sa.text(_ROUTED)))
        for leader in leaders:
            # Another scheduler loop may have taken it back.
            with contextlib.suppress(Exception):
                self.work(leader)

    def work(self, leader: Any) -> None:
        """One worker's run: it takes, begins and ends what it was handed."""
        from airflow.utils.session import create_session

        from callback_priority.adapter import runs
        from callback_priority.protocol import PROTOCOL, Ended, Start, UnitState

        def now() -> dt.datetime:
            return dt.datetime.now(tz=dt.timezone.utc)

        asked = Start(protocol=PROTOCOL, library="soak", hostname="here", pid=os.getpid())
        with create_session() as session:
            started = runs.start(session.connection(), leader, asked, settings=self.settings, now=now())
        for unit in started.run.units:
            with create_session() as session:
                runs.run(session.connection(), started.claim, unit.callback_id, now=now())
                ended = Ended(state=UnitState.SUCCESS, output=None, log=None)
                runs.end(
                    session.connection(),
                    started.claim,
                    unit.callback_id,
                    ended,
                    settings=self.settings,
                    now=now(),
                )

    def clear(self) -> None:
        from airflow.utils.session import create_session

        before = dt.datetime.now(tz=dt.timezone.utc) - self.keep
        for statement in _CLEAR:
            with create_session() as session:
                session.execute(sa.text(statement), {"before": before} if ":before" in statement else {})

    def make_run(self, dag_id: str, run_id: str, state: str) -> None:
        from airflow.models.dagbag import DBDagBag
        from airflow.utils.session import create_session
        from airflow.utils.state import DagRunState
        from airflow.utils.types import DagRunTriggeredByType, DagRunType

        with create_session() as session:
            dag = DBDagBag().get_latest_version_of_dag(dag_id, session=session)
            run = dag.create_dagrun(
                run_id=run_id,
                run_type=DagRunType.MANUAL,
                triggered_by=DagRunTriggeredByType.TEST,
                run_after=dt.datetime.now(tz=dt.timezone.utc),
                state=DagRunState(state),
                session=session,
            )
            session.flush()
            if dag_id == "alerts":
                self.run_key = run.id

    def make_deadlines(self) -> None:
        from airflow.models.deadline import Deadline
        from airflow.sdk import SyncCallback
        from airflow.utils.session import create_session

        with create_session() as session:
            for _ in range(DEADLINES):
                session.add(
                    Deadline(
                        deadline_time=dt.datetime.now(tz=dt.timezone.utc),
                        callback=SyncCallback("late_alerts.late", kwargs={"number": 0}),
                        dagrun_id=self.run_key,
                        deadline_alert_id=None,
                        dag_id="alerts",
                        bundle_name="dags-folder",
                    )
                )

    def send(self) -> None:
        """A request for callbacks of a task; stock's stays in the Dag processor's table until it is cleared away."""
        from airflow.api_fastapi.execution_api.datamodels import taskinstance as models
        from airflow.callbacks.callback_requests import TaskCallbackRequest
        from airflow.callbacks.database_callback_sink import DatabaseCallbackSink
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session

        if not self.fields:
            with create_session() as session:
                found = session.scalar(sa.select(TaskInstance).where(TaskInstance.dag_id == "alerts"))
                self.fields = {
                    "filepath": "crowd.py",
                    "bundle_name": "dags-folder",
                    "bundle_version": None,
                    "msg": "killed",
                    "ti": models.TaskInstance.model_validate(found, from_attributes=True),
                    "context_from_server": models.TIRunContext(
                        dag_run=models.DagRun.model_validate(found.dag_run, from_attributes=True),
                        max_tries=0,
                        variables=[],
                        connections=[],
                        xcom_keys_to_clear=[],
                    ),
                }
        ti = self.fields["ti"].model_copy(update={"try_number": next(self.numbers)})
        DatabaseCallbackSink().send(
            TaskCallbackRequest(**(self.fields | {"ti": ti}), task_callback_type="failed")
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--keep-seconds", type=float, required=True)
    arguments = parser.parse_args()
    import airflow  # noqa: F401 - its settings, before anything of it

    Crowd(arguments.keep_seconds).run(arguments.seconds)


if __name__ == "__main__":
    main()
