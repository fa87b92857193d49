"""Documents come back as they were written, at the version that is asked for or the newest."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from sqlalchemy import Connection, select, text, update

from callback_priority.core.kinds import (
    KINDS,
    DagFailureCallback,
    DagSuccessCallback,
    FailureEmail,
    TaskFailureCallback,
    TaskRetryCallback,
)
from callback_priority.persistence import references
from callback_priority.persistence.references import Document, Reference, References, TaskReferences
from callback_priority.persistence.tables import reference_table

TELL = Reference(name="alerts.tell", path="alerts.tell")
LATER = Reference(name="alerts.later", is_async=True, path="alerts.later", kwargs={"to": ["a"], "n": 1.5})
QUEUED = Reference(name="jobs.<lambda>", executor="big", kwargs={})

DOCUMENT = Document(
    dag={"failure": (TELL, LATER)},
    tasks={
        "group.load": TaskReferences(callables={"failure": (QUEUED,), "retry": (TELL,)}),
        "mail": TaskReferences(emails=frozenset({"retry", "failure"})),
    },
)


def parsed(dag_id: str, document: Document | None = None, version: str | None = None) -> References:
    return References(
        dag_id=dag_id,
        bundle_name="dags-folder",
        bundle_version=version,
        document=(document or Document(dag={"failure": (Reference(name=dag_id),)})).to_json(),
    )


def named(name: str) -> Document:
    return Document(dag={"failure": (Reference(name=name),)})


def test_a_document_tells_each_kind_its_callables() -> None:
    assert DOCUMENT.of(DagFailureCallback) == (TELL, LATER)
    assert DOCUMENT.of(DagSuccessCallback) == ()
    assert DOCUMENT.of(TaskFailureCallback, "group.load") == (QUEUED,)
    assert DOCUMENT.of(TaskRetryCallback, "group.load") == (TELL,)
    assert DOCUMENT.of(TaskFailureCallback, "mail") == ()
    assert DOCUMENT.of(TaskFailureCallback, "unknown") == ()
    assert DOCUMENT.of(FailureEmail, "mail") == ()
    assert DOCUMENT.emails("mail") == {"failure", "retry"}
    assert DOCUMENT.emails("group.load") == DOCUMENT.emails("unknown") == frozenset()


@pytest.mark.parametrize("kind", KINDS.values())
def test_an_empty_document_has_nothing_of_any_kind(kind) -> None:
    assert Document().of(kind, "task") == ()


def test_text_is_compact_sorted_and_read_back() -> None:
    assert Document.from_json(DOCUMENT.to_json()) == DOCUMENT
    again = Document(dag=dict(DOCUMENT.dag), tasks=dict(reversed(DOCUMENT.tasks.items())))
    assert again.to_json() == DOCUMENT.to_json()
    assert again.digest == DOCUMENT.digest != Document().digest
    assert Document().to_json() == '{"dag":{},"format":1,"tasks":{}}'


def test_what_is_written_is_read_and_written_once(conn: Connection, now: datetime, sent: list[str]) -> None:
    """Ten Dags take one read and one write; the same again, one read."""
    dags = [parsed(f"dag{number}") for number in range(10)]
    assert references.write(conn, dags, now) == 10
    assert len(sent) == 2
    assert references.write(conn, dags, now + timedelta(1)) == 0
    assert len(sent) == 3
    assert references.read(conn, "dag3", None) == named("dag3")
    assert len(sent) == 4
    assert references.read(conn, "dag11", None) is None
    assert conn.execute(select(reference_table.c.written_at).distinct()).scalars().all() == [now]


def test_a_version_has_a_document_of_its_own_and_others_the_newest(conn: Connection, now: datetime) -> None:
    for hours, version in enumerate(["c", "a", "b"]):
        references.write(conn, [parsed("d", named(version), version)], now + timedelta(hours=hours))
    assert references.read(conn, "d", "a") == named("a")
    assert references.read(conn, "d", "c") == named("c")
    assert references.read(conn, "d", "unknown") == named("b")
    assert references.read(conn, "d", None) == named("b")


def test_a_bundle_that_goes_back_makes_its_old_version_the_newest(conn: Connection, now: datetime) -> None:
    for hours, version in enumerate(["a", "b", "a"]):
        references.write(conn, [parsed("d", named(version), version)], now + timedelta(hours=hours))
    assert references.read(conn, "d", None) == named("a")
    assert references.read(conn, "d", "b") == named("b")


def test_a_changed_document_replaces_the_one_of_its_version(conn: Connection, now: datetime) -> None:
    references.write(conn, [parsed("d", named("old"))], now)
    assert references.write(conn, [parsed("d", named("new"))], now + timedelta(1)) == 1
    assert references.read(conn, "d", None) == named("new")
    moved = References(dag_id="d", bundle_name="other", bundle_version=None, document=named("new").to_json())
    assert references.write(conn, [moved], now + timedelta(2)) == 1
    assert conn.execute(select(reference_table.c.bundle_name)).scalars().all() == ["other"]


def test_only_the_newest_versions_are_kept(conn: Connection, now: datetime) -> None:
    for number in range(7):
        references.write(
            conn, [parsed("d", named(str(number)), f"v{number}")], now + timedelta(number), keep=4
        )
        references.write(conn, [parsed("other", named("x"), "v0")], now, keep=4)
    kept = conn.execute(
        select(reference_table.c.bundle_version)
        .where(reference_table.c.dag_id == "d")
        .order_by(reference_table.c.bundle_version)
    ).scalars()
    assert kept.all() == ["v3", "v4", "v5", "v6"]
    assert references.trim(conn, "d", keep=1) == 3
    assert references.trim(conn, "d", keep=1) == 0
    assert references.read(conn, "d", "v3") == named("6")
    assert references.read(conn, "other", None) == named("x")


def test_forgetting_a_dag_forgets_every_version(conn: Connection, now: datetime) -> None:
    for version in ("a", "b"):
        references.write(conn, [parsed("d", version=version), parsed("e", version=version)], now)
    references.forget(conn, ["d"])
    assert references.read(conn, "d", "a") is None
    assert references.read(conn, "e", "a") == named("e")


@pytest.mark.parametrize(
    "written", ['{"format":2,"dag":{}}', "{}", "no JSON", '{"format":1,"dag":{"x":[1]}}']
)
def test_a_document_of_a_newer_release_is_as_good_as_none(
    conn: Connection, now: datetime, written: str
) -> None:
    references.write(conn, [parsed("d")], now)
    conn.execute(update(reference_table).values(document=written))
    assert references.read(conn, "d", None) is None


def test_dags_that_airflow_no_longer_knows_are_dropped(conn: Connection, now: datetime) -> None:
    conn.execute(text("CREATE TABLE dag (dag_id VARCHAR(250) PRIMARY KEY)"))
    conn.execute(text("INSERT INTO dag VALUES ('kept')"))
    for version in ("a", "b"):
        references.write(conn, [parsed(each, version=version) for each in ("kept", "gone")], now)
    assert references.forget_unknown_dags(conn, limit=1) == 1
    assert references.forget_unknown_dags(conn) == 1
    assert references.forget_unknown_dags(conn) == 0
    assert references.read(conn, "kept", "a") == named("kept")
    assert references.read(conn, "gone", None) is None
