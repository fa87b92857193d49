"""What a comparison shows, in words: which settings make which class wait less, how sure that is, and who pays for it.

Nothing here knows what somebody wants; it says what is shorter and longer, more and less. Two rules decide what counts as a difference:

- Against the first treatment, the interval of the seed-by-seed differences must not hold nought (see `callback_priority.simulation.comparison`).
- Between two others, for which there are no such differences, the intervals of their means must not overlap, which asks for more.

A quantile of waits is of what was started. Where more than one in twenty was never started, the 95th percentile of what did start says
nothing of the class, so that such a class is told of by how many were left.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import attrs

from callback_priority.simulation.report.shapes import (
    ClassShape,
    ComparisonShape,
    DifferenceShape,
    EstimateShape,
    TreatmentShape,
)
from callback_priority.simulation.report.words import (
    Said,
    counted,
    duration,
    joined,
    number,
    parted,
    percent,
    points,
    quoted,
    workloads,
)

__all__ = ["Findings", "Versus", "find"]

_UNLUCKY = "0.95"
_TOLD = {"0.5": "half", _UNLUCKY: "95 of 100"}
"""The quantiles of waits that treatments are held against each other by."""
_FELT_SECONDS = 0.5
"""Nobody feels a change of a wait by less, however sure."""
_STARVES = 0.05
"""With a larger part never started, a class is told of by what was left, not by its waits."""
_DAGS_FACTOR = 1.5
"""Waits of single Dags come without intervals; they are told of where they differ by this factor."""
_SEEN = 0.005
"""Changes of a share by less are not worth words, however sure."""


@attrs.frozen(kw_only=True)
class Versus:
    """A treatment held against the first; everything is markup.

    Args:
        name: The treatment's.
        gains: What got better for whom.
        pains: What got worse for whom.
        same: The classes for which no wait, number or share differs beyond chance.
    """

    name: str
    gains: tuple[str, ...]
    pains: tuple[str, ...]
    same: tuple[str, ...]


@attrs.frozen(kw_only=True)
class Findings:
    """What a comparison shows; everything is markup.

    Args:
        headline: The most striking of it.
        cost: What that costs the others; empty if there is nothing to weigh.
        classes: For each class that waited, under which settings it waits least and longest.
        versus: Each treatment against the first.
    """

    headline: str
    cost: str
    classes: tuple[str, ...]
    versus: tuple[Versus, ...]


def find(comparison: ComparisonShape) -> Findings:
    """Say what a comparison shows.

    Args:
        comparison: What `callback_priority.simulation.comparison.Comparison.to_json` gave.
    """
    treatments = comparison["treatments"]
    told = [_Ranking.of(cls, treatments) for cls in treatments[0]["classes"] if _arrives(cls, treatments)]
    different = [each for each in told if each.differs]
    if len(treatments) == 1:
        (only,) = treatments
        headline = (
            f"Under {quoted(only['name'])}: "
            + "; ".join(f"of {workloads(each.cls)}, {_got(only['classes'][each.cls])}" for each in told)
            if told
            else f"Under {quoted(only['name'])}, nothing arrived that could wait"
        )
        return Findings(headline=headline, cost="", classes=(), versus=())
    versus = tuple(_versus(treatment, treatments[0]) for treatment in treatments[1:])
    if not told:
        headline, cost = "Nothing arrived that could wait: what differs is who holds the slots", ""
    elif not different:
        beyond = " beyond chance" if len(comparison["seeds"]) > 1 else ""
        is_same = not any(each.gains or each.pains for each in versus)
        what = (
            "No class waits longer or shorter"
            if is_same
            else "Of no class, the 95th percentile of waits differs"
        )
        headline = f"{what} between these {len(treatments)} settings{beyond}"
        cost = ""
    else:
        most = max(different, key=lambda each: each.effect)
        headline, cost = most.headline(), _cost(most, treatments)
    return Findings(
        headline=headline,
        cost=cost,
        classes=tuple(filter(None, (each.sentence(is_told=each.headline() == headline) for each in told))),
        versus=versus,
    )


# One class over all treatments -------------------------------------------------------------------------------------


def _arrives(cls: str, treatments: Sequence[TreatmentShape]) -> bool:
    return any(each["classes"][cls]["arrived"]["mean"] > 0 for each in treatments)


def _left(found: ClassShape) -> float:
    """Which part was never started."""
    return found["waiting"]["mean"] / found["arrived"]["mean"] if found["arrived"]["mean"] else 0.0


def _starves(found: ClassShape) -> bool:
    return _left(found) > _STARVES or found["wait_seconds"].get(_UNLUCKY) is None


def _rank(found: ClassShape) -> tuple[bool, float]:
    wait = found["wait_seconds"].get(_UNLUCKY)
    if _starves(found) or wait is None:
        return True, _left(found)
    return False, wait["mean"]


def _apart(first: EstimateShape, second: EstimateShape) -> bool:
    """Whether two intervals have nothing in common; means, if there are no intervals."""
    if first["low"] is None or first["high"] is None or second["low"] is None or second["high"] is None:
        return first["mean"] != second["mean"]
    return first["high"] < second["low"] or second["high"] < first["low"]


def _sure(difference: EstimateShape) -> bool:
    """Whether a difference is beyond chance; any, if there is no interval."""
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        return difference["mean"] != 0
    return low > 0 or high < 0


def _differ(cls: str, first: TreatmentShape, second: TreatmentShape) -> bool:
    """Whether the class waits differently under two treatments."""
    one, other = first["classes"][cls], second["classes"][cls]
    paired = (second["differences"] if first["differences"] is None else None) or (
        first["differences"] if second["differences"] is None else None
    )
    if _starves(one) or _starves(other):
        if _starves(one) != _starves(other):
            return True
        return (
            _sure(paired[cls]["waiting"]) if paired is not None else _apart(one["waiting"], other["waiting"])
        )
    if paired is not None:
        difference = paired[cls]["wait_seconds"].get(_UNLUCKY)
        return difference is not None and _sure(difference)
    mine, theirs = one["wait_seconds"].get(_UNLUCKY), other["wait_seconds"].get(_UNLUCKY)
    return mine is not None and theirs is not None and _apart(mine, theirs)


@attrs.frozen(kw_only=True)
class _Ranking:
    """Under which treatments a class waits least and longest, and which can't be told from these."""

    cls: str
    best: TreatmentShape
    also_best: tuple[TreatmentShape, ...]
    worst: TreatmentShape
    also_worst: tuple[TreatmentShape, ...]
    differs: bool

    @classmethod
    def of(cls, service_class: str, treatments: Sequence[TreatmentShape]) -> _Ranking:
        order = sorted(treatments, key=lambda each: _rank(each["classes"][service_class]))
        best, worst = order[0], order[-1]
        between = [each for each in treatments if each is not best and each is not worst]
        also_best = tuple(each for each in between if not _differ(service_class, best, each))
        also_worst = (
            each for each in between if each not in also_best and not _differ(service_class, worst, each)
        )
        return cls(
            cls=service_class,
            best=best,
            also_best=also_best,
            worst=worst,
            also_worst=tuple(also_worst),
            differs=_differ(service_class, best, worst),
        )

    @property
    def effect(self) -> tuple[float, float]:
        """How striking the difference is: what starves first, then by how many times longer the wait is."""
        best, worst = self.best["classes"][self.cls], self.worst["classes"][self.cls]
        if _starves(worst):
            return (_left(worst) - _left(best), 0.0)
        return (0.0, _rank(worst)[1] / max(_rank(best)[1], 0.1))

    def headline(self) -> str:
        what = workloads(self.cls)
        return (
            f"{what[0].upper()}{what[1:]} wait least under {quoted(self.best['name'])}: {self._best()}. "
            f"Under {quoted(self.worst['name'])}, {self._worst()}"
        )

    def sentence(self, *, is_told: bool) -> str:
        """All that is to be said; only what the headline leaves out, if that has told of the class."""
        if is_told:
            return f"{_alike(self.also_best, self.best)}{_alike(self.also_worst, self.worst)}".strip()
        what = f"<strong>{workloads(self.cls)}</strong>"
        best, worst = quoted(self.best["name"]), quoted(self.worst["name"])
        if not self.differs:
            found = (
                f"{self._best()} under {best}, {self._worst()} under {worst}"
                if self._best() != self._worst()
                else self._best()
            )
            return f"{what} wait about the same under all settings: {found}."
        return (
            f"{what} wait least under {best}: {self._best()}.{_alike(self.also_best, self.best)} "
            f"Longest under {worst}: {self._worst()}.{_alike(self.also_worst, self.worst)}"
        )

    def _best(self) -> str:
        return _got(self.best["classes"][self.cls])

    def _worst(self) -> str:
        return _got(self.worst["classes"][self.cls])


