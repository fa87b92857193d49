"""Every producer of callback requests: what stock Airflow calls, and what is called on workers instead."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.deployment.producers import DAG_FILE, PLUGIN, PRODUCERS, provoke_all


@pytest.mark.parametrize("executor", ["LocalExecutor", "CeleryExecutor"])
def test_stock_airflow_runs_what_its_producers_ask_for_in_the_dag_processor(deploy, mail_sink, executor):
    airflow = deploy(
        executor=executor,
        dags=[DAG_FILE],
        plugins=[PLUGIN],
        environment={"AIRFLOW_CONN_SMTP_DEFAULT": mail_sink.connection_uri},
    )
    seen = provoke_all(airflow, mail_sink, routed=False)
    for producer in PRODUCERS:
        if executor in producer.executors:
            calls = Counter(call["name"] for call in seen[producer.dag_id].calls)
            assert calls == {name: producer.stock_times for name in producer.calls if producer.stock_times}
            assert len(seen[producer.dag_id].mails) == producer.stock_times * producer.mails
    assert {call["component"] for each in seen.values() for call in each.calls} == {"dag-processor"}
