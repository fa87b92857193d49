"""Runs an asynchronous callback in the triggerer; Airflow's trigger for callbacks imports `run` and awaits it.

The triggerer has no bundle at hand, so only callables that an import reaches come here, and the Dag is not loaded.
The context has the keys that the Dag processor gives, made by the same code, for a stand-in of the Dag with a
stand-in of the one task. What differs from the Dag processor:

- ``dag`` and ``task`` carry their ids and nothing else; ``inlets`` and ``outlets`` are empty, so there is no
  ``asset_state_store``, and ``map_index_template`` is ``None``.
- ``params`` hold what the Dag run's configuration gives, and no defaults of the Dag or task.
- What the triggerer's own supervisor does not answer (``prev_start_date_success`` and its like, the task state
  store, slices of XComs) raises an error when it is used. Airflow would leave it waiting for ever.

Nothing that may be secret or large is in ``unit``: the trigger logs its arguments when a callback fails, but for
``context``.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any, Final, get_args

import wrapt

from callback_priority.errors import CallbackPriorityError
from callback_priority.worker.callables import import_path, result_of
from callback_priority.worker.output import describe_error, describe_result, masked

__all__ = ["CallbackFailedError", "NotAnsweredError", "run"]

log = logging.getLogger(__name__)


class CallbackFailedError(CallbackPriorityError, RuntimeError):
    """The callable raised; the message says what and where, with secrets masked."""


class NotAnsweredError(CallbackPriorityError, RuntimeError):
    """A callable asked for something that nobody answers in the triggerer."""


class _TimeUpError(Exception):
    """Not `TimeoutError`, which the callable itself may raise."""


async def run(*, unit: dict[str, Any], context: dict[str, Any]) -> str:
    """Call a callable, without holding up the event loop on our part.

    Args:
        unit: ``name`` and ``kind`` of the unit, its ``position``, and optionally its ``time_limit_seconds``.
        context: Its ``reference``, and the ``request_class`` and ``request`` as in a
            `callback_priority.protocol.UnitOrder`.

    Returns:
        What the callable returned, as text.

    Raises:
        ImportError: It cannot be imported here, and nothing of it has run: a worker can still run it.
        CallbackFailedError: It raised, or took longer than it may.
    """
    reference = context["reference"]
    try:
        target = await asyncio.to_thread(import_path, reference["path"])
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a module may raise anything when it is imported
        raise ImportError(describe_error(error)) from None
    _have_the_unanswered_refused()
    limit = unit.get("time_limit_seconds")
    answered = _asking.set(True)
    try:
        given = await asyncio.to_thread(_context, unit, context)
        with _time_limit(limit):
            result = _called(target, reference, given)
            if not inspect.isawaitable(result):
                raise TypeError(f"{reference['name']} gave {type(result).__name__}, which cannot be awaited")  # noqa: TRY301
            result = await result
    except _TimeUpError:
        raise CallbackFailedError(f"it was stopped after its time limit of {limit:g} seconds") from None
    except asyncio.CancelledError as error:
        if _is_cancelled():
            raise
        # Airflow would begin a trigger anew that ends like that, again and again.
        raise CallbackFailedError(describe_error(error)) from None
    except (Exception, SystemExit) as error:
        # An exit would end the triggerer, with all that runs in it, and then the next one.
        log.exception("The callback %s failed", masked(str(unit.get("name"))))
        raise CallbackFailedError(describe_error(error)) from None
    finally:
        _asking.reset(answered)
    return describe_result(result)


def _is_cancelled() -> bool:
    """Whether somebody cancelled the task that runs here; it cannot be told before Python 3.11, and is assumed."""
    task = asyncio.current_task()
    return task is None or not hasattr(task, "cancelling") or task.cancelling() > 0


def _called(target: Any, reference: Mapping[str, Any], context: Any) -> Any:
    kwargs = reference.get("kwargs")
    if kwargs is None:
        return target(context)
    return result_of(target, kwargs, context, to_await=True)


def _context(unit: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """The context that the Dag processor's own code makes for a Dag of which only the ids are known."""
    # Not at the top: they are slow to import, and this runs in a thread.
    from airflow.sdk.bases.operator import BaseOperator  # noqa: PLC0415
    from airflow.sdk.definitions.dag import DAG  # noqa: PLC0415

    from callback_priority.protocol import UnitOrder  # noqa: PLC0415
    from callback_priority.worker.context import context_of  # noqa: PLC0415

    request = given["request"]
    task_instance = request.get("ti") or (request.get("context_from_server") or {}).get("last_ti")
    stand_in: Any = [_never_called]
    dag_id = request.get("dag_id") or request["ti"]["dag_id"]
    dag = DAG(dag_id, schedule=None, on_success_callback=stand_in, on_failure_callback=stand_in)
    if task_instance:
        BaseOperator(
            task_id=task_instance["task_id"],
            dag=dag,
            on_failure_callback=stand_in,
            on_retry_callback=stand_in,
            on_success_callback=stand_in,
        )
    order = UnitOrder.model_construct(
        name=unit["name"], kind=unit["kind"], request_class=given["request_class"], request=request
    )
    bag: Any = SimpleNamespace(dags={dag_id: dag})
    return context_of(bag, order, _Quiet())


def _never_called(_context: Any) -> None:
    """Stands where a Dag's callables are: there must be some for Airflow to make a context."""


class _Quiet:
    """A log for Airflow's code that makes contexts: it tells of callbacks that it does not call."""

    def __getattr__(self, name: str) -> Any:
        return self._take

    @staticmethod
    def _take(*_args: Any, **_keys: Any) -> None:
        pass


@contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    """Cancel what is awaited in the block when the time is up, in the task that already runs.

    Not `asyncio.wait_for`: it makes a task of its own, in which Airflow's synchronous calls do not work.

    Raises:
        _TimeUpError: The time was up.
    """
    task = asyncio.current_task()
    if seconds is None or task is None:
        yield
        return
    expired = False

    def expire() -> None:
        nonlocal expired
        expired = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(seconds, expire)
    try:
        yield
    except asyncio.CancelledError:
        # Somebody else may have cancelled the task as well, which `uncancel` tells from 3.11 on.
        still_cancelled = task.uncancel() if expired and hasattr(task, "uncancel") else 0
        if expired and not still_cancelled:
            raise _TimeUpError from None
        raise
    finally:
        timer.cancel()


_TRIGGERER: Final = "airflow.jobs.triggerer_job_runner"

_asking: ContextVar[bool] = ContextVar("callback_priority_asking", default=False)
"""Whether what asks the triggerer's supervisor is a callable of ours, and not some other trigger."""


def _have_the_unanswered_refused() -> None:
    """Refuse at once what the triggerer's supervisor cannot decode: it would log it and never answer."""
    module = sys.modules.get(_TRIGGERER)
    decoder = getattr(module, "TriggerCommsDecoder", None)
    if decoder is None or isinstance(decoder.__dict__.get("asend"), wrapt.FunctionWrapper):
        return
    known = get_args(get_args(module.ToTriggerSupervisor)[0]) if module is not None else ()
    if not known:
        return

    @wrapt.decorator
    def refusing(wrapped: Any, _instance: Any, args: Any, kwargs: Any) -> Any:
        message = args[0] if args else kwargs.get("msg")
        if _asking.get() and not isinstance(message, known):
            raise NotAnsweredError(f"{type(message).__name__} is not answered in the triggerer")
        return wrapped(*args, **kwargs)

    decoder.asend = refusing(decoder.__dict__["asend"])
