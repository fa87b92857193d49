"""The demo keeps its databases."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from callback_priority.demo.__main__ import keep_database


def test_a_database_is_kept_whole_and_over_an_older_one(tmp_path):
    """With what was still in its write-ahead log."""
    database, kept = tmp_path / "fair.db", tmp_path / "kept.db"
    kept.write_text("of another run")
    with closing(sqlite3.connect(database)) as writing:
        writing.execute("PRAGMA journal_mode = WAL")
        writing.execute("CREATE TABLE job (id INTEGER)")
        writing.execute("INSERT INTO job VALUES (7)")
        writing.commit()
        keep_database(database, kept)
    with closing(sqlite3.connect(kept)) as reading:
        assert reading.execute("SELECT id FROM job").fetchall() == [(7,)]
