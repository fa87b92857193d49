"""The page of metrics lists what the code counts, and nothing else."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from callback_priority.persistence.requests import Outcome

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "callback_priority"
PAGE = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
WAYS = {"decr", "gauge", "incr", "timer", "timing"}


def calls(path: Path) -> list[tuple[str, str, ast.Call]]:
    """Each call of an attribute of a name in a file: the name, the attribute, the call."""
    return [
        (node.func.value.id, node.func.attr, node)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
    ]


def counted() -> dict[str, set[str]]:
    """What the code counts: the tags by the name."""
    found: dict[str, set[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for owner, way, call in calls(path):
            if (owner, way) == ("metrics", "count"):
                name = call.args[0]
                assert isinstance(name, ast.Constant), (
                    f"{path}:{call.lineno}: the name of a metric is written out"
                )
                tags = {str(keyword.arg) for keyword in call.keywords}
                assert found.setdefault(f"callback_priority.{name.value}", tags) == tags
    return found


def table(first_column: str) -> list[list[str]]:
    """The cells of the rows of a table."""
    text = PAGE.split(f"| {first_column} |", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def test_everything_that_is_counted_is_on_the_page_with_its_tags():
    rows = {name.strip("`"): set(re.findall("`(.+?)`", tags)) for name, tags, _ in table("name")}
    assert rows == counted()


def test_every_outcome_of_a_request_is_on_the_page():
    listed = {outcome.strip("`") for outcome, _ in table("outcome")}
    assert listed == {*map(str, Outcome), "duplicate", "withdrawn"}


def test_there_is_one_way_to_count():
    """Whatever sends a metric past it would be missing on the page."""
    ways = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        for owner, way, _ in calls(path)
        if owner in ("stats", "Stats") and way in WAYS
    }
    assert ways == {"adapter/metrics.py"}
