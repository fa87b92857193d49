"""Adding our calls to Airflow's execution API, the one that workers talk to.

`install` waits until the module with the execution API's routes is imported and then adds ours to Airflow's
router (`callback_priority.adapter.execution_routes`). They become part of every version of the API and of every
application that Airflow makes of it: ``airflow api-server``, with or without ``--apps execution``, and the one
that the Dag processor and the triggerer run inside their own process, where nobody calls ours.

`install` looks at no setting but Airflow's version; `callback_priority.activation` decides whether it is called,
by ``mode`` alone. So after routing was taken back, workers still bring to an end what they were given before.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Final

import wrapt

from callback_priority import compat

__all__ = ["ROUTES_MODULE", "install", "installed", "uninstall"]

log = logging.getLogger(__name__)

ROUTES_MODULE: Final = "airflow.api_fastapi.execution_api.routes"

_awaited: set[str] = set()
_added: dict[int, list[Any]] = {}
"""What was added to which of Airflow's routers: one, unless somebody reloads its module."""


def install() -> None:
    """Add our calls as soon as Airflow's are there, which may be now. Idempotent, raises nothing."""
    try:
        if ROUTES_MODULE in sys.modules:
            _add(sys.modules[ROUTES_MODULE])
        elif ROUTES_MODULE not in _awaited:
            wrapt.register_post_import_hook(_add, ROUTES_MODULE)
            _awaited.add(ROUTES_MODULE)
    except Exception:
        log.exception("callback-priority could not add its calls to Airflow's execution API")


def installed() -> bool:
    """Whether Airflow's router has our calls; applications that were made of it before do not get them."""
    module = sys.modules.get(ROUTES_MODULE)
    return id(getattr(module, "execution_api_router", None)) in _added


def uninstall() -> None:
    """Take our calls out of Airflow's router again."""
    router = getattr(sys.modules.get(ROUTES_MODULE), "execution_api_router", None)
    ours = {id(route) for route in _added.pop(id(router), [])}
    if router is not None:
        router.routes[:] = [route for route in router.routes if id(route) not in ours]


def _add(module: Any) -> None:
    """Raises nothing: what fails in here would fail the import of Airflow's module."""
    try:
        if not compat.carries(compat.SINK_TARGETS):
            log.info(
                "callback-priority adds nothing to the execution API of Airflow %s", compat.airflow_version()
            )
            return
        router = module.execution_api_router
        if id(router) in _added:
            return
        # Not at the top: it imports FastAPI and Airflow's routes, which most processes never need.
        from callback_priority.adapter.execution_routes import include_in  # noqa: PLC0415

        before = {id(route) for route in router.routes}
        include_in(router)
        _added[id(router)] = [route for route in router.routes if id(route) not in before]
    except Exception:
        log.exception(
            "callback-priority could not add its calls to Airflow's execution API; "
            "callbacks that were given to workers fail there"
        )
