"""Routed callbacks as they stand in the tables, and workers that say what they are told to say."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any

import attrs
import uuid6
from sqlalchemy import delete, select, update

from callback_priority.core.kinds import KINDS
from callback_priority.persistence import requests, units
from callback_priority.persistence.enqueueing import NewItem, enqueue
from callback_priority.persistence.tables import request_table, unit_table
from callback_priority.protocol import ENTRY
from tests.support.scheduler import START, Bench

__all__ = ["RoutedBench", "Workers", "read_units", "set_state", "withdrawn"]


def read_units() -> dict[uuid.UUID, Any]:
    """The rows of the units, by callback."""
    from airflow.utils.session import create_session

    with create_session() as session:
        return {row.callback_id: row for row in session.execute(select(unit_table))}


@attrs.define
class RoutedBench:
    """Writes routed callbacks with their requests, units and items."""

    bench: Bench = attrs.field(factory=Bench)

    def callbacks(
        self,
        count: int,
        *,
        dag_id: str = "alerts",
        kind: str = "task_failure",
        batch: str | None = "batch",
        pool: str = "default_pool",
        priority: int = 1,
        per_request: int = 1,
        data: dict[str, Any] | None = None,
        now: Any = START,
    ) -> list[uuid.UUID]:
        """Callables of requests about one Dag, as they are routed."""
        from airflow.callbacks.callback_requests import DagCallbackRequest
        from airflow.utils.session import create_session

        fields = {"path": ENTRY, "kind": kind, "kwargs": {}, **(data or {})}
        ids = self.bench.callbacks(count, dag_id=dag_id, data=fields, priority=priority)
        run_id, _, dag_run_id = self.bench.dags[dag_id]
        with create_session() as session:
            connection = session.connection()
            for at in range(0, count, per_request):
                request = requests.NewRequest(
                    id=uuid6.uuid7(),
                    dedupe_key=uuid.uuid4().hex,
                    kind=kind,
                    dag_id=dag_id,
                    run_id=run_id,
                    dag_run_id=dag_run_id,
                )
                mine = ids[at : at + per_request]
                assert requests.claim(connection, request, now=now)
                body = DagCallbackRequest(
                    filepath=f"{dag_id}.py",
                    bundle_name="dags-folder",
                    bundle_version=None,
                    dag_id=dag_id,
                    run_id=run_id,
                    msg=" ".join([request.dedupe_key, *map(str, mine)]),
                )
                requests.conclude(
                    connection,
                    request.id,
                    requests.Outcome.ROUTED,
                    units=len(mine),
                    body=body.to_json(),
                )
                requests.add_units(
                    connection,
                    [
                        requests.NewUnit(
                            callback_id=each,
                            request_id=request.id,
                            position=position,
                            name="module.function",
                            target=requests.Target.WORKER,
                            reference={},
                        )
                        for position, each in enumerate(mine)
                    ],
                )
            enqueue(
                connection,
                [
                    NewItem(
                        callback_id=each,
                        service_class=KINDS[kind].service_class,
                        kind=kind,
                        pool=pool,
                        dag_id=dag_id,
                        dag_run_id=dag_run_id,
                        priority=priority,
                        batch=batch,
                    )
                    for each in ids
                ],
                now=now,
                turn_length_us=10_000_000,
                aging_us=600_000_000,
            )
        return ids


@attrs.define
class Workers:
    """What the workers of an executor report before they end.

    Args:
        executor: A `LoopExecutor`; a callback's end there is the end of its worker.
        script: What one does: is handed itself, the callback that leads, and its companions; returns the
            state that the executor reports.
    """

    executor: Any
    script: Callable[[Workers, uuid.UUID, list[uuid.UUID]], str]
    runs: list[list[uuid.UUID]] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        from airflow.models.callback import CallbackKey

        whole = self.executor.report_end

        def report_end(key: Any, state: Any) -> None:
            if isinstance(key, CallbackKey):
                leader = uuid.UUID(key.id)
                riding = self._in_a_transaction(lambda conn: units.companions(conn, leader))
                self.runs.append([leader, *riding])
                state = self.script(self, leader, riding)
            whole(key, state)

        self.executor.report_end = report_end

    @staticmethod
    def _in_a_transaction(action: Callable[[Any], Any]) -> Any:
        from airflow.utils.session import create_session

        with create_session() as session:
            return action(session.connection())

    def claim(self, *ids: uuid.UUID, heartbeat_at: datetime | None = None) -> None:
        """Take callbacks; with a heartbeat, as a worker that goes on telling that it is there."""
        paths = dict.fromkeys(ids, "log")
        self._in_a_transaction(
            lambda conn: units.claim(conn, paths, worker="here:1", now=START, heartbeat_at=heartbeat_at)
        )

    def beat(self, *ids: uuid.UUID, at: datetime) -> None:
        """Tell that it is still there."""
        self._in_a_transaction(lambda conn: units.beat(conn, ids, claimed_at=START, now=at))

    def start(self, *ids: uuid.UUID) -> None:
        """Begin to call them."""
        for each in ids:
            assert self._in_a_transaction(lambda conn, each=each: units.mark_started(conn, each, START))

    def end(self, *ids: uuid.UUID, state: str = "success", output: str | None = None) -> None:
        """Report how they ended."""
        for each in ids:
            self._in_a_transaction(
                lambda conn, each=each: units.mark_ended(
                    conn, each, state=state, output=output, log=None, now=START
                )
            )

    def work(self, leader: uuid.UUID, riding: list[uuid.UUID]) -> str:
        """Do all that is asked, well."""
        self.claim(leader, *riding)
        self.start(leader, *riding)
        self.end(leader, *riding)
        return "success"


def withdrawn() -> dict[uuid.UUID, str | None]:
    """The callbacks whose requests the Dag processor has been given instead, each with the reason."""
    from airflow.models.callback import Callback, DagProcessorCallback
    from airflow.utils.session import create_session

    with create_session() as session:
        given = [each.get_callback_request().msg for each in session.scalars(select(DagProcessorCallback))]
        rows = session.execute(
            select(request_table.c.dedupe_key, request_table.c.reason).where(
                request_table.c.outcome == requests.Outcome.FALLBACK.value
            )
        )
        reasons = {row.dedupe_key: row.reason for row in rows}
        session.execute(delete(Callback.__table__).where(Callback.__table__.c.type == "dag_processor"))
    return {uuid.UUID(each): reasons[text.split()[0]] for text in given for each in text.split()[1:]}


def set_state(callback_id: uuid.UUID, state: str) -> None:
    """Write a callback's state by hand."""
    from airflow.models.callback import Callback
    from airflow.utils.session import create_session

    table = Callback.__table__
    with create_session() as session:
        session.execute(update(table).where(table.c.id == callback_id).values(state=state))
