"""Celery as ``doctor`` meets it: which classes run there, and which workers live, if they say so in time."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs

from callback_priority.cli.surroundings import first_line
from callback_priority.core.classes import CALLBACK_CLASSES, Level, ServiceClass
from callback_priority.policy.settings import Settings

__all__ = [
    "ANSWER_SECONDS",
    "Answer",
    "Promise",
    "Worker",
    "ask",
    "classes_on_celery",
    "concurrency",
    "default_queue",
    "processes",
    "promises",
    "queue_of",
]

ANSWER_SECONDS: Final = 2.0
"""How long workers have to answer each question."""

_PROVIDER: Final = "airflow.providers.celery."
_GIVE_UP_SECONDS: Final = 3 * ANSWER_SECONDS
"""How long a broker that does not answer is waited for: two questions and the connection."""


@attrs.frozen(kw_only=True)
class Worker:
    """A worker that answers.

    Args:
        name: Celery's name for it.
        processes: How many tasks it runs at the same time; ``None`` if it does not say.
        queues: The queues that it listens to.
    """

    name: str
    processes: int | None
    queues: frozenset[str]


@attrs.frozen(kw_only=True)
class Answer:
    """What came of asking.

    Args:
        workers: Those that answered.
        why_not: Why nobody could be asked; empty if they could.
    """

    workers: tuple[Worker, ...] = ()
    why_not: str = ""


@attrs.frozen(kw_only=True)
class Promise:
    """Slots that are reserved for classes whose callbacks all go to one queue.

    Args:
        option: The option that reserves them.
        queue: The queue.
        classes: The classes.
        slots: How many, over all schedulers or pools.
    """

    option: str
    queue: str
    classes: tuple[ServiceClass, ...]
    slots: int


def ask() -> Answer:
    """Ask the workers of `airflow celery` for what they are; takes some seconds, and never much longer."""
    found: list[Answer] = []
    try:
        app = _app()
    except Exception as error:  # noqa: BLE001 - whatever is wrong with the provider or its configuration
        return Answer(why_not=_brief(error))

    def question() -> None:
        try:
            found.append(Answer(workers=_workers(app)))
        except Exception as error:  # noqa: BLE001 - brokers raise what they like
            found.append(Answer(why_not=_brief(error)))

    thread = threading.Thread(target=question, name="callback-priority-celery", daemon=True)
    thread.start()
    thread.join(_GIVE_UP_SECONDS)
    return found[0] if found else Answer(why_not=f"no answer within {_GIVE_UP_SECONDS:g} s")


def _app() -> Any:
    from airflow.providers.celery.executors.celery_executor import app

    return app


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _workers(app: Any) -> tuple[Worker, ...]:
    with app.connection_for_read() as connection:
        connection.ensure_connection(max_retries=1, timeout=ANSWER_SECONDS)
    inspect = app.control.inspect(timeout=ANSWER_SECONDS)
    stats: Mapping[str, Any] = inspect.stats() or {}
    queues: Mapping[str, Any] = (inspect.active_queues() or {}) if stats else {}
    return tuple(
        Worker(
            name=name,
            processes=_number(stats[name]),
            queues=frozenset(each["name"] for each in queues.get(name) or () if "name" in each),
        )
        for name in sorted(stats)
    )


def _number(stats: Any) -> int | None:
    number = (stats.get("pool") or {}).get("max-concurrency") if isinstance(stats, dict) else None
    return number if isinstance(number, int) else None


def classes_on_celery(settings: Settings) -> tuple[ServiceClass, ...]:
    """The callback classes whose executor is Celery's, or made from it."""
    from airflow.executors.executor_loader import ExecutorLoader

    found = [
        each for each in ExecutorLoader.get_executor_names(validate_teams=False) if each.team_name is None
    ]
    on_celery = {}
    for each in found:
        try:
            bases = ExecutorLoader.import_executor_cls(each)[0].__mro__
        except Exception:  # noqa: BLE001 - another check tells of it
            bases = ()
        celery = any(base.__module__.startswith(_PROVIDER) for base in bases)
        for name in (each.module_path.rpartition(".")[2], each.module_path, each.alias):
            on_celery[name] = celery
    default = found[0].module_path if found else None
    return tuple(
        each for each in CALLBACK_CLASSES if on_celery.get(settings.callback_executor.get(each, default))
    )


def default_queue() -> str:
    """The queue of what names none."""
    from airflow.configuration import conf

    return str(conf.get("operators", "default_queue", fallback="default"))


def concurrency() -> int:
    """How many tasks one worker runs at the same time, if it is started without saying so."""
    from airflow.configuration import conf

    return int(conf.getint("celery", "worker_concurrency", fallback=16))


def queue_of(settings: Settings, service_class: ServiceClass, default: str) -> str:
    """The queue of a class."""
    return settings.callback_queue.get(service_class, default)


def promises(
    settings: Settings,
    classes: Sequence[ServiceClass],
    *,
    default: str,
    schedulers: int,
    pools: Sequence[str],
) -> list[Promise]:
    """What is reserved for callbacks, by queue.

    Args:
        settings: What is configured.
        classes: The classes that run on Celery.
        default: The queue of the classes that name none.
        schedulers: How many are alive; each has its own slots.
        pools: The pools that there are.
    """
    found = []
    for queue in sorted({queue_of(settings, each, default) for each in classes}):
        here = [each for each in classes if queue_of(settings, each, default) == queue]
        of_slots = {
            each: schedulers * settings.quota(Level.SCHEDULER, "", each).reserve_slots for each in here
        }
        of_pools = {
            each: sum(settings.quota(Level.POOL, pool, each).reserve_slots for pool in pools) for each in here
        }
        for option, reserved in (("slot_quotas", of_slots), ("pool_quotas", of_pools)):
            total = sum(reserved.values())
            if total:
                named = tuple(each for each in here if reserved[each])
                found.append(Promise(option=option, queue=queue, classes=named, slots=total))
    return found


def processes(workers: Sequence[Worker], queue: str, each: int) -> int:
    """How many callbacks of a queue can run at the same time.

    Args:
        workers: Those that live.
        queue: The queue.
        each: What a worker has that does not say.
    """
    return sum(
        each if worker.processes is None else worker.processes for worker in workers if queue in worker.queues
    )
