"""`make demo`: stock Airflow and this library under the same flood of missed deadlines, one after the other.

A real Airflow (API server, scheduler, Dag processor, triggerer) runs twice in a temporary home, on SQLite and
LocalExecutor: with the library's mode `off`, then `active`. Both get the same seeded load and a fresh copy of the same
migrated database. See the tutorial for what comes out and how to read it.
"""

from __future__ import annotations

__all__: list[str] = []
