"""The plots: waits, shares against entitlements, slots over time, lags against their bounds, Dags."""

from __future__ import annotations

import math
from collections.abc import Sequence

from callback_priority.simulation.report import plots
from callback_priority.simulation.report.pieces import (
    bare_row,
    below,
    card_grid,
    colour,
    legend,
    picture,
    row,
    stacked_row,
    swatch,
)
from callback_priority.simulation.report.shapes import (
    ComparisonShape,
    ContentionShape,
    EstimateShape,
    LagShape,
    TreatmentShape,
)
from callback_priority.simulation.report.words import (
    Said,
    counted,
    duration,
    index,
    joined,
    name,
    number,
    parted,
    percent,
)

__all__ = ["QUANTILES", "contention", "dags", "lags", "over_time", "waits"]

QUANTILES = {
    "0.5": ("p50", "Half of them start within (p50)"),
    "0.95": ("p95", "95 of 100 start within (p95)"),
    "0.99": ("p99", "99 of 100 start within (p99)"),
    "1.0": ("max", "The longest wait (max)"),
}


_CONTENDED = 0.5
"""An entitlement is drawn where a class waited, while others did, for at least this part of a stretch."""


_MOST_CONTENTIONS = 3


_POLICY = "policy"


_QUOTAS = ("slot_quotas", "pool_quotas")


_DOT = picture(
    '<line class="whisker" x1="2" x2="24" y1="8" y2="8"/><line class="whisker" x1="2" x2="2" y1="3" y2="13"/>'
    '<line class="whisker" x1="24" x2="24" y1="3" y2="13"/><circle class="dot" cx="13" cy="8" r="5"/>',
    "",
)


_BAR = picture(
    '<rect class="bar" x="0" y="2" width="16" height="12"/><line class="post" x1="22" x2="22" y1="0" y2="16"/>',
    "",
)


_SPAN = picture(
    '<line class="span" x1="6" x2="20" y1="8" y2="8"/><circle class="hollow" cx="6" cy="8" r="5"/>'
    '<circle class="dot" cx="20" cy="8" r="5"/>',
    "",
)


_AREA = picture('<rect class="area" x="0" y="3" width="26" height="13"/>', "")


_DASHED = picture('<line class="entitled" x1="0" x2="26" y1="8" y2="8"/>', "")


_SHADED = picture('<rect class="shade" width="26" height="16"/>', "")


def waits(comparison: ComparisonShape) -> str:
    """The quantiles of each class's waits, treatments below each other."""
    treatments = comparison["treatments"]
    parts = []
    for cls in treatments[0]["classes"]:
        ends = [
            end
            for each in treatments
            for wait in each["classes"][cls]["wait_seconds"].values()
            if wait is not None
            for end in (wait["mean"], wait["high"])
            if end is not None
        ]
        if not ends and not any(each["classes"][cls]["arrived"]["mean"] for each in treatments):
            continue
        axis = plots.wait_axis(ends)
        parts.append(
            f'<h3>{swatch(cls)}{": logarithmic scale" if axis.is_log else ""}</h3>\n<div class="plot {colour(cls)}">'
        )
        for quantile, (_, said) in QUANTILES.items():
            parts.append(f'<p class="group">{said}</p>\n')
            parts += [_wait_row(each, cls, quantile, axis) for each in treatments]
        if ends:
            parts.append(below(axis))
        parts.append("</div>\n")
        left = [
            f"{number(each['classes'][cls]['waiting']['mean'])} of {number(each['classes'][cls]['arrived']['mean'])} under {name(each['name'])}"
            for each in treatments
            if each["classes"][cls]["waiting"]["mean"] >= 0.05
        ]
        if left:
            parts.append(
                f'<p class="hint">Not in these waits are those that still waited at the end: {joined(left)}.</p>\n'
            )
    if not parts:
        return ""
    dot = "mean over seeds with its confidence interval" if len(comparison["seeds"]) > 1 else "the one seed's"
    return (
        "<h2>How long they wait for a slot</h2>\n"
        '<p class="hint">From arrival until the scheduler gives a slot. Further left is sooner.</p>\n'
        + legend((_DOT, dot))
        + "".join(parts)
    )


def _wait_row(treatment: TreatmentShape, cls: str, quantile: str, axis: plots.Axis) -> str:
    found = treatment["classes"][cls]
    wait = found["wait_seconds"].get(quantile)
    what = name(treatment["name"])
    if wait is None:
        arrived = found["arrived"]["mean"]
        return bare_row(what, f"none of {number(arrived)} started" if arrived else "none arrived")
    between = parted(wait, duration)
    value = f"{duration(wait['mean'])}" + (f" <small>({between})</small>" if between else "")
    described = f"{what}, {name(cls)}, {QUANTILES[quantile][0]}: {value}"
    return row(what, plots.interval(axis, wait, _plain(described)), value)


def _plain(markup: str) -> str:
    """Markup of this page without its tags, for places that hold text only."""
    for tag in ("<bdi>", "</bdi>", "<small>", "</small>"):
        markup = markup.replace(tag, "")
    return markup


