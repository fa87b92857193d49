"""Tasks that need no process of their own: the scheduler hands them to the triggerer, and a trigger ends them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from airflow.sdk import BaseOperator
from airflow.triggers.base import (
    BaseTrigger,
    StartTriggerArgs,
    TaskFailedEvent,
    TaskSuccessEvent,
    TriggerEvent,
)


class EndAtOnce(BaseTrigger):
    """Ends the task as it is told to, with these XComs."""

    def __init__(self, outcome: str, xcoms: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.outcome = outcome
        self.xcoms = xcoms

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "started_by_trigger.EndAtOnce", {"outcome": self.outcome, "xcoms": self.xcoms}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        event = TaskFailedEvent if self.outcome == "failed" else TaskSuccessEvent
        yield event(xcoms=self.xcoms)


class StartedByTrigger(BaseOperator):
    """Ends as `EndAtOnce` ends it; no worker ever sees it."""

    def __init__(self, *, outcome: str, xcoms: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.start_from_trigger = True
        self.start_trigger_args = StartTriggerArgs(
            trigger_cls="started_by_trigger.EndAtOnce",
            trigger_kwargs={"outcome": outcome, "xcoms": xcoms},
            next_method="execute",
        )

    def execute(self, context: Any) -> None:
        """Never called."""
        raise AssertionError
