"""Logs of units: what is kept, what is cut, and that reading never waits."""

from __future__ import annotations

import errno
import io
import json
import os
import socket

import pytest

from callback_priority.worker.logs import TAIL_BYTES, LineReader, UnitLogs, readable_line


@pytest.fixture
def logs(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW__LOGGING__BASE_LOG_FOLDER", str(tmp_path))
    kept = UnitLogs(limit_bytes=1_000)
    yield kept
    kept.close()


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def into(logs: UnitLogs, *, whole_lines: bool = False) -> LineReader:
    def lines():
        while True:
            line = yield
            logs.msg(bytes(line))

    return LineReader(lines(), logs, whole_lines=whole_lines)


def test_what_is_said_before_a_log_is_at_its_top(logs, tmp_path):
    logs.msg("early")
    logs.open("a.log")
    logs.msg(b"late")
    logs.open("b.log")
    assert (tmp_path / "a.log").read_text() == "early\nlate\n"
    assert (tmp_path / "b.log").read_text() == ""


def test_a_log_goes_on_where_another_attempt_left_it_but_its_tail_does_not(logs, tmp_path):
    (tmp_path / "a.log").write_text("first attempt\n")
    logs.open("a.log")
    logs.msg("second attempt")
    assert logs.tail() == "second attempt"
    assert (tmp_path / "a.log").read_text() == "first attempt\nsecond attempt\n"


def test_the_limit_counts_for_each_log_and_is_said_once(logs, tmp_path):
    for name in ("a.log", "b.log"):
        logs.open(name)
        assert not logs.full
        for _ in range(3):
            logs.msg("x" * 600)
        assert logs.full
        assert (tmp_path / name).read_text().count("reached its limit of 1000 bytes") == 1


def test_the_supervisors_own_lines_are_written_after_the_limit(logs, pair):
    ours, theirs = pair
    logs.open("a.log")
    theirs.sendall(b"".join(b"%d\n" % number for number in range(1_000)))
    into(logs).drain(ours)
    logs.msg("Callback ended")
    assert logs.tail().endswith("Callback ended")
    assert "\n999\n" not in logs.tail()


def test_the_tail_is_short_and_begins_with_a_whole_line(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW__LOGGING__BASE_LOG_FOLDER", str(tmp_path))
    logs = UnitLogs(limit_bytes=10**9)
    logs.open("a.log")
    for number in range(5_000):
        logs.msg(json.dumps({"timestamp": "t", "level": "info", "event": f"line {number} end"}))
    lines = logs.tail().splitlines()
    logs.close()
    assert len("\n".join(lines).encode()) <= TAIL_BYTES
    assert lines[-1] == "[t] INFO - line 4999 end"
    assert all(line.startswith("[t] INFO - line ") and line.endswith(" end") for line in lines)
    assert len(lines) > 400


def test_a_disk_that_is_full_ends_the_log_and_nothing_else(logs):
    class Full(io.BytesIO):
        name = os.devnull

        def write(self, _line):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            self.write(b"what is buffered")

    logs._file = Full()
    logs.msg("one")
    assert logs.full
    logs.msg("two")
    assert logs.tail() == ""
    logs.close()


def test_reading_what_has_been_drained_does_not_wait(logs, pair):
    """The select loop reports several sockets at once, and what is done for the first may drain the second."""
    ours, theirs = pair
    theirs.sendall(b"one\ntwo")
    reader = into(logs)
    reader.drain(ours)
    assert reader.read(ours)
    logs.open("a.log")
    assert logs.tail() == "one\ntwo"


def test_the_end_of_a_stream_ends_its_last_line(logs, pair):
    ours, theirs = pair
    theirs.sendall(b"last words")
    theirs.close()
    reader = into(logs)
    assert reader.read(ours)
    assert not reader.read(ours)
    logs.open("a.log")
    assert logs.tail() == "last words"


def test_half_a_line_of_json_is_no_line(logs, pair):
    ours, theirs = pair
    theirs.sendall(b'{"event": "whole"}\n{"event": "ha')
    into(logs, whole_lines=True).drain(ours)
    logs.open("a.log")
    assert "whole" in logs.tail()
    assert '"ha' not in logs.tail()


def test_a_line_shows_its_error_with_its_places():
    frames = [{"filename": "dag.py", "lineno": 3, "name": "f"}]
    detail = [{"exc_type": "ValueError", "exc_value": "no", "frames": frames}]
    line = {"timestamp": "t", "level": "error", "event": "failed", "logger": "x", "error_detail": detail}
    shown = readable_line(json.dumps(line).encode())
    assert shown == "[t] ERROR - failed\n    dag.py:3 in f\n    ValueError: no"


@pytest.mark.parametrize("line", [b"plain", b"[1, 2]", b"null", b"\xff\xfe"])
def test_a_line_that_is_no_event_is_shown_as_it_is(line):
    assert readable_line(line) == line.decode(errors="replace")
