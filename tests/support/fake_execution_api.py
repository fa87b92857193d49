"""A stand-in for the API server's execution API, as a transport of the task SDK's own client.

It holds one run and remembers what it is told, in order. Everything between the client and a callable is real:
the supervisor, the forked process, the Dag file, the requests over the socket.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import httpx

from callback_priority.core.kinds import KINDS
from callback_priority.protocol import PREFIX, PROTOCOL, Run, UnitOrder

__all__ = ["LOGICAL_DATE", "FakeExecutionApi", "dag_request", "email_request", "task_request", "unit_order"]

LOGICAL_DATE = "2026-01-02T03:04:05Z"
_BUNDLE = "lab"


def _dag_run(dag_id: str) -> dict[str, Any]:
    return {
        "dag_id": dag_id,
        "run_id": "r1",
        "logical_date": LOGICAL_DATE,
        "data_interval_start": LOGICAL_DATE,
        "data_interval_end": LOGICAL_DATE,
        "run_after": LOGICAL_DATE,
        "start_date": LOGICAL_DATE,
        "end_date": None,
        "clear_number": 0,
        "run_type": "manual",
        "state": "failed",
        "conf": {"city": "Ulm"},
        "partition_key": None,
        "consumed_asset_events": [],
    }


def _task_instance(dag_id: str, task_id: str) -> dict[str, Any]:
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{dag_id}.{task_id}")),
        "task_id": task_id,
        "dag_id": dag_id,
        "run_id": "r1",
        "try_number": 2,
        "map_index": -1,
        "dag_version_id": str(uuid.uuid5(uuid.NAMESPACE_OID, dag_id)),
        "hostname": "h",
        "pool_slots": 1,
        "queue": "default",
        "priority_weight": 1,
    }


def task_request(
    dag_id: str, task_id: str, *, callback_type: str | None = "failed", context: bool = True
) -> dict[str, Any]:
    """A ``TaskCallbackRequest`` as JSON, whole, as Airflow stores it."""
    from airflow.callbacks.callback_requests import TaskCallbackRequest

    body = {
        "filepath": "dag.py",
        "bundle_name": _BUNDLE,
        "bundle_version": None,
        "msg": "it was killed",
        "ti": _task_instance(dag_id, task_id),
        "task_callback_type": callback_type,
        "context_from_server": {"dag_run": _dag_run(dag_id), "max_tries": 3} if context else None,
    }
    return TaskCallbackRequest.model_validate(body).model_dump(mode="json")


def dag_request(
    dag_id: str, *, failure: bool = True, last_task: str | None = None, context: bool = True
) -> dict[str, Any]:
    """A ``DagCallbackRequest`` as JSON."""
    from airflow.callbacks.callback_requests import DagCallbackRequest

    last_ti = None if last_task is None else _task_instance(dag_id, last_task)
    body = {
        "filepath": "dag.py",
        "bundle_name": _BUNDLE,
        "bundle_version": None,
        "msg": "task_failure",
        "dag_id": dag_id,
        "run_id": "r1",
        "is_failure_callback": failure,
        "context_from_server": {"dag_run": _dag_run(dag_id), "last_ti": last_ti} if context else None,
    }
    return DagCallbackRequest.model_validate(body).model_dump(mode="json")


def email_request(dag_id: str, task_id: str, *, email_type: str = "failure") -> dict[str, Any]:
    """An ``EmailRequest`` as JSON."""
    from airflow.callbacks.callback_requests import EmailRequest

    body = {
        "filepath": "dag.py",
        "bundle_name": _BUNDLE,
        "bundle_version": None,
        "msg": "it was killed",
        "ti": _task_instance(dag_id, task_id),
        "email_type": email_type,
        "context_from_server": {"dag_run": _dag_run(dag_id), "max_tries": 3},
    }
    return EmailRequest.model_validate(body).model_dump(mode="json")


def unit_order(
    kind: str, name: str, request: Mapping[str, Any], *, position: int = 0, limit_seconds: float = 30.0
) -> UnitOrder:
    """An order for one callable; `name` is as in the Dag file, without its module."""
    assert kind in KINDS
    return UnitOrder(
        callback_id=uuid.uuid4(),
        kind=kind,
        position=position,
        name=f"dag.{name}" if name else "",
        reference={},
        request_class=str(request["type"]),
        request=dict(request),
        time_limit_seconds=limit_seconds,
        log_path=f"units/{name or kind}-{position}.log",
    )


@attrs.define(kw_only=True)
class FakeExecutionApi:
    """The server side of one run.

    Args:
        units: The run's units; the first is the one that the executor knows.
        load_limit_seconds: As in `Run`.
        log_limit_bytes: As in `Run`.
        answers: What else is answered, by method and path.

    Attributes:
        told: Each call about the run: what it was, and of which unit.
        ends: How units were said to have ended, by unit id.
        tokens: The token of each call, in order.
        refuse_running: Units that are not to run, with the status that says so.
        refuse_start: The status that refuses the run.
        ours: Whether a callback that Airflow's own code calls is the worker's.
        attempted: What was said of it.
        beats: The units that each heartbeat named.
    """

    units: Sequence[UnitOrder]
    load_limit_seconds: float = 30.0
    log_limit_bytes: int = 1_000_000
    protocol: int = PROTOCOL
    bundle_version: str | None = None
    filepath: str = "dag.py"
    answers: dict[tuple[str, str], Callable[[httpx.Request], httpx.Response]] = attrs.field(factory=dict)
    told: list[tuple[str, str]] = attrs.field(factory=list)
    ends: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    tokens: list[str] = attrs.field(factory=list)
    requests: list[tuple[str, str]] = attrs.field(factory=list)
    refuse_running: dict[uuid.UUID, int] = attrs.field(factory=dict)
    refuse_start: int | None = None
    ours: bool = True
    attempted: dict[str, Any] = attrs.field(factory=dict)
    beats: list[list[str]] = attrs.field(factory=list)

    @property
    def leader(self) -> uuid.UUID:
        return self.units[0].callback_id

    def client(self) -> Any:
        """The SDK's client, connected to this."""
        from airflow.sdk.api.client import Client

        return Client(
            base_url="http://api/execution/",
            token="workload-token",
            transport=httpx.MockTransport(self._handle),
        )

    def end_of(self, order: UnitOrder) -> dict[str, Any]:
        """What was told of a unit's end."""
        return self.ends[str(order.callback_id)]

    def run(self) -> Run:
        return Run(
            protocol=self.protocol,
            bundle_name=_BUNDLE,
            bundle_version=self.bundle_version,
            filepath=self.filepath,
            load_limit_seconds=self.load_limit_seconds,
            log_limit_bytes=self.log_limit_bytes,
            units=list(self.units),
        )

    def _handle(self, request: httpx.Request) -> httpx.Response:
        self.tokens.append(request.headers["authorization"].removeprefix("Bearer "))
        path = request.url.path.removeprefix("/execution")
        self.requests.append((request.method, path))
        if answer := self.answers.get((request.method, path)):
            return answer(request)
        if path == f"{PREFIX}/callbacks/{self.leader}/start":
            self.told.append(("start", str(self.leader)))
            if self.refuse_start is not None:
                return httpx.Response(self.refuse_start, json={"detail": "not this one"})
            return httpx.Response(
                200, text=self.run().model_dump_json(), headers={"Refreshed-API-Token": "run-token"}
            )
        if path == f"{PREFIX}/callbacks/{self.leader}/attempt":
            self.told.append(("attempt", str(self.leader)))
            self.attempted = json.loads(request.content)
            headers = {"Refreshed-API-Token": "run-token"} if self.ours else {}
            return httpx.Response(200, json={"ours": self.ours}, headers=headers)
        if path == f"{PREFIX}/callbacks/{self.leader}/heartbeat":
            self.beats.append(json.loads(request.content)["units"])
            return httpx.Response(204)
        prefix = f"{PREFIX}/callbacks/{self.leader}/units/"
        if path.startswith(prefix):
            unit, _, action = path.removeprefix(prefix).partition("/")
            self.told.append((action, unit))
            if action == "running":
                refused = self.refuse_running.get(uuid.UUID(unit))
                return httpx.Response(refused, json={"detail": "no"}) if refused else httpx.Response(204)
            if action == "ended":
                self.ends[unit] = json.loads(request.content)
                return httpx.Response(204)
        return httpx.Response(404, json={"detail": {"reason": "not_found", "message": f"no {path}"}})
