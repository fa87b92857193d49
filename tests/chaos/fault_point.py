"""A point in the critical section of Airflow's scheduler at which the process can be told to kill itself.

The supervisor writes the number of a statement into a file; at that statement, counted from the one that takes the
critical section's lock to the COMMIT that gives it back, the process sends itself SIGKILL. Where no section has
so many statements, it is the COMMIT of the last of a few. Nothing else differs from ``airflow scheduler``.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

from sqlalchemy import event
from sqlalchemy.engine import Engine

LOCK = "pg_try_advisory_xact_lock"
PATIENCE_SECTIONS = 25
"""How many critical sections without such a statement may pass."""
COMMITTED = 0
"""In place of a number: right after the COMMIT of a section that granted something to callbacks."""
GRANT = re.compile(r"UPDATE callback_priority_item SET .*\bgranted_at=(?!NULL)")


class FaultPoint:
    """Counts the statements of critical sections, and kills.

    Args:
        orders: The file in which the supervisor writes.
        kills: The file in which to write what was done, a line of JSON each.
        component: Who this is.
    """

    def __init__(self, orders: str, kills: str, component: str) -> None:
        self.orders = Path(orders)
        self.kills = Path(kills)
        self.component = component
        self.pid = os.getpid()
        self.section: object = None
        self.at = 0
        self.granted = False
        self.target: int | None = None
        self.sections = 0

    def install(self) -> None:
        """Listen to every connection of this process."""
        event.listen(Engine, "before_cursor_execute", self.before)
        event.listen(Engine, "after_cursor_execute", self.after)
        event.listen(Engine, "commit", self.commit)
        event.listen(Engine, "rollback", self.leave)

    def before(self, conn, _cursor, statement, *_rest) -> None:
        if os.getpid() != self.pid or conn is not self.section:
            return
        self.at += 1
        self.granted = self.granted or GRANT.match(statement) is not None
        if self.target == self.at:
            self.kill(statement)

    def after(self, conn, _cursor, statement, *_rest) -> None:
        if self.section is None and LOCK in statement and os.getpid() == self.pid:
            self.section = conn
            self.at = 0
            self.granted = False
            self.target = self.ordered()

    def commit(self, conn) -> None:
        if os.getpid() != self.pid or conn is not self.section:
            return
        if self.target is not None:
            self.sections += 1
            if self.target != COMMITTED and self.sections >= PATIENCE_SECTIONS:
                self.kill("COMMIT")
            if self.target == COMMITTED and self.granted:
                # The event comes before the COMMIT; what follows is another connection's or the next transaction's.
                event.listen(Engine, "before_cursor_execute", self.kill_after, once=True)
        self.leave(conn)

    def leave(self, conn) -> None:
        if conn is self.section:
            self.section = None

    def ordered(self) -> int | None:
        try:
            return int(self.orders.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def kill_after(self, *_) -> None:
        """The section is committed, and what was granted is in nobody's hands yet."""
        self.at = COMMITTED
        self.kill("after COMMIT")

    def kill(self, statement: str) -> None:
        """Say so, and do it."""
        if os.getpid() != self.pid:
            return
        line = {
            "component": self.component,
            "at": time.time(),
            "statement": self.at,
            "text": " ".join(statement.split())[:100],
        }
        with self.kills.open("ab", buffering=0) as file:
            file.write(json.dumps(line).encode() + b"\n")
        os.kill(self.pid, signal.SIGKILL)
