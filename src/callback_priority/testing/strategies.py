"""Hypothesis strategies: small deployments in which somebody might starve.

Small on purpose: a few slots, minutes of virtual time, dozens of workloads. Every bound grows with the slots and the longest
hold, so the smaller these are, the sooner a policy that breaks it is seen to, and the more examples fit into a second.
"""

from __future__ import annotations

from hypothesis import strategies as st

from callback_priority.core.classes import CALLBACK_CLASSES, CLASS_ORDER, ServiceClass
from callback_priority.core.quotas import Quota
from callback_priority.core.units import MILLI, Milliweight
from callback_priority.policy.settings import DEFAULT_POOL, PoolShare, Settings
from callback_priority.simulation.arrivals import Arrivals, Poisson, Regular, Storms
from callback_priority.simulation.holds import Exponential, Fixed, Holds
from callback_priority.simulation.scenario import Crash, Scenario, Stream
from callback_priority.testing.cases import Case

__all__ = ["cases"]

_TASK = ServiceClass.TASK
_OTHER_POOL = "etl"
_HOLDS_SECONDS = (2.0, 4.0, 10.0, 20.0)
_TASK_HOLDS_SECONDS = (20.0, 10.0, 20.0, 4.0)
_WEIGHTS = tuple(Milliweight(each) for each in (MILLI, MILLI, 2 * MILLI, 3 * MILLI, MILLI // 2, 10 * MILLI))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Streams of work, pools, schedulers, crashes, settings and changes of them.

    What is generated can be configured: reserves leave something to everyone, and nothing is wider than it may ever be. In half of the
    cases all holds are equal and known beforehand, and nothing hides that starts must then alternate exactly.
    """
    schedulers = draw(st.sampled_from((1, 2, 3, 3)))
    even = draw(st.sampled_from((None, None, 2.0, 4.0)))
    layout = "endless" if even else draw(st.sampled_from(("endless", "endless", "bottleneck", "both")))
    slots = draw(st.integers(1, 3))
    pools: dict[str, int | None] = {DEFAULT_POOL: None, _OTHER_POOL: None}
    if layout == "bottleneck":
        pools = {DEFAULT_POOL: draw(st.integers(1, 4)), _OTHER_POOL: 2}
        slots = 9
    elif layout == "both":
        pools[DEFAULT_POOL] = draw(st.integers(1, 6))
    first, second = draw(_TWO_CLASSES)
    classes = [first, second, *draw(st.lists(st.sampled_from(CLASS_ORDER), max_size=2))]
    widest = 1 if even else min(3, pools[DEFAULT_POOL] or 3)
    streams = [_stream(draw, at, cls, even, widest) for at, cls in enumerate(classes)]
    seconds = draw(st.sampled_from((60.0, 60.0, 90.0)))
    scenario = Scenario(
        name="generated",
        seconds=seconds,
        streams=tuple(streams),
        slots=slots,
        pools=pools,
        schedulers=schedulers,
        tasks_per_query=None if even else draw(st.sampled_from((None, None, None, None, 1, 2))),
        crashes=() if even else tuple(_crashes(draw, seconds, schedulers)),
    )
    limits = slots, pools[DEFAULT_POOL], widest
    initial = even or draw(st.sampled_from((1.0, 10.0)))
    settings = _settings(draw, limits, initial)
    changes: tuple[tuple[float, Settings], ...] = ()
    if draw(_RARELY):
        changes = ((draw(st.sampled_from((10.0, 31.0))), _settings(draw, limits, initial)),)
    return Case(scenario=scenario, settings=settings, changes=changes, seed=draw(st.integers(0, 3)))


_RARELY = st.sampled_from((False, False, False, True))
_OFTEN = st.booleans()
_TWO_CLASSES = st.sampled_from(
    [(cls, _TASK) for cls in CALLBACK_CLASSES] + [(CALLBACK_CLASSES[0], CALLBACK_CLASSES[1])]
)


def _stream(draw: st.DrawFn, number: int, cls: ServiceClass, even: float | None, widest: int) -> Stream:
    arrivals, batch = _arrivals(draw, cls)
    seconds = even or draw(st.sampled_from(_TASK_HOLDS_SECONDS if cls is _TASK else _HOLDS_SECONDS))
    holds: Holds = Fixed(seconds=seconds)
    if not even and draw(_RARELY):
        holds = Exponential(mean_seconds=seconds)
    return Stream(
        name=f"{cls} {number}",
        service_class=cls,
        holds=holds,
        arrivals=arrivals,
        batch=batch,
        pool=_OTHER_POOL if draw(_RARELY) else DEFAULT_POOL,
        width=draw(st.integers(1, widest)) if cls is _TASK and widest > 1 and draw(_RARELY) else 1,
        priority=draw(st.sampled_from((0, 0, 0, 1, 7, -1))),
        dags=draw(st.sampled_from((1, 2))),
    )


def _arrivals(draw: st.DrawFn, cls: ServiceClass) -> tuple[Arrivals | None, int]:
    """When it comes, and how many at once: mostly more than the slots can take."""
    kind = draw(st.sampled_from(("storm", "storm", "storm", "endless", "regular", "random")))
    if kind == "endless" and cls is _TASK:
        return None, 1
    if kind == "regular":
        return Regular(every_seconds=draw(st.sampled_from((2.0, 4.0, 10.0)))), 1
    if kind == "random":
        return Poisson(rate_per_second=draw(st.sampled_from((0.2, 0.5)))), 1
    at = draw(st.sampled_from((0.0, 0.0, 5.0, 20.0)))
    return Storms(at_seconds=(at, at + 30) if draw(_RARELY) else (at,)), draw(
        st.sampled_from((30, 30, 12, 4, 1))
    )


def _crashes(draw: st.DrawFn, seconds: float, schedulers: int) -> list[Crash]:
    if not draw(_RARELY) or not draw(_OFTEN):
        return []
    return [
        Crash(
            at_seconds=draw(st.sampled_from((7.0, 20.0))),
            scheduler=draw(st.integers(0, schedulers - 1)),
            takeover_seconds=draw(st.sampled_from((6.0, seconds / 4))),
        )
    ]


def _settings(draw: st.DrawFn, limits: tuple[int, int | None, int], initial: float) -> Settings:
    slots, pool_slots, widest = limits
    weights = {}
    if draw(_OFTEN):
        weights = {cls: draw(st.sampled_from(_WEIGHTS)) for cls in CLASS_ORDER}
    slot_quotas: dict[ServiceClass, Quota] = {}
    shares: dict[ServiceClass, PoolShare] = {}
    if draw(_RARELY):
        slot_quotas[draw(st.sampled_from(CLASS_ORDER))] = _quota(draw, slots, 1)
    if draw(_RARELY):
        weight = draw(st.sampled_from((None, *_WEIGHTS[2:])))
        cls = draw(st.sampled_from(CLASS_ORDER))
        shares[cls] = PoolShare(quota=_quota(draw, pool_slots or 4, widest), weight=weight)
    return Settings(
        weights=weights,
        slot_quotas=slot_quotas,
        pool_quotas={DEFAULT_POOL: shares} if shares else {},
        initial_hold_seconds=initial,
        priority_aging_seconds=60.0,
        wide_bypass_limit=draw(st.sampled_from((16, 2, 0))) if widest > 1 else 16,
    )


def _quota(draw: st.DrawFn, slots: int, widest: int) -> Quota:
    """A reserve that leaves the widest their room, or a limit that lets them in."""
    most = min(2, slots - widest)
    if most > 0 and draw(_OFTEN):
        return Quota(reserve_slots=draw(st.integers(1, most)))
    return Quota(limit_slots=draw(st.integers(widest, max(widest, slots))))
