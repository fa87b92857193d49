"""Every producer of callback requests, provoked in a running deployment, and what was called because of it.

The producers are those of Airflow's scheduler and triggerer. None of them is called here; each is brought about the
way it comes about in life: a log directory that cannot be made, a queue that nobody listens to, processes that are
killed or hang, a Dag that is paused while its last task runs.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from tests.support.deployment import Deployment, Executor
from tests.support.smtp import Mail, MailSink

__all__ = ["DAG_FILE", "PLUGIN", "PRODUCERS", "RUN_ID", "Producer", "Seen", "provoke_all"]

DAG_FILE = Path(__file__).parent / "dags" / "producers.py"
PLUGIN = Path(__file__).parent / "plugins" / "brisk_paused_runs.py"
RUN_ID = "provoked"
LOGICAL_DATE = "2024-05-06T07:08:09+00:00"
EARLIER = ("earlier", "2024-05-05T07:08:09+00:00")
CONF = {"reason_to_run": "a test", "number": 1}

_BOTH: tuple[Executor, ...] = ("LocalExecutor", "CeleryExecutor")
_FAILURE = ("task_failure", "second_task_failure")
_DAG_FAILURE = ("dag_failure", "second_dag_failure")
_PATIENCE_SECONDS = 180.0


@attrs.frozen(kw_only=True)
class Producer:
    """One way in which Airflow comes to send a callback request.

    Args:
        dag_id: The Dag that it is provoked with.
        what: For people: who sends the request, and why.
        task_id: The task that it is about, or that ends the run.
        ends: The state that the task instance gets to, ``None`` where the Dag run's matters.
        run_ends: The state that the Dag run gets to, ``None`` if it stays unfinished (a task waits for its next try).
        calls: The callables that have to be called, each once.
        mails: How many mails have to be sent.
        stock_times: How many times stock Airflow does all of that.
        executors: Those with which it exists.
    """

    dag_id: str
    what: str
    task_id: str
    ends: str | None = None
    run_ends: str | None = "failed"
    calls: tuple[str, ...] = ()
    mails: int = 0
    stock_times: int = 1
    executors: tuple[Executor, ...] = _BOTH


PRODUCERS: tuple[Producer, ...] = (
    Producer(
        dag_id="mismatch_failure",
        what="scheduler: the executor says failed, the task is queued",
        task_id="cannot_start",
        ends="failed",
        calls=_FAILURE,
    ),
    Producer(
        dag_id="mismatch_retry",
        what="scheduler: the same, with a retry left",
        task_id="cannot_start",
        ends="up_for_retry",
        run_ends=None,
        calls=("task_retry",),
    ),
    Producer(
        dag_id="worker_lost",
        what="scheduler: the executor says failed, the task is running (its worker process was killed)",
        task_id="endless",
        ends="failed",
        calls=_FAILURE,
        executors=("CeleryExecutor",),
    ),
    Producer(
        dag_id="mail_failure",
        what="scheduler: executor says failed, e-mail on failure",
        task_id="cannot_start",
        ends="failed",
        mails=1,
    ),
    Producer(
        dag_id="mail_retry",
        what="scheduler: executor says failed, e-mail on retry",
        task_id="cannot_start",
        ends="up_for_retry",
        run_ends=None,
        mails=1,
    ),
    Producer(
        dag_id="stuck_in_queued",
        what="scheduler: stuck in queued",
        task_id="nobody_listens",
        ends="failed",
        calls=_FAILURE,
        executors=("CeleryExecutor",),
    ),
    Producer(
        dag_id="heartbeat_failure",
        what="scheduler: no heartbeat",
        task_id="endless",
        ends="failed",
        calls=_FAILURE,
        stock_times=2,
    ),
    Producer(
        dag_id="heartbeat_retry",
        what="scheduler: no heartbeat, with a retry left",
        task_id="endless",
        ends="up_for_retry",
        run_ends=None,
        calls=("task_retry",),
        stock_times=2,
    ),
    Producer(
        dag_id="dag_success",
        what="scheduler: the Dag run succeeded",
        task_id="last",
        run_ends="success",
        calls=("dag_success",),
    ),
    Producer(
        dag_id="dag_failure", what="scheduler: the Dag run failed", task_id="failing", calls=_DAG_FAILURE
    ),
    Producer(
        dag_id="dag_deadlocked",
        what="scheduler: the Dag run is deadlocked",
        task_id="never",
        calls=_DAG_FAILURE,
    ),
    Producer(
        dag_id="dag_timed_out", what="scheduler: the Dag run timed out", task_id="late", calls=_DAG_FAILURE
    ),
    Producer(
        dag_id="dag_paused",
        what="scheduler: a paused Dag's run finished",
        task_id="released",
        run_ends="success",
        calls=("dag_success",),
    ),
    Producer(
        dag_id="trigger_failure",
        what="triggerer: end event, failed",
        task_id="deferred",
        ends="failed",
        calls=_FAILURE,
    ),
    Producer(
        dag_id="trigger_retry",
        what="triggerer: end event, failed with a retry left",
        task_id="deferred",
        ends="up_for_retry",
        run_ends=None,
        calls=("task_retry",),
    ),
    Producer(
        dag_id="trigger_success",
        what="triggerer: end event, success",
        task_id="deferred",
        ends="success",
        run_ends="success",
        calls=("task_success",),
        stock_times=0,
    ),
)


@attrs.frozen(kw_only=True)
class Seen:
    """What was called because of one producer.

    Args:
        calls: A record each, as `callback_recorder` writes it, in the order of the calls.
        mails: What arrived.
    """

    calls: tuple[Mapping[str, Any], ...]
    mails: tuple[Mail, ...]

    def called(self, name: str) -> list[Mapping[str, Any]]:
        """The calls of one callable."""
        return [call for call in self.calls if call["name"] == name]


def provoke_all(airflow: Deployment, mail_sink: MailSink, *, routed: bool) -> dict[str, Seen]:
    """Provoke every producer that the deployment's executor has, and wait until all is over.

    Args:
        airflow: Made with `DAG_FILE` and `PLUGIN`, not started yet.
        mail_sink: Where it sends its mails.
        routed: Whether each call is expected once, or as often as stock Airflow calls.

    Returns:
        What was seen, by the producers' Dag ids.
    """
    producers = [each for each in PRODUCERS if airflow.executor in each.executors]
    for producer in producers:
        if producer.task_id == "cannot_start":
            # A file where the task's log directory has to be: the supervisor gives up before it asks to start.
            airflow.task_logs.mkdir(parents=True, exist_ok=True)
            (airflow.task_logs / f"dag_id={producer.dag_id}").touch()
    airflow.execute(
        "INSERT INTO slot_pool (pool, slots, include_deferred) VALUES ('closed', 0, :no)", no=False
    )
    airflow.start()
    airflow.wait_for_dags(*(each.dag_id for each in producers))
    # The one Dag that has a successful run before.
    airflow.trigger("dag_success", EARLIER[0], logical_date=EARLIER[1])
    airflow.wait_for_run("dag_success", EARLIER[0], "success")
    for producer in producers:
        airflow.trigger(producer.dag_id, RUN_ID, conf=CONF, logical_date=LOGICAL_DATE)
    hanging = _interfere(airflow, producers)
    try:
        _wait_for_the_end(airflow, producers)
    finally:
        _send(signal.SIGKILL, hanging)
    _wait_for_the_calls(airflow, mail_sink, producers, routed=routed)
    return {each.dag_id: _seen(airflow, mail_sink, each) for each in producers}


def _interfere(airflow: Deployment, producers: Sequence[Producer]) -> list[int]:
    """Do to the running tasks what the producers need; returns the processes that hang from now on."""
    airflow.wait_for_task("dag_deadlocked", RUN_ID, "gate", "scheduled")
    # As if the task were gone from the Dag: it is finished, and nothing that its follower waits for.
    airflow.execute(
        "UPDATE task_instance SET state = 'removed' WHERE dag_id = 'dag_deadlocked' AND task_id = 'gate'"
    )

    _processes(airflow, "dag_paused")
    airflow.pause("dag_paused")
    airflow.record_path.with_name("release").touch()

    hanging: list[int] = []
    for producer in producers:
        if producer.dag_id == "stuck_in_queued":
            airflow.wait_for_task(producer.dag_id, RUN_ID, producer.task_id, "queued")
            airflow.backdate("queued_dttm", producer.dag_id, RUN_ID)
        if producer.task_id != "endless":
            continue
        supervisor_first = _processes(airflow, producer.dag_id)
        if producer.dag_id == "worker_lost" or airflow.executor == "LocalExecutor":
            _send(signal.SIGKILL, supervisor_first)
        else:
            # Celery notices a dead process of its worker at once, but not one that hangs.
            _send(signal.SIGSTOP, supervisor_first)
            hanging += supervisor_first
    return hanging


def _processes(airflow: Deployment, dag_id: str) -> list[int]:
    """The supervisor and the process of a Dag's only task, once that runs."""
    [started] = airflow.wait_until(
        lambda: airflow.records(event="task", task=dag_id), f"the task of {dag_id} runs", _PATIENCE_SECONDS
    )
    return [started["parent"], started["pid"]]


