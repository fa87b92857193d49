"""One deployment under load and kills, from its start to the verdict."""

from __future__ import annotations

import contextlib
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from tests.chaos import audit
from tests.chaos.judge import Finding, Judge
from tests.chaos.load import READY, Amounts
from tests.chaos.supervisor import SCHEDULERS, Plan, Supervisor
from tests.support.airflow_env import AirflowHome, DatabaseTemplates
from tests.support.deployment import Deployment, Executor, deployed
from tests.support.postgres import PostgresServer, running_postgres
from tests.support.redis import running_redis
from tests.support.smtp import MailSink, running_mail_sink

__all__ = ["Phase"]

HERE = Path(__file__).parent
SLOTS = 4
"""Of each scheduler."""
THRESHOLD_SECONDS = 10
ORPHAN_CHECK_SECONDS = 15
LOOP_SECONDS = 2.0
"""The longest that a loop may take for the bound; what loops take is told beside it."""
STALLED_SECONDS = 180.0
"""Nothing ends any more."""
FORGOTTEN_SECONDS = 90.0
"""
LocalExecutor cannot give up a task instance (it lacks ``revoke_task``), so Airflow leaves one queued whose process was killed before
it began, until its scheduler is restarted. With nothing else left for this long, the schedulers are.
"""
_LAST = "last"
_LAST_SECONDS = 30.0
"""How long a callback takes that is in flight at the last kill: longer than until it is taken over."""

_FORGOTTEN = (
    "SELECT count(*) FROM task_instance WHERE dag_id = 'herd' AND state = 'queued' AND start_date IS NULL"
)
_OPEN = """
    SELECT (SELECT count(*) FROM callback WHERE state NOT IN ('success', 'failed'))
         + (SELECT count(*) FROM deadline WHERE NOT missed)
         + (SELECT count(*) FROM task_instance WHERE dag_id = 'herd' AND state IS DISTINCT FROM 'success')
         + (SELECT count(*) FROM dag_run WHERE dag_id = 'herd' AND state NOT IN ('success', 'failed'))
         + (SELECT count(*) FROM callback_priority_item WHERE state != 'done')
"""


