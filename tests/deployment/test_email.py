"""Mails about tasks that no task process sends: from a worker they are those that the Dag processor sends."""

from __future__ import annotations

import email
import email.policy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.message import EmailMessage
from typing import Any

import attrs
import pytest
from aiosmtpd.controller import Controller

from tests.deployment.shared import HERE, PATIENCE, RUN_ID, command
from tests.support.deployment import deployed
from tests.support.servers import free_port
from tests.support.smtp import MailSink

pytestmark = pytest.mark.timeout(600)

DAG_IDS = ("mail_failure", "mail_retry")
LOGICAL_DATE = "2024-05-06T07:08:09+00:00"
VARYING_HEADERS = frozenset({"Content-Type", "Date"})
"""The random text between the parts of a message, and a moment."""
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TRACE = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@attrs.define(kw_only=True)
class WholeMailSink(MailSink):
    """Keeps headers as well."""

    messages: list[EmailMessage] = attrs.field(factory=list, init=False)

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        message = email.message_from_bytes(envelope.original_content, policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        self.messages.append(message)
        return await super().handle_DATA(_server, _session, envelope)


@contextmanager
def _running() -> Iterator[WholeMailSink]:
    sink = WholeMailSink(port=free_port())
    controller = Controller(sink, hostname="127.0.0.1", port=sink.port)
    controller.start()
    try:
        yield sink
    finally:
        controller.stop()


@attrs.frozen(kw_only=True)
class Sent:
    """What a deployment has sent.

    Args:
        messages: One for each Dag.
        sink: What took them.
        listed: What ``callback-priority list`` tells.
        requests: What ``callback-priority status`` tells of requests.
    """

    messages: Mapping[str, EmailMessage]
    sink: MailSink
    listed: list[Mapping[str, Any]]
    requests: list[Mapping[str, Any]]


def _provoke(directory, database_templates, postgres, callback_priority) -> Sent:
    with (
        _running() as sink,
        deployed(
            directory,
            databases=database_templates,
            postgres=postgres,
            dags=[HERE / "dags_email" / "mails.py"],
            callback_priority=callback_priority,
            # Links in a mail lead there.
            options={"api": {"base_url": "http://airflow.example.com"}, **PATIENCE},
            environment={"AIRFLOW_CONN_SMTP_DEFAULT": sink.connection_uri},
        ) as airflow,
    ):
        airflow.task_logs.mkdir(parents=True, exist_ok=True)
        for dag_id in DAG_IDS:
            # A file where the log directory has to be: the task's supervisor gives up before it asks to start.
            (airflow.task_logs / f"dag_id={dag_id}").touch()
        airflow.start()
        airflow.wait_for_dags(*DAG_IDS)
        for dag_id in DAG_IDS:
            airflow.trigger(dag_id, RUN_ID, logical_date=LOGICAL_DATE)
        airflow.wait_until(lambda: len(sink.messages) >= len(DAG_IDS), "two mails have been sent", 90)
        airflow.wait_until(
            lambda: not airflow.value("SELECT count(*) FROM callback_priority_item WHERE state != 'done'"),
            "nothing is under way",
        )
        found = {
            dag_id: next(each for each in sink.messages if f"dag_id='{dag_id}'" in str(each["Subject"]))
            for dag_id in DAG_IDS
        }
        listed, requests = [], []
        if callback_priority:
            listed = command(airflow, "list")["callbacks"]
            requests = command(airflow, "status")["requests"]
        return Sent(messages=found, sink=sink, listed=listed, requests=requests)


@pytest.fixture(scope="module")
def stock(tmp_path_factory, database_templates, postgres) -> Sent:
    """What the Dag processor sends."""
    return _provoke(tmp_path_factory.mktemp("email") / "stock", database_templates, postgres, None)


@pytest.fixture(scope="module")
def moved(tmp_path_factory, database_templates, postgres) -> Sent:
    """What a worker sends."""
    settings = {"mode": "active", "use_worker_callbacks": "all", "reconcile_interval_seconds": 2}
    return _provoke(tmp_path_factory.mktemp("email") / "moved", database_templates, postgres, settings)


def subject_of(message: EmailMessage) -> str:
    return _steady(str(message["Subject"]))


def body_of(message: EmailMessage) -> str:
    part = message.get_body(("html", "plain"))
    assert part is not None
    return _steady(part.get_content())


def _steady(text: str) -> str:
    """The text with the same identifiers in every run."""
    return _TRACE.sub("<trace>", _UUID.sub("<id>", text))


@pytest.mark.parametrize("dag_id", DAG_IDS)
def test_subject_body_and_recipients_are_those_of_the_dag_processor(stock, moved, dag_id):
    theirs, ours = stock.messages[dag_id], moved.messages[dag_id]
    assert subject_of(ours) == subject_of(theirs)
    assert body_of(ours) == body_of(theirs)
    assert f"http://airflow.example.com/dags/{dag_id}/runs/{RUN_ID}" in body_of(ours)
    tries = "Try 1 out of 2" if dag_id == "mail_retry" else "Try 1 out of 1"
    assert body_of(ours).startswith(tries)


@pytest.mark.parametrize("dag_id", DAG_IDS)
def test_all_headers_are_the_same_but_those_that_differ_from_mail_to_mail(stock, moved, dag_id):
    def headers(message: EmailMessage) -> list[tuple[str, str]]:
        return [
            (name, "" if name in VARYING_HEADERS else _steady(str(value))) for name, value in message.items()
        ]

    assert headers(moved.messages[dag_id]) == headers(stock.messages[dag_id])
    assert moved.messages[dag_id].get_content_type() == stock.messages[dag_id].get_content_type()


def test_each_mail_is_sent_once_to_the_same_people(stock, moved):
    envelopes = [
        sorted((mail.sender, mail.recipients, _steady(mail.subject)) for mail in sent.sink.mails())
        for sent in (stock, moved)
    ]
    assert envelopes[0] == envelopes[1]
    assert len(envelopes[1]) == len(DAG_IDS)


def test_mails_are_callbacks_of_their_own_kinds(moved):
    assert sorted((each["kind"], each["service_class"], each["state"]) for each in moved.listed) == [
        ("email_failure", "task_callback", "success"),
        ("email_retry", "task_callback", "success"),
    ]
    assert sorted((each["kind"], each["outcome"], each["requests"]) for each in moved.requests) == [
        ("email_failure", "routed", 1),
        ("email_retry", "routed", 1),
    ]
