"""What the Dag processor notes of each Dag's callables, and how that reaches our table.

A Dag file is parsed in a child process, which has the callables but no database; its parent has the database but
no callables. So the child lays the document beside each Dag's serialized data, and the parent takes it out again
before Airflow looks at that data: what Airflow hashes and stores stays as it is, byte for byte. The child lays
nothing there unless the parent that it was forked from takes it out.

Commands that parse in the same process that writes (``airflow dags reserialize``, ``dag.test()``) have both, and
the document is written after Airflow's own rows.

Whatever goes wrong in here leaves Airflow's parsing as it is: the Dag has no document, and its callbacks are run
by the Dag processor.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import wrapt
from airflow.configuration import conf

from callback_priority import compat
from callback_priority.adapter.config import raw_section
from callback_priority.adapter.extraction import document_of
from callback_priority.adapter.savepoints import savepoint
from callback_priority.persistence import references
from callback_priority.policy.settings import Mode

if TYPE_CHECKING:
    from airflow.dag_processing.dagbag import DagBag
    from airflow.serialization.serialized_objects import LazyDeserializedDAG
    from sqlalchemy.orm import Session

__all__ = ["KEY", "install_parse", "uninstall_parse"]

log = logging.getLogger(__name__)

KEY: Final = "callback_priority"
"""Where a document travels, beside Airflow's ``dag`` and ``__version``."""

_MANAGER: Final = "airflow.dag_processing.manager"
_UPDATE: Final = "update_dag_parsing_results_in_db"
_ORIGINAL: Final = "callback_priority_original"

_told: set[str] = set()
_awaited: set[str] = set()


def install_parse() -> None:
    """Have parsed Dags' callables noted, in this process and in its children; idempotent, raises nothing.

    Modules of Airflow's that are not imported yet are seen to when they are; one that is being imported, at the
    next call. Nothing is touched while the mode is
    ``off``, while no callbacks are to leave the Dag processor, and in an Airflow that is not known.
    """
    for name in _WRAPPERS:
        module = sys.modules.get(name)
        if module is not None:
            if not getattr(module.__spec__, "_initializing", False):
                _patch(module)
        elif name not in _awaited:
            _awaited.add(name)
            wrapt.register_post_import_hook(_patch, name)


def uninstall_parse() -> None:
    """Put Airflow's functions back."""
    for name, wrappers in _WRAPPERS.items():
        module = sys.modules.get(name)
        for attribute in wrappers:
            original = getattr(getattr(module, attribute, None), _ORIGINAL, None)
            if original is not None:
                setattr(module, attribute, original)
    _tell_once.cache_clear()


def _patch(module: ModuleType) -> None:
    try:
        if not _is_wanted():
            return
        targets = [each for each in compat.PARSE_TARGETS if each.module == module.__name__]
        if differences := compat.differences(targets):
            _tell_once("; ".join(differences))
            return
        for attribute, wrapper in _WRAPPERS[module.__name__].items():
            original = getattr(module, attribute)
            if not hasattr(original, _ORIGINAL):
                setattr(module, attribute, _wrapped(original, wrapper))
    except Exception:
        log.exception("callbacks stay on the Dag processor: their references cannot be noted")


@functools.cache
def _tell_once(differences: str) -> None:
    """Several modules may have the same to say: that this is another Airflow."""
    log.error("callbacks stay on the Dag processor: %s", differences)


def _is_wanted() -> bool:
    raw = raw_section(conf)
    mode = raw.get("mode", Mode.OFF.value).strip().lower()
    moved = raw.get("use_worker_callbacks", "none").strip().lower()
    return mode != Mode.OFF.value and moved not in {"", "none"}


