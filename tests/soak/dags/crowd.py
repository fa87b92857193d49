"""A Dag of many tasks that nobody runs, and one whose callbacks are asked for."""

from __future__ import annotations

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, BaseOperator

SIZE = 25
OF_TASK = 2


def nothing(context):
    """Never called: there are no processes."""


class Work(BaseOperator):
    """Takes a slot."""

    def execute(self, context):
        """Never called."""


with DAG("crowd", schedule=None, max_active_runs=1000, max_active_tasks=10000):
    for number in range(SIZE):
        Work(task_id=f"work_{number}")

with DAG("alerts", schedule=None):
    EmptyOperator(task_id="fails", on_failure_callback=[nothing] * OF_TASK)
