"""Every producer of callback requests, on stock Airflow and with the library: the same is called, with the same."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import pytest

from tests.deployment.producers import DAG_FILE, PLUGIN, PRODUCERS, RUN_ID, Producer, Seen, provoke_all
from tests.support.deployment import Deployment
from tests.support.smtp import Mail, running_mail_sink
from tests.support.tables import markdown_table, state_section

DOCUMENT = "docs/reference/producers.md"
_PLACES = {
    "scheduler": "a LocalExecutor worker",
    "celery-worker": "a Celery worker",
    "dag-processor": "the Dag processor",
}


@attrs.frozen(kw_only=True)
class Difference:
    """What differs between the two, and has to.

    Args:
        keys: Keys of the context.
        dag_id: The producer with which it is seen.
        stock: What stock Airflow has.
        reason: Why.
    """

    keys: tuple[str, ...]
    dag_id: str
    stock: object
    reason: str


DIFFERENCES = (
    Difference(
        keys=tuple(
            f"prev_{name}_success"
            for name in ("data_interval_start", "data_interval_end", "start_date", "end_date")
        ),
        dag_id="dag_success",
        stock=None,
        reason=(
            "In the Dag processor these are always `None`: it asks for the successful run before its own process's "
            "number, not before the task instance. On a worker they tell of the run before."
        ),
    ),
)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("executor", ["LocalExecutor", "CeleryExecutor"])
def test_every_producer_has_the_same_called_on_a_worker(deploy, executor):
    """Same callables, same context keys and values, one call each, none in the Dag processor."""
    producers = [each for each in PRODUCERS if executor in each.executors]
    stock, _ = _run(deploy, executor, "stock", None)
    routed, requests = _run(deploy, executor, "routed", {"mode": "active", "use_worker_callbacks": "all"})

    assert _places(stock) == {"dag-processor"}
    assert _places(routed) == {"celery-worker" if executor == "CeleryExecutor" else "scheduler"}
    for producer in producers:
        for seen, times in ((stock, producer.stock_times), (routed, 1)):
            one = seen[producer.dag_id]
            calls = Counter(call["name"] for call in one.calls)
            assert calls == {name: times for name in producer.calls if times}, producer.dag_id
            assert len(one.mails) == times * producer.mails, producer.dag_id
    assert [row for row in requests if row.outcome != "routed"] == [], "something fell back"
    assert Counter(row.dag_id for row in requests) == dict.fromkeys(routed, 1), (
        "one request for what happened"
    )

    unexplained = {
        producer.dag_id: found
        for producer in producers
        if (found := _unexplained(producer, stock[producer.dag_id], routed[producer.dag_id]))
    }
    assert not unexplained
    assert _unseen(stock, routed) == [], "differences that are gone"
    state_section(DOCUMENT, executor, _table(producers, stock, routed))
    state_section(DOCUMENT, "differences", _differences())


@pytest.mark.parametrize(
    "changed",
    [
        {"context": {"ds": "2024-05-07", "dag_run": {"state": "failed"}}},
        {"context": {"ds": "2024-05-06", "dag_run": {"state": "success"}}},
        {"context": {"ds": "2024-05-06"}},
        {"context": {"ds": "2024-05-06", "dag_run": {"state": "failed"}, "more": 1}},
    ],
)
def test_a_difference_would_be_seen(changed):
    """Another value, a value inside, a key less and a key more; and nothing where all is the same."""
    [producer] = [each for each in PRODUCERS if each.dag_id == "mismatch_retry"]
    call = {"name": "task_retry", "context": {"ds": "2024-05-06", "dag_run": {"state": "failed"}}}
    stock = Seen(calls=(call,), mails=())
    assert _unexplained(producer, stock, stock) == []
    assert len(_unexplained(producer, stock, Seen(calls=({**call, **changed},), mails=()))) == 1


def test_a_different_mail_would_be_seen():
    """Identifiers and addresses differ from run to run; words do not."""
    [producer] = [each for each in PRODUCERS if each.dag_id == "mail_retry"]

    def mailed(body: str) -> Seen:
        return Seen(calls=(), mails=(Mail(sender="a", recipients=("b",), subject="c", body=body),))

    one = mailed("Try 1 of 01a20657-1c8c-7fdc-ac8e-8c66508feb0c at 127.0.0.1:4000")
    assert (
        _unexplained(producer, one, mailed("Try 1 of 01a20657-1c8d-7b3b-9c75-3bb8b537c428 at 127.0.0.1:5"))
        == []
    )
    assert len(_unexplained(producer, one, mailed("Try 2 of 01a20657-1c8c-7fdc-ac8e-8c66508feb0c"))) == 1


def _run(deploy, executor: str, name: str, callback_priority: Mapping[str, object] | None):
    """What is seen in a deployment of one's own, and the rows of the requests in it."""
    with running_mail_sink() as mail_sink:
        airflow = deploy(
            name,
            executor=executor,
            dags=[DAG_FILE],
            plugins=[PLUGIN],
            callback_priority=callback_priority,
            # The Dag processor keeps a request that comes while it parses the file until it parses it again.
            options={"dag_processor": {"min_file_process_interval": 600 if callback_priority else 5}},
            environment={"AIRFLOW_CONN_SMTP_DEFAULT": mail_sink.connection_uri},
        )
        seen = provoke_all(airflow, mail_sink, routed=callback_priority is not None)
        requests = airflow.rows(
            "SELECT dag_id, kind, outcome, reason, units FROM callback_priority_request WHERE run_id = :run_id",
            run_id=RUN_ID,
        )
        if callback_priority is not None:
            airflow.wait_until(lambda: _is_settled(airflow), "every callback succeeded and holds no slot")
        airflow.close()
        return seen, requests


