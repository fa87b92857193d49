"""Faults at every point of a scheduler loop: which points there are is found out by watching one.

A point is a statement that this library sends, or a call that it makes or is entered by. Statements are watched
through SQLAlchemy's events, calls through the interpreter's own trace function, so new code has its points by itself.
Airflow's methods are Airflow's again where ours call them: what happens in there is no point, and what Airflow
calls of ours out of them is one.
"""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, Literal

import attrs
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

import callback_priority

__all__ = ["CallPoint", "Faults", "FunctionPoint", "InjectedError", "StatementPoint", "stock_code"]

_PACKAGE = str(Path(callback_priority.__file__).parent)
_OUTSIDE = ""
_STAND_IN = 9_753_124_680


class InjectedError(RuntimeError):
    """What is raised at a call."""


@attrs.frozen
class CallPoint:
    """A call that code of ours makes, or by which it is entered.

    Args:
        caller: The code that calls; empty for code that is not ours.
        place: Where in it, as the offset of an instruction.
        callee: The code that is called.
    """

    caller: str
    place: int
    callee: str

    def __str__(self) -> str:
        return f"call {self.caller or '(from outside)'}+{self.place} -> {self.callee}"


@attrs.frozen
class FunctionPoint:
    """A function of ours, at every call in the loop."""

    function: str

    def __str__(self) -> str:
        return f"function {self.function}"


@attrs.frozen
class StatementPoint:
    """A statement.

    Args:
        text: As it is sent.
        place: Which of those with the same text.
        how: ``raise`` instead of sending it; have the ``server`` fail it; or lose the ``connection`` before.
    """

    text: str
    place: int
    how: Literal["raise", "server", "connection"] = "raise"

    def __str__(self) -> str:
        return f"statement [{self.how}] #{self.place} {' '.join(self.text.split())[:150]}"


Point = CallPoint | FunctionPoint | StatementPoint


def stock_code() -> set[CodeType]:
    """The code of Airflow's methods that are replaced."""
    from callback_priority import compat

    found = set()
    for name, target in compat.replaced().items():
        method = inspect.unwrap(getattr(target.cls, name))
        found.add(getattr(method, "__func__", method).__code__)
    return found


def _name(code: CodeType) -> str:
    path = code.co_filename
    ours = path.startswith(_PACKAGE)
    path = path[len(_PACKAGE) + 1 :] if ours else "/".join(Path(path).parts[-2:])
    return f"{path}:{getattr(code, 'co_qualname', code.co_name)}:{code.co_firstlineno}"


