"""Weighted fair sharing of Apache Airflow's scheduler slots between tasks and callbacks.

Importing the package does nothing: Airflow finds it through its entry points, see
`callback_priority.adapter`.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
