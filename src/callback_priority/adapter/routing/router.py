"""Decides what becomes of a request that Airflow is about to send to the Dag processor, and writes it down.

The steps, in the caller's transaction:

1. Which kind of callback it is, and whether the options say that it leaves the Dag processor. If not: no row.
2. Claim it by what happened. Of several requests about the same thing only the first does anything.
3. Find its callables by the references that the Dag processor has written. Nothing to call: that is all.
4. Check that each can run: its Dag run exists, and its executor is configured and runs callbacks.
5. Write callbacks, items and units of all its callables, or of none.

What cannot be routed is written down with the reason and goes to the Dag processor as ever. An exception in here
takes back what was written, and the request goes to the Dag processor too: nothing is lost because of this library.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

import attrs
import uuid6
from airflow.models.dag import DagModel
from sqlalchemy import Connection, exists, select
from sqlalchemy.exc import DBAPIError

from callback_priority.adapter import metrics
from callback_priority.adapter.routing import executors, units
from callback_priority.adapter.routing.units import Call, Occasion
from callback_priority.adapter.routing.what import DagRunFacts, TaskFacts, What, dag_run_of, what_of
from callback_priority.adapter.savepoints import savepoint
from callback_priority.core.kinds import DagCallback, EmailCallback, RetryEmail
from callback_priority.errors import TransactionLostError
from callback_priority.persistence import references, requests
from callback_priority.persistence.requests import NewRequest, Outcome, Target
from callback_priority.persistence.tables import reference_table
from callback_priority.policy.settings import Mode, Settings, WorkerCallbacks

if TYPE_CHECKING:
    from airflow.callbacks.callback_requests import CallbackRequest
    from sqlalchemy.orm import Session

__all__ = ["EMAIL", "NOT_PARSED", "Answer", "Router", "log_once"]

log = logging.getLogger(__name__)

EMAIL: Final = "e-mail"
"""The name of an e-mail's unit."""

NOT_PARSED: Final = "its Dag has not been parsed with the library yet"
OUT_OF_DATE: Final = "the references of its Dag are older than the Dag"
NO_RUN: Final = "its Dag run does not exist"
TIMED_OUT: Final = "timed_out"
"""What Airflow says of a Dag run that it sends a request for whether or not the Dag has a callback."""

_told: set[tuple[str, ...]] = set()


def log_once(level: int, *about: str, text: str) -> None:
    """Log a line the first time that it is about this, in this process."""
    if about not in _told:
        _told.add(about)
        log.log(level, "%s", text)


@attrs.frozen(kw_only=True)
class Answer:
    """What became of a request.

    Args:
        taken: Whether it must not go to the Dag processor.
        units: How many callables were routed.
    """

    taken: bool
    units: int = 0


_STOCK: Final = Answer(taken=False)
_TAKEN: Final = Answer(taken=True)


@attrs.frozen(kw_only=True)
class _Verdict:
    outcome: Outcome
    reason: str | None = None
    calls: tuple[Call, ...] = ()
    occasion: Occasion | None = None


def _fallback(reason: str) -> _Verdict:
    return _Verdict(outcome=Outcome.FALLBACK, reason=reason)


