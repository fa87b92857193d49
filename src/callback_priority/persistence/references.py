"""Where a Dag's callables are found, as the Dag processor noted it when it parsed the Dag file.

A *document* says for one Dag which callables it has, and for which of its tasks e-mails are set. It holds names and
import paths, never a callable, and its text is the same whichever process parsed the file. It is kept in a table
of this library, one row for each version of the Dag's bundle, and not in the serialized Dag: its hash is what
makes a Dag version, and Dag processors with and without this library would make versions in turn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import cached_property
from itertools import groupby
from typing import Any, Final

import attrs
from sqlalchemy import Connection, column, delete, select, table, tuple_

from callback_priority.core.kinds import CallbackKind, DagCallback, EmailCallback
from callback_priority.persistence.statements import KEYS_PER_STATEMENT, chunks, upsert, write_rows
from callback_priority.persistence.tables import reference_table

__all__ = [
    "FORMAT",
    "KEPT_VERSIONS",
    "Document",
    "Reference",
    "References",
    "TaskReferences",
    "forget",
    "forget_unknown_dags",
    "read",
    "trim",
    "write",
]

FORMAT: Final = 1
"""Of the documents; one that is newer is not read."""

KEPT_VERSIONS: Final = 50
"""How many bundle versions of a Dag keep a document; runs of older ones are served by the newest."""

UNVERSIONED: Final = ""
"""The version of a bundle that has none."""

_dag_table = table("dag", column("dag_id"))


@attrs.frozen(kw_only=True)
class Reference:
    """Where a callable is found.

    Args:
        name: What people call it; also how it is found again in an edited Dag file.
        is_async: Whether calling it gives something to await.
        path: An import path that reaches it outside of the Dag's bundle too; ``None`` if there is none.
        kwargs: What an ``AsyncCallback`` or ``SyncCallback`` passes to it; ``None`` for all else, and if JSON
            cannot hold it.
        executor: The executor that a ``SyncCallback`` names.
    """

    name: str
    is_async: bool = False
    path: str | None = None
    kwargs: Mapping[str, Any] | None = None
    executor: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a document; what is not there is left out."""
        found: dict[str, Any] = {"name": self.name, "async": self.is_async}
        if self.path is not None:
            found["path"] = self.path
        if self.kwargs is not None:
            found["kwargs"] = dict(self.kwargs)
        if self.executor is not None:
            found["executor"] = self.executor
        return found

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Reference:
        """Of what `to_dict` gives."""
        return cls(
            name=found["name"],
            is_async=found["async"],
            path=found.get("path"),
            kwargs=found.get("kwargs"),
            executor=found.get("executor"),
        )


@attrs.frozen(kw_only=True)
class TaskReferences:
    """What a task has.

    Args:
        callables: By event: ``execute``, ``failure``, ``retry``, ``skipped``, ``success``.
        emails: The events that are mailed: ``failure``, ``retry``.
    """

    callables: Mapping[str, tuple[Reference, ...]] = attrs.field(factory=dict)
    emails: frozenset[str] = frozenset()


