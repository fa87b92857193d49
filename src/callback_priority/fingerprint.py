"""Fingerprints of the code that is replaced: alike for what means the same, different for all else."""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["fingerprint", "source_fingerprint"]

_SKIPPED_FIELDS = frozenset({"kind", "type_comment", "type_params", "type_ignores", "ctx"})
"""Fields that say nothing here and that not every Python version has."""


def fingerprint(function: Callable[..., Any]) -> str:
    """The fingerprint of a function or method as it stands in its source file.

    Comments, layout and docstrings do not count; the signature, its annotations and every statement do.

    Raises:
        OSError: The source cannot be read.
    """
    return source_fingerprint(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))


def source_fingerprint(source: str) -> str:
    r"""The fingerprint of Python source text: sixteen hexadecimal digits.

    >>> source_fingerprint("def f(x):\n    'Doc.'\n    return x  # as is") == source_fingerprint("def f(x): return x")
    True
    >>> source_fingerprint("def f(x): return x") == source_fingerprint("def f(x): return -x")
    False
    """
    digest = hashlib.sha256()
    for token in _tokens(ast.parse(source)):
        digest.update(token.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def _tokens(node: ast.AST) -> Iterator[str]:
    yield type(node).__name__
    for name, value in ast.iter_fields(node):
        if name in _SKIPPED_FIELDS or value is None or value == []:
            continue
        values = value if isinstance(value, list) else [value]
        if name == "body" and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            values = [child for place, child in enumerate(values) if place or not _is_docstring(child)]
        yield f"{name}:{len(values)}"
        for child in values:
            if isinstance(child, ast.AST):
                yield from _tokens(child)
            else:
                yield repr(child)


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