def _send(number: signal.Signals, processes: Sequence[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def _wait_for_the_end(airflow: Deployment, producers: Sequence[Producer]) -> None:
    for producer in producers:
        if producer.dag_id.startswith("heartbeat_"):
            _wait_for_the_missing_heartbeat(airflow, producer)
        if producer.ends:
            airflow.wait_for_task(
                producer.dag_id, RUN_ID, producer.task_id, producer.ends, seconds=_PATIENCE_SECONDS
            )
        if producer.run_ends:
            airflow.wait_for_run(producer.dag_id, RUN_ID, producer.run_ends, seconds=_PATIENCE_SECONDS)


def _wait_for_the_missing_heartbeat(airflow: Deployment, producer: Producer) -> None:
    def noticed() -> bool:
        # Again and again: a heartbeat that was on its way when its process ended still counts.
        airflow.backdate("last_heartbeat_at", producer.dag_id, RUN_ID)
        return airflow.task_state(producer.dag_id, RUN_ID, producer.task_id) != "running"

    airflow.wait_until(noticed, f"{producer.dag_id} is noticed", _PATIENCE_SECONDS, every=0.5)


def _wait_for_the_calls(
    airflow: Deployment, mail_sink: MailSink, producers: Sequence[Producer], *, routed: bool
) -> None:
    def missing() -> dict[str, str]:
        answer = {}
        for producer in producers:
            times = 1 if routed else producer.stock_times
            seen = _seen(airflow, mail_sink, producer)
            calls, mails = times * len(producer.calls), times * producer.mails
            if len(seen.calls) < calls or len(seen.mails) < mails:
                names = [call["name"] for call in seen.calls]
                answer[producer.dag_id] = f"{names}, {len(seen.mails)} mails"
        return answer

    def over() -> bool:
        return not missing() and not airflow.requests_left()

    try:
        airflow.wait_until(over, "all callbacks are called", _PATIENCE_SECONDS, every=0.3)
    except AssertionError as error:
        raise AssertionError(f"Missing beside what was seen: {missing()}\n{error}") from error


def _seen(airflow: Deployment, mail_sink: MailSink, producer: Producer) -> Seen:
    return Seen(
        calls=tuple(airflow.records(event="callback", dag_id=producer.dag_id, run_id=RUN_ID)),
        mails=tuple(mail for mail in mail_sink.mails() if f"'{producer.dag_id}'" in mail.subject),
    )
