"""What happens to flows between and after passes: settlement, new weights, averages, bounds on size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import attrs

from callback_priority.core.classes import SCHEDULER_FLOWS, FlowKey, Level
from callback_priority.core.flows import FlowState, make_state
from callback_priority.core.ledger import Settlement
from callback_priority.core.snapshot import Entitlements
from callback_priority.core.units import MICROSECONDS, MILLI, Milliweight, SlotMicros, VirtualTime

__all__ = [
    "RECENT_HALF_LIFE_SECONDS",
    "clocks",
    "flow_state",
    "keep_in_range",
    "move_average",
    "rebase",
    "recent",
    "reweigh",
    "serve",
    "settle",
]

RECENT_HALF_LIFE_SECONDS: Final = 600
"""What a class was given counts half as much in its recent share after this long."""

REBASE_ABOVE: Final = 1 << 60
"""A scope whose clock passes this is rebased to zero, so that tags fit a signed 64-bit column for ever."""

FURTHEST: Final = 1 << 62
"""The furthest from zero that a tag or a total may stand; reached only by holds of years times huge widths."""

_LOWEST: Final = -FURTHEST
_HALF_LIFE: Final = RECENT_HALF_LIFE_SECONDS * MICROSECONDS

Scope = tuple[Level, str]


def clocks(flows: Iterable[FlowState]) -> dict[Scope, int]:
    """Each scope's virtual time: the largest that any of its flows was served at. O(flows)."""
    found: dict[Scope, int] = {}
    for state in flows:
        scope = state.key[:2]
        if state.clock >= found.get(scope, 0):
            found[scope] = state.clock
    return found


def flow_state(
    key: FlowKey, flows: Mapping[FlowKey, FlowState], clock: int, entitlements: Entitlements
) -> FlowState:
    """A flow under today's weight; one without a past starts at the clock.

    Args:
        key: Which flow.
        flows: The flows that have a past.
        clock: The virtual time of the flow's scope.
        entitlements: Today's weights.
    """
    weight = entitlements.weight(*key)
    state = flows.get(key)
    if state is not None:
        return state if state.weight == weight else reweigh(state, weight, clock)
    peer = flows.get(SCHEDULER_FLOWS[key.service_class])
    return FlowState(
        key=key,
        weight=weight,
        estimate=peer.estimate if peer else entitlements.initial_estimate,
        tag=VirtualTime(clock),
        clock=VirtualTime(clock),
    )


def reweigh(state: FlowState, weight: Milliweight, clock: int) -> FlowState:
    """Carry a flow over to a new weight: what it owes or is owed, in slot-time, stays exactly the same."""
    debt = (state.tag - clock) * state.weight + state.remainder
    whole, remainder = divmod(debt, weight)
    return attrs.evolve(state, weight=weight, tag=VirtualTime(clock + whole), remainder=remainder)


def serve(state: FlowState, slot_micros: int, now: int, *, estimate: SlotMicros | None = None) -> FlowState:
    """Move a flow's tag by slot-time over weight, and its totals by slot-time.

    Args:
        state: The flow.
        slot_micros: Slot-microseconds charged; negative to give back.
        now: Microseconds since the epoch.
        estimate: Its moving average hold from now on; ``None`` if that stays.

    Exact: any number of calls moves the tag as far as one call with their sum.

    Written out, since each slot that is released comes here twice and `attrs.evolve` takes ten times as long.
    """
    whole, remainder = divmod(state.remainder + slot_micros * MILLI, state.weight)
    recent_at = state.recent_at
    return make_state(
        state.key,
        state.weight,
        state.estimate if estimate is None else estimate,
        state.tag + whole,
        remainder,
        state.clock,
        state.eligible,
        state.bypassed,
        state.service + slot_micros,
        recent(state, slot_micros, now),
        now if now > recent_at else recent_at,  # noqa: FURB136 - a call less for each flow
        state.granted,
    )


