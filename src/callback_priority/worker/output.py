"""What is kept of a callback's end: text that is short, and in which secrets are masked.

It goes into the column ``output`` of Airflow's own callback table, which the API serves. So it holds nothing that
Airflow would mask in a log, and nothing that a database refuses.
"""

from __future__ import annotations

import json
import signal
import sys
import traceback
from typing import Any, Final

from airflow.sdk._shared.secrets_masker import redact

__all__ = ["LIMIT_BYTES", "describe_error", "describe_exit", "describe_result", "masked"]

LIMIT_BYTES: Final = 4_096
"""The longest output, in UTF-8."""

_CORE_MASKER: Final = "airflow._shared.secrets_masker"
"""Airflow has this module twice; each knows the secrets that were read through it."""


def describe_result(value: object) -> str:
    """What a callable returned: JSON, or a note if it cannot be; empty for ``None``."""
    if value is None:
        return ""
    try:
        text = json.dumps(_redacted(value), ensure_ascii=False, allow_nan=False)
    except Exception:  # noqa: BLE001 - user objects may raise anything when they are looked into
        return f"returned a {_type_name(value)}, which is not JSON"
    return masked(text)


def describe_error(error: BaseException) -> str:
    """Why a callable failed: the class and message of its error first, then where it was raised."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - see above
        message = "(its message cannot be shown)"
    first = f"{_type_name(error)}: {message}" if message else _type_name(error)
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    where = "\n".join(f"  {frame.filename}:{frame.lineno} in {frame.name}" for frame in reversed(frames))
    room = LIMIT_BYTES - len(where.encode(errors="backslashreplace")) - 1
    if not where or room < LIMIT_BYTES // 2:
        return masked(first)
    return f"{masked(first, limit_bytes=room)}\n{masked(where)}"


def describe_exit(code: int, doing: str) -> str:
    """Why a process is gone that ended before its time.

    Args:
        code: Its exit code; a signal's number, negated, if that ended it.
        doing: What it did then, as in "while it ...".

    >>> describe_exit(-9, "while it slept")
    'the process was killed by SIGKILL while it slept; the machine may have run out of memory'
    """
    if code >= 0:
        return f"the process exited with code {code} {doing}"
    hint = "; the machine may have run out of memory" if code == -signal.SIGKILL else ""
    return f"the process was killed by {_signal_name(-code)} {doing}{hint}"


def masked(text: str, *, limit_bytes: int = LIMIT_BYTES) -> str:
    """The text without secrets, without what PostgreSQL cannot store, and not too long.

    Args:
        text: Any text.
        limit_bytes: What it may take in UTF-8; a longer one ends in a note of how long it was.
    """
    clean = str(_redacted(text)).replace("\0", "\\x00")
    encoded = clean.encode(errors="backslashreplace")
    if len(encoded) <= limit_bytes:
        return encoded.decode()
    note = f" ... ({len(encoded)} bytes in all)"
    return encoded[: max(0, limit_bytes - len(note))].decode(errors="ignore") + note


_FRAMES: Final = 5
"""How many places of a traceback are kept, the innermost first; the log has them all."""


def _redacted(value: Any) -> Any:
    value = redact(value)
    core = sys.modules.get(_CORE_MASKER)
    return value if core is None else core.redact(value)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _type_name(value: object) -> str:
    cls = type(value)
    return (
        cls.__qualname__ if cls.__module__ in {"builtins", None} else f"{cls.__module__}.{cls.__qualname__}"
    )
