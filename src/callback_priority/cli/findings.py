"""What ``doctor`` says: one finding for each thing that it looks at."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

import attrs

from callback_priority.policy.settings import Mode, Settings, WorkerCallbacks

__all__ = [
    "Finding",
    "RESTART",
    "Status",
    "Wanted",
]

RESTART: Final = "restart the schedulers"
"""What applies a change; a scheduler reads its configuration at start."""


class Status(Enum):
    """How bad it is, the worst last."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@attrs.frozen(kw_only=True)
class Finding:
    """What one check found.

    Args:
        check: Its name, stable for scripts.
        status: How bad it is.
        found: What was found, in one sentence.
        remedy: What to do about it; empty if nothing needs doing.
        details: The parts of what was found, where it has parts.
        values: The same for scripts.
    """

    check: str
    status: Status
    found: str
    remedy: str = ""
    details: tuple[str, ...] = ()
    values: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Wanted:
    """What the configuration asks for.

    Args:
        raw: The section's text.
        mode: The mode, as far as it can be read; what is invalid counts as `Mode.OFF`, as it does at work.
        sweep_seconds: How often strays are looked for.
        settings: All of it; the defaults if something is invalid, as at work.
    """

    raw: Mapping[str, str]
    mode: Mode
    sweep_seconds: float
    settings: Settings = attrs.field(factory=Settings)

    @property
    def moves(self) -> bool:
        """Whether callbacks leave the Dag processor."""
        return self.mode is Mode.ACTIVE and self.settings.use_worker_callbacks is not WorkerCallbacks.NONE

    @property
    def serious(self) -> Status:
        """How bad it is if the library cannot work: not at all what was asked for, or of no effect yet."""
        return Status.WARN if self.mode is Mode.OFF else Status.FAIL
