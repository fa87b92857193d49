"""What the process that runs callbacks and its supervisor say to each other.

Beside these two messages of our own, the process may send what the Dag processor answers: reads, changes of
Variables, and secrets to mask. Whatever else arrives becomes a `Refused`, so that it is answered at once: Airflow's
callback supervisor leaves what it cannot decode without a reply, and the sender waits for ever.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

from airflow.sdk.execution_time.comms import (
    DeleteVariable,
    GetAssetsByAlias,
    GetConnection,
    GetDagRunState,
    GetDRCount,
    GetPreviousDagRun,
    GetPreviousTI,
    GetPrevSuccessfulDagRun,
    GetTaskStates,
    GetTICount,
    GetVariable,
    GetVariableKeys,
    GetXCom,
    GetXComCount,
    GetXComSequenceItem,
    GetXComSequenceSlice,
    MaskSecret,
    PutVariable,
)
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from callback_priority.protocol import UnitState

__all__ = ["Refused", "RequestDecoder", "ToRunner", "UnitEnded", "UnitStarting"]


class UnitStarting(BaseModel):
    """Asks whether a unit may begin; answered by an ``OKResponse``, whose ``ok`` is false if it is not to run."""

    callback_id: UUID
    type: Literal["callback_priority.UnitStarting"] = "callback_priority.UnitStarting"


class UnitEnded(BaseModel):
    """Says how a unit ended; answered once that is known to the API server or kept to be told later."""

    callback_id: UUID
    state: UnitState
    output: str | None
    type: Literal["callback_priority.UnitEnded"] = "callback_priority.UnitEnded"


class Refused(BaseModel):
    """A request that is not answered with what it asks for."""

    name: str
    reason: str


ToRunner = Annotated[
    UnitStarting
    | UnitEnded
    | DeleteVariable
    | GetAssetsByAlias
    | GetConnection
    | GetDRCount
    | GetDagRunState
    | GetPrevSuccessfulDagRun
    | GetPreviousDagRun
    | GetPreviousTI
    | GetTICount
    | GetTaskStates
    | GetVariable
    | GetVariableKeys
    | GetXCom
    | GetXComCount
    | GetXComSequenceItem
    | GetXComSequenceSlice
    | MaskSecret
    | PutVariable,
    Field(discriminator="type"),
]
"""What the supervisor acts on.

``GetAssetsByAlias`` is here although the Dag processor does not answer it: a task with an asset alias among its
inlets needs it for the context itself.
"""


class RequestDecoder:
    """Stands where Airflow has a ``TypeAdapter``: every request is decoded, if need be to a `Refused`."""

    _adapter: ClassVar[TypeAdapter[Any]] = TypeAdapter(ToRunner)
    _known: ClassVar[frozenset[str]] = frozenset(_adapter.json_schema()["discriminator"]["mapping"])

    def validate_python(self, body: Any) -> Any:
        """The request that a decoded frame holds."""
        name = body.get("type") if isinstance(body, dict) else None
        if not isinstance(name, str):
            return Refused(name="a request without a name", reason="its frame names no type")
        if name not in self._known:
            return Refused(name=name, reason="a callback may read, and change Variables, but not this")
        try:
            return self._adapter.validate_python(body)
        except ValidationError as error:
            return Refused(name=name, reason=f"it cannot be read: {error}")
