"""Checks of callbacks that leave the Dag processor: which do, which cannot, and who is there to run them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection

from callback_priority.cli import celery_workers as celery
from callback_priority.cli.findings import RESTART, Finding, Status, Wanted
from callback_priority.cli.surroundings import parallelism
from callback_priority.cli.text import count, cut, duration
from callback_priority.core.classes import CALLBACK_CLASSES, ServiceClass
from callback_priority.persistence import deployment
from callback_priority.persistence.status import request_counts
from callback_priority.policy.settings import Mode, Settings, WorkerCallbacks

__all__ = [
    "dag_processor",
    "fallbacks",
    "moved",
    "queues",
    "references",
    "remedy_of",
    "triggerers",
    "workers",
]

A_DAY: Final = timedelta(days=1)

_NAMED: Final = 5
_EVERY_PROCESS: Final = "schedulers, triggerers, Dag processors, API servers and workers"
_WORDS: Final = {
    WorkerCallbacks.TASK: "task callbacks",
    WorkerCallbacks.DAG: "Dag callbacks",
    WorkerCallbacks.ALL: "task and Dag callbacks",
}
_GONE: Final = ""
_REMEDIES: Final = (
    (
        r"^executor .* cannot be loaded",
        "install what provides the executor where schedulers, triggerers and API servers run",
    ),
    (r"^executor\b", "name one in `callback_executor` that is in `[core] executor` and runs callbacks"),
    (
        r"parsed|reference",
        "wait until the Dag file is parsed again; if that does not help, see to the Dag processors' installation",
    ),
    (r"\bgone\b|does not exist|deleted", _GONE),
    (
        r"without callback-priority|library|older|newer|protocol",
        "install this version of callback-priority on every worker and API server, and restart them",
    ),
    (r"triggerer", "start a triggerer: `airflow triggerer`"),
)
_OTHERWISE: Final = "look for callback-priority in the schedulers' logs"


def remedy_of(reason: str) -> str:
    """What to do about requests that fell back for a reason; empty if there is nothing to do.

    >>> remedy_of("its Dag run is gone")
    ''
    >>> remedy_of("executor 'pods' does not run callbacks")
    'name one in `callback_executor` that is in `[core] executor` and runs callbacks'
    """
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, reason, re.IGNORECASE):
            return remedy
    return _OTHERWISE


def covered(settings: Settings, dag_ids: Mapping[str, bool]) -> list[str]:
    """The Dags some of whose callbacks are to leave the Dag processor."""
    return [dag_id for dag_id in dag_ids if any(settings.moves(each, dag_id) for each in CALLBACK_CLASSES)]


def moved(wanted: Wanted, dags: Mapping[str, bool]) -> Finding:
    """Which callbacks are to leave the Dag processor, and whether they do.

    Args:
        wanted: What is configured.
        dags: Every Dag.
    """
    settings = wanted.settings
    if settings.use_worker_callbacks is WorkerCallbacks.NONE:
        return Finding(
            check="moved callbacks",
            status=Status.OK,
            found="none: the Dag processor runs Dag callbacks, and task callbacks whose task's process is gone",
            values={"use_worker_callbacks": "none"},
        )
    included = covered(settings, dags)
    values = {
        "use_worker_callbacks": str(settings.use_worker_callbacks),
        "dags": len(dags),
        "covered_dags": len(included),
    }
    what = _WORDS[settings.use_worker_callbacks]
    found = f"{what} of {len(included):,} of {count(len(dags), 'Dag')}"
    if wanted.mode is Mode.OFF:
        return Finding(
            check="moved callbacks",
            status=Status.WARN,
            found=f"{found} are to leave the Dag processor, but mode is off, so none does",
            remedy="set mode to `active` (or `shadow`, to count what would move), or use_worker_callbacks to "
            f"`none`, and restart {_EVERY_PROCESS}",
            values=values,
        )
    if wanted.mode is Mode.SHADOW:
        return Finding(
            check="moved callbacks",
            status=Status.WARN,
            found=f"{found} would leave the Dag processor; mode is shadow, so it is only counted what would",
            remedy="see what would become of them in `callback-priority status`; then set mode to `active`, and "
            f"restart {_EVERY_PROCESS}",
            values=values,
        )
    if dags and not included:
        return Finding(
            check="moved callbacks",
            status=Status.WARN,
            found="no Dag is included, so no callback leaves the Dag processor",
            remedy="see worker_callbacks_include and worker_callbacks_exclude; upper and lower case matter",
            values=values,
        )
    return Finding(
        check="moved callbacks", status=Status.OK, found=f"{found} leave the Dag processor", values=values
    )


def references(wanted: Wanted, dags: Mapping[str, bool]) -> Finding:
    """Whether it is known of every Dag that is covered what its callbacks are.

    Args:
        wanted: What is configured.
        dags: Every Dag, and whether its callbacks are known.
    """
    included = covered(wanted.settings, dags)
    missing = [dag_id for dag_id in included if not dags[dag_id]]
    values = {"covered_dags": len(included), "missing": missing}
    if not missing:
        return Finding(
            check="references",
            status=Status.OK,
            found="the callbacks of every Dag that is covered are known" if included else "no Dag is covered",
            values=values,
        )
    rest = len(missing) - _NAMED
    return Finding(
        check="references",
        status=Status.WARN,
        found=f"the callbacks of {len(missing):,} of {count(len(included), 'Dag')} are not known yet, and stay with "
        "the Dag processor until they are",
        details=(*map(str, missing[:_NAMED]), *([f"and {rest:,} more"] if rest > 0 else [])),
        remedy="wait until a Dag processor has parsed their files again; if that does not help, install callback-priority beside each Dag processor, and restart it",
        values=values,
    )


def fallbacks(connection: Connection, now: datetime) -> Finding:
    """Which requests of the last day went to the Dag processor all the same, and why."""
    found = [each for each in request_counts(connection, since=now - A_DAY) if each.outcome == "fallback"]
    by_reason: dict[str, int] = {}
    last: dict[str, datetime] = {}
    for each in found:
        reason = each.reason or "no reason recorded"
        by_reason[reason] = by_reason.get(reason, 0) + each.requests
        last[reason] = max(each.last_at, last.get(reason, each.last_at))
    ordered = sorted(by_reason, key=lambda reason: (-by_reason[reason], reason))
    remedies = {reason: remedy_of(reason) for reason in ordered}
    todo = list(dict.fromkeys(filter(None, remedies.values())))
    total = sum(by_reason.values())
    return Finding(
        check="fallbacks",
        status=Status.WARN if todo else Status.OK,
        found=f"{count(total, 'request')} of the last day fell back to the Dag processor"
        if total
        else "no request of the last day fell back to the Dag processor",
        details=tuple(
            f"{by_reason[reason]:,}: {cut(reason, 300)} "
            f"(last {duration((now - last[reason]).total_seconds())} ago)"
            for reason in ordered
        ),
        remedy="; ".join(todo),
        values={
            "requests": total,
            "reasons": by_reason,
            "kinds": {
                kind: sum(each.requests for each in found if each.kind == kind)
                for kind in dict.fromkeys(each.kind for each in found)
            },
            "remedies": remedies,
        },
    )


def dag_processor(connection: Connection, wanted: Wanted, now: datetime) -> Finding:
    """What still goes to the Dag processor, by whatever way."""
    sent = deployment.sent_to_dag_processors(connection)
    values = {"requests": sent.count}
    if sent.count == 0 or sent.oldest_created_at is None:
        return Finding(
            check="dag processor",
            status=Status.OK,
            found="no request waits for a Dag processor",
            values=values,
        )
    age = duration((now - sent.oldest_created_at).total_seconds())
    found = f"{count(sent.count, 'request')} wait{'s' * (sent.count == 1)} for a Dag processor, the oldest for {age}"
    settings = wanted.settings
    every_dag = settings.worker_callbacks_include == ("*",) and not settings.worker_callbacks_exclude
    if settings.use_worker_callbacks is WorkerCallbacks.ALL and every_dag:
        return Finding(
            check="dag processor",
            status=Status.WARN,
            found=f"{found}, though none should be sent there",
            remedy="see `fallbacks`; what is not counted there comes from a scheduler or triggerer without the "
            f"library, or from before the option was set: {RESTART} and triggerers",
            values=values,
        )
    return Finding(
        check="dag processor",
        status=Status.OK,
        found=f"{found}; callbacks that are not moved go there",
        values=values,
    )


def triggerers(connection: Connection, alive: int) -> Finding:
    """Whether somebody runs asynchronous callbacks.

    Args:
        connection: To the database.
        alive: How many triggerers are.
    """
    there = deployment.with_triggerers(connection)
    values = {"triggerers": alive, "callbacks": there}
    if alive > 1 and not _assigned_once():
        return Finding(
            check="triggerers",
            status=Status.WARN,
            found=f"{alive} are alive, and this Airflow may let them run the same callbacks, those of deadlines, too; "
            "workers run those that are moved",
            remedy="run one triggerer, or a version of Airflow that this release is made for",
            values=values,
        )
    if alive:
        return Finding(
            check="triggerers",
            status=Status.OK,
            found=f"{count(alive, 'is', 'are')} alive, with {count(there, 'callback')}",
            values=values,
        )
    if there:
        return Finding(
            check="triggerers",
            status=Status.WARN,
            found=f"none is alive, and {count(there, 'callback waits', 'callbacks wait')} for one",
            remedy="start one: `airflow triggerer`",
            values=values,
        )
    return Finding(
        check="triggerers",
        status=Status.OK,
        found="none is alive: workers run asynchronous callbacks, too",
        values=values,
    )


def _assigned_once() -> bool:
    from callback_priority.adapter.triggers import assigned_once

    return assigned_once()


def workers(
    wanted: Wanted,
    classes: Sequence[ServiceClass],
    answer: celery.Answer,
    *,
    schedulers: int,
    pools: Sequence[str],
) -> Finding:
    """Whether Celery's workers have the processes that reserves promise.

    Args:
        wanted: What is configured.
        classes: The callback classes that run on Celery.
        answer: What the workers say.
        schedulers: How many schedulers are alive.
        pools: The pools that there are.
    """
    default, each = celery.default_queue(), celery.concurrency()
    living = max(1, schedulers)
    promised = celery.promises(wanted.settings, classes, default=default, schedulers=living, pools=pools)
    slots = parallelism() * living
    details, remedies = [], []
    for promise in promised:
        if answer.workers:
            there = celery.processes(answer.workers, promise.queue, each)
            described = f"its living workers have {count(there, 'process', 'processes')}"
        else:
            there = each
            described = f"a worker has {count(each, 'process', 'processes')} (`[celery] worker_concurrency`)"
        names = " and ".join(promise.classes)
        if promise.slots > there:
            details.append(
                f"{promise.option} reserve {count(promise.slots, 'slot')} for "
                f"{names} in queue {promise.queue!r}, but {described}"
            )
            remedies.append("start more workers for the queue, or lower the reserve")
        elif promise.queue == default and slots > there:
            details.append(
                f"{names} share{'s' * (len(promise.classes) == 1)} queue {default!r} with tasks: schedulers hand out "
                f"{slots:,} slots, but {described}, so that a callback with a reserved slot can wait in the broker "
                "behind tasks"
            )
            remedies.append(
                "give callbacks a queue and workers of their own (`callback_queue`), or start more workers"
            )
    values = {
        "classes": list(map(str, classes)),
        "workers": [
            {"name": worker.name, "processes": worker.processes, "queues": sorted(worker.queues)}
            for worker in answer.workers
        ],
        "promises": [
            {"option": promise.option, "queue": promise.queue, "slots": promise.slots} for promise in promised
        ],
    }
    found = f"{count(len(answer.workers), 'Celery worker')} answer{'s' * (len(answer.workers) == 1)}"
    if answer.why_not:
        found = f"Celery's workers cannot be asked: {answer.why_not}"
    elif not answer.workers:
        found = f"no Celery worker answered within {celery.ANSWER_SECONDS:g} s"
        remedies.append("start one: `airflow celery worker`")
    if details:
        found += "; reserves promise more than workers have"
    return Finding(
        check="workers",
        status=Status.WARN if details or not answer.workers else Status.OK,
        found=found,
        details=tuple(dict.fromkeys(details)),
        remedy="; ".join(dict.fromkeys(remedies))
        or ("" if answer.workers else "see whether the broker is up (`[celery] broker_url`)"),
        values=values,
    )


def queues(wanted: Wanted, classes: Sequence[ServiceClass], answer: celery.Answer) -> Finding:
    """Whether some Celery worker listens to each queue that callbacks go to."""
    default = celery.default_queue()
    by_queue: dict[str, list[str]] = {}
    for each in classes:
        by_queue.setdefault(celery.queue_of(wanted.settings, each, default), []).append(str(each))
    values = {"queues": by_queue}
    if not answer.workers:
        return Finding(
            check="queues",
            status=Status.WARN,
            found=f"{', '.join(map(repr, by_queue))}: nobody could be asked who listens",
            remedy="see `workers`",
            values=values,
        )
    deaf = {
        queue: names
        for queue, names in by_queue.items()
        if not any(queue in worker.queues for worker in answer.workers)
    }
    if deaf:
        return Finding(
            check="queues",
            status=Status.WARN,
            found=f"no living Celery worker listens to {', '.join(map(repr, deaf))}",
            details=tuple(f"{queue!r} is for {', '.join(names)}" for queue, names in deaf.items()),
            remedy=f"start one: `airflow celery worker --queues {','.join(deaf)}`",
            values=values | {"unheard": list(deaf)},
        )
    return Finding(
        check="queues",
        status=Status.OK,
        found=f"somebody listens to {', '.join(map(repr, by_queue))}",
        values=values,
    )
