"""Airflow's rows: what a version has, and what it forgets to write."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import attrs
from airflow.models.callback import Callback
from airflow.models.dag_version import DagVersion
from airflow.models.dagrun import DagRun
from airflow.models.deadline import Deadline
from airflow.models.taskinstance import TaskInstance
from sqlalchemy import Connection, Select, bindparam, null, select, update

from callback_priority.compat.targets import series
from callback_priority.errors import TransactionLostError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = [
    "RunOfCallback",
    "events_say_what_runs",
    "forgets_data",
    "is_missed_already",
    "keep_data",
    "selection_order",
    "with_version_data",
]

_RUN: Final = DagRun.__table__
_VERSION: Final = DagVersion.__table__


@attrs.frozen
class _Dag:
    """What a workload takes of Airflow's ``DagModel``."""

    bundle_name: str | None
    relative_fileloc: str | None


@attrs.frozen
class _Version:
    """What a workload takes of Airflow's ``DagVersion``."""

    version_data: Any


class RunOfCallback:
    """What a callback's workload takes of Airflow's ``DagRun``, without the cost of loading one.

    Args:
        dag_id: The Dag.
        run_id: The run.
        bundle_version: The version of its bundle that the run is pinned to.
        bundle_name: Its bundle.
        relative_fileloc: The Dag's file in the bundle.
        version_data: The bundle's own description of the version that the run was made with.
    """

    __slots__ = ("bundle_version", "created_dag_version", "dag_id", "dag_model", "run_id")

    def __init__(
        self,
        *,
        dag_id: str,
        run_id: str,
        bundle_version: str | None,
        bundle_name: str | None,
        relative_fileloc: str | None,
        version_data: Any = None,
    ) -> None:
        self.dag_id = dag_id
        self.run_id = run_id
        self.bundle_version = bundle_version
        self.dag_model = _Dag(bundle_name, relative_fileloc)
        self.created_dag_version = _Version(version_data)


def with_version_data(query: Select[Any]) -> Select[Any]:
    """A query over Dag runs with a column ``version_data`` more; it is empty where workloads do not carry it."""
    if series() in {"3.2", "3.3"}:
        return query.add_columns(null().label("version_data"))
    return query.add_columns(_VERSION.c.version_data.label("version_data")).outerjoin(
        _VERSION, _VERSION.c.id == _RUN.c.created_dag_version_id
    )


def selection_order() -> tuple[Any, ...]:
    """In which order Airflow's selection looks at waiting task instances."""
    return (-TaskInstance.priority_weight, DagRun.logical_date, TaskInstance.map_index)


def is_missed_already(deadline: Any, session: Session) -> bool:
    """Whether another scheduler has handled a missed deadline that this one is about to handle.

    Airflow 3.2 reads the deadlines without a lock, so each scheduler may find the same ones. Its row is locked here
    and looked at again. Later versions lock what they read: nothing is done there.
    """
    if series() != "3.2":
        return False
    still: Any = select(Deadline.id).where(Deadline.id == deadline.id, ~Deadline.missed)
    # The session has written nothing of this deadline yet, and must not be made to write others' for this.
    with session.no_autoflush:
        return session.scalar(still.with_for_update(of=Deadline)) is None


def events_say_what_runs() -> bool:
    """Whether a callback runs, to Airflow, once its executor says so.

    From Airflow 3.4 on the worker's own first call to the API server says it, and is refused if the row is not queued
    any more: nobody else may set it to running.
    """
    return series() in {"3.2", "3.3"}


def forgets_data() -> bool:
    """Whether Airflow leaves unwritten what it adds to the data of a missed deadline's callback.

    Airflow 3.2 changes the data in place, which its session does not notice: the row becomes pending without its Dag
    run and its context, and whoever reads it in another loop or process finds neither.
    """
    return series() == "3.2"


def keep_data(connection: Connection, missed: Iterable[tuple[UUID, object, int]]) -> None:
    """Write the data that callbacks of missed deadlines were given, where Airflow forgets to.

    Args:
        connection: The transaction in which the deadlines were found missed.
        missed: Identifier, data and priority of each callback.

    Raises:
        TransactionLostError: It cannot be written. The deadlines have to be found missed once more: nobody else knows
            what the data was.
    """
    # Not by the mapped class: it takes such a statement for one of its own, and wants the key to be named `id`.
    table = Callback.__table__
    statement = update(table).where(table.c.id == bindparam("callback")).values(data=bindparam("kept"))
    try:
        connection.execute(statement, [{"callback": each[0], "kept": each[1]} for each in missed])
    except Exception as error:
        raise TransactionLostError("the data of callbacks of missed deadlines cannot be written") from error
