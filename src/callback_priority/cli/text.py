"""Text for a terminal: aligned columns, durations, shares."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Collection, Sequence

__all__ = ["NOTHING", "columns", "count", "cut", "duration", "indented", "plain", "share"]

NOTHING = "-"
"""Stands where there is nothing to say."""

_MINUTE = 60
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR


def columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)
) -> list[str]:
    """Lines of a table, each column as wide as its widest cell.

    Args:
        header: The columns' names.
        rows: The cells, as many in each row as there are names.
        left: The columns that are flush left; numbers are flush right.

    >>> columns(["class", "held"], [["task", "12"], ["deadline", "3"]])
    ['class     held', 'task        12', 'deadline     3']
    """
    table = [header, *rows]
    widths = [max(len(row[place]) for row in table) for place in range(len(header))]
    return [
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def indented(text: str, first: str, rest: str) -> str:
    """A paragraph behind an indent, wrapped to the terminal's width if there is a terminal.

    Args:
        text: The paragraph.
        first: What stands before its first line.
        rest: What stands before the others.
    """
    if not sys.stdout.isatty():
        return first + text
    width = max(len(rest) + 40, shutil.get_terminal_size().columns)
    return textwrap.fill(
        text,
        width,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def duration(seconds: float | None) -> str:
    """A length of time, to two places.

    >>> [duration(each) for each in (None, 0.25, 12.4, 200, 7_500, 100_000)]
    ['-', '0.2s', '12s', '3m20s', '2h05m', '1d03h']
    """
    if seconds is None:
        return NOTHING
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f}s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole}s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m{whole % _MINUTE:02}s"
    if whole < _DAY:
        return f"{whole // _HOUR}h{whole % _HOUR // _MINUTE:02}m"
    return f"{whole // _DAY}d{whole % _DAY // _HOUR:02}h"


def share(fraction: float | None) -> str:
    """A fraction in percent.

    >>> share(None), share(0.4996), share(0.001)
    ('-', '50%', '0.1%')
    """
    if fraction is None:
        return NOTHING
    percent = fraction * 100
    return f"{percent:.1f}%" if 0 < percent < 0.95 else f"{percent:.0f}%"


def count(number: int, one: str, many: str | None = None) -> str:
    """A number and its noun.

    >>> count(1, "item"), count(1_200, "item"), count(0, "is", "are")
    ('1 item', '1,200 items', '0 are')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def plain(text: str) -> str:
    r"""Text that others wrote, without what a terminal would obey; lines and tabs stay.

    >>> plain("a\x1b[2Jb\r\n")
    'a\\x1b[2Jb\n'
    """
    return "".join(
        each if each.isprintable() or each in "\n\t" else each.encode("unicode_escape").decode()
        for each in text.replace("\r\n", "\n")
    )


def cut(text: str | None, length: int) -> str:
    r"""The first line of a text that others wrote, cut to a length.

    >>> cut("KeyError: 'x'\n  a.py:3", 40), cut("a long story", 6), cut(None, 6)
    ("KeyError: 'x'", 'a l...', '')
    """
    lines = plain(text or "").strip().splitlines()
    first = lines[0].replace("\t", " ") if lines else ""
    return first if len(first) <= length else first[: length - 3] + "..."
