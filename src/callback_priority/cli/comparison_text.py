"""A comparison of treatments as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from callback_priority.cli.text import NOTHING, columns, count, duration, share

if TYPE_CHECKING:
    from callback_priority.simulation.comparison import ClassSummary, Comparison, TreatmentSummary
    from callback_priority.simulation.estimates import Estimate

__all__ = ["comparison_text"]

_Text = Callable[[float], str]

_NEVER = "never"
_SAME = "same"


def comparison_text(found: Comparison, *, dags: bool = False) -> str:
    """The comparison, as lines.

    Args:
        found: The comparison.
        dags: Whether to tell of single Dags, too.
    """
    parts = [_head(found), _waits(found.treatments), _shares(found.treatments)]
    if dags:
        parts.append(_dags(found.treatments))
    parts += [_lags(found.treatments), _differences(found.treatments)]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _head(found: Comparison) -> list[str]:
    scenario = found.scenario
    seeds = count(len(found.seeds), "seed")
    lines = [f"{scenario.name}: {scenario.description}" if scenario.description else scenario.name]
    schedulers = "" if scenario.schedulers == 1 else f"{scenario.schedulers} schedulers of "
    lines.append(
        f"{duration(scenario.seconds)}, {schedulers}{count(scenario.slots, 'slot')}, {seeds}"
        + (f"; means with their {found.confidence:.4g} confidence" if len(found.seeds) > 1 else "")
    )
    return lines


def _waits(treatments: Sequence[TreatmentSummary]) -> list[str]:
    rows = [
        [
            each.treatment.name,
            cls.value,
            *_quantiles(summary),
            _sure(summary.waiting, _number),
            f"{summary.arrived.mean:,.0f}",
            _sure(summary.share, share),
        ]
        for each in treatments
        for cls, summary in each.classes.items()
    ]
    header = ["settings", "class", "wait p50", "p95", "p99", "max", "never started", "of", "share"]
    return columns(header, rows, left=(0, 1))


def _quantiles(summary: ClassSummary) -> list[str]:
    if not summary.arrived.mean:
        # A backlog without end: nothing of it arrives, so nothing of it waits for a time.
        return [NOTHING] * len(summary.wait_seconds)
    return [_NEVER if each is None else _sure(each, duration) for each in summary.wait_seconds.values()]


def _shares(treatments: Sequence[TreatmentSummary]) -> list[str]:
    rows = []
    for each in treatments:
        start = [each.treatment.name, _sure(each.utilisation, share), _sure(each.jain, _index)]
        for contention in each.contention or [None]:
            if contention is None:
                rows.append([*start, NOTHING, NOTHING, NOTHING])
                break
            shares = (
                f"{cls.value} {_sure(contention.share[cls], share)} of {share(contention.entitlement[cls])}"
                for cls in contention.classes
            )
            waiting = ", ".join(cls.value for cls in contention.classes)
            rows.append([*start, waiting, duration(contention.seconds), "; ".join(shares)])
            start = ["", "", ""]
    header = [
        "settings",
        "used",
        "Jain",
        "while these waited",
        "for",
        "they had, of what they were entitled to",
    ]
    return columns(header, rows, left=(0, 3, 5))


def _dags(treatments: Sequence[TreatmentSummary]) -> list[str]:
    rows = [
        [each.treatment.name, cls.value, dag.name, duration(dag.p50_seconds), duration(dag.p95_seconds)]
        for each in treatments
        for cls, summary in each.classes.items()
        for dag in summary.dags
    ]
    header = ["settings", "class", "Dag that waited longest", "wait p50", "p95"]
    return columns(header, rows, left=(0, 1, 2)) if rows else []


def _lags(treatments: Sequence[TreatmentSummary]) -> list[str]:
    rows = [
        [
            each.treatment.name,
            f"{lag.first}, {lag.second}",
            f"{lag.seconds:,.0f}",
            f"{lag.bound:,.0f}",
            share(lag.seconds / lag.bound) if lag.bound else NOTHING,
        ]
        for each in treatments
        for lag in each.lags
        if lag.seconds
    ]
    header = ["settings", "classes", "lag (slot-seconds / weight)", "bound", "part"]
    return columns(header, rows, left=(0, 1)) if rows else []


def _differences(treatments: Sequence[TreatmentSummary]) -> list[str]:
    rows = []
    for each in treatments:
        for cls, difference in (each.differences or {}).items():
            waits = [difference.wait_seconds[fraction] for fraction in (0.5, 0.95)]
            rows.append(
                [
                    each.treatment.name,
                    cls.value,
                    *(_change(wait, duration) for wait in waits),
                    _change(difference.waiting, _number),
                    _change(difference.share, share),
                ]
            )
    if not rows:
        return []
    header = [f"against {treatments[0].treatment.name}", "class", "wait p50", "p95", "never started", "share"]
    return [
        *columns(header, rows, left=(0, 1)),
        "",
        "* may be chance: the interval of the seed-by-seed differences holds nought",
    ]


def _number(value: float) -> str:
    return f"{value:,.1f}" if 0 < value < 9.95 and value != int(value) else f"{value:,.0f}"


def _index(value: float) -> str:
    return f"{value:.3f}"


def _sure(found: Estimate | None, text: _Text) -> str:
    """A mean, and half the width of its interval."""
    if found is None:
        return NOTHING
    half = found.half_width
    return text(found.mean) if half is None else f"{text(found.mean)} ±{text(half)}"


def _change(found: Estimate | None, text: _Text) -> str:
    """A difference with its sign; a star where it may be chance."""
    if found is None:
        return NOTHING
    if not found.mean and not found.half_width:
        return _SAME
    sign = "-" if found.mean < 0 else "+"
    star = "" if found.low is None or found.excludes_zero else "*"
    half = "" if found.half_width is None else f" ±{text(found.half_width)}"
    return f"{sign}{text(abs(found.mean))}{half}{star}"
