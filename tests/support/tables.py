"""Tables in the documentation that tests make: checked against what a test saw, written when asked to.

``CALLBACK_PRIORITY_WRITE_TABLES=1 pytest ...`` writes them; otherwise a test fails where the committed text says something else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ["markdown_table", "state_section"]

_SWITCH = "CALLBACK_PRIORITY_WRITE_TABLES"
_ROOT = Path(__file__).parents[2]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], f"| {' | '.join('---' for _ in head)} |", *lines[1:]])


def state_section(document: str, section: str, text: str) -> None:
    """Hold a section of a document, between two comments that name it, to what a test saw.

    Args:
        document: The file, from the project's root.
        section: The section's name: ``<!-- made by a test: NAME -->`` to ``<!-- end: NAME -->``.
        text: What it has to say.
    """
    path = _ROOT / document
    before = path.read_text(encoding="utf-8")
    begin, end = f"<!-- made by a test: {section} -->", f"<!-- end: {section} -->"
    found = re.search(f"{re.escape(begin)}\n\n(.*?)\n\n{re.escape(end)}", before, flags=re.DOTALL)
    assert found, f"{document} has no section {section!r}"
    if os.environ.get(_SWITCH):
        path.write_text(before[: found.start(1)] + text + before[found.end(1) :], encoding="utf-8")
        return
    assert found[1] == text, f"{document} says something else; {_SWITCH}=1 writes what was seen"
