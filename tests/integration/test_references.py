"""Dag processors note the callables of Dags in our table, and Airflow's serialized Dags stay as they are."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import attrs
import pytest
import sqlalchemy as sa

from callback_priority.core.kinds import DagFailureCallback, TaskFailureCallback
from callback_priority.persistence import references
from callback_priority.persistence.references import Document
from tests.support.airflow_env import AirflowHome, run_airflow

ON_SQLITE = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)

OPTIONS = {
    ("callback_priority", "mode"): "active",
    ("callback_priority", "use_worker_callbacks"): "all",
    # Otherwise a Dag that was written half a minute ago is not looked at, whether it changed or not.
    ("core", "min_serialized_dag_update_interval"): "0",
}

FILE = """
from airflow.sdk import DAG, BaseOperator

def tell(context): ...

with DAG("with_callbacks", schedule=None, on_failure_callback=[tell, lambda context: None]):
    BaseOperator(task_id="load", on_failure_callback=tell, email="a@b")

with DAG("without_callbacks", schedule=None):
    BaseOperator(task_id="load")
"""

BREAKS = """
class Breaks:
    def __getattr__(self, name):
        raise RuntimeError("do not look at me")
    def __call__(self, context): ...

with DAG("breaks", schedule=None, on_failure_callback=Breaks()):
    BaseOperator(task_id="load")
