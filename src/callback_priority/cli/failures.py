"""What a command says that cannot do its work."""

from __future__ import annotations

import sys
from collections.abc import Callable

from callback_priority.errors import CallbackPriorityError, ConfigurationError, MissingExtraError

__all__ = ["FAILED", "CommandError", "told"]

FAILED = 1
"""Exit status of a command that found or met a failure."""


class CommandError(CallbackPriorityError):
    """A command cannot do its work.

    Args:
        message: What is wrong.
        remedy: What to do about it.
    """

    def __init__(self, message: str, remedy: str) -> None:
        self.message = message
        self.remedy = remedy
        super().__init__(f"{message}; {remedy}")


def told(command: str, body: Callable[[], int]) -> int:
    """Run a command's body, and say on standard error why it ends without an answer if it does.

    Args:
        command: Its name.
        body: What it does.

    Returns:
        Its exit status: what the body returns, or `FAILED`.

    Raises:
        BrokenPipeError: Whoever read the output has seen enough, which is no failure to be told of.
    """
    try:
        return body()
    except CommandError as error:
        why = f"{error.message}\n  -> {error.remedy}\n  -> `callback-priority doctor` checks the rest"
    except (ConfigurationError, MissingExtraError) as error:
        why = str(error)
    except BrokenPipeError:
        raise
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        if error.filename is not None:
            why += f": {error.filename}"
    print(f"callback-priority {command}: {why}", file=sys.stderr)
    return FAILED
