"""The pages about scenarios say what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from callback_priority.simulation import scenario_file
from callback_priority.simulation.library import scenario_names
from callback_priority.simulation.scenario_file import load_scenario

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "scenarios.md").read_text()
KEYS = {
    *scenario_file.SCENARIO_KEYS,
    *scenario_file.WORK_KEYS,
    *scenario_file.CRASH_KEYS,
    *scenario_file.TREATMENT_KEYS,
    *scenario_file.ARRIVALS_KEYS,
    *scenario_file.HOLDS_KEYS,
    *(key for keys in scenario_file.ARRIVALS_KEYS.values() for key in keys),
    *(key for keys in scenario_file.HOLDS_KEYS.values() for key in keys),
}


@pytest.mark.parametrize("text", re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL))
def test_the_examples_are_scenarios(text):
    assert load_scenario(text, "example").scenario.streams


def test_every_key_is_described():
    named = set(re.findall(r"`\[*([a-z_]+)(?:\.NAME)?\]*`", PAGE))
    assert KEYS - named == set()


def test_every_scenario_that_comes_along_is_named():
    rows = PAGE[PAGE.index("## Scenarios that come along") :]
    assert sorted(re.findall(r"^\| `([a-z-]+)` \|", rows, re.MULTILINE)) == list(scenario_names())
