"""Try a policy on generated deployments and see whether anybody starves. Needs Hypothesis: ``callback-priority[testing]``.

>>> from callback_priority.core.slot_loop import decide
>>> find_starvation(decide, max_examples=5)

See ``docs/how-to/test-your-policy.md``. The promises are in `callback_priority.testing.judge`, ways of sharing that break them in
`callback_priority.testing.controls`.
"""

from __future__ import annotations

from callback_priority.testing.cases import Case
from callback_priority.testing.judge import Promise, Starvation, judge
from callback_priority.testing.search import Search, assert_nobody_starves, find_starvation, search
from callback_priority.testing.strategies import cases

__all__ = [
    "Case",
    "Promise",
    "Search",
    "Starvation",
    "assert_nobody_starves",
    "cases",
    "find_starvation",
    "judge",
    "search",
]
