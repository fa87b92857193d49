"""The end of a log that Airflow's own process for a callback writes, and what it says of why the callable failed."""

from __future__ import annotations

import json
from collections import deque
from contextlib import suppress
from typing import Any, Final

import structlog
from airflow.sdk.log import logging_processors

from callback_priority.worker.logs import TAIL_BYTES, readable_line

__all__ = ["LastLines"]

_FAILED: Final = b"Callback failed"
_PREFIX: Final = "Callback execution failed: "
"""What Airflow's process says of a callable that failed, and what it puts before the error."""


class LastLines:
    """What structlog writes to: the end of a log, in memory."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self._size = 0
        self.why: str | None = None
        """What Airflow's process said last of why the callable failed."""

    def logger(self) -> Any:
        """What the lines are given to; secrets are masked in them."""
        return structlog.wrap_logger(self, processors=logging_processors(json_output=True)).bind()

    def msg(self, message: bytes | str) -> None:
        """Keep one line, and as many of those before it as there is room for."""
        line = message.encode(errors="replace") if isinstance(message, str) else bytes(message)
        if _FAILED in line:
            self._look_into(line)
        self._lines.append(line)
        self._size += len(line)
        # JSON takes more room than what is shown of it, except for odd characters.
        while self._size > 4 * TAIL_BYTES and len(self._lines) > 1:
            self._size -= len(self._lines.popleft())

    log = debug = info = warn = warning = error = exception = critical = fatal = failure = msg

    def text(self) -> str:
        """The end of the log as people read it, of at most `TAIL_BYTES`, and as databases take it."""
        text = "\n".join(readable_line(line) for line in self._lines).replace("\0", "\\x00")
        return text.encode(errors="backslashreplace")[-TAIL_BYTES:].decode(errors="ignore")

    def _look_into(self, line: bytes) -> None:
        with suppress(ValueError, AttributeError):
            said = json.loads(line)
            if said.get("event") == _FAILED.decode() and isinstance(said.get("error"), str):
                self.why = said["error"].removeprefix(_PREFIX)
