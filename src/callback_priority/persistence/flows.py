"""Reading and writing the state of the fair queue."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

import attrs
from sqlalchemy import (
    BigInteger,
    Boolean,
    Connection,
    Insert,
    Integer,
    Row,
    Select,
    String,
    bindparam,
    cast,
    func,
    literal,
    or_,
    select,
    union_all,
)

from callback_priority.core.accounting import FURTHEST
from callback_priority.core.classes import FlowKey, Level, ServiceClass
from callback_priority.core.flows import FlowState
from callback_priority.core.units import (
    MAX_WEIGHT_MILLI,
    MICROSECONDS,
    Milliweight,
    SlotMicros,
    VirtualTime,
)
from callback_priority.persistence.airflow_tables import JOB_RUNNING, job_table
from callback_priority.persistence.statements import upsert, write_rows
from callback_priority.persistence.tables import ItemState, UtcDateTime, flow_table, item_table

__all__ = ["State", "read_flows", "read_state", "write_flows"]

log = logging.getLogger(__name__)

_LONGEST: Final = SlotMicros(100 * 365 * 86_400 * MICROSECONDS)
"""No hold of one slot lasts longer: a hundred years."""

HELD: Final = "held"
"""Stands in the place of a flow's level in the rows that count held slots."""

NO_JOB: Final = -1


@attrs.frozen(kw_only=True)
class State:
    """What a pass of the slot loop starts from.

    Args:
        flows: Every flow that was ever written.
        held: Slots of a pool that a class's granted callbacks hold, over all living schedulers, by pool and
            class; pairs that hold none are absent.
    """

    flows: Mapping[FlowKey, FlowState]
    held: Mapping[tuple[str, ServiceClass], int]


def _held_by_pair() -> Select[Any]:
    """Count the slots that living schedulers' callbacks hold: as many rows as there are pairs, of granted rows only.

    A callback that shares the run of another holds none.
    """
    living = select(job_table.c.id).where(
        job_table.c.state == JOB_RUNNING,
        job_table.c.latest_heartbeat >= bindparam("living_since", type_=UtcDateTime),
    )
    own = bindparam("own_job_id", type_=Integer)
    return (
        select(item_table.c.pool, item_table.c.service_class, func.count().label("slots"))
        .where(
            item_table.c.state == ItemState.GRANTED.value,
            item_table.c.leader_id.is_(None),
            or_(item_table.c.scheduler_job_id == own, item_table.c.scheduler_job_id.in_(living)),
        )
        .group_by(item_table.c.pool, item_table.c.service_class)
    )


def _state_statement() -> Any:
    """One round trip for both: held counts travel as rows of the same shape, so no pair needs a flow row."""
    held = _held_by_pair().subquery("held")
    filler = {
        "level": cast(literal(HELD), String(10)),
        "scope": held.c.pool,
        "service_class": held.c.service_class,
        "granted": held.c.slots,
    }
    columns = []
    for column in flow_table.columns:
        if column.name in filler:
            columns.append(filler[column.name].label(column.name))
        elif isinstance(column.type, Boolean):
            columns.append(literal(False, Boolean).label(column.name))
        else:
            columns.append(cast(literal(0), BigInteger).label(column.name))
    return union_all(select(*flow_table.columns), select(*columns))


READ_FLOWS: Final = select(*flow_table.columns)
READ_STATE: Final = _state_statement()


def read_flows(conn: Connection) -> dict[FlowKey, FlowState]:
    """Read every flow, in one statement."""
    flows = {}
    for row in conn.execute(READ_FLOWS):
        state = _flow(row)
        if state is not None:
            flows[state.key] = state
    return flows


