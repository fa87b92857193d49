"""What came of a tuning, as tables for a terminal, with the section to paste."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from callback_priority.cli.text import NOTHING, columns, count, duration, share
from callback_priority.simulation.tuned import Verdict, section_text

if TYPE_CHECKING:
    from callback_priority.simulation.estimates import Estimate
    from callback_priority.simulation.goals import Goal
    from callback_priority.simulation.tuned import ClassCost, Collision, Tuned

__all__ = ["tuned_text"]

_NO_WAIT: Final = "never waited"


def tuned_text(found: Tuned) -> str:
    """The answer, as lines.

    Args:
        found: What came of it.
    """
    parts = [_head(found), _goals(found)]
    if found.settings is not None:
        parts.append(_costs(found))
    parts.append(_verdict(found))
    if found.settings is not None:
        parts.append(section_text(found.settings).splitlines())
    if found.notes:
        parts.append([f"note: {each}" for each in found.notes])
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _head(found: Tuned) -> list[str]:
    scenario = found.scenario
    schedulers = "" if scenario.schedulers == 1 else f"{scenario.schedulers} schedulers of "
    about = f"{scenario.name}: {scenario.description}" if scenario.description else scenario.name
    tried = f"{found.trials} settings tried with {count(len(found.seeds), 'seed')}"
    checked = f"the result checked with {count(len(found.unseen_seeds), 'other')}"
    return [
        about,
        f"{duration(scenario.seconds)}, {schedulers}{count(scenario.slots, 'slot')}",
        f"{tried}, {checked}; means with their {found.confidence:.4g} confidence",
    ]


def _goals(found: Tuned) -> list[str]:
    rows = []
    for each in found.goals:
        text = _text(each.goal)
        rows.append(
            [
                each.goal.text,
                _NO_WAIT if each.never_waited else _sure(each.before, text),
                _NO_WAIT if each.never_waited else _sure(each.after, text) if found.settings else NOTHING,
                f"{each.met_before} of {each.seeds}",
                f"{each.met_after} of {each.seeds}" if found.settings else NOTHING,
            ]
        )
    header = ["goal", "today", "found", "seeds that meet it today", "found"]
    return columns(header, rows, left=(0,))


def _costs(found: Tuned) -> list[str]:
    rows = []
    for cls, cost in found.costs.items():
        rows.append(
            [
                cls.value,
                _sure(cost.slots_before, share),
                _sure(cost.slots_after, share),
                _change(cost.slots_change, share),
                *_delays(cost),
            ]
        )
    before, after = found.utilisation_before, found.utilisation_after
    rows.append(["(all)", _sure(before, share), _sure(after, share), *[NOTHING] * 4])
    header = ["what it costs", "slots today", "found", "change", "wait p95 today", "found", "change"]
    return columns(header, rows, left=(0,))


def _delays(cost: ClassCost) -> list[str]:
    return [
        _sure(cost.delay_before, duration),
        _sure(cost.delay_after, duration),
        _change(cost.delay_change, duration),
    ]


def _verdict(found: Tuned) -> list[str]:
    if found.verdict is Verdict.MET:
        return ["All goals are met. For airflow.cfg:"]
    if found.verdict is Verdict.UNSURE:
        return [
            "All goals are met with the seeds of the search, not surely with others: see above how often. For airflow.cfg:"
        ]
    if found.verdict is Verdict.CONTRADICTORY:
        lines = [
            "The goals contradict one another here: each can be met, together they cannot, as far as was found."
        ]
        for each in found.collisions:
            lines += _collision(each)
        return [*lines, "The best compromise, for airflow.cfg:"]
    lines = []
    for outcome in found.goals:
        if not outcome.is_reachable:
            best = NOTHING if outcome.best_alone is None else _text(outcome.goal)(outcome.best_alone)
            lines.append(
                f"{outcome.goal.text!r} cannot be met here, whatever is given to {outcome.goal.service_class}: the best is {best}."
            )
    for each in found.collisions:
        lines += _collision(each)
    if found.settings is not None:
        lines.append("Without that, for airflow.cfg:")
    return lines


def _collision(found: Collision) -> list[str]:
    lines = []
    for goal, best in zip(found.goals, found.best, strict=True):
        others = " and ".join(repr(each.text) for each in found.goals if each is not goal)
        lines.append(
            f"- nothing was found that meets {others}"
            if best is None
            else f"- with {others} met, the best for {goal.text!r} is {_text(goal)(best)}"
        )
    return lines


def _text(goal: Goal) -> Callable[[float], str]:
    return share if goal.least_share is not None else duration


def _sure(found: Estimate | None, text: Callable[[float], str]) -> str:
    if found is None:
        return NOTHING
    half = found.half_width
    return text(found.mean) if half is None else f"{text(found.mean)} ±{text(half)}"


def _change(found: Estimate | None, text: Callable[[float], str]) -> str:
    if found is None:
        return NOTHING
    sign = "-" if found.mean < 0 else "+"
    star = "" if found.low is None or found.excludes_zero or not found.mean else "*"
    return f"{sign}{text(abs(found.mean))}{star}"
