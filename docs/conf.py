"""Sphinx configuration; `make docs` builds with warnings as errors."""

from __future__ import annotations

from importlib.metadata import version as installed_version

project = "callback-priority"
author = "the callback-priority authors"
copyright = "2026, the callback-priority authors"
release = installed_version("callback-priority")
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
default_role = "code"
nitpicky = True
html_theme = "furo"
html_title = f"callback-priority {release}"