def _alike(treatments: Sequence[TreatmentShape], than: TreatmentShape) -> str:
    if not treatments:
        return ""
    names = joined([quoted(each["name"]) for each in treatments])
    return f" {names} can't be told from {quoted(than['name'])}: their intervals overlap."


def _got(found: ClassShape) -> str:
    """What became of a class, in half a sentence."""
    arrived, started, waiting = (found[key]["mean"] for key in ("arrived", "started", "waiting"))
    if not started and not arrived:
        return "none arrived"
    if not started:
        return f"none of {number(arrived)} starts"
    wait = found["wait_seconds"].get(_UNLUCKY)
    if _starves(found) or wait is None:
        return f"{number(waiting)} of {number(arrived)} ({percent(_left(found))}) never start"
    between = parted(wait, duration)
    return f"95 of 100 start within {duration(wait['mean'])}" + (f" ({between})" if between else "")


# One treatment against the first -----------------------------------------------------------------------------------


def _cost(most: _Ranking, treatments: Sequence[TreatmentShape]) -> str:
    """What the best treatment of the headline costs, the others or the class itself."""
    first = treatments[0]
    best, worst = most.best, most.worst
    if best is not first:
        pains, against = _versus(best, first).pains, first
    else:
        # Held against the first, a treatment's gains are what the first lacks.
        pains, against = tuple(_mirrored(worst, first)), worst
    if not pains:
        return f"Against {quoted(against['name'])}, that costs nobody anything that can be told from chance."
    return f"What it costs, against {quoted(against['name'])}: " + "; ".join(pains) + "."


