"""Goals in the words of an operator: how long a class may wait, how much of the slots it must keep.

A goal is written ``CLASS MEASURE <= DURATION`` or ``CLASS keeps >= PERCENT``, several of them with commas between::

    deadline p95 <= 30 s, task keeps >= 80%

*Keeps* is the class's part of all slots' time while it had work waiting: what a class does not ask for is not taken from it, and a
slot that is held empty for others is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import attrs

from callback_priority.core.classes import CLASS_ORDER, ServiceClass
from callback_priority.errors import ConfigurationError, InternalError, Problem

__all__ = ["KEEPS", "MEAN", "Goal", "parse_goals"]

MEAN: Final = "mean"
KEEPS: Final = "keeps"
_QUANTILES: Final = {"p50": 0.5, "median": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
_CLASSES: Final = {str(cls): cls for cls in CLASS_ORDER} | {f"{cls}s": cls for cls in CLASS_ORDER}
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3_600.0}
_GOAL: Final = re.compile(
    r"(?P<cls>[a-z_]+)\s+(?P<measure>[a-z0-9]+)\s*(?P<sign><=|<|>=|>)\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[a-z]*|%)"
)
_FORM: Final = (
    'is not a goal; write "CLASS p50|p95|p99|max|mean <= DURATION" or "CLASS keeps >= PERCENT", such as'
    ' "deadline p95 <= 30 s" or "task keeps >= 80%"'
)


@attrs.frozen(kw_only=True)
class Goal:
    """What is wanted of one class.

    Args:
        text: As it was written.
        service_class: The class.
        quantile: Which quantile of its waits is meant; ``None`` for their mean, or where it is not about waits.
        most_seconds: The longest that this may be; ``None`` where it is not about waits.
        least_share: The least part of all slots' time that the class keeps while it has work waiting; ``None`` otherwise.
    """

    text: str
    service_class: ServiceClass
    quantile: float | None = None
    most_seconds: float | None = None
    least_share: float | None = None

    def shortfall(self, value: float | None) -> float:
        """How far a value misses the goal, as a part of it: nought or less if it meets it.

        Args:
            value: Seconds or a share; ``None`` for a wait that never ended.

        >>> [goal] = parse_goals("deadline p95 <= 30 s")
        >>> goal.shortfall(45.0), goal.shortfall(15.0)
        (0.5, -0.5)
        """
        if self.most_seconds is not None:
            return float("inf") if value is None else value / self.most_seconds - 1
        if self.least_share is None:
            raise InternalError(f"the goal {self.text!r} is about nothing")
        return 1 - (value or 0.0) / self.least_share


def parse_goals(text: str | Sequence[str]) -> tuple[Goal, ...]:
    """Read goals.

    Args:
        text: One or several, with commas, semicolons or line ends between them.

    Raises:
        ConfigurationError: Some of them cannot be read; all that is wrong is named.

    >>> [goal.service_class.value for goal in parse_goals("deadlines p95 <= 30 s, tasks keep >= 80%")]
    ['deadline', 'task']
    """
    parts = re.split(r"[,;\n]", text) if isinstance(text, str) else list(text)
    goals, problems = [], []
    for part in filter(None, map(str.strip, parts)):
        found = _read(part)
        if isinstance(found, Problem):
            problems.append(found)
        else:
            goals.append(found)
    if not goals and not problems:
        problems.append(Problem(key="goals", value="", remedy="there are none; name at least one"))
    if problems:
        raise ConfigurationError(problems)
    return tuple(goals)


def _read(part: str) -> Goal | Problem:
    match = _GOAL.fullmatch(part.lower())
    if match is None:
        return Problem(key="goals", value=part, remedy=_FORM)
    service_class = _CLASSES.get(match["cls"])
    if service_class is None:
        known = ", ".join(str(cls) for cls in CLASS_ORDER)
        return Problem(
            key="goals", value=part, remedy=f"{match['cls']!r} is no class; the classes are {known}"
        )
    number, unit, at_most = float(match["number"]), match["unit"], match["sign"].startswith("<")
    if match["measure"] in {KEEPS, "keep", "share"}:
        if at_most or unit != "%" or not 0 < number <= 100:
            return Problem(
                key="goals", value=part, remedy='a share is at least some percentage up to 100: ">= 80%"'
            )
        return Goal(text=part, service_class=service_class, least_share=number / 100)
    if match["measure"] not in {*_QUANTILES, MEAN}:
        return Problem(key="goals", value=part, remedy=_FORM)
    if not at_most or unit not in _SECONDS or not number:
        return Problem(
            key="goals", value=part, remedy='a wait is at most some time with its unit: "<= 30 s", "<= 5 min"'
        )
    return Goal(
        text=part,
        service_class=service_class,
        quantile=_QUANTILES.get(match["measure"]),
        most_seconds=number * _SECONDS[unit],
    )
