"""Makes work for a deployment, with Airflow's own classes: deadlines, requests for callbacks, Dag runs.

Run in the deployment's environment, it writes what it is about to ask for into a manifest before it does, a line of
JSON for each callback that must end, and asks again where the database failed: it is killed as well, meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs

HERD_SIZE = 25
UNITS_PER_TASK_REQUEST = 2
UNITS_PER_DAG_REQUEST = 8
RETRY_SECONDS = 0.5
POLL_SECONDS = 0.2
READY = "ready"
"""Said once what must not be asked for twice has been."""
PATIENCE_SECONDS = 120.0
LULL_SECONDS = 3.0
"""The longest that the next step waits for a kill: one in the critical section may in turn wait for work to be granted."""


@attrs.frozen(kw_only=True)
class Amounts:
    """How much is asked for.

    Args:
        deadlines: Callbacks of missed deadlines.
        task_callbacks: Callbacks of tasks, several for a request.
        dag_callbacks: Callbacks of Dags, several for a request.
        mails: E-mails.
        tasks: Task instances.
        seconds: Over how long the deadlines are spread.
        each_seconds: How long a deadline's callback takes.
    """

    deadlines: int
    task_callbacks: int
    dag_callbacks: int
    mails: int
    tasks: int
    seconds: float
    each_seconds: float = 0.0

    @property
    def herds(self) -> int:
        """Dag runs for the tasks."""
        return -(-self.tasks // HERD_SIZE)

    @property
    def callbacks(self) -> int:
        """Callbacks in all, those of the herds' Dag runs included."""
        return self.deadlines + self.task_callbacks + self.dag_callbacks + self.mails + self.herds

    def arguments(self) -> list[str]:
        """As the command line has them."""
        return [f"--{name.replace('_', '-')}={value}" for name, value in attrs.asdict(self).items()]


