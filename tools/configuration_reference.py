"""Write the options' part of docs/reference/configuration.md from the table that the parser uses.

Run ``python tools/configuration_reference.py`` after changing an option; a test fails while the page is stale.
"""

from __future__ import annotations

from pathlib import Path

from callback_priority.policy.options import OPTIONS, SECTION, Option

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "configuration.md"
MARK = "<!-- below: written by tools/configuration_reference.py -->\n"


def _entry(option: Option) -> str:
    kind = {"integer": "whole number", "float": "number", "string": "text", "boolean": "`True` or `False`"}[
        option.type
    ]
    if option.choices:
        kind = "one of " + ", ".join(f"`{choice}`" for choice in option.choices)
    elif "JSON object:" in option.description:
        kind = "JSON object"
    if option.minimum is not None and option.maximum is not None:
        kind += f", {option.minimum:g} to {option.maximum:.0f}"
    return (
        f"### {option.name}\n\n"
        f"{option.description}\n\n"
        f"Type\n: {kind}\n\n"
        f"Default\n: `{option.default}`\n\n"
        f"Why this default\n: {option.why_default}\n\n"
        f"Example\n: `{option.name} = {option.example}`\n\n"
        f"Environment\n: `AIRFLOW__{SECTION.upper()}__{option.name.upper()}`\n"
    )


def render(page: str) -> str:
    """The page with its options written anew; what stands above the mark is kept."""
    head, _, _ = page.partition(MARK)
    return head + MARK + "\n" + "\n".join(_entry(option) for option in OPTIONS)


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
