"""Callbacks of deadlines in a whole deployment: claimed, tried again, with honest reasons."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.deployment.shared import HERE, PATIENCE, RUN_ID, command

pytestmark = pytest.mark.timeout(300)

NAMES = ("reads", "raises", "comes_round", "is_killed")


def test_callbacks_of_deadlines_say_why_they_failed_and_come_round(deploy):
    airflow = deploy(
        backend="sqlite",
        dags=[HERE / "dags_deadlines" / "alarms.py"],
        callback_priority={
            "mode": "active",
            "callback_retry_on_failure": "deadline",
            "callback_max_attempts": 2,
            "callback_retry_delay_seconds": 1,
            "sweep_interval_seconds": 1,
        },
        options={**PATIENCE, "core": {"parallelism": 4}},
    )
    airflow.start()
    airflow.execute("INSERT INTO variable (key, val, is_encrypted) VALUES ('city', 'Ulm', false)")
    airflow.wait_for_dags("alarms")
    airflow.trigger("alarms", RUN_ID)
    airflow.wait_until(
        lambda: (
            airflow.value("SELECT count(*) FROM callback WHERE state IN ('success', 'failed')") == len(NAMES)
        ),
        "all have ended",
        120,
    )
    airflow.wait_until(
        lambda: not airflow.value("SELECT count(*) FROM callback_priority_item WHERE state != 'done'"),
        "all slots are free again",
    )

    told = {
        row.name.rpartition(".")[2]: row
        for row in airflow.rows(
            "SELECT unit.callback_id, unit.name, callback.state, callback.output, item.attempts, item.failures, unit.worker, unit.log"
            " FROM callback JOIN callback_priority_unit AS unit ON unit.callback_id = callback.id"
            " JOIN callback_priority_item AS item ON item.callback_id = callback.id"
        )
    }
    assert {name: (row.state, row.attempts) for name, row in told.items()} == {
        "reads": ("success", 1),
        "raises": ("failed", 2),
        "comes_round": ("success", 2),
        "is_killed": ("failed", 2),
    }
    assert told["raises"].output == "ValueError: no such channel"
    assert told["is_killed"].output.startswith(
        "the process was killed by SIGKILL while it ran odd_alerts.is_killed"
    )
    assert told["reads"].output is told["comes_round"].output is None
    assert "no such channel" in told["raises"].log
    assert all(row.worker for row in told.values())
    assert Counter(each["name"] for each in airflow.records(event="called")) == {
        "reads": 1,
        "raises": 2,
        "comes_round": 2,
        "is_killed": 2,
    }
    assert [each["city"] for each in airflow.records(name="reads")] == ["Ulm"]

    shown = command(airflow, "show", str(told["raises"].callback_id))
    assert shown["output"] == "ValueError: no such channel"
    assert shown["attempts"] == 2
