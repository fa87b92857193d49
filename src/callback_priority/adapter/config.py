"""The section ``[callback_priority]`` as Airflow's configuration holds it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import cache
from typing import Any

from callback_priority.errors import ConfigurationError
from callback_priority.policy.options import OPTIONS, SECTION
from callback_priority.policy.parse import parse_settings
from callback_priority.policy.settings import Settings

__all__ = ["configured_executors", "raw_section", "settings"]

log = logging.getLogger(__name__)


@cache
def settings() -> Settings | None:
    """The settings of this process, read once; ``None`` if they are invalid, which is logged, once too.

    The scheduler's hook reads its own: it can hold them against pools and executors.
    """
    from airflow.configuration import conf  # noqa: PLC0415 - who only hands a section in needs none

    try:
        return parse_settings(raw_section(conf))
    except ConfigurationError as error:
        log.error(  # noqa: TRY400 - its text says all
            "New callbacks stay on the Dag processor, and those on workers run under the default limits. %s",
            error,
        )
        return None


def raw_section(conf: Any, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The text of every option that is set, known or not, from files, environment, commands and secrets.

    Args:
        conf: Airflow's configuration.
        environ: The process environment; ``os.environ`` if not given.

    Unknown names are kept, so that the parser can name them: Airflow itself ignores them in silence.
    """
    names = [option.name for option in OPTIONS]
    raw = {name: conf.get(SECTION, name) for name in names if conf.has_option(SECTION, name)}
    prefix = f"AIRFLOW__{SECTION.upper()}__"
    found = {
        name.removeprefix(prefix).lower(): name for name in environ or os.environ if name.startswith(prefix)
    }
    for name, variable in sorted(found.items()):
        base = name.removesuffix("_cmd").removesuffix("_secret")
        if base not in names:
            raw[name] = (environ or os.environ)[variable]
    if conf.has_section(SECTION):
        for name, value in conf.items(SECTION):
            base = name.removesuffix("_cmd").removesuffix("_secret")
            if base not in names:
                raw.setdefault(name, value)
    return {name: value for name, value in raw.items() if value is not None}


def configured_executors() -> frozenset[str]:
    """Every name by which Airflow looks up an executor, of any team: its alias, class name and module path.

    Raises:
        AirflowConfigException: ``[core] executor`` cannot be read; no scheduler would start with it.
    """
    from airflow.executors.executor_loader import ExecutorLoader  # noqa: PLC0415 - who only reads the section needs none

    return frozenset(
        name
        for each in ExecutorLoader.get_executor_names(validate_teams=False)
        for name in (each.alias, each.module_path, each.module_path.rpartition(".")[2])
        if name
    )
