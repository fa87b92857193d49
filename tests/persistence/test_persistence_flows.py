"""Flows keep their exact numbers; held slots count what living schedulers granted."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta

from sqlalchemy import Connection, insert

from callback_priority.core.classes import SCHEDULER_SCOPE, FlowKey, Level, ServiceClass
from callback_priority.core.flows import FlowState
from callback_priority.core.units import Milliweight, SlotMicros, VirtualTime
from callback_priority.persistence import flows, items
from callback_priority.persistence.enqueueing import NewItem, enqueue
from callback_priority.persistence.tables import flow_table
from tests.persistence.conftest import job


def flow(scope: str, service_class: ServiceClass, tag: int = 0) -> FlowState:
    level = Level.SCHEDULER if scope == SCHEDULER_SCOPE else Level.POOL
    return FlowState(
        key=FlowKey(level, scope, service_class),
        weight=Milliweight(1_500),
        estimate=SlotMicros(3 * 10**15),
        tag=VirtualTime(tag),
        remainder=7,
        clock=VirtualTime(2**62),
        eligible=True,
        bypassed=3,
        service=SlotMicros(-5),
        recent=SlotMicros(11),
        recent_at=1_790_000_000_000_000,
        granted=12,
    )


def test_flows_come_back_as_they_were_written(conn: Connection, now: datetime, sent: list[str]) -> None:
    """Replaced as a whole, in one statement for all; read in one."""
    scopes = [SCHEDULER_SCOPE, "default_pool", "etl"]
    written = [flow(scope, each) for scope in scopes for each in ServiceClass]
    flows.write_flows(conn, written)
    moved = [flow(scope, each, tag=-(2**62)) for scope in scopes for each in ServiceClass]
    flows.write_flows(conn, moved)
    assert len(sent) == 2
    expected = {state.key: state for state in moved}
    assert flows.read_flows(conn) == expected
    assert flows.read_state(conn, living_since=now).flows == expected
    assert len(sent) == 4


def test_writing_no_flows_sends_nothing(conn: Connection, sent: list[str]) -> None:
    flows.write_flows(conn, [])
    assert sent == []


def test_flows_of_a_newer_version_are_left_alone(conn: Connection, now: datetime) -> None:
    flows.write_flows(conn, [flow("p", ServiceClass.TASK)])
    row = {column.name: 1 for column in flow_table.columns}
    row |= {"level": "rack", "scope": "x", "service_class": "cron", "eligible": True}  # type: ignore[dict-item]
    conn.execute(insert(flow_table), row)
    assert list(flows.read_flows(conn)) == [FlowKey(Level.POOL, "p", ServiceClass.TASK)]
    assert len(flows.read_state(conn, living_since=now).flows) == 1


def test_held_counts_living_schedulers_and_oneself(conn: Connection, now: datetime) -> None:
    """A dead scheduler's grants hold nothing; one's own count without a heartbeat; no flow row is needed."""
    conn.execute(
        insert(job),
        [
            {"id": 1, "state": "running", "latest_heartbeat": now},
            {"id": 2, "state": "running", "latest_heartbeat": now - timedelta(hours=1)},
            {"id": 3, "state": "success", "latest_heartbeat": now},
        ],
    )
    for job_id in range(1, 5):
        new = [
            NewItem(callback_id=uuid.uuid4(), service_class=ServiceClass.DEADLINE, kind="d", pool=f"p{pool}")
            for pool in range(job_id)
        ]
        enqueue(conn, new, now=now, turn_length_us=1, aging_us=1)
        items.mark_granted(conn, [item.callback_id for item in new], now=now, job_id=job_id, charges={})
    since = now - timedelta(seconds=30)
    deadline = ServiceClass.DEADLINE
    assert flows.read_state(conn, living_since=since).held == {("p0", deadline): 1}
    mine = flows.read_state(conn, living_since=since, own_job_id=4).held
    assert mine == {("p0", deadline): 2, ("p1", deadline): 1, ("p2", deadline): 1, ("p3", deadline): 1}
