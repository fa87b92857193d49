"""Look at reports of ``callback-priority simulate --report`` in a real Chromium, as a screen and a phone show them.

Run from the repository: ``.venv/bin/python tools/check_report.py REPORT.html [...] [--pictures FOLDER]``. Takes the Chromium that ``make test``
brings (`tools/fetch_browser.py`), or one on the path, or the one that the environment's ``CHROMIUM`` names.

It is an error if anything is fetched, the page scrolls sideways, text is smaller than 11 pixels, outside the page or pale, a plot has nothing
in it, or a mark can hardly be seen: 1280 and 400 pixels wide, light and dark.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from tests.support.browser import BROWSERS, browser, opened  # noqa: E402
from tests.support.pages import problems  # noqa: E402


def main() -> int:
    """Check each report.

    Returns:
        0 if nothing is wrong, 1 if something is, 2 if there is no browser.
    """
    parser = argparse.ArgumentParser(description="Look at reports in a real Chromium.")
    parser.add_argument("reports", nargs="+", type=Path, metavar="REPORT.html")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="put pictures of the pages there")
    arguments = parser.parse_args()
    path = browser()
    if path is None:
        sys.stderr.write(f"no browser: set CHROMIUM, or install one of {', '.join(BROWSERS)}\n")
        return 2
    if arguments.pictures:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
    wrong = 0
    with opened(path) as page:
        for report in arguments.reports:
            found = problems(page, report, arguments.pictures)
            wrong += len(found)
            sys.stdout.write(f"{report}: {len(found) or 'nothing'} wrong\n")
            sys.stdout.writelines(f"  {each}\n" for each in found)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