class Router:
    """Routes requests.

    Args:
        settings: Which requests, and what their callables draw on.
        utcnow: The present.
    """

    def __init__(
        self, settings: Settings, *, utcnow: Callable[[], datetime] = lambda: datetime.now(timezone.utc)
    ) -> None:
        self.settings = settings
        self.utcnow = utcnow

    def route(self, request: CallbackRequest, session: Session) -> Answer:
        """Route a request, as far as the options and this deployment let it.

        Args:
            request: What Airflow is about to send.
            session: The session in which it would be sent; not committed here.

        Raises:
            DBAPIError: The connection to the database is lost, and with it the transaction. Nothing else is raised.
        """
        try:
            if self.settings.mode is Mode.OFF or self.settings.use_worker_callbacks is WorkerCallbacks.NONE:
                return _STOCK
            what = what_of(request)
            if what is None:
                return _STOCK
            if not self.settings.moves(what.kind.service_class, what.dag_id):
                self._stays(what)
                return _STOCK
            # What the caller has changed in its session stays unwritten until the caller writes it.
            with session.no_autoflush:
                return self._route(request, what, session)
        except TransactionLostError as error:
            self._failed(error)
            if isinstance(error.__cause__, DBAPIError):
                # Airflow's own way leads over the same connection: its callers get what they know how to deal with.
                raise error.__cause__ from None
            return _STOCK
        except Exception as error:  # noqa: BLE001 - Airflow's own way is still open, and must be taken
            self._failed(error)
            return _STOCK

    def _route(self, request: CallbackRequest, what: What, session: Session) -> Answer:
        connection = session.connection()
        with savepoint(connection, "callback_priority_look", reads_first=True):
            run, task = dag_run_of(connection, what)
        new = NewRequest(
            id=uuid6.uuid7(),
            dedupe_key=what.dedupe_key(run),
            kind=what.kind.kind,
            dag_id=what.dag_id,
            run_id=what.run_id,
            dag_run_id=None if run is None else run.key,
            task_id=what.task_id,
            map_index=what.map_index,
            try_number=what.try_number,
        )
        active = self.settings.mode is Mode.ACTIVE
        now = self.utcnow()
        with savepoint(connection, "callback_priority_route"):
            if not requests.claim(connection, new, now=now):
                metrics.count("requests", kind=new.kind, outcome="duplicate")
                return _TAKEN if active else _STOCK
            verdict = self._judge(request, what, new, run, task, session, connection, now)
            if not active:
                reason = verdict.reason or verdict.outcome.value
                requests.conclude(connection, new.id, Outcome.SHADOW, reason=reason)
                metrics.count("requests", kind=new.kind, outcome=Outcome.SHADOW.value)
                return _STOCK
            routed = verdict.outcome is Outcome.ROUTED
            if verdict.occasion is not None:
                units.write(connection, verdict.occasion, verdict.calls, request, self.settings, now)
            requests.conclude(
                connection,
                new.id,
                verdict.outcome,
                reason=verdict.reason,
                units=len(verdict.calls),
                body=request.to_json() if routed else None,
            )
        metrics.count("requests", kind=new.kind, outcome=verdict.outcome.value)
        if verdict.outcome is Outcome.FALLBACK:
            self._falls_back(what, str(verdict.reason))
            return _STOCK
        return Answer(taken=True, units=len(verdict.calls))

    def _judge(
        self,
        request: CallbackRequest,
        what: What,
        new: NewRequest,
        run: DagRunFacts | None,
        task: TaskFacts | None,
        session: Session,
        connection: Connection,
        now: datetime,
    ) -> _Verdict:
        if run is None:
            return _fallback(NO_RUN)
        document = references.read(connection, what.dag_id, request.bundle_version)
        if document is None:
            return _fallback(NOT_PARSED)
        found: list[tuple[str, dict[str, Any], bool]]
        if issubclass(what.kind, EmailCallback):
            wanted = "retry" if what.kind is RetryEmail else "failure"
            found = [(EMAIL, {}, False)] if wanted in document.emails(what.task_id) else []
        else:
            found = [
                (each.name, each.to_dict(), each.is_async and each.path is not None)
                for each in document.of(what.kind, what.task_id)
            ]
        if not found:
            return self._nothing_to_call(request, what, connection)
        team = DagModel.get_team_name(what.dag_id, session=session) if executors.multi_team() else None
        service_class = what.kind.service_class
        # Of a team's triggerer nothing tells whether it lives; a worker of the team's can always be had.
        on_triggerer = (
            any(can for _, _, can in found)
            and not executors.multi_team()
            and units.triggerers_call_once(connection, now)
        )
        calls = []
        for name, reference, can_be_triggered in found:
            target = Target.TRIGGERER if can_be_triggered and on_triggerer else Target.WORKER
            executor = reference.get("executor") or self.settings.callback_executor.get(service_class)
            if target is Target.WORKER and (reason := executors.why_not(executor, team)) is not None:
                return _fallback(reason)
            calls.append(Call(name=name, reference=reference, target=target, executor=executor))
        occasion = Occasion(
            kind=what.kind,
            request_id=new.id,
            dag_id=what.dag_id,
            dag_run_id=run.key,
            bundle_name=request.bundle_name,
            bundle_version=request.bundle_version,
            filepath=request.filepath,
            pool=self.settings.pool_of(service_class, None if task is None else task.pool),
            priority=self.settings.priority(what.dag_id, 1) if task is None else task.priority,
            team=team,
        )
        return _Verdict(outcome=Outcome.ROUTED, calls=tuple(calls), occasion=occasion)

    @staticmethod
    def _nothing_to_call(request: CallbackRequest, what: What, connection: Connection) -> _Verdict:
        """Nothing, unless the references may be those of another state of the Dag than the one that Airflow knows.

        Airflow asks for a Dag's callback only where the Dag has one, but for runs that timed out.
        """
        if issubclass(what.kind, DagCallback) and request.msg != TIMED_OUT:
            return _fallback(OUT_OF_DATE)
        if request.bundle_version:
            known = reference_table.c
            exact = exists().where(
                known.dag_id == what.dag_id, known.bundle_version == request.bundle_version
            )
            if not connection.scalar(select(exact)):
                return _fallback(OUT_OF_DATE)
        return _Verdict(outcome=Outcome.EMPTY)

    def _stays(self, what: What) -> None:
        kind = what.kind.kind
        log_once(
            logging.INFO,
            kind,
            text=(
                f"A {kind} callback of Dag {what.dag_id} still goes through the Dag processor, which is deprecated: "
                "the options do not move it (use_worker_callbacks, worker_callbacks_include, "
                "worker_callbacks_exclude). This is said once for each kind."
            ),
        )

    def _falls_back(self, what: What, reason: str) -> None:
        kind = what.kind.kind
        log_once(
            logging.WARNING,
            kind,
            reason,
            text=(
                f"A {kind} callback of Dag {what.dag_id} still goes through the Dag processor, which is deprecated: "
                f"{reason}. This is said once for each kind and reason; `callback-priority status` counts them."
            ),
        )

    @staticmethod
    def _failed(error: Exception) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        about = (
            "error",
            type(error).__name__,
            *(f"{frame.filename}:{frame.lineno}" for frame in frames[-1:]),
        )
        if about in _told:
            log.warning("A request was not routed and goes to the Dag processor: %r", error)
        else:
            _told.add(about)
            log.error("A request was not routed and goes to the Dag processor", exc_info=error)
