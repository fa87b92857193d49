"""Checks of what is running: schedulers and their slots, and callbacks that somebody should look after."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy import Connection

from callback_priority.cli.findings import RESTART, Finding, Status, Wanted
from callback_priority.cli.surroundings import living_since, parallelism
from callback_priority.cli.text import count, duration
from callback_priority.core.units import MICROSECONDS
from callback_priority.persistence import deployment
from callback_priority.persistence.flows import read_flows
from callback_priority.persistence.status import backlog
from callback_priority.policy.settings import Mode

__all__ = [
    "activity",
    "dead_schedulers",
    "parked",
    "schedulers",
    "slots",
    "strays",
]

QUIET_SECONDS: Final = 120
"""A scheduler that hands out nothing for so long while callbacks wait is worth a look."""


def slots(alive: int | None) -> Finding:
    """How many slots there are."""
    each = parallelism()
    values = {"parallelism": each, "schedulers": alive}
    total = f", {each * alive} in all" if alive else ""
    return Finding(check="slots", status=Status.OK, found=f"{each} for each scheduler{total}", values=values)


def schedulers(alive: list[deployment.Scheduler], now: datetime) -> Finding:
    """Which schedulers are alive."""
    if not alive:
        return Finding(
            check="schedulers",
            status=Status.WARN,
            found="none is alive",
            remedy="start one: `airflow scheduler`",
            values={"schedulers": []},
        )
    return Finding(
        check="schedulers",
        status=Status.OK,
        found=count(len(alive), "is alive", "are alive"),
        details=tuple(
            f"job {each.job_id} on {each.hostname}, "
            f"heartbeat {duration((now - each.latest_heartbeat).total_seconds())} ago"
            for each in alive
        ),
        values={"schedulers": [{"job_id": each.job_id, "hostname": each.hostname} for each in alive]},
    )


def activity(connection: Connection, now: datetime) -> Finding:
    """The only trace, outside of a scheduler's process, of a hook that has stepped aside."""
    latest_us = max((flow.recent_at for flow in read_flows(connection).values()), default=0)
    waits_since = min(
        (each.oldest_enqueued_at for each in backlog(connection) if each.oldest_enqueued_at), default=now
    )
    idle = now.timestamp() - latest_us / MICROSECONDS if latest_us else None
    waited = (now - waits_since).total_seconds()
    values = {"last_seconds_ago": idle, "oldest_wait_seconds": waited}
    found = "nothing was ever granted" if idle is None else f"slot-time last recorded {duration(idle)} ago"
    if waited > QUIET_SECONDS and (idle is None or idle > QUIET_SECONDS):
        return Finding(
            check="activity",
            status=Status.WARN,
            found=f"{found}, though a callback has waited for {duration(waited)}",
            remedy="see in `callback-priority status` whether every slot is held by long work; if not, look for "
            "callback-priority in the schedulers' logs",
            values=values,
        )
    return Finding(check="activity", status=Status.OK, found=found, values=values)


def dead_schedulers(connection: Connection, now: datetime) -> Finding:
    """What schedulers that are not alive left behind."""
    granted = deployment.granted_by_the_dead(connection, living_since=living_since(now))
    if not granted:
        return Finding(check="dead schedulers", status=Status.OK, found="none left callbacks behind")
    total = sum(granted.values())
    return Finding(
        check="dead schedulers",
        status=Status.WARN,
        found=f"{count(total, 'granted callback')} belong{'s' * (total == 1)} to schedulers that are not alive",
        details=tuple(
            f"{count(items, 'callback')} of {'no scheduler' if job is None else f'job {job}'}"
            for job, items in granted.items()
        ),
        remedy="they hold no slots; a sweep closes each when its callback ends or is set back to pending",
        values={"callbacks": {str(job): items for job, items in granted.items()}},
    )


def parked(connection: Connection) -> Finding:
    """What is set aside, and why."""
    reasons = deployment.parked_reasons(connection)
    if not reasons:
        return Finding(check="parked", status=Status.OK, found="no callback is set aside")
    return Finding(
        check="parked",
        status=Status.WARN,
        found=f"{count(sum(reasons.values()), 'callback is', 'callbacks are')} set aside until what "
        "they lack comes back",
        details=tuple(f"{items:,}: {reason}" for reason, items in reasons.items()),
        remedy="bring back what is named; after `executor_time_to_live_seconds` they fail",
        values={"reasons": reasons},
    )


def strays(connection: Connection, wanted: Wanted, now: datetime, alive: bool) -> Finding:
    """What is pending and unknown to the library."""
    strays = deployment.pending_without_item(connection)
    values = {"callbacks": strays.count}
    if strays.count == 0 or strays.oldest_created_at is None:
        return Finding(
            check="strays", status=Status.OK, found="every pending callback is in the queue", values=values
        )
    age = (now - strays.oldest_created_at).total_seconds()
    found = f"{count(strays.count, 'pending callback')} not in the queue, the oldest made {duration(age)} ago"
    if wanted.mode is Mode.OFF:
        return Finding(
            check="strays",
            status=Status.OK,
            found=f"{found}; Airflow takes them while mode is off",
            values=values,
        )
    due = age > 2 * wanted.sweep_seconds
    return Finding(
        check="strays",
        status=Status.WARN if due else Status.OK,
        found=found,
        remedy=""
        if not due
        else f"{RESTART}: those that run came up without the hook"
        if alive
        else "start a scheduler: its sweep at start finds them",
        values=values,
    )