"""


@attrs.define
class DagProcessor:
    """A real manager of Dag processors over one bundle, that parses each file once, in a child process."""

    bundle: Path
    monkeypatch: pytest.MonkeyPatch

    def parse(self, *, library: bool) -> None:
        from airflow.dag_processing.manager import DagFileProcessorManager

        from callback_priority.adapter.references import install_parse, uninstall_parse

        uninstall_parse()  # importing Airflow's modules may have installed it
        if library:
            install_parse()
        try:
            DagFileProcessorManager(max_runs=1, processor_timeout=60).run()
        finally:
            uninstall_parse()

    def write(self, text: str) -> None:
        (self.bundle / "file.py").write_text(text)


@pytest.fixture
def bundle(tmp_path) -> Path:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "file.py").write_text(FILE)
    return path


@pytest.fixture
def processor(airflow_database, bundle, monkeypatch) -> DagProcessor:
    for (section, name), value in OPTIONS.items():
        monkeypatch.setenv(f"AIRFLOW__{section.upper()}__{name.upper()}", value)
    unversioned(bundle, monkeypatch)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return DagProcessor(bundle, monkeypatch)


def unversioned(bundle: Path, monkeypatch) -> None:
    use_bundle(monkeypatch, "airflow.dag_processing.bundles.local.LocalDagBundle", path=str(bundle))


def versioned(bundle: Path, monkeypatch, version: str) -> None:
    bundle.with_suffix(".version").write_text(version)
    use_bundle(monkeypatch, "tests.support.bundles.DirectoryBundle", directory=str(bundle))


def use_bundle(monkeypatch, classpath: str, **kwargs: str) -> None:
    listed = [{"name": "here", "classpath": classpath, "kwargs": {"refresh_interval": 0} | kwargs}]
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST", json.dumps(listed))


def run_sql(*statements: str) -> list[tuple[object, ...]]:
    """The rows of the last one."""
    from airflow.utils.session import create_session

    rows: list[tuple[object, ...]] = []
    with create_session(scoped=False) as session:
        for statement in statements:
            result = session.execute(sa.text(statement))
            rows = [tuple(row) for row in result] if result.returns_rows else []
    return rows


def serialized() -> list[tuple[object, ...]]:
    """Everything that Airflow keeps of the Dags and that could tell two processors apart."""
    return run_sql(
        "SELECT dag_id, dag_hash, CAST(data AS TEXT) FROM serialized_dag ORDER BY dag_id, dag_hash"
    )


def versions() -> list[tuple[object, ...]]:
    return run_sql("SELECT dag_id, version_number FROM dag_version ORDER BY dag_id, version_number")


def forget_dags() -> None:
    run_sql(
        "DELETE FROM serialized_dag", "DELETE FROM dag_code", "DELETE FROM dag_version", "DELETE FROM dag"
    )


def written() -> list[tuple[object, ...]]:
    return run_sql(
        "SELECT dag_id, bundle_version, bundle_name FROM callback_priority_reference ORDER BY dag_id, bundle_version"
    )


def import_errors() -> list[tuple[object, ...]]:
    return run_sql("SELECT filename, stacktrace FROM import_error")


def read(dag_id: str, version: str | None = None) -> Document | None:
    from airflow.utils.session import create_session

    with create_session(scoped=False) as session:
        return references.read(session.connection(), dag_id, version)


BOTH = [("with_callbacks", 1), ("without_callbacks", 1)]


def test_serialized_dags_are_byte_for_byte_what_they_are_without_the_library(processor):
    processor.parse(library=False)
    without = serialized()
    assert [row[0] for row in without] == ["with_callbacks", "without_callbacks"]
    assert written() == []
    forget_dags()
    processor.parse(library=True)
    assert serialized() == without
    assert written() == [("with_callbacks", "", "here"), ("without_callbacks", "", "here")]
    assert not any("callback_priority" in str(row[2]) for row in without)


def test_processors_with_and_without_the_library_make_no_new_versions_in_turn(processor):
    processor.parse(library=False)
    first = serialized()
    for library in (True, False, True):
        processor.parse(library=library)
        assert serialized() == first
    assert versions() == BOTH


@ON_SQLITE
def test_a_document_that_reached_airflow_would_have_made_a_version(processor, monkeypatch):
    """The negative control of the two above: the parent does not take the documents out."""
    from callback_priority.adapter import references as adapter

    # Whether a version is new depends on there being a run of the old one; without, Airflow rewrites the row.
    processor.parse(library=False)
    first = serialized()
    monkeypatch.setattr(adapter, "_take_out", lambda dags: {})
    processor.parse(library=True)
    assert serialized() != first


@ON_SQLITE
def test_the_child_lays_nothing_down_that_its_parent_does_not_take_out(processor, monkeypatch):
    from airflow.dag_processing import manager

    from callback_priority.adapter import references as adapter

    processor.parse(library=False)
    first = serialized()
    adapter.install_parse()
    original = manager.update_dag_parsing_results_in_db.callback_priority_original
    monkeypatch.setattr(manager, "update_dag_parsing_results_in_db", original)
    try:
        manager.DagFileProcessorManager(max_runs=1, processor_timeout=60).run()
    finally:
        adapter.uninstall_parse()
    assert serialized() == first
    assert written() == []


def test_documents_say_what_the_dags_have(processor):
    processor.parse(library=True)
    document = read("with_callbacks")
    assert [each.name for each in document.of(DagFailureCallback)] == ["file.tell", "file.<lambda>"]
    assert [each.name for each in document.of(TaskFailureCallback, "load")] == ["file.tell"]
    assert document.emails("load") == {"failure", "retry"}
    assert read("without_callbacks") == Document()
    assert read("unknown") is None


def test_an_edited_file_replaces_the_document(processor):
    processor.parse(library=True)
    processor.write(FILE.replace("[tell, lambda context: None]", "None"))
    processor.parse(library=True)
    assert read("with_callbacks").of(DagFailureCallback) == ()
    assert len(written()) == 2


@ON_SQLITE
def test_what_did_not_change_is_not_written(processor):
    processor.parse(library=True)
    before = run_sql("SELECT dag_id, written_at FROM callback_priority_reference ORDER BY dag_id")
    processor.parse(library=True)
    assert run_sql("SELECT dag_id, written_at FROM callback_priority_reference ORDER BY dag_id") == before


def test_each_version_of_a_bundle_has_its_documents(processor, bundle, monkeypatch):
    versioned(bundle, monkeypatch, "v1")
    processor.parse(library=True)
    processor.write(FILE.replace("[tell, lambda context: None]", "tell"))
    versioned(bundle, monkeypatch, "v2")
    processor.parse(library=True)
    assert [row[:2] for row in written()] == [
        (dag_id, version) for dag_id in ("with_callbacks", "without_callbacks") for version in ("v1", "v2")
    ]
    assert len(read("with_callbacks", "v1").of(DagFailureCallback)) == 2
    assert len(read("with_callbacks", "v2").of(DagFailureCallback)) == 1
    assert len(read("with_callbacks", None).of(DagFailureCallback)) == 1
    assert len(read("with_callbacks", "v0").of(DagFailureCallback)) == 1


def test_a_callable_that_cannot_be_looked_into_costs_its_dag_the_document_only(processor):
    processor.write(FILE + BREAKS.replace("Breaks()", "None"))
    processor.parse(library=True)
    assert len(written()) == 3
    processor.write(FILE + BREAKS)
    processor.parse(library=True)
    assert import_errors() == []
    assert [row[0] for row in serialized() if row[0] == "breaks"]
    assert read("breaks") is None
    assert len(written()) == 2


def test_without_our_table_dags_are_parsed_as_they_are(processor, caplog):
    run_sql("DROP TABLE callback_priority_reference")
    with caplog.at_level(logging.ERROR):
        processor.parse(library=True)
    assert [row[0] for row in serialized()] == ["with_callbacks", "without_callbacks"]
    assert import_errors() == []
    assert "could not be written" in caplog.text


@ON_SQLITE
@pytest.mark.parametrize(
    ("option", "value"), [("mode", "off"), ("use_worker_callbacks", "none"), ("use_worker_callbacks", "")]
)
def test_nothing_is_touched_unless_callbacks_are_to_leave(processor, monkeypatch, option, value):
    from airflow.dag_processing import collection, dagbag, manager
    from airflow.dag_processing import processor as processing

    from callback_priority.adapter.references import install_parse, uninstall_parse

    uninstall_parse()
    before = (
        collection.update_dag_parsing_results_in_db,
        manager.update_dag_parsing_results_in_db,
        processing._serialize_dags,
        dagbag.sync_bag_to_db,
    )
    monkeypatch.setenv(f"AIRFLOW__CALLBACK_PRIORITY__{option.upper()}", value)
    install_parse()
    after = (
        collection.update_dag_parsing_results_in_db,
        manager.update_dag_parsing_results_in_db,
        processing._serialize_dags,
        dagbag.sync_bag_to_db,
    )
    assert after == before


@ON_SQLITE
def test_an_airflow_that_is_not_known_is_left_alone(processor, monkeypatch, caplog):
    from callback_priority import compat

    changed = tuple(
        attrs.evolve(each, known=frozenset({"0"})) if each.name == "_serialize_dags" else each
        for each in compat.PARSE_TARGETS
    )
    monkeypatch.setattr(compat, "PARSE_TARGETS", changed)
    with caplog.at_level(logging.ERROR):
        processor.parse(library=True)
    assert "_serialize_dags is not the code that this release was made for" in caplog.text
    assert len(serialized()) == 2
    assert written() == []


@ON_SQLITE
def test_installing_twice_wraps_once(processor):
    from airflow.dag_processing import manager

    from callback_priority.adapter.references import install_parse, uninstall_parse

    uninstall_parse()
    before = manager.update_dag_parsing_results_in_db
    install_parse()
    once = manager.update_dag_parsing_results_in_db
    install_parse()
    assert manager.update_dag_parsing_results_in_db is once is not before
    uninstall_parse()
    assert manager.update_dag_parsing_results_in_db is before


@pytest.mark.parametrize("command", [["dags", "reserialize"], ["dag-processor", "--num-runs", "1"]])
def test_commands_note_callables_too(migrated_database, airflow_home: AirflowHome, bundle, command):
    """A process of its own, which finds the library by its entry points."""
    listed = [
        {
            "name": "here",
            "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
            "kwargs": {"path": str(bundle)},
        }
    ]
    engine = sa.create_engine(migrated_database)

    def after(moved: str) -> list[list[tuple[object, ...]]]:
        options = {
            "callback_priority": {"mode": "active", "use_worker_callbacks": moved},
            "core": {"min_serialized_dag_update_interval": 0},
            "dag_processor": {"dag_bundle_config_list": json.dumps(listed)},
        }
        run_airflow(command, airflow_home.subprocess_environment(migrated_database, options=options))
        with engine.connect() as connection:
            return [
                [tuple(row) for row in connection.execute(sa.text(statement))]
                for statement in (
                    "SELECT dag_id, dag_hash, CAST(data AS TEXT) FROM serialized_dag ORDER BY dag_id",
                    "SELECT dag_id, version_number FROM dag_version ORDER BY dag_id",
                    "SELECT dag_id, document FROM callback_priority_reference ORDER BY dag_id",
                )
            ]

    without = after("none")
    assert [row[0] for row in without[0]] == ["with_callbacks", "without_callbacks"]
    assert without[2] == []
    *stock, noted = after("all")
    assert stock == without[:2]
    assert [row[0] for row in noted] == ["with_callbacks", "without_callbacks"]
    assert "file.tell" in str(noted[0][1])
    engine.dispose()
