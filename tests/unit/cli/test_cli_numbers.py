"""Numbers on a command line, and what is said of those that are none."""

from __future__ import annotations

from argparse import ArgumentTypeError

import pytest

from callback_priority.cli import numbers
from callback_priority.cli.main import main


@pytest.mark.parametrize(("text", "found"), [("1", 1), ("007", 7), ("10000", 10_000)])
def test_a_whole_number_is_decimal_digits_within_its_range(text, found):
    assert numbers.whole(1, 10_000)(text) == found


@pytest.mark.parametrize(
    "text", ["", "0", "10001", "-1", "+1", " 1", "1_000", "1.0", "1e3", "0x1", "٣", "²", "9" * 5_000]
)
def test_nothing_else_is_a_whole_number(text):
    with pytest.raises(ArgumentTypeError) as caught:
        numbers.whole(1, 10_000)(text)
    assert str(caught.value) == f"{text!r}: write a whole number from 1 to 10000"


@pytest.mark.parametrize(
    ("text", "found"), [("0.1", 0.1), (".5", 0.5), ("2.", 2.0), ("1e3", 1_000.0), ("86400", 86_400.0)]
)
def test_seconds_may_have_decimals(text, found):
    assert numbers.seconds(0.1, 86_400)(text) == found


@pytest.mark.parametrize(
    "text", ["", ".", "0", "0.09", "86400.1", "-1", "1_0", " 1", "nan", "inf", "1e999", "soon", "٣"]
)
def test_nothing_else_is_a_number_of_seconds(text):
    with pytest.raises(ArgumentTypeError) as caught:
        numbers.seconds(0.1, 86_400)(text)
    assert str(caught.value) == f"{text!r}: write a number of seconds from 0.1 to 86400"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["list", "--limit", "0"], "--limit: '0': write a whole number from 1 to 10000"),
        (["simulate", "--seeds", "1_0"], "--seeds: '1_0': write a whole number from 1 to 10000"),
        (["simulate", "--seconds", "0"], "--seconds: '0': write a number of seconds from 1 to 31622400"),
        (["simulate", "--confidence", "1"], "--confidence: '1': write a number from 0.5 to 0.9999"),
        (["tune", "--trials", "many"], "--trials: 'many': write a whole number from 1 to 10000"),
        (["replay", "--slots", "0"], "--slots: '0': write a whole number from 1 to 1000000"),
        (
            ["replay", "--loop-seconds", "0"],
            "--loop-seconds: '0': write a number of seconds from 0.001 to 3600",
        ),
        (["replay", "--last", "3 weeks"], "--last: '3 weeks': write a length of time such as 90m, 6h or 2d"),
        (["replay", "--to", "noon"], "--to: 'noon': write a time such as 2026-01-31T08:00"),
        (["lint", "--slots", "0"], "--slots: '0': write a whole number from 1 to 2147483647"),
        (["lint", "--holds", "900"], "--holds: '900': write an object of classes and seconds, such as {"),
        (["lint", "--holds", '{"taks": 9}'], "--holds: no such service class 'taks'; did you mean 'task'?"),
        (["lint", "--holds", '{"task": -1}'], "--holds: task = -1: write a number of seconds"),
    ],
)
def test_the_commands_name_the_option_what_was_written_and_what_to_write(arguments, says, capsys):
    assert main(arguments) == 2
    assert f"argument {says}" in capsys.readouterr().err
