"""What several tests with whole deployments do alike: run our commands, keep tables of the docs true."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.deployment import Deployment
from tests.support.tables import markdown_table, state_section

__all__ = ["HERE", "PATIENCE", "RUN_ID", "all_ended", "command", "state_table"]

HERE = Path(__file__).parent
PATIENCE: Mapping[str, Mapping[str, object]] = {
    # Airflow's Dag processor lets a callback that comes while its file is being processed wait for the next parse.
    "dag_processor": {"min_file_process_interval": 5},
    # An API server that has just started, on two busy cores, takes longer than workers wait for it by default.
    "workers": {"execution_api_timeout": 30},
}
"""Options for machines that do much at once."""
RUN_ID = "provoked"

_ROOT = Path(__file__).parents[2]
_PROGRAM = Path(sys.executable).parent / "callback-priority"


def command(airflow: Deployment, *arguments: str) -> Any:
    """What ``callback-priority ARGUMENTS --json`` prints in this deployment."""
    result = subprocess.run(
        [_PROGRAM, *arguments, "--json"],
        check=False,
        capture_output=True,
        text=True,
        env=airflow.environment,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout)


def all_ended(airflow: Deployment, count: int) -> bool:
    """Whether there are so many routed callables, and all of them have ended and hold no slot."""
    [row] = airflow.rows(
        "SELECT count(*) AS units, count(ended_at) AS ended,"
        " (SELECT count(*) FROM callback_priority_item WHERE state != 'done') AS open"
        " FROM callback_priority_unit"
    )
    return row.units == row.ended == count and row.open == 0


def state_table(
    document: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, varying: Sequence[str] = ()
) -> None:
    """Hold the table of a document to what a test saw, or write it.

    Args:
        document: The file, from the project's root; its table is in the section "table".
        head: The columns.
        rows: What was seen.
        varying: Columns in which the document may say something else: measurements.
    """
    if not os.environ.get("CALLBACK_PRIORITY_WRITE_TABLES"):
        lines = (_ROOT / document).read_text(encoding="utf-8").splitlines()
        documented = {cells[0]: cells for line in lines if len(cells := _cells(line)) == len(head)}
        rows = [
            [
                documented[row[0]][index] if head[index] in varying and row[0] in documented else cell
                for index, cell in enumerate(row)
            ]
            for row in rows
        ]
    state_section(document, "table", markdown_table(head, rows))


def _cells(line: str) -> list[str]:
    """The cells of a row of a table."""
    if not line.startswith("| "):
        return []
    return [cell.strip().replace("\0", "|") for cell in line.replace("\\|", "\0").strip("|").split("|")]
