"""A program that this package starts, and that must not outlive whoever started it.

    process = subprocess.Popen([sys.executable, "-m", "aligntune", ...], env=child_environment(clean_environment()))

The child looks at its parent every second and ends when that is gone, however it ended: a comparison that is killed by
SIGKILL must not leave a run behind that holds a folder, which the comparison would find taken when it goes on. What
the child has saved stays.

It does not follow through programs that are not ours, and ends its own process only.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping

VARIABLE = "ALIGNTUNE_PARENT"
"""Environment variable with the process id to follow."""
EVERY = 1.0
"""Seconds between two looks."""


def child_environment(env: Mapping[str, str]) -> dict[str, str]:
    """`env` for a child that follows this process."""
    return {**env, VARIABLE: str(os.getpid())}


def follow_parent() -> None:
    """End with the process that `child_environment` named; called once at the start of a program.

    The variable is removed, so that nothing that this process starts takes it for its own.
    """
    if parent := os.environ.pop(VARIABLE, None):
        end_with(int(parent))


def end_with(parent: int) -> None:
    """End this process, with exit code 1, when the process `parent` is not its parent any more."""
    threading.Thread(target=_watch, args=(parent,), name="parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(EVERY)
    os._exit(1)
