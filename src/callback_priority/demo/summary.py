"""What a phase comes to in a few numbers, and the table that sets two phases side by side. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs

from callback_priority.demo import measure
from callback_priority.demo.load import LONE_DAG, Load
from callback_priority.demo.measure import Interval, Run, Wait
from callback_priority.demo.records import DEADLINE, TASK

__all__ = ["Row", "Summary", "make_summary", "table"]


@attrs.frozen(kw_only=True)
class Row:
    """One class, or a part of one.

    Args:
        name: What it is called.
        arrived: How many workloads there were.
        started: How many of them started.
        wait_p50: Half of them waited at most this long.
        wait_p95: 95% of them waited at most this long.
        share: Of the slot-time while both classes waited.
        lowest_share: The same, in the stretch in which it was lowest.
        stall_seconds: The longest time in which some waited and none started.
    """

    name: str
    arrived: int
    started: int
    wait_p50: Wait | None
    wait_p95: Wait | None
    share: float
    lowest_share: float
    stall_seconds: float


@attrs.frozen(kw_only=True)
class Summary:
    """A phase in numbers.

    Args:
        contended: When both classes waited.
        task: Task instances.
        deadline: Deadline callbacks.
        lone: Those of the Dag that does not flood.
    """

    contended: tuple[Interval, ...]
    task: Row
    deadline: Row
    lone: Row

    @property
    def classes(self) -> tuple[Row, Row]:
        """The rows that share the slots."""
        return self.task, self.deadline

    @property
    def contended_seconds(self) -> float:
        """For how long both classes waited."""
        return sum(end - start for start, end in self.contended)


def make_summary(runs: Sequence[Run], load: Load, end_seconds: float, stretch_seconds: float) -> Summary:
    """The numbers of a phase.

    Args:
        runs: Every workload of it.
        load: What it was put under.
        end_seconds: When it ended.
        stretch_seconds: The length of a stretch for the lowest share.
    """
    tasks = [run for run in runs if run.service_class == TASK]
    callbacks = [run for run in runs if run.service_class == DEADLINE]
    window = (load.flood_at_seconds + load.deadline_seconds, end_seconds)
    contended = measure.common(tasks, callbacks, window)

    def row(name: str, part: Sequence[Run]) -> Row:
        waits = measure.waits(part, end_seconds)
        return Row(
            name=name,
            arrived=len(part),
            started=sum(run.started for run in part),
            wait_p50=measure.percentile(waits, 0.5),
            wait_p95=measure.percentile(waits, 0.95),
            share=measure.share(part, runs, contended),
            lowest_share=measure.lowest_share(part, runs, contended, stretch_seconds),
            stall_seconds=measure.longest_gap(part, window),
        )

    return Summary(
        contended=tuple(contended),
        task=row(TASK, tasks),
        deadline=row(DEADLINE, callbacks),
        lone=row(f"  of {LONE_DAG}", [run for run in callbacks if run.dag_id == LONE_DAG]),
    )


def table(phases: Sequence[tuple[str, Summary]], stretch_seconds: float) -> str:
    """The phases below one another, a line per class."""
    head = (
        f"{'':12}{'started':>12}{'wait p50':>10}{'wait p95':>10}{'share':>8}"
        f"{f'worst {stretch_seconds:.0f} s':>12}{'longest stall':>15}"
    )
    lines = []
    for name, summary in phases:
        lines += [f"{name} (both classes waited for {summary.contended_seconds:.0f} s)", head]
        lines += [_line(row, is_class=row is not summary.lone) for row in (*summary.classes, summary.lone)]
        lines.append("")
    lines += [
        "started        of those that came while the phase lasted",
        "wait           from being scheduled, or from the missed deadline, to the start of the process;",
        "               '>' where it had not started when the phase ended",
        "share          of the slot-time that was used while both classes waited",
        f"worst {stretch_seconds:.0f} s     the same, in the {stretch_seconds:.0f} seconds in which the class got least",
        "longest stall  the longest time in which some of the class waited and none started",
    ]
    return "\n".join(lines)


def _line(row: Row, *, is_class: bool) -> str:
    shares = (row.share, row.lowest_share) if is_class else (math.nan, math.nan)
    return (
        f"{row.name:12}{f'{row.started} of {row.arrived}':>12}{_wait(row.wait_p50):>10}{_wait(row.wait_p95):>10}"
        f"{_percent(shares[0]):>8}{_percent(shares[1]):>12}{f'{row.stall_seconds:.1f} s':>15}"
    )


def _wait(wait: Wait | None) -> str:
    return "-" if wait is None else f"{'> ' if wait.still else ''}{wait.seconds:.1f} s"


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.0%}"
