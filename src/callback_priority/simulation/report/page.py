"""The page: what the comparison shows in words, then tables and plots, then what was tried."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from importlib.resources import files

from callback_priority.simulation.report import plots
from callback_priority.simulation.report.findings import find
from callback_priority.simulation.report.shapes import (
    ClassShape,
    ComparisonShape,
    ContentionShape,
    EstimateShape,
    LagShape,
    TreatmentShape,
)
from callback_priority.simulation.report.words import (
    NONE,
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

__all__ = ["page"]

_QUANTILES = {
    "0.5": ("p50", "Half of them start within (p50)"),
    "0.95": ("p95", "95 of 100 start within (p95)"),
    "0.99": ("p99", "99 of 100 start within (p99)"),
    "1.0": ("max", "The longest wait (max)"),
}
_KNOWN = ("deadline", "task_callback", "dag_callback", "task")
_POLICY = "policy"
_QUOTAS = ("slot_quotas", "pool_quotas")
_CONTENDED = 0.5
"""An entitlement is drawn where a class waited, while others did, for at least this part of a stretch."""
_MOST_CONTENTIONS = 3


def page(comparison: ComparisonShape, notes: Sequence[str] = ()) -> str:
    """The whole page as HTML.

    Args:
        comparison: What `callback_priority.simulation.comparison.Comparison.to_json` gave.
        notes: What has to be known to judge it, a sentence each.
    """
    title = name(comparison["scenario"]["name"]).removeprefix("<bdi>").removesuffix("</bdi>")
    style = (files("callback_priority.simulation.report") / "style.css").read_text(encoding="utf-8")
    sections = "".join(
        (
            _head(comparison),
            _notes(notes),
            _versus(comparison),
            _tables(comparison),
            _waits(comparison),
            _contention(comparison),
            _over_time(comparison),
            _lags(comparison),
            _dags(comparison),
            _tried(comparison),
            _reading(comparison),
        )
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{title}: settings compared</title><style>\n{style}</style></head>\n<body><main>\n{sections}</main></body></html>\n"
    )


# Pieces ------------------------------------------------------------------------------------------------------------


def _colour(cls: str) -> str:
    """The CSS class that brings a service class's colour: never a name that somebody else could have given."""
    return f"c-{cls}" if cls in _KNOWN else "c-other"


def _swatch(cls: str) -> str:
    return f'<span class="swatch {_colour(cls)}"></span>{name(cls)}'


def _picture(drawn: str, css: str) -> str:
    return f'<svg width="26" height="16" aria-hidden="true" class="{css}">{drawn}</svg>'


_DOT = _picture(
    '<line class="whisker" x1="2" x2="24" y1="8" y2="8"/><line class="whisker" x1="2" x2="2" y1="3" y2="13"/>'
    '<line class="whisker" x1="24" x2="24" y1="3" y2="13"/><circle class="dot" cx="13" cy="8" r="5"/>',
    "",
)
_BAR = _picture(
    '<rect class="bar" x="0" y="2" width="16" height="12"/><line class="post" x1="22" x2="22" y1="0" y2="16"/>',
    "",
)
_SPAN = _picture(
    '<line class="span" x1="6" x2="20" y1="8" y2="8"/><circle class="hollow" cx="6" cy="8" r="5"/>'
    '<circle class="dot" cx="20" cy="8" r="5"/>',
    "",
)
_AREA = _picture('<rect class="area" x="0" y="3" width="26" height="13"/>', "")
_DASHED = _picture('<line class="entitled" x1="0" x2="26" y1="8" y2="8"/>', "")
_SHADED = _picture('<rect class="shade" width="26" height="16"/>', "")


def _legend(*entries: tuple[str, str]) -> str:
    return '<ul class="legend">' + "".join(f"<li>{drawn}{said}</li>" for drawn, said in entries) + "</ul>\n"


def _row(what: str, drawn: str, value: str, css: str = "") -> str:
    return (
        f'<div class="row {css}"><div class="what">{what}</div><div class="picture">{drawn}</div>'
        f'<div class="value">{value}</div></div>\n'
    )


def _bare_row(what: str, said: str) -> str:
    return f'<div class="row"><div class="what">{what}</div><div class="none">{said}</div></div>\n'


def _below(axis: plots.Axis) -> str:
    return f'<div class="row"><div class="what"></div><div class="picture">{plots.axis_picture(axis)}</div></div>\n'


