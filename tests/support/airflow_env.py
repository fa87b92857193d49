"""An Airflow of the tests' own: its home, its environment variables, and migrated databases by the copy.

Airflow reads its surroundings while it is imported, so a test session calls `enter_airflow_home` first
(``tests/conftest.py`` does). `airflow db migrate` is run once per backend in a process of its own, as a user
runs it; every test then gets a copy: a copied file on SQLite, ``CREATE DATABASE ... TEMPLATE`` on PostgreSQL.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import attrs

from tests.support.postgres import PostgresServer

__all__ = [
    "AirflowHome",
    "Backend",
    "DatabaseTemplates",
    "enter_airflow_home",
    "run_airflow",
    "use_database",
]

Backend = Literal["sqlite", "postgresql"]

_COMMAND_TIMEOUT_SECONDS = 300
_DATABASE_VARIABLE = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"


@attrs.frozen(kw_only=True)
class AirflowHome:
    """A directory that Airflow calls home, with the secrets that its processes share.

    Args:
        path: The directory; made by `create`.
        fernet_key: Encrypts connections.
        jwt_secret: Signs the tokens with which tasks call the execution API.
        api_secret_key: Signs the API server's cookies.
    """

    path: Path
    fernet_key: str = attrs.field(factory=lambda: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode())
    jwt_secret: str = attrs.field(factory=lambda: secrets.token_hex(32))
    api_secret_key: str = attrs.field(factory=lambda: secrets.token_hex(16))

    @classmethod
    def create(cls, path: Path) -> AirflowHome:
        """Make the directory, with its Dags folder."""
        home = cls(path=path)
        home.dags_folder.mkdir(parents=True, exist_ok=True)
        return home

    @property
    def dags_folder(self) -> Path:
        return self.path / "dags"

    @property
    def default_database_url(self) -> str:
        """A SQLite file that nobody migrates: what uses it without asking for a database fails."""
        return f"sqlite:///{self.path / 'airflow.db'}"

    def variables(
        self,
        database_url: str | None = None,
        *,
        api_port: int | None = None,
        options: Mapping[str, Mapping[str, object]] | None = None,
    ) -> dict[str, str]:
        """Airflow's environment variables.

        Args:
            database_url: The metadata database.
            api_port: Where this Airflow's API server listens, for Airflows that run tasks.
            options: More settings, by section and name: ``{"callback_priority": {"mode": "active"}}``.
        """
        sections: dict[str, dict[str, object]] = {
            "api": {"secret_key": self.api_secret_key, "workers": 1},
            "api_auth": {"jwt_secret": self.jwt_secret},
            "core": {
                "dags_folder": self.dags_folder,
                "executor": "LocalExecutor",
                "fernet_key": self.fernet_key,
                "load_examples": False,
                "simple_auth_manager_all_admins": True,
                "unit_test_mode": False,
            },
            "database": {"sql_alchemy_conn": database_url or self.default_database_url},
            "logging": {"base_log_folder": self.path / "logs"},
            "usage_data_collection": {"enabled": False},
        }
        if api_port is not None:
            sections["api"] |= {"host": "127.0.0.1", "port": api_port}
            sections["core"]["execution_api_server_url"] = f"http://127.0.0.1:{api_port}/execution/"
        for section, settings in (options or {}).items():
            sections.setdefault(section, {}).update(settings)
        return {"AIRFLOW_HOME": str(self.path)} | {
            f"AIRFLOW__{section.upper()}__{name.upper()}": str(value)
            for section, settings in sections.items()
            for name, value in settings.items()
        }

    def subprocess_environment(
        self,
        database_url: str | None = None,
        *,
        api_port: int | None = None,
        options: Mapping[str, Mapping[str, object]] | None = None,
    ) -> dict[str, str]:
        """The whole environment of an Airflow process: ours without Airflow's, and `variables`."""
        ours = {name: value for name, value in os.environ.items() if not _is_airflows(name)}
        # `airflow scheduler` and others look for each other's commands on the path.
        ours["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), ours.get("PATH", os.defpath)])
        return ours | self.variables(database_url, api_port=api_port, options=options)


def enter_airflow_home(home: AirflowHome) -> None:
    """Make this process live in ``home``; before anything imports Airflow.

    Raises:
        RuntimeError: Airflow is imported already.
    """
    if "airflow.settings" in sys.modules:
        raise RuntimeError("Airflow was imported before its environment was set; see tests/conftest.py")
    for name in [name for name in os.environ if _is_airflows(name)]:
        del os.environ[name]
    os.environ.update(home.variables())


def run_airflow(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """Run an ``airflow`` command to its end.

    Returns:
        What it printed.

    Raises:
        RuntimeError: It failed; with what it printed.
    """
    result = subprocess.run(
        [sys.executable, "-m", "airflow", *arguments],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=dict(environment),
        timeout=_COMMAND_TIMEOUT_SECONDS,
    )
    if result.returncode:
        raise RuntimeError(f"airflow {' '.join(arguments)} ended {result.returncode}:\n{result.stdout}")
    return result.stdout


@attrs.define(kw_only=True)
class DatabaseTemplates:
    """Migrated databases: one per backend, made when first asked for, handed out as copies."""

    home: AirflowHome
    directory: Path
    _templates: dict[Backend, str] = attrs.field(factory=dict, init=False)
    _copies: int = attrs.field(default=0, init=False)

    @contextlib.contextmanager
    def copy(self, backend: Backend, postgres: PostgresServer | None = None) -> Iterator[str]:
        """A migrated database of one's own, removed at the end; yields its URL."""
        self._copies += 1
        if backend == "sqlite":
            template = self._templates.get(backend) or self._make_sqlite()
            path = self.directory / f"copy-{self._copies}.db"
            shutil.copyfile(template, path)
            try:
                yield f"sqlite:///{path}"
            finally:
                for leftover in self.directory.glob(f"{path.name}*"):
                    leftover.unlink()
            return
        if postgres is None:
            raise ValueError("a PostgreSQL database needs the server; ask for the fixture 'postgres'")
        template = self._templates.get(backend) or self._make_postgresql(postgres)
        name = f"airflow_copy_{self._copies}"
        url = postgres.create_database(name, template)
        try:
            yield url
        finally:
            postgres.drop_database(name)

    def _make_sqlite(self) -> str:
        path = self.directory / "template.db"
        self._migrate(f"sqlite:///{path}")
        return self._templates.setdefault("sqlite", str(path))

    def _make_postgresql(self, postgres: PostgresServer) -> str:
        name = "airflow_template"
        self._migrate(postgres.create_database(name))
        return self._templates.setdefault("postgresql", name)

    def _migrate(self, url: str) -> None:
        run_airflow(["db", "migrate"], self.home.subprocess_environment(url))


@contextlib.contextmanager
def use_database(url: str) -> Iterator[None]:
    """Point this process's Airflow at another metadata database, and back at the end."""
    before = os.environ[_DATABASE_VARIABLE]
    _point_at(url)
    try:
        yield
    finally:
        _point_at(before)


def _point_at(url: str) -> None:
    os.environ[_DATABASE_VARIABLE] = url
    from airflow import settings

    settings.configure_vars()
    settings.reconfigure_orm()


def _is_airflows(name: str) -> bool:
    return name.startswith(("AIRFLOW_", "_AIRFLOW_"))
