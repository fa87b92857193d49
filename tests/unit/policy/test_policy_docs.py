"""What the pages tell an operator to write can be written."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path

import pytest

from callback_priority.policy.options import SECTION
from callback_priority.policy.parse import parse_settings
from callback_priority.policy.settings import Settings

DOCS = Path(__file__).parents[3] / "docs"
BLOCKS = [
    pytest.param(block, id=f"{page}-{number}")
    for page in ("reference/configuration.md", "how-to/tune-weights-and-quotas.md")
    for number, block in enumerate(
        re.findall(r"```ini\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    )
]


@pytest.mark.parametrize("block", BLOCKS)
def test_every_configuration_on_the_pages_is_valid(block):
    parser = ConfigParser()
    parser.read_string(block if block.startswith("[") else f"[{SECTION}]\n{block}")
    assert parse_settings(dict(parser[SECTION])) != Settings()
