"""Callables outside of the Dag file: every process can import them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from callback_recorder import note


def seen(form: str, context: Mapping[str, Any]) -> dict[str, str]:
    """Write down that a callback of this form was called, and for which Dag."""
    note("called", form=form, dag_id=context["dag"].dag_id)
    return {"called": form}


async def in_a_module(context: Mapping[str, Any]) -> dict[str, str]:
    return seen("async def in a module", context)


def for_sync_callback(greeting: str, context: Mapping[str, Any]) -> dict[str, str]:
    return {"greeting": greeting, **seen("SyncCallback", context)}


async def for_async_callback(greeting: str, context: Mapping[str, Any]) -> dict[str, str]:
    return {"greeting": greeting, **seen("AsyncCallback", context)}
