"""What one turn of a real scheduler costs on PostgreSQL, next to stock Airflow's two steps in the same run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import attrs
import pytest

from benchmarks.deployment import Deployment, Turn, deployed
from tests.support.airflow_env import DatabaseTemplates
from tests.support.postgres import PostgresServer
from tests.support.scheduler import hooked

pytestmark = pytest.mark.timeout(900)

ROUNDS = 20
WARM_UP_ROUNDS = 2
GRANTS = 128
"""Task instances, and callbacks, that one turn grants."""

STATEMENTS = 12
"""Round trips beyond those of Airflow's task selection, at most."""


@pytest.fixture
def make(server: PostgresServer, templates: DatabaseTemplates) -> Iterator[Callable[..., Deployment]]:
    """Makes deployments that stay until the benchmark is through, with Airflow's methods replaced meanwhile."""
    with hooked(), ExitStack() as stack:

        def build(*, tasks: int = 0, pending: int = 0, finished: int = 0) -> Deployment:
            url = stack.enter_context(templates.copy("postgresql", server))
            return stack.enter_context(deployed(url, tasks=tasks, pending=pending, finished=finished))

        yield build


@attrs.frozen(kw_only=True)
class Side:
    """One of the things that are compared.

    Args:
        of: The deployment that the turn is taken in.
        ours: Whether by the library, or by stock Airflow.
        slots: Free slots.
        tasks: Airflow's ``max_tis_per_query``.
    """

    of: Deployment
    ours: bool
    slots: int
    tasks: int = GRANTS

    def prepare(self) -> None:
        """What is not measured."""
        self.of.prepare(slots=self.slots, tasks=self.tasks)

    def turn(self) -> Turn:
        """What is."""
        return self.of.our_turn() if self.ours else self.of.stock_turn()


def alternate(benchmark: Any, *sides: Side, rounds: int = ROUNDS) -> list[list[Turn]]:
    """Take turns, round after round; pytest-benchmark shows the last side.

    Returns:
        The turns of each side, without those that only warm caches up.
    """
    turns: list[list[Turn]] = [[] for _ in sides]
    *others, last = zip(sides, turns, strict=True)

    def take_others() -> None:
        for side, taken in others:
            side.prepare()
            taken.append(side.turn())
        last[0].prepare()

    for _ in range(WARM_UP_ROUNDS):
        take_others()
        last[0].turn()
    for taken in turns:
        taken.clear()
    benchmark.pedantic(lambda: last[1].append(last[0].turn()), setup=take_others, rounds=rounds, iterations=1)
    return turns


def least(turns: Sequence[Turn], step: str = "seconds") -> float:
    """The shortest time of a step, in seconds."""
    return min(getattr(turn, step) for turn in turns)


def granted(turns: Sequence[Turn]) -> set[tuple[int, int]]:
    """How many task instances and callbacks the turns granted: the same in each, or the times say nothing."""
    return {(turn.tasks, turn.callbacks) for turn in turns}


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Prints milliseconds by name."""

    def print_milliseconds(**seconds: float) -> None:
        with capsys.disabled():
            print()
            for name, value in seconds.items():
                print(f"    {name.replace('_', ' ')}: {value * 1e3:.1f} ms")

    return print_milliseconds


def test_one_turn_next_to_both_of_airflows_steps(benchmark, claim, show, make):
    busy = make(tasks=10_000, pending=5_000, finished=100_000)
    stock, ours = alternate(
        benchmark,
        Side(of=busy, ours=False, slots=2 * GRANTS),
        Side(of=busy, ours=True, slots=2 * GRANTS),
    )
    assert granted(stock) == granted(ours) == {(GRANTS, GRANTS)}
    show(
        stock_task_step=least(stock, "task_seconds"),
        stock_callback_step=least(stock, "callback_seconds"),
        stock_both_steps=least(stock),
        ours=least(ours),
    )
    claim(
        "128 tasks and 128 callbacks: our critical section / Airflow's two steps",
        least(ours) / least(stock),
        0.6,
    )
    beyond = ours[-1].statements - stock[-1].task_statements
    claim("128 tasks and 128 callbacks: statements beyond Airflow's task selection", beyond, STATEMENTS)
    few = Side(of=busy, ours=True, slots=32, tasks=16)
    many = Side(of=busy, ours=True, slots=512, tasks=256)
    sent = {}
    for side in (few, many):
        side.prepare()
        turn = side.turn()
        sent[turn.callbacks] = turn.statements
    assert sent.keys() == {16, 256}
    claim("statements with 256 callbacks / with 16", sent[256] / sent[16], 1)


def test_callbacks_alone_next_to_airflows_callback_step(benchmark, claim, show, make):
    without_tasks = make(pending=5_000, finished=100_000)
    stock, ours = alternate(
        benchmark,
        Side(of=without_tasks, ours=False, slots=GRANTS),
        Side(of=without_tasks, ours=True, slots=GRANTS),
    )
    assert granted(stock) == granted(ours) == {(0, GRANTS)}
    callback_step = least(stock, "callback_seconds")
    show(stock_callback_step=callback_step, ours=least(ours))
    claim(
        "128 callbacks, no tasks: our critical section / Airflow's callback step",
        least(ours) / callback_step,
        0.3,
    )
    beyond = ours[-1].statements - stock[-1].task_statements
    claim("128 callbacks, no tasks: statements beyond Airflow's task selection", beyond, STATEMENTS)


def test_no_callbacks_next_to_airflows_task_step(benchmark, claim, show, make):
    tasks_only = make(tasks=10_000)
    stock, ours = alternate(
        benchmark,
        Side(of=tasks_only, ours=False, slots=GRANTS),
        Side(of=tasks_only, ours=True, slots=GRANTS),
        rounds=3 * ROUNDS,  # the two are close
    )
    assert granted(stock) == granted(ours) == {(GRANTS, 0)}
    task_step = least(stock, "task_seconds")
    show(stock_task_step=task_step, ours=least(ours))
    claim(
        "no callbacks at all: our critical section / Airflow's task step (or 5 ms more)",
        least(ours) / task_step,
        max(1.05, 1 + 0.005 / task_step),
    )


def test_growth_with_what_is_finished(benchmark, claim, show, make):
    none, million = make(pending=5_000), make(pending=5_000, finished=1_000_000)
    short, long = alternate(
        benchmark, Side(of=none, ours=True, slots=GRANTS), Side(of=million, ours=True, slots=GRANTS)
    )
    assert granted(short) == granted(long) == {(0, GRANTS)}
    show(none_finished=least(short), a_million_finished=least(long))
    claim("1,000,000 callbacks finished / none", least(long) / least(short), 1.15)


def test_growth_with_what_waits(benchmark, claim, show, make):
    few, many = make(pending=3_000), make(pending=100_000)
    short, long = alternate(
        benchmark, Side(of=few, ours=True, slots=GRANTS), Side(of=many, ours=True, slots=GRANTS)
    )
    assert granted(short) == granted(long) == {(0, GRANTS)}
    show(three_thousand_wait=least(short), a_hundred_thousand_wait=least(long))
    claim("100,000 callbacks waiting / 3,000", least(long) / least(short), 1.5)
