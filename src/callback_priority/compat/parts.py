"""What the library can do in which of Airflow's versions, in words: for ``doctor`` and the documentation.

Whether a part is at work is decided where it is installed, by what `callback_priority.compat.targets` knows.
"""

from __future__ import annotations

from typing import Final

import attrs

from callback_priority.compat.targets import (
    ATTEMPT_TARGETS,
    FIXED_TRIGGER_TARGETS,
    KILLED_TARGETS,
    PARSE_TARGETS,
    RELIED_ON,
    REPLACED,
    RUNTIME_TARGETS,
    SINK_TARGETS,
    TRIGGER_TARGETS,
    Target,
    made_for,
    series,
)

__all__ = ["PARTS", "RUN", "SLOT_LOOP", "Part", "lacking", "versions_of"]

RUN: Final = ("3.2.2", "3.3.0", "3.3.2", "3.4.0b2")
"""The versions of Airflow on which the contract tests run (``make test``, ``make matrix``), the oldest first."""


@attrs.frozen(kw_only=True)
class Part:
    """Something that the library does, as far as Airflow's version matters to it.

    Args:
        name: What a table calls it.
        targets: What it rests on.
        without: What holds where it is not at work.
    """

    name: str
    targets: tuple[Target, ...]
    without: str

    @property
    def series(self) -> list[str]:
        """Airflow's minor versions that it is made for."""
        return made_for(self.targets)


SLOT_LOOP: Final = Part(
    name="slots shared between tasks and callbacks",
    targets=(*REPLACED.values(), *RELIED_ON),
    without="Airflow gives slots to tasks and callbacks as it does by itself",
)

PARTS: Final = (
    SLOT_LOOP,
    Part(
        name="a callback on one triggerer at a time",
        targets=(*TRIGGER_TARGETS, *FIXED_TRIGGER_TARGETS),
        without="several triggerers run each asynchronous callback",
    ),
    Part(
        name="callbacks claimed by their workers",
        targets=ATTEMPT_TARGETS,
        without="a worker runs whatever it is handed and reports nothing meanwhile: one that is gone is noticed after "
        "callback_running_timeout_seconds, or by its executor",
    ),
    Part(
        name="callbacks moved off the Dag processor",
        targets=(*SINK_TARGETS, *PARSE_TARGETS, *RUNTIME_TARGETS),
        without="the Dag processor runs the callbacks of Dags and tasks, whatever use_worker_callbacks says",
    ),
    Part(
        name="callbacks of tasks whose process was killed",
        targets=KILLED_TARGETS,
        without="they run nowhere, as in Airflow",
    ),
)
"""The parts, the one that the others stand on first."""


def lacking(of: str | None = None) -> list[Part]:
    """The parts that a version of Airflow cannot carry; the installed one if none is given."""
    wanted = series(of)
    return [part for part in PARTS if wanted not in part.series]


def versions_of(minor: str) -> list[str]:
    """The versions of a series on which the contract tests run."""
    return [each for each in RUN if series(each) == minor]
