"""``python -m tests.soak``: an hour of overload beside an equal hour of stock Airflow.

Two deployments at the same time, on one PostgreSQL server with a database each: a real ``airflow scheduler`` with the
library, and one without. Each is kept overloaded with tasks and missed deadlines. Its executor starts no processes, so
that a loop is what the time goes into and what the memory is for. Every ten seconds the memory of both is
measured, and what is in the library's tables.

It ends non-zero if the memory of the scheduler with the library grows by more than stock's plus 5 % of what it is
after warming up, or if a table of the library holds what is neither live nor within the configured history.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import psutil

from tests.support.airflow_env import AirflowHome, DatabaseTemplates
from tests.support.deployment import Deployment, deployed
from tests.support.forks import launched
from tests.support.postgres import PostgresServer, running_postgres

HERE = Path(__file__).parent
SAMPLE_SECONDS = 10.0
WARM_UP = 0.25
"""The share of the time that is not looked at."""
ALLOWED = 0.05
SWEEP_SECONDS = 10.0
SLOTS = 16
MEBIBYTE = 2**20

# What is in each table that must not be: neither live, nor finished within the history.
_FORBIDDEN = {
    "callback_priority_item": "state = 'done' AND finished_at < :horizon",
    "callback_priority_unit": (
        "callback_id NOT IN (SELECT callback_id FROM callback_priority_item)"
        " AND request_id NOT IN (SELECT id FROM callback_priority_request)"
    ),
    "callback_priority_request": (
        "received_at < :horizon AND NOT EXISTS (SELECT 1 FROM callback_priority_unit u"
        " JOIN callback_priority_item i ON i.callback_id = u.callback_id"
        " WHERE u.request_id = callback_priority_request.id AND i.state != 'done')"
    ),
    "callback_priority_journal": "written_at < :horizon",
    "callback_priority_flow": "(SELECT count(*) FROM callback_priority_flow) > 16",
    "callback_priority_reference": "dag_id NOT IN (SELECT dag_id FROM dag)",
}


@attrs.frozen(kw_only=True)
class Sample:
    """What was measured of one deployment.

    Args:
        at_seconds: Since the beginning.
        unique: Memory that is the scheduler's alone, in bytes.
        resident: Memory that it has in use, shared memory included, in bytes.
        started: Workloads that have been handed to its executor so far.
        rows: Of each table of the library.
        forbidden: Of those, what must not be there.
    """

    at_seconds: float
    unique: int
    resident: int
    started: int
    rows: dict[str, int]
    forbidden: dict[str, int]


@attrs.define
class Side:
    """One of the two."""

    name: str
    airflow: Deployment
    history_seconds: float
    samples: list[Sample] = attrs.field(factory=list, init=False)
    _started: int = attrs.field(default=0, init=False)

    def sample(self, at_seconds: float) -> Sample:
        """Measure."""
        self.airflow.check()
        memory = self.airflow.processes("scheduler")[0].memory_full_info()
        tables = {} if self.name == "stock" else _FORBIDDEN
        slack = 3 * SWEEP_SECONDS + SAMPLE_SECONDS
        horizon = f"now() - interval '{self.history_seconds + slack} seconds'"
        rows, forbidden = {}, {}
        for table, condition in tables.items():
            where = condition.replace(":horizon", horizon)
            [row] = self.airflow.rows(
                f"SELECT count(*) AS all, count(*) FILTER (WHERE {where}) AS bad FROM {table}"
            )
            rows[table], forbidden[table] = row.all, row.bad
        started = int(self.airflow.value("SELECT last_value FROM soak_starts") or 0)
        sample = Sample(
            at_seconds=at_seconds,
            unique=memory.uss,
            resident=memory.rss,
            started=started,
            rows=rows,
            forbidden=forbidden,
        )
        self.samples.append(sample)
        return sample

    def growth(self, name: str) -> tuple[float, float]:
        """By the line that fits best: the level after warming up in MiB, and by how much of it memory has grown."""
        begin = self.samples[-1].at_seconds * WARM_UP
        points = [(each.at_seconds, getattr(each, name)) for each in self.samples if each.at_seconds >= begin]
        level, slope = fit(points)
        start, end = (level + slope * at for at in (points[0][0], points[-1][0]))
        return start / MEBIBYTE, end / start - 1


def fit(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The line through points with the least squares: its value at 0 and its slope."""
    count = len(points)
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
    return mean_y - slope * mean_x, slope


