"""How a report says numbers: for people who read a page, not for a terminal's columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import TypeAlias

from callback_priority.simulation.report.shapes import EstimateShape

__all__ = [
    "NONE",
    "SPACE",
    "Said",
    "counted",
    "duration",
    "index",
    "joined",
    "name",
    "number",
    "parted",
    "percent",
    "plain",
    "points",
    "quoted",
    "workloads",
]

Said: TypeAlias = Callable[[float], str]

SPACE = "\N{NO-BREAK SPACE}"
NONE = "\N{EN DASH}"
_MINUTE = 60
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR

_WORKLOADS = {
    "deadline": "deadline callbacks",
    "task_callback": "task callbacks",
    "dag_callback": "Dag callbacks",
    "task": "tasks",
}


def duration(seconds: float) -> str:
    """A length of time, to two or three figures.

    >>> [duration(each).replace(SPACE, " ") for each in (0, 0.031, 1.25, 12.4, 200, 1_500, 7_500, 100_000)]
    ['0 s', '0.03 s', '1.2 s', '12 s', '3 min 20 s', '25 min', '2 h 5 min', '1 d 4 h']
    """
    if seconds < 0.005:
        return f"0{SPACE}s"
    if seconds < 0.95:
        return f"{seconds:.1g}{SPACE}s"
    if seconds < 9.95:
        return f"{seconds:.1f}{SPACE}s"
    if seconds < 59.5:
        return f"{seconds:.0f}{SPACE}s"
    if seconds < 10 * _MINUTE - 0.5:
        return _two(seconds, _MINUTE, "min", "s", 1)
    if seconds < _HOUR - _MINUTE / 2:
        return f"{seconds / _MINUTE:.0f}{SPACE}min"
    if seconds < _DAY - _MINUTE / 2:
        return _two(seconds, _HOUR, "h", "min", _MINUTE)
    return _two(seconds, _DAY, "d", "h", _HOUR)


def _two(seconds: float, unit: int, big: str, small: str, small_unit: int) -> str:
    whole, rest = divmod(round(seconds / small_unit), unit // small_unit)
    text = f"{whole}{SPACE}{big}"
    return f"{text}{SPACE}{rest}{SPACE}{small}" if rest else text


def percent(part: float) -> str:
    """A part of a whole.

    >>> percent(0.4996), percent(0.001), percent(0), percent(0.0000001)
    ('50%', '0.1%', '0%', '0%')
    """
    number = part * 100
    return f"{number:.1f}%" if 0.05 <= abs(number) < 9.95 else f"{number:.0f}%"


def points(part: float) -> str:
    """The difference of two percentages, without its sign and its unit.

    >>> points(-0.0824)
    '8.2'
    """
    return f"{abs(part) * 100:.1f}"


def number(value: float) -> str:
    """How many, on average.

    >>> number(1775.75), number(0.25), number(0), number(19.5)
    ('1,776', '0.2', '0', '20')
    """
    return f"{value:,.1f}" if 0.05 <= value < 9.95 and value != int(value) else f"{value:,.0f}"


def index(value: float) -> str:
    """Jain's index."""
    return f"{value:.3f}"


def parted(found: EstimateShape, said: Said) -> str:
    """The ends of an interval, nothing below nought; empty if there is none, or nothing to be seen of it.

    >>> parted({"mean": 60, "low": -6, "high": 126, "n": 4}, number)
    '0 to 126'
    >>> parted({"mean": 1, "low": 0.9999, "high": 1.0001, "n": 4}, percent)
    ''
    """
    low, high = found["low"], found["high"]
    if low is None or high is None:
        return ""
    ends = [said(max(0.0, low)), said(max(0.0, high))]
    return "" if set(ends) == {said(found["mean"])} else " to ".join(ends)


def counted(amount: float, one: str, many: str | None = None) -> str:
    """A number and its noun.

    >>> counted(1, "seed").replace(SPACE, " "), counted(4, "seed").replace(SPACE, " ")
    ('1 seed', '4 seeds')
    """
    return f"{number(amount)}{SPACE}{one if amount == 1 else many or one + 's'}"


def joined(parts: Sequence[str]) -> str:
    """Parts of a sentence.

    >>> joined(["a"]), joined(["a", "b"]), joined(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last


def plain(text: str) -> str:
    r"""Text that somebody gave, as markup that is text only, without what can't be shown.

    >>> plain("a < b\x00\x1b")
    'a &lt; b\\x00\\x1b'
    """
    shown = "".join(
        each if each.isprintable() else " " if each.isspace() else each.encode("unicode_escape").decode()
        for each in text
    )
    return escape(shown)


def name(text: str) -> str:
    """A name that somebody gave, as markup: it can neither break out of its place nor turn what is around it.

    >>> name("<b>")
    '<bdi>&lt;b&gt;</bdi>'
    """
    return f"<bdi>{plain(text)}</bdi>"


def quoted(text: str) -> str:
    """A name that somebody gave, as markup within a sentence, where it could be taken for part of it.

    >>> quoted("fair, 8 reserved")
    '“<bdi>fair, 8 reserved</bdi>”'
    """
    return f"“{name(text)}”"


def workloads(service_class: str) -> str:
    """What a class is made of, in the plural, as markup.

    >>> workloads("task_callback")
    'task callbacks'
    """
    return _WORKLOADS.get(service_class) or name(service_class)
