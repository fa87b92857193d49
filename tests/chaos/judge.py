"""What became of everything, from the rows and from what was really called, after the last kill has been overcome."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs

from callback_priority.core import journal
from callback_priority.persistence.flows import read_flows
from callback_priority.persistence.journal import read as read_journal
from tests.support.deployment import Deployment
from tests.support.smtp import MailSink

__all__ = ["Finding", "Judge"]

Key = tuple[str, str, int | None]
"""A callback's name, its Dag run, and the try that it is about."""

_EXAMPLES = 3
_LEFT_FOR = """
    SELECT max(extract(epoch FROM c.at - j.latest_heartbeat)) FROM chaos_item_change c JOIN job j ON j.id = c.old_job
    WHERE c.old_state = 'granted' AND c.job IS DISTINCT FROM c.old_job AND c.at > j.latest_heartbeat
"""
"""Counted from the last heartbeat of its scheduler; that of one which lives is later."""


@attrs.frozen(kw_only=True)
class Finding:
    """A figure, and whether it is as it must be.

    Args:
        name: What was counted or measured.
        value: How much.
        wanted: What it must be, for people.
        holds: Whether it is; ``None`` for a figure of which nothing is asked.
        examples: What is wrong.
    """

    name: str
    value: object
    wanted: str = ""
    holds: bool | None = None
    examples: tuple[str, ...] = ()

    @classmethod
    def none_of(cls, name: str, wrong: Iterable[object]) -> Finding:
        """There must not be any."""
        found = list(wrong)
        examples = tuple(str(each)[:300] for each in found[:_EXAMPLES])
        return cls(name=name, value=len(found), wanted="0", holds=not found, examples=examples)


@attrs.frozen
class _Outcome:
    callback_id: str
    state: str
    output: str | None
    attempts: int


