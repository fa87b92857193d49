"""The command line: finds the command, runs it, turns what went wrong into an exit status.

Only the command that was asked for imports what it needs, so that ``--help`` and ``--version`` do not wait
for Airflow.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial

from callback_priority import __version__
from callback_priority.cli import doctor, lint, listing, replay, show, simulate, status, tune
from callback_priority.cli.failures import FAILED, told

__all__ = ["main"]

WRONG_USAGE = 2
"""Exit status of a command line that makes no sense, as argparse gives it."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells give it."""

COMMANDS = (doctor, status, listing, show, simulate, tune, replay, lint)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="callback-priority",
        description="Look after callbacks and the sharing of Airflow's scheduler slots between tasks and callbacks.",
        epilog="Exit status: 0 all is well, 1 something failed, 2 wrong usage.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments; those of the process if not given.

    Returns:
        The exit status.
    """
    parser = _parser()
    try:
        arguments = parser.parse_args(argv)
        if arguments.command is None:
            parser.print_help(sys.stderr)
            return WRONG_USAGE
        answer = told(arguments.command, partial(arguments.run, arguments))
        sys.stdout.flush()
    except SystemExit as leaving:
        # argparse's answer to a line that makes no sense, from here or from a command that looked closer.
        return leaving.code if isinstance(leaving.code, int) else WRONG_USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough; what is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return answer