_PERCENT_AXIS = plots.Axis(low=0.0, high=1.0, ticks=(0.0, 0.25, 0.5, 0.75, 1.0), said=percent)


def contention(comparison: ComparisonShape) -> str:
    """What classes got while they waited at once, beside what they were entitled to."""
    treatments = comparison["treatments"]
    cards = []
    for each in treatments:
        parts = [f"<h3>{name(each['name'])}</h3>\n"]
        facts = [f"slots in use {_flat(each['utilisation'], percent)}"]
        if each["jain"] is not None:
            facts.append(f"Jain's index {_flat(each['jain'], index)}")
        parts.append(f'<p class="hint">{"; ".join(facts)}</p>\n')
        told = each["contention"][:_MOST_CONTENTIONS]
        parts += [_contended(found) for found in told]
        if not told:
            parts.append("<p>Never did two classes wait at once.</p>\n")
        rest = each["contention"][_MOST_CONTENTIONS:]
        if rest:
            length = duration(sum(found["seconds"] for found in rest))
            parts.append(
                f'<p class="hint">Left out: {counted(len(rest), "rarer combination")}, {length} together.</p>\n'
            )
        cards.append("".join(parts))
    return (
        "<h2>What they got while they waited, and what they were entitled to</h2>\n"
        '<p class="hint">Of the slot-time that the classes held which waited at once. Jain\'s index is 1 where each got what '
        "its weight entitles it to.</p>\n"
        + legend((_BAR, "bar: what the class held; post: what its weight entitles it to"))
        + card_grid(cards)
    )


def _flat(found: EstimateShape, said: Said) -> str:
    between = parted(found, said)
    return said(found["mean"]) + (f" ({between})" if between else "")


def _contended(found: ContentionShape) -> str:
    waiting = joined([name(cls) for cls in found["classes"]])
    rows = []
    for cls in found["classes"]:
        share, entitled = found["share"][cls], found["entitlement"][cls]
        between = parted(share, percent)
        value = f"{percent(share['mean'])} of {percent(entitled)}" + (
            f" <small>({between})</small>" if between else ""
        )
        drawn = plots.bar(
            _PERCENT_AXIS,
            share["mean"],
            entitled,
            _plain(f"{name(cls)}: held and entitled to {value}"),
            share,
        )
        rows.append(stacked_row(swatch(cls), drawn, value, colour(cls)))
    return (
        f"<h4>While {waiting} waited, {duration(found['seconds'])}</h4>\n"
        f'<div class="plot">{"".join(rows)}{plots.axis_picture(_PERCENT_AXIS)}</div>\n'
    )


def over_time(comparison: ComparisonShape) -> str:
    """The slots that each class held, over time."""
    scenario = comparison["scenario"]
    slots = scenario["slots"] * scenario["schedulers"]
    axis = plots.time_axis(scenario["seconds"], is_tight=True)
    cards = []
    for each in comparison["treatments"]:
        strips = []
        entitled = _entitled(each)
        for cls, found in each["classes"].items():
            band = plots.Band(
                held=[held / slots for held in found["slots_over_time"]],
                entitled=[None if part is None else part / slots for part in entitled[cls]],
                waited=found["wanting_over_time"],
            )
            what = f"{name(cls)}, {percent(found['share']['mean'])} of the slot-time"
            described = _plain(f"{what} under {name(each['name'])}, over time")
            strips.append(
                f'<p class="name-of-strip"><span class="swatch {colour(cls)}"></span>{what}</p>'
                f'<div class="{colour(cls)}">{plots.strip(axis, band, described)}</div>\n'
            )
        cards.append(
            f'<h3>{name(each["name"])}</h3><div class="over-time">{"".join(strips)}{plots.axis_picture(axis)}</div>'
        )
    length = duration(
        scenario["seconds"]
        / max(1, len(next(iter(comparison["treatments"][0]["classes"].values()))["slots_over_time"]))
    )
    return (
        "<h2>Who holds the slots, over time</h2>\n"
        f'<p class="hint">In percent of all {counted(slots, "slot")}; each step is the mean of {length} and of all seeds.</p>\n'
        + legend(
            (_AREA, "held"),
            (_DASHED, "entitled to, where it waited and others did, most of the time"),
            (_SHADED, "it waited while others did: the stronger, the more of the time"),
        )
        + card_grid(cards)
    )


def _entitled(treatment: TreatmentShape) -> dict[str, list[float | None]]:
    """How many slots each class was entitled to in each stretch: its weight's part of what those held that waited."""
    weights = _weights(treatment["contention"])
    classes = treatment["classes"]
    length = min(len(found["slots_over_time"]) for found in classes.values())
    entitled: dict[str, list[float | None]] = {cls: [None] * length for cls in classes}
    for place in range(length):
        waited = [
            cls
            for cls, found in classes.items()
            if cls in weights and found["wanting_over_time"][place] >= _CONTENDED
        ]
        if len(waited) < 2:
            continue
        held = sum(classes[cls]["slots_over_time"][place] for cls in waited)
        weight = sum(weights[cls] for cls in waited)
        for cls in waited:
            entitled[cls][place] = held * weights[cls] / weight
    return entitled


