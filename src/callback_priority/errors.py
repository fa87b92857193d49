"""The library's errors: one root, leaves that carry the values and say what to do next."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

__all__ = [
    "CallbackPriorityError",
    "ConfigurationError",
    "InternalError",
    "MissingExtraError",
    "Problem",
    "TransactionLostError",
]


class CallbackPriorityError(Exception):
    """Root of every error that this library raises on purpose."""


class InternalError(CallbackPriorityError, AssertionError):
    """An invariant that this library promises to itself does not hold: a bug here, never in a Dag."""


class MissingExtraError(CallbackPriorityError, ImportError):
    """Something was asked for that needs packages which are not installed.

    Args:
        what: What was asked for.
        package: What is missing.
        extra: The extra of this distribution that brings it.
    """

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(
            f"{what} needs {package}, which is not installed here: pip install 'callback-priority[{extra}]'"
        )


class TransactionLostError(CallbackPriorityError):
    """The database does not let us undo a part of a transaction: only a rollback of all of it helps.

    Its cause says what happened; a lost connection, as a rule.
    """


@attrs.frozen(kw_only=True)
class Problem:
    """One thing that is wrong with a setting.

    Args:
        key: The setting, with the path inside its JSON where there is one
            (``weights.deadline``, ``pool_quotas['etl'].task.reserve``).
        value: What was found there.
        remedy: What to write instead.
    """

    key: str
    value: object
    remedy: str

    def __str__(self) -> str:
        return f"{self.key} = {self.value!r}: {self.remedy}"


class ConfigurationError(CallbackPriorityError, ValueError):
    """The settings, or what else was written, cannot be used; carries every problem found, not only the first.

    Args:
        problems: All of them.
        where: What has them.
    """

    def __init__(self, problems: Sequence[Problem], where: str = "[callback_priority]") -> None:
        self.problems = tuple(problems)
        listing = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"{where} has {len(self.problems)} problem(s):\n{listing}")
