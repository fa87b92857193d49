"""Tables of a scenario file, read strictly: every key is known, every number in its range, every problem told.

Nothing is guessed and nothing is dropped in silence: a key that is misspelt would else be a scenario that nobody meant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from callback_priority.errors import Problem
from callback_priority.policy.spelling import guess

__all__ = ["Problems", "Table"]

_LONGEST_SHOWN: Final = 60
_LONGEST_NAME: Final = 256


class _Verbatim(str):
    """Text that a message shows without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


MISSING: Final = _Verbatim("missing")
"""What a problem shows where nothing was written."""


class Problems(list[Problem]):
    """What was found wrong so far."""

    def tell(self, key: str, value: object, remedy: str) -> None:
        """Note one."""
        self.append(Problem(key=key, value=_shown(value), remedy=remedy))


class Table:
    """One table of the file, with the place where it stands. What is wrong counts as not written.

    Args:
        problems: Where to note what is wrong.
        path: Where the table stands; empty for the file itself.
        value: What stands there.
        keys: Every key that it may have.
    """

    def __init__(self, problems: Problems, path: str, value: object, keys: Sequence[str]) -> None:
        self._problems = problems
        self._path = path
        self._values: dict[str, object] = {}
        if not isinstance(value, Mapping):
            problems.tell(path, value, f"write a table with the keys {', '.join(keys)}")
            return
        for key, inner in value.items():
            if key in keys:
                self._values[key] = inner
            else:
                remedy = f"no such key{guess(str(key), keys)}; the keys are {', '.join(keys)}"
                problems.tell(self.path(str(key)), inner, remedy)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def path(self, key: str) -> str:
        """Where a key of this table stands."""
        return f"{self._path}.{key}" if self._path else key

    def get(self, key: str) -> object:
        """What was written; ``None`` for nothing."""
        return self._values.get(key)

    def tell(self, key: str, remedy: str) -> None:
        """Note what is wrong with a key."""
        self._problems.tell(self.path(key), self._values.get(key, MISSING), remedy)

    def seconds(
        self, key: str, default: float | None, *, least: float = 0.0, most: float = 366 * 86_400.0
    ) -> float:
        """A number of seconds.

        Args:
            key: The key.
            default: What stands for it when it is not written; ``None`` if it has to be.
            least: The least that it may be.
            most: The most.
        """
        return self.number(key, default, least=least, most=most, what="a number of seconds")

    def number(
        self, key: str, default: float | None, *, least: float, most: float, what: str = "a number"
    ) -> float:
        """A number; see `seconds`."""
        value = self._values.get(key, default)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found = float(value)
            if least <= found <= most:
                return found
        self.tell(key, f"write {what} from {least:g} to {most:,.15g}".replace(",", ""))
        return least

    def whole(self, key: str, default: int | None, *, least: int, most: int) -> int:
        """A whole number; see `seconds`."""
        value = self._values.get(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        self.tell(key, f"write a whole number from {least} to {most}")
        return least

    def name(self, key: str, default: str | None, what: str) -> str:
        """A text of bearable length that is not empty."""
        value = self._values.get(key, default)
        if isinstance(value, str) and value.strip() and len(value) <= _LONGEST_NAME and value.isprintable():
            return value
        self.tell(key, f"write {what}, in quotes, of at most {_LONGEST_NAME} characters")
        return ""

    def choice(self, key: str, default: str | None, words: Sequence[str]) -> str | None:
        """One of a few words; ``None`` if it is none of them."""
        value = self._values.get(key, default)
        if isinstance(value, str) and value in words:
            return value
        hint = guess(value, words) if isinstance(value, str) else ""
        self.tell(key, f"write one of {', '.join(words)}{hint}")
        return None

    def flag(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self._values.get(key, default)
        if isinstance(value, bool):
            return value
        self.tell(key, "write true or false")
        return default

    def numbers(self, key: str, *, least: float) -> tuple[float, ...]:
        """A list of one number or more."""
        value = self._values.get(key)
        if isinstance(value, list) and value:
            found = [
                float(each)
                for each in value
                if isinstance(each, int | float) and not isinstance(each, bool) and least <= each < math.inf
            ]
            if len(found) == len(value):
                return tuple(found)
        self.tell(key, f"write a list of numbers, each of them {least:g} or more, such as [600, 1200]")
        return (max(least, 1.0),)

    def tables(self, key: str, keys: Sequence[str]) -> list[Table]:
        """A list of tables, each of which may have these keys."""
        value = self._values.get(key, [])
        if isinstance(value, list):
            return [
                Table(self._problems, f"{self.path(key)}[{at}]", inner, keys)
                for at, inner in enumerate(value)
            ]
        self.tell(key, "write a list of tables, each under [[" + self.path(key) + "]]")
        return []

    def entries(self, key: str, what: str) -> list[tuple[str, str, object]]:
        """A table with names of one's own for keys: each name, where it stands, and what stands there."""
        value = self._values.get(key, {})
        if not isinstance(value, Mapping):
            self.tell(key, f"write a table of {what}")
            return []
        found = []
        for name, inner in value.items():
            path = f"{self.path(key)}[{_shown(name)!r}]"
            if isinstance(name, str) and name.strip() and len(name) <= _LONGEST_NAME and name.isprintable():
                found.append((name, path, inner))
            else:
                self._problems.tell(path, inner, f"this is no name; {what} have names of 1 to 256 characters")
        return found


def _shown(value: object) -> object:
    """The value as a message shows it: of bearable length."""
    if value is None or isinstance(value, _Verbatim):
        return value
    if isinstance(value, str):
        return value if len(value) <= _LONGEST_SHOWN else value[:_LONGEST_SHOWN] + "..."
    if isinstance(value, Mapping):
        return _Verbatim("{...}" if value else "{}")
    if isinstance(value, list):
        text = repr(value)
        return _Verbatim(text if len(text) <= _LONGEST_SHOWN else "[...]")
    if isinstance(value, bool):
        return _Verbatim(str(value).lower())
    return _Verbatim(str(value)[:_LONGEST_SHOWN])
