"""Callbacks that read, and callbacks that do what they should not, each in a Dag of its own."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Literal

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, BaseHook, Variable
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import TriggerDagRun
from callback_recorder import note
from pydantic import BaseModel
from started_by_trigger import StartedByTrigger


def reads(context):
    return {
        "variable": Variable.get("colour"),
        "connection": BaseHook.get_connection("service").host,
        # Airflow hands on what a trigger pushes as JSON's text.
        "xcom": context["ti"].xcom_pull(task_ids="pushes", key="weight"),
    }


def pushes_an_xcom(context):
    context["ti"].xcom_push(key="weight", value=1)


def triggers_a_dag_run(context):
    task_runner.SUPERVISOR_COMMS.send(TriggerDagRun(dag_id="raises", run_id="from a callback"))


class Nonsense(BaseModel):
    words: str = "of no language"
    type: Literal["Nonsense"] = "Nonsense"


def says_nonsense(context):
    task_runner.SUPERVISOR_COMMS.send(Nonsense())


def sleeps(context):
    time.sleep(3600)


def sleeps_deaf(context):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(3600)


def raises(context):
    raise ValueError(f"no entry with {Variable.get('door_password')}")


def exits(context):
    sys.exit(3)


def exits_at_once(context):
    os._exit(4)


def kills_itself(context):
    os.kill(os.getpid(), signal.SIGKILL)


def is_killed(context):
    note("waits", name="is_killed")
    time.sleep(3600)


def floods(context):
    for number in range(40_000):
        print("drip", number)  # noqa: T201
    return "done"


def returns_an_object(context):
    return Path


for callback in (
    pushes_an_xcom,
    triggers_a_dag_run,
    says_nonsense,
    sleeps,
    sleeps_deaf,
    raises,
    exits,
    exits_at_once,
    kills_itself,
    is_killed,
    floods,
    returns_an_object,
):
    with DAG(callback.__name__, schedule=None, on_success_callback=callback):
        EmptyOperator(task_id="empty")

with DAG("reads", schedule=None, on_success_callback=reads):
    StartedByTrigger(task_id="pushes", outcome="success", xcoms={"weight": 42})
