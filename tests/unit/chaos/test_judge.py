"""The judge of chaos: finds nothing where nothing is wrong, and each thing that can be."""

from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace

import attrs
import pytest

from tests.chaos.judge import Judge

RUN = "load_0"


def row(**values):
    return SimpleNamespace(**values)


@attrs.define
class World:
    """Rows and records of two deadlines, a callback of a task that took two attempts, and a task instance."""

    callbacks: list = attrs.field(
        factory=lambda: [
            row(id="a", state="success", output=None, attempts=1),
            row(id="b", state="failed", output="for a reason", attempts=3),
            row(id="c", state="success", output=None, attempts=2),
        ]
    )
    units: list = attrs.field(
        factory=lambda: [
            row(kind="task_failure", dag_id="alerts", run_id=RUN, try_number=1, position=0, callback_id="c")
        ]
    )
    changes: list = attrs.field(
        factory=lambda: [
            *[granted("a", 1), granted("c", 1)],
            row(callback_id="c", old_state="granted", state="waiting", attempts=1, old_attempts=1),
            *[granted("c", 2), granted("b", 1), granted("b", 2), granted("b", 3)],
        ]
    )
    queued: list = attrs.field(factory=lambda: [row(callback_id=each) for each in "accbbb"])
    held: list = attrs.field(factory=list)
    returned: list = attrs.field(factory=list)
    tasks: list = attrs.field(factory=lambda: [row(run_id=RUN, map_index=0, state="success", try_number=1)])
    calls: list = attrs.field(factory=lambda: ["late_0", "task_failure_0", "task_failure_0"])
    tries: list = attrs.field(factory=lambda: [1])

    def rows(self, statement):
        answers = {
            "FROM chaos_item_change": self.changes,
            "FROM chaos_callback_change": self.queued,
            "FROM task_instance": self.tasks,
            "WHERE outcome IN": self.returned,
            "FROM callback_priority_unit": self.units,
            "FROM callback_priority_item WHERE state": self.held,
            "FROM callback c": self.callbacks,
        }
        return next(answer for part, answer in answers.items() if part in statement)

    def value(self, statement):
        return 9.0

    def records(self):
        called = [
            {"event": "called", "name": name, "run_id": RUN, "try_number": 1 if "task" in name else None}
            for name in self.calls
        ]
        return called + [
            {"event": "task", "run_id": RUN, "map_index": 0, "try_number": number} for number in self.tries
        ]

    @contextlib.contextmanager
    def connect(self):
        yield None


def granted(callback_id, attempt):
    return row(
        callback_id=callback_id,
        old_state="waiting",
        state="granted",
        attempts=attempt,
        old_attempts=attempt - 1,
    )


EXPECTED = [
    {"key": ["late_0", RUN, None], "kind": "deadline", "callback_id": "a"},
    {"key": ["late_1", RUN, None], "kind": "deadline", "callback_id": "b"},
    {
        "key": ["task_failure_0", RUN, 1],
        "kind": "task_failure",
        "dag_id": "alerts",
        "run_id": RUN,
        "try_number": 1,
        "position": 0,
    },
]


def broken(world, tmp_path):
    """The names of the figures that are not as they must be."""
    manifest = tmp_path / "manifest"
    manifest.write_text("".join(json.dumps(each) + "\n" for each in EXPECTED))
    judge = Judge(world, manifest, SimpleNamespace(mails=list))
    findings = [*judge.of_callbacks(), *judge.of_grants(), *judge.of_tasks(1)]
    return {each.name.split(":")[0] for each in findings if each.holds is False}


def test_nothing_is_found_where_nothing_is_wrong(tmp_path):
    assert broken(World(), tmp_path) == set()


def test_what_went_back_to_the_dag_processor_must_be_called_there(tmp_path):
    world = World(
        returned=[row(kind="task_failure", dag_id="alerts", run_id=RUN, try_number=1)],
        units=[],
        calls=["late_0", "task_failure_0"],
    )
    assert broken(world, tmp_path) == set()
    world.calls.pop()
    assert broken(world, tmp_path) == {"callbacks lost"}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda world: world.calls.pop(0), "callbacks lost"),
        (lambda world: setattr(world.callbacks[1], "output", None), "callbacks lost"),
        (lambda world: world.callbacks.pop(0), "callbacks lost"),
        (lambda world: world.units.clear(), "callbacks lost"),
        (lambda world: setattr(world.callbacks[0], "state", "running"), "callbacks in no terminal state"),
        (lambda world: world.calls.append("late_0"), "callbacks called more often than granted"),
        (lambda world: world.calls.append("other"), "calls that nobody asked for"),
        (lambda world: world.changes.append(granted("a", 1)), "attempts granted twice"),
        (lambda world: setattr(world.changes[0], "old_state", "done"), "grants of what was not waiting"),
        (lambda world: setattr(world.changes[0], "attempts", 2), "grants that skipped an attempt"),
        (
            lambda world: world.queued.pop(),
            "callbacks of which Airflow's row and ours tell of different grants",
        ),
        (lambda world: world.held.append("row"), "callbacks that hold or want a slot at the end"),
        (lambda world: setattr(world.tasks[0], "state", "queued"), "task instances lost"),
        (lambda world: world.tries.clear(), "task instances lost"),
        (lambda world: world.tasks.clear(), "task instances"),
        (lambda world: world.tries.append(1), "tries that ran twice"),
    ],
)
def test_each_thing_that_can_be_wrong_is_found(tmp_path, change, found):
    world = World()
    change(world)
    assert found in broken(world, tmp_path)
