"""What all benchmarks share: ratios with limits, printed together, and an exit status that says so."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest

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
