"""One pass through the critical section as it goes along."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

import attrs

from callback_priority.adapter.planning import Aside
from callback_priority.core.classes import FlowKey, ServiceClass
from callback_priority.core.flows import FlowState
from callback_priority.core.ledger import Settlement
from callback_priority.core.snapshot import Decision, Snapshot
from callback_priority.core.units import SlotMicros

__all__ = ["Turn"]


@attrs.define(kw_only=True)
class Turn:
    """One pass through the critical section, from the first read to the hand-over after the commit.

    Args:
        now: The present.
        monotonic_us: The same in microseconds of a clock that never goes back.
        pools: Airflow's pool statistics.
        read: The flows as they were read.
        settlement: What was settled then.
        flows: The flows, settled.
        changed: Those that settling changed.
        snapshot: What is decided upon; loses callbacks that turn out not to be fit to run.
        aside: Callbacks that cannot run now.
        unfit: Callbacks that can never run, each with its reason.
        charges: What a grant is charged, by class.
        decision: The last decision.
        unreported: Executors' slots in use that they do not report.
        workloads: What the executors get, by callback: those that were locked, read and found fit.
        batches: Of these, which may share a run, by what they must have in common with those that join.
        attempts: How often each of them was granted before.
        companions: Those that join, each with how often it was granted before, by the callback that leads the run.
        elsewhere: Callbacks that somebody else took or ended.
        missing: Callbacks whose row is locked by others or gone.
        task_instances: What Airflow's selection returned.
        recorded: Whether all that was decided was written.

    Attributes:
        offer: What Airflow's selection is offered: the decision before its answer, or a rest after it.
    """

    now: datetime
    monotonic_us: int
    pools: Mapping[str, Any]
    read: Mapping[FlowKey, FlowState]
    settlement: Settlement
    flows: dict[FlowKey, FlowState]
    changed: dict[FlowKey, FlowState]
    snapshot: Snapshot
    aside: list[Aside]
    unfit: dict[UUID, str]
    charges: dict[ServiceClass, SlotMicros]
    decision: Decision
    offer: Decision = attrs.field(init=False)
    workloads: dict[UUID, Any] = attrs.field(factory=dict)
    batches: dict[UUID, str] = attrs.field(factory=dict)
    attempts: dict[UUID, int] = attrs.field(factory=dict)
    companions: dict[UUID, dict[UUID, int]] = attrs.field(factory=dict)
    elsewhere: set[UUID] = attrs.field(factory=set)
    missing: set[UUID] = attrs.field(factory=set)
    unreported: Mapping[str, int] = attrs.field(factory=dict)
    task_instances: list[Any] = attrs.field(factory=list)
    recorded: bool = False

    @property
    def granted(self) -> list[UUID]:
        """The callbacks granted, in order."""
        return [grant.candidate.id for grant in self.decision.grants if grant.candidate.id is not None]  # type: ignore[misc]

    def aside_by_reason(self) -> dict[str, list[UUID]]:
        """The callbacks that cannot run now, by what is missing."""
        by_reason: dict[str, list[UUID]] = {}
        for each in self.aside:
            by_reason.setdefault(each.reason, []).append(each.callback_id)
        return by_reason

    def changes_something(self) -> bool:
        """Whether there is anything to write."""
        flows = self.changed or self.decision.flows
        return bool(flows or self.granted or self.unfit or self.elsewhere or self.missing or self.aside)
