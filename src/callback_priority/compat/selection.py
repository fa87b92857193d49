"""Airflow's own selection of task instances, run with the slots that are theirs.

Up to Airflow 3.3 one method takes the lock of the critical section, reads the pools and selects; what it finds in
the pools is changed by replacing `Pool.slots_stats` while it runs. From 3.4 on one method takes the lock and reads
the pools, and another selects among the pools that it is handed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import attrs
from airflow.models.pool import Pool
from airflow.utils.db import DBLocks
from airflow.utils.sqlalchemy import get_dialect_name
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

__all__ = ["PoolsFirst", "Selection", "WholeSelection"]

Pools = Mapping[str, Any]
"""Airflow's statistics of each pool."""


class Selection(Protocol):
    """One run of Airflow's critical section."""

    @property
    def max_tis(self) -> int:
        """The most task instances that Airflow would select now, were there no pools."""

    def enter(self) -> Pools:
        """Take the lock, and lock and read the pools.

        Raises:
            OperationalError: Another scheduler is in the critical section, as in Airflow's own code.
        """

    def unchanged(self) -> list[Any]:
        """Select as Airflow would have; what was set to queued."""

    def among(self, pools: Pools, most: int) -> list[Any]:
        """Select no more than so many, from what is open in these pools; what was set to queued."""


@attrs.frozen(kw_only=True)
class WholeSelection:
    """The selection up to Airflow 3.3.

    Args:
        original: ``_executable_task_instances_to_queued``, bound.
        max_tis: The most task instances that Airflow would select now.
        session: The critical section's.
    """

    original: Callable[..., list[Any]]
    max_tis: int
    session: Session

    def enter(self) -> Pools:
        """Take the lock as Airflow does; its selection takes it again for nothing."""
        if get_dialect_name(self.session) == "postgresql":
            statement = text("SELECT pg_try_advisory_xact_lock(:id)")
            number = DBLocks.SCHEDULER_CRITICAL_SECTION.value
            if not self.session.execute(statement, {"id": number}).scalar():
                raise OperationalError(
                    "Failed to acquire advisory lock", params=None, orig=RuntimeError("55P03")
                )
        return Pool.slots_stats(lock_rows=True, session=self.session)

    def unchanged(self) -> list[Any]:
        """See `Selection.unchanged`."""
        return self.original(self.max_tis, session=self.session)

    def among(self, pools: Pools, most: int) -> list[Any]:
        """See `Selection.among`."""
        stock = Pool.__dict__["slots_stats"]
        # Python's own way to set it: that of a mapped class is code which may fail, and it must be put back.
        type.__setattr__(Pool, "slots_stats", staticmethod(lambda **_: pools))
        try:
            return self.original(most, session=self.session)
        finally:
            type.__setattr__(Pool, "slots_stats", stock)


@attrs.frozen(kw_only=True)
class PoolsFirst:
    """The selection from Airflow 3.4 on: the critical section has been entered, and the pools were read.

    Args:
        original: ``_select_task_instances_to_queue``, bound.
        max_tis: The most task instances that Airflow would select now, were there no pools.
        pools: What ``_acquire_pool_capacity`` found.
        session: The critical section's.
    """

    original: Callable[..., list[Any]]
    max_tis: int
    pools: Pools
    session: Session

    def enter(self) -> Pools:
        """Airflow has entered; it changes the numbers of the pools that it is handed, so these are never."""
        return self.pools

    def unchanged(self) -> list[Any]:
        """See `Selection.unchanged`."""
        return self.among(self.pools, self.max_tis)

    def among(self, pools: Pools, most: int) -> list[Any]:
        """See `Selection.among`; with nothing open Airflow selects nothing, and looks no further."""
        room = sum(max(0, stats["open"]) for stats in pools.values())
        if not room:
            return []
        own = {name: {**stats} for name, stats in pools.items()}
        starved = {name for name, stats in own.items() if stats["open"] <= 0}
        return self.original(int(min(most, room)), own, starved, session=self.session)