def _wrapped(original: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    setattr(function, _ORIGINAL, original)
    return function


def _serialize_dags(original: Callable[..., Any], bag: DagBag, *args: Any, **kwargs: Any) -> Any:
    """In the child: lay each Dag's document beside its data."""
    serialized, errors = original(bag, *args, **kwargs)
    with _harmless("The callables of a Dag file could not be noted"):
        if hasattr(getattr(sys.modules.get(_MANAGER), _UPDATE, None), _ORIGINAL):
            documents = _documents(bag, {each.dag_id for each in serialized})
            for each in serialized:
                each.data[KEY] = documents.get(each.dag_id)
    return serialized, errors


def _update_dag_parsing_results_in_db(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """In the parent: take the documents out before Airflow looks, and write them after it has written."""
    called = inspect.signature(original).bind(*args, **kwargs).arguments
    found = _take_out(called["dags"])
    result = original(*args, **kwargs)
    if found:
        _store(called["session"], called["bundle_name"], called["bundle_version"], found)
    return result


def _take_out(dags: Collection[LazyDeserializedDAG]) -> dict[str, str | None]:
    return {dag.dag_id: dag.data.pop(KEY) for dag in dags if KEY in dag.data}


def _sync_bag_to_db(
    original: Callable[..., Any], dagbag: DagBag, bundle_name: str, bundle_version: str | None, **kwargs: Any
) -> None:
    """Where Dags are parsed and written by the same process."""
    # Not at the top: the child that parses has no business with sessions.
    from airflow.utils.session import create_session  # noqa: PLC0415

    given = kwargs.pop("session", None)
    with create_session() if given is None else contextlib.nullcontext(given) as session:
        original(dagbag, bundle_name, bundle_version, session=session, **kwargs)
        with _harmless("The callables of a bundle's Dags could not be noted"):
            _store(session, bundle_name, bundle_version, _documents(dagbag, set(dagbag.dags)))


def _documents(bag: DagBag, dag_ids: set[str]) -> dict[str, str | None]:
    """The text of each Dag's document; ``None`` where it could not be made."""
    bundle_path = Path(bag.bundle_path or bag.dag_folder)
    found: dict[str, str | None] = {}
    for dag_id in dag_ids:
        try:
            found[dag_id] = document_of(bag.dags[dag_id], bundle_path).to_json()
        except Exception:
            log.exception("The callables of Dag %s cannot be noted; the Dag processor calls them", dag_id)
            found[dag_id] = None
    return found


def _store(
    session: Session, bundle_name: str, bundle_version: str | None, found: Mapping[str, str | None]
) -> None:
    """Write what is new, in Airflow's transaction; a Dag that could not be read loses what was known of it."""
    with _harmless("The callables of parsed Dags could not be written"):
        connection = session.connection()
        with savepoint(connection, "callback_priority_references"):
            unread = sorted(dag_id for dag_id, text in found.items() if text is None)
            if unread:
                references.forget(connection, unread)
            parsed = [
                references.References(
                    dag_id=dag_id, bundle_name=bundle_name, bundle_version=bundle_version, document=text
                )
                for dag_id, text in found.items()
                if text is not None
            ]
            references.write(connection, parsed, datetime.now(timezone.utc))


@contextlib.contextmanager
def _harmless(what: str) -> Iterator[None]:
    """Keep an exception from Airflow; log the first of its kind in full, and those that follow in one line."""
    try:
        yield
    except Exception as error:
        kind = f"{what} {type(error)!r}"
        if kind in _told:
            log.warning("%s: %r", what, error)
        else:
            _told.add(kind)
            log.exception("%s; the Dag processor calls them", what)


_WRAPPERS: Final[Mapping[str, Mapping[str, Callable[..., Any]]]] = {
    "airflow.dag_processing.collection": {_UPDATE: _update_dag_parsing_results_in_db},
    _MANAGER: {_UPDATE: _update_dag_parsing_results_in_db},
    "airflow.dag_processing.processor": {"_serialize_dags": _serialize_dags},
    "airflow.dag_processing.dagbag": {"sync_bag_to_db": _sync_bag_to_db},
}
"""What is wrapped, by module. The manager has the function of `collection` under a name of its own."""
