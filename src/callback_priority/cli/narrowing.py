"""Which classes and kinds of callbacks a command is asked for."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence

import attrs

from callback_priority.core.classes import ServiceClass
from callback_priority.core.kinds import KINDS
from callback_priority.policy.spelling import guess

__all__ = ["Narrowing", "add_narrowing", "narrowing", "one_of"]


@attrs.frozen(kw_only=True)
class Narrowing:
    """What is asked for; nothing named is everything.

    Args:
        classes: The service classes.
        kinds: The kinds of callbacks.
    """

    classes: frozenset[ServiceClass] = frozenset()
    kinds: frozenset[str] = frozenset()

    def shows(self, service_class: ServiceClass) -> bool:
        """Whether a class is asked for, or one of its kinds.

        >>> narrow = Narrowing(kinds=frozenset({"dag_failure"}))
        >>> narrow.shows(ServiceClass.DAG_CALLBACK), narrow.shows(ServiceClass.TASK)
        (True, False)
        """
        if self.kinds and not any(KINDS[kind].service_class is service_class for kind in self.kinds):
            return False
        return not self.classes or service_class in self.classes

    def counts(self, kind: str) -> bool:
        """Whether callbacks of a kind are asked for.

        >>> Narrowing(classes=frozenset({ServiceClass.DEADLINE})).counts("dag_failure")
        False
        """
        known = KINDS.get(kind)
        if self.classes and (known is None or known.service_class not in self.classes):
            return False
        return not self.kinds or kind in self.kinds


def one_of(what: str, names: Iterable[str]) -> Callable[[str], str]:
    """What argparse calls to check one word.

    Args:
        what: What the word is, for the error.
        names: The words that there are.

    >>> one_of("state", ["success", "failed"])("faild")
    Traceback (most recent call last):
    ...
    argparse.ArgumentTypeError: no such state 'faild'; did you mean 'failed'? There are: success, failed
    """
    known = list(names)

    def checked(text: str) -> str:
        if text in known:
            return text
        hint = guess(text, known) or "."
        raise argparse.ArgumentTypeError(f"no such {what} {text!r}{hint} There are: {', '.join(known)}")

    return checked


def add_narrowing(parser: argparse.ArgumentParser, classes: Sequence[ServiceClass]) -> None:
    """Add ``--class`` and ``--kind``.

    Args:
        parser: The command's parser.
        classes: The classes that may be named.
    """
    parser.add_argument(
        "--class",
        dest="classes",
        action="append",
        default=[],
        type=one_of("service class", map(str, classes)),
        metavar="CLASS",
        help=f"only this service class; may be given more than once: {', '.join(map(str, classes))}",
    )
    parser.add_argument(
        "--kind",
        dest="kinds",
        action="append",
        default=[],
        type=one_of("kind of callback", KINDS),
        metavar="KIND",
        help=f"only callbacks of this kind; may be given more than once: {', '.join(KINDS)}",
    )


def narrowing(arguments: argparse.Namespace) -> Narrowing:
    """What the command line asks for."""
    return Narrowing(
        classes=frozenset(map(ServiceClass, arguments.classes)), kinds=frozenset(arguments.kinds)
    )
