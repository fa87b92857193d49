"""A callable is found again by its place and name, and called as Airflow calls it."""

from __future__ import annotations

import functools
import logging
import sys
import types
import uuid

import pytest

from callback_priority.protocol import UnitOrder


def one(context): ...
def two(context): ...
def three(context): ...


def order(name, position=0, kind="dag_failure", task_id="load"):
    return UnitOrder(
        callback_id=uuid.uuid4(),
        kind=kind,
        position=position,
        name=name if "." in name else f"{__name__}.{name}",
        reference={},
        request_class="TaskCallbackRequest",
        request={"ti": {"task_id": task_id}},
        time_limit_seconds=1,
        log_path="",
    )


def dag_with(callables, **task):
    from airflow.sdk import DAG, BaseOperator

    dag = DAG("sales", schedule=None, on_failure_callback=callables)
    BaseOperator(task_id="load", dag=dag, **task)
    return dag


def resolve(dag, wanted, **kwargs):
    from callback_priority.worker.callables import resolve

    return resolve(dag, wanted, **kwargs)


@pytest.fixture
def gone():
    from callback_priority.worker.callables import Gone

    return Gone


def test_the_callable_is_the_one_at_its_place():
    assert resolve(dag_with(one), order("one")) is one
    assert resolve(dag_with([one, two]), order("two", 1)) is two
    assert resolve(dag_with((one, two)), order("two", 1)) is two


@pytest.mark.parametrize("kind", ["execute", "failure", "retry", "skipped", "success"])
def test_a_task_has_its_own(kind):
    dag = dag_with(two, **{f"on_{kind}_callback": [two, one]})
    assert resolve(dag, order("one", 1, f"task_{kind}")) is one


def test_a_mapped_task_has_its_own():
    from airflow.sdk import DAG, BaseOperator

    with DAG("sales", schedule=None) as dag:
        BaseOperator.partial(task_id="load", on_failure_callback=[two, one]).expand(pool=["a"])
    assert resolve(dag, order("one", 1, "task_failure")) is one


def test_lambdas_of_one_name_are_told_apart_by_place():
    first, second = (lambda context: 1), (lambda context: 2)
    name = f"{__name__}.{first.__qualname__}"
    assert resolve(dag_with([first, second]), order(name, 1)) is second
    assert resolve(dag_with([first, second]), order(name, 0)) is first


def test_in_an_edited_list_the_name_counts():
    assert resolve(dag_with([two, three, one]), order("one", 0)) is one
    assert resolve(dag_with([one]), order("one", 2)) is one


def test_a_callable_that_was_renamed_is_called_in_its_place_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING, "callback_priority.worker.callables"):
        assert resolve(dag_with([two, three]), order("one", 1)) is three
    assert f"was {__name__}.one and is {__name__}.three now" in caplog.text


def test_a_callable_of_another_unit_is_not_called_twice(gone):
    with pytest.raises(gone, match="is not in the on_failure_callback"):
        resolve(dag_with([two]), order("one", 0), others=[f"{__name__}.two"])


def test_what_is_gone_says_what_there_is_instead(gone):
    with pytest.raises(gone, match=r"has no on_failure_callback any more; it had .*one"):
        resolve(dag_with(None), order("one"))
    with pytest.raises(gone, match=r"was number 3 in .* which has only 2 now: .*two, .*three"):
        resolve(dag_with([two, three]), order("one", 2))
    with pytest.raises(gone, match="no task extract in the Dag sales any more"):
        resolve(dag_with(one), order("one", 0, "task_failure", task_id="extract"))
    with pytest.raises(gone, match="the task load of the Dag sales has no on_retry_callback"):
        resolve(dag_with(one), order("one", 0, "task_retry"))


CONTEXT = {"run_id": "r1"}


def call(value):
    from callback_priority.worker.callables import call

    return call(value, CONTEXT)


def plain(context, extra=None):
    return ("plain", context, extra)


async def coroutine(context, extra=None):
    return ("async", context, extra)


class Caller:
    def __call__(self, context):
        return ("object", context)

    def method(self, context):
        return ("method", context)


class AsyncCaller:
    async def __call__(self, context):
        return ("async object", context)


def hidden(context):
    return coroutine(context)


