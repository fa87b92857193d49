"""Which of a batch lead runs, where slots are scarce."""

from __future__ import annotations

from collections.abc import Hashable

import pytest

from callback_priority.core.snapshot import Candidate


def leading(batches: dict[int, str], size: int, executors: dict[int, str] | None = None) -> list[Hashable]:
    from callback_priority.adapter.planning import _leading

    candidates = [Candidate(id=each, executor=(executors or {}).get(each, "a")) for each in range(8)]
    return [each.id for each in _leading(candidates, batches, size)]


@pytest.mark.parametrize(
    ("size", "expected"),
    [(1, list(range(8))), (2, [0, 2, 4, 6]), (3, [0, 3, 6]), (8, [0]), (100, [0])],
)
def test_one_leads_as_many_as_share_a_run(size, expected):
    assert leading(dict.fromkeys(range(8), "b"), size) == expected


def test_batches_do_not_mix_and_who_has_none_goes_alone():
    assert leading({0: "b", 1: "c", 2: "b", 3: "c", 5: "b"}, 2) == [0, 1, 4, 5, 6, 7]


def test_a_run_is_on_one_executor():
    assert leading(dict.fromkeys(range(8), "b"), 8, dict.fromkeys([3, 4], "other")) == [0, 3]