def _weights(contention: Sequence[ContentionShape]) -> dict[str, float]:
    """The classes' weights, up to a factor, from what any of them were entitled to together."""
    weights: dict[str, float] = {}
    left = [found["entitlement"] for found in contention]
    while left:
        known = next((each for each in left if weights.keys() & each.keys()), left[0])
        left.remove(known)
        common = next(iter(weights.keys() & known.keys()), None)
        factor = 1.0 if common is None or not known[common] else weights[common] / known[common]
        for cls, part in known.items():
            weights.setdefault(cls, part * factor)
    return weights


def lags(comparison: ComparisonShape) -> str:
    """The furthest that classes drifted apart, in parts of the bound."""
    told = {
        each["name"]: [lag for lag in each["lags"] if lag["seconds"] and lag["bound"]]
        for each in comparison["treatments"]
    }
    if not any(told.values()):
        return ""
    axis = _lag_axis(max(lag["seconds"] / lag["bound"] for each in told.values() for lag in each))
    rows = []
    for each in comparison["treatments"]:
        rows.append(f'<p class="group">{name(each["name"])}{_promise(each)}</p>\n')
        rows += [_lag_row(lag, axis) for lag in told[each["name"]]]
        if not told[each["name"]]:
            rows.append(bare_row("", "no two classes drifted apart while both waited"))
    return (
        "<h2>How far classes drift apart, and how far they may</h2>\n"
        '<p class="hint">The lag of two classes: by how much more slot-time over weight the one was served than the other while both '
        "waited, at its furthest in any seed, in percent of its bound. Fair sharing promises to stay below the bound, as long as nothing "
        "is reserved, limited or changed meanwhile.</p>\n"
        + legend((_BAR, "bar: lag; post: its bound"))
        + f'<div class="plot">{"".join(rows)}{below(axis)}</div>\n'
    )


def _lag_axis(highest: float) -> plots.Axis:
    highest = max(1.0, highest)
    step = next(
        each * 10.0**power
        for power in range(-1, 12)
        for each in (2.5, 5, 10)
        if highest / (each * 10.0**power) <= 4
    )
    return plots.Axis(
        low=0.0,
        high=step * math.ceil(highest / step + 0.02),
        ticks=tuple(step * each for each in range(math.ceil(highest / step + 0.02) + 1)),
        said=lambda part: f"{part * 100:,.0f}%",
    )


def _promise(treatment: TreatmentShape) -> str:
    """Why the bound is not promised, if it is not."""
    settings = treatment["settings"]
    why = []
    if _POLICY in settings:
        why.append("another policy than fair")
    if any(settings.get(each, "{}").strip() not in {"", "{}"} for each in _QUOTAS):
        why.append("something is reserved or limited")
    if treatment["changes"]:
        why.append("settings change meanwhile")
    if treatment["accounting"] != "slot_time":
        why.append("shares are not counted in slot-time")
    return f": not promised, {joined(why)}" if why else ": promised"


def _lag_row(lag: LagShape, axis: plots.Axis) -> str:
    pair = f"{name(lag['first'])} and {name(lag['second'])}"
    part = lag["seconds"] / lag["bound"]
    verdict = "within" if part <= 1 else "beyond"
    value = f"{part * 100:,.0f}% of its bound, {verdict} it <small>({lag['seconds']:,.0f} of {lag['bound']:,.0f} slot-seconds over weight)</small>"
    return row(pair, plots.bar(axis, part, 1.0, _plain(f"{pair}: {value}")), value)


def dags(comparison: ComparisonShape) -> str:
    """The Dags of each class that waited longest."""
    treatments = comparison["treatments"]
    parts = []
    for cls in treatments[0]["classes"]:
        waits = [
            wait
            for each in treatments
            for dag in each["classes"][cls]["dags"]
            for wait in (dag["p50"], dag["p95"])
        ]
        if not waits:
            continue
        axis = plots.wait_axis(waits)
        cards = []
        for each in treatments:
            rows = []
            for dag in each["classes"][cls]["dags"]:
                value = f"{duration(dag['p50'])} to {duration(dag['p95'])}"
                described = _plain(f"{name(dag['name'])} under {name(each['name'])}: p50 to p95 {value}")
                rows.append(
                    stacked_row(
                        name(dag["name"]), plots.span(axis, dag["p50"], dag["p95"], described), value, ""
                    )
                )
            said = "".join(rows) + plots.axis_picture(axis) if rows else "<p>None was started.</p>"
            cards.append(f'<div class="{colour(cls)}"><h4>{name(each["name"])}</h4>{said}</div>')
        parts.append(
            f"<h3>{swatch(cls)}{': logarithmic scale' if axis.is_log else ''}</h3>\n{card_grid(cards)}"
        )
    if not parts:
        return ""
    return (
        "<h2>The Dags that wait longest</h2>\n"
        + legend((_SPAN, "from the median wait (p50, hollow) to what 95 of 100 don't exceed (p95, full)"))
        + "".join(parts)
    )
