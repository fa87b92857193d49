"""Shadow mode: decide and record, change nothing.

Airflow's own two steps run as they are. What would have been granted is noted on the items; what Airflow did
grant is charged to the flows, so that the tags are true the moment the mode becomes active. Only the library's
own tables are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

import attrs

from callback_priority.adapter.inflight import InFlight
from callback_priority.adapter.journal import Journal
from callback_priority.adapter.turn import Turn
from callback_priority.compat.executors import queued_callbacks
from callback_priority.compat.keys import callback_key, callback_of
from callback_priority.core.classes import SCHEDULER_SCOPE, FlowKey, Level, ServiceClass
from callback_priority.core.journal import Granted
from callback_priority.core.observed import charge_observed
from callback_priority.core.snapshot import Candidate, Grant
from callback_priority.core.units import SlotMicros
from callback_priority.persistence import items
from callback_priority.persistence.flows import write_flows
from callback_priority.policy.settings import Settings

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection

__all__ = ["Shadow"]


class Shadow:
    """What Airflow granted since the flows were last written.

    Args:
        in_flight: The executors and what they hold.
        settings: Weights and quotas.
        job_id: The scheduler's job.
        journal: Is told of it.
    """

    def __init__(self, in_flight: InFlight, settings: Settings, job_id: int, journal: Journal) -> None:
        self.in_flight = in_flight
        self.settings = settings
        self.job_id = job_id
        self.journal = journal
        self._noted: list[Granted] = []
        self._charges: dict[FlowKey, list[int]] = {}

    def record(self, connection: Connection, turn: Turn, found: Sequence[Any]) -> None:
        """Write what would have been granted, and charge what was.

        Args:
            connection: The critical section's, in a savepoint.
            turn: What was decided; its decision becomes what Airflow did.
            found: The task instances that Airflow's selection set to queued.
        """
        charges = {flow: list(each) for flow, each in self._charges.items()}
        for task_instance in found:
            width = task_instance.pool_slots
            _book(charges, ServiceClass.TASK, task_instance.pool, width, turn.charges[ServiceClass.TASK])
        observed = charge_observed(turn.flows, charges, self.settings, turn.snapshot.now)
        items.mark_decided(connection, turn.granted, turn.now)
        if flows := turn.changed | observed:
            write_flows(connection, flows.values())
            started = _started(found, turn.charges[ServiceClass.TASK])
            self.journal.write(connection, turn, observed, [*self._noted, *started])
        turn.task_instances = list(found)
        grants = tuple(Grant(ServiceClass.TASK, each.pool, Candidate()) for each in found)
        turn.decision = attrs.evolve(turn.decision, grants=grants)

    def committed(self) -> None:
        """What `record` wrote was committed."""
        self._charges.clear()
        self._noted.clear()

    def note_queued(
        self, connection: Connection, now: datetime, charges: dict[ServiceClass, SlotMicros]
    ) -> None:
        """Note the callbacks that Airflow's own step has just given to executors.

        Args:
            connection: That step's.
            now: The present.
            charges: What a grant is charged, by class.
        """
        queued: dict[UUID, str] = {}
        for label, executor in self.in_flight.by_label.items():
            queued |= {
                callback_of(key): label
                for key in queued_callbacks(executor)
                if key not in self.in_flight.ledger
            }
        if not queued:
            return
        items.mark_granted(connection, queued, now=now, job_id=self.job_id, charges=charges)
        for item in items.granted_items(connection, self.job_id):
            if item.callback_id not in queued:
                continue
            charge = charges.get(item.service_class, self.settings.initial_estimate)
            self.in_flight.hold(
                callback_key(item.callback_id),
                item.service_class,
                queued[item.callback_id],
                charge=charge,
                pool=item.pool,
            )
            _book(self._charges, item.service_class, item.pool, 1, charge)
            attempt = str(item.callback_id), item.attempts
            self._noted.append(
                Granted(service_class=item.service_class, pool=item.pool, charge=charge, callbacks=(attempt,))
            )


def _started(found: Sequence[Any], charge: SlotMicros) -> list[Granted]:
    """The task instances that Airflow's selection set to queued, by pool."""
    widths: dict[str, list[int]] = {}
    for task_instance in found:
        widths.setdefault(task_instance.pool, []).append(task_instance.pool_slots)
    return [
        Granted(service_class=ServiceClass.TASK, pool=pool, charge=charge, widths=tuple(each))
        for pool, each in widths.items()
    ]


def _book(
    charges: dict[FlowKey, list[int]], service_class: ServiceClass, pool: str, width: int, charge: SlotMicros
) -> None:
    charges.setdefault(FlowKey(Level.SCHEDULER, SCHEDULER_SCOPE, service_class), []).append(charge)
    charges.setdefault(FlowKey(Level.POOL, pool, service_class), []).append(width * charge)
