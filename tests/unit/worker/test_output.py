"""What is kept of a callback's end is short, masked, and fit for a database."""

from __future__ import annotations

import pytest

from callback_priority.worker.output import LIMIT_BYTES, describe_error, describe_result, masked

SECRET = "correct-horse-battery"


@pytest.fixture
def secret():
    from airflow.sdk._shared.secrets_masker import _secrets_masker

    masker = _secrets_masker()
    before = (masker.patterns, masker.replacer, set(masker.patterns))
    masker.patterns = set()
    masker.add_mask(SECRET)
    yield SECRET
    masker.patterns, masker.replacer = before[2], before[1]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        ("sent", '"sent"'),
        ({"b": [1, None]}, '{"b": [1, null]}'),
        ("für", '"für"'),
        (True, "true"),
    ],
)
def test_a_result_is_json(value, text):
    assert describe_result(value) == text


@pytest.mark.parametrize("value", [object(), float("nan"), {"deep": object()}])
def test_a_result_that_is_not_json_is_named(value):
    text = describe_result(value)
    assert "which is not JSON" in text
    assert "0x" not in text


def test_a_result_that_holds_itself_is_named():
    value: list[object] = []
    value.append(value)
    assert describe_result(value)  # whatever Airflow's masker makes of it, it ends


def test_an_error_says_its_class_and_message_first_and_where_it_was_raised():
    def inner():
        raise ValueError("no such channel")

    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is what is tested
        inner()
    lines = describe_error(caught.value).splitlines()
    assert lines[0] == "ValueError: no such channel"
    assert lines[1].startswith(f"  {__file__}:")
    assert lines[1].endswith("in inner")


def test_an_error_whose_message_cannot_be_shown_is_still_named():
    class BrokenError(Exception):
        def __str__(self):
            raise RuntimeError

    assert "BrokenError: (its message cannot be shown)" in describe_error(BrokenError())
    assert describe_error(SystemExit()) == "SystemExit"


def test_secrets_are_masked_in_results_and_errors(secret):
    assert secret not in describe_result({"a": [f"Bearer {secret}"]})
    assert describe_error(ValueError(f"denied for {secret}")) == "ValueError: denied for ***"
    assert describe_result({"password": "x1"}) == '{"password": "***"}'


@pytest.mark.parametrize("character", ["x", "ü", "😀"])
def test_what_is_too_long_is_cut_between_characters(character):
    text = masked(character * (LIMIT_BYTES + 1))
    assert len(text.encode()) <= LIMIT_BYTES
    assert text.endswith(f"({(LIMIT_BYTES + 1) * len(character.encode())} bytes in all)")


def test_a_long_message_leaves_room_for_where_it_was_raised():
    try:
        raise ValueError("y" * 100_000)  # noqa: TRY301 - it needs a traceback
    except ValueError as error:
        text = describe_error(error)
    assert len(text.encode()) <= LIMIT_BYTES
    assert text.splitlines()[-1].endswith("in test_a_long_message_leaves_room_for_where_it_was_raised")


def test_what_a_database_refuses_is_written_out():
    assert masked("a\0b\ud800") == "a\\x00b\\ud800"
