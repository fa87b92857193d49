"""The journal of one scheduler: an entry for each pass that changes the flows, in the pass's own transaction.

It is written where the option asks for it, and costs one statement then. What an entry tells is for
`callback_priority.core.journal`; the attempts in it are those that were read with the callbacks, under their
locks: two schedulers that granted one attempt would each say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from callback_priority.adapter.turn import Turn
from callback_priority.core.classes import FlowKey, ServiceClass
from callback_priority.core.flows import FlowState
from callback_priority.core.journal import Attempt, Granted, Pass, entry_of
from callback_priority.persistence import journal
from callback_priority.policy.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["Journal"]

CHECKPOINT_EVERY: Final = timedelta(hours=1)
"""How often an entry also says where all flows stand; so does the first one of each scheduler."""


class Journal:
    """Writes the entries of one scheduler.

    Args:
        settings: Whether there is a journal, and the weights.
        job_id: The scheduler's job.
    """

    def __init__(self, settings: Settings, job_id: int) -> None:
        self.settings = settings
        self.job_id = job_id
        self._checkpoint_at: datetime | None = None
        self._next_checkpoint_at: datetime | None = None

    def note(self, connection: Connection, turn: Turn) -> None:
        """Write what a turn did that this library decided.

        Args:
            connection: The critical section's, with the turn's other changes.
            turn: The turn.
        """
        if not self.settings.journal:
            return
        callbacks: dict[tuple[ServiceClass, str], list[Attempt]] = {}
        widths: dict[tuple[ServiceClass, str], list[int]] = {}
        for grant in turn.decision.grants:
            place, callback_id = (grant.service_class, grant.pool), grant.candidate.id
            if callback_id is None:
                widths.setdefault(place, []).append(grant.candidate.width)
            else:
                attempt = turn.attempts.get(callback_id, 0) + 1  # type: ignore[call-overload]
                callbacks.setdefault(place, []).append((str(callback_id), attempt))
        grants = (
            Granted(
                service_class=place[0],
                pool=place[1],
                charge=turn.charges[place[0]],
                callbacks=tuple(callbacks.get(place, ())),
                widths=tuple(widths.get(place, ())),
            )
            for place in sorted(callbacks.keys() | widths.keys())
        )
        riding = [
            (str(callback_id), before + 1)
            for together in turn.companions.values()
            for callback_id, before in together.items()
        ]
        self.write(connection, turn, turn.decision.flows, grants, riding)

    def write(
        self,
        connection: Connection,
        turn: Turn,
        changed: Mapping[FlowKey, FlowState],
        grants: Iterable[Granted],
        riding: Iterable[Attempt] = (),
    ) -> None:
        """Write an entry, if there is a journal and something to tell.

        Args:
            connection: The critical section's.
            turn: What was settled.
            changed: The flows that the grants changed.
            grants: What was granted.
            riding: Callbacks that were granted along with others.
        """
        if not self.settings.journal:
            return
        this = Pass(
            read=turn.read,
            settled=turn.flows,
            changed=changed,
            settlement=turn.settlement,
            grants=tuple(grants),
            riding=tuple(riding),
        )
        checkpoint = self._checkpoint_at is None or turn.now >= self._checkpoint_at
        entry = entry_of(this, self.settings, checkpoint=checkpoint)
        if entry.is_empty:
            return
        journal.append(connection, entry, job_id=self.job_id, now=turn.now)
        if checkpoint:
            self._next_checkpoint_at = turn.now + CHECKPOINT_EVERY

    def committed(self) -> None:
        """What was written last was committed."""
        if self._next_checkpoint_at is not None:
            self._checkpoint_at, self._next_checkpoint_at = self._next_checkpoint_at, None
