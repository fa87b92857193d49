"""Which of Airflow's methods are replaced in this process, and putting them back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from callback_priority import compat
from callback_priority.adapter.guard import guarded

__all__ = ["applied", "apply", "undo"]

_originals: dict[str, Any] = {}


def applied() -> bool:
    """Whether Airflow's methods are replaced."""
    return bool(_originals)


def apply(replacements: Mapping[str, Callable[..., Any]]) -> None:
    """Replace Airflow's methods by functions that are handed the original first; all of them or none.

    Args:
        replacements: By the names in `callback_priority.compat.REPLACED`; those of other series are passed over.
    """
    targets = compat.replaced()
    originals = {name: target.cls.__dict__[name] for name, target in targets.items()}
    try:
        for name, original in originals.items():
            setattr(targets[name].cls, name, guarded(name, replacements[name], original))
            _originals[name] = original
    except Exception:
        undo()
        raise


def undo() -> None:
    """Put Airflow's methods back."""
    for name, original in _originals.items():
        setattr(compat.REPLACED[name].cls, name, original)
    _originals.clear()
