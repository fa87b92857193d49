"""Numbers on a command line: what argparse calls to check one, by the range that it may be in.

argparse names the option; the error adds what was written, and what to write instead.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Final

__all__ = ["number", "seconds", "whole"]

_WHOLE: Final = re.compile(r"[0-9]{1,20}", re.ASCII)
_NUMBER: Final = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,3})?", re.ASCII | re.IGNORECASE)


def whole(least: int, most: int) -> Callable[[str], int]:
    """A whole number, in decimal digits.

    Args:
        least: The least that it may be, 0 or more.
        most: The most.

    >>> whole(1, 10_000)("20")
    20
    >>> whole(1, 10_000)("1_000")
    Traceback (most recent call last):
    ...
    argparse.ArgumentTypeError: '1_000': write a whole number from 1 to 10000
    """

    def checked(text: str) -> int:
        if _WHOLE.fullmatch(text) and least <= int(text) <= most:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r}: write a whole number from {least} to {most}")

    return checked


def number(least: float, most: float, what: str = "a number") -> Callable[[str], float]:
    """A number, with decimals or without.

    Args:
        least: The least that it may be, 0 or more.
        most: The most.
        what: What it is, for the error.

    >>> number(0.5, 0.9999)(".95")
    0.95
    """

    def checked(text: str) -> float:
        if _NUMBER.fullmatch(text) and least <= float(text) <= most:
            return float(text)
        raise argparse.ArgumentTypeError(f"{text!r}: write {what} from {least:g} to {most:.15g}")

    return checked


def seconds(least: float, most: float) -> Callable[[str], float]:
    """A number of seconds; see `number`.

    >>> seconds(1, 86_400)("soon")
    Traceback (most recent call last):
    ...
    argparse.ArgumentTypeError: 'soon': write a number of seconds from 1 to 86400
    """
    return number(least, most, "a number of seconds")
