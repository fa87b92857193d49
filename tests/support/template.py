"""A process in which Airflow is imported already, and from which components are forked in no time; see `forks`.

What is forked runs `airflow.__main__.main` with its own arguments, environment, session and log, as a process of its
own. Its parent is this one; all of them die with the tests.

It reads orders, a line of JSON each, and answers each with a line: to one to start a component, for which it imports
first what such components need, with its process id; to ``{"poll": PID}`` with its status, or ``null`` while it runs;
to ``{"terminate": PID}`` with ``null``.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import threading
from typing import Any

from tests.support.servers import die_with_parent

_JOBS = (
    "airflow.api_fastapi.auth.tokens",
    "airflow.dag_processing.bundles.local",
    "airflow.dag_processing.bundles.manager",
    "airflow.migrations.utils",
    "airflow.models.renderedtifields",
    "airflow.utils.serve_logs",
    "alembic.command",
    "asyncpg",
)
_WORKERS = (
    "airflow.executors.workloads",
    "airflow.providers.smtp.notifications.smtp",
    "airflow.providers.standard.decorators.python",
    "airflow.providers.standard.operators.bash",
    "airflow.providers.standard.operators.empty",
    "airflow.sdk.definitions.connection",
    "airflow.sdk.execution_time.callback_supervisor",
    "airflow.sdk.execution_time.supervisor",
    "airflow.sdk.execution_time.task_runner",
    "callback_priority.worker.supervisor",
)
PRELOADED = {
    "api-server": (
        "airflow.api_fastapi.app",
        "airflow.api_fastapi.execution_api.app",
        "airflow.cli.commands.api_server_command",
        "asyncpg",
    ),
    "celery": (
        *_WORKERS,
        "airflow.providers.celery.cli.celery_command",
        "airflow.providers.celery.executors.celery_executor",
        "celery.bin.celery",
    ),
    "dag-processor": (
        *_JOBS,
        *_WORKERS,
        "airflow.cli.commands.dag_processor_command",
        "airflow.jobs.dag_processor_job_runner",
    ),
    "scheduler": (
        *_JOBS,
        *_WORKERS,
        "airflow.callbacks.database_callback_sink",
        "airflow.cli.commands.scheduler_command",
        "airflow.executors.local_executor",
        "airflow.jobs.scheduler_job_runner",
        "callback_priority.adapter.allocator",
    ),
    "triggerer": (
        *_JOBS,
        "airflow.cli.commands.triggerer_command",
        "airflow.jobs.triggerer_job_runner",
    ),
}
"""What a component imports, and what those below it do for each task, callback and file."""


def preload(command: str) -> None:
    """Import what such a component is going to need."""
    for name in PRELOADED.get(command, ()):
        try:
            importlib.import_module(name)
        except ImportError as error:
            sys.stderr.write(f"{name} is not there: {error}\n")
    if threading.active_count() > 1:
        sys.stderr.write("threads run; what is forked lacks them\n")
    gc.freeze()


def become(order: dict[str, Any]) -> None:
    """Turn this fork into a component; never returns."""
    os.setsid()
    die_with_parent(signal.SIGKILL)()
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


def status(pid: int) -> int | None:
    """How it ended, negative for a signal; ``None`` while it runs."""
    ended, code = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(code) if ended else None


def main() -> None:
    orders = os.fdopen(os.dup(0), "r")
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import airflow.__main__  # noqa: F401 - for the forks
    from airflow.cli.cli_parser import get_parser

    get_parser()
    answers.write("ready\n")
    for line in orders:
        order = json.loads(line)
        answer: int | None = None
        if "poll" in order:
            answer = status(order["poll"])
        elif "terminate" in order:
            os.kill(order["terminate"], signal.SIGTERM)
        else:
            preload(order["arguments"][0])
            answer = os.fork()
            if answer == 0:
                orders.close()
                answers.close()
                become(order)
        answers.write(f"{json.dumps(answer)}\n")


if __name__ == "__main__":
    main()