def _mirrored(treatment: TreatmentShape, first: TreatmentShape) -> list[str]:
    """What is worse under the first than under a treatment."""
    turned: TreatmentShape = {
        **first,
        "differences": {
            cls: {
                "share": _negative(each["share"]),
                "waiting": _negative(each["waiting"]),
                "wait_seconds": {
                    key: None if wait is None else _negative(wait)
                    for key, wait in each["wait_seconds"].items()
                },
            }
            for cls, each in (treatment["differences"] or {}).items()
        },
    }
    return list(_versus(turned, treatment).pains)


def _negative(found: EstimateShape) -> EstimateShape:
    low, high = found["low"], found["high"]
    return {
        "mean": -found["mean"],
        "low": None if high is None else -high,
        "high": None if low is None else -low,
        "n": found["n"],
    }


def _versus(treatment: TreatmentShape, first: TreatmentShape) -> Versus:
    gains: list[str] = []
    pains: list[str] = []
    same: list[str] = []
    for cls, difference in (treatment["differences"] or {}).items():
        mine, theirs = treatment["classes"][cls], first["classes"][cls]
        before = len(gains) + len(pains)
        _tell(cls, mine, theirs, difference, gains, pains)
        if len(gains) + len(pains) == before:
            same.append(workloads(cls))
    mine_used, theirs_used = treatment["utilisation"], first["utilisation"]
    if abs(mine_used["mean"] - theirs_used["mean"]) >= _SEEN and _apart(mine_used, theirs_used):
        (gains if mine_used["mean"] > theirs_used["mean"] else pains).append(
            f"of the slots' time, {percent(mine_used['mean'])} is in use instead of {percent(theirs_used['mean'])}"
        )
    return Versus(name=quoted(treatment["name"]), gains=tuple(gains), pains=tuple(pains), same=tuple(same))


