"""What a routed callback's row names as the path to call.

Airflow's own callback supervisor imports this path and calls it. With this library at work it never comes to that:
`callback_priority.worker.hook` hands such a callback to `callback_priority.worker.supervisor` instead.
"""

from __future__ import annotations

from typing import Any, NoReturn

from callback_priority.errors import CallbackPriorityError

__all__ = ["NotAtWorkError", "run"]


class NotAtWorkError(CallbackPriorityError, RuntimeError):
    """A worker was handed a routed callback, but runs Airflow's own callback supervisor."""


def run(**_kwargs: Any) -> NoReturn:
    """Fail, saying what to do; nothing of the user's has run, so the Dag processor can still run the callback.

    Raises:
        NotAtWorkError: Always.
    """
    raise NotAtWorkError(
        "callback-priority is installed on this worker but did not take the callback over; the worker's log says why, "
        "in the line that begins with 'callback-priority'. Nothing of the callback has run."
    )
