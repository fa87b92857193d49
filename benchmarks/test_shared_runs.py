"""How much faster callbacks of one Dag file are called when they share runs, in a real deployment.

LocalExecutor with as many slots as this machine has cores, PostgreSQL, one Dag file with 48 callbacks, which all
become due at once. The same callbacks one by one and in runs of eight, in turn, twice each; the rate is callbacks
over the time from the first grant to the last end.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.support.airflow_env import DatabaseTemplates
from tests.support.deployment import Deployment, deployed
from tests.support.postgres import PostgresServer

CALLBACKS = 48
SIZES = (1, 8)
ROUNDS = 2

_TIMES = """
    SELECT count(*) AS callbacks, count(u.ended_at) AS ended, min(i.granted_at) AS began, max(u.ended_at) AS finished,
           count(i.leader_id) AS companions
    FROM callback_priority_unit u
    JOIN callback_priority_request r ON r.id = u.request_id
    JOIN callback_priority_item i ON i.callback_id = u.callback_id
    WHERE r.run_id = :run_id
"""


@pytest.mark.timeout(900)
def test_sharing_runs_is_worth_it(
    tmp_path: Path, server: PostgresServer, templates: DatabaseTemplates, claim
) -> None:
    with contextlib.ExitStack() as stack:
        airflow = stack.enter_context(
            deployed(
                tmp_path / "airflow",
                databases=templates,
                postgres=server,
                dags=[Path(__file__).parent / "dags" / "crowd.py"],
                callback_priority={"mode": "active", "use_worker_callbacks": "dag"},
                options={"core": {"parallelism": 2}},
            )
        )
        airflow.start("api-server", "dag-processor")
        airflow.wait_for_dags("crowd")
        seconds = {size: min(_timed(airflow, size, number) for number in range(ROUNDS)) for size in SIZES}
    for size, taken in seconds.items():
        print(f"\nruns of {size}: {CALLBACKS / taken:.2f} callbacks per second")
    one, eight = (seconds[size] for size in SIZES)
    claim("48 callbacks of one Dag file, runs of eight / one by one", eight / one, 1 / 3)


def _timed(airflow: Deployment, size: int, number: int) -> float:
    run_id = f"size_{size}_{number}"
    airflow.configure("callback_priority", "callback_batch_size", size)
    airflow.start("scheduler")
    airflow.trigger("crowd", run_id)

    def ended() -> bool:
        [row] = airflow.rows(_TIMES, run_id=run_id)
        return row.callbacks == row.ended == CALLBACKS

    airflow.wait_until(ended, f"{CALLBACKS} callbacks in runs of {size}", 400)
    [row] = airflow.rows(_TIMES, run_id=run_id)
    assert (row.companions > 0) == (size > 1)
    airflow.stop("scheduler")
    return (row.finished - row.began).total_seconds()