@pytest.mark.parametrize(
    ("value", "result"),
    [
        (plain, ("plain", CONTEXT, None)),
        (functools.partial(plain, extra=1), ("plain", CONTEXT, 1)),
        (Caller(), ("object", CONTEXT)),
        (Caller().method, ("method", CONTEXT)),
        (lambda context: context, CONTEXT),
        (lambda *args: args, (CONTEXT,)),
        (coroutine, ("async", CONTEXT, None)),
        (functools.partial(coroutine, extra=2), ("async", CONTEXT, 2)),
        (AsyncCaller(), ("async object", CONTEXT)),
        (hidden, ("async", CONTEXT, None)),
    ],
)
def test_a_callable_gets_the_context_and_is_awaited_if_need_be(value, result):
    assert call(value) == result


def test_what_cannot_be_called_fails_as_it_does_for_airflow():
    with pytest.raises(TypeError, match="not callable"):
        call("text")


def with_keywords(to, **kwargs):
    return ("keywords", to, kwargs)


def without_context(to):
    return ("no context", to)


async def later(to, context):
    return ("later", to, context)


async def later_without_context(to):
    return ("later", to)


@pytest.fixture
def notifiers():
    from airflow.sdk import BaseNotifier

    class Both(BaseNotifier):
        template_fields = ("to",)

        def __init__(self, to="", context=None):
            super().__init__(context=context)
            self.to = to

        def notify(self, context):
            CALLS.append(("notify", self.to, context["run_id"]))

        async def async_notify(self, context):
            CALLS.append(("async_notify", self.to, context["run_id"]))

    class OnlyAsync(Both):
        notify = BaseNotifier.notify

    CALLS.clear()
    module = sys.modules[__name__]
    module.Both, module.OnlyAsync = Both, OnlyAsync
    yield types.SimpleNamespace(Both=Both, OnlyAsync=OnlyAsync)
    del module.Both, module.OnlyAsync


CALLS: list[tuple[object, ...]] = []


@pytest.fixture
def here():
    """Import paths that lead into this file."""
    name = "callables_under_test"
    sys.modules[name] = sys.modules[__name__]
    yield f"{name}."
    del sys.modules[name]


def sync(path, **kwargs):
    from airflow.sdk.definitions.callback import SyncCallback

    return SyncCallback(path, kwargs)


def asynchronous(path, **kwargs):
    from airflow.sdk.definitions.callback import AsyncCallback

    return AsyncCallback(path, kwargs)


def test_a_callback_by_path_gets_its_options_and_the_context_if_it_takes_it(here):
    assert call(sync(here + "with_keywords", to="a")) == ("keywords", "a", {"context": CONTEXT})
    assert call(sync(here + "without_context", to="a")) == ("no context", "a")
    assert call(sync(here + "Caller.method", self=None)) == ("method", CONTEXT)
    assert call(sync(here + "coroutine")) == ("async", CONTEXT, None)
    assert call(asynchronous(here + "later", to="a")) == ("later", "a", CONTEXT)
    assert call(asynchronous(here + "later_without_context", to="a")) == ("later", "a")
    assert call(sync(here + "Caller")) == ("object", CONTEXT)


def test_notifiers_notify_and_are_awaited_only_where_airflow_would(here, notifiers):
    call(notifiers.Both(to="{{ run_id }}"))
    call(notifiers.OnlyAsync(to="b"))
    call(sync(here + "Both", to="c"))
    call(asynchronous(here + "Both", to="d"))
    assert CALLS == [
        ("notify", "r1", "r1"),
        ("async_notify", "b", "r1"),
        ("notify", "c", "r1"),
        ("async_notify", "d", "r1"),
    ]


def test_a_class_is_called_and_what_it_makes_is_left_at_that(notifiers):
    """As in the Dag processor: nothing is notified."""
    assert isinstance(call(notifiers.Both), notifiers.Both)
    assert CALLS == []


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nowhere", "no module leads to nowhere"),
        ("no.such.place", "no module leads to no.such.place"),
        ("json.decoder.nothing", "there is no nothing in the module json.decoder"),
        ("json.decoder.JSONDecoder.nothing", "there is no JSONDecoder.nothing in the module json.decoder"),
        ("json.make.<locals>.nested", "in the module json"),
    ],
)
def test_a_path_that_leads_nowhere_is_an_import_error(path, says):
    from callback_priority.worker.callables import import_path

    with pytest.raises(ImportError, match=says):
        import_path(path)


def test_a_module_that_lacks_an_import_says_which(tmp_path, monkeypatch):
    from callback_priority.worker.callables import import_path

    (tmp_path / "lacks_something.py").write_text("import not_installed_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_here"):
        import_path("lacks_something.tell")
