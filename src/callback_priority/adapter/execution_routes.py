"""The calls with which a worker starts a run or an attempt, tells of it, and reports a task's death.

The bodies are in `callback_priority.protocol`, what they do in `callback_priority.adapter.runs`. Here is who may
call what.

A callback's workload carries a token of scope ``workload``, whose subject is the callback. It is good for one
call, the start or the attempt, and is swapped there for one of scope ``execution``: as Airflow does it for a task.
The new token also carries, under `CLAIM`, which run it was made for; every later call is judged by that. A run that
was given up and handed to another worker is so not believed any more. A worker that is told to ask again, since
another is at the run, is given a new one of the first kind: it may have to wait for longer than the first is valid.

How long the second token lives: until the run must be over by its own limits, and a margin; that of an attempt, which
has none, for ``[execution_api] jwt_expiration_time`` (600 s). Airflow's middleware renews any ``execution`` token that
is used in the last fifth of its life, for that time again; ours too, with all it carries, and there is no claim that
would stop it. Heartbeats use it. So what ends its life is that nobody does: a worker whose run is over, or who is
gone, makes no calls. It may do what any task's token
may, which is to read and write variables, connections and XComs; it cannot act for a task instance. (In a
deployment of several teams it can, for the one that the callback is about: Airflow finds the team through that,
so it is then the token's subject.)

The endpoints are plain functions with Airflow's own synchronous session, one short transaction each: an
asynchronous session beside it can lock itself out on SQLite.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, Final
from uuid import UUID

from airflow.api_fastapi.auth.tokens import JWTGenerator
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.execution_api.datamodels.taskinstance import PrevSuccessfulDagRunResponse
from airflow.api_fastapi.execution_api.datamodels.token import TIToken
from airflow.api_fastapi.execution_api.deps import DepContainer
from airflow.api_fastapi.execution_api.routes.task_instances import get_previous_successful_dagrun
from airflow.api_fastapi.execution_api.security import CurrentTIToken, ExecutionAPIRoute, require_auth
from airflow.configuration import conf
from cadwyn import VersionedAPIRouter
from fastapi import APIRouter, HTTPException, Response, Security, status

from callback_priority.adapter import config, runs
from callback_priority.adapter.runs import MARGIN_SECONDS, Claim
from callback_priority.policy.settings import Settings
from callback_priority.protocol import (
    BUSY,
    OVER,
    PREFIX,
    Attempt,
    Attempted,
    Ended,
    Heartbeat,
    Killed,
    Routed,
    Run,
    Start,
)

__all__ = ["CLAIM", "include_in", "router"]

log = logging.getLogger(__name__)

CLAIM: Final = "callback_priority"
"""What our tokens carry beside Airflow's: the leader of the run and the time of its claim."""

_RENEWED: Final = "Refreshed-API-Token"
"""The header from which the task SDK's client takes a new token, whatever the answer is."""

router = VersionedAPIRouter(route_class=ExecutionAPIRoute)

_REFUSALS: Final[dict[int | str, dict[str, Any]]] = {
    status.HTTP_403_FORBIDDEN: {"description": "The token is not this callback's"},
    status.HTTP_404_NOT_FOUND: {"description": "No such routed callback"},
    status.HTTP_409_CONFLICT: {"description": "Not this worker's to run"},
}


@router.post(
    "/callbacks/{callback_id}/start",
    name="callback_priority_start",
    dependencies=[Security(require_auth, scopes=["token:execution", "token:workload"])],
    responses={status.HTTP_400_BAD_REQUEST: {"description": "Another protocol"}, **_REFUSALS},
)
def start(
    callback_id: UUID,
    body: Start,
    response: Response,
    session: SessionDep,
    services: Any = DepContainer,
    token: TIToken = CurrentTIToken,
) -> Run:
    """Give a run to a worker, with a token for the rest of it."""
    if _subject(token) != callback_id:
        raise _forbidden()
    generator: JWTGenerator = services.get(JWTGenerator)
    with _waiting_on(callback_id, generator), _answered():
        started = runs.start(
            session.connection(), callback_id, body, settings=_settings(), now=datetime.now(timezone.utc)
        )
    log.info(
        "%s:%s (callback-priority %s) starts callback %s and %s more",
        *(body.hostname, body.pid, body.library, callback_id, len(started.run.units) - 1),
    )
    response.headers[_RENEWED] = _runs_token(
        generator,
        started.claim,
        subject=_token_subject(started),
        valid_seconds=started.limit_seconds + MARGIN_SECONDS,
    )
    return started.run


