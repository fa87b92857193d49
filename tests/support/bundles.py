"""A Dag bundle that has versions, without git."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow.dag_processing.bundles.base import BaseDagBundle, BundleVersion

__all__ = ["DirectoryBundle"]


class DirectoryBundle(BaseDagBundle):
    """A directory whose version is the text of a file beside it, ``<directory>.version``."""

    supports_versioning = True

    def __init__(self, *, directory: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._directory = Path(directory)

    @property
    def path(self) -> Path:
        return self._directory

    def get_current_version(self) -> BundleVersion:
        """The version of what is there now."""
        return BundleVersion(version=self._directory.with_suffix(".version").read_text().strip())

    def refresh(self) -> None:
        """Nothing: it is always what is there."""