@attrs.define
class Faults:
    """Records the points of what runs while it watches, and strikes at one of them.

    Args:
        lose_connection: Is handed a connection of the driver's and ends it at the server.
    """

    lose_connection: Callable[[Any], None] | None = None
    points: dict[Point, None] = attrs.field(factory=dict)
    entered: dict[CodeType, None] = attrs.field(factory=dict)
    struck: int = 0
    _target: Point | None = None
    _watching: bool = False
    _sent: Counter[str] = attrs.field(factory=Counter)
    _stock: set[CodeType] = attrs.field(factory=set)
    _ours: dict[CodeType, bool] = attrs.field(factory=dict)
    _whole: dict[FunctionType, CodeType] = attrs.field(factory=dict)

    @contextmanager
    def watching(self, target: Point | None = None, also: FunctionPoint | None = None) -> Iterator[None]:
        """Watch what this thread does while the block runs.

        Args:
            target: Where to strike; without one the points are recorded.
            also: A function that is broken besides.
        """
        from airflow import settings

        self._target, self.struck = target, 0
        self._sent.clear()
        self._stock = stock_code()
        calls = target is None or isinstance(target, CallPoint)
        if not isinstance(target, CallPoint):
            sa.event.listen(settings.engine, "before_cursor_execute", self._send, retval=True)
        self._watching = True
        with self._broken(also, tell=False), self._broken(target):
            if calls:
                sys.settrace(self._trace)
            try:
                yield
            finally:
                sys.settrace(None)
                self._watching = False
                if not isinstance(target, CallPoint):
                    sa.event.remove(settings.engine, "before_cursor_execute", self._send)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What the block does is not the library's doing."""
        watching, self._watching = self._watching, False
        trace = sys.gettrace()
        sys.settrace(None)
        broken = [(function, function.__code__) for function in self._whole]
        for function, whole in self._whole.items():
            function.__code__ = whole
        try:
            yield
        finally:
            for function, code in broken:
                function.__code__ = code
            self._watching = watching
            sys.settrace(trace)

    # Calls

    def _is_ours(self, code: CodeType) -> bool:
        found = self._ours.get(code)
        if found is None:
            found = self._ours[code] = code.co_filename.startswith(_PACKAGE)
        return found

    def _trace(self, frame: FrameType, event: str, arg: object) -> None:
        code, back = frame.f_code, frame.f_back
        ours = self._ours.get(code)
        if ours is None:
            ours = self._is_ours(code)
        by_us = back is not None and self._is_ours(back.f_code)
        if not (ours or by_us) or code in self._stock or code.co_filename.startswith("<frozen"):
            return
        if ours:
            self.entered.setdefault(code)
        caller, place = (_name(back.f_code), back.f_lasti) if by_us and back else (_OUTSIDE, 0)
        point = CallPoint(caller, place, _name(code))
        if self._target is None:
            self.points.setdefault(point)
        elif point == self._target and not self.struck:
            self.struck += 1
            raise InjectedError(str(point))

    # Functions

    @contextmanager
    def _broken(self, target: Point | None, *, tell: bool = True) -> Iterator[None]:
        """Break a function for as long as the block runs."""
        if not isinstance(target, FunctionPoint):
            yield
            return
        [function] = [each for each in _functions() if _name(each.__code__) == target.function]
        whole = self._whole[function] = function.__code__
        function.__code__ = _raising(whole, self._strike if tell else lambda: None)
        try:
            yield
        finally:
            function.__code__ = self._whole.pop(function)

    def _strike(self) -> None:
        if self._watching:
            self.struck += 1

    def functions(self) -> list[FunctionPoint]:
        """The functions of ours that were entered and can be broken; those made at run time cannot."""
        there = {each.__code__ for each in _functions()}
        return [FunctionPoint(_name(code)) for code in self.entered if code in there]

    # Statements

    def _send(
        self, connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool
    ) -> tuple[str, Any]:
        if not self._watching or not self._is_sent_by_us():
            return statement, parameters
        place = self._sent[statement]
        self._sent[statement] += 1
        target = self._target
        if target is None:
            self.points.setdefault(StatementPoint(statement, place))
        elif isinstance(target, StatementPoint) and (statement, place) == (target.text, target.place):
            self.struck += 1
            if target.how == "server":
                # No parameters at all would send it not even once.
                return "SELECT 1/0", [()] if many else ()
            if target.how == "raise":
                raise OperationalError(statement, None, InjectedError("the database failed"))
            assert self.lose_connection is not None
            self.lose_connection(connection.connection.dbapi_connection)
        return statement, parameters

    def _is_sent_by_us(self) -> bool:
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            if frame.f_code in self._stock:
                return False
            if self._is_ours(frame.f_code):
                return True
            frame = frame.f_back
        return False


def _functions() -> list[FunctionType]:
    """Every function and method of ours that is loaded, by its own code."""
    found: dict[CodeType, FunctionType] = {}
    for name, module in list(sys.modules.items()):
        if not name.startswith("callback_priority"):
            continue
        owners = [module, *(each for each in vars(module).values() if inspect.isclass(each))]
        for owner in owners:
            for value in list(vars(owner).values()):
                for function in _unwrapped(value):
                    if function.__code__.co_filename.startswith(_PACKAGE):
                        found.setdefault(function.__code__, function)
    return list(found.values())


def _unwrapped(value: object) -> Iterator[FunctionType]:
    if isinstance(value, property):
        for each in (value.fget, value.fset):
            if each is not None:
                yield from _unwrapped(each)
        return
    for each in (value, getattr(value, "__func__", None), getattr(value, "__wrapped__", None)):
        if isinstance(each, FunctionType):
            yield each


def _raising(whole: CodeType, strike: Callable[[], None]) -> CodeType:
    """Code that takes the place of a function's: a function's closure must stay as large as it was."""
    cells = [f"cell_{number}" for number in range(len(whole.co_freevars))]
    source = f"""
def make({", ".join(cells)}):
    def broken(*_, **__):
        ({"".join(f"{cell}, " for cell in cells)})
        strike = {_STAND_IN}
        strike()
    return broken
"""
    namespace: dict[str, Any] = {}
    exec(source, namespace)  # noqa: S102 - our own text
    code: CodeType = namespace["make"](*cells).__code__

    def struck() -> None:
        strike()
        raise InjectedError(_name(whole))

    # The code has the globals of the function that it stands in for, so it brings what it calls along.
    return code.replace(co_consts=tuple(struck if each == _STAND_IN else each for each in code.co_consts))
