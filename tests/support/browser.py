"""A real Chromium without a window, spoken to over a pipe: what a page looks like, and what it does, and nothing to install for that.

The protocol is Chromium's own (``--remote-debugging-pipe``): JSON objects that end with a nought byte, commands on its file descriptor 3 and
answers on its file descriptor 4.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["BROWSERS", "Page", "browser", "opened"]

BROWSERS = (
    "chromium",
    "chromium-browser",
    "chromium-headless-shell",
    "chrome-headless-shell",
    "google-chrome",
    "google-chrome-stable",
)
"""What one is called; the environment's ``CHROMIUM`` names another."""
_PATIENCE_SECONDS = 60.0
_OPTIONS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",  # root may not use it, and a page of our own needs none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
)
_WITH_PIPES = """
import fcntl, os, sys
commands, answers, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
commands, answers = (fcntl.fcntl(each, fcntl.F_DUPFD, 5) for each in (commands, answers))
os.dup2(commands, 3)
os.dup2(answers, 4)
os.execv(path, sys.argv[3:])
"""
"""Puts the pipes where the browser looks for them, and becomes the browser."""


def browser() -> str | None:
    """The path of a browser that is installed, if one is: in this environment, where `make test` puts one, or on the machine."""
    if named := os.environ.get("CHROMIUM"):
        return shutil.which(named)
    path = os.pathsep.join([str(Path(sys.prefix) / "bin"), os.environ.get("PATH", os.defpath)])
    return next(filter(None, (shutil.which(each, path=path) for each in BROWSERS)), None)


class Page:
    """A page in the browser.

    Args:
        commands: The file descriptor that commands are written to.
        answers: The file descriptor that answers and events are read from.
    """

    def __init__(self, commands: int, answers: int) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._commands, self._answers = commands, answers
        self._number, self._unread, self._session = 0, b"", ""
        self._loaded = False
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self._call(f"{domain}.enable")

    def open(self, path: Path, *, width: int, dark: bool = False) -> None:
        """Show a file, in a window as wide as this.

        Args:
            path: The file.
            width: In CSS pixels.
            dark: Whether whoever looks at it prefers dark pages.
        """
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self.requests.clear()
        self.complaints.clear()
        self._loaded = False
        self._call("Page.navigate", url=path.resolve().as_uri())
        end = time.monotonic() + _PATIENCE_SECONDS
        while not self._loaded:
            self._read(end)

    def evaluate(self, script: str) -> object:
        """What an expression of JavaScript comes to in the page."""
        found = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"])
        return found["result"].get("value")

    def picture(self) -> bytes:
        """The whole page as a PNG."""
        found = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(found["data"])

    def _call(self, method: str, **parameters: object) -> dict:
        self._number += 1
        message: dict[str, object] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        rest = json.dumps(message).encode() + b"\0"
        while rest:
            rest = rest[os.write(self._commands, rest) :]
        end = time.monotonic() + _PATIENCE_SECONDS
        while True:
            answer = self._read(end)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                return answer["result"]

    def _read(self, end: float) -> dict:
        """The next answer or event; events are taken note of."""
        while b"\0" not in self._unread:
            if not select.select([self._answers], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError("the browser says nothing")
            more = os.read(self._answers, 1 << 20)
            if not more:
                raise EOFError("the browser has ended")
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\0")
        message = json.loads(line)
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Log.entryAdded":
            self.complaints.append(parameters["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))
        elif method == "Page.loadEventFired":
            self._loaded = True
        return message


@contextmanager
def opened(path: str) -> Iterator[Page]:
    """Start a browser for as long as the block lasts.

    Args:
        path: Of the browser.
    """
    read_commands, commands = os.pipe()
    answers, write_answers = os.pipe()
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        pipes = map(str, (read_commands, write_answers))
        process = subprocess.Popen(
            [*(sys.executable, "-c", _WITH_PIPES, *pipes, path), *_OPTIONS, f"--user-data-dir={profile}"],
            pass_fds=(read_commands, write_answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(read_commands)
        os.close(write_answers)
        try:
            yield Page(commands, answers)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(commands)
            os.close(answers)
