"""What differs between Airflow's versions: the one place that knows.

`targets` knows Airflow's code by its fingerprints, and imports nothing of Airflow's before it is looked at; what it
exports is exported here. The other modules give the adapter what it needs of Airflow under one name in every
version, one module for each concern; they import Airflow and are imported by the adapter where they are needed.
"""

from __future__ import annotations

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
    airflow_version,
    carries,
    differences,
    made_for,
    mismatches,
    replaced,
    series,
)

__all__ = [
    "ATTEMPT_TARGETS",
    "FIXED_TRIGGER_TARGETS",
    "KILLED_TARGETS",
    "PARSE_TARGETS",
    "RELIED_ON",
    "REPLACED",
    "RUNTIME_TARGETS",
    "SINK_TARGETS",
    "TRIGGER_TARGETS",
    "Target",
    "airflow_version",
    "carries",
    "differences",
    "made_for",
    "mismatches",
    "replaced",
    "series",
]
