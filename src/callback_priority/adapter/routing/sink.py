"""Where Airflow sends requests for callbacks: its sink, with our router in front of it.

Schedulers and triggerers make the sink where they need it, so the method of its class is replaced. Sessions are
dealt with as Airflow does: one that is given is used and left open; without one, Airflow's session of this thread
is used, committed and closed.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from airflow.configuration import conf
from airflow.utils.session import NEW_SESSION, provide_session

from callback_priority import compat
from callback_priority.adapter.config import raw_section, settings
from callback_priority.policy.settings import Mode, WorkerCallbacks

if TYPE_CHECKING:
    from airflow.callbacks.callback_requests import CallbackRequest
    from airflow.callbacks.database_callback_sink import DatabaseCallbackSink
    from sqlalchemy.orm import Session

    from callback_priority.adapter.routing.router import Router

__all__ = ["install", "installed", "original", "router", "uninstall"]

log = logging.getLogger(__name__)

_ORIGINAL: Final = "callback_priority_original"


@cache
def router() -> Router | None:
    """What routes requests in this process; ``None`` if nothing does."""
    # Not at the top: it needs Airflow's models, which may be in the middle of being imported.
    from callback_priority.adapter.routing.router import Router  # noqa: PLC0415

    found = settings()
    return None if found is None else Router(found)


def _class() -> type[DatabaseCallbackSink]:
    from airflow.callbacks.database_callback_sink import DatabaseCallbackSink  # noqa: PLC0415

    return DatabaseCallbackSink


def installed() -> bool:
    """Whether requests come to our router first, in this process."""
    return hasattr(_class().send, _ORIGINAL)


def install() -> bool:
    """Have requests come to our router first, unless no callbacks are to leave the Dag processor. Idempotent.

    Returns:
        Whether they do.
    """
    if installed():
        return True
    raw = raw_section(conf)
    if raw.get("mode", Mode.OFF.value).strip().lower() == Mode.OFF.value:
        return False
    if (
        raw.get("use_worker_callbacks", WorkerCallbacks.NONE.value).strip().lower()
        == WorkerCallbacks.NONE.value
    ):
        return False
    if differences := compat.differences(compat.SINK_TARGETS):
        log.error("callbacks stay on the Dag processor: %s", "; ".join(differences))
        return False
    cls: Any = _class()
    cls.send = _routing(cls.__dict__["send"])
    return True


def original() -> Callable[..., None]:
    """Airflow's own way of sending, whatever stands in front of it."""
    send = _class().send
    return getattr(send, _ORIGINAL, send)


def uninstall() -> None:
    """Put Airflow's method back, and forget the settings."""
    cls: Any = _class()
    cls.send = original()
    settings.cache_clear()
    router.cache_clear()


def _routing(stock: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(stock)
    @provide_session
    def send(
        sink: DatabaseCallbackSink, callback: CallbackRequest, *, session: Session = NEW_SESSION
    ) -> None:
        try:
            routes = router()
        except Exception:
            log.exception("A request was not routed and goes to the Dag processor")
            routes = None
        if routes is None or not routes.route(callback, session).taken:
            stock(sink, callback, session=session)

    setattr(send, _ORIGINAL, stock)
    return send