def _sure(found: EstimateShape | None, said: Said) -> str:
    """A mean, and its interval in small letters below it."""
    if found is None:
        return NONE
    between = parted(found, said)
    return said(found["mean"]) + (f" <small>{between}</small>" if between else "")


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose rows become blocks on a narrow screen, where each cell says which column it is of."""
    lines = []
    for first, *cells in rows:
        labelled = "".join(
            f'<td data-label="{column}"><span>{cell}</span></td>'
            for column, cell in zip(header[1:], cells, strict=True)
        )
        lines.append(f'<tr><th scope="row" class="left">{first}</th>{labelled}</tr>')
    head = "".join(f'<th scope="col">{column}</th>' for column in header)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n" + "\n".join(lines) + "\n</tbody></table>\n"


def _confidence(comparison: ComparisonShape) -> str:
    return f"{comparison['confidence'] * 100:.4g}%"


# Sections ----------------------------------------------------------------------------------------------------------


def _head(comparison: ComparisonShape) -> str:
    scenario, seeds, treatments = comparison["scenario"], comparison["seeds"], comparison["treatments"]
    found = find(comparison)
    slots = scenario["slots"] * scenario["schedulers"]
    facts = [
        counted(slots, "slot")
        + (f" of {counted(scenario['schedulers'], 'scheduler')}" if scenario["schedulers"] > 1 else ""),
        duration(scenario["seconds"]),
        counted(len(treatments), "way to share the slots", "ways to share the slots"),
    ]
    if len(seeds) > 1:
        facts.append(
            f"means over {counted(len(seeds), 'seed')}, their {_confidence(comparison)} confidence intervals in brackets"
        )
    else:
        facts.append("one seed: no intervals, so that a difference may be chance")
    description = f"<p>{name(scenario['description'])}</p>" if scenario["description"] else ""
    return (
        f'<p class="kind">Settings compared on {name(scenario["name"])}</p>\n<h1>{found.headline}</h1>\n'
        + (f'<p class="lead">{found.cost}</p>\n' if found.cost else "")
        + "".join(f"<p>{each}</p>\n" for each in found.classes)
        + f'{_described(description)}<p class="facts">{"; ".join(facts)}.</p>\n'
    )


def _described(description: str) -> str:
    return (
        f'<div class="facts">The work: {description.removeprefix("<p>").removesuffix("</p>")}</div>\n'
        if description
        else ""
    )


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{_text(each)}</li>" for each in notes)
    return f"<h2>What was assumed</h2>\n<ul>{items}</ul>\n"


def _text(text: str) -> str:
    return f'<span class="text">{name(text)}</span>'


def _versus(comparison: ComparisonShape) -> str:
    found = find(comparison).versus
    if not found:
        return ""
    first = name(comparison["treatments"][0]["name"])
    cards = []
    for each in found:
        gains = "".join(
            f'<li><span class="gain">\N{BLACK UP-POINTING TRIANGLE} Better:</span> {said}.</li>'
            for said in each.gains
        )
        pains = "".join(
            f'<li><span class="pain">\N{BLACK DOWN-POINTING TRIANGLE} Worse:</span> {said}.</li>'
            for said in each.pains
        )
        same = f"<li>No difference told from chance: {joined(each.same)}.</li>" if each.same else ""
        cards.append(f'<div class="card"><h3>{each.name}</h3><ul>{gains}{pains}{same}</ul></div>\n')
    return (
        f"<h2>Each against {first}</h2>\n"
        '<p class="hint">All saw the same work, so they are compared seed by seed; brackets hold the interval of that difference.</p>\n'
        f'<div class="cards">{"".join(cards)}</div>\n'
    )


def _tables(comparison: ComparisonShape) -> str:
    treatments = comparison["treatments"]
    header = (
        "settings",
        "wait p50",
        "p95",
        "p99",
        "max",
        "mean wait",
        "never started",
        "oldest of these",
        "arrived",
        "share of slot-time",
    )
    parts = ["<h2>Every class in numbers</h2>\n"]
    for cls in treatments[0]["classes"]:
        parts.append(f"<h3>{_swatch(cls)}</h3>\n")
        if not any(each["classes"][cls]["arrived"]["mean"] for each in treatments):
            parts.append(
                '<p class="hint">A backlog without end: nothing of it arrives, so it has no waits, only a share.</p>\n'
            )
        rows = []
        for each in treatments:
            found = each["classes"][cls]
            waits = [_wait(found, quantile) for quantile in _QUANTILES]
            rows.append(
                (
                    name(each["name"]),
                    *waits,
                    _sure(found["mean_wait_seconds"], duration),
                    _sure(found["waiting"], number),
                    _sure(found["oldest_seconds"], duration) if found["waiting"]["mean"] else NONE,
                    number(found["arrived"]["mean"]),
                    _sure(found["share"], percent),
                )
            )
        parts.append(_table(header, rows))
    return "".join(parts)


def _wait(found: ClassShape, quantile: str) -> str:
    wait = found["wait_seconds"].get(quantile)
    if wait is None:
        return "never" if found["arrived"]["mean"] else NONE
    return _sure(wait, duration)


def _waits(comparison: ComparisonShape) -> str:
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
            f'<h3>{_swatch(cls)}{": logarithmic scale" if axis.is_log else ""}</h3>\n<div class="plot {_colour(cls)}">'
        )
        for quantile, (_, said) in _QUANTILES.items():
            parts.append(f'<p class="group">{said}</p>\n')
            parts += [_wait_row(each, cls, quantile, axis) for each in treatments]
        if ends:
            parts.append(_below(axis))
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
        + _legend((_DOT, dot))
        + "".join(parts)
    )


def _wait_row(treatment: TreatmentShape, cls: str, quantile: str, axis: plots.Axis) -> str:
    found = treatment["classes"][cls]
    wait = found["wait_seconds"].get(quantile)
    what = name(treatment["name"])
    if wait is None:
        arrived = found["arrived"]["mean"]
        return _bare_row(what, f"none of {number(arrived)} started" if arrived else "none arrived")
    between = parted(wait, duration)
    value = f"{duration(wait['mean'])}" + (f" <small>({between})</small>" if between else "")
    described = f"{what}, {name(cls)}, {_QUANTILES[quantile][0]}: {value}"
    return _row(what, plots.interval(axis, wait, _plain(described)), value)


def _plain(markup: str) -> str:
    """Markup of this page without its tags, for places that hold text only."""
    for tag in ("<bdi>", "</bdi>", "<small>", "</small>"):
        markup = markup.replace(tag, "")
    return markup


_PERCENT_AXIS = plots.Axis(low=0.0, high=1.0, ticks=(0.0, 0.25, 0.5, 0.75, 1.0), said=percent)


def _contention(comparison: ComparisonShape) -> str:
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
        cards.append(f'<div class="card">{"".join(parts)}</div>\n')
    return (
        "<h2>What they got while they waited, and what they were entitled to</h2>\n"
        '<p class="hint">Of the slot-time that the classes held which waited at once. Jain\'s index is 1 where each got what '
        "its weight entitles it to.</p>\n"
        + _legend((_BAR, "bar: what the class held; post: what its weight entitles it to"))
        + f'<div class="cards">{"".join(cards)}</div>\n'
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
        rows.append(_stacked_row(_swatch(cls), drawn, value, _colour(cls)))
    return (
        f"<h4>While {waiting} waited, {duration(found['seconds'])}</h4>\n"
        f'<div class="plot">{"".join(rows)}{plots.axis_picture(_PERCENT_AXIS)}</div>\n'
    )


def _stacked_row(what: str, drawn: str, value: str, css: str) -> str:
    return (
        f'<div class="stacked {css}"><div class="what">{what}</div><div class="value">{value}</div>'
        f'<div class="picture">{drawn}</div></div>\n'
    )


def _over_time(comparison: ComparisonShape) -> str:
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
                f'<p class="name-of-strip"><span class="swatch {_colour(cls)}"></span>{what}</p>'
                f'<div class="{_colour(cls)}">{plots.strip(axis, band, described)}</div>\n'
            )
        cards.append(
            f'<div class="card"><h3>{name(each["name"])}</h3><div class="over-time">{"".join(strips)}{plots.axis_picture(axis)}</div></div>\n'
        )
    length = duration(
        scenario["seconds"]
        / max(1, len(next(iter(comparison["treatments"][0]["classes"].values()))["slots_over_time"]))
    )
    return (
        "<h2>Who holds the slots, over time</h2>\n"
        f'<p class="hint">In percent of all {counted(slots, "slot")}; each step is the mean of {length} and of all seeds.</p>\n'
        + _legend(
            (_AREA, "held"),
            (_DASHED, "entitled to, where it waited and others did, most of the time"),
            (_SHADED, "it waited while others did: the darker, the more of the time"),
        )
        + f'<div class="cards">{"".join(cards)}</div>\n'
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


def _lags(comparison: ComparisonShape) -> str:
    told = [(each, lag) for each in comparison["treatments"] for lag in each["lags"] if lag["bound"] > 0]
    if not told:
        return ""
    highest = max(1.0, *(lag["seconds"] / lag["bound"] for _, lag in told))
    axis = _lag_axis(highest)
    rows = []
    last = ""
    for each, lag in told:
        if each["name"] != last:
            rows.append(f'<p class="group">{name(each["name"])}{_promise(each)}</p>\n')
        last = each["name"]
        rows.append(_lag_row(lag, axis))
    return (
        "<h2>How far classes drift apart, and how far they may</h2>\n"
        '<p class="hint">The lag of two classes: by how much more slot-time over weight the one was served than the other while both '
        "waited, at its furthest in any seed, in percent of its bound. Fair sharing promises to stay below the bound, as long as nothing "
        "is reserved, limited or changed meanwhile.</p>\n"
        + _legend((_BAR, "bar: lag; post: its bound"))
        + f'<div class="plot">{"".join(rows)}{_below(axis)}</div>\n'
    )


def _lag_axis(highest: float) -> plots.Axis:
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
    return _row(pair, plots.bar(axis, part, 1.0, _plain(f"{pair}: {value}")), value)


def _dags(comparison: ComparisonShape) -> str:
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
                    _stacked_row(
                        name(dag["name"]), plots.span(axis, dag["p50"], dag["p95"], described), value, ""
                    )
                )
            said = "".join(rows) + plots.axis_picture(axis) if rows else "<p>None was started.</p>"
            cards.append(f'<div class="card {_colour(cls)}"><h4>{name(each["name"])}</h4>{said}</div>\n')
        parts.append(
            f'<h3>{_swatch(cls)}{": logarithmic scale" if axis.is_log else ""}</h3>\n<div class="cards">{"".join(cards)}</div>\n'
        )
    if not parts:
        return ""
    return (
        "<h2>The Dags that wait longest</h2>\n"
        + _legend((_SPAN, "from the median wait (p50, hollow) to what 95 of 100 don't exceed (p95, full)"))
        + "".join(parts)
    )


def _tried(comparison: ComparisonShape) -> str:
    scenario = comparison["scenario"]
    cards = []
    for each in comparison["treatments"]:
        changes = "".join(
            f"<p>From {duration(change['at_seconds'])} on:</p>{_settings(change['settings'])}"
            for change in each["changes"]
        )
        counted_in = (
            ""
            if each["accounting"] == "slot_time"
            else f"<p>Shares are counted in {name(each['accounting'])}.</p>"
        )
        cards.append(
            f'<div class="card"><h3>{name(each["name"])}</h3>{_settings(each["settings"])}{changes}{counted_in}</div>\n'
        )
    pools = (
        joined(
            [
                f"{name(pool)} ({'unlimited' if slots is None else counted(slots, 'slot')})"
                for pool, slots in scenario["pools"].items()
            ]
        )
        if scenario["pools"]
        else "none"
    )
    facts = [
        f"{counted(scenario['schedulers'], 'scheduler')} with {counted(scenario['slots'], 'slot')} each",
        f"a loop every {duration(scenario['loop_seconds'])}",
        f"pools: {pools}",
    ]
    if scenario["tasks_per_query"] is not None:
        facts.append(f"at most {counted(scenario['tasks_per_query'], 'task')} a query")
    if scenario["warm_up_seconds"]:
        facts.append(f"waits are counted after {duration(scenario['warm_up_seconds'])}")
    seeds = comparison["seeds"]
    facts.append(f"{'seeds' if len(seeds) > 1 else 'seed'} {_seeds(seeds)}")
    return (
        '<h2>What was tried</h2>\n<p class="hint">Options that differ from their defaults.</p>\n'
        f'<div class="cards">{"".join(cards)}</div>\n<p class="facts">{"; ".join(facts)}.</p>\n'
    )


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return joined([str(each) for each in seeds])


def _settings(settings: dict[str, str]) -> str:
    if not settings:
        return "<p>Everything as it is by default.</p>"
    return "".join(f"<p><code>{name(option)} = {name(text)}</code></p>" for option, text in settings.items())


def _reading(comparison: ComparisonShape) -> str:
    items = [
        "A wait is the wait for a slot; to it comes what executor and worker need to start the work.",
        "A quantile is taken in each seed; what stands here is the mean of these. Waits are of what was started.",
        "Nothing is preempted: where long tasks hold every slot, no weights make a callback wait less than until one of them ends. "
        "A reserve does.",
    ]
    if len(comparison["seeds"]) > 1:
        items.append(
            f"An interval holds the true mean with {_confidence(comparison)} confidence, for seeds like these; where it would go below nought, "
            "it is cut there. If intervals are too wide to choose by, take more seeds."
        )
    return "<h2>How to read this</h2>\n<ul>" + "".join(f"<li>{each}</li>" for each in items) + "</ul>\n"
