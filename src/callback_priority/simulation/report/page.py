"""The page: what the comparison shows in words, then tables and plots, then what was tried."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from statistics import fmean

from callback_priority.simulation.report import charts
from callback_priority.simulation.report.findings import find
from callback_priority.simulation.report.pieces import (
    card_grid,
    confidence,
    sure,
    swatch,
    table,
)
from callback_priority.simulation.report.shapes import (
    ClassShape,
    ComparisonShape,
)
from callback_priority.simulation.report.words import (
    NONE,
    counted,
    duration,
    joined,
    name,
    number,
    percent,
    plain,
)

__all__ = ["page"]


def page(comparison: ComparisonShape, notes: Sequence[str] = ()) -> str:
    """The whole page as HTML.

    Args:
        comparison: What `callback_priority.simulation.comparison.Comparison.to_json` gave.
        notes: What has to be known to judge it, a sentence each.
    """
    title = plain(comparison["scenario"]["name"])
    style = (files("callback_priority.simulation.report") / "style.css").read_text(encoding="utf-8")
    sections = "".join(
        (
            _head(comparison),
            _notes(notes),
            _versus(comparison),
            _tables(comparison),
            charts.waits(comparison),
            charts.contention(comparison),
            charts.over_time(comparison),
            charts.lags(comparison),
            charts.dags(comparison),
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
            f"means over {counted(len(seeds), 'seed')}, their {confidence(comparison)} confidence intervals in brackets"
        )
    else:
        facts.append("one seed: no intervals, so that a difference may be chance")
    work = (
        f'<p class="facts">The work: {plain(scenario["description"])}</p>\n'
        if scenario["description"]
        else ""
    )
    return (
        f'<p class="kind">Settings compared on {name(scenario["name"])}</p>\n<h1>{found.headline}</h1>\n'
        + (f'<p class="lead">{found.cost}</p>\n' if found.cost else "")
        + "".join(f"<p>{each}</p>\n" for each in found.classes)
        + f'{work}<p class="facts">{"; ".join(facts)}.</p>\n'
    )


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{plain(each)}</li>" for each in notes)
    return f"<h2>What was assumed</h2>\n<ul>{items}</ul>\n"


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
        cards.append(f"<h3>{each.name}</h3><ul>{gains}{pains}{same}</ul>")
    return (
        f"<h2>Each against {first}</h2>\n"
        '<p class="hint">All saw the same work, so they are compared seed by seed; brackets hold the interval of that difference.</p>\n'
        + card_grid(cards)
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
        "slots held",
        "share of slot-time",
    )
    parts = ["<h2>Every class in numbers</h2>\n"]
    for cls in treatments[0]["classes"]:
        parts.append(f"<h3>{swatch(cls)}</h3>\n")
        arrives = any(each["classes"][cls]["arrived"]["mean"] for each in treatments)
        if not arrives:
            parts.append(
                '<p class="hint">A backlog without end: nothing of it arrives, so it has no waits, only a share.</p>\n'
            )
        rows = []
        for each in treatments:
            found = each["classes"][cls]
            waits = [_wait(found, quantile) for quantile in charts.QUANTILES]
            rows.append(
                (
                    name(each["name"]),
                    *waits,
                    sure(found["mean_wait_seconds"], duration),
                    sure(found["waiting"], number),
                    sure(found["oldest_seconds"], duration) if found["waiting"]["mean"] else NONE,
                    number(found["arrived"]["mean"]),
                    f"{fmean(found['slots_over_time']):.1f}",
                    sure(found["share"], percent),
                )
            )
        if not arrives:
            rows = [(row[0], row[-2], row[-1]) for row in rows]
        parts.append(table(header if arrives else (header[0], *header[-2:]), rows))
    return "".join(parts)


def _wait(found: ClassShape, quantile: str) -> str:
    wait = found["wait_seconds"].get(quantile)
    if wait is None:
        return "never" if found["arrived"]["mean"] else NONE
    return sure(wait, duration)


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
        cards.append(f"<h3>{name(each['name'])}</h3>{_settings(each['settings'])}{changes}{counted_in}")
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
        f"{counted(scenario['schedulers'], 'scheduler')} with {counted(scenario['slots'], 'slot')}{' each' if scenario['schedulers'] > 1 else ''}",
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
        + card_grid(cards)
        + f'<p class="facts">{"; ".join(facts)}.</p>\n'
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
        "Nothing is preempted: where long tasks hold every slot, a callback waits until one of them ends, whatever the weights. Only a reserve changes that.",
    ]
    if len(comparison["seeds"]) > 1:
        items.append(
            f"An interval holds the true mean with {confidence(comparison)} confidence, for seeds like these; where it would go below nought, "
            "it is cut there. If intervals are too wide to choose by, take more seeds."
        )
    return "<h2>How to read this</h2>\n<ul>" + "".join(f"<li>{each}</li>" for each in items) + "</ul>\n"
