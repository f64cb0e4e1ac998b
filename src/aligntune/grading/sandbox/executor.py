"""`SafeCodeExecutor`: run programs that nobody has read, and judge them where they cannot reach.

    with SafeCodeExecutor() as sandbox:
        result = sandbox.run_tests("def add(a, b):\\n    return a + b", ["assert add(1, 2) == 3"])
        result.verdict, result.passed, result.total          # "passed", 1, 1

Two clean interpreters stand ready. The zygote forks one locked process for each program (`zygote`, `lockdown`); it
has never seen tests, tokens or this package. The grader forks one process for each program's tests (`grader`), where
the program's functions are proxies and results cross as plain values (`wire`). So no exit code, print, patched
builtin or clever object decides a verdict.

Levels, found by trying hostile acts: `full` (namespaces, landlock, seccomp, no capabilities, limits), `strong` (without
namespaces), `weak` (limits only). `require` is the least that is accepted.

Source: the design and the 91 hostile programs of the project's measurements; landlock(7), seccomp(2). It is no proof:
kernel bugs, side channels and timing are out of its reach. Other languages: `languages`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import platform
import select
import signal
import socket
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from aligntune import errors
from aligntune.grading.sandbox import languages, wire
from aligntune.grading.sandbox.processes import STARTUP, Child, Server

Level = Literal["full", "strong", "weak"]
Verdict = Literal["passed", "failed", "error", "timeout", "refused"]
LEVELS: tuple[Level, ...] = ("weak", "strong", "full")
MAX_SOURCE = 150_000
"""Characters of a program; a longer one is refused as a wrong one."""
MACHINES = ("x86_64", "aarch64")
"""Machines with a table of system calls (`lockdown.ARCH`); aarch64's has been checked against the kernel's, not run."""
MUST_BE_DENIED = {
    "weak": (),
    "strong": (
        "open a socket",
        "read /etc/passwd",
        "read the parent's environment",
        "write a file",
        "start a process",
        "signal the parent",
    ),
}
MUST_BE_DENIED["full"] = (*MUST_BE_DENIED["strong"], "see the parent")
_executors: weakref.WeakSet[SafeCodeExecutor] = weakref.WeakSet()


class SandboxUnavailable(errors.EnvironmentError):
    """This system cannot isolate programs as strongly as required."""


class TimeoutException(errors.TrainingError):
    """A program outlived its deadline; raised only where the caller asked for exceptions (`CodeResult.check`)."""


@dataclass(frozen=True)
class CodeResult:
    """What became of a program.

    Attributes:
        verdict: `passed` (every test), `failed` (a test does not hold, or raised), `error` (it does not parse or load,
            or ended), `timeout`, or `refused` (too long, or it broke the protocol).
        passed: tests that hold.
        total: tests.
        detail: the first reason, at most 300 characters; from the program's own words, so never a verdict.
        seconds: wall time.
    """

    verdict: Verdict
    passed: int
    total: int
    detail: str
    seconds: float

    def check(self) -> CodeResult:
        """The result itself.

        Raises:
            TimeoutException: the verdict is `timeout`.
        """
        if self.verdict == "timeout":
            raise TimeoutException(f"the program did not end in time: {self.detail}", hint="raise timeout")
        return self


class SafeCodeExecutor:
    """Runs and judges programs, Python first; safe to use from several threads.

    Args:
        require: the least isolation that is accepted; `weak` protects nothing but memory and time.
        level: the isolation to use; None takes the strongest that this system offers.
        timeout: seconds for a program and all its tests.
        memory_mb: megabytes that a program may take beyond the interpreter's own.

    Raises:
        SandboxUnavailable: on first use, where the system offers less than `require`.
        errors.ConfigurationError: `level` is below `require`.
    """

    def __init__(
        self,
        *,
        require: Level = "strong",
        level: Level | None = None,
        timeout: float = 5.0,
        memory_mb: int = 512,
    ) -> None:
        if level is not None and LEVELS.index(level) < LEVELS.index(require):
            raise errors.ConfigurationError(
                f"level {level} is below the required {require}", hint=f"set require={level!r} to accept it"
            )
        self.require, self.timeout, self.memory_mb = require, timeout, memory_mb
        self._wanted: Level | None = level
        self._level: Level | None = None
        self._lock = threading.Lock()
        self._programs: Server | None = None
        self._runners: dict[tuple[str, str | None], languages.Runner] = {}
        self._graders = Server("grader.py", [], ["-I"])
        _executors.add(self)

    # ---- isolation -------------------------------------------------------------------------------------------------

    @property
    def level(self) -> Level:
        """The isolation in use, settled on first use.

        Raises:
            SandboxUnavailable: the system offers less than required.
        """
        with self._lock:
            if self._level is None:
                self._settle()
            assert self._level is not None
            return self._level

    def _settle(self) -> None:
        tried: list[str] = []
        choices = [self._wanted] if self._wanted else [lv for lv in reversed(LEVELS) if self._enough(lv)]
        for level in choices:
            server = Server("zygote.py", [level], ["-I", "-S"])
            open_doors = _probe(server, level)
            if not open_doors:
                self._programs, self._level = server, level
                return
            server.stop()
            tried.append(f"{level}: {', '.join(open_doors)}")
        raise SandboxUnavailable(
            f"this system does not isolate programs as required ({self.require}); a test program could: "
            + "; ".join(tried),
            hint="use Linux 5.13 or newer with landlock and seccomp, or accept weak isolation by name: require='weak'",
        )

    def _enough(self, level: Level) -> bool:
        return LEVELS.index(level) >= LEVELS.index(self.require)

    def describe(self) -> dict[str, str]:
        """The level in use, and what a test program was denied and allowed at it."""
        level = self.level
        assert self._programs is not None
        return {"level": level, **_acts(self._programs)}

    # ---- running ---------------------------------------------------------------------------------------------------

    def run_tests(
        self,
        program: str,
        tests: Sequence[str],
        *,
        entry_point: str | None = None,
        setup: str = "",
        check: bool = False,
        timeout: float | None = None,
    ) -> CodeResult:
        """Run tests against the functions of a program.

        Args:
            program: source text, not trusted.
            tests: source texts, trusted; each counts as one (`assert f(1) == 2`).
            entry_point: the function under test, called `candidate` in the tests too.
            setup: trusted source that runs before the tests (imports).
            check: the tests define `check(candidate)`, which is then called (HumanEval).
            timeout: seconds, in place of the executor's.
        """
        seconds = timeout or self.timeout
        started = time.monotonic()
        refused = self._refuse(program, len(tests))
        if refused:
            return refused
        job = {"tests": list(tests), "entry_point": entry_point, "setup": setup, "check": check, "seconds": seconds}
        with contextlib.ExitStack() as stack:
            ours, theirs = socket.socketpair()
            child = self._child("call", program, seconds, [theirs.fileno()], stack, theirs)
            reading, writing = os.pipe()
            stack.callback(os.close, reading)
            try:
                grader = self._graders.submit(job, [ours.fileno(), writing])
            finally:
                os.close(writing)
                ours.close()
            stack.callback(grader.end)
            try:
                verdict = wire.receive(reading, started + seconds + 1.0)
            except (EOFError, wire.WireError):
                verdict = {"passed": 0, "reason": "raised", "detail": "the tests ended their process"}
            except TimeoutError:
                verdict = {"passed": 0, "reason": "timeout", "detail": "the tests did not end in time"}
            if verdict["reason"] == "died" and (status := child.status(0.2)) is not None:
                verdict = _died(verdict, status)
        return _result(verdict, len(tests), time.monotonic() - started)

    def run_script(
        self,
        program: str,
        cases: Sequence[tuple[str, str]],
        *,
        timeout: float | None = None,
        language: languages.Language = "python",
        interpreter: str | None = None,
    ) -> CodeResult:
        """Run a program once for each case, with text on standard input, and compare all of its standard output.

        Equal means: the same lines, white space at their ends and empty lines at the end aside. A program must also end
        by itself, with status 0.

        Args:
            program: source text, not trusted; it runs as `__main__`.
            cases: (input, expected output) pairs.
            timeout: seconds for each case, in place of the executor's.
            language: what it is written in; others than Python need their interpreter (`languages`).
            interpreter: the interpreter's absolute path, in place of the first on PATH.

        Raises:
            errors.EnvironmentError: the interpreter is not installed, or does not run at this level.
        """
        started = time.monotonic()
        runner = None if language == "python" else self._runner(language, interpreter)
        refused = self._refuse(program, len(cases), runner)
        if refused:
            return refused
        passed, first = 0, ("", "")
        for number, (given, expected) in enumerate(cases, start=1):
            reason, detail = self._case(program, given, expected, timeout or self.timeout, runner)
            passed += not reason
            if reason and not first[0]:
                first = (reason, f"case {number}: {detail}")
        verdict = {"passed": passed, "reason": first[0], "detail": first[1]}
        return _result(verdict, len(cases), time.monotonic() - started)

    def _case(
        self, program: str, given: str, expected: str, seconds: float, runner: languages.Runner | None = None
    ) -> tuple[str, str]:
        deadline = time.monotonic() + seconds
        most = 4 * len(expected.encode("utf-8", "replace")) + 65_536
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(tempfile.TemporaryFile())
            source.write(given.encode("utf-8", "replace"))
            source.seek(0)
            reading, writing = os.pipe()
            stack.callback(os.close, reading)
            handles = [source.fileno(), writing]
            child = self._child("exec" if runner else "script", program, seconds, handles, stack, writing, runner)
            output = b""
            while select.select([reading], [], [], max(deadline - time.monotonic(), 0))[0]:
                part = os.read(reading, 65_536)
                if not part:
                    break
                output += part
                if len(output) > most:
                    return "wrong", f"more than {most} bytes of output"
            status = child.status(deadline - time.monotonic())
        if status is None:
            return "timeout", f"no end within {seconds:g} s"
        if status:
            return "died", f"it ended with status {status}"
        same = _lines(output.decode("utf-8", "replace")) == _lines(expected)
        return ("", "") if same else ("wrong", "another output")

    def parses(self, program: str) -> CodeResult:
        """Whether a program is Python; parsed in a locked process, because some texts bring the parser down."""
        started = time.monotonic()
        refused = self._refuse(program, 1)
        if refused:
            return refused
        with contextlib.ExitStack() as stack:
            ours, theirs = socket.socketpair()
            stack.callback(ours.close)
            self._child("parse", program, self.timeout, [theirs.fileno()], stack, theirs)
            try:
                answer = wire.receive(ours.fileno(), started + self.timeout)
            except TimeoutError:
                answer = {"reason": "timeout", "error": "no end in time"}
            except (EOFError, OSError, wire.WireError):
                answer = {"error": "the parser's process ended"}
        good = type(answer) is dict and "ok" in answer
        reason = "" if good else answer.get("reason", "load") if type(answer) is dict else "load"
        text = "" if good else f"{answer.get('error', '')}: {answer.get('text', '')}" if type(answer) is dict else ""
        return _result({"passed": int(good), "reason": reason, "detail": text}, 1, time.monotonic() - started)

    def run_many(self, jobs: Iterable[dict[str, Any]], *, workers: int | None = None) -> list[CodeResult]:
        """`run_tests` (or `run_script`, where a job has `cases`) for each mapping of arguments, side by side, in order.

        Args:
            workers: programs at once; None takes the number of processors.
        """
        listed = list(jobs)
        count = workers or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else workers or 2
        _ = self.level
        with ThreadPoolExecutor(max_workers=max(count, 1)) as pool:
            run: dict[bool, Callable[..., CodeResult]] = {True: self.run_script, False: self.run_tests}
            runs = [pool.submit(run["cases" in job], **job) for job in listed]
            return [future.result() for future in runs]

    # ---- parts -----------------------------------------------------------------------------------------------------

    def _refuse(self, program: str, total: int, runner: languages.Runner | None = None) -> CodeResult | None:
        if len(program) > MAX_SOURCE:
            return CodeResult("refused", 0, total, f"more than {MAX_SOURCE} characters of source", 0.0)
        if runner is None:
            return None
        if len(program.encode("utf-8", "replace")) > languages.MAX_ARGUMENT:
            return CodeResult("refused", 0, total, f"more than {languages.MAX_ARGUMENT} bytes of source", 0.0)
        if "\0" in program or (not program.isprintable() and any("\ud800" <= c <= "\udfff" for c in program)):
            return CodeResult("error", 0, total, "a NUL byte or half a character in the source", 0.0)
        return None

    def _runner(self, language: str, interpreter: str | None) -> languages.Runner:
        """The interpreter, once a first program of it has run as it should at this level."""
        found = self._runners.get((language, interpreter))
        if found is None:
            found = languages.find(language, interpreter)
            reason, detail = self._case(languages.KNOWN[language].hello, "", "ready", STARTUP, found)
            if reason:
                raise SandboxUnavailable(
                    f"{found.command[0]} does not run at level {self.level}: {detail}",
                    hint="name another interpreter by its absolute path, or judge this language elsewhere",
                )
            self._runners[language, interpreter] = found
        return found

    def _child(
        self,
        mode: str,
        program: str,
        seconds: float,
        handles: list[int],
        stack: contextlib.ExitStack,
        given: Any,
        runner: languages.Runner | None = None,
    ) -> Child:
        """Start a locked process; `given` (the end that it gets) is closed here."""
        _ = self.level
        assert self._programs is not None
        job: dict[str, Any] = {"mode": mode, "source": program, "cpu": int(seconds) + 2, "memory": self.memory_mb << 20}
        if runner is not None:
            job |= {"source": ""} | runner.job(program)
        try:
            child = self._programs.submit(job, handles)
        finally:
            os.close(given) if isinstance(given, int) else given.close()
        stack.callback(child.end)
        return child

    def close(self) -> None:
        """End both interpreters; the next use starts them again."""
        for server in (self._programs, self._graders):
            if server is not None:
                server.stop()

    def __enter__(self) -> SafeCodeExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _acts(server: Server) -> dict[str, str]:
    """What a test program under `server` was denied and allowed."""
    ours, theirs = socket.socketpair()
    job = {"mode": "probe", "source": "", "cpu": 10, "memory": 256 << 20, "parent": os.getpid()}
    with ours:
        try:
            child = server.submit(job, [theirs.fileno()])
        finally:
            theirs.close()
        try:
            answer = wire.receive(ours.fileno(), time.monotonic() + STARTUP)
        except (TimeoutError, EOFError, OSError, wire.WireError):
            return {}
        finally:
            child.end()
    return dict(answer)


def _probe(server: Server, level: Level) -> list[str]:
    """Hostile acts that `level` must deny and did not; the whole list where the level cannot be entered."""
    acts = _acts(server)
    if level != "weak" and sys.platform == "linux" and platform.machine() not in MACHINES:
        return [
            f"not start (there is no system call table for {platform.machine()}; there is for {', '.join(MACHINES)})"
        ]
    if not acts:
        return ["not start (the kernel or the container refuses this level)"]
    return [act for act in MUST_BE_DENIED[level] if acts.get(act) != "denied"]


def _died(verdict: dict[str, Any], status: int) -> dict[str, Any]:
    """A reason for the end of a process, from its status as the zygote saw it."""
    if status in (128 + signal.SIGXCPU, 128 + signal.SIGKILL):
        return {**verdict, "reason": "timeout", "detail": "it used up its processor time or memory"}
    how = f"signal {status - 128}" if status > 128 else f"status {status}"
    return {**verdict, "detail": f"{verdict['detail']} ({how})"}


VERDICTS: dict[str, Verdict] = {
    "timeout": "timeout",
    "protocol": "refused",
    "load": "error",
    "died": "error",
    "raised": "failed",
    "wrong": "failed",
}


def _result(verdict: dict[str, Any], total: int, seconds: float) -> CodeResult:
    whole = verdict["passed"] == total and not verdict["reason"]
    name: Verdict = "passed" if whole else VERDICTS[verdict["reason"]]
    return CodeResult(name, verdict["passed"], total, str(verdict["detail"])[:300], seconds)


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


@atexit.register
def _close_all() -> None:
    for executor in list(_executors):
        executor.close()
