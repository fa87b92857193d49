"""What all benchmarks share: ratios with limits, printed together, and an exit status that says so."""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from tests.support.airflow_env import AirflowHome, DatabaseTemplates, enter_airflow_home
from tests.support.postgres import PostgresServer, running_postgres

_DIRECTORY = Path(tempfile.mkdtemp(prefix="callback-priority-bench-"))
atexit.register(shutil.rmtree, _DIRECTORY, ignore_errors=True)
_HOME = AirflowHome.create(_DIRECTORY / "airflow")
if "airflow.settings" not in sys.modules:
    enter_airflow_home(_HOME)

Claim = Callable[[str, float, float], None]


@attrs.frozen
class _Ratio:
    name: str
    ratio: float
    limit: float

    @property
    def holds(self) -> bool:
        return self.ratio <= self.limit


_RATIOS = pytest.StashKey[list[_Ratio]]()


def pytest_configure(config: pytest.Config) -> None:
    """Start with no ratios."""
    config.stash[_RATIOS] = []


@pytest.fixture
def claim(request: pytest.FixtureRequest) -> Claim:
    """State that a ratio stays within its limit: ``claim(name, ratio, limit)``.

    It never fails the benchmark that calls it, so that one shortfall does not hide the others. All ratios
    are printed at the end, and the session ends non-zero if one falls short.
    """
    ratios = request.config.stash[_RATIOS]

    def state(name: str, ratio: float, limit: float) -> None:
        ratios.append(_Ratio(name, ratio, limit))

    return state


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """PostgreSQL as it is installed, but for a larger cache and no waiting for the disk."""
    with running_postgres({"shared_buffers": "256MB"}) as running:
        yield running


@pytest.fixture(scope="session")
def templates() -> DatabaseTemplates:
    """Migrated databases by the copy."""
    return DatabaseTemplates(home=_HOME, directory=_DIRECTORY)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the ratios, and which of them fall short."""
    ratios = config.stash[_RATIOS]
    if not ratios:
        return
    terminalreporter.section("ratios")
    width = max(len(ratio.name) for ratio in ratios)
    for ratio in ratios:
        verdict = "holds" if ratio.holds else "FALLS SHORT"
        line = f"{ratio.name:<{width}}  {ratio.ratio:>9.3f}  limit {ratio.limit:>9.3f}  {verdict}"
        terminalreporter.write_line(line, red=not ratio.holds)
    short = [ratio.name for ratio in ratios if not ratio.holds]
    if short:
        terminalreporter.write_line(
            f"{len(short)} of {len(ratios)} fall short: " + "; ".join(short), red=True
        )
    else:
        terminalreporter.write_line(f"all {len(ratios)} hold")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Turn a shortfall into an exit status."""
    if exitstatus == pytest.ExitCode.OK and not all(ratio.holds for ratio in session.config.stash[_RATIOS]):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
