"""What somebody likely meant who wrote a name that there is not."""

from __future__ import annotations

import pytest

from callback_priority.policy.spelling import guess


@pytest.mark.parametrize(
    ("name", "known", "meant"),
    [
        ("wieghts", ["weights", "mode"], "weights"),
        ("LOCALEXECUTOR", ["CeleryExecutor", "LocalExecutor"], "LocalExecutor"),
        ("Etl", ["default_pool", "etl"], "etl"),
    ],
)
def test_the_name_is_told_as_it_is_known_whatever_the_case(name, known, meant):
    assert guess(name, known) == f"; did you mean {meant!r}?"


@pytest.mark.parametrize(("name", "known"), [("quite else", ["weights"]), ("", ["weights"]), ("mode", [])])
def test_nothing_is_said_where_nothing_is_like_it(name, known):
    assert guess(name, known) == ""


def test_only_the_beginning_of_a_very_long_name_counts():
    assert guess("pool" + "x" * 1_000_000, ["pool"]) == ""
    assert guess("x" * 1_000_000, ["x" * 250]) == f"; did you mean {'x' * 250!r}?"
