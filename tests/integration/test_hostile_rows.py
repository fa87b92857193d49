"""Ten thousand malformed or hostile rows among good ones: the loop never ends, and each gets what it deserves.

A good row runs. A bad one that waits fails, with a reason in its output. One whose state is not "pending" does not
wait for anything, whatever the state says: it is left as it is, and stands in nobody's way.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import sqlalchemy as sa

from callback_priority.policy.settings import Mode, Settings
from callback_priority.protocol import ENTRY
from tests.support.scheduler import START, Bench, FakeClock, LoopExecutor, scheduler

ALL = os.environ.get("CALLBACK_PRIORITY_FAULTS") == "all"
GOOD, BAD, NOT_WAITING = (500, 9_500, 500) if ALL else (100, 900, 100)
TASKS = 300
SLOTS = 600
SETTINGS = Settings(
    mode=Mode.ACTIVE,
    sweep_interval_seconds=1,
    executor_retry_seconds=2,
    executor_time_to_live_seconds=20,
)

pytestmark = pytest.mark.timeout(900)

LARGEST = 2**31 - 1
TEXTS = (
    "",
    " ",
    "\\",
    "'; DROP TABLE callback; --",
    "\u202egnp.exe",
    "\U0001f525" * 40,
    "e\u0301\u0323" * 30,
    "x" * 3_000,
    "\x7f\x1b[2J",
    "nul\0nul",
    "\ud800",
    "%s %(name)s {0} ${x}",
    "../../etc/passwd",
    "default_pool\n",
)
NUMBERS = (0, -1, 1, 2**31, 2**63, -(2**63), 2**64, 10**40, -0.0, 1.5, 1e308)


class Fuzz:
    """Makes what should not be there, the same with each seed.

    Args:
        seed: The seed.
        strict: Only what PostgreSQL's ``jsonb`` takes: no NUL and no lone surrogate.
    """

    def __init__(self, seed: int, *, strict: bool) -> None:
        self.random = random.Random(seed)  # noqa: S311 - the same with each seed
        self.strict = strict

    def text(self) -> str:
        chosen = self.random.choice(TEXTS)
        if self.random.random() < 0.3:
            chosen = "".join(
                chr(self.random.randrange(1, 0x2FFF)) for _ in range(self.random.randrange(1, 60))
            )
        if self.strict:
            chosen = chosen.replace("\0", "").encode(errors="replace").decode()
        return chosen

    def value(self, depth: int = 0) -> Any:
        """Anything that JSON can say."""
        kind = self.random.randrange(9 if depth < 4 else 5)
        if kind == 0:
            return None
        if kind == 1:
            return self.random.choice((True, False))
        if kind == 2:
            return self.random.choice(NUMBERS)
        if kind in (3, 4):
            return self.text()
        if kind == 5:
            return [self.value(depth + 1) for _ in range(self.random.randrange(5))]
        if kind == 6:
            return self.nested(self.random.choice((5, 20, 300)))
        if kind == 7:
            return self.marked()
        return {self.text(): self.value(depth + 1) for _ in range(self.random.randrange(5))}

    def nested(self, depth: int) -> Any:
        value: Any = 1
        for _ in range(depth):
            value = [value] if self.random.random() < 0.5 else {"a": value}
        return value

    def marked(self) -> Any:
        """What looks like a value that Airflow has serialized."""
        kinds = (
            "dict",
            "datetime",
            "timedelta",
            "set",
            "tuple",
            "relativedelta",
            "pod",
            "connection",
            "xcom_ref",
        )
        kinds += ("airflow_exc_ser", "base_exc_ser", "param", "dag", "op", "task_instance", "nonsense", "")
        content = self.random.choice((None, 1, "abc", [], {}, [[]], {"a": 1}, 1e300, self.nested(30)))
        marked = {"__type": self.random.choice(kinds), "__var": content}
        if self.random.random() < 0.2:
            del marked["__var" if self.random.random() < 0.5 else "__type"]
        return marked

    def bad(self, good: dict[str, Any]) -> Any:
        """The data of a callback that cannot run: its whole, or the field without which it cannot."""
        kind = self.random.randrange(8)
        if kind == 0:
            return self.random.choice(
                (None, True, 7, 1.5, "text", [], [1, 2], {}, self.nested(300), self.marked())
            )
        fields = dict(good)
        for name in self.random.sample(sorted(fields), self.random.randrange(3)):
            fields[name] = self.value()
        if self.random.random() < 0.3:
            fields[self.text()] = self.value()
        if kind == 1:
            # As if this library had written it.
            fields["path"], fields["kind"] = (
                ENTRY,
                self.random.choice(("task_failure", "dag_success", "odd", 7, None)),
            )
        if kind == 2:
            fields["executor"] = "Nowhere" + str(self.random.randrange(9))
            return fields
        if kind == 3:
            del fields["dag_run_id"]
            return fields
        wrong = (
            "abc",
            "",
            "-1",
            "1e3",
            "0x1",
            "\u0663\u0664\u0665\u0666",
            str(2**70),
            str(LARGEST),
            "999999",
        )
        fields["dag_run_id"] = self.random.choice(
            (None, True, 1.5, -1, 2**70, LARGEST, [], {}, self.marked(), *wrong)
        )
        return fields

    def odd(self, good: dict[str, Any]) -> dict[str, Any]:
        """The data of a callback that can run, with more in it than anybody asked for."""
        fields = dict(good)
        if self.random.random() < 0.5:
            fields["kwargs"] = {
                "context": {},
                "text": self.text(),
                "more": [self.text(), 7, None, {"a": self.text()}],
            }
        if self.random.random() < 0.3:
            fields["extra " + self.text()[:50]] = self.text()
        return fields


def rows(fuzz: Fuzz, run: int, *, serialize: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows in a random order, each with what it is: good, bad, or not waiting."""
    good = {
        "path": "builtins.print",
        "kwargs": {"context": {}},
        "executor": None,
        "dag_run_id": str(run),
        "dag_id": "alerts",
        "prefix": "deadline_alerts",
    }
    kinds = ["good"] * GOOD + ["bad"] * BAD + ["not waiting"] * NOT_WAITING
    fuzz.random.shuffle(kinds)
    numbers = {0, 2**128 - 1, 1, 2**127}
    for number, kind in enumerate(kinds):
        state = "pending"
        if kind == "not waiting":
            state = fuzz.random.choice(
                ("nonsense", "", "PENDING", "pending ", None, "\U0001f525", "scheduled", "none")
            )
        if kind == "good":
            data: Any = serialize(fuzz.odd(good))
        else:
            data = fuzz.bad(good)
            if fuzz.random.random() < 0.96:  # else nothing says what the dictionary is
                with suppress(Exception):  # else as it is
                    data = serialize(data)
        identity = uuid.UUID(int=numbers.pop()) if numbers else uuid.UUID(int=fuzz.random.getrandbits(128))
        yield (
            kind,
            {
                "id": identity,
                "type": "executor",
                "fetch_method": "import_path",
                "data": json.dumps(data),
                "state": state,
                "priority_weight": fuzz.random.choice((1, 1, 0, -1, LARGEST, -LARGEST - 1, number)),
                "created_at": START,
            },
        )


