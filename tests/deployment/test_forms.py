"""Each kind of callback that goes through the Dag processor, in each form: on stock Airflow and with the library."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import attrs
import pytest

from tests.deployment.shared import HERE, PATIENCE, all_ended, command, state_table
from tests.support.deployment import Deployment, deployed

pytestmark = pytest.mark.timeout(600)

KINDS = ("dag_success", "dag_failure", "task_success", "task_failure", "task_retry")
DROPPED = "task_success"
"""What stock's Dag processor is asked for and does not do."""

WORKER, TRIGGERER = "worker", "triggerer"
_RAN_ON = {"scheduler": WORKER, "triggerer": TRIGGERER, "dag-processor": "Dag processor"}
"""Who runs callbacks, by the component whose child they are: LocalExecutor's workers are the scheduler's."""


@attrs.frozen(kw_only=True)
class Form:
    """A way to write a callback.

    Args:
        key: What the Dags of `dags_forms/forms.py` call it.
        runs_on: Where it runs with the library.
        on_stock: Whether stock Airflow runs it.
        calls: How the calls name themselves; the form itself if it is no list.
        outputs: What is kept of each call: its state, and the output's first line.
    """

    key: str
    runs_on: str = WORKER
    on_stock: bool = True
    calls: tuple[str, ...]
    outputs: tuple[tuple[str, str], ...]

    @classmethod
    def single(cls, key: str, call: str, output: str | None = None, **values: object) -> Form:
        """Of one callable, which succeeds."""
        output = f'{{"called": "{call}"}}' if output is None else output
        return cls(key=key, calls=(call,), outputs=(("success", output),), **values)  # type: ignore[arg-type]


FORMS = (
    Form.single("function", "function"),
    Form.single("partial", "partial"),
    Form.single("bound_method", "bound method"),
    Form.single("callable_object", "callable object"),
    Form.single("notifier", "notifier", ""),
    Form(
        key="list",
        calls=("list, first", "list, second", "list, third"),
        outputs=(
            ("success", '{"called": "list, first"}'),
            ("failed", "ValueError: on purpose"),
            ("success", '{"called": "list, third"}'),
        ),
    ),
    Form.single("lambda", "lambda"),
    Form.single("nested_function", "nested function"),
    Form.single("async_in_a_module", "async def in a module", runs_on=TRIGGERER, on_stock=False),
    Form.single("async_in_the_dag_file", "async def in the Dag file", on_stock=False),
    Form.single(
        "sync_callback", "SyncCallback", '{"greeting": "hello", "called": "SyncCallback"}', on_stock=False
    ),
    Form.single(
        "async_callback",
        "AsyncCallback",
        '{"greeting": "hello", "called": "AsyncCallback"}',
        runs_on=TRIGGERER,
        on_stock=False,
    ),
)
UNITS = len(KINDS) * sum(len(form.calls) for form in FORMS)

Calls = Counter[tuple[str, str, str]]
"""How often each form was called, by kind, call and where."""


def provoke(airflow: Deployment) -> None:
    """Have each callback of each Dag asked for: each Dag has one run, which needs nobody to trigger it."""
    airflow.start()
    airflow.wait_for_dags(*(f"{kind}__{form.key}" for kind in KINDS for form in FORMS))


def calls(airflow: Deployment) -> Calls:
    """What was called until now."""
    return Counter(
        (each["dag_id"].partition("__")[0], each["form"], _RAN_ON[each["component"]])
        for each in airflow.records(event="called")
    )


def _deployed(tmp_path_factory, database_templates, postgres, **arguments):
    return deployed(
        tmp_path_factory.mktemp("forms") / "airflow",
        databases=database_templates,
        postgres=postgres,
        dags=[HERE / "dags_forms" / "forms.py"],
        options={"scheduler": {"use_job_schedule": True}, "core": {"parallelism": 4}, **PATIENCE},
        **arguments,
    )


@pytest.fixture(scope="module")
def on_stock(tmp_path_factory, database_templates, postgres) -> Calls:
    """What stock Airflow calls, once it has nothing left to do."""
    expected = (len(KINDS) - 1) * sum(len(form.calls) for form in FORMS if form.on_stock)
    with _deployed(tmp_path_factory, database_templates, postgres) as airflow:
        provoke(airflow)

        def over() -> bool:
            asked = airflow.value("SELECT count(*) FROM callback WHERE type = 'dag_processor'")
            return not asked and sum(calls(airflow).values()) >= expected and _settled(airflow)

        airflow.wait_until(over, "the Dag processor has called everything", 120, every=0.5)
        return calls(airflow)