def _is_settled(airflow: Deployment) -> bool:
    states = "SELECT c.state FROM callback c JOIN callback_priority_unit u ON u.callback_id = c.id"
    items = "SELECT state FROM callback_priority_item"
    return {row.state for row in airflow.rows(states)} == {"success"} and {
        row.state for row in airflow.rows(items)
    } == {"done"}


def _places(seen: Mapping[str, Seen]) -> set[str]:
    return {call["component"] for each in seen.values() for call in each.calls}


def _unexplained(producer: Producer, stock: Seen, routed: Seen) -> list[str]:
    """The differences between two runs that nothing in `DIFFERENCES` explains."""
    found = []
    for name in producer.calls if producer.stock_times else ():
        found += [
            f"{name}: {path}: {one!r} became {other!r}"
            for path, one, other in _differing(stock.called(name)[0], routed.called(name)[0])
            if not _explained(producer.dag_id, path, one)
        ]
    mails = zip(map(_comparable, stock.mails), map(_comparable, routed.mails), strict=False)
    return found + [f"mail: {one} became {other}" for one, other in mails if one != other]


def _unseen(stock: Mapping[str, Seen], routed: Mapping[str, Seen]) -> list[str]:
    """What `DIFFERENCES` tells of and is not there."""
    return [
        key
        for each in DIFFERENCES
        for key in each.keys
        if key
        not in {path for path, *_ in _differing(stock[each.dag_id].calls[0], routed[each.dag_id].calls[0])}
    ]


def _differing(stock: Mapping[str, Any], routed: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    one, other = dict(_flat(stock["context"])), dict(_flat(routed["context"]))
    for path in sorted({*one, *other}):
        values = one.get(path, "missing"), other.get(path, "missing")
        if values[0] != values[1]:
            yield path, *values


def _explained(dag_id: str, path: str, stock: object) -> bool:
    return any(path in each.keys and dag_id == each.dag_id and stock == each.stock for each in DIFFERENCES)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from _flat(each, f"{path}.{key}" if path else key)
    else:
        yield path, value


def _comparable(mail: Mail) -> tuple[object, ...]:
    """A mail without what differs from run to run by itself: identifiers, moments, ports."""

    def steady(text: str) -> str:
        text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "<id>", text)
        text = re.sub(r"'traceparent': '[^']*'", "<trace>", text)
        text = re.sub(r"datetime\([^)]*\)", "<moment>", text)
        return re.sub(r"127\.0\.0\.1:\d+", "<server>", text)

    return mail.sender, mail.recipients, steady(mail.subject), steady(mail.body)


def _table(producers: list[Producer], stock: Mapping[str, Seen], routed: Mapping[str, Seen]) -> str:
    rows = []
    for producer in producers:
        one, other = stock[producer.dag_id], routed[producer.dag_id]
        keys = {len(call["keys"]) for call in other.calls}
        rows.append(
            (
                producer.what,
                ", ".join(f"`{name}`" for name in producer.calls) or "(e-mail)",
                _how_often(producer, one),
                _how_often(producer, other),
                ", ".join(map(str, keys)) or "-",
            )
        )
    head = ("what happens", "callables", "stock: calls of each", "with the library", "context keys")
    return markdown_table(head, rows)


def _differences() -> str:
    return "\n".join(f"- {', '.join(f'`{key}`' for key in each.keys)}: {each.reason}" for each in DIFFERENCES)


def _how_often(producer: Producer, seen: Seen) -> str:
    if producer.mails:
        return f"{len(seen.mails)} mail"
    counts = {len(seen.called(name)) for name in producer.calls}
    places = {call["component"] for call in seen.calls}
    where = ", ".join(_PLACES[place] for place in sorted(places))
    return f"{', '.join(map(str, sorted(counts)))}{f', in {where}' if where else ''}"