@router.post(
    "/callbacks/{callback_id}/attempt",
    name="callback_priority_attempt",
    dependencies=[Security(require_auth, scopes=["token:execution", "token:workload"])],
    responses={status.HTTP_400_BAD_REQUEST: {"description": "Another protocol"}, **_REFUSALS},
)
def attempt(
    callback_id: UUID,
    body: Attempt,
    response: Response,
    session: SessionDep,
    services: Any = DepContainer,
    token: TIToken = CurrentTIToken,
) -> Attempted:
    """Say whether a callback that Airflow's own code calls is the worker's; if so, with a token for the rest."""
    if _subject(token) != callback_id:
        raise _forbidden()
    generator: JWTGenerator = services.get(JWTGenerator)
    with _waiting_on(callback_id, generator), _answered():
        claim = runs.attempt(session.connection(), callback_id, body, now=datetime.now(timezone.utc))
    if claim is None:
        return Attempted(ours=False)
    log.info(
        "%s:%s (callback-priority %s) attempts callback %s",
        *(body.hostname, body.pid, body.library, callback_id),
    )
    response.headers[_RENEWED] = _runs_token(generator, claim, subject=callback_id, valid_seconds=None)
    return Attempted(ours=True)


@router.post(
    "/callbacks/{callback_id}/heartbeat",
    name="callback_priority_heartbeat",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=_REFUSALS,
)
def heartbeat(
    callback_id: UUID, body: Heartbeat, session: SessionDep, token: TIToken = CurrentTIToken
) -> None:
    """Note that a worker is still at its run, or tell it that the run is no longer its own."""
    claim = _claim(token, callback_id)
    with _answered():
        runs.beat(session.connection(), claim, body.units, now=datetime.now(timezone.utc))


@router.post(
    "/callbacks/{callback_id}/units/{unit_id}/running",
    name="callback_priority_running",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=_REFUSALS,
)
def running(callback_id: UUID, unit_id: UUID, session: SessionDep, token: TIToken = CurrentTIToken) -> None:
    """Ask whether a unit may begin, and record that it does."""
    claim = _claim(token, callback_id)
    with _answered():
        runs.run(session.connection(), claim, unit_id, now=datetime.now(timezone.utc))


@router.post(
    "/callbacks/{callback_id}/units/{unit_id}/ended",
    name="callback_priority_ended",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=_REFUSALS,
)
def ended(
    callback_id: UUID, unit_id: UUID, body: Ended, session: SessionDep, token: TIToken = CurrentTIToken
) -> None:
    """Record how a unit ended, or that it is to be tried again."""
    claim = _claim(token, callback_id)
    with _answered():
        runs.end(
            session.connection(),
            claim,
            unit_id,
            body,
            settings=_settings(),
            now=datetime.now(timezone.utc),
        )


@router.get(
    "/callbacks/{callback_id}/units/{unit_id}/previous-successful-dagrun",
    name="callback_priority_previous_successful_dagrun",
    responses=_REFUSALS,
)
def previous_successful_dagrun(
    callback_id: UUID, unit_id: UUID, session: SessionDep, token: TIToken = CurrentTIToken
) -> PrevSuccessfulDagRunResponse:
    """What Airflow tells a task of the successful Dag run before its own; nothing without a task instance."""
    claim = _claim(token, callback_id)
    with _answered():
        about = runs.task_instance_id(session.connection(), claim, unit_id)
    if about is None:
        return PrevSuccessfulDagRunResponse()
    return get_previous_successful_dagrun(task_instance_id=about, session=session)


