"""What a request is about, what tells it from others, and which callables share a process."""

from __future__ import annotations

import uuid
from datetime import datetime, timezone

import attrs
import pytest

from callback_priority.adapter.routing import executors
from callback_priority.adapter.routing.units import Call, Occasion
from callback_priority.adapter.routing.what import DagRunFacts, What, what_of
from callback_priority.core.classes import ServiceClass
from callback_priority.core.kinds import DagFailureCallback, DagSuccessCallback, TaskFailureCallback
from callback_priority.persistence.requests import Target
from callback_priority.policy.settings import Settings

RUN = DagRunFacts(key=7, clear_number=0, start_date=datetime(2026, 1, 1, tzinfo=timezone.utc))
OF_DAG = What(kind=DagFailureCallback, dag_id="sales", run_id="run")
OF_TASK = What(
    kind=TaskFailureCallback,
    dag_id="sales",
    run_id="run",
    task_instance_id=uuid.UUID(int=1),
    task_id="load",
    try_number=1,
)


def test_what_is_not_a_request_is_about_nothing():
    assert what_of(object()) is None


@pytest.mark.parametrize(
    "run",
    [
        attrs.evolve(RUN, key=8),
        attrs.evolve(RUN, clear_number=1),
        attrs.evolve(RUN, start_date=datetime(2026, 1, 2, tzinfo=timezone.utc)),
        attrs.evolve(RUN, start_date=None),
        None,
    ],
)
def test_another_run_or_another_time_of_it_is_another_event(run):
    assert OF_DAG.dedupe_key(RUN) != OF_DAG.dedupe_key(run)


@pytest.mark.parametrize(
    "changes", [{"kind": DagFailureCallback}, {"task_instance_id": uuid.UUID(int=2)}, {"try_number": 2}]
)
def test_another_kind_or_try_is_another_event(changes):
    assert OF_TASK.dedupe_key(RUN) != attrs.evolve(OF_TASK, **changes).dedupe_key(RUN)


def test_a_try_is_the_same_event_whatever_becomes_of_its_run():
    """The run may have been cleared between two requests about one try."""
    assert OF_TASK.dedupe_key(RUN) == OF_TASK.dedupe_key(attrs.evolve(RUN, clear_number=3))
    assert OF_TASK.dedupe_key(RUN) == OF_TASK.dedupe_key(None)


def test_keys_are_stable_and_fit_their_column():
    """A key that another release computes differently would let a request through twice during an upgrade."""
    assert OF_DAG.dedupe_key(RUN) == "3afb5150874076ca1eee29f8fcc4bc379943012357b9f39199d44a13ccf8f03e"
    assert len(OF_TASK.dedupe_key(None)) == 64


OCCASION = Occasion(
    kind=TaskFailureCallback,
    request_id=uuid.UUID(int=9),
    dag_id="sales",
    dag_run_id=7,
    bundle_name="git",
    bundle_version="v1",
    filepath="sales.py",
    pool="default_pool",
    priority=3,
)
DEFAULTS = Settings()
CALL = Call(name="sales.tell", reference={}, target=Target.WORKER, executor=None)


def batch(occasion: Occasion = OCCASION, call: Call = CALL, settings: Settings = DEFAULTS) -> str | None:
    return occasion.item(uuid.uuid4(), call, settings).batch


def test_callables_of_one_dag_file_share_a_batch_whatever_their_dag_and_run():
    other = attrs.evolve(OCCASION, request_id=uuid.uuid4(), dag_id="more", dag_run_id=8, priority=1)
    assert batch() == batch(other, attrs.evolve(CALL, name="sales.page"))


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": DagSuccessCallback},
        {"bundle_name": "s3"},
        {"bundle_version": None},
        {"filepath": "more.py"},
        {"pool": "etl"},
    ],
)
def test_what_would_need_another_process_or_is_paid_otherwise_has_another_batch(changes):
    assert batch() != batch(attrs.evolve(OCCASION, **changes))


def test_another_executor_or_queue_is_another_batch():
    assert batch() != batch(call=attrs.evolve(CALL, executor="LocalExecutor"))
    assert batch() != batch(settings=Settings(callback_queue={ServiceClass.TASK_CALLBACK: "alerts"}))
    assert batch() == batch(settings=Settings(callback_queue={ServiceClass.DAG_CALLBACK: "alerts"}))


def test_runs_of_one_have_no_batch():
    assert batch(settings=Settings(callback_batch_size=1)) is None


def test_an_executor_is_looked_at_once(monkeypatch):
    asked = []
    monkeypatch.setattr(
        executors.ExecutorLoader, "get_executor_names", lambda **keys: asked.append(keys) or []
    )
    executors.why_not.cache_clear()
    try:
        for _ in range(3):
            assert executors.why_not("Some", None) == "executor 'Some' is not configured"
    finally:
        executors.why_not.cache_clear()
    assert asked == [{"validate_teams": False}], "the check of teams would commit the caller's session"
