"""SIGTERM as an interrupt: what a scheduler sends ends a command as Ctrl-C does, with its message and exit code 130.

    with terminable():
        load, train, evaluate, save

Left to the system, SIGTERM ends a process at once and without a word: the manifest would say `running` for ever. While
a run trains, `core.stopping` takes the signal over, finishes the step and writes a checkpoint; this is for the time
before and after, such as loading a model or the last evaluation.

It does not change what a forked process does, and leaves a SIGTERM that the caller has told to be ignored.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Terminated(KeyboardInterrupt):
    """SIGTERM, which reached this process alone; Ctrl-C in a terminal reaches the programs that it started, too."""


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` in the block (in the main thread; elsewhere Python cannot)."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        yield
        return
    own = os.getpid()

    def stop(number: int, frame: Any) -> None:
        if os.getpid() == own:
            raise Terminated
        signal.signal(number, signal.SIG_DFL)  # a forked worker, which its pool ends by this signal
        os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
