"""The last line: whatever fails of ours where Airflow calls us, Airflow gets what its own method would have given.

The parts of this library catch their own failures, where they know what to undo. What they miss ends here, before it
reaches Airflow: a bug of ours in a line that nobody suspected must not end a scheduler. Airflow's own errors pass:
they are told from ours by having come out of Airflow's method.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from airflow.utils.sqlalchemy import is_lock_not_available_error
from sqlalchemy.exc import OperationalError

from callback_priority.adapter import metrics

__all__ = ["ALLOCATOR", "guarded"]

log = logging.getLogger(__name__)

ALLOCATOR: Final = "_callback_priority"
"""Where a scheduler keeps its allocator."""

_told: set[str] = set()


class _Watched:
    """Airflow's method, and what came of calling it."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self.original = original
        self.answers: list[Any] = []
        self.error: BaseException | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            answer = self.original(*args, **kwargs)
        except BaseException as error:
            self.error = error
            raise
        self.answers.append(answer)
        return answer

    def outcome(self, *args: Any, **kwargs: Any) -> Any:
        """What it gave; it is called now if it was not before.

        Raises:
            BaseException: What it raised, if it did.
        """
        if self.error is not None:
            raise self.error
        if not self.answers:
            return self.original(*args, **kwargs)
        return self.answers[-1]


def guarded(name: str, function: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """Put a function of ours in the place of a method of Airflow's.

    Args:
        name: The method's name.
        function: What takes its place; is handed Airflow's method first.
        original: Airflow's method.
    """
    recover: Callable[..., Any] = _RECOVERIES.get(name, _whatever_airflow_gave)

    @functools.wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        watched: _Watched | None = None
        try:
            watched = _Watched(original)
            return function(watched, *args, **kwargs)
        except Exception as error:
            if watched is None:
                return original(*args, **kwargs)
            if _is_busy(error) if recover is _select_afresh else error is watched.error:
                raise
            _tell(name, error, args)
            return recover(watched, error, *args, **kwargs)

    return method


def _is_busy(error: Exception) -> bool:
    """Whether another scheduler has the lock of the critical section, or of a row: Airflow knows how to take it."""
    return isinstance(error, OperationalError) and is_lock_not_available_error(error)


def _tell(name: str, error: Exception, args: tuple[Any, ...]) -> None:
    """Log and count a failure; whatever its turn left behind is for a sweep."""
    try:
        allocator = vars(args[0]).get(ALLOCATOR)
        if allocator is not None:
            allocator.turn = None
            allocator.upkeep.sweep_soon()
            allocator._failed(name, error)
            return
    except Exception:  # noqa: BLE001, S110 - what it should have told is told here
        pass
    try:
        if name not in _told:
            _told.add(name)
            log.error("callback-priority failed (%s); Airflow's own code goes on", name, exc_info=error)
        metrics.count("failures")
    except Exception:  # noqa: BLE001, S110 - there is nobody left to tell
        pass


def _whatever_airflow_gave(watched: _Watched, _error: Exception, *args: Any, **kwargs: Any) -> Any:
    return watched.outcome(*args, **kwargs)


def _asked_again(watched: _Watched, _error: Exception, *args: Any, **kwargs: Any) -> Any:
    """For a method that only looks, and may have been asked something else than Airflow wants to know."""
    return watched.original(*args, **kwargs)


def _select_afresh(
    watched: _Watched, _error: Exception, runner: Any, max_tis: int, session: Any, **_: Any
) -> Any:
    """Select as in Airflow, in a new transaction: this one may be broken, and what it holds is incomplete.

    Airflow enters the critical section with a new transaction, so nothing of its own is undone but its selection.
    """
    session.rollback()
    return watched.original(runner, max_tis, session=session)


def _leave_to_the_next_loop(
    watched: _Watched, error: Exception, runner: Any, *args: Any, **kwargs: Any
) -> Any:
    """Not to Airflow's own step, which would give callbacks away that are granted elsewhere."""
    allocator = vars(runner).get(ALLOCATOR)
    try:
        if allocator is not None and allocator.active and not allocator.aside:
            return None
    except Exception:  # noqa: BLE001 - it is at work as far as anybody knows
        return None
    return _whatever_airflow_gave(watched, error, runner, *args, **kwargs)


_RECOVERIES: Final[Mapping[str, Callable[..., Any]]] = {
    "_executable_task_instances_to_queued": _select_afresh,
    "_get_workloads_to_schedule": _asked_again,
    "_enqueue_executor_callbacks": _leave_to_the_next_loop,
}
"""What is done for each method; for any other Airflow gets what its own one gave."""