def write(database_rows: list[dict[str, Any]]) -> None:
    """Past everything that Airflow checks."""
    from airflow import settings
    from airflow.models.callback import Callback

    table = Callback.__table__
    columns = [sa.column(name, table.c[name].type) for name in database_rows[0] if name != "data"]
    with settings.engine.begin() as connection:
        if connection.dialect.name == "sqlite":
            columns.append(sa.column("data", sa.Text))
            connection.execute(sa.insert(sa.table("callback", *columns)), database_rows)
            return
        # The server reads each text on its own.
        columns.append(sa.column("data", sa.Text))
        raw = sa.insert(sa.table("callback", *columns)).values(
            {column.name: sa.bindparam(column.name, type_=column.type) for column in columns}
            | {"data": sa.cast(sa.bindparam("data", type_=sa.Text), sa.dialects.postgresql.JSONB)}
        )
        connection.execute(raw, database_rows)


def test_thousands_of_hostile_rows_hold_up_nobody(airflow_database, backend, monkeypatch):
    from airflow.models.callback import Callback
    from airflow.models.dagrun import DagRun
    from airflow.serialization.serialized_objects import BaseSerialization
    from airflow.utils.session import create_session

    monkeypatch.setattr(DagRun, "get_running_dag_runs_to_examine", classmethod(lambda cls, **_: []))
    bench = Bench()
    run = bench.dag("alerts")
    fuzz = Fuzz(20_261_123, strict=backend == "postgresql")
    kinds: dict[uuid.UUID, str] = {}
    written = []
    for kind, row in rows(fuzz, run, serialize=BaseSerialization.serialize):
        kinds[row["id"]] = kind
        written.append(row)
    write(written)
    states = {row["id"]: row["state"] for row in written}
    bench.tasks(TASKS)
    clock = FakeClock()
    executor = LoopExecutor(SLOTS, clock=clock)
    logging.disable(logging.CRITICAL)
    try:
        with scheduler(executor, settings=SETTINGS, clock=clock, max_tis_per_query=64) as loops:
            for _ in range(12):
                runner = loops(4)
                if set(bench.callback_states()) <= {"success", "failed", *states.values()} - {"pending"}:
                    break
                clock.seconds += 3
    finally:
        logging.disable(logging.NOTSET)
    allocator = runner._callback_priority
    assert allocator.breaker.failures == 0
    assert not allocator.breaker.seen, "nothing failed on our side"
    assert len(allocator.ledger) == 0
    assert executor.count("task") == TASKS
    table = Callback.__table__
    with create_session() as session:
        found = {
            each: (state, output)
            for each, state, output in session.execute(sa.select(table.c.id, table.c.state, table.c.output))
        }
    by_kind = {kind: {each for each, which in kinds.items() if which == kind} for kind in set(kinds.values())}
    assert Counter(found[each][0] for each in by_kind["good"]) == {"success": GOOD}
    called = executor.order("callback")
    assert len(called) == len(set(called))
    assert by_kind["good"] <= set(called)
    bad = Counter(found[each][0] for each in by_kind["bad"])
    wrong = [
        (found[each], row["data"][:300])
        for row in written
        if kinds[each := row["id"]] == "bad" and found[each][0] != "failed"
    ]
    assert bad == {"failed": BAD}, wrong[:5]
    reasons = Counter(re.sub(r"[0-9].*|'.*", "", found[each][1] or "")[:60] for each in by_kind["bad"])
    assert "" not in reasons
    assert len(reasons) >= 5
    assert all(found[each][0] == states[each] for each in by_kind["not waiting"]), "left as they are"
    assert all(found[each][1] is None for each in by_kind["not waiting"])
