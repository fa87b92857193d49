"""What the page is put together from: rows, tables, cards, legends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from callback_priority.simulation.report import plots
from callback_priority.simulation.report.shapes import (
    ComparisonShape,
    EstimateShape,
)
from callback_priority.simulation.report.words import (
    NONE,
    Said,
    name,
    parted,
)

__all__ = [
    "bare_row",
    "below",
    "card_grid",
    "colour",
    "confidence",
    "legend",
    "picture",
    "row",
    "stacked_row",
    "sure",
    "swatch",
    "table",
]

_KNOWN = ("deadline", "task_callback", "dag_callback", "task")


def colour(cls: str) -> str:
    """The CSS class that brings a service class's colour: never a name that somebody else could have given."""
    return f"c-{cls}" if cls in _KNOWN else "c-other"


def swatch(cls: str) -> str:
    """A class's name behind its colour, as markup."""
    return f'<span class="swatch {colour(cls)}"></span>{name(cls)}'


def picture(drawn: str, css: str) -> str:
    """A small drawing for a legend."""
    return f'<svg width="26" height="16" aria-hidden="true" class="{css}">{drawn}</svg>'


def legend(*entries: tuple[str, str]) -> str:
    """What the marks of a plot mean: drawings and what they stand for."""
    return '<ul class="legend">' + "".join(f"<li>{drawn}{said}</li>" for drawn, said in entries) + "</ul>\n"


def row(what: str, drawn: str, value: str, css: str = "") -> str:
    """A row of a plot: what, drawing, value; on a narrow screen the drawing comes below."""
    return (
        f'<div class="row {css}"><div class="what">{what}</div><div class="picture">{drawn}</div>'
        f'<div class="value">{value}</div></div>\n'
    )


def bare_row(what: str, said: str) -> str:
    """A row of a plot in which there is nothing to draw."""
    return f'<div class="row"><div class="what">{what}</div><div class="none">{said}</div></div>\n'


def stacked_row(what: str, drawn: str, value: str, css: str) -> str:
    """A row of a plot in a card, always with its drawing below."""
    return (
        f'<div class="stacked {css}"><div class="what">{what}</div><div class="value">{value}</div>'
        f'<div class="picture">{drawn}</div></div>\n'
    )


def below(axis: plots.Axis) -> str:
    """The labels below the rows of a plot."""
    return f'<div class="row"><div class="what"></div><div class="picture">{plots.axis_picture(axis)}</div></div>\n'


def card_grid(cards: Sequence[str]) -> str:
    """Cards side by side, as many as fit; none alone in the last of two lines."""
    inside = "".join(f'<div class="card">{each}</div>\n' for each in cards)
    return f'<div class="cards{" even" if len(cards) in {2, 4} else ""}">{inside}</div>\n'


def sure(found: EstimateShape | None, said: Said) -> str:
    """A mean, and its interval in small letters below it."""
    if found is None:
        return NONE
    between = parted(found, said)
    return said(found["mean"]) + (f" <small>{between}</small>" if between else "")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
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


def confidence(comparison: ComparisonShape) -> str:
    """Of the intervals, in percent."""
    return f"{comparison['confidence'] * 100:.4g}%"
