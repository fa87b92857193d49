"""Every form of a callable is named, and what the triggerer can import is told from what it cannot."""

from __future__ import annotations

import doctest
import functools
import importlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from callback_priority import naming
from callback_priority.core.kinds import (
    DagFailureCallback,
    DagSuccessCallback,
    TaskExecuteCallback,
    TaskFailureCallback,
    TaskRetryCallback,
    TaskSkippedCallback,
    TaskSuccessCallback,
)
from callback_priority.persistence.references import Document

SHARED = """
import functools

from airflow.sdk import BaseNotifier


def tell(context): ...
async def later(context, to="all"): ...


class Channel:
    def send(self, context): ...
    async def send_later(self, context): ...

    @classmethod
    def broadcast(cls, context): ...

    @staticmethod
    async def shout(context): ...


class Caller:
    def __call__(self, context): ...


class AsyncCaller:
    async def __call__(self, context): ...


class Notifier(BaseNotifier):
    def notify(self, context): ...
    async def async_notify(self, context): ...


class AsyncNotifier(BaseNotifier):
    def __init__(self, text="", context=None):
        super().__init__(context=context)

    async def async_notify(self, context): ...


def wrapped(function):
    @functools.wraps(function)
    def inner(*args, **kwargs):
        return function(*args, **kwargs)
    return inner


@wrapped
def decorated(context): ...


renamed = tell
shadowed = tell
def shadowed_later(context): ...
stale = shadowed_later
def shadowed_later(context): ...
"""

DAGS = """
import functools
from datetime import datetime

from airflow.sdk import DAG, BaseNotifier, BaseOperator, TaskGroup
from airflow.sdk.definitions.callback import AsyncCallback, SyncCallback
import shared_outside as out
import shared_inside as inside

def here(context): ...
async def later_here(context): ...
def make():
    def nested(context): ...
    return nested
class Holder:
    def method(self, context): ...

class Operator(BaseOperator):
    def execute(self, context): ...

with DAG("forms", schedule=None, on_failure_callback=[here, out.tell], on_success_callback=(inside.tell,)) as dag:
    for task_id, value in {
        "function": out.tell, "decorated": out.decorated, "renamed": out.renamed, "stale": out.stale,
        "partial": functools.partial(functools.partial(out.tell, 1), 2), "method": out.Channel().send,
        "classmethod": out.Channel.broadcast, "static": out.Channel.shout, "object": out.Caller(),
        "builtin": print, "class": out.Notifier,
        "notifier": out.Notifier(), "async_notifier": out.AsyncNotifier(),
        "async": out.later, "async_partial": functools.partial(out.later, to="x"),
        "async_method": out.Channel().send_later, "async_object": out.AsyncCaller(),
        "lambda": lambda context: None, "nested": make(), "here": here, "later_here": later_here,
        "method_here": Holder().method, "inside": inside.tell, "inside_async": inside.later,
        "callback": AsyncCallback(out.later, {"to": "x"}),
        "callback_here": AsyncCallback(later_here), "callback_inside": AsyncCallback(inside.later),
        "callback_text": AsyncCallback("shared_outside.later"), "callback_elsewhere": AsyncCallback("no.such.place"),
        "callback_notifier": AsyncCallback(out.AsyncNotifier, {"text": "t"}),
        "callback_not_json": AsyncCallback(out.later, {"to": {1, 2}}),
        "callback_tuple": AsyncCallback(out.later, {"to": (1, 2)}),
        "callback_large": AsyncCallback(out.later, {"to": "x" * 20000}),
        "sync": SyncCallback(out.tell, {"b": 1, "a": [True, None]}, executor="big"),
        "sync_here": SyncCallback(here), "text": "not a callable",
    }.items():
        Operator(task_id=task_id, on_failure_callback=[value])

with DAG("kinds", schedule=None) as kinds:
    all_kinds = {f"on_{each}_callback": functools.partial(getattr(out, "tell")) for each in
                 ("execute", "failure", "retry", "skipped", "success")}
    Operator(task_id="each", **all_kinds)
    with TaskGroup("group", default_args={"on_retry_callback": here}):
        Operator(task_id="in_group")
    Operator.partial(task_id="mapped", on_failure_callback=(here, out.tell), email="a@b").expand(pool=["a", "b"])
    Operator(task_id="plain")
    Operator(task_id="mails", email=["a@b"], email_on_retry=False)
    Operator(task_id="mails_nothing", email="a@b", email_on_failure=False, email_on_retry=False)
    Operator(task_id="mails_nobody", email_on_failure=True)

with DAG("nothing", schedule=None):
    Operator(task_id="plain")
"""