def _tell(
    cls: str,
    mine: ClassShape,
    theirs: ClassShape,
    difference: DifferenceShape,
    gains: list[str],
    pains: list[str],
) -> None:
    """What differs for one class: how many are left, how long they wait, what part of the slot-time it holds."""
    what = f"<strong>{workloads(cls)}</strong>"
    left = difference["waiting"]
    most = max(mine["arrived"]["mean"], theirs["arrived"]["mean"])
    is_left = bool(most) and abs(left["mean"]) / most >= _SEEN and _sure(left)
    if is_left:
        (gains if left["mean"] < 0 else pains).append(
            f"{what}: {number(mine['arrived']['mean'] - mine['waiting']['mean'])} of {number(most)} start instead of "
            f"{number(theirs['arrived']['mean'] - theirs['waiting']['mean'])}"
            + (f": {_got(mine)}" if _starves(theirs) and not _starves(mine) else "")
        )
    if not (_starves(mine) or _starves(theirs)):
        for quantile, said in _TOLD.items():
            wait = difference["wait_seconds"].get(quantile)
            one, other = mine["wait_seconds"].get(quantile), theirs["wait_seconds"].get(quantile)
            if wait and one and other and _sure(wait) and abs(wait["mean"]) >= _FELT_SECONDS:
                (gains if wait["mean"] < 0 else pains).append(
                    f"{what}: {said} start within {duration(one['mean'])} instead of {duration(other['mean'])}, "
                    f"{_by(wait, duration)} {'sooner' if wait['mean'] < 0 else 'later'}"
                )
        _tell_dags(what, mine, theirs, gains, pains)
    share = difference["share"]
    if (is_left or not most) and abs(share["mean"]) >= _SEEN and _sure(share):
        (gains if share["mean"] > 0 else pains).append(
            f"{what} hold {_slots(mine):.1f} slots on average instead of {_slots(theirs):.1f}; of the slot-time in use "
            f"that is {percent(mine['share']['mean'])} instead of {percent(theirs['share']['mean'])}, "
            f"{_by(share, points)} points {'more' if share['mean'] > 0 else 'less'}"
        )


def _tell_dags(what: str, mine: ClassShape, theirs: ClassShape, gains: list[str], pains: list[str]) -> None:
    """What differs for most Dags: one that floods its class hides in the class's quantiles what becomes of the others."""
    slowest = len(mine["dags"])
    if slowest < 2 or slowest != len(theirs["dags"]):
        return
    one, other = mine["dags"][-1]["p95"], theirs["dags"][-1]["p95"]
    if max(one, other) >= _DAGS_FACTOR * min(one, other) and abs(one - other) >= _FELT_SECONDS:
        (gains if one < other else pains).append(
            f"{what}: with the {counted(slowest - 1, 'slowest Dag')} left out, 95 of 100 of each Dag start within {duration(one)} "
            f"instead of {duration(other)} (no interval)"
        )


def _slots(found: ClassShape) -> float:
    return fmean(found["slots_over_time"])


def _by(found: EstimateShape, said: Said) -> str:
    """The size of a difference, whose interval is on one side of nought."""
    low, high = found["low"], found["high"]
    size = said(abs(found["mean"]))
    if low is None or high is None:
        return size
    small, large = sorted((abs(low), abs(high)))
    return f"{size} ({said(small)} to {said(large)})"
