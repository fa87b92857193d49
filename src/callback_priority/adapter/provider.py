"""What Airflow is told of this package through the ``apache_airflow_provider`` entry point.

Every Airflow process calls this at start, workers included, so it imports nothing of Airflow and does
nothing but build a dictionary.
"""

from __future__ import annotations

from callback_priority.policy.options import OPTIONS, SECTION, SECTION_DESCRIPTION

__all__ = ["get_provider_info"]


def get_provider_info() -> dict[str, object]:
    """The provider information, after Airflow's ``provider_info.schema.json``.

    Every option is marked as a template: Airflow passes other defaults through ``str.format``, which fails on
    the braces of JSON (``{}`` with an IndexError that ends the process).
    """
    return {
        "package-name": "callback-priority",
        "name": "Callback priority",
        "description": "Weighted fair sharing of slots between task instances and callbacks.\n",
        "versions": ["0.1.0"],
        "db-managers": ["callback_priority.adapter.db_manager.CallbackPriorityDBManager"],
        "config": {
            SECTION: {
                "description": SECTION_DESCRIPTION,
                "options": {
                    option.name: {
                        "description": option.description,
                        "version_added": option.version_added,
                        "type": option.type,
                        "example": option.example,
                        "default": option.default,
                        "is_template": True,
                    }
                    for option in OPTIONS
                },
            }
        },
    }
