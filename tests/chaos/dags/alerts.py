"""A Dag that never runs: requests for its callbacks are sent as Airflow's scheduler sends them."""

from __future__ import annotations

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG
from callback_recorder import note

OF_TASK = 2
OF_DAG = 8


def of_task(kind: str, number: int):
    def call(context):
        ti = context["ti"]
        note("called", name=f"{kind}_{number}", run_id=context["run_id"], try_number=ti.try_number)

    call.__name__ = call.__qualname__ = f"{kind}_{number}"
    return call


def of_dag(kind: str, number: int):
    def call(context):
        note("called", name=f"{kind}_{number}", run_id=context["run_id"])

    call.__name__ = call.__qualname__ = f"{kind}_{number}"
    return call


with DAG(
    "alerts",
    schedule=None,
    on_failure_callback=[of_dag("dag_failure", number) for number in range(OF_DAG)],
    on_success_callback=[of_dag("dag_success", number) for number in range(OF_DAG)],
):
    EmptyOperator(
        task_id="fails",
        email=["someone@example.com"],
        on_failure_callback=[of_task("task_failure", number) for number in range(OF_TASK)],
        on_retry_callback=[of_task("task_retry", number) for number in range(OF_TASK)],
    )
