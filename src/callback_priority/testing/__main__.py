"""``python -m callback_priority.testing``: a long search for somebody who starves, under the library itself or a policy of your own."""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module

from callback_priority.simulation.engine import Decider, Treatment
from callback_priority.testing.controls import CONTROLS, FAIR
from callback_priority.testing.search import search

__all__ = ["main"]

_BATCH = 1_000
"""Hypothesis remembers what it has tried; in batches, that does not grow without end."""
_AT_LEAST = 100
"""In a batch that makes up for cases that came again."""
_KNOWN = {each.name.replace(" ", "-"): each for each in (FAIR, *CONTROLS)}


def subject(name: str) -> Decider | Treatment:
    """The policy of this name: one of the library's, or ``MODULE:ATTRIBUTE``.

    Args:
        name: Its name.

    Raises:
        ValueError: There is no such policy.
    """
    if name in _KNOWN:
        return _KNOWN[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(f"no policy is named {name!r}: one of {', '.join(_KNOWN)}, or MODULE:ATTRIBUTE")
    found: Decider | Treatment = getattr(import_module(module), attribute)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Search until all examples are tried, the time is up, or somebody starves.

    Args:
        arguments: The command line; that of the process if left out.

    Returns:
        0 if nobody starved, 1 if somebody did.

    Raises:
        SystemExit: With 2, if the command line makes no sense.
    """
    parser = argparse.ArgumentParser(prog="python -m callback_priority.testing", description=__doc__)
    parser.add_argument("--policy", default="fair", help=f"{', '.join(_KNOWN)}, or MODULE:ATTRIBUTE")
    parser.add_argument("--examples", type=int, default=10_000, help="how many cases to try")
    parser.add_argument("--seed", type=int, default=0, help="which random numbers")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--minutes", type=float, default=None, help="stop after this time")
    options = parser.parse_args(arguments)
    try:
        subject(options.policy)
    except (ValueError, ImportError, AttributeError) as problem:
        parser.error(str(problem))
    begun = time.monotonic()
    tried: set[bytes] = set()
    found, number = "", options.seed * 1_000_003
    end = "\r" if sys.stdout.isatty() else "\n"

    def is_late() -> bool:
        return options.minutes is not None and time.monotonic() - begun > options.minutes * 60

    with ProcessPoolExecutor(options.jobs) as pool:
        try:
            missing, before = options.examples, 0
            while 0 < missing != before and not found and not is_late():
                # Batches may come upon the same cases. What is missing for it is made up for, unless nothing new is left; each
                # batch begins with the simplest cases, which are not new, so a small one would be of no use.
                wanted = max(missing, _AT_LEAST) if before else missing
                sizes = [_BATCH] * (wanted // _BATCH) + [wanted % _BATCH] * (wanted % _BATCH > 0)
                batches = list(enumerate(sizes, start=number))
                number += len(batches)
                for cases, found in pool.map(partial(_batch, options.policy), batches):
                    tried |= cases
                    told = f"{len(tried)} of {options.examples} examples, {time.monotonic() - begun:.0f} s"
                    _say(told, end=end)
                    if found or is_late():
                        break
                missing, before = options.examples - len(tried), missing
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    seconds = time.monotonic() - begun
    if found:
        _say(
            f"{options.policy}: somebody starves, seen after {len(tried)} examples, {seconds:.0f} s\n{found}"
        )
        return 1
    _say(f"{options.policy}: nobody starves in {len(tried)} examples, {seconds:.0f} s")
    return 0


def _batch(policy: str, batch: tuple[int, int]) -> tuple[frozenset[bytes], str]:
    """Which were tried, and what was found, in words: a process can hand those to another."""
    seed, examples = batch
    result = search(subject(policy), max_examples=examples, seed=seed)
    return result.tried, str(result.starvation or "")


def _say(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
