"""A comparison as a page: one file of HTML for people who operate Airflow, that needs no network, no script and nothing beside it.

Its pictures are drawn here, without matplotlib: an SVG of matplotlib's has a ``viewBox``, so that its labels shrink with the width of the
window and can't be read on a phone, and its colours can't follow a dark page. See `callback_priority.simulation.report.plots` for how
labels keep their size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from callback_priority.simulation.report.page import page
from callback_priority.simulation.report.shapes import ComparisonShape

__all__ = ["write_report"]


def write_report(comparison: Mapping[str, object], path: Path, *, notes: Sequence[str] = ()) -> None:
    """Write a comparison as one self-contained HTML file.

    Args:
        comparison: What `callback_priority.simulation.comparison.Comparison.to_json` gives, or what JSON made of it.
        path: The file; what was there is replaced.
        notes: What has to be known to judge the comparison, such as what was assumed, a sentence each.

    Raises:
        OSError: The file can't be written.
    """
    text = page(cast("ComparisonShape", comparison), notes)
    path.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")
