"""``callback-priority doctor``: is the library at work in this Airflow, and if not, why not."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from callback_priority.cli.findings import Finding

__all__ = ["add_to", "run"]

DESCRIPTION = """\
Check whether callback-priority is at work in this Airflow, and if not, why not.

Run it where a scheduler runs, with the scheduler's environment: it sees the same
packages, configuration and database. It changes nothing.

Each check says OK, WARN or FAIL, what was found, and after an arrow what to do."""


def add_to(commands: Any) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "doctor",
        help="is it at work in this Airflow, and if not, why not",
        description=DESCRIPTION,
        epilog="Exit status: 0 nothing failed (warnings allowed), 1 something failed, 2 wrong usage.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument(
        "--verbose", action="store_true", help="let through what Airflow logs meanwhile, on standard error"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Look, and print what was found.

    Returns:
        1 if a check failed, else 0.
    """
    from callback_priority.cli.examine import examine
    from callback_priority.cli.findings import Status
    from callback_priority.cli.surroundings import quiet

    with quiet(verbose=arguments.verbose):
        findings = examine()
    failed = any(finding.status is Status.FAIL for finding in findings)
    print(_json(findings) if arguments.json else _text(findings))
    return 1 if failed else 0


def _json(findings: Sequence[Finding]) -> str:
    from callback_priority.cli.findings import Status

    worst = max((finding.status for finding in findings), key=list(Status).index, default=Status.OK)
    return json.dumps(
        {
            "status": worst.value,
            "checks": [
                {
                    "check": finding.check,
                    "status": finding.status.value,
                    "found": finding.found,
                    "details": list(finding.details),
                    "remedy": finding.remedy or None,
                    "values": dict(finding.values),
                }
                for finding in findings
            ],
        },
        indent=2,
    )


def _text(findings: Sequence[Finding]) -> str:
    from callback_priority.cli.findings import Status
    from callback_priority.cli.text import indented

    width = max(len(finding.check) for finding in findings)
    margin = " " * (6 + width + 2)
    lines = []
    for finding in findings:
        lines.append(
            indented(finding.found, f"{finding.status.value:<4}  {finding.check:<{width}}  ", margin)
        )
        lines += [indented(detail, f"{margin}- ", f"{margin}  ") for detail in finding.details]
        if finding.remedy:
            lines.append(indented(finding.remedy, f"{margin}-> ", f"{margin}   "))
    counted = {status: sum(finding.status is status for finding in findings) for status in Status}
    total = f"{counted[Status.FAIL]} failed, {counted[Status.WARN]} warned, {counted[Status.OK]} ok"
    return "\n".join([*lines, "", total])