@contextlib.contextmanager
def running(
    name: str, directory: Path, templates: DatabaseTemplates, postgres: PostgresServer, minutes: float
) -> Iterator[Side]:
    """A deployment under load."""
    history = max(60.0, minutes * 60 / 12)
    library: dict[str, object] = {
        "mode": "active",
        "use_worker_callbacks": "all",
        "journal": True,
        "history_seconds": history,
        "sweep_interval_seconds": SWEEP_SECONDS,
    }
    with deployed(
        directory / name,
        databases=templates,
        postgres=postgres,
        dags=[HERE / "dags" / "crowd.py"],
        callback_priority={"mode": "off"} if name == "stock" else library,
        options={
            "core": {"executor": "soak_executor.SoakExecutor", "parallelism": SLOTS},
            "scheduler": {"scheduler_idle_sleep_time": 1.0, "task_queued_timeout": 600},
        },
        environment={"PYTHONPATH": os.pathsep.join(paths())},
    ) as airflow:
        # Its memory is measured, so it shares none with a process that it was forked from.
        airflow.launchers["scheduler"] = launched
        airflow.start("dag-processor")
        airflow.wait_for_dags("crowd", "alerts")
        airflow.stop("dag-processor")
        count_starts(airflow)
        airflow.start("scheduler")
        with (directory / f"{name}.log").open("wb") as log:
            crowd = subprocess.Popen(
                [
                    *(sys.executable, HERE / "crowd.py"),
                    *("--seconds", str(minutes * 60 + 600), "--keep-seconds", str(history + 120)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=airflow.environment,
            )
        try:
            yield Side(name, airflow, history)
            if crowd.poll() is not None:
                raise RuntimeError((directory / f"{name}.log").read_text()[-3000:])
        finally:
            crowd.kill()
            crowd.wait()


def paths() -> list[str]:
    """Where the deployments' processes find what they import."""
    modules = HERE.parent / "deployment" / "modules"
    return [str(HERE / "modules"), str(modules), *filter(None, [os.environ.get("PYTHONPATH")])]


def count_starts(airflow: Deployment) -> None:
    """Have the database count what becomes queued, since rows are cleared away."""
    for statement in (
        "CREATE SEQUENCE soak_starts",
        """
        CREATE FUNCTION soak_count() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM nextval('soak_starts'); RETURN NULL; END $$
        """,
        *(
            f"CREATE TRIGGER soak_started AFTER UPDATE ON {table} FOR EACH ROW"
            " WHEN (OLD.state IS DISTINCT FROM NEW.state AND NEW.state = 'queued') EXECUTE FUNCTION soak_count()"
            for table in ("callback", "task_instance")
        ),
    ):
        airflow.execute(statement)


def main() -> int:
    """Measure; 1 if anything does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument(
        "--keep", type=Path, help="a new directory for logs and homes, instead of one that is removed"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    directory = arguments.keep or Path(tempfile.mkdtemp(prefix="callback-priority-soak-"))
    directory.mkdir(exist_ok=True)
    try:
        with contextlib.ExitStack() as stack:
            postgres = stack.enter_context(running_postgres({"autovacuum": "on"}))
            templates = DatabaseTemplates(home=AirflowHome.create(directory / "home"), directory=directory)
            sides = [
                stack.enter_context(running(name, directory, templates, postgres, arguments.minutes))
                for name in ("stock", "library")
            ]
            began = time.monotonic()
            while (at := time.monotonic() - began) < arguments.minutes * 60:
                for side in sides:
                    tell(side, side.sample(at))
                time.sleep(max(0.0, SAMPLE_SECONDS - (time.monotonic() - began - at)))
    finally:
        if arguments.keep is None:
            shutil.rmtree(directory, ignore_errors=True)
    print(
        f"\npython -m tests.soak --minutes {arguments.minutes:g}: {os.cpu_count()} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, Python {platform.python_version()}"
    )
    return 0 if report(sides) else 1


def tell(side: Side, sample: Sample) -> None:
    """Print a sample."""
    rows = " ".join(
        f"{name.removeprefix('callback_priority_')} {number}" for name, number in sample.rows.items()
    )
    print(
        f"{sample.at_seconds:6.0f} s  {side.name:<8} {sample.unique / MEBIBYTE:7.1f} MiB alone "
        f"{sample.resident / MEBIBYTE:7.1f} MiB in all  {sample.started:>7} started  {rows}",
        flush=True,
    )


def report(sides: Sequence[Side]) -> bool:
    """Print the figures; returns whether all is as it must be."""
    stock, library = sides
    holds = True
    for name, text in (("unique", "memory of its own"), ("resident", "memory in use")):
        (at_stock, stock_grew), (at_library, library_grew) = stock.growth(name), library.growth(name)
        good = library_grew <= stock_grew + ALLOWED
        holds = holds and good
        print(
            f"{text}: stock {at_stock:.1f} MiB {stock_grew:+.2%}, library {at_library:.1f} MiB {library_grew:+.2%}; "
            f"must be <= stock's + {ALLOWED:.0%}: {'holds' if good else 'BROKEN'}"
        )
    begin = library.samples[-1].at_seconds * WARM_UP
    for table in _FORBIDDEN:
        late = [each for each in library.samples if each.at_seconds >= begin]
        worst = max(each.forbidden[table] for each in late)
        good = worst == 0
        holds = holds and good
        most = max(each.rows[table] for each in late)
        print(
            f"{table}: at most {most} rows, of which beyond live and history {worst}: {'holds' if good else 'BROKEN'}"
        )
    for side in sides:
        print(f"{side.name}: {side.samples[-1].started} workloads started")
    return holds


if __name__ == "__main__":
    sys.exit(main())
