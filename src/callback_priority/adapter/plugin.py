"""The Airflow plugin: its only work is to install the hook before the scheduler's loop."""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from callback_priority.adapter.hook import install_on_import

__all__ = ["CallbackPriorityPlugin"]


class CallbackPriorityPlugin(AirflowPlugin):
    """Loaded by every Airflow process that loads plugins; acts only where the scheduler's code is."""

    name = "callback_priority"

    @classmethod
    def on_load(cls, *_args: Any, **_kwargs: Any) -> None:
        """Install the hook as soon as the scheduler's module is imported; does nothing while mode is off."""
        install_on_import()