def read_state(conn: Connection, *, living_since: datetime, own_job_id: int | None = None) -> State:
    """Read every flow and what each class holds of each pool, in one statement.

    Args:
        conn: Connection to Airflow's metadata database.
        living_since: Schedulers without a heartbeat since then are taken for dead; what was granted by them
            holds nothing.
        own_job_id: The scheduler that asks; alive whatever its heartbeat says.
    """
    flows: dict[FlowKey, FlowState] = {}
    held: dict[tuple[str, ServiceClass], int] = {}
    parameters = {"living_since": living_since, "own_job_id": NO_JOB if own_job_id is None else own_job_id}
    for row in conn.execute(READ_STATE, parameters):
        if row.level == HELD:
            if row.service_class in _CLASSES:
                held[row.scope, _CLASSES[row.service_class]] = int(row.granted)
        else:
            state = _flow(row)
            if state is not None:
                flows[state.key] = state
    return State(flows=flows, held=held)


def write_flows(conn: Connection, flows: Iterable[FlowState]) -> None:
    """Insert or replace flows, in one statement for up to a thousand of them.

    The rows go in the order of their keys, so that two writers cannot wait for one another.
    """
    rows = [_values(state) for state in sorted(flows, key=lambda state: state.key)]
    write_rows(conn, flow_table, _upsert_flow(conn.dialect.name), rows)


@lru_cache(maxsize=4)
def _upsert_flow(dialect: str) -> Insert:
    return upsert(flow_table, dialect)


_LEVELS: Final = {level.value: level for level in Level}
_CLASSES: Final = {service_class.value: service_class for service_class in ServiceClass}


def _flow(row: Row[Any]) -> FlowState | None:
    """Read one flow; ``None`` for one that only a newer version of this library knows, and for one that cannot be.

    A flow that is left out begins anew at its scope's clock, and is written over as soon as it changes. Numbers that
    no pass can have written would spoil every pass to come: a weight of nought, an estimate of ages.
    """
    level, service_class = _LEVELS.get(row.level), _CLASSES.get(row.service_class)
    if level is None or service_class is None:
        return None
    if not _can_be(row):
        _tell(row.level, row.scope, row.service_class)
        return None
    return FlowState(
        key=FlowKey(level, row.scope, service_class),
        weight=Milliweight(row.weight),
        estimate=SlotMicros(row.estimate),
        tag=VirtualTime(row.tag),
        remainder=row.remainder,
        clock=VirtualTime(row.clock),
        eligible=row.eligible,
        bypassed=row.bypassed,
        service=SlotMicros(row.service),
        recent=SlotMicros(row.recent),
        recent_at=row.recent_at,
        granted=row.granted,
    )


def _can_be(row: Row[Any]) -> bool:
    numbers = (
        row.weight,
        row.estimate,
        row.tag,
        row.remainder,
        row.clock,
        row.bypassed,
        row.service,
        row.recent,
    )
    if not all(isinstance(each, int) for each in (*numbers, row.recent_at, row.granted)):
        return False  # SQLite keeps anything in any column
    return (
        0 < row.weight <= MAX_WEIGHT_MILLI
        and 0 < row.estimate <= _LONGEST
        and 0 <= row.remainder < row.weight
        and row.bypassed >= 0
        and all(-FURTHEST <= each <= FURTHEST for each in numbers)
    )


@lru_cache(maxsize=1_000)
def _tell(level: str, scope: str, service_class: str) -> None:
    """Once for each flow."""
    log.error(
        "The flow %s %s of %s holds what no pass can have written; it begins anew",
        level,
        scope,
        service_class,
    )


def _values(state: FlowState) -> dict[str, object]:
    return {
        "level": state.key.level.value,
        "scope": state.key.scope,
        "service_class": state.key.service_class.value,
        "weight": state.weight,
        "estimate": state.estimate,
        "tag": state.tag,
        "remainder": state.remainder,
        "clock": state.clock,
        "eligible": state.eligible,
        "bypassed": state.bypassed,
        "service": state.service,
        "recent": state.recent,
        "recent_at": state.recent_at,
        "granted": state.granted,
    }