class Judge:
    """Of one deployment.

    Args:
        airflow: It.
        manifest: What was asked for.
        mails: Where e-mails arrived.
    """

    def __init__(self, airflow: Deployment, manifest: Path, mails: MailSink) -> None:
        self.airflow = airflow
        lines = [json.loads(line) for line in manifest.read_text().splitlines()]
        self.expected: dict[Key, dict[str, Any]] = {}
        for line in lines:
            name, run_id, try_number = line["key"]
            self.expected[name, run_id, try_number] = line
        self.records = airflow.records()
        self.mails = mails.mails()

    def findings(self, tasks: int) -> list[Finding]:
        """Everything.

        Args:
            tasks: How many task instances there must be.
        """
        return [*self.of_callbacks(), *self.of_grants(), *self.of_tasks(tasks), *self.of_flows()]

    # Callbacks

    def calls(self) -> Counter[Key]:
        """How often each was called, by the word of who was called."""
        found: Counter[Key] = Counter()
        for each in self.records:
            if each["event"] == "called":
                found[each["name"], each["run_id"], each.get("try_number")] += 1
        for mail in self.mails:
            about, _, try_number = mail.subject.partition(" try ")
            found["mail", about, int(try_number)] += 1
        return found

    def outcomes(self) -> dict[Key, _Outcome]:
        """What the rows say of each callback that was asked for."""
        by_id = {
            str(row.id): _Outcome(str(row.id), row.state, row.output, row.attempts or 0)
            for row in self.airflow.rows(
                "SELECT c.id, c.state, c.output, i.attempts FROM callback c"
                " LEFT JOIN callback_priority_item i ON i.callback_id = c.id"
            )
        }
        routed = {
            (row.kind, row.dag_id, row.run_id, row.try_number, row.position): str(row.callback_id)
            for row in self.airflow.rows(
                "SELECT r.kind, r.dag_id, r.run_id, r.try_number, u.position, u.callback_id"
                " FROM callback_priority_unit u JOIN callback_priority_request r ON r.id = u.request_id"
            )
        }
        found: dict[Key, _Outcome] = {}
        for key, line in self.expected.items():
            callback_id = line.get("callback_id")
            if callback_id is None:
                place = (
                    line["kind"],
                    line["dag_id"],
                    line["run_id"],
                    line.get("try_number"),
                    line.get("position", 0),
                )
                callback_id = routed.get(place)
            if callback_id in by_id:
                found[key] = by_id[callback_id]
        return found

    def returned(self) -> set[Key]:
        """Those that went to the Dag processor after all: no worker took them, say."""
        requests = {
            (row.kind, row.dag_id, row.run_id, row.try_number)
            for row in self.airflow.rows(
                "SELECT kind, dag_id, run_id, try_number FROM callback_priority_request"
                " WHERE outcome IN ('fallback', 'withdrawn')"
            )
        }
        return {
            key
            for key, line in self.expected.items()
            if (line["kind"], line.get("dag_id"), line.get("run_id"), line.get("try_number")) in requests
        }

    def of_callbacks(self) -> list[Finding]:
        """Whether each ended, was called, and no more often than it was granted."""
        calls, outcomes = self.calls(), self.outcomes()
        states = Counter(each.state for each in outcomes.values())
        ended = {"success", "failed"}
        returned = {key for key in self.returned() if key not in outcomes}
        lost = [
            (key, outcomes.get(key), calls[key])
            for key in self.expected
            if (key not in outcomes and (key not in returned or not calls[key]))
            or (key in outcomes and outcomes[key].state == "success" and not calls[key])
            or (key in outcomes and outcomes[key].state == "failed" and not outcomes[key].output)
        ]
        too_often = [
            (key, number, outcomes[key])
            for key, number in calls.items()
            if key in outcomes and number > outcomes[key].attempts
        ]
        reasons = Counter((each.output or "")[:120] for each in outcomes.values() if each.state == "failed")
        return [
            Finding(name="callbacks asked for", value=len(self.expected)),
            Finding(name="of which succeeded", value=states["success"]),
            Finding(
                name="of which failed, with a reason",
                value=states["failed"],
                examples=tuple(f"{number}: {reason}" for reason, number in reasons.most_common(_EXAMPLES)),
            ),
            Finding(name="of which went back to the Dag processor", value=len(returned)),
            Finding.none_of(
                "callbacks in no terminal state",
                [(key, each) for key, each in outcomes.items() if each.state not in ended],
            ),
            Finding.none_of(
                "callbacks lost: no row, or success without a call, or failure without a reason", lost
            ),
            Finding(
                name="callbacks called more than once", value=sum(number > 1 for number in calls.values())
            ),
            Finding.none_of("callbacks called more often than granted", too_often),
            Finding.none_of(
                "calls that nobody asked for", [key for key in calls if key not in self.expected]
            ),
        ]

    # Grants

    def changes(self) -> list[Any]:
        """What the database's own triggers wrote down of items."""
        return self.airflow.rows("SELECT * FROM chaos_item_change ORDER BY id")

    def grants(self) -> list[Any]:
        """Those of the changes that gave a callback a slot."""
        return [
            each
            for each in self.changes()
            if each.state == "granted" and (each.old_state != "granted" or each.attempts != each.old_attempts)
        ]

    def of_grants(self) -> list[Finding]:
        """Whether each attempt was granted once, by what the database's own triggers wrote down."""
        changes, grants = self.changes(), self.grants()
        twice = [
            (key, number)
            for key, number in Counter((each.callback_id, each.attempts) for each in grants).items()
            if number > 1
        ]
        from_elsewhere = [each for each in grants if each.old_state != "waiting"]
        skipping = [each for each in grants if each.attempts != each.old_attempts + 1]
        queued = Counter(
            each.callback_id
            for each in self.airflow.rows(
                "SELECT callback_id FROM chaos_callback_change WHERE state = 'queued' AND old_state = 'pending'"
            )
        )
        granted = Counter(each.callback_id for each in grants)
        apart = [
            (each, granted[each], queued[each]) for each in granted | queued if granted[each] != queued[each]
        ]
        left_for = self.airflow.value(_LEFT_FOR)
        held = self.airflow.rows("SELECT * FROM callback_priority_item WHERE state != 'done'")
        return [
            Finding(name="grants", value=len(grants)),
            Finding(name="of which were another attempt", value=sum(each.attempts > 1 for each in grants)),
            Finding(
                name="attempts that another scheduler took over",
                value=sum(
                    each.state == each.old_state == "granted" and each.attempts == each.old_attempts
                    for each in changes
                ),
            ),
            Finding(
                name="seconds that an attempt was a dead scheduler's, at most",
                value=None if left_for is None else round(float(left_for), 1),
            ),
            Finding.none_of("attempts granted twice", twice),
            Finding.none_of("grants of what was not waiting", from_elsewhere),
            Finding.none_of("grants that skipped an attempt", skipping),
            Finding.none_of("callbacks of which Airflow's row and ours tell of different grants", apart),
            Finding.none_of("callbacks that hold or want a slot at the end", held),
        ]

    # Tasks

    def of_tasks(self, tasks: int) -> list[Finding]:
        """Whether each ran, and no try of one twice."""
        rows = self.airflow.rows(
            "SELECT run_id, map_index, state, try_number FROM task_instance WHERE dag_id = 'herd'"
        )
        tries = Counter(
            (each["run_id"], each["map_index"], each["try_number"])
            for each in self.records
            if each["event"] == "task"
        )
        ran = {(run_id, map_index) for run_id, map_index, _ in tries}
        lost = [row for row in rows if row.state != "success" or (row.run_id, row.map_index) not in ran]
        return [
            Finding(name="task instances", value=len(rows), wanted=str(tasks), holds=len(rows) == tasks),
            Finding(name="tries of them", value=sum(row.try_number for row in rows)),
            Finding.none_of("task instances lost", lost),
            Finding.none_of("tries that ran twice", [each for each in tries.items() if each[1] > 1]),
        ]

    # Flows

    def of_flows(self) -> list[Finding]:
        """Whether the flows are what the journal replays to."""
        with self.airflow.connect() as connection:
            flows = read_flows(connection)
            entries = [each.entry for each in read_journal(connection)]
        replayed = journal.replay({}, entries)
        granted = journal.attempts(entries)
        # Not the rows: those of what went back to the Dag processor are gone.
        committed = Counter(str(each.callback_id) for each in self.grants())
        return [
            Finding(name="entries of the journal", value=len(entries), wanted="> 0", holds=bool(entries)),
            Finding.none_of(
                "flow rows other than the journal's replay", journal.differences(flows, replayed)
            ),
            Finding.none_of("what in the journal cannot be", journal.check({}, entries)),
            Finding.none_of(
                "callbacks of which database and journal tell of different grants",
                [
                    (each, granted[each], committed[each])
                    for each in granted.keys() | committed.keys()
                    if granted[each] != committed[each]
                ],
            ),
        ]
