"""One triggerer at a time for each callback, on versions of Airflow where several take it from each other.

Airflow 3.2 and 3.3 assign the trigger of a task or an asset only while no living triggerer has it. For the trigger of
a callback that condition is missing: with two triggerers each takes all callbacks in each of its loops, so both begin
every one, and the one from which it was taken may drop it in the middle. Airflow 3.4 has the condition.

Where it is missing, the condition is added to Airflow's own statement as Airflow's own method executes it: before its
LIMIT counts, so that nothing hides what can be assigned, and with its order, its row locks, queues and teams. Nothing
else of the method is touched. Whether this fits is known by the method's fingerprint (`callback_priority.compat`).

What a dead triggerer had is assigned to another, as Airflow does for tasks. It may have begun, so on every version,
with ``mode = active``, it counts as a lost attempt (``callback_max_attempts``): a callback that kills its triggerers
does not get all of them, and with 1 none is begun twice. Where nothing of that can be written, callbacks are assigned
all the same, unless that could break the promise of at most once.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from airflow.configuration import conf
from sqlalchemy import Connection, or_, select, update

from callback_priority import compat
from callback_priority.adapter.config import raw_section
from callback_priority.adapter.config import settings as settings_of_process
from callback_priority.adapter.savepoints import savepoint
from callback_priority.policy.settings import Mode, Settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["assigned_once", "install", "installed", "lost_reason", "uninstall"]

log = logging.getLogger(__name__)

_ORIGINAL: Final = "callback_priority_original"


@functools.cache
def assigned_once() -> bool:
    """Whether this Airflow lets one triggerer at a time run a callback, where all triggerers have this library."""
    return not _unknown()


def _unknown() -> list[str]:
    """What keeps this Airflow from being known."""
    return compat.differences(compat.FIXED_TRIGGER_TARGETS if _has_condition() else compat.TRIGGER_TARGETS)


def _has_condition() -> bool:
    """Whether this is of Airflow's versions that have the condition."""
    return compat.carries(compat.FIXED_TRIGGER_TARGETS)


def _class() -> Any:
    from airflow.models.trigger import Trigger  # noqa: PLC0415 - it may be in the middle of being imported

    return Trigger


def installed() -> bool:
    """Whether Airflow's method is replaced in this process."""
    return hasattr(_class().get_sorted_triggers, _ORIGINAL)


def install() -> bool:
    """Add the condition where it is missing, and have lost attempts counted, unless the mode is off. Idempotent.

    Returns:
        Whether Airflow's method is replaced.
    """
    if installed():
        return True
    if raw_section(conf).get("mode", Mode.OFF.value).strip().lower() == Mode.OFF.value:
        return False
    if differences := _unknown():
        log.error("triggerers share callbacks as this Airflow has it: %s", "; ".join(differences))
        return False
    cls = _class()
    cls.get_sorted_triggers = classmethod(_exclusive(cls.__dict__["get_sorted_triggers"].__func__))
    return True


def uninstall() -> None:
    """Put Airflow's method back."""
    if installed():
        cls = _class()
        cls.get_sorted_triggers = classmethod(getattr(cls.get_sorted_triggers, _ORIGINAL))


def _exclusive(stock: Callable[..., Any]) -> Callable[..., Any]:
    lacks_condition = not _has_condition()

    @functools.wraps(stock)
    def get_sorted_triggers(
        cls: Any,
        capacity: int,
        alive_triggerer_ids: Any,
        queues: Any,
        session: Session,
        *more: Any,
        **named: Any,
    ) -> Sequence[Any]:
        first_amended: Any = _Amending(session, cls, alive_triggerer_ids, lacks_condition)
        found = stock(cls, capacity, alive_triggerer_ids, queues, first_amended, *more, **named)
        # The rows of callbacks are the longer ones. Airflow takes the first value of each row.
        lost = {row[2]: row[0] for row in found if len(row) > 1 and row[1] is not None}
        if not lost:
            return found  # type: ignore[no-any-return]
        withheld = {lost[callback_id] for callback_id in _withheld(session, lost)}
        return [row for row in found if row[0] not in withheld]

    setattr(get_sorted_triggers, _ORIGINAL, stock)
    return get_sorted_triggers


class _Amending:
    """A session whose first statement is the one that finds callbacks: the first of three in Airflow's method."""

    def __init__(self, session: Session, trigger: Any, alive: Any, lacks_condition: bool) -> None:
        self._session = session
        self._trigger = trigger
        self._alive = alive
        self._is_first = True
        self._lacks_condition = lacks_condition

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def execute(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        if self._is_first:
            self._is_first = False
            from airflow.models.callback import Callback  # noqa: PLC0415 - as in Airflow's method

            holder = self._trigger.triggerer_id
            if self._lacks_condition:
                statement = statement.where(or_(holder.is_(None), holder.not_in(self._alive)))
            statement = statement.add_columns(holder, Callback.id)
        return self._session.execute(statement, *args, **kwargs)


def lost_reason(failures: int) -> str:
    """Why a callback is failed that was lost so often."""
    return (
        f"the triggerer that had it ended, {failures} time(s): callback_max_attempts allows no more attempts"
    )


def _withheld(session: Session, ids: Collection[UUID]) -> Collection[UUID]:
    """Count what dead triggerers had as lost attempts; returns what must not be assigned again."""
    settings = None
    try:
        settings = settings_of_process()
        if settings is None or settings.mode is not Mode.ACTIVE:
            return ()
        connection = session.connection()
        with savepoint(connection, "callback_priority_lost"):
            return _count_lost(connection, ids, settings)
    except Exception:
        log.exception("%d callback(s) of triggerers that have ended could not be counted", len(ids))
        once = settings is not None and 1 in settings.callback_max_attempts.values()
        return ids if once else ()


def _count_lost(connection: Connection, ids: Collection[UUID], settings: Settings) -> Collection[UUID]:
    # Not at the top: most triggerers never need it.
    from airflow.models.callback import Callback  # noqa: PLC0415

    from callback_priority.adapter import callbacks, metrics  # noqa: PLC0415
    from callback_priority.persistence import triggered  # noqa: PLC0415
    from callback_priority.persistence.enqueueing import record_triggered  # noqa: PLC0415

    table = Callback.__table__
    counted = triggered.count_lost(connection, ids)
    # A deadline's callback has no item until there is something to remember of it.
    unknown = [each for each in ids if each not in counted]
    if unknown:
        rows = connection.execute(
            select(table.c.id, table.c.data, table.c.priority_weight).where(table.c.id.in_(unknown))
        )
        new = [callbacks.new_item(row.id, row.data, row.priority_weight, settings) for row in rows]
        record_triggered(connection, new, now=datetime.now(timezone.utc))
        counted |= triggered.count_lost(connection, unknown)
    exhausted = {
        callback_id: lost_reason(each.failures)
        for callback_id, each in counted.items()
        if not settings.tries_again(each.service_class, each.failures)
    }
    log.warning(
        "%d callback(s) had a triggerer that has ended: %d begin anew here, and %d are failed",
        len(ids),
        len(ids) - len(exhausted),
        len(exhausted),
    )
    if exhausted:
        # The scheduler closes the rest. It locks rows in another order, so nothing more is touched here.
        callbacks.fail(connection, exhausted)
        connection.execute(update(table).where(table.c.id.in_(exhausted)).values(trigger_id=None))
        metrics.count("callbacks_failed", len(exhausted))
    return exhausted