PROGRAM = """
import sys
from pathlib import Path
from airflow.dag_processing.dagbag import BundleDagBag
from callback_priority.adapter.extraction import document_of

bundle = Path(sys.argv[1])
bag = BundleDagBag(dag_folder=bundle / "forms.py", bundle_path=bundle, bundle_name="x", load_op_links=False)
assert not bag.import_errors, bag.import_errors
for dag_id in sorted(bag.dags):
    print(document_of(bag.dags[dag_id], bundle).to_json())
"""


def write_bundle(path: Path) -> Path:
    path.mkdir()
    (path / "shared_inside.py").write_text(SHARED)
    (path / "forms.py").write_text(DAGS)
    return path


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    path = tmp_path_factory.mktemp("outside")
    (path / "shared_outside.py").write_text(SHARED)
    return path


@pytest.fixture(scope="module")
def documents(tmp_path_factory, outside):
    from airflow.dag_processing.dagbag import BundleDagBag

    from callback_priority.adapter.extraction import document_of

    bundle = write_bundle(tmp_path_factory.mktemp("dags") / "bundle")
    before = list(sys.path), set(sys.modules)
    sys.path.append(str(outside))
    try:
        bag = BundleDagBag(
            dag_folder=bundle / "forms.py", bundle_path=bundle, bundle_name="x", load_op_links=False
        )
        assert not bag.import_errors
        yield {dag_id: document_of(dag, bundle) for dag_id, dag in bag.dags.items()}
    finally:
        sys.path[:] = before[0]
        for name in ("shared_inside", "shared_outside"):
            sys.modules.pop(name, None)


OUT = "shared_outside."

FORMS = {
    # task: (name, async, path)
    "function": (OUT + "tell", False, OUT + "tell"),
    "decorated": (OUT + "decorated", False, OUT + "decorated"),
    "renamed": (OUT + "tell", False, OUT + "tell"),
    "stale": (OUT + "shadowed_later", False, None),
    "partial": (OUT + "tell", False, None),
    "method": (OUT + "Channel.send", False, None),
    "classmethod": (OUT + "Channel.broadcast", False, OUT + "Channel.broadcast"),
    "static": (OUT + "Channel.shout", True, OUT + "Channel.shout"),
    "object": (OUT + "Caller", False, None),
    "builtin": ("builtins.print", False, "builtins.print"),
    "class": (OUT + "Notifier", False, OUT + "Notifier"),
    "notifier": (OUT + "Notifier", False, None),
    "async_notifier": (OUT + "AsyncNotifier", True, None),
    "async": (OUT + "later", True, OUT + "later"),
    "async_partial": (OUT + "later", True, None),
    "async_method": (OUT + "Channel.send_later", True, None),
    "async_object": (OUT + "AsyncCaller", True, None),
    "lambda": ("forms.<lambda>", False, None),
    "nested": ("forms.make.<locals>.nested", False, None),
    "here": ("forms.here", False, None),
    "later_here": ("forms.later_here", True, None),
    "method_here": ("forms.Holder.method", False, None),
    "inside": ("shared_inside.tell", False, None),
    "inside_async": ("shared_inside.later", True, None),
    "text": ("builtins.str", False, None),
}

BY_PATH = {
    # task: (name, async, path, kwargs, executor)
    "callback": (OUT + "later", True, OUT + "later", {"to": "x"}, None),
    "callback_here": ("forms.later_here", True, None, {}, None),
    "callback_inside": ("shared_inside.later", True, None, {}, None),
    "callback_text": (OUT + "later", True, OUT + "later", {}, None),
    "callback_elsewhere": ("no.such.place", True, "no.such.place", {}, None),
    "callback_notifier": (OUT + "AsyncNotifier", True, OUT + "AsyncNotifier", {"text": "t"}, None),
    "callback_not_json": (OUT + "later", True, None, None, None),
    "callback_tuple": (OUT + "later", True, None, None, None),
    "callback_large": (OUT + "later", True, None, None, None),
    "sync": (OUT + "tell", False, OUT + "tell", {"b": 1, "a": [True, None]}, "big"),
    "sync_here": ("forms.here", False, None, {}, None),
}