def _settled(airflow: Deployment) -> bool:
    """Whether every run is where its callbacks have been asked for."""
    runs = airflow.value("SELECT count(*) FROM dag_run")
    return (
        runs == len(KINDS) * len(FORMS)
        and not airflow.value(
            "SELECT count(*) FROM task_instance WHERE state IS NULL OR state IN ('scheduled', 'queued', 'deferred')"
        )
        and not airflow.value(
            "SELECT count(*) FROM dag_run WHERE state IN ('queued', 'running') AND dag_id NOT LIKE 'task_retry%'"
        )
    )


@pytest.fixture(scope="module")
def moved(tmp_path_factory, database_templates, postgres) -> Iterator[Deployment]:
    """A deployment with the library in which everything has been called."""
    with _deployed(
        tmp_path_factory,
        database_templates,
        postgres,
        callback_priority={"mode": "active", "use_worker_callbacks": "all", "reconcile_interval_seconds": 2},
    ) as airflow:
        provoke(airflow)
        airflow.wait_until(
            lambda: all_ended(airflow, UNITS), f"{UNITS} callables were called", 120, every=0.5
        )
        yield airflow


@pytest.fixture(scope="module")
def listed(moved) -> Mapping[tuple[str, str], list[Mapping[str, str]]]:
    """What ``callback-priority list`` tells, by kind and form."""
    found: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for each in reversed(command(moved, "list", "--limit", "10000")["callbacks"]):
        kind, _, form = each["dag_id"].partition("__")
        assert each["kind"] == kind
        found.setdefault((kind, form), []).append(each)
    return found


def test_stock_calls_what_can_be_called_at_once(on_stock):
    assert on_stock == Counter(
        (kind, call, "Dag processor")
        for kind in KINDS
        if kind != DROPPED
        for form in FORMS
        if form.on_stock
        for call in form.calls
    )


def test_everything_that_ran_on_stock_and_the_rest_runs_once_where_it_should(on_stock, moved):
    seen = calls(moved)
    assert seen == Counter(
        (kind, call, form.runs_on) for kind in KINDS for form in FORMS for call in form.calls
    )
    assert {key[:2] for key in on_stock} <= {key[:2] for key in seen}


def test_states_and_outputs_are_listed(listed):
    assert {
        key: Counter((each["state"], _first_line(each["output"])) for each in rows)
        for key, rows in listed.items()
    } == {(kind, form.key): Counter(form.outputs) for kind in KINDS for form in FORMS}


@pytest.mark.parametrize(
    ("form", "target"), [("lambda", WORKER), ("async_callback", TRIGGERER)], ids=["worker", "triggerer"]
)
def test_one_callback_is_shown_with_its_place(moved, listed, form, target):
    [line] = listed["dag_failure", form]
    shown = command(moved, "show", line["callback_id"])
    assert shown["kind"] == "dag_failure"
    assert shown["target"] == target
    assert (shown["state"], shown["airflow_state"], shown["item_state"]) == ("success", "success", "done")
    assert shown["output"] == line["output"]
    assert (shown["worker"] is None) is (target == TRIGGERER)


def test_nothing_falls_back_and_no_slot_is_held(moved):
    status = command(moved, "status")
    outcomes = {(each["kind"], each["outcome"]) for each in status["requests"]}
    # Triggers ask for callbacks of tasks that have none.
    assert outcomes == {*((kind, "routed") for kind in KINDS), ("task_failure", "empty")}
    assert [each["held"] for each in status["classes"]] == [0] * len(status["classes"])
    assert not moved.value("SELECT count(*) FROM callback WHERE type = 'dag_processor'")


def test_the_docs_have_the_table(on_stock, moved, listed):
    ran = calls(moved)
    rows = []
    for form in FORMS:
        for index, call in enumerate(form.calls):
            stock = [kind for kind in KINDS if on_stock[kind, call, "Dag processor"]]
            here = [kind for kind in KINDS if ran[kind, call, form.runs_on]]
            state, output = _ended(listed["dag_failure", form.key], form, index)
            rows.append(
                [call, _kinds(stock), _kinds(here), form.runs_on, state, f"`{output}`" if output else ""]
            )
    state_table(
        "docs/reference/callback-forms.md",
        ["given as", "stock calls it for", "is called for", "runs on", "state", "output"],
        rows,
    )


def _ended(rows: list[Mapping[str, str]], form: Form, index: int) -> tuple[str, str]:
    wanted = form.outputs[index]
    return next(found for each in rows if (found := (each["state"], _first_line(each["output"]))) == wanted)


def _kinds(kinds: list[str]) -> str:
    missing = [kind for kind in KINDS if kind not in kinds]
    if not missing:
        return "all"
    return f"all but {', '.join(f'`{kind}`' for kind in missing)}" if kinds else "none"


def _first_line(text: str | None) -> str:
    return (text or "").partition("\n")[0]
