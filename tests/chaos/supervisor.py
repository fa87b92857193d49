"""Kills what runs, by a plan drawn from a seed, and starts again what was killed or has ended by itself."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import psutil
import sqlalchemy as sa

from tests.chaos.fault_point import COMMITTED
from tests.support.deployment import Deployment

__all__ = ["Plan", "Supervisor"]

SCHEDULERS = ("scheduler", "scheduler-2")
CELERY_WORKERS = ("celery-worker", "celery-worker-2")
DEEPEST_STATEMENT = 30
"""Critical sections that grant something have more statements than this."""
_ORDER_SECONDS = 20.0
_SETTLED_SECONDS = 1.0
_POLL_SECONDS = 0.1


@attrs.frozen(kw_only=True)
class Plan:
    """What is killed, and how often.

    Args:
        schedulers: Schedulers, at any moment.
        critical: Schedulers inside of the critical section.
        committed: Schedulers between the critical section's COMMIT and what follows it.
        workers: Celery workers with all their processes.
        processes: Single processes of workers, LocalExecutor's or Celery's, at work.
        databases: The database.
        pause_seconds: The shortest and the longest time between two kills.
    """

    schedulers: int
    critical: int
    committed: int
    workers: int
    processes: int
    databases: int
    pause_seconds: tuple[float, float]

    def events(self, rng: random.Random) -> list[str]:
        """The kills in their order."""
        counts = {name: number for name, number in attrs.asdict(self).items() if isinstance(number, int)}
        events = [name for name, number in counts.items() for _ in range(number)]
        rng.shuffle(events)
        return events


@attrs.define
class Supervisor:
    """Of one deployment.

    Args:
        airflow: It.
        directory: Where fault points are told what to do, and tell what they did.
        rng: Draws victims and moments.
        tell: Is told what happens.
    """

    airflow: Deployment
    directory: Path
    rng: random.Random
    tell: Callable[[str], None]
    killed: Counter[str] = attrs.field(factory=Counter, init=False)
    ended: Counter[str] = attrs.field(factory=Counter, init=False)
    last_kill_at: float = attrs.field(default=0.0, init=False)
    forgotten: int = attrs.field(default=0, init=False)
    _ready_since: dict[str, float] = attrs.field(factory=dict, init=False)
    _suicides_read: int = attrs.field(default=0, init=False)

    @property
    def progress(self) -> Path:
        """The file that says how much of the plan is done, from 0 to 1."""
        return self.directory / "progress"

    def fault_point(self, component: str) -> dict[str, str]:
        """The arguments of a scheduler's fault point."""
        return {
            "orders": str(self._order(component)),
            "kills": str(self.directory / "suicides.jsonl"),
            "component": component,
        }

    def carry_out(self, plan: Plan, deadline: float) -> None:
        """Kill by the plan.

        Args:
            plan: It.
            deadline: By `time.monotonic`, when to stop even if not all is done.
        """
        events = deque(plan.events(self.rng))
        total = len(events)
        while events and time.monotonic() < deadline:
            self.watch(self.rng.uniform(*plan.pause_seconds))
            event = events[0]
            if getattr(self, f"_kill_{event}")():
                events.popleft()
                self.last_kill_at = time.time()
                self.progress.write_text(str(1 - len(events) / total))
                self.tell(f"{event}: {len(events)} left")
            elif len(set(events)) > 1:
                events.rotate(-1)
        self.progress.write_text("1")

    def watch(self, seconds: float) -> None:
        """For a while, start again what has ended."""
        until = time.monotonic() + seconds
        while True:
            for name in self.airflow.ended():
                self._bury(name)
                if not self._count_suicides():
                    self.ended[name.removesuffix("-2")] += 1
                    self.tell(f"{name} has ended by itself")
                self._start(name)
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(_POLL_SECONDS, left))

    def kill_scheduler(self, name: str) -> None:
        """Kill one with all its processes, and start it again."""
        self._bury(name)
        self.killed["schedulers"] += 1
        self.last_kill_at = time.time()
        self._start(name)

    # Kinds of kill; each returns whether it came to be ------------------------------------------------------

    def _kill_schedulers(self) -> bool:
        name = self._any_scheduler()
        if name is None:
            return False
        self.kill_scheduler(name)
        return True

    def _kill_critical(self) -> bool:
        return self._ordered("critical", self.rng.randint(1, DEEPEST_STATEMENT))

    def _kill_committed(self) -> bool:
        return self._ordered("committed", COMMITTED)

    def _kill_workers(self) -> bool:
        name = self.rng.choice(CELERY_WORKERS)
        self._bury(name)
        self._start(name)
        self.killed["workers"] += 1
        return True

    def _kill_processes(self) -> bool:
        parents = CELERY_WORKERS if self.airflow.executor == "CeleryExecutor" else SCHEDULERS
        busy = [each for name in parents for each in self._at_work(name)]
        if not busy:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            self.rng.choice(busy).kill()
            self.killed["processes"] += 1
            return True
        return False

    def _kill_databases(self) -> bool:
        server = self.airflow.postgres
        assert server is not None
        server.kill()
        time.sleep(self.rng.uniform(0.2, 2.0))
        server.start()
        self.killed["databases"] += 1
        return True

    # Inside -------------------------------------------------------------------------------------------------

    def _ordered(self, kind: str, statement: int) -> bool:
        """Have a scheduler kill itself."""
        name = self._any_scheduler()
        if name is None:
            return False
        before = self.killed[kind]
        self._order(name).write_text(str(statement))
        until = time.monotonic() + _ORDER_SECONDS
        while self.killed[kind] == before and name in self._ready_since and time.monotonic() < until:
            self.watch(_POLL_SECONDS)
        self._order(name).unlink(missing_ok=True)
        return self.killed[kind] > before

    def _order(self, component: str) -> Path:
        return self.directory / f"order-{component}"

    def _count_suicides(self) -> int:
        """Those that were not counted before."""
        path = self.directory / "suicides.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        new = [json.loads(line) for line in lines[self._suicides_read :]]
        self._suicides_read = len(lines)
        for each in new:
            self.killed["committed" if each["statement"] == COMMITTED else "critical"] += 1
            self.tell(f"{each['component']} killed itself at statement {each['statement']}: {each['text']}")
        return len(new)

    def _any_scheduler(self) -> str | None:
        """One that is at work."""
        now = time.monotonic()
        found = []
        for name in SCHEDULERS:
            with contextlib.suppress(sa.exc.OperationalError, sa.exc.InterfaceError):
                if self._ready_since.get(name) is None and self.airflow.is_ready(name):
                    self._ready_since[name] = now
            since = self._ready_since.get(name)
            if since is not None and now - since >= _SETTLED_SECONDS:
                found.append(name)
        return self.rng.choice(found) if found else None

    def _at_work(self, name: str) -> Iterator[psutil.Process]:
        """Worker processes of a component that have a process of their own at work.

        An idle one may hold the lock of LocalExecutor's queue, which Airflow does not survive.
        """
        with contextlib.suppress(psutil.NoSuchProcess, KeyError):
            processes = self.airflow.processes(name)
            parents = {each.ppid() for each in processes}
            root = min(each.pid for each in processes)
            for each in processes:
                if each.pid != root and each.pid in parents:
                    yield each

    def _bury(self, name: str) -> None:
        self.airflow.kill(name)
        self._ready_since.pop(name, None)
        self._order(name).unlink(missing_ok=True)

    def _start(self, name: str) -> None:
        self.airflow.launch(name)
