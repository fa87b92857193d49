"""A process in which Airflow is imported already, and from which components are forked in no time.

A scheduler's start costs seconds of a core, of which nearly all goes into imports; a hundred of them would leave
nothing for the load. What is forked runs `airflow.__main__.main` with its own arguments, environment, session and
log, as a process of its own. Its parent is this one; all of them die with the supervisor.

It reads a line of JSON for each component to start and answers with its process id.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import sys
import threading
from typing import Any

PRELOADED = (
    # The scheduler's.
    "airflow.__main__",
    "airflow.api_fastapi.auth.tokens",
    "airflow.callbacks.database_callback_sink",
    "airflow.cli.commands.scheduler_command",
    "airflow.dag_processing.bundles.local",
    "airflow.dag_processing.bundles.manager",
    "airflow.executors.local_executor",
    "airflow.jobs.scheduler_job_runner",
    "airflow.migrations.utils",
    "airflow.models.renderedtifields",
    "airflow.utils.serve_logs",
    "alembic.command",
    "asyncpg",
    "callback_priority.adapter.allocator",
    # A Celery worker's.
    "airflow.providers.celery.cli.celery_command",
    "airflow.providers.celery.executors.celery_executor",
    "celery.bin.celery",
    # What workers need for each task and each callback.
    "airflow.executors.workloads",
    "airflow.providers.smtp.notifications.smtp",
    "airflow.providers.standard.decorators.python",
    "airflow.providers.standard.operators.empty",
    "airflow.sdk.definitions.connection",
    "airflow.sdk.execution_time.callback_supervisor",
    "airflow.sdk.execution_time.supervisor",
    "airflow.sdk.execution_time.task_runner",
    "callback_priority.worker.supervisor",
)
_PR_SET_PDEATHSIG = 1


def preload() -> None:
    """Import what components are going to need, and have providers and commands known."""
    from airflow.cli.cli_parser import get_parser

    for name in PRELOADED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            print(f"{name} is not there: {error}", file=sys.stderr)
    get_parser()


def become(order: dict[str, Any]) -> None:
    """Turn this fork into a component; never returns."""
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(order["environment"])
    # `airflow celery worker` looks at what it was called with.
    sys.argv = ["airflow", *order["arguments"]]
    code = 1
    try:
        if order["fault_point"] is not None:
            from tests.chaos.fault_point import FaultPoint

            FaultPoint(**order["fault_point"]).install()
        from airflow.__main__ import main as airflow

        airflow()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - a process's last words
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    orders = os.fdopen(os.dup(0), "r")
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    preload()
    if threading.active_count() > 1:
        print("threads run; what is forked lacks them", file=sys.stderr)
    gc.freeze()
    # The system buries the dead.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    answers.write("ready\n")
    for line in orders:
        pid = os.fork()
        if pid == 0:
            orders.close()
            answers.close()
            become(json.loads(line))
        answers.write(f"{pid}\n")


if __name__ == "__main__":
    main()
