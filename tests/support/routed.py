"""Routed callbacks as they stand in the tables, and workers that say what they are told to say."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import attrs
import uuid6
from sqlalchemy import delete, select, update

from callback_priority.core.kinds import KINDS
from callback_priority.persistence import items, requests, units
from callback_priority.persistence.tables import unit_table
from callback_priority.protocol import ENTRY
from tests.support.scheduler import START, Bench

__all__ = ["DagProcessor", "RoutedBench", "Workers", "read_units"]


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
                requests.conclude(connection, request.id, requests.Outcome.ROUTED, units=len(mine))
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
            items.enqueue(
                connection,
                [
                    items.NewItem(
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

        whole = self.executor.change_state

        def change_state(key: Any, state: Any, *args: Any, **kwargs: Any) -> None:
            if isinstance(key, CallbackKey):
                leader = uuid.UUID(key.id)
                riding = self._in_a_transaction(lambda conn: units.companions(conn, leader))
                self.runs.append([leader, *riding])
                state = self.script(self, leader, riding)
            whole(key, state, *args, **kwargs)

        self.executor.change_state = change_state

    @staticmethod
    def _in_a_transaction(action: Callable[[Any], Any]) -> Any:
        from airflow.utils.session import create_session

        with create_session() as session:
            return action(session.connection())

    def claim(self, *ids: uuid.UUID) -> None:
        """Take callbacks."""
        paths = dict.fromkeys(ids, "log")
        self._in_a_transaction(lambda conn: units.claim(conn, paths, worker="here:1", now=START))

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


@attrs.define
class DagProcessor:
    """Takes requests back, in the place of the routing."""

    withdrawn: dict[uuid.UUID, str] = attrs.field(factory=dict)

    def module(self) -> Any:
        """What stands for ``callback_priority.adapter.routing.fallback``."""
        return SimpleNamespace(withdraw=self.withdraw, reroute_triggered=lambda *_: 0)

    def withdraw(self, session: Any, request_id: uuid.UUID, reason: str) -> bool:
        """As the routing does, without writing Airflow's request."""
        from airflow.models.callback import Callback

        connection = session.connection()
        rows = connection.execute(select(unit_table).where(unit_table.c.request_id == request_id)).all()
        if any(row.started_at for row in rows):
            return False
        ids = [row.callback_id for row in rows]
        requests.remove_units(connection, request_id)
        connection.execute(delete(Callback.__table__).where(Callback.__table__.c.id.in_(ids)))
        self.withdrawn |= dict.fromkeys(ids, reason)
        return True


def set_state(callback_id: uuid.UUID, state: str) -> None:
    """Write a callback's state by hand."""
    from airflow.models.callback import Callback
    from airflow.utils.session import create_session

    table = Callback.__table__
    with create_session() as session:
        session.execute(update(table).where(table.c.id == callback_id).values(state=state))