def recent(state: FlowState, slot_micros: int, now: int) -> int:
    """A flow's decayed total now, after slot-time more (or less, when negative)."""
    elapsed = now - state.recent_at
    if elapsed <= 0:
        return state.recent + slot_micros
    return int(state.recent * 0.5 ** (elapsed / _HALF_LIFE)) + slot_micros


def settle(
    flows: Mapping[FlowKey, FlowState], settlement: Settlement, entitlements: Entitlements, now: int
) -> dict[FlowKey, FlowState]:
    """Correct the flows by what their holds really took.

    Args:
        flows: All flows that have a past.
        settlement: What the ledger collected.
        entitlements: Today's weights.
        now: Microseconds since the epoch.

    Returns:
        The flows that changed. Settlement may move a tag behind the clock, never the clock.
    """
    amounts, holds = settlement.amounts, settlement.holds
    weight_of = entitlements.weight
    times: Mapping[Scope, int] | None = None
    changed: dict[FlowKey, FlowState] = {}
    for key in (*amounts, *[key for key in holds if key not in amounts]):
        state = flows.get(key)
        if state is None or state.weight != weight_of(*key):
            # No other flow has a use for the clocks, and to find them means to look at every flow there is.
            if times is None:
                times = clocks(flows.values())
            state = flow_state(key, flows, times.get(key[:2], 0), entitlements)
        estimate = state.estimate
        for hold in holds.get(key, ()):
            estimate = move_average(estimate, hold)
        changed[key] = serve(state, amounts.get(key, 0), now, estimate=estimate)
    return keep_in_range(flows, changed)


def move_average(estimate: SlotMicros, hold: SlotMicros) -> SlotMicros:
    """The moving average hold after one more: an eighth of the way towards it, at least a microsecond.

    The eighth is TCP's smoothing of round-trip times (Jacobson, 1988, "Congestion Avoidance and Control"):
    quick enough to follow a change within a dozen holds, slow enough that one outlier moves it little.

    >>> move_average(SlotMicros(800), SlotMicros(1_600)), move_average(SlotMicros(800), SlotMicros(0))
    (900, 700)
    """
    moved = estimate + ((hold - estimate) >> 3)
    return SlotMicros(moved if moved > 1 else 1)  # noqa: FURB136 - a call less for each hold


def keep_in_range(
    flows: Mapping[FlowKey, FlowState], changed: dict[FlowKey, FlowState]
) -> dict[FlowKey, FlowState]:
    """Add to the flows that changed those that must be rebased with them. O(changed) as a rule.

    Args:
        flows: All flows that have a past, as they were.
        changed: What has changed of them; added to.
    """
    for state in changed.values():
        if not (
            state.clock <= REBASE_ABOVE
            and _LOWEST <= state.tag <= FURTHEST
            and _LOWEST <= state.service <= FURTHEST
            and _LOWEST <= state.recent <= FURTHEST
        ):
            changed.update(rebase({**flows, **changed}))
            break
    return changed


def rebase(flows: Mapping[FlowKey, FlowState]) -> dict[FlowKey, FlowState]:
    """Keep everything within 63 bits: of tags and clocks only the differences carry meaning.

    Args:
        flows: Every flow of the scopes in question.

    Returns:
        The flows that must change: all of a scope whose clock has passed ``2**60``, shifted so that its
        clock is zero, and any whose tag or totals stand further than ``2**62`` from zero, brought back
        to there.
    """
    times = clocks(flows.values())
    changed = {}
    for key, state in flows.items():
        clock = times.get(key[:2], 0)
        shift = clock if clock > REBASE_ABOVE else 0
        after = attrs.evolve(
            state,
            tag=VirtualTime(_bound(state.tag - shift, FURTHEST)),
            clock=VirtualTime(max(-FURTHEST, state.clock - shift)),
            service=SlotMicros(_bound(state.service, FURTHEST)),
            recent=SlotMicros(_bound(state.recent, FURTHEST)),
        )
        if after != state:
            changed[key] = after
    return changed


def _bound(number: int, furthest: int) -> int:
    return max(-furthest, min(furthest, number))
