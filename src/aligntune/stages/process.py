"""One command of a stage in a fresh process: what it said, how it ended, what it took.

>>> run_process(("info", "--json"), Path("info.log")).code
0

Its words go to the log file, its JSON document comes back. Ctrl-C and SIGTERM are passed on once each, so that a run
writes its checkpoint, and the process is waited for.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligntune.core.isolation import clean_environment
from aligntune.utils.parent import child_environment

LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: exit code; negative for a signal.
        out: its standard output.
        seconds: wall-clock time.
        memory: most resident memory of the process in bytes; None where the system does not tell.
    """

    code: int
    out: str = ""
    seconds: float = 0.0
    memory: int | None = None


Runner = Callable[[Sequence[str], Path], Ended]


def run_process(arguments: Sequence[str], log: Path, look: Callable[[], None] | None = None) -> Ended:
    """Run `aligntune ARGUMENTS` in a fresh interpreter.

    Args:
        arguments: of the command line.
        log: file that its standard error is appended to.
        look: called each `LOOK_SECONDS` while it runs.

    Raises:
        KeyboardInterrupt: it was interrupted; the process has ended.
    """
    start = time.monotonic()
    line = [sys.executable, "-m", "aligntune", *arguments, "-v"]
    with open(log, "ab") as errors, tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=errors,
            env=child_environment(clean_environment()),
            start_new_session=True,
        )
        with _passing_on(process) as asked, ExitStack() as unless_ended:
            unless_ended.callback(_end, process)  # `look` raised, and nobody would wait for it
            code, memory = _wait(process, look)
            unless_ended.pop_all()
        printed.seek(0)
        out = printed.read().decode("utf-8", "replace")
    if asked or code == 130:
        raise KeyboardInterrupt
    return Ended(code, out, time.monotonic() - start, memory)


def _wait(process: subprocess.Popen[bytes], look: Callable[[], None] | None) -> tuple[int, int | None]:
    if not hasattr(os, "wait4"):  # Windows
        while look is not None and process.poll() is None:
            look()
            time.sleep(LOOK_SECONDS)
        return process.wait(), None
    while look is not None:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        look()
        if ended:
            break
        time.sleep(LOOK_SECONDS)
    else:
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait()


@contextmanager
def _passing_on(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Signals that ask this process to stop go to the child, which has a session of its own; those that came."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def handler(number: int, frame: Any) -> None:
        asked.append(number)
        if process.returncode is None:
            os.kill(process.pid, number)

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, old in before.items():
            signal.signal(number, old)
