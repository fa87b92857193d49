"""A mail server for tests: takes what it is sent and keeps it."""

from __future__ import annotations

import contextlib
import email
import email.policy
import threading
from collections.abc import Iterator
from email.message import EmailMessage
from typing import Any

import attrs
from aiosmtpd.controller import Controller

from tests.support.servers import free_port

__all__ = ["Mail", "MailSink", "running_mail_sink"]


@attrs.frozen(kw_only=True)
class Mail:
    """One message as it arrived.

    Args:
        sender: The envelope's.
        recipients: The envelope's.
        subject: Decoded.
        body: Decoded; the HTML part if there is one.
    """

    sender: str
    recipients: tuple[str, ...]
    subject: str
    body: str


@attrs.define(kw_only=True)
class MailSink:
    """A mail server on the loopback interface.

    Args:
        port: Where it listens, on 127.0.0.1.
    """

    port: int
    _mails: list[Mail] = attrs.field(factory=list, init=False)
    _lock: Any = attrs.field(factory=threading.Lock, init=False)

    @property
    def connection_uri(self) -> str:
        """What ``AIRFLOW_CONN_SMTP_DEFAULT`` has to be for Airflow to send its mails here."""
        return f"smtp://127.0.0.1:{self.port}/?disable_ssl=true&disable_tls=true&retry_limit=1&timeout=10"

    def mails(self) -> list[Mail]:
        """What has arrived, in order."""
        with self._lock:
            return list(self._mails)

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        """Take a message; aiosmtpd calls this."""
        message = email.message_from_bytes(envelope.original_content, policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        part = message.get_body(("html", "plain"))
        mail = Mail(
            sender=envelope.mail_from,
            recipients=tuple(envelope.rcpt_tos),
            subject=str(message["subject"]),
            body="" if part is None else str(part.get_content()).strip(),
        )
        with self._lock:
            self._mails.append(mail)
        return "250 kept"


@contextlib.contextmanager
def running_mail_sink() -> Iterator[MailSink]:
    """Serve in a thread of this process; stopped at the end."""
    sink = MailSink(port=free_port())
    controller = Controller(sink, hostname="127.0.0.1", port=sink.port)
    controller.start()
    try:
        yield sink
    finally:
        controller.stop()
