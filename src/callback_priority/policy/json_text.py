"""JSON as an operator writes it: exact numbers, no silent loss, errors that say where.

The standard decoder keeps the last of two equal keys, takes ``NaN``, and turns ``0.1`` into the nearest
float; each of these would change what somebody wrote without telling.
"""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from typing import Final

import attrs

from callback_priority.errors import Problem

__all__ = ["Json", "JsonObject", "NoNumber", "decode", "quoted", "shown"]

_LONGEST_SHOWN: Final = 80
_EXCERPT: Final = 30


@attrs.frozen
class NoNumber:
    """What stands where a number should, but cannot be counted with: ``NaN``, ``1e99999999999999999999``.

    Args:
        text: As written.
    """

    text: str


class _Verbatim(str):
    """Text that a message shows without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


class JsonObject(dict[str, "Json"]):
    """A JSON object that remembers which keys it was given more than once; the first value is kept."""

    def __init__(self, pairs: list[tuple[str, Json]]) -> None:
        super().__init__()
        self.repeated: list[str] = []
        for key, value in pairs:
            if key not in self:
                self[key] = value
            elif key not in self.repeated:
                self.repeated.append(key)


Json = JsonObject | list["Json"] | str | Decimal | NoNumber | bool | None


def _number(text: str) -> Decimal | NoNumber:
    try:
        return Decimal(text)
    except InvalidOperation:
        return NoNumber(text)


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=JsonObject, parse_float=_number, parse_int=_number, parse_constant=NoNumber
)


def decode(key: str, text: str, example: str) -> Json | Problem:
    """Read JSON.

    Args:
        key: The option, for the message.
        text: What it was set to.
        example: What it could be set to, for the message.

    Returns:
        The value, or what is wrong with the text.
    """
    try:
        value: Json = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        near = text[max(0, error.pos - _EXCERPT) : error.pos + _EXCERPT]
        hint = ""
        if not text.strip():
            return Problem(
                key=key, value=text, remedy=f"is empty; write JSON such as {example}, or remove the line"
            )
        if "'" in near and '"' not in near:
            hint = "; JSON wants double quotes"
        elif "#" in near:
            hint = "; a comment goes on a line of its own"
        return Problem(
            key=key,
            value=_shortened(text),
            remedy=f"is not JSON at {where}, near {near!r}: {error.msg}{hint}; write for example {example}",
        )
    except RecursionError:
        return Problem(
            key=key, value=_shortened(text), remedy=f"is nested too deeply; write for example {example}"
        )
    return value


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def quoted(name: str) -> str:
    """A name inside a key's path: quoted, escaped and of bearable length."""
    return repr(_shortened(name))


def shown(value: Json) -> object:
    """The value as a message shows it: as written, of bearable length."""
    if isinstance(value, Decimal):
        return _Verbatim(_shortened(str(value)))
    if isinstance(value, NoNumber):
        return _Verbatim(_shortened(value.text))
    if isinstance(value, str):
        return _shortened(value)
    if isinstance(value, JsonObject):
        return _Verbatim("{" + ", ".join(f"{quoted(key)}: ..." for key in list(value)[:5]) + "}")
    if isinstance(value, list):
        return _Verbatim("[...]" if value else "[]")
    return _Verbatim("null" if value is None else str(value).lower())