@pytest.mark.parametrize("task_id", FORMS)
def test_a_callable_is_named_and_its_path_is_noted_only_if_it_is_importable(documents, task_id):
    (reference,) = documents["forms"].of(TaskFailureCallback, task_id)
    assert (reference.name, reference.is_async, reference.path) == FORMS[task_id]
    assert reference.kwargs is None
    assert reference.executor is None


@pytest.mark.parametrize("task_id", BY_PATH)
def test_a_callback_by_path_keeps_its_options(documents, task_id):
    (found,) = documents["forms"].of(TaskFailureCallback, task_id)
    assert (found.name, found.is_async, found.path, found.kwargs, found.executor) == BY_PATH[task_id]


def test_every_form_is_looked_at(documents):
    assert set(documents["forms"].tasks) == set(FORMS) | set(BY_PATH)


def names(references):
    return [each.name for each in references]


def test_a_dag_has_lists_and_tuples(documents):
    document = documents["forms"]
    assert names(document.of(DagFailureCallback)) == ["forms.here", OUT + "tell"]
    assert names(document.of(DagSuccessCallback)) == ["shared_inside.tell"]


@pytest.mark.parametrize(
    "kind",
    [TaskExecuteCallback, TaskFailureCallback, TaskRetryCallback, TaskSkippedCallback, TaskSuccessCallback],
)
def test_every_kind_of_a_task_is_noted(documents, kind):
    assert names(documents["kinds"].of(kind, "each")) == [OUT + "tell"]


def test_groups_mapped_operators_and_mails_are_noted(documents):
    document = documents["kinds"]
    assert names(document.of(TaskRetryCallback, "group.in_group")) == ["forms.here"]
    assert names(document.of(TaskFailureCallback, "mapped")) == ["forms.here", OUT + "tell"]
    assert document.emails("mapped") == {"failure", "retry"}
    assert document.emails("mails") == {"failure"}
    assert set(document.tasks) == {"each", "group.in_group", "mapped", "mails"}


def test_a_dag_without_any_has_an_empty_document(documents):
    assert documents["nothing"] == Document()


def test_the_text_is_the_same_in_any_process_seed_and_directory(documents, tmp_path, outside):
    """No id, address, hash order or directory is in it."""
    texts = []
    for seed in ("1", "2"):
        bundle = write_bundle(tmp_path / f"version-{seed}")
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(bundle)],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(outside)},
        )
        texts.append([line for line in result.stdout.splitlines() if line.startswith('{"dag"')])
    assert texts[0] == texts[1] == [documents[dag_id].to_json() for dag_id in sorted(documents)]
    assert "0x" not in "".join(texts[0])
    assert json.loads(texts[0][0])["format"] == 1


class Sneaky:
    """Raises when it is looked into."""

    def __getattr__(self, name):
        raise RuntimeError("look elsewhere")

    def __call__(self, context): ...


def test_what_cannot_be_looked_into_raises_for_the_caller_to_keep():
    """Whoever stores documents leaves that Dag without one."""
    from callback_priority.adapter.extraction import reference_to

    with pytest.raises(RuntimeError, match="look elsewhere"):
        reference_to(Sneaky(), Path("/nowhere"))


def test_a_linked_bundle_directory_is_the_same_directory(tmp_path):
    from callback_priority.adapter.extraction import reference_to

    real = tmp_path / "real"
    real.mkdir()
    (real / "shared_linked.py").write_text("async def later(context): ...\n")
    link = tmp_path / "link"
    link.symlink_to(real)
    sys.path.insert(0, str(link))
    try:
        later = importlib.import_module("shared_linked").later
        assert reference_to(later, real).path is None
        assert reference_to(later, link).path is None
        assert reference_to(later, tmp_path / "other").path == "shared_linked.later"
    finally:
        sys.path.remove(str(link))
        sys.modules.pop("shared_linked", None)


def test_examples_in_docstrings_hold():
    assert doctest.testmod(naming).failed == 0


def test_a_partial_of_a_partial_has_the_innermost_name():
    assert naming.name_of(functools.partial(functools.partial(textwrap.dedent))) == "textwrap.dedent"
