"""A clean interpreter that runs the tests of one program in a process of its own. Run as `python -I grader.py FD`.

It sees the tests and never the program: the functions under test are proxies, whose arguments and results cross to
the locked process as plain values (`wire`). An exception of a builtin type crosses by name; everything else that a
program may return, print or do stays on its side. The process ends with its program, so a test that hangs is ended too.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import os
import sys
import time
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import server  # type: ignore[import-not-found]
import wire  # type: ignore[import-not-found]

sys.path.pop(0)


class CandidateError(Exception):
    """The program raised something that is no builtin exception, or returned what cannot cross."""


class ChannelError(BaseException):
    """The program's process is gone, too slow, or does not keep to the protocol; no test may catch it."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Line:
    """The way to the program's process, with the deadline of all tests."""

    def __init__(self, channel: int, deadline: float) -> None:
        self.channel, self.deadline = channel, deadline

    def ask(self, about: str, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for the answer.

        Raises:
            ChannelError: no answer in time, none at all, or one that nobody asked for.
        """
        try:
            if wire.pending(self.channel):
                raise ChannelError("protocol", "the program wrote an answer before it was asked")
            wire.send(self.channel, request)
            reply = wire.receive(self.channel, self.deadline)
        except TimeoutError:
            raise ChannelError("timeout", f"{about} gave no answer in time") from None
        except (EOFError, OSError):
            raise ChannelError("died", f"the program's process ended in {about}") from None
        except wire.WireError as error:
            raise ChannelError("protocol", str(error)) from None
        if type(reply) is not dict:
            raise ChannelError("protocol", "the program's answer is no message")
        return reply


class Proxy:
    """A function, class or object of the program: called, read and written there, equal to itself alone.

    Raises:
        Exception: of the builtin type that the program raised, or `CandidateError`.
        ChannelError: no answer in time, or none at all.
    """

    __slots__ = ("_line", "_name", "_number")

    def __init__(self, line: Line, name: str, number: int | None = None) -> None:
        for slot, value in (("_line", line), ("_name", name), ("_number", number)):
            object.__setattr__(self, slot, value)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._ask("call", arguments, named)

    def __getattr__(self, name: str) -> Any:
        return self._ask("get", (name,), {})

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", (name, value), {})

    def __eq__(self, other: object) -> bool:
        return self is other or (
            type(other) is Proxy and self._number is not None and bool(self._number == other._number)
        )

    def __hash__(self) -> int:
        return hash((self._name, self._number))

    def _ask(self, op: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        about = self._name
        target = {"f": about} if self._number is None else {"o": self._number}
        try:
            given, extra = wire.pack(list(arguments), 0, _number_of), wire.pack(named, 0, _number_of)
        except wire.WireError as error:
            raise CandidateError(f"an argument of {about} cannot cross: {error}") from error
        reply = self._line.ask(about, {"op": op, "a": given, "k": extra, **target})
        if "error" in reply:
            kind = getattr(builtins, str(reply["error"]), None)
            if isinstance(kind, type) and issubclass(kind, Exception):
                raise _made(kind, str(reply.get("text", "")))
            raise CandidateError(f"{about} raised {str(reply['error'])[:80]}: {str(reply.get('text', ''))[:200]}")
        try:
            value = wire.unpack(reply["value"], 0, self._object)
            changed = {int(i): wire.unpack(v, 0, self._object) for i, v in dict(reply.get("changed", {})).items()}
        except (wire.WireError, KeyError, ValueError, TypeError) as error:
            raise CandidateError(f"{about} answered with no plain value: {error}") from error
        for index, now in changed.items():
            _take_over(arguments[index] if 0 <= index < len(arguments) else None, now)
        return value

    def _object(self, number: int) -> Proxy:
        return Proxy(self._line, f"an object of {self._name}"[:80], number)


def _number_of(value: Any) -> int:
    if type(value) is Proxy and value._number is not None:
        return int(value._number)
    raise wire.WireError(f"a value of type {type(value).__name__}")


def _made(kind: type[Exception], text: str) -> Exception:
    try:
        return kind(text)
    except TypeError:  # a type that wants more arguments
        return CandidateError(f"{kind.__name__}: {text}")


def _take_over(given: Any, now: Any) -> None:
    """Let an argument that the program changed in place be changed for the test too."""
    if type(given) is list and type(now) is list:
        given[:] = now
    elif (type(given) is dict and type(now) is dict) or (type(given) is set and type(now) is set):
        given.clear()
        given.update(now)


def names_under_test(tests: list[str], entry_point: str | None) -> list[str]:
    """The names that setup and tests use and do not define: the program's functions and classes, and modules.

    A builtin's name is the program's only where it is `entry_point`, or where nothing else is called: else a program
    that defines its own `all` would judge itself.
    """
    used: list[str] = []
    called: list[str] = []
    known: set[str] = set()
    for test in tests:
        tree = ast.parse(test)
        stored = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
        stored |= {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        stored |= {a.arg for a in ast.walk(tree) if isinstance(a, ast.arg)}
        stored |= {
            (a.asname or a.name).split(".")[0]
            for n in ast.walk(tree)
            if isinstance(n, (ast.Import, ast.ImportFrom))
            for a in n.names
        }
        known |= stored
        used += sorted({n.id for n in ast.walk(tree) if isinstance(n, ast.Name)})
        called += [n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    own = [name for name in dict.fromkeys(used) if name not in known and not hasattr(builtins, name)]
    if entry_point is not None:
        own = list(dict.fromkeys([entry_point, *own]))
    return own or [name for name in dict.fromkeys(called) if name not in known]


def judge(job: dict[str, Any], channel: int, deadline: float) -> dict[str, Any]:
    """Run every test; how many passed, of how many, and the first reason for one that did not."""
    tests: list[str] = job["tests"]
    verdict: dict[str, Any] = {"passed": 0, "total": len(tests), "reason": "", "detail": ""}

    def failed(reason: str, detail: str) -> None:
        if not verdict["reason"]:
            verdict.update(reason=reason, detail=detail[:300])

    try:
        hello = wire.receive(channel, deadline)
    except TimeoutError:
        return {**verdict, "reason": "timeout", "detail": "the program did not load in time"}
    except (EOFError, OSError, wire.WireError) as error:
        return {**verdict, "reason": "died", "detail": f"the program's process ended while it loaded {error}".strip()}
    if type(hello) is not dict or "ok" not in hello:
        kind = str(hello.get("error", "?"))[:80] if type(hello) is dict else "?"
        text = str(hello.get("text", ""))[:200] if type(hello) is dict else ""
        return {**verdict, "reason": "load", "detail": f"{kind}: {text}"}
    space: dict[str, Any] = {"__name__": "tests"}
    line = Line(channel, deadline)
    for name in names_under_test([job["setup"], *tests], job["entry_point"]):
        known = name in sys.stdlib_module_names and name != job["entry_point"]
        space[name] = importlib.import_module(name) if known else Proxy(line, name)
    try:
        exec(compile(job["setup"], "setup", "exec"), space)
    except ChannelError as error:
        return {**verdict, "reason": error.reason, "detail": str(error)}
    except Exception as error:  # trusted text that may want what only the program has, such as its classes
        return {**verdict, "reason": "raised", "detail": f"the setup: {type(error).__name__}: {error}"}
    if job["entry_point"] is not None:
        space["candidate"] = space[job["entry_point"]]
    for number, test in enumerate(tests, start=1):
        try:
            exec(compile(test, f"test {number}", "exec"), space)
            if job["check"]:
                space["check"](space["candidate"])
        except ChannelError as error:
            failed(error.reason, str(error))
            break
        except AssertionError:
            failed("wrong", f"test {number} does not hold")
        except Exception as error:  # whatever a test raises is a test that failed
            failed("raised", f"test {number}: {type(error).__name__}: {error}")
        else:
            verdict["passed"] += 1
    return verdict


def spawn(job: dict[str, Any], handles: list[int]) -> int:
    """Fork the process that runs one program's tests; `handles`: channel, result pipe, status pipe."""
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        channel, result = handles[0], handles[1]
        server.close_all_but([0, 1, 2, channel, result])
        wire.send(result, judge(job, channel, time.monotonic() + job["seconds"]))
    finally:
        os._exit(0)


if __name__ == "__main__":
    server.serve(int(sys.argv[1]), spawn)