@attrs.frozen(kw_only=True, slots=False)
class Document:
    """Every callable of a Dag; what has none is absent.

    Args:
        dag: The Dag's own, by event: ``failure``, ``success``.
        tasks: By task.
    """

    dag: Mapping[str, tuple[Reference, ...]] = attrs.field(factory=dict)
    tasks: Mapping[str, TaskReferences] = attrs.field(factory=dict)

    def of(self, kind: type[CallbackKind], task_id: str = "") -> tuple[Reference, ...]:
        """The callables for a kind of callback, in the order in which the Dag lists them; none for e-mails.

        Args:
            kind: What happened.
            task_id: The task, for a task's callbacks.
        """
        if not kind.attribute or issubclass(kind, EmailCallback):
            return ()
        event = kind.attribute.removeprefix("on_").removesuffix("_callback")
        if issubclass(kind, DagCallback):
            return self.dag.get(event, ())
        task = self.tasks.get(task_id)
        return () if task is None else task.callables.get(event, ())

    def emails(self, task_id: str) -> frozenset[str]:
        """What a task mails: ``failure``, ``retry``, both or nothing."""
        task = self.tasks.get(task_id)
        return frozenset() if task is None else task.emails

    def to_json(self) -> str:
        """Text that is the same for equal documents."""
        tasks: dict[str, dict[str, Any]] = {}
        for task_id, task in self.tasks.items():
            tasks[task_id] = _events(task.callables)
            if task.emails:
                tasks[task_id]["email"] = sorted(task.emails)
        found = {"format": FORMAT, "dag": _events(self.dag), "tasks": {k: v for k, v in tasks.items() if v}}
        return json.dumps(found, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Document:
        """Of what `to_json` gives.

        Raises:
            ValueError: A newer release of this library wrote it.
        """
        found = json.loads(text)
        if found["format"] != FORMAT:
            raise ValueError(f"the format of these references is {found['format']}, and not {FORMAT}")
        return cls(
            dag=_references(found["dag"]),
            tasks={
                task_id: TaskReferences(
                    callables=_references({k: v for k, v in task.items() if k != "email"}),
                    emails=frozenset(task.get("email", ())),
                )
                for task_id, task in found["tasks"].items()
            },
        )

    @cached_property
    def digest(self) -> str:
        """Equal for equal documents, and different for others."""
        return digest(self.to_json())


def digest(text: str) -> str:
    """The digest of a document's text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _events(callables: Mapping[str, tuple[Reference, ...]]) -> dict[str, Any]:
    return {event: [each.to_dict() for each in found] for event, found in callables.items() if found}


def _references(found: Mapping[str, Any]) -> dict[str, tuple[Reference, ...]]:
    return {event: tuple(Reference.from_dict(each) for each in listed) for event, listed in found.items()}


@attrs.frozen(kw_only=True)
class References:
    """A Dag's document as it is written.

    Args:
        dag_id: The Dag.
        bundle_name: Its bundle.
        bundle_version: The bundle's version when it was parsed; ``None`` for a bundle without.
        document: The text of a `Document`.
    """

    dag_id: str
    bundle_name: str
    bundle_version: str | None
    document: str


def write(conn: Connection, parsed: Iterable[References], now: datetime, *, keep: int = KEPT_VERSIONS) -> int:
    """Write what is new about these Dags.

    A Dag whose newest row says the same costs one read and no write. The last one written is the newest, also
    where the bundle went back to an older version.

    Args:
        conn: Connection to Airflow's metadata database.
        parsed: Each Dag once.
        now: The time.
        keep: How many versions of a Dag are kept.

    Returns:
        How many rows were written.
    """
    wanted = {each.dag_id: each for each in sorted(parsed, key=lambda each: each.dag_id)}
    rows = []
    grown = []
    for dag_ids in chunks(wanted, KEYS_PER_STATEMENT):
        columns = reference_table.c
        statement = select(columns.dag_id, columns.bundle_version, columns.bundle_name, columns.digest).where(
            columns.dag_id.in_(dag_ids)
        )
        statement = statement.order_by(columns.dag_id, columns.written_at.desc(), columns.bundle_version)
        there = {
            dag_id: [tuple(row)[1:] for row in found]
            for dag_id, found in groupby(conn.execute(statement), key=lambda row: row.dag_id)
        }
        for dag_id in dag_ids:
            each = wanted[dag_id]
            version = each.bundle_version or UNVERSIONED
            known = there.get(dag_id, [])
            new = (version, each.bundle_name, digest(each.document))
            if known and known[0] == new:
                continue
            rows.append(
                {
                    "dag_id": dag_id,
                    "bundle_version": version,
                    "bundle_name": each.bundle_name,
                    "digest": new[2],
                    "document": each.document,
                    "written_at": now,
                }
            )
            if len(known) >= keep and version not in {row[0] for row in known}:
                grown.append(dag_id)
    write_rows(conn, reference_table, upsert(reference_table, conn.dialect.name), rows)
    for dag_id in grown:
        trim(conn, dag_id, keep=keep)
    return len(rows)


def forget(conn: Connection, dag_ids: Iterable[str]) -> None:
    """Drop what is known of Dags, at every version, so that nothing out of date is believed."""
    for some in chunks(dag_ids, KEYS_PER_STATEMENT):
        conn.execute(delete(reference_table).where(reference_table.c.dag_id.in_(some)))


def read(conn: Connection, dag_id: str, bundle_version: str | None) -> Document | None:
    """What is known of a Dag, in one statement.

    Args:
        conn: Connection to Airflow's metadata database.
        dag_id: The Dag.
        bundle_version: The version that a Dag run is bound to; ``None`` if it runs what is there now.

    Returns:
        The document of exactly that version; else the one that was written last; ``None`` if there is none or a
        newer release of this library wrote it.
    """
    columns = reference_table.c
    newest = select(columns.document).where(columns.dag_id == dag_id).order_by(*_NEWEST).limit(1)
    if bundle_version:
        exact = columns.bundle_version == bundle_version
        newest = newest.order_by(None).order_by(exact.desc(), *_NEWEST)
    text = conn.execute(newest).scalar_one_or_none()
    if text is None:
        return None
    try:
        return Document.from_json(text)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


_NEWEST: Final = (reference_table.c.written_at.desc(), reference_table.c.bundle_version)


def trim(conn: Connection, dag_id: str, *, keep: int = KEPT_VERSIONS) -> int:
    """Drop all but the newest versions of a Dag.

    Returns:
        How many were dropped.
    """
    columns = reference_table.c
    old = conn.execute(
        select(columns.bundle_version).where(columns.dag_id == dag_id).order_by(*_NEWEST).offset(keep)
    ).scalars()
    dropped = 0
    for versions in chunks(old.all(), KEYS_PER_STATEMENT):
        dropped += conn.execute(
            delete(reference_table).where(columns.dag_id == dag_id, columns.bundle_version.in_(versions))
        ).rowcount
    return dropped


def forget_unknown_dags(conn: Connection, *, limit: int = 1_000) -> int:
    """Drop the documents of Dags that Airflow no longer knows.

    Returns:
        How many were dropped.
    """
    columns = reference_table.c
    known = select(_dag_table.c.dag_id).where(_dag_table.c.dag_id == columns.dag_id).exists()
    gone = conn.execute(select(columns.dag_id, columns.bundle_version).where(~known).limit(limit)).all()
    for keys in chunks([tuple(row) for row in gone], KEYS_PER_STATEMENT // 2):
        conn.execute(delete(reference_table).where(tuple_(columns.dag_id, columns.bundle_version).in_(keys)))
    return len(gone)