class Loader:
    """Asks a deployment for callbacks and tasks.

    Args:
        amounts: How many.
        manifest: Where to write what is asked for.
        seed: Of the order.
        name: What runs are named after, so that a deployment can be loaded more than once.
        progress: A file with how much of the kills is done, from 0 to 1: of the load no more is asked for, so that
            there is some to the last; ``None`` to ask for all at once.
    """

    def __init__(self, amounts: Amounts, manifest: Path, seed: int, name: str, progress: Path | None) -> None:
        self.amounts = amounts
        self.progress = progress
        self.random = random.Random(f"{seed} {name}")  # noqa: S311 - a load, not a secret
        self.name = name
        self.manifest = manifest.open("a", buffering=1)
        self.fields: dict[str, Any] = {}

    def run(self) -> None:
        """Do it all: deadlines evenly over the time, all else as the kills go on."""
        runs = -(-self.amounts.dag_callbacks // (2 * UNITS_PER_DAG_REQUEST))
        self.patiently(lambda: self.make_runs(max(1, runs)))
        self.patiently(self.make_deadlines)
        # From here on asking again for the same is no harm.
        self.manifest.flush()
        print(READY, flush=True)
        steps = list(self.steps(max(1, runs)))
        self.random.shuffle(steps)
        for number, step in enumerate(steps):
            until = time.monotonic() + LULL_SECONDS
            while self.done() < number / len(steps) and time.monotonic() < until:
                time.sleep(POLL_SECONDS)
            self.patiently(step)

    def done(self) -> float:
        """How much of the kills is done; all, if there are none."""
        if self.progress is None:
            return 1.0
        with contextlib.suppress(FileNotFoundError, ValueError):
            return float(self.progress.read_text())
        return 0.0

    def steps(self, runs: int) -> Iterator[Callable[[], None]]:
        """What is asked for one by one."""
        for number in range(self.amounts.herds):
            yield lambda number=number: self.make_herd(number)
        for number in range(-(-self.amounts.task_callbacks // UNITS_PER_TASK_REQUEST)):
            kind = ("task_failure", "task_retry")[number % 2]
            yield lambda number=number, kind=kind: self.send_of_task(kind, number + 1)
        for number in range(self.amounts.mails):
            yield lambda number=number: self.send_mail(number + 1)
        for number in range(runs if self.amounts.dag_callbacks else 0):
            for kind in ("dag_failure", "dag_success"):
                yield lambda number=number, kind=kind: self.send_of_dag(kind, number)

    def patiently(self, step: Callable[[], None]) -> None:
        """Do something again until the database lets it happen."""
        from sqlalchemy.exc import DBAPIError, PendingRollbackError

        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return step()
            except (DBAPIError, PendingRollbackError) as error:
                print(f"again: {type(error).__name__}", flush=True)
                if time.monotonic() > until:
                    raise
                time.sleep(RETRY_SECONDS)

    def expect(self, **about: object) -> None:
        """Say what must end; saying it twice is no harm."""
        self.manifest.write(json.dumps(about) + "\n")

    # What is asked for

    def make_runs(self, count: int) -> None:
        """Dag runs that have ended, for requests to be about."""
        for number in range(count):
            self.make_run("alerts", f"{self.name}_{number}", "success")

    @staticmethod
    def make_run(dag_id: str, run_id: str, state: str) -> None:
        from airflow.models.dagbag import DBDagBag
        from airflow.models.dagrun import DagRun
        from airflow.utils.session import create_session
        from airflow.utils.state import DagRunState
        from airflow.utils.types import DagRunTriggeredByType, DagRunType
        from sqlalchemy import select

        with create_session() as session:
            if session.scalar(select(DagRun.id).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id)):
                return
            dag = DBDagBag().get_latest_version_of_dag(dag_id, session=session)
            dag.create_dagrun(
                run_id=run_id,
                run_type=DagRunType.MANUAL,
                triggered_by=DagRunTriggeredByType.TEST,
                run_after=dt.datetime.now(tz=dt.timezone.utc),
                state=DagRunState(state),
                session=session,
            )

    def make_herd(self, number: int) -> None:
        """A run of tasks, with a callback at its end."""
        run_id = f"{self.name}_{number}"
        self.expect(key=["herded", run_id, None], kind="dag_success", dag_id="herd", run_id=run_id)
        self.make_run("herd", run_id, "queued")

    def make_deadlines(self) -> None:
        """Deadlines that are going to be missed, each at its own time."""
        from airflow.models.dagrun import DagRun
        from airflow.models.deadline import Deadline
        from airflow.sdk import SyncCallback
        from airflow.utils.session import create_session
        from sqlalchemy import select

        run_id = f"{self.name}_0"
        now = dt.datetime.now(tz=dt.timezone.utc)
        with create_session() as session:
            run = session.scalar(select(DagRun.id).where(DagRun.dag_id == "alerts", DagRun.run_id == run_id))
            for number in range(self.amounts.deadlines):
                after = self.random.uniform(0, self.amounts.seconds)
                deadline = Deadline(
                    deadline_time=now + dt.timedelta(seconds=after),
                    callback=SyncCallback(
                        "late_alerts.late", kwargs={"number": number, "seconds": self.amounts.each_seconds}
                    ),
                    dagrun_id=run,
                    deadline_alert_id=None,
                    dag_id="alerts",
                    bundle_name="dags-folder",
                )
                session.add(deadline)
                session.flush()
                self.expect(
                    key=[f"late_{number}", run_id, None],
                    kind="deadline",
                    callback_id=str(deadline.callback.id),
                )

    def send_of_task(self, kind: str, try_number: int) -> None:
        """Ask for the callbacks of a task's try."""
        from airflow.callbacks.callback_requests import TaskCallbackRequest
        from airflow.utils.state import TaskInstanceState

        fields = self.task_fields(try_number)
        for number in range(UNITS_PER_TASK_REQUEST):
            self.expect(
                key=[f"{kind}_{number}", f"{self.name}_0", try_number],
                kind=kind,
                dag_id="alerts",
                run_id=f"{self.name}_0",
                try_number=try_number,
                position=number,
            )
        state = TaskInstanceState.FAILED if kind == "task_failure" else TaskInstanceState.UP_FOR_RETRY
        self.send(TaskCallbackRequest(**fields, task_callback_type=state))

    def send_mail(self, try_number: int) -> None:
        """Ask for a mail about a task's try."""
        from airflow.callbacks.callback_requests import EmailRequest

        run_id = f"{self.name}_0"
        self.expect(
            key=["mail", run_id, try_number],
            kind="email_failure",
            dag_id="alerts",
            run_id=run_id,
            try_number=try_number,
            position=0,
        )
        self.send(EmailRequest(**self.task_fields(try_number), email_type="failure"))

    def send_of_dag(self, kind: str, number: int) -> None:
        """Ask for the callbacks of a Dag run's end."""
        from airflow.callbacks.callback_requests import DagCallbackRequest, DagRunContext
        from airflow.models.dagrun import DagRun
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session
        from sqlalchemy import select

        run_id = f"{self.name}_{number}"
        for position in range(UNITS_PER_DAG_REQUEST):
            self.expect(
                key=[f"{kind}_{position}", run_id, None],
                kind=kind,
                dag_id="alerts",
                run_id=run_id,
                position=position,
            )
        with create_session() as session:
            run = session.scalar(select(DagRun).where(DagRun.dag_id == "alerts", DagRun.run_id == run_id))
            last = session.scalar(
                select(TaskInstance).where(TaskInstance.dag_id == "alerts", TaskInstance.run_id == run_id)
            )
            request = DagCallbackRequest(
                filepath="alerts.py",
                dag_id="alerts",
                run_id=run_id,
                bundle_name="dags-folder",
                bundle_version=None,
                context_from_server=DagRunContext(dag_run=run, last_ti=last),
                is_failure_callback=kind == "dag_failure",
                msg="task_failure",
            )
        self.send(request)

    def task_fields(self, try_number: int) -> dict[str, Any]:
        """What requests about tasks have in common."""
        from airflow.api_fastapi.execution_api.datamodels import taskinstance as models
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session
        from sqlalchemy import select

        if not self.fields:
            with create_session() as session:
                found = session.scalar(
                    select(TaskInstance).where(
                        TaskInstance.dag_id == "alerts", TaskInstance.run_id == f"{self.name}_0"
                    )
                )
                self.fields = {
                    "filepath": "alerts.py",
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
        ti = self.fields["ti"].model_copy(update={"try_number": try_number})
        return self.fields | {"ti": ti}

    @staticmethod
    def send(request: Any) -> None:
        """As Airflow's scheduler does; asking again for the same is no harm."""
        from airflow.callbacks.database_callback_sink import DatabaseCallbackSink

        DatabaseCallbackSink().send(request)


def main() -> None:
    parser = argparse.ArgumentParser()
    for field in attrs.fields(Amounts):
        kind = float if field.name.endswith("seconds") else int
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=0)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--progress", type=Path)
    given = vars(parser.parse_args())
    others = {name: given.pop(name) for name in ("manifest", "seed", "name", "progress")}
    import airflow  # noqa: F401 - its settings, before anything of it

    Loader(Amounts(**given), **others).run()


if __name__ == "__main__":
    main()
