"""An API server in the process of the test, rows for it, and a worker's calls to it, with real tokens."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any
from uuid import UUID

import attrs
import jwt
import uuid6
from sqlalchemy import insert, select, update

from callback_priority.core.classes import ServiceClass
from callback_priority.persistence import requests, units
from callback_priority.persistence.enqueueing import NewItem, enqueue
from callback_priority.persistence.requests import NewRequest, NewUnit, Outcome, Target
from callback_priority.persistence.tables import ItemState, item_table, unit_table
from callback_priority.protocol import ENTRY, PREFIX, PROTOCOL, Run
from tests.support.scheduler import START, Bench

__all__ = ["ME", "OTHER", "ROOT", "Server", "application", "claims_of", "fresh", "ours_in", "signed"]

ROOT = f"/execution{PREFIX}"
ME = {"protocol": PROTOCOL, "library": "0.1.0", "hostname": "worker-1", "pid": 7}
OTHER = {**ME, "hostname": "worker-2"}


@attrs.define
class Server:
    """An API server in this process, rows for it, and a worker's calls to it."""

    client: Any
    bench: Bench
    token_of: Mapping[UUID, str] = attrs.field(factory=dict)

    # -- rows

    def task_instance(self) -> UUID:
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session

        self.bench.tasks(1, dag_id="sales")
        with create_session() as session:
            return session.scalars(select(TaskInstance.id).order_by(TaskInstance.id.desc())).first()

    def routed(
        self,
        count: int = 1,
        *,
        leader: UUID | None = None,
        state: str = "queued",
        item_state: ItemState = ItemState.GRANTED,
        target: Target = Target.WORKER,
        request: Mapping[str, Any] | None = None,
        attempts: int = 1,
        failures: int = 0,
    ) -> list[UUID]:
        """Units of one request, as routing and a scheduler leave them."""
        from airflow.models.callback import Callback
        from airflow.utils.session import create_session

        body = {
            "type": "TaskCallbackRequest",
            "bundle_name": "dags-folder",
            "bundle_version": None,
            "filepath": "sales.py",
            **(request or {}),
        }
        now = datetime.now(timezone.utc)
        asked = NewRequest(
            id=uuid6.uuid7(),
            dedupe_key=uuid.uuid4().hex,
            kind="task_failure",
            dag_id="sales",
            run_id="run",
            dag_run_id=self.bench.dag("sales"),
        )
        ids = [uuid6.uuid7() for _ in range(count)]
        with create_session() as session:
            conn = session.connection()
            requests.claim(conn, asked, now=now)
            requests.conclude(conn, asked.id, Outcome.ROUTED, units=count, body=json.dumps(body))
            requests.add_units(
                conn,
                [
                    NewUnit(
                        callback_id=each,
                        request_id=asked.id,
                        position=position,
                        name=f"sales.tell_{position}",
                        target=target,
                        reference={"name": "sales.tell", "async": False},
                    )
                    for position, each in enumerate(ids)
                ],
            )
            waiting = [
                NewItem(
                    callback_id=each,
                    service_class=ServiceClass.TASK_CALLBACK,
                    kind="task_failure",
                    pool="default_pool",
                    dag_id="sales",
                )
                for each in ids
            ]
            enqueue(conn, waiting, now=now, turn_length_us=1, aging_us=1)
            conn.execute(
                update(item_table)
                .where(item_table.c.callback_id.in_(ids))
                .values(state=item_state.value, leader_id=leader, attempts=attempts, failures=failures)
            )
            conn.execute(
                insert(Callback.__table__),
                [
                    {
                        "id": each,
                        "type": "executor",
                        "fetch_method": "import_path",
                        "data": {"path": ENTRY, "kwargs": {}},
                        "state": state,
                        "priority_weight": 1,
                        "created_at": START,
                    }
                    for each in ids
                ],
            )
        return ids

    def deadline(
        self,
        state: str = "queued",
        item_state: ItemState | None = ItemState.GRANTED,
        *,
        attempts: int = 1,
    ) -> UUID:
        """A callback that Airflow's own code calls, as a scheduler leaves it; without an item, as a stock one does."""
        from airflow.utils.session import create_session

        (callback_id,) = self.bench.callbacks(1, state=state)
        if item_state is None:
            return callback_id
        item = NewItem(
            callback_id=callback_id,
            service_class=ServiceClass.DEADLINE,
            kind="deadline",
            pool="default_pool",
            dag_id="sales",
        )
        with create_session() as session:
            conn = session.connection()
            enqueue(conn, [item], now=datetime.now(timezone.utc), turn_length_us=1, aging_us=1)
            conn.execute(
                update(item_table)
                .where(item_table.c.callback_id == callback_id)
                .values(state=item_state.value, attempts=attempts)
            )
        return callback_id

    def change(self, table: Any, key: Any, value: UUID, **values: Any) -> None:
        from airflow.utils.session import create_session

        with create_session() as session:
            session.execute(update(table).where(key == value).values(**values))

    def set_state(self, callback_id: UUID, state: str) -> None:
        from airflow.models.callback import Callback

        table = Callback.__table__
        self.change(table, table.c.id, callback_id, state=state)

    def callback(self, callback_id: UUID) -> tuple[str, str | None]:
        from airflow.models.callback import Callback
        from airflow.utils.session import create_session

        with create_session() as session:
            row = session.execute(
                select(Callback.state, Callback.output).where(Callback.id == callback_id)
            ).one()
            return row.state, row.output

    def unit(self, callback_id: UUID) -> Any:
        """Its row; ``None`` if it has none."""
        from airflow.utils.session import create_session

        with create_session() as session:
            statement = select(unit_table).where(unit_table.c.callback_id == callback_id)
            return session.execute(statement).one_or_none()

    def take_back(self, callback_id: UUID, *, state: str = "pending") -> None:
        """What a scheduler does with a callback whose attempt it takes for lost."""
        from airflow.utils.session import create_session

        with create_session() as session:
            units.release(session.connection(), [callback_id], even_started=True)
        self.set_state(callback_id, state)
        self.change(item_table, item_table.c.callback_id, callback_id, state=ItemState.WAITING.value)

    def grant(self, callback_id: UUID, *, failures: int | None = None) -> None:
        """What a scheduler does when it grants a callback again."""
        self.set_state(callback_id, "queued")
        counted = {} if failures is None else {"failures": failures}
        self.change(
            item_table,
            item_table.c.callback_id,
            callback_id,
            state=ItemState.GRANTED.value,
            attempts=item_table.c.attempts + 1,
            **counted,
        )

    # -- calls

    def call(self, method: str, path: str, token: str | None, body: Any = None, **headers: str) -> Any:
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return self.client.request(method, path, json=body, headers=headers)

    def start(self, leader: UUID, asked: Mapping[str, Any] = ME, token: str | None = None) -> Any:
        return self.call("POST", f"{ROOT}/callbacks/{leader}/start", token or signed(leader), dict(asked))

    def started(self, leader: UUID, asked: Mapping[str, Any] = ME) -> tuple[Run, str]:
        answer = self.start(leader, asked)
        assert answer.status_code == 200, answer.text
        return Run.model_validate_json(answer.content), answer.headers["Refreshed-API-Token"]

    def attempt(self, callback_id: UUID, asked: Mapping[str, Any] = ME, token: str | None = None) -> Any:
        body = {"heartbeats": True, **asked, "path": "mail.late", "log_path": "executor_callbacks/d/r/1"}
        return self.call(
            "POST", f"{ROOT}/callbacks/{callback_id}/attempt", token or signed(callback_id), body
        )

    def attempted(self, callback_id: UUID, asked: Mapping[str, Any] = ME) -> str:
        """Claim it, and the token for that."""
        answer = self.attempt(callback_id, asked)
        assert (answer.status_code, answer.json()) == (200, {"ours": True}), answer.text
        token: str = answer.headers["Refreshed-API-Token"]
        return token

    def beat(self, leader: UUID, token: str | None, *also: UUID) -> Any:
        body = {"units": [str(each) for each in also or (leader,)]}
        return self.call("POST", f"{ROOT}/callbacks/{leader}/heartbeat", token, body)

    def running(self, leader: UUID, unit: UUID, token: str | None) -> Any:
        return self.call("POST", f"{ROOT}/callbacks/{leader}/units/{unit}/running", token)

    def ended(
        self,
        leader: UUID,
        unit: UUID,
        token: str | None,
        state: str = "success",
        *,
        output: str | None = None,
        log: str | None = None,
    ) -> Any:
        body = {"state": state, "output": output, "log": log}
        return self.call("POST", f"{ROOT}/callbacks/{leader}/units/{unit}/ended", token, body)


def signed(subject: UUID, scope: str = "workload", **more: Any) -> str:
    """A token as Airflow signs it: a workload's as the scheduler makes it, a task's as its start does."""
    from airflow.api_fastapi.execution_api.app import _jwt_generator

    return _jwt_generator().generate(extras={"sub": str(subject), "scope": scope, **more})


def claims_of(token: str) -> dict[str, Any]:
    return jwt.decode(token, options={"verify_signature": False})


def application() -> Any:
    from airflow.api_fastapi.app import create_app

    return create_app(apps="execution")


@contextmanager
def fresh() -> Iterator[None]:
    """Without our calls to begin with, even where importing Airflow's routes installs them, and as it was after."""
    import airflow.api_fastapi.execution_api.routes  # noqa: F401

    from callback_priority.adapter import config, execution_api

    before = execution_api.installed()
    execution_api.uninstall()
    try:
        yield
    finally:
        config.settings.cache_clear()
        execution_api.uninstall()
        if before:
            execution_api.install()


def ours_in() -> Any:
    """An application with our calls; making one takes seconds, and it is of no database until it is asked."""
    from callback_priority.adapter import execution_api

    execution_api.install()
    try:
        return application()
    finally:
        execution_api.uninstall()
