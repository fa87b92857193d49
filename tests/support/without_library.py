"""An interpreter as after ``pip uninstall callback-priority``: all that is installed here, but not the library.

A virtual environment of links to what is in this one's. Nothing is copied or downloaded, and nothing about it is
pretended: the package cannot be imported, and there is no distribution in which Airflow could find entry points.
"""

from __future__ import annotations

import os
import subprocess
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path

import attrs

__all__ = ["WithoutLibrary"]

_OURS = "callback_priority"
_AIRFLOW = "from airflow.__main__ import main\nmain()\n"
_TIMEOUT_SECONDS = 120


@attrs.frozen(kw_only=True)
class WithoutLibrary:
    """A virtual environment without the library; made by `create`.

    Args:
        directory: Where it is.
    """

    directory: Path

    @classmethod
    def create(cls, directory: Path) -> WithoutLibrary:
        """Make one; takes a fraction of a second."""
        venv.EnvBuilder(symlinks=True, with_pip=False).create(directory)
        made = cls(directory=directory)
        [packages] = directory.glob("lib/python*/site-packages")
        for each in sorted(Path(sysconfig.get_path("purelib")).iterdir()):
            if _OURS not in each.name:
                (packages / each.name).symlink_to(each)
        # `airflow scheduler` and others look for the program on the path.
        program = made.python.with_name("airflow")
        program.write_text(f"#!{made.python}\n{_AIRFLOW}", encoding="utf-8")
        program.chmod(0o755)
        return made

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.directory / "bin" / "python"

    def environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        """Environment variables of an Airflow process of this one's, for a process of that one's."""
        path = os.pathsep.join([str(self.python.parent), variables.get("PATH", os.defpath)])
        modules = variables.get("PYTHONPATH", "").split(os.pathsep)
        left = [each for each in modules if not (Path(each) / _OURS).is_dir()]
        return {**variables, "PATH": path, "PYTHONPATH": os.pathsep.join(left)}

    def run(self, arguments: list[str], variables: Mapping[str, str]) -> str:
        """Run its interpreter to the end.

        Returns:
            What it printed.

        Raises:
            RuntimeError: It failed; with what it printed.
        """
        result = subprocess.run(
            [self.python, *arguments],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment(variables),
            timeout=_TIMEOUT_SECONDS,
        )
        if result.returncode:
            raise RuntimeError(f"python {' '.join(arguments)} ended {result.returncode}:\n{result.stdout}")
        return result.stdout

    def airflow(self, arguments: list[str], variables: Mapping[str, str]) -> str:
        """Run an ``airflow`` command of its to the end; as `run`."""
        return self.run(["-m", "airflow", *arguments], variables)
