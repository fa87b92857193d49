"""Installing the slot loop into Airflow's scheduler, and taking it out again.

`install` is called once the scheduler's module is imported (`callback_priority.activation`); in processes that never
import it (workers, API server) nothing happens. What is replaced is checked first
(`callback_priority.compat`). With ``mode = off`` nothing is touched at all.
"""

from __future__ import annotations

import logging

from airflow.configuration import conf

from callback_priority import compat
from callback_priority.adapter import patches
from callback_priority.adapter.config import raw_section
from callback_priority.policy.settings import Mode

__all__ = ["install", "installed", "uninstall"]

log = logging.getLogger(__name__)


def installed() -> bool:
    """Whether Airflow's methods are replaced in this process."""
    return patches.applied()


def install() -> bool:
    """Replace Airflow's methods, unless the mode is off or this Airflow is not known. Idempotent, raises nothing.

    Returns:
        Whether they are replaced.
    """
    if patches.applied():
        return True
    try:
        # A wrong mode is reported with everything else that is wrong, when the scheduler starts.
        if raw_section(conf).get("mode", Mode.OFF.value).strip().lower() == Mode.OFF.value:
            return False
        if differences := compat.mismatches():
            log.error("callback-priority is off and Airflow runs as it is: %s", "; ".join(differences))
            return False
        # Not at the top: it imports the scheduler's code, which most processes never need.
        from callback_priority.adapter.replacements import REPLACEMENTS  # noqa: PLC0415

        patches.apply(REPLACEMENTS)
    except Exception:
        log.exception("callback-priority could not be installed; Airflow runs as it is")
        return False
    return True


def uninstall() -> None:
    """Put Airflow's methods back."""
    patches.undo()
