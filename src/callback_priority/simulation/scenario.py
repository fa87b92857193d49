"""What is simulated: streams of work, pools, schedulers, and how long to watch.

Every stream draws from random numbers of its own, one series for arrivals, one for holds, one for Dags. Two policies that are
given the same seed thus see the same work, the n-th workload of a stream arriving at the same time and holding its slot equally long
under both (*common random numbers*): what differs between their results is the policy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from heapq import heappop, heappush
from random import Random
from types import MappingProxyType
from typing import NamedTuple, Protocol

import attrs

from callback_priority.core.classes import ServiceClass
from callback_priority.core.units import seconds_to_micros
from callback_priority.policy.settings import DEFAULT_POOL
from callback_priority.simulation.arrivals import Arrivals
from callback_priority.simulation.holds import Holds

__all__ = ["UNLIMITED_POOL", "Arriving", "Crash", "Scenario", "Stream", "Work"]

UNLIMITED_POOL = None
"""In `Scenario.pools`: a pool without end."""


class Arriving(NamedTuple):
    """A workload on its way.

    Args:
        at: When it arrives, in microseconds from the start.
        hold: How long it will hold its slot, in microseconds.
        dag: The number of its Dag within its stream.
        priority: Its own priority; ``None`` for that of its stream.
    """

    at: int
    hold: int
    dag: int
    priority: int | None = None


class Work(Protocol):
    """Work of one kind: a stream, or what was once recorded."""

    @property
    def name(self) -> str:
        """What to call it."""

    @property
    def service_class(self) -> ServiceClass:
        """Its class."""

    @property
    def pool(self) -> str:
        """The pool that it draws on."""

    @property
    def width(self) -> int:
        """Pool slots that each takes."""

    @property
    def priority(self) -> int:
        """Of a task: its ``priority_weight``. Of a callback: its priority within its class."""

    @property
    def dags(self) -> int:
        """How many Dags it comes from."""

    @property
    def endless(self) -> bool:
        """Whether it is a backlog that was there from the start and never ends: nothing of it arrives."""

    def arriving(self, seed: int) -> Iterator[Arriving]:
        """All of it, in the order of its arrival. An endless one tells of its holds only.

        Args:
            seed: Which random numbers.
        """


@attrs.frozen(kw_only=True)
class Stream:
    """Work of one kind, drawn from distributions.

    Args:
        name: What to call it; it also sets its random numbers apart from other streams'.
        service_class: Its class.
        arrivals: When it comes; ``None`` for a backlog that is there from the start and never ends.
        holds: How long each holds its slot.
        pool: The pool that it draws on.
        width: Pool slots that each takes; only task instances take more than one.
        priority: Of a task: its ``priority_weight``. Of a callback: its priority within its class.
        dags: How many Dags it comes from, each batch from any of them.
        batch: How many arrive together: the mapped tasks of one run, a burst, a storm.
        spread_seconds: Each of a batch is late by up to this, evenly.
    """

    name: str
    service_class: ServiceClass
    holds: Holds
    arrivals: Arrivals | None = None
    pool: str = DEFAULT_POOL
    width: int = 1
    priority: int = 0
    dags: int = 1
    batch: int = 1
    spread_seconds: float = 0.0

    @property
    def endless(self) -> bool:
        """See `Work`."""
        return self.arrivals is None

    def arriving(self, seed: int) -> Iterator[Arriving]:
        """See `Work`."""
        holds = self.holds.draws(self._random(seed, "holds"))
        if self.arrivals is None:
            for hold in holds:
                yield Arriving(0, hold, 0)
            return
        chance = self._random(seed, "dags")
        dags = self.dags
        for at in self._times(self.arrivals, seed):
            dag = int(chance.random() * dags) if dags > 1 else 0
            yield Arriving(at, next(holds), dag)

    def _times(self, arrivals: Arrivals, seed: int) -> Iterator[int]:
        events = arrivals.times(self._random(seed, "arrivals"))
        if self.batch == 1 and not self.spread_seconds:
            return events
        if not self.spread_seconds:
            return (at for at in events for _ in range(self.batch))
        return self._spread(events, self._random(seed, "spread"))

    def _spread(self, events: Iterator[int], random: Random) -> Iterator[int]:
        spread = seconds_to_micros(self.spread_seconds)
        late: list[int] = []
        for event in events:
            while late and late[0] <= event:
                yield heappop(late)
            for _ in range(self.batch):
                heappush(late, event + int(random.random() * spread))
        while late:
            yield heappop(late)

    def _random(self, seed: int, purpose: str) -> Random:
        return Random(f"{seed} {self.name} {purpose}")  # noqa: S311 - not for secrets


@attrs.frozen(kw_only=True)
class Crash:
    """A scheduler dies, and comes back.

    Its task instances run on: Airflow's other schedulers adopt them. Its callbacks are taken over, as another attempt.

    Args:
        at_seconds: When.
        scheduler: Which, counted from nought.
        down_seconds: Until it is back.
        takeover_seconds: Until its callbacks wait again.
    """

    at_seconds: float
    scheduler: int = 0
    down_seconds: float = 10.0
    takeover_seconds: float = 60.0


def _all_pools(pools: Mapping[str, int | None]) -> Mapping[str, int | None]:
    return MappingProxyType(dict(pools))


@attrs.frozen(kw_only=True)
class Scenario:
    """Everything that wants slots during a stretch of time, and what there is to be had.

    Args:
        name: What to call it.
        seconds: How long to watch.
        streams: The work.
        slots: Slots of each scheduler (Airflow's ``parallelism``).
        pools: Slots of each pool that the work draws on; ``None`` for one without end.
        schedulers: How many there are. Their loops are spread evenly.
        loop_seconds: From one loop of a scheduler to its next; zero for a loop at every arrival and every end, which is what the
            models of queuing theory do.
        loops: When the loops of each scheduler are, in microseconds from the start and in order, where that is known; it has no others.
        warm_up_seconds: What arrives before then is not measured.
        tasks_per_query: The most task instances that one selection finds (Airflow's ``max_tis_per_query``); ``None`` for no such cap.
        crashes: When schedulers die.
        description: What it is for, in a sentence.
    """

    name: str
    seconds: float
    streams: tuple[Work, ...]
    slots: int
    pools: Mapping[str, int | None] = attrs.field(
        factory=lambda: {DEFAULT_POOL: UNLIMITED_POOL}, converter=_all_pools
    )
    schedulers: int = 1
    loop_seconds: float = 2.0
    loops: tuple[Sequence[int], ...] = ()
    warm_up_seconds: float = 0.0
    tasks_per_query: int | None = None
    crashes: tuple[Crash, ...] = ()
    description: str = ""
