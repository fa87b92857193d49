"""Airflow as a command meets it: imported late, kept quiet, with a database that may not answer."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, event, inspect
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from callback_priority.cli.failures import CommandError
from callback_priority.persistence.tables import metadata
from callback_priority.policy.parse import parse_settings
from callback_priority.policy.settings import Settings

__all__ = [
    "connected",
    "database_name",
    "first_line",
    "living_since",
    "missing_tables",
    "parallelism",
    "quiet",
    "reading",
    "reading_from",
    "settings",
    "triggering_since",
]

CONNECT_SECONDS = 10
"""How long to wait for a database server that does not answer."""

MIGRATE = "run `airflow db migrate`"


@contextlib.contextmanager
def quiet(*, verbose: bool) -> Iterator[None]:
    """Keep what Airflow prints and logs away from standard output.

    Airflow remembers the stream that was standard output when its logging was set up, so this has to enclose
    the first import of it.

    Args:
        verbose: Send it to standard error instead of nowhere.
    """
    with contextlib.ExitStack() as stack:
        elsewhere: Any = sys.stderr if verbose else io.StringIO()
        stack.enter_context(contextlib.redirect_stdout(elsewhere))
        if not verbose:
            stack.enter_context(contextlib.redirect_stderr(elsewhere))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def connected() -> Iterator[Connection]:
    """A connection to the metadata database, with Airflow's own engine; nothing is committed.

    Raises:
        CommandError: It cannot be reached.
    """
    try:
        from airflow import settings

        engine = settings.get_engine()
    except Exception as error:
        raise CommandError(
            f"Airflow cannot be loaded: {first_line(error)}",
            "mend Airflow's installation or configuration first (`airflow info` tells more)",
        ) from error
    url = engine.url
    remedy = "check `[database] sql_alchemy_conn` (`airflow db check` tells more)"
    if _missing_file(url):
        raise CommandError(
            f"the metadata database does not exist: {database_name(url)}", f"{remedy}, then {MIGRATE}"
        )
    event.listen(engine, "do_connect", _be_impatient)
    try:
        connection = engine.connect()
    except Exception as error:  # drivers and plugins for authentication raise what they like
        raise CommandError(
            f"the metadata database cannot be reached: {database_name(url)}: {first_line(error)}", remedy
        ) from error
    finally:
        event.remove(engine, "do_connect", _be_impatient)
    with connection:
        yield connection


@contextlib.contextmanager
def reading() -> Iterator[Connection]:
    """A connection to a database that has the library's tables.

    Raises:
        CommandError: It cannot be reached, lacks the tables, or stops to answer.
    """
    with connected() as connection:
        yield from _answering(connection)


@contextlib.contextmanager
def reading_from(address: str) -> Iterator[Connection]:
    """A connection to a database that has the library's tables, without Airflow.

    Args:
        address: SQLAlchemy's URL of it, or the path of an SQLite file.

    Raises:
        CommandError: It cannot be reached, lacks the tables, or stops to answer.
    """
    try:
        url = make_url(address if "://" in address else f"sqlite:///{address}")
        if _missing_file(url):
            raise CommandError(f"there is no such database: {database_name(url)}", "name one that is there")
        engine = create_engine(url)
    except (SQLAlchemyError, ImportError) as error:
        raise CommandError(
            f"--database is no URL that can be used: {first_line(error)}",
            "give one such as postgresql+psycopg2://USER@HOST/NAME, or the path of an SQLite file",
        ) from error
    event.listen(engine, "do_connect", _be_impatient)
    try:
        try:
            connection = engine.connect()
        except SQLAlchemyError as error:
            raise CommandError(
                f"the database cannot be reached: {database_name(url)}: {first_line(error)}",
                "check --database",
            ) from error
        with connection:
            yield from _answering(connection)
    finally:
        engine.dispose()


def _answering(connection: Connection) -> Iterator[Connection]:
    try:
        missing = missing_tables(connection)
        # A look at the tables begins a transaction; whoever reads may want to begin it in a certain way.
        connection.rollback()
        if missing:
            raise CommandError(f"tables are missing: {', '.join(missing)}", MIGRATE)
        yield connection
    except SQLAlchemyError as error:
        raise CommandError(f"the database does not answer: {first_line(error)}", MIGRATE) from error


def settings() -> Settings:
    """The settings.

    Raises:
        ConfigurationError: They are invalid.
    """
    from airflow.configuration import conf

    from callback_priority.adapter.config import raw_section

    return parse_settings(raw_section(conf))


def _missing_file(url: URL) -> bool:
    """Whether it is a SQLite file that is not there: connecting would make an empty one."""
    path = url.database or ""
    if url.get_backend_name() != "sqlite" or not path or path.startswith(":") or "mode=memory" in path:
        return False
    return not Path(path.removeprefix("file:").partition("?")[0]).exists()


def _be_impatient(dialect: Any, _record: Any, _arguments: Any, parameters: dict[str, Any]) -> None:
    if dialect.name in ("postgresql", "mysql", "mariadb"):
        parameters.setdefault("connect_timeout", CONNECT_SECONDS)


def database_name(url: URL) -> str:
    """Which database, without a password: those hide in the query of a URL, too."""
    if url.get_backend_name() == "sqlite":
        return f"sqlite {url.database}"
    port = f":{url.port}" if url.port else ""
    return f"{url.get_backend_name()} {url.database} at {url.host or 'the local socket'}{port}"


def first_line(error: BaseException) -> str:
    """What an error says, without the statement and the links that SQLAlchemy adds."""
    cause = getattr(error, "orig", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[0] if lines else type(cause).__name__


def missing_tables(connection: Connection) -> list[str]:
    """The library's tables that are not there."""
    there = inspect(connection)
    return [name for name in sorted(metadata.tables) if not there.has_table(name)]


def living_since(now: datetime) -> datetime:
    """Since when a scheduler must have had a heartbeat to be alive, as Airflow sees it."""
    from airflow.configuration import conf

    return now - timedelta(seconds=conf.getint("scheduler", "scheduler_health_check_threshold"))


def triggering_since(now: datetime) -> datetime:
    """Since when a triggerer must have had a heartbeat to be alive, as Airflow sees it."""
    from airflow.configuration import conf

    return now - timedelta(seconds=conf.getfloat("triggerer", "triggerer_health_check_threshold"))


def parallelism() -> int:
    """The slots of one scheduler.

    Raises:
        CommandError: Airflow could not start with it either.
    """
    from airflow.configuration import conf

    text = conf.get("core", "parallelism")
    try:
        slots = int(text)
    except ValueError:
        slots = 0
    if slots <= 0:
        raise CommandError(f"[core] parallelism is {text!r}", "set it to a whole number, 1 or more")
    return slots
