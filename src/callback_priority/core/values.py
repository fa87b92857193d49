"""How the values are made that come up for every grant."""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["value"]

# What keeps an instance from being changed doubles the time in which one with many fields is made. Here it is the type checker
# that keeps it, which attrs' own documentation suggests where that time matters.
if TYPE_CHECKING:
    from attrs import frozen as value
else:
    from functools import partial

    from attrs import define

    value = partial(define, unsafe_hash=True)
