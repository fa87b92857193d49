"""Text for a terminal; the examples in the docstrings are run by ``test_doctests``."""

from __future__ import annotations

import pytest

from callback_priority.cli import text


def test_columns_are_as_wide_as_their_widest_cell_and_end_without_blanks():
    lines = text.columns(
        ["pool", "class", "n"], [["p", "deadline", "1"], ["longer", "task", "20"]], left=(0, 1)
    )
    assert lines == ["pool    class      n", "p       deadline   1", "longer  task      20"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-3.0, "0.0s"),
        (9.96, "10s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (3_599.6, "1h00m"),
        (86_399.7, "1d00h"),
    ],
)
def test_a_duration_never_shows_sixty_of_anything(seconds, shown):
    assert text.duration(seconds) == shown


def test_a_small_share_is_not_shown_as_none():
    assert text.share(0.004) == "0.4%"
    assert text.share(0.0) == "0%"


def test_a_paragraph_is_wrapped_on_a_terminal_only(monkeypatch):
    words = " ".join(["word"] * 40)
    assert text.indented(words, "> ", "  ") == f"> {words}"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    lines = text.indented(words, "> ", "  ").splitlines()
    assert len(lines) == 4
    assert all(len(line) <= 60 for line in lines)
    assert all(line.startswith("  ") for line in lines[1:])
