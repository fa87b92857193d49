"""Write the table of docs/reference/versions.md from what the library knows of Airflow's versions.

Run ``python tools/versions_reference.py`` after changing it; a test fails while the page is stale.
"""

from __future__ import annotations

from pathlib import Path

from callback_priority.compat.parts import PARTS, RUN, lacking

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "versions.md"
BEGIN = "<!-- below: written by tools/versions_reference.py -->\n"
END = "<!-- above: written by tools/versions_reference.py -->\n"


def table() -> str:
    """One line for each version that the contract tests run on."""
    lines = ["| Airflow | works | does not |", "| --- | --- | --- |"]
    for version in RUN:
        missing = lacking(version)
        works = "; ".join(part.name for part in PARTS if part not in missing)
        does_not = "; ".join(part.name for part in missing) or "-"
        lines.append(f"| {version} | {works} | {does_not} |")
    return "\n".join(lines) + "\n"


def render(page: str) -> str:
    """The page with its table written anew."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table()}\n{END}{tail}"


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
