"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import callback_priority.cli
import callback_priority.core
import callback_priority.policy
import callback_priority.simulation

MODULES = [f"callback_priority.{name}" for name in ("errors", "fingerprint", "naming")] + [
    module.name
    for package in (
        callback_priority.cli,
        callback_priority.core,
        callback_priority.policy,
        callback_priority.simulation,
    )
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
