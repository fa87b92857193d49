"""How far a long command is: on standard error, for people who wait."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

from callback_priority.cli.text import duration

__all__ = ["Progress"]

PATIENCE_SECONDS: Final = 2.0
"""What takes no longer needs no progress."""

_STEP: Final = 0.1
"""Where there is no terminal, one line for each such part."""


class Progress:
    """Shows, while it is entered, which part is done and how long the rest takes, if the past is anything to go by.

    Args:
        wanted: Show it wherever standard error goes; else only if that is a terminal.
        clock: Seconds that never go back.
    """

    def __init__(self, *, wanted: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._shows = wanted or self._is_terminal
        self._clock = clock
        self._began = self._told_at = clock()
        self._told = 0.0
        self._is_dirty = False

    def __call__(self, part: float) -> None:
        """Part of the work, from 0 to 1, is done."""
        now = self._clock()
        passed = now - self._began
        if not self._shows or passed < PATIENCE_SECONDS or part <= 0:
            return
        if self._is_terminal:
            if now - self._told_at < _STEP:
                return
            print(f"\r\x1b[K{self._line(part, passed)}", end="", file=sys.stderr, flush=True)
            self._is_dirty = True
        elif part >= self._told + _STEP or (part >= 1 > self._told):
            print(self._line(part, passed), file=sys.stderr, flush=True)
            self._told = part
        self._told_at = now

    def __enter__(self) -> Progress:  # noqa: PYI034 - Self starts with 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        if self._is_dirty:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._is_dirty = False

    @staticmethod
    def _line(part: float, passed: float) -> str:
        left = passed * (1 - part) / part
        return f"{part:4.0%} in {duration(passed)}, about {duration(left)} to go"
