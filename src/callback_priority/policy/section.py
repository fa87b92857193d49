"""The section of a configuration file, as texts: Airflow's own file, one that has others beside it, or the section alone."""

from __future__ import annotations

import configparser
from pathlib import Path

from callback_priority.errors import ConfigurationError, Problem
from callback_priority.policy.options import SECTION

__all__ = ["section_of"]


def section_of(path: Path) -> dict[str, str]:
    """The options that a file sets: of its section, or of the whole file if it has no sections.

    Raises:
        ConfigurationError: The file has sections, and not this one, or cannot be understood.
        OSError: It cannot be read.
    """
    parser = configparser.ConfigParser(interpolation=None, strict=True, default_section="\0none")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        try:
            parser.read_string(text, str(path))
        except configparser.MissingSectionHeaderError:
            parser.read_string(f"[{SECTION}]\n{text}", str(path))
    except configparser.Error as error:
        problem = Problem(key=str(path), value="the file", remedy=f"cannot be understood: {error.message}")
        raise ConfigurationError([problem], str(path)) from error
    if not parser.has_section(SECTION):
        problem = Problem(key=SECTION, value="missing", remedy="add the section, or name a file that has it")
        raise ConfigurationError([problem], str(path))
    # Airflow writes a percent sign twice, as Python's own interpolation does.
    return {name: value.replace("%%", "%") for name, value in parser.items(SECTION)}
