"""A log of its own for each unit, in Airflow's format, however many units share a process.

What the process writes to its standard output, to its standard error and to Airflow's log channel arrives at the
supervisor over three sockets. Between two units the process is silent and waits for a reply; then what is left in
the sockets is read to the end, and only then does the next log begin. So no line ends up in another unit's log.

A log takes no more than its limit from the process; what comes after is read and thrown away, since a process whose
output nobody reads stands still. The supervisor's own few lines are always written.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Callable, Generator
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO, Final

from airflow.sdk.log import init_log_file

__all__ = ["TAIL_BYTES", "LineReader", "UnitLogs", "readable_line"]

TAIL_BYTES: Final = 16_384
"""How much of a log's end is told to the API server."""

_CHUNK_BYTES: Final = 65_536
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_HIDDEN_KEYS: Final = frozenset(
    {"timestamp", "level", "event", "logger", "filename", "lineno", "error_detail"}
)


class UnitLogs:
    """What structlog writes to: the current unit's file; before there is one, memory.

    Args:
        limit_bytes: How much of the process's output one log takes.
    """

    def __init__(self, *, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._file: BinaryIO | None = None  # Airflow's `upload_to_remote` looks for it under this name
        self._begins_at = 0
        self._early: list[bytes] = []
        self._size = 0

    @property
    def full(self) -> bool:
        """Whether the log takes nothing more from the process."""
        return self._size >= self._limit_bytes

    @property
    def limit_bytes(self) -> int:
        """How much of the process's output one log takes."""
        return self._limit_bytes

    def msg(self, message: bytes | str) -> None:
        """Write one line, whoever it is from."""
        line = message.encode(errors="replace") if isinstance(message, str) else bytes(message)
        was_full = self.full
        self._write(line + b"\n")
        if self.full and not was_full:
            self._say_full()

    log = debug = info = warn = warning = error = exception = critical = fatal = failure = msg

    def overflow(self) -> None:
        """Take nothing more from the process: what it writes has no end of line within the limit."""
        if not self.full:
            self._size = self._limit_bytes
            self._say_full()

    def open(self, path: str) -> None:
        """Begin a unit's log; what was said before any unit began stands at the top of the first one.

        Args:
            path: Relative to ``[logging] base_log_folder``.

        Raises:
            OSError: It cannot be written there, and not because the disk is full.
        """
        self.close()
        # A file object that stays open from here to `close`; without a buffer, which a full disk would leave full.
        try:
            self._file = init_log_file(path).open("ab", buffering=0)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            # No callback's fault either: it goes on without a log.
            self._file = Path(os.devnull).open("ab", buffering=0)  # noqa: SIM115 - see above
        self._begins_at = self._file.seek(0, os.SEEK_END)
        early, self._early = self._early, []
        self._size = 0
        for line in early:
            self._write(line)

    def close(self) -> None:
        """End the current log."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None
            self._size = 0

    def tail(self) -> str:
        """The end of the current log as people read it, of at most `TAIL_BYTES`."""
        if self._file is None:
            return ""
        lines: list[bytes] = []
        begin = self._begins_at
        with suppress(OSError), open(self._file.name, "rb") as written:  # noqa: PTH123 - the name of the file that is open
            end = written.seek(0, os.SEEK_END)
            # JSON takes more room than what is shown of it, except for odd characters.
            begin = max(self._begins_at, end - 4 * TAIL_BYTES)
            written.seek(begin)
            lines = written.read().splitlines()
        if begin > self._begins_at and len(lines) > 1:
            lines = lines[1:]
        shown: list[str] = []
        room = TAIL_BYTES
        for line in reversed(lines):
            text = readable_line(line)
            room -= len(text.encode(errors="replace")) + 1
            if room < 0:
                break
            shown.append(text)
        return "\n".join(reversed(shown))

    def _write(self, line: bytes) -> None:
        self._size += len(line)
        if self._file is None:
            self._early.append(line)
        else:
            try:
                self._file.write(line)
            except OSError:
                # A disk that is full is no callback's fault: it goes on, and its log ends here.
                self._size = max(self._size, self._limit_bytes)

    def _say_full(self) -> None:
        note = {
            "timestamp": datetime.now(tz=timezone.utc).isoformat(),
            "level": "warning",
            "event": f"This log has reached its limit of {self._limit_bytes} bytes; what follows is left out",
            "logger": "callback_priority",
        }
        self._write(json.dumps(note).encode() + b"\n")


class LineReader:
    """Reads a socket and hands on whole lines.

    Args:
        lines: Takes each line, as Airflow's forwarders do.
        logs: Where the lines go in the end; while it is full, what is read is thrown away.
        whole_lines: Whether a line without an end is worthless (JSON) or is handed on at a unit's end.
    """

    def __init__(
        self, lines: Generator[None, bytes | bytearray, None], logs: UnitLogs, *, whole_lines: bool
    ) -> None:
        self._lines = lines
        self._logs = logs
        self._whole_lines = whole_lines
        self._begun = bytearray()
        self._chunk = bytearray(_CHUNK_BYTES)
        next(lines)

    def read(self, sock: socket.socket) -> bool:
        """Read what is there, once, and do not wait.

        A socket that was reported to be readable need not be so any more: `drain` may have come in between.

        Returns:
            Whether there will be more: false once the other end is closed.
        """
        try:
            return self._read_now(sock)
        except BlockingIOError:
            return True

    def drain(self, sock: socket.socket) -> None:
        """Read all that is there now, and end the line that was begun."""
        try:
            while self._read_now(sock):
                pass
        except OSError:
            pass  # nothing more, or the other end is gone
        self.end_line()

    def end_line(self) -> None:
        """Hand on a line that was begun and not ended."""
        if self._begun and not self._whole_lines and not self._logs.full:
            self._lines.send(bytes(self._begun))
        self._begun.clear()

    def selector_data(
        self, on_close: Callable[[socket.socket], None]
    ) -> tuple[Callable[[socket.socket], bool], Any]:
        """What Airflow's select loop keeps beside a socket."""
        return self.read, on_close

    def _read_now(self, sock: socket.socket) -> bool:
        received = sock.recv_into(self._chunk, 0, socket.MSG_DONTWAIT)
        if not received:
            self.end_line()
            return False
        self._begun += memoryview(self._chunk)[:received]
        *whole, self._begun = self._begun.split(b"\n")
        for line in whole:
            if self._is_full():
                break
            self._lines.send(line)
        if len(self._begun) >= self._logs.limit_bytes:
            self._logs.overflow()
        if self._is_full():
            self._begun.clear()
        return True

    def _is_full(self) -> bool:
        return self._logs.full


def readable_line(line: bytes) -> str:
    """A line of a log file as people read it.

    >>> readable_line(b'{"timestamp": "12:00", "level": "info", "event": "sent", "channel": "ops"}')
    '[12:00] INFO - sent channel=ops'
    >>> readable_line(b"not JSON")
    'not JSON'
    """
    try:
        event = json.loads(line)
        when, level, text = event.get("timestamp", ""), str(event.get("level", "")), event.get("event", "")
    except (ValueError, AttributeError):
        return line.decode(errors="replace")
    rest = "".join(f" {key}={value}" for key, value in event.items() if key not in _HIDDEN_KEYS)
    shown = f"[{when}] {level.upper()} - {text}{rest}"
    details = event.get("error_detail")
    for error in details if isinstance(details, list) else []:
        if isinstance(error, dict):
            frames = error.get("frames")
            for frame in frames if isinstance(frames, list) else []:
                shown += f"\n    {frame.get('filename')}:{frame.get('lineno')} in {frame.get('name')}"
            shown += f"\n    {error.get('exc_type')}: {error.get('exc_value')}"
    return shown
