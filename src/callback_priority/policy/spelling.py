"""What somebody likely meant who wrote a name that there is not."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["guess"]

_LONGEST_GUESSED: Final = 256


def guess(name: str, known: Iterable[str]) -> str:
    """The one of the known names that is likely meant, as the end of a sentence; empty if none is like it.

    Args:
        name: What was written; only its beginning counts if it is very long.
        known: The names that there are. Upper and lower case make no difference.

    >>> guess("hodls", ["holds", "arrivals"]), guess("localexecutor", ["LocalExecutor"]), guess("x", ["holds"])
    ("; did you mean 'holds'?", "; did you mean 'LocalExecutor'?", '')
    """
    by_lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name[:_LONGEST_GUESSED].lower(), list(by_lower), n=1)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""
