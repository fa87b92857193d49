"""What the package says of itself."""

from __future__ import annotations

import ast
import sys
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path

import pytest

import callback_priority

PACKAGE = Path(callback_priority.__file__).parent
PURE_PACKAGES = {"attrs", "sortedcontainers"}


def test_the_metadata_carry_the_packages_version():
    assert distribution("callback-priority").version == callback_priority.__version__


def test_the_package_is_typed():
    assert files("callback_priority").joinpath("py.typed").is_file()


def test_the_entry_points_are_those_that_airflow_looks_for():
    points = {
        (point.group, point.name): point.value for point in distribution("callback-priority").entry_points
    }
    assert points == {
        ("console_scripts", "callback-priority"): "callback_priority.cli.main:main",
        ("apache_airflow_provider", "provider_info"): "callback_priority.adapter.provider:get_provider_info",
        ("airflow.policy", "callback_priority"): "callback_priority.activation",
    }


@pytest.mark.parametrize("module", sorted((PACKAGE / "core").glob("*.py")), ids=lambda path: path.stem)
def test_the_core_imports_nothing_but_the_standard_library_and_two_packages(module):
    """import-linter can forbid packages that it is told of; this refuses all others."""
    allowed = sys.stdlib_module_names | PURE_PACKAGES
    for node in ast.walk(ast.parse(module.read_text())):
        names = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        for name in names:
            ours = name.startswith("callback_priority.core.") or name == "callback_priority.errors"
            assert ours or name.partition(".")[0] in allowed, f"{module.name} imports {name}"
