"""The HTML page that a command writes if it is asked to."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from callback_priority.simulation.comparison import Comparison

__all__ = ["told_report"]


def told_report(found: Comparison, path: Path, *, notes: Sequence[str] = ()) -> None:
    """Write it, and tell on standard error where it is.

    Args:
        found: What it shows.
        path: Where to write it.
        notes: Sentences to stand at its end.

    Raises:
        OSError: It cannot be written.
    """
    from callback_priority.simulation.report import write_report

    write_report(found.to_json(), path, notes=notes)
    print(f"report: {path}", file=sys.stderr)
