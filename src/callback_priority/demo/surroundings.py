"""An Airflow home for the demo: its directory, its environment variables, its migrated database.

Nothing of the caller's Airflow is used: every `AIRFLOW_...` variable is dropped, the home is a temporary directory,
and all servers listen on free ports of the loopback interface only.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs

from callback_priority.demo.load import Load
from callback_priority.errors import CallbackPriorityError

__all__ = ["Home", "MigrationError", "Ports", "free_ports"]

_DAGS: Final = Path(__file__).with_name("dags")
_MIGRATION_TIMEOUT_SECONDS: Final = 180
_RECORD_TABLE: Final = """
CREATE TABLE demo_callback_run (
    deadline_id TEXT NOT NULL PRIMARY KEY,
    started_at REAL NOT NULL,
    ended_at REAL
)
"""


class MigrationError(CallbackPriorityError):
    """`airflow db migrate` failed."""


@attrs.frozen(kw_only=True)
class Ports:
    """What listens where on the loopback interface.

    Args:
        public: The API server's public part.
        execution: The API server's part for running tasks.
        triggerer_log: Where logs of triggers would be served; nothing listens.
        worker_log: Where logs of tasks would be served; nothing listens.
    """

    public: int
    execution: int
    triggerer_log: int
    worker_log: int


@attrs.frozen(kw_only=True)
class Home:
    """A directory for an Airflow home and a database per phase, with the secrets that the processes share.

    Args:
        path: The directory.
        fernet_key: Encrypts connections.
        jwt_secret: Signs the tokens with which tasks call the execution API.
        api_secret_key: Signs the API server's cookies.
    """

    path: Path
    fernet_key: str = attrs.field(factory=lambda: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode())
    jwt_secret: str = attrs.field(factory=lambda: secrets.token_hex(32))
    api_secret_key: str = attrs.field(factory=lambda: secrets.token_hex(16))

    @property
    def template(self) -> Path:
        """The migrated database of which every phase gets a copy."""
        return self.path / "template.db"

    def database(self, phase: str) -> Path:
        """The database of a phase."""
        return self.path / f"{phase}.db"

    def logs(self, phase: str) -> Path:
        """Where the components of a phase log to."""
        return self.path / "logs" / phase

    def make_template(self, load: Load) -> None:
        """Lay out the home and migrate the database, as `airflow db migrate` does it for everybody.

        Raises:
            MigrationError: It failed; with what it printed.
        """
        shutil.copytree(_DAGS, self.path / "dags", ignore=shutil.ignore_patterns("__pycache__"))
        result = subprocess.run(
            [sys.executable, "-m", "airflow", "db", "migrate"],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment(
                "template", "off", load, ports=Ports(public=0, execution=0, triggerer_log=0, worker_log=0)
            ),
            timeout=_MIGRATION_TIMEOUT_SECONDS,
        )
        if result.returncode:
            raise MigrationError(
                f"airflow db migrate ended with status {result.returncode}:\n{result.stdout}"
            )
        with contextlib.closing(sqlite3.connect(self.template)) as connection, connection:
            connection.execute(_RECORD_TABLE)
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def make_database(self, phase: str) -> Path:
        """A fresh copy of the migrated database for a phase."""
        self.logs(phase).mkdir(parents=True)
        return Path(shutil.copyfile(self.template, self.database(phase)))

    def environment(
        self, phase: str, mode: str, load: Load, *, ports: Ports, options: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """The environment of Airflow's processes in a phase: ours without Airflow's, and what the demo sets.

        Args:
            phase: Whose database and logs.
            mode: `[callback_priority] mode`.
            load: For the number of slots and the callbacks' lengths.
            ports: What listens where.
            options: What else is set in `[callback_priority]`.
        """
        database = self.database(phase)
        sections: dict[str, dict[str, object]] = {
            "api": {
                "base_url": f"http://127.0.0.1:{ports.public}",
                "host": "127.0.0.1",
                "secret_key": self.api_secret_key,
                "workers": 1,
            },
            "api_auth": {"jwt_secret": self.jwt_secret},
            # The journal tells `callback-priority replay` until when slots were held.
            "callback_priority": {**(options or {}), "mode": mode, "journal": True},
            "core": {
                "dags_are_paused_at_creation": False,
                "dags_folder": self.path / "dags",
                "execution_api_server_url": f"http://127.0.0.1:{ports.execution}/execution/",
                "executor": "LocalExecutor",
                "fernet_key": self.fernet_key,
                "load_examples": False,
                "parallelism": load.slots,
                "simple_auth_manager_all_admins": True,
            },
            # SQLite has one writer at a time; half a minute of waiting for it beats an error.
            "database": {"sql_alchemy_conn": f"sqlite:///{database}?timeout=30"},
            "dag_processor": {"parsing_processes": 1, "min_file_process_interval": 600},
            "logging": {
                "base_log_folder": self.logs(phase),
                "trigger_log_server_port": ports.triggerer_log,
                "worker_log_server_port": ports.worker_log,
            },
            "scheduler": {
                "enable_health_check": False,
                # A released slot is seen by the next loop, and a second is long where workloads take four.
                "scheduler_idle_sleep_time": 0.2,
                "use_job_schedule": False,
            },
            "usage_data_collection": {"enabled": False},
            # A finished workload keeps its slot until its supervisor looks up: every 5 s by default.
            "workers": {"min_heartbeat_interval": 1},
        }
        ours = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AIRFLOW_", "_AIRFLOW_"))
        }
        # Airflow's commands look for one another on the path.
        ours["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), ours.get("PATH", os.defpath)])
        ours |= {
            "AIRFLOW_HOME": str(self.path),
            "CALLBACK_PRIORITY_DEMO_DATABASE": str(database),
            "CALLBACK_PRIORITY_DEMO_SEED": str(load.seed),
            "CALLBACK_PRIORITY_DEMO_SHORTEST_CALLBACK": str(load.callback_seconds[0]),
            "CALLBACK_PRIORITY_DEMO_LONGEST_CALLBACK": str(load.callback_seconds[1]),
            "PYTHONUNBUFFERED": "1",
        }
        return ours | {
            f"AIRFLOW__{section.upper()}__{name.upper()}": str(value)
            for section, options in sections.items()
            for name, value in options.items()
        }


def free_ports() -> Ports:
    """Ports of the loopback interface that nothing listens on now."""
    names = [field.name for field in attrs.fields(Ports)]
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in names]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return Ports(**{name: one.getsockname()[1] for name, one in zip(names, sockets, strict=True)})
