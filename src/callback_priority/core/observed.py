"""Charging grants that somebody else made: what keeps the tags true in shadow mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from callback_priority.core.accounting import clocks, flow_state, serve
from callback_priority.core.classes import FlowKey
from callback_priority.core.flows import FlowState
from callback_priority.core.snapshot import Entitlements
from callback_priority.core.units import VirtualTime

__all__ = ["charge_observed"]


def charge_observed(
    flows: Mapping[FlowKey, FlowState],
    charges: Mapping[FlowKey, Sequence[int]],
    entitlements: Entitlements,
    now: int,
) -> dict[FlowKey, FlowState]:
    """Advance the flows by grants that were not decided here.

    Args:
        flows: All flows that have a past.
        charges: What each grant is charged, in slot-microseconds, by flow.
        entitlements: Today's weights.
        now: Microseconds since the epoch.

    Returns:
        The flows that changed. Each is clamped first, as one that became eligible just now: whoever is served
        by other rules saves up no turns under these.
    """
    times = clocks(flows.values())
    changed: dict[FlowKey, FlowState] = {}
    for key in sorted(charges):
        clock = times.get(key[:2], 0)
        state = flow_state(key, flows, clock, entitlements)
        start = max(state.tag, clock)
        state = attrs.evolve(
            state,
            tag=VirtualTime(start),
            remainder=state.remainder if start == state.tag else 0,
            clock=VirtualTime(max(clock, start)),
            granted=state.granted + len(charges[key]),
        )
        changed[key] = serve(state, sum(charges[key]), now)
    return changed
