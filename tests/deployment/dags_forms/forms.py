"""Every kind of callback that goes through the Dag processor, in every form: a Dag for each of both.

Each has one run, which begins as soon as the Dag is known.
"""

from __future__ import annotations

import datetime as dt
import functools

import form_callables
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, BaseNotifier
from airflow.sdk.definitions.callback import AsyncCallback, SyncCallback
from form_callables import seen
from started_by_trigger import StartedByTrigger

START = dt.datetime(2024, 5, 6, tzinfo=dt.timezone.utc)


def function(context):
    return seen("function", context)


def with_an_argument(form, context):
    return seen(form, context)


class Caller:
    def __init__(self, form):
        self.form = form

    def method(self, context):
        return seen(self.form, context)

    def __call__(self, context):
        return seen(self.form, context)


class Notifier(BaseNotifier):
    template_fields = ("form",)

    def __init__(self, form):
        super().__init__()
        self.form = form

    def notify(self, context):
        seen(self.form, context)


def make():
    def nested(context):
        return seen("nested function", context)

    return nested


def broken(context):
    seen("list, second", context)
    raise ValueError("on purpose")


async def in_the_dag_file(context):
    return seen("async def in the Dag file", context)


FORMS = {
    "function": function,
    "partial": functools.partial(with_an_argument, "partial"),
    "bound_method": Caller("bound method").method,
    "callable_object": Caller("callable object"),
    "notifier": Notifier("notifier"),
    "list": [
        functools.partial(with_an_argument, "list, first"),
        broken,
        lambda context: seen("list, third", context),
    ],
    "lambda": lambda context: seen("lambda", context),
    "nested_function": make(),
    "async_in_a_module": form_callables.in_a_module,
    "async_in_the_dag_file": in_the_dag_file,
    "sync_callback": SyncCallback(
        form_callables.for_sync_callback, kwargs={"greeting": "hello"}, executor="LocalExecutor"
    ),
    "async_callback": AsyncCallback(form_callables.for_async_callback, kwargs={"greeting": "hello"}),
}

for form, value in FORMS.items():
    with DAG(f"dag_success__{form}", schedule="@once", start_date=START, on_success_callback=value):
        EmptyOperator(task_id="empty")
    with DAG(f"dag_failure__{form}", schedule="@once", start_date=START, on_failure_callback=value):
        StartedByTrigger(task_id="ended", outcome="failed")
    with DAG(f"task_success__{form}", schedule="@once", start_date=START):
        StartedByTrigger(task_id="ended", outcome="success", on_success_callback=value)
    with DAG(f"task_failure__{form}", schedule="@once", start_date=START):
        StartedByTrigger(task_id="ended", outcome="failed", on_failure_callback=value)
    with DAG(f"task_retry__{form}", schedule="@once", start_date=START):
        StartedByTrigger(
            task_id="ended",
            outcome="failed",
            retries=1,
            retry_delay=dt.timedelta(hours=1),
            on_retry_callback=value,
        )