@router.post(
    "/task-instances/{task_instance_id}/killed",
    name="callback_priority_killed",
    dependencies=[Security(require_auth, scopes=["ti:self"])],
)
def killed(task_instance_id: UUID, body: Killed, session: SessionDep) -> Routed:
    """Route the callbacks of a task whose process is gone and could not run them."""
    # Not at the top: it imports Airflow's models for callbacks, which only this call needs.
    from callback_priority.adapter.routing.killed import route_killed  # noqa: PLC0415

    return Routed(routed=route_killed(session, task_instance_id, body))


def include_in(airflows: APIRouter) -> None:
    """Add the calls to Airflow's router, each behind a valid token."""
    airflows.include_router(
        router, prefix=PREFIX, tags=["Callback Priority"], dependencies=[Security(require_auth)]
    )


@contextmanager
def _waiting_on(callback_id: UUID, generator: JWTGenerator) -> Iterator[None]:
    """Give a worker that is to ask again a token with which it can, as valid as the one that the scheduler made."""
    try:
        yield
    except HTTPException as answer:
        if isinstance(answer.__cause__, runs.RunBusyError):
            again = generator.generate(
                extras={"sub": str(callback_id), "scope": "workload"},
                valid_for=conf.getfloat("scheduler", "task_queued_timeout"),
            )
            answer.headers = {_RENEWED: again}
        raise


@contextmanager
def _answered() -> Iterator[None]:
    """Answer a refusal as the execution API answers: a status, a reason for programs, a message for people."""
    try:
        yield
    except runs.UnknownProtocolError as error:
        raise _answer(status.HTTP_400_BAD_REQUEST, "unknown_protocol", error) from error
    except runs.UnitUnknownError as error:
        raise _answer(status.HTTP_404_NOT_FOUND, "not_found", error) from error
    except runs.RunBusyError as error:
        raise _answer(status.HTTP_409_CONFLICT, BUSY, error) from error
    except runs.RunOverError as error:
        raise _answer(status.HTTP_409_CONFLICT, OVER, error) from error
    except runs.RunRefusedError as error:
        raise _answer(status.HTTP_409_CONFLICT, "refused", error) from error


def _answer(code: int, reason: str, message: object) -> HTTPException:
    return HTTPException(status_code=code, detail={"reason": reason, "message": str(message)})


def _forbidden() -> HTTPException:
    return _answer(status.HTTP_403_FORBIDDEN, "forbidden", "the token was not made for this callback's run")


def _subject(token: TIToken) -> UUID:
    """The callback that a token was made for; of any other token, whatever its subject is."""
    claim = _claim_of(token)
    return token.id if claim is None else claim.leader_id


def _claim(token: TIToken, callback_id: UUID) -> Claim:
    claim = _claim_of(token)
    if claim is None or claim.leader_id != callback_id:
        raise _forbidden()
    return claim


def _claim_of(token: TIToken) -> Claim | None:
    """The run that a token was made for. Its signature was checked: what stands there, we wrote."""
    ours = (token.claims.model_extra or {}).get(CLAIM)
    if ours is None:
        return None
    return Claim(leader_id=UUID(ours["callback_id"]), claimed_at=datetime.fromisoformat(ours["claimed_at"]))


def _token_subject(started: runs.Started) -> UUID:
    """The callback; in a deployment of several teams, the task instance by which Airflow finds the team."""
    if started.task_instance_id is not None and conf.getboolean("core", "multi_team"):
        return started.task_instance_id
    return started.claim.leader_id


def _runs_token(generator: JWTGenerator, claim: Claim, *, subject: UUID, valid_seconds: float | None) -> str:
    extras = {
        "sub": str(subject),
        "scope": "execution",
        CLAIM: {"callback_id": str(claim.leader_id), "claimed_at": claim.claimed_at.isoformat()},
    }
    token: str = generator.generate(extras=extras, valid_for=valid_seconds)
    return token


def _settings() -> Settings:
    return config.settings() or Settings()
