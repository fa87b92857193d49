"""When to step aside: after several failures in a row, for a back-off, and then try again."""

from __future__ import annotations

import attrs

__all__ = ["Breaker"]


@attrs.define
class Breaker:
    """Counts failures of ours in a row.

    Args:
        threshold: How many failures in a row open the breaker.
        back_off_seconds: How long it stays open; after that one more failure opens it again.
    """

    threshold: int
    back_off_seconds: float
    failures: int = 0
    open_until: float = 0.0
    seen: set[str] = attrs.field(factory=set)
    counted: bool = False

    def begin(self) -> None:
        """A scheduler loop begins: however many parts of it fail, it counts as one failure."""
        self.counted = False

    def is_open(self, now: float) -> bool:
        """Whether to step aside now (seconds of a clock that never goes back)."""
        return now < self.open_until

    def failed(self, now: float) -> bool:
        """Count a failure, once in each loop; returns whether that opened the breaker."""
        if self.counted:
            return False
        self.counted = True
        self.failures += 1
        if self.failures >= self.threshold:
            self.open(now)
            return True
        return False

    def open(self, now: float) -> None:
        """Step aside from now on, for a while."""
        self.open_until = now + self.back_off_seconds

    def succeeded(self) -> None:
        """A pass went well: failures are counted from zero again."""
        self.failures = 0

    def first_time(self, cause: str) -> bool:
        """Whether this cause has not been seen before: it is logged in full once, then counted."""
        new = cause not in self.seen
        if new and len(self.seen) < 1000:
            self.seen.add(cause)
        return new
