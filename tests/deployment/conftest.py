"""What the tests with a whole deployment share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.deployment import Deployment, deployed
from tests.support.redis import RedisServer, running_redis
from tests.support.smtp import MailSink, running_mail_sink


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisServer]:
    """A private Redis server; its absence is a failure, never a skip."""
    with running_redis() as server:
        yield server


@pytest.fixture
def mail_sink() -> Iterator[MailSink]:
    """A mail server that keeps what it is sent."""
    with running_mail_sink() as sink:
        yield sink


@pytest.fixture
def deploy(request, tmp_path, database_templates) -> Iterator[Callable[..., Deployment]]:
    """Make Airflows of real processes, as `tests.support.deployment.Deployment` tells; killed after the test."""
    with contextlib.ExitStack() as stack:

        def make(name: str = "airflow", **arguments: Any) -> Deployment:
            if arguments.get("backend", "postgresql") == "postgresql":
                arguments["postgres"] = request.getfixturevalue("postgres")
            if arguments.get("executor") == "CeleryExecutor":
                arguments["redis"] = request.getfixturevalue("redis")
            return stack.enter_context(deployed(tmp_path / name, databases=database_templates, **arguments))

        yield make
