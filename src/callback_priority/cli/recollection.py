"""What a metadata database remembers of a stretch of time, as the simulation takes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from typing import Final

import attrs
from sqlalchemy import Connection

from callback_priority.cli.text import count
from callback_priority.core.classes import SCHEDULER_SCOPE, FlowKey, Level, ServiceClass
from callback_priority.core.units import Milliweight
from callback_priority.persistence import history
from callback_priority.persistence.deployment import pool_slots
from callback_priority.persistence.tables import ItemState
from callback_priority.simulation.past import Past, SeenPass, Turn

__all__ = ["Recollection", "from_micros", "recollect", "to_micros"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND: Final = timedelta(microseconds=1)


@attrs.frozen(kw_only=True)
class Recollection:
    """What a database remembers.

    Args:
        past: Who waited and held slots.
        schedulers: The most schedulers that were there at once; nought if none left a record.
        weights: The weights by which slots were last shared, of the classes that had any.
        left_out: What is not in it and why, in sentences.
    """

    past: Past
    schedulers: int
    weights: dict[ServiceClass, Milliweight]
    left_out: tuple[str, ...]


def to_micros(at: datetime) -> int:
    """Microseconds since the epoch."""
    return (at - _EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """The moment that is so many microseconds from the epoch."""
    return _EPOCH + micros * _MICROSECOND


def recollect(conn: Connection, *, since: datetime, until: datetime) -> Recollection:
    """Read what happened between two moments, and for as long before; nothing is written.

    Args:
        conn: Connection to a metadata database.
        since: The beginning.
        until: The end.
    """
    known_from = since - (until - since)
    counts: Counter[str] = Counter()
    # Null comes first or last, as each database has it.
    without_date = 2 if conn.dialect.name == "postgresql" else 0
    turns = [
        _of_task(each, without_date, counts)
        for each in history.task_turns(conn, since=known_from, until=until)
    ]
    for callback in history.callback_turns(conn, since=known_from, until=until):
        turn = _of_callback(callback, counts)
        if turn is not None:
            turns.append(turn)
    counts["without item"] = history.callbacks_without_item(conn, since=since, until=until)
    jobs = history.scheduler_jobs(conn, since=since, until=until)
    # What was granted before the stretch is settled in it, so the journal is read from the first grant on.
    granted = [turn.granted for turn in turns if turn.granted is not None]
    journal_since = min([known_from, *(from_micros(each) for each in granted)])
    return Recollection(
        past=Past(
            since=to_micros(since),
            known_from=to_micros(known_from),
            until=to_micros(until),
            turns=turns,
            passes=[
                _seen(each) for each in history.journalled_passes(conn, since=journal_since, until=until)
            ],
            pools=pool_slots(conn),
        ),
        schedulers=_most_at_once(jobs),
        weights=history.weights(conn),
        left_out=tuple(_left_out(counts)),
    )


def _of_task(each: history.TaskTurn, without_date: int, counts: Counter[str]) -> Turn:
    if each.queued_at is not None and each.started_at is not None and each.started_at < each.queued_at:
        counts["resumed"] += 1
    date = each.logical_date
    return Turn(
        service_class=ServiceClass.TASK,
        dag=each.dag_id,
        pool=each.pool,
        width=max(1, each.pool_slots),
        priority=each.priority_weight,
        since=to_micros(each.scheduled_at),
        granted=None if each.queued_at is None else to_micros(each.queued_at),
        ended=None if each.ended_at is None else to_micros(each.ended_at),
        scheduler=each.job_id,
        order=(
            without_date if date is None else 1,
            0 if date is None else to_micros(date),
            each.map_index,
            each.dag_id,
            each.run_id,
        ),
    )


def _of_callback(each: history.CallbackTurn, counts: Counter[str]) -> Turn | None:
    if each.rides:
        counts["riding"] += 1
        return None
    if each.state is ItemState.TRIGGERED:
        counts["triggered"] += 1
        return None
    if each.granted_at is None and each.finished_at is not None:
        counts["never granted"] += 1
        return None
    holds = each.state in (ItemState.GRANTED, ItemState.DONE)
    return Turn(
        service_class=each.service_class,
        dag=each.dag_id,
        pool=each.pool,
        priority=each.priority,
        since=to_micros(each.enqueued_at),
        granted=to_micros(each.granted_at) if each.granted_at is not None and holds else None,
        ended=None if each.ended_at is None or not holds else to_micros(each.ended_at),
        released=None if each.finished_at is None else to_micros(each.finished_at),
        scheduler=each.job_id if holds else None,
        order=(each.callback_id.hex,),
        again=each.attempts > 1,
    )


def _seen(each: history.JournalledPass) -> SeenPass:
    holds = {}
    for cls in ServiceClass:
        movement = each.entry.movements.get(FlowKey(Level.SCHEDULER, SCHEDULER_SCOPE, cls))
        if movement is not None and movement.holds:
            holds[cls] = movement.holds
    return SeenPass(at=to_micros(each.at), scheduler=each.job_id, holds=holds)


def _most_at_once(jobs: Iterable[history.SchedulerJob]) -> int:
    changes = sorted(
        change for job in jobs for change in ((job.began_at, 1), (max(job.began_at, job.last_seen_at), -1))
    )
    most = there = 0
    for _, change in changes:
        there += change
        most = max(most, there)
    return most or int(bool(changes))


def _left_out(counts: Counter[str]) -> Iterable[str]:
    if number := counts["without item"]:
        yield (
            f"{count(number, 'callback')} of which this library kept no record {'is' if number == 1 else 'are'} left out, and so is the"
            " slot-time that they took: Airflow does not record when they waited and ran."
        )
    if number := counts["riding"]:
        yield f"{count(number, 'callback')} that ran in another's slot took none; they are left out."
    if number := counts["triggered"]:
        yield f"{count(number, 'callback')} of the triggerer took no slot; they are left out."
    if number := counts["never granted"]:
        yield (
            f"{count(number, 'callback')} that came to an end without a slot (expired, withdrawn or run elsewhere) are left out,"
            " though they may have waited."
        )
    if number := counts["resumed"]:
        yield (
            f"{count(number, 'task instance')} had been deferred or put off before: only the last turn of each has a record, the"
            " slots that they held before are missing."
        )
