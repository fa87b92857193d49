r"""What the fair run promises, worked out before it starts. Pure.

Two flows of equal weight, both waiting, are kept together by start-time fair queuing on slot-time: over any stretch of
time the slot-time that one gets exceeds the other's by at most `2 K (D_t + D_c)` slot-seconds, with K slots and D the
longest hold of each class (`docs/explanation/bounds.md`; after Goyal, Vin, Cheng 1996 and, for K slots at once, Jin,
Chase, Kaur 2004; holds settled at release). In T seconds K slots give out `K T` slot-seconds, so each class gets at least

    1/2 - (D_t + D_c) / T

of them. Holds are longer than the work in them: a slot is held from its grant until the scheduler's loop sees that the
process has ended. `OVERHEAD_SECONDS` allows for that on a machine with two busy cores. The guarantee needs no luck: on
an idle machine the shares come out within a few points of a half.

The third promise is about one Dag's alerts while others' flood the class. Dags take turns within a class, so the
alert is next or nearly next in it, and the class itself is served again after at most the longest hold: whichever way
the grants fell, all K slots come back within it. Settling may put the class back by one more hold. That makes two
longest holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import attrs

from callback_priority.demo.load import LONE_DAG, Load
from callback_priority.demo.summary import Summary

__all__ = ["STRETCH_SECONDS", "Promise", "make_promise"]

OVERHEAD_SECONDS: Final = 2.5
STRETCH_SECONDS: Final = 40.0


@attrs.frozen(kw_only=True)
class Promise:
    """What must hold while callbacks and tasks both wait, if the fair run is to be called fair.

    Args:
        share: The least share of slot-time that each class gets over the whole time.
        stretch_seconds: The length of a stretch.
        stretch_share: The least share that each class gets in every stretch.
        lone_wait_seconds: The longest that 95% of the lone Dag's alerts wait.
    """

    share: float
    stretch_seconds: float
    stretch_share: float
    lone_wait_seconds: float

    def text(self) -> str:
        """The promise in words."""
        return (
            "The fair run promises, for the time in which tasks and deadline callbacks both wait (equal weights):\n"
            f"  1. each class gets at least {self.share:.0%} of the slot-time over the whole of it,\n"
            f"  2. and at least {self.stretch_share:.0%} in any {self.stretch_seconds:.0f} seconds of it;\n"
            f"  3. 95% of the alerts of a Dag that does not flood wait at most {self.lone_wait_seconds:.0f} s."
        )

    def broken(self, summary: Summary) -> Sequence[str]:
        """What a run did not keep, in words; nothing if it kept all."""
        found = []
        for row in summary.classes:
            # A number that could not be measured keeps no promise.
            if not row.share >= self.share:
                found.append(f"1: {row.name} got {row.share:.1%} of the slot-time, not {self.share:.0%}")
            if not row.lowest_share >= self.stretch_share:
                found.append(
                    f"2: {row.name} got {row.lowest_share:.1%} in some {self.stretch_seconds:.0f} seconds, "
                    f"not {self.stretch_share:.0%}"
                )
        longest = summary.lone.wait_p95.seconds if summary.lone.wait_p95 else math.nan
        if not longest <= self.lone_wait_seconds:
            found.append(
                f"3: alerts of {LONE_DAG} waited {longest:.0f} s, not {self.lone_wait_seconds:.0f} s"
            )
        return found


def make_promise(load: Load) -> Promise:
    """The promise for a load, by the bound in the module's docstring."""
    task, callback = load.task_seconds[1] + OVERHEAD_SECONDS, load.callback_seconds[1] + OVERHEAD_SECONDS
    # Callbacks have half of the slots while both classes wait, so the flood takes at least this long.
    whole = load.flood_callbacks * sum(load.callback_seconds) / 2 / (load.slots / 2)

    def least_share(seconds: float) -> float:
        return max(0.0, math.floor(100 * (0.5 - (task + callback) / seconds)) / 100)

    return Promise(
        share=least_share(whole),
        stretch_seconds=STRETCH_SECONDS,
        stretch_share=least_share(STRETCH_SECONDS),
        lone_wait_seconds=2 * max(task, callback),
    )
