"""What the tests with Airflow's real scheduler share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def quiet_airflow() -> Iterator[None]:
    """Airflow tells of every task it looks at; most of a loop's time would go into that."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    yield
    root.setLevel(before)
