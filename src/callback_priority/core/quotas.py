"""Quotas: what is held back for a class and the most it may hold."""

from __future__ import annotations

import attrs

__all__ = ["NO_QUOTA", "Quota"]


@attrs.frozen(kw_only=True)
class Quota:
    """A class's reserve and limit in one scope (a pool, or a scheduler's slots).

    Args:
        reserve_slots: Slots held for the class and never lent to another, in slots.
        limit_slots: The most slots the class may hold, in slots; ``None`` for no limit.
    """

    reserve_slots: int = 0
    limit_slots: int | None = None


NO_QUOTA = Quota()
