"""Small drawings whose labels keep their size at any width: every place along a page's width is a percentage.

An SVG with a ``viewBox`` shrinks its text together with everything else, so that a label of 12 pixels on a screen is one of 4 on a phone;
that is what a library for plots gives. Here no drawing with text in it has one: lines, marks and labels lie at percentages of the width
and at pixels of the height, and curves, which can't, are in an inner SVG that is stretched and has no text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import attrs

from callback_priority.simulation.report.shapes import EstimateShape
from callback_priority.simulation.report.words import Said, duration

__all__ = [
    "Axis",
    "Band",
    "area",
    "axis_picture",
    "bar",
    "interval",
    "span",
    "strip",
    "time_axis",
    "wait_axis",
]

TRACK_HEIGHT = 24
"""Of one row of a plot, in pixels."""
STRIP_HEIGHT = 76
"""Of one curve over time, in pixels."""
_MOST_TICKS = 4
_DECADES = 1.5
"""Waits that span more of these are drawn on a logarithmic scale."""
_MOST_DECADES = 5.0
_ROUND_SECONDS = (
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200),
    *(10_800, 21_600, 43_200, 86_400, 172_800, 345_600, 604_800, 1_209_600, 2_592_000, 7_776_000, 15_552_000),
)
_LOG_SECONDS = (0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3_600.0, 21_600.0, 86_400.0, 864_000.0, 8_640_000.0)


@attrs.frozen(kw_only=True)
class Axis:
    """Where values lie along the width.

    Args:
        low: The value at the left edge; what is below lies there, too.
        high: The value at the right edge.
        is_log: Whether equal steps are equal ratios.
        ticks: The values that are labelled.
        said: The text of a value.
    """

    low: float
    high: float
    is_log: bool = False
    ticks: tuple[float, ...] = ()
    said: Said = duration

    def at(self, value: float) -> float:
        """The place, in percent of the width."""
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return 100 * (value - low) / (high - low) if high > low else 0.0


def wait_axis(waits: Iterable[float]) -> Axis:
    """An axis for waits, logarithmic where they span more than a decade and a half.

    Args:
        waits: What shall find a place, in seconds.
    """
    found = [each for each in waits if each > 0]
    longest = max(found, default=1.0)
    shortest = max(min(found, default=1.0), longest / 10**_MOST_DECADES, 0.01)
    if math.log10(longest / shortest) <= _DECADES:
        return time_axis(longest)
    low, high = shortest / 1.3, longest * 1.1
    ticks = [each for each in _LOG_SECONDS if low <= each <= high]
    step = -(-len(ticks) // (_MOST_TICKS + 1))
    return Axis(low=low, high=high, is_log=True, ticks=tuple(ticks[::step]))


def time_axis(longest: float, *, is_tight: bool = False) -> Axis:
    """An axis for seconds from nought.

    Args:
        longest: What shall find a place.
        is_tight: Whether it ends there, not at a round number.
    """
    longest = max(longest, 0.01)
    step = next((each for each in _ROUND_SECONDS if longest / each <= _MOST_TICKS), longest / _MOST_TICKS)
    high = longest if is_tight else step * math.ceil(longest / step - 1e-9)
    return Axis(low=0.0, high=high, ticks=tuple(step * each for each in range(int(high / step + 1e-9) + 1)))


def axis_picture(axis: Axis) -> str:
    """The labels below a plot."""
    labels = []
    for tick in axis.ticks:
        place = axis.at(tick)
        anchor = "start" if place < 4 else "end" if place > 92 else "middle"
        labels.append(f'<text x="{place:.2f}%" y="14" text-anchor="{anchor}">{axis.said(tick)}</text>')
    return f'<svg class="axis" width="100%" height="18" aria-hidden="true">{"".join(labels)}</svg>'


def _track(axis: Axis, marks: str, described: str) -> str:
    middle = TRACK_HEIGHT / 2
    lines = "".join(
        f'<line class="grid" x1="{axis.at(each):.2f}%" x2="{axis.at(each):.2f}%" y1="0" y2="{TRACK_HEIGHT}"/>'
        for each in axis.ticks
    )
    return (
        f'<svg class="track" width="100%" height="{TRACK_HEIGHT}" role="img"><title>{described}</title>{lines}'
        f'<line class="grid" x1="0" x2="100%" y1="{middle:g}" y2="{middle:g}"/>{marks}</svg>'
    )


def _whiskers(axis: Axis, found: EstimateShape) -> str:
    low, high = found["low"], found["high"]
    if low is None or high is None:
        return ""
    left, right, middle = axis.at(low), axis.at(high), TRACK_HEIGHT / 2
    return (
        f'<line class="whisker" x1="{left:.2f}%" x2="{right:.2f}%" y1="{middle:g}" y2="{middle:g}"/>'
        + "".join(
            f'<line class="whisker" x1="{end:.2f}%" x2="{end:.2f}%" y1="{middle - 5:g}" y2="{middle + 5:g}"/>'
            for end in (left, right)
        )
    )


def interval(axis: Axis, found: EstimateShape, described: str) -> str:
    """A mean as a dot, its confidence interval as a line with ends.

    Args:
        axis: Where values lie.
        found: The mean and its interval.
        described: What is seen, as markup, for who can't see it or points at it.
    """
    dot = f'<circle class="dot" cx="{axis.at(found["mean"]):.2f}%" cy="{TRACK_HEIGHT / 2:g}" r="5"/>'
    return _track(axis, _whiskers(axis, found) + dot, described)


def span(axis: Axis, first: float, last: float, described: str) -> str:
    """A stretch between a hollow and a full dot.

    Args:
        axis: Where values lie.
        first: Where the hollow dot lies.
        last: Where the full dot lies.
        described: What is seen, as markup.
    """
    left, right, middle = axis.at(first), axis.at(last), TRACK_HEIGHT / 2
    marks = (
        f'<line class="span" x1="{left:.2f}%" x2="{right:.2f}%" y1="{middle:g}" y2="{middle:g}"/>'
        f'<circle class="dot" cx="{right:.2f}%" cy="{middle:g}" r="5"/>'
        f'<circle class="hollow" cx="{left:.2f}%" cy="{middle:g}" r="5"/>'
    )
    return _track(axis, marks, described)


def bar(axis: Axis, value: float, mark: float, described: str, found: EstimateShape | None = None) -> str:
    """A bar from the left edge, and a post where it should end.

    Args:
        axis: Where values lie.
        value: How long the bar is.
        mark: Where the post stands.
        described: What is seen, as markup.
        found: The estimate whose interval is drawn over the bar's end, if any.
    """
    place = f"{axis.at(mark):.2f}%"
    marks = (
        f'<rect class="bar" x="0" y="5" width="{axis.at(value):.2f}%" height="{TRACK_HEIGHT - 10}"/>'
        + (_whiskers(axis, found) if found else "")
        + f'<line class="post" x1="{place}" x2="{place}" y1="0" y2="{TRACK_HEIGHT}"/>'
    )
    return _track(axis, marks, described)


@attrs.frozen(kw_only=True)
class Band:
    """What is drawn of one class over time; each sequence has one number for each stretch of equal length.

    Args:
        held: The part of all slots that it held.
        entitled: The part that it was entitled to; ``None`` where nothing is said of that.
        waited: The part of the stretch in which it waited while others did.
    """

    held: Sequence[float]
    entitled: Sequence[float | None]
    waited: Sequence[float]


def strip(axis: Axis, band: Band, described: str) -> str:
    """One class over time: what it held as an area, what it was entitled to as a dashed line, shaded while it waited.

    Args:
        axis: The time; both ends are the picture's.
        band: What is drawn.
        described: What is seen, as markup.
    """
    length = len(band.held)
    upright = "".join(
        f'<line class="grid" x1="{axis.at(each):.2f}%" x2="{axis.at(each):.2f}%" y1="0" y2="100%"/>'
        for each in axis.ticks
    )
    level = "".join(
        f'<line class="grid" x1="0" x2="100%" y1="{100 - each}%" y2="{100 - each}%"/>'
        f'<text x="-6" y="{100 - each}%" dy="{drop}" text-anchor="end">{each}%</text>'
        for each, drop in ((0, "0"), (50, "4"), (100, "9"))
    )
    return (
        f'<svg class="strip" width="100%" height="{STRIP_HEIGHT}" role="img"><title>{described}</title>'
        f"{_shades(band.waited)}{upright}{level}"
        f'<svg width="100%" height="100%" viewBox="0 0 {length} 1" preserveAspectRatio="none">'
        f'<path class="area" d="{area(band.held)}"/><path class="entitled" d="{_dashes(band.entitled)}"/>'
        "</svg></svg>"
    )


def _shades(waited: Sequence[float]) -> str:
    """Merged stretches of about the same depth, which is how much of the time it waited."""
    depths = [math.ceil(round(each, 3) * 4) for each in waited]
    found, start = [], 0
    for place in range(1, len(depths) + 1):
        if place < len(depths) and depths[place] == depths[start]:
            continue
        if depths[start]:
            left, width = (100 * each / len(depths) for each in (start, place - start))
            found.append(
                f'<rect class="shade" x="{left:.2f}%" width="{width:.2f}%" height="{STRIP_HEIGHT + 8}" opacity="{depths[start] / 4:g}"/>'
            )
        start = place
    return "".join(found)


def area(parts: Sequence[float]) -> str:
    """The path of an area with steps, one unit of width for each part and the height 1 for all.

    >>> area([0.5, 0.5, 1])
    'M0 1V0.5H2V0H3V1Z'
    """
    path, last = ["M0 1"], None
    for place, part in enumerate(parts):
        height = round(1 - min(max(part, 0.0), 1.0), 4)
        if height != last:
            path.append(f"{f'H{place}' if place else ''}V{height:g}")
        last = height
    return "".join(path) + f"H{len(parts)}V1Z"


def _dashes(parts: Sequence[float | None]) -> str:
    path: list[str] = []
    last: float | None = None
    for place, part in enumerate(parts):
        if part is not None:
            height = round(1 - min(max(part, 0.0), 1.0), 4)
            path.append(f"M{place} {height:g}" if last is None else f"V{height:g}" if height != last else "")
            path.append(f"H{place + 1}")
            last = height
        else:
            last = None
    return "".join(path)
