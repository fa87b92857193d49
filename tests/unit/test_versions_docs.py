"""What the page of versions says is what the library knows and what the tests run on."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from callback_priority import compat
from callback_priority.compat.parts import PARTS, RUN, SLOT_LOOP, lacking, versions_of

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import versions_reference

    page = versions_reference.PAGE.read_text(encoding="utf-8")
    assert page == versions_reference.render(page)
    sys.modules.pop("versions_reference", None)


def test_every_version_is_run_by_make():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    [listed] = re.findall(r"^MATRIX := (.*)$", makefile, flags=re.MULTILINE)
    main = re.search(r"^apache-airflow==(\S+)$", (ROOT / "requirements/lock.txt").read_text(), re.MULTILINE)
    assert main is not None
    assert sorted([*listed.split(), main[1]]) == sorted(RUN)


@pytest.mark.parametrize("version", RUN)
def test_each_lock_is_of_its_version_and_names_no_host(version):
    lock = ROOT / "requirements" / f"matrix-{version}.txt"
    if not lock.exists():
        lock = ROOT / "requirements" / "lock.txt"
    text = lock.read_text(encoding="utf-8")
    assert f"\napache-airflow=={version}\n" in text
    assert f"\napache-airflow-core=={version}\n" in text
    assert "://" not in text


def test_the_slot_loop_is_at_work_on_every_version():
    assert {compat.series(version) for version in RUN} == set(SLOT_LOOP.series)
    assert all(SLOT_LOOP not in lacking(version) for version in RUN)


def test_a_version_of_which_nothing_is_known_lacks_every_part():
    assert lacking("3.9.1") == list(PARTS)
    assert versions_of("3.9") == []
