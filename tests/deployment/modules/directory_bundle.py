"""A bundle with versions: a directory each, and a file that names the newest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow.dag_processing.bundles.base import BaseDagBundle


class DirectoryBundle(BaseDagBundle):
    """The versions in a directory.

    Args:
        root: With ``newest``, a file that holds a version's name, and a directory for each version.
    """

    supports_versioning = True

    def __init__(self, *, root: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root)

    def initialize(self) -> None:
        if not self.path.is_dir():
            raise FileNotFoundError(f"there is no version {self.path.name}")
        super().initialize()

    @property
    def path(self) -> Path:
        return self.root / (self.version or self.get_current_version())

    def get_current_version(self) -> str:
        return (self.root / "newest").read_text(encoding="utf-8").strip()

    def refresh(self) -> None:
        """Nothing is fetched from anywhere."""
