"""Airflow is told of every option, by code that costs its processes nothing; the reference page says the same."""

from __future__ import annotations

import importlib.metadata
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from callback_priority.adapter.provider import get_provider_info
from callback_priority.policy.options import OPTIONS, SECTION

ROOT = Path(__file__).parents[3]


def options_told() -> dict[str, dict[str, object]]:
    return get_provider_info()["config"][SECTION]["options"]


def test_every_option_is_told_with_its_default():
    assert {name: told["default"] for name, told in options_told().items()} == {
        o.name: o.default for o in OPTIONS
    }


def test_defaults_are_not_formatted_by_airflow():
    """Airflow formats defaults that are no templates, and dies of JSON's empty object with an IndexError."""
    empty = "{}"
    with pytest.raises(IndexError):
        empty.format(AIRFLOW_HOME="/")
    assert all(told["is_template"] for told in options_told().values())


def test_the_version_told_is_the_version_installed():
    try:
        version = importlib.metadata.version("callback-priority")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is not installed here")
    assert get_provider_info()["versions"][0] == version
    assert get_provider_info()["package-name"] == "callback-priority"


def test_the_provider_information_satisfies_airflows_schema():
    pytest.importorskip("airflow")
    from airflow.providers_manager import _create_provider_info_schema_validator

    _create_provider_info_schema_validator().validate(get_provider_info())


def test_telling_imports_nothing_of_airflow_or_sqlalchemy():
    program = (
        "import sys; from callback_priority.adapter.provider import get_provider_info; get_provider_info();"
        "sys.exit(', '.join({'airflow', 'sqlalchemy', 'alembic'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_reference_page_is_what_the_options_say():
    tool = runpy.run_path(str(ROOT / "tools" / "configuration_reference.py"))
    page = (ROOT / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
    assert page == tool["render"](page), "run: python tools/configuration_reference.py"