@attrs.frozen(kw_only=True)
class Phase:
    """What is done with one executor.

    Args:
        executor: It.
        amounts: The load.
        plan: The kills.
        most_seconds: When to stop killing, and as long again until everything must have ended.
    """

    executor: Executor
    amounts: Amounts
    plan: Plan
    most_seconds: float

    def run(self, directory: Path, seed: int, tell: Callable[[str], None]) -> list[Finding]:
        """Do it, and judge."""
        with contextlib.ExitStack() as stack:
            # What is committed must survive the kills.
            postgres = stack.enter_context(running_postgres({"synchronous_commit": "on", "autovacuum": "on"}))
            mails = stack.enter_context(running_mail_sink())
            airflow = stack.enter_context(self._deployed(directory, postgres, mails))
            rng = random.Random(f"{seed} {self.executor}")  # noqa: S311 - kills, not secrets
            supervisor = Supervisor(airflow, directory, rng, tell)
            airflow.launchers["scheduler"] = airflow.forks.launcher(supervisor.fault_point)
            audit.install(airflow)
            airflow.start(*(name for name in airflow.components if not name.startswith("triggerer")))
            airflow.wait_for_dags("alerts", "herd")
            tell("all is up")
            began = time.monotonic()
            with self._loading(airflow, directory, seed, "load", self.amounts, supervisor) as loader:
                supervisor.carry_out(self.plan, began + self.most_seconds)
                tell(f"killed: {dict(supervisor.killed)} in {time.monotonic() - began:.0f} s")
                while loader.poll() is None:
                    supervisor.watch(1.0)
            if loader.returncode:
                raise RuntimeError(f"the load failed: {(directory / 'load.log').read_text()[-3000:]}")
            stalled = self._drain(airflow, supervisor, tell)
            last = [] if stalled else self._last_kill(airflow, directory, seed, supervisor, tell)
            tasks = self.amounts.herds * 25
            seconds = round(time.monotonic() - began)
            return [
                Finding(name="seconds", value=seconds),
                *self._of_kills(supervisor),
                *last,
                Finding.none_of("what does not end", stalled),
                *Judge(airflow, directory / "manifest.jsonl", mails).findings(tasks),
            ]

    @contextlib.contextmanager
    def _deployed(self, directory: Path, postgres: PostgresServer, mails: MailSink) -> Iterator[Deployment]:
        subject = directory / "subject"
        subject.write_text("{{ti.run_id}} try {{try_number}}")
        with contextlib.ExitStack() as stack:
            redis = stack.enter_context(running_redis()) if self.executor == "CeleryExecutor" else None
            yield stack.enter_context(
                deployed(
                    directory / "airflow",
                    databases=DatabaseTemplates(
                        home=AirflowHome.create(directory / "template"), directory=directory
                    ),
                    postgres=postgres,
                    redis=redis,
                    executor=self.executor,
                    dags=sorted((HERE / "dags").glob("*.py")),
                    replicas={"scheduler": 2, "celery-worker": 2},
                    concurrency=2,
                    callback_priority={
                        "mode": "active",
                        "use_worker_callbacks": "all",
                        "journal": True,
                        "sweep_interval_seconds": 5,
                        "reconcile_interval_seconds": 5,
                        "executor_retry_seconds": 5,
                        "failure_back_off_seconds": 5,
                        "callback_retry_delay_seconds": 2,
                        "callback_queued_timeout_seconds": 60,
                        "callback_heartbeat_timeout_seconds": 30,
                        "callback_running_timeout_seconds": 120,
                    },
                    options={
                        # An unacknowledged message is delivered again after this.
                        "celery_broker_transport_options": {"visibility_timeout": 60},
                        "core": {"parallelism": SLOTS},
                        "dag_processor": {"parsing_processes": 1, "min_file_process_interval": 3600},
                        "email": {"subject_template": subject},
                        "scheduler": {
                            "job_heartbeat_sec": 2,
                            "num_stuck_in_queued_retries": 50,
                            "orphaned_tasks_check_interval": ORPHAN_CHECK_SECONDS,
                            "scheduler_health_check_threshold": THRESHOLD_SECONDS,
                            "scheduler_heartbeat_sec": 2,
                            "task_instance_heartbeat_timeout": 30,
                            "task_queued_timeout": 60,
                        },
                        "workers": {"min_heartbeat_interval": 2, "execution_api_timeout": 30},
                    },
                    environment={"AIRFLOW_CONN_SMTP_DEFAULT": mails.connection_uri},
                )
            )

    @contextlib.contextmanager
    def _loading(
        self,
        airflow: Deployment,
        directory: Path,
        seed: int,
        name: str,
        amounts: Amounts,
        supervisor: Supervisor,
    ) -> Iterator[subprocess.Popen[bytes]]:
        """The load's process, once it has said that it may be disturbed."""
        log = directory / f"{name}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [
                    *(sys.executable, HERE / "load.py", *amounts.arguments()),
                    *("--manifest", directory / "manifest.jsonl", "--seed", str(seed), "--name", name),
                    *("--progress", supervisor.progress),
                ],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=airflow.environment,
            )
        try:
            while READY not in log.read_text().splitlines():
                if process.poll() is not None:
                    raise RuntimeError(f"the load failed: {log.read_text()[-3000:]}")
                supervisor.watch(0.2)
            yield process
        finally:
            process.kill()
            process.wait()

    def _drain(
        self, airflow: Deployment, supervisor: Supervisor, tell: Callable[[str], None]
    ) -> list[object]:
        """Wait until everything has ended; returns what has not, once nothing moves any more."""
        left, since = None, time.monotonic()
        until = since + self.most_seconds
        told = 0.0
        while True:
            now = time.monotonic()
            count = airflow.value(_OPEN)
            if not count:
                return []
            if count != left:
                left, since = count, now
            if self._forgets and now - since > FORGOTTEN_SECONDS and not supervisor.forgotten:
                supervisor.forgotten = airflow.value(_FORGOTTEN)
                if supervisor.forgotten:
                    tell(f"{supervisor.forgotten} task instances wait for their scheduler's restart")
                    for name in SCHEDULERS:
                        supervisor.kill_scheduler(name)
            if now - told > 15:
                told = now
                tell(f"{count} have not ended")
            if now > until or now - since > STALLED_SECONDS:
                return [
                    tuple(row)
                    for row in airflow.rows(
                        "SELECT c.id, c.state, c.output, i.state, i.scheduler_job_id, i.attempts, i.reason, i.kind"
                        " FROM callback c LEFT JOIN callback_priority_item i ON i.callback_id = c.id"
                        " WHERE c.state NOT IN ('success', 'failed')"
                    )
                ] or [f"{count} rows"]
            supervisor.watch(0.5)

    def _last_kill(
        self,
        airflow: Deployment,
        directory: Path,
        seed: int,
        supervisor: Supervisor,
        tell: Callable[[str], None],
    ) -> list[Finding]:
        """With all slots in use by callbacks, kill one of the schedulers: how long until the other has them?"""
        victim = "scheduler-2"
        supervisor.kill_scheduler(victim)
        # The other one must not be busy with the end of this one any more.
        supervisor.watch(THRESHOLD_SECONDS + ORPHAN_CHECK_SECONDS)
        airflow.wait_until(lambda: airflow.is_ready(victim), f"{victim} is ready")
        job = airflow.value("SELECT max(id) FROM job WHERE job_type = 'SchedulerJob'")
        slots = 2 * SLOTS
        burst = Amounts(
            deadlines=slots,
            task_callbacks=0,
            dag_callbacks=0,
            mails=0,
            tasks=0,
            seconds=0.0,
            each_seconds=_LAST_SECONDS,
        )
        held = (
            "SELECT callback_id FROM callback_priority_item WHERE state = 'granted'"
            " AND (:job = 0 OR scheduler_job_id = :job)"
        )
        with self._loading(airflow, directory, seed, _LAST, burst, supervisor) as loader:
            until = time.monotonic() + 20.0
            while len(airflow.rows(held, job=0)) < slots and time.monotonic() < until:
                supervisor.watch(0.1)
            in_use = len(airflow.rows(held, job=0))
            orphans = [row.callback_id for row in airflow.rows(held, job=job)]
            killed_at = time.time()
            supervisor.kill_scheduler(victim)
            tell(f"the last kill: {len(orphans)} of {in_use} callbacks were the killed one's")
            loader.wait()
        stalled = self._drain(airflow, supervisor, tell)
        waited = [
            float(row.at) - killed_at
            for row in airflow.rows(
                "SELECT callback_id, min(extract(epoch FROM at)) AS at FROM chaos_item_change"
                " WHERE old_job = :job AND old_state = 'granted' AND extract(epoch FROM at) > :killed_at"
                " GROUP BY callback_id",
                job=job,
                killed_at=killed_at,
            )
        ]
        bound = THRESHOLD_SECONDS + ORPHAN_CHECK_SECONDS + 2 * LOOP_SECONDS
        longest = max(waited, default=0.0)
        return [
            Finding(
                name="slots in use before the last kill",
                value=in_use,
                wanted=str(slots),
                holds=in_use == slots,
            ),
            Finding(
                name="callbacks of the scheduler that was killed last",
                value=len(orphans),
                wanted="> 0, all found",
                holds=0 < len(orphans) == len(waited),
            ),
            Finding(
                name="seconds until they were taken over, middle and longest",
                value=f"{statistics.median(waited or [0.0]):.1f}, {longest:.1f}",
                wanted=f"<= {bound:g}",
                holds=longest <= bound,
            ),
            Finding.none_of("what does not end after the last kill", stalled),
        ]

    def _of_kills(self, supervisor: Supervisor) -> list[Finding]:
        killed = supervisor.killed
        schedulers = killed["schedulers"] + killed["critical"] + killed["committed"]
        least = self.plan.schedulers + self.plan.critical + self.plan.committed
        wanted = (
            ("schedulers killed", schedulers, least),
            ("of which in the critical section", killed["critical"], self.plan.critical),
            ("of which right after its COMMIT", killed["committed"], self.plan.committed),
            ("Celery workers killed", killed["workers"], self.plan.workers),
            ("single worker processes killed", killed["processes"], self.plan.processes),
            ("databases killed", killed["databases"], self.plan.databases),
        )
        return [
            *(
                Finding(name=name, value=value, wanted=f">= {number}", holds=value >= number)
                for name, value, number in wanted
                if number
            ),
            Finding(name="components that ended by themselves", value=dict(supervisor.ended)),
            *self._of_the_forgotten(supervisor),
        ]

    def _of_the_forgotten(self, supervisor: Supervisor) -> list[Finding]:
        if not self._forgets:
            return []
        most = supervisor.killed["processes"]
        return [
            Finding(
                name="task instances that LocalExecutor forgot, back after a restart",
                value=supervisor.forgotten,
                wanted=f"<= {most}, its processes killed",
                holds=supervisor.forgotten <= most,
            )
        ]

    @property
    def _forgets(self) -> bool:
        return self.executor == "LocalExecutor"
