"""The search for somebody who starves."""

from __future__ import annotations

from hashlib import blake2b
from random import Random

import attrs
from hypothesis import HealthCheck, Phase, find, reject, settings
from hypothesis.errors import NoSuchExample
from hypothesis.strategies import SearchStrategy

from callback_priority.simulation.engine import Decider, Treatment
from callback_priority.testing.cases import Case
from callback_priority.testing.judge import Starvation, judge
from callback_priority.testing.strategies import cases

__all__ = ["Search", "assert_nobody_starves", "find_starvation", "search"]

DEFAULT_EXAMPLES = 100
"""Hypothesis's own default."""


@attrs.frozen(kw_only=True)
class Search:
    """What a search came to.

    Args:
        starvation: The smallest found; ``None`` if nobody starved.
        examples: How many were tried until somebody did, each another case.
        tried: A digest of each case that was tried, so that several searches can be counted together.
    """

    starvation: Starvation | None
    examples: int
    tried: frozenset[bytes]


def search(
    subject: Decider | Treatment,
    *,
    max_examples: int = DEFAULT_EXAMPLES,
    seed: int = 0,
    strategy: SearchStrategy[Case] | None = None,
    shrink: bool = True,
) -> Search:
    """Search for a case in which a promise of `callback_priority.testing.judge` is broken.

    Args:
        subject: The policy. A decider, or a treatment, of which everything but its settings is taken; see
            `callback_priority.testing.cases.treatment_of`.
        max_examples: How many cases to try; one that comes again is passed over, and does not count.
        seed: Which random numbers; the same search finds the same.
        strategy: Where cases come from.
        shrink: Whether to make what was found as small as it gets, which tries more.
    """
    tried: set[bytes] = set()
    needed = 0
    last: list[Starvation] = []

    def starves(case: Case) -> bool:
        nonlocal needed
        digest = _digest(case)
        if digest in tried and not needed:
            reject()
        tried.add(digest)
        found = judge(subject, case)
        if found is None:
            return False
        needed = needed or len(tried)
        last.append(found)
        return True

    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    try:
        smallest = find(
            cases() if strategy is None else strategy,
            starves,
            settings=settings(
                max_examples=max_examples,
                database=None,
                deadline=None,
                phases=phases,
                suppress_health_check=list(HealthCheck),
            ),
            random=Random(seed),  # noqa: S311 - not for secrets
        )
    except NoSuchExample:
        return Search(starvation=None, examples=len(tried), tried=frozenset(tried))
    return Search(starvation=judge(subject, smallest) or last[-1], examples=needed, tried=frozenset(tried))


def _digest(case: Case) -> bytes:
    """What tells a case from others: the code that makes it, in short."""
    return blake2b(repr(case).encode(), digest_size=8).digest()


def find_starvation(
    subject: Decider | Treatment,
    *,
    max_examples: int = DEFAULT_EXAMPLES,
    seed: int = 0,
    strategy: SearchStrategy[Case] | None = None,
) -> Starvation | None:
    """Search as `search` does, and return the smallest starvation found; ``None`` if nobody starved."""
    return search(subject, max_examples=max_examples, seed=seed, strategy=strategy).starvation


def assert_nobody_starves(
    subject: Decider | Treatment,
    *,
    max_examples: int = DEFAULT_EXAMPLES,
    seed: int = 0,
    strategy: SearchStrategy[Case] | None = None,
) -> None:
    """Fail if `find_starvation` finds somebody, with what it found.

    Raises:
        AssertionError: Somebody starves.
    """
    found = find_starvation(subject, max_examples=max_examples, seed=seed, strategy=strategy)
    if found is not None:
        raise AssertionError(str(found))
