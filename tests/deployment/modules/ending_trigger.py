"""A trigger that ends its task by itself, without the task's worker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from airflow.sdk import BaseOperator
from airflow.triggers.base import BaseTrigger, TaskFailedEvent, TaskSuccessEvent, TriggerEvent


class EndingTrigger(BaseTrigger):
    """Ends the task as it is told to, at once."""

    def __init__(self, outcome: str) -> None:
        super().__init__()
        self.outcome = outcome

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "ending_trigger.EndingTrigger", {"outcome": self.outcome}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        yield TaskFailedEvent() if self.outcome == "failed" else TaskSuccessEvent()


class EndedByTrigger(BaseOperator):
    """Hands itself over to `EndingTrigger`."""

    def __init__(self, *, outcome: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.outcome = outcome

    def execute(self, context: Any) -> None:
        self.defer(trigger=EndingTrigger(self.outcome), method_name="execute")
