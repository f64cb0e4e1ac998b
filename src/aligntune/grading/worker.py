"""A process for work on untrusted text that may never end: it is ended at the deadline and started again.

    worker = Worker("math")
    worker.ask({"gold": "1/2", "answer": "0.5"}, deadline=5.0)      # {"equal": True}

The process is a clean interpreter (`python -I`, no environment but the search paths) that runs
`worker_main.py`. The caller waits on a pipe, so the deadline holds in any thread and whatever the text makes
the libraries do; a signal-based timeout holds only in the main thread, and not against every expression.
Requests from several threads queue up. A forked child starts a worker of its own. At exit all workers are
ended; where the process is killed instead, its workers see their input close. On Linux with landlock and seccomp the
worker locks itself (`worker_main.confine`), but for the task `sql`, which opens databases.

Source: Python's `subprocess` and `select`. On other systems it does not restrict what the worker may read.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from aligntune import errors

STARTUP = 60.0
"""Seconds that the worker may take to import its libraries: half a second when idle, many under load."""
_PACKAGES = {
    "math": ("math_verify", "latex2sympy2_extended", "sympy", "mpmath", "antlr4"),
    "regex": (),
    "schema": ("jsonschema", "jsonschema_specifications", "referencing", "rpds", "attr", "typing_extensions"),
    "sql": (),
}
_INSTALL = {"math": "math-verify==0.9.0", "schema": "'aligntune[rewards]'"}
_KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "VIRTUAL_ENV", "TMPDIR")
_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


class WorkerTimeout(Exception):
    """The request outlived its deadline; the worker was ended."""


class WorkerDied(Exception):
    """The worker ended in the middle of a request (out of memory, or killed)."""


class Worker:
    """One worker process and the pipes to it.

    Args:
        task: `math`, `regex`, `schema` or `sql`, see `worker_main`.
    """

    def __init__(self, task: str) -> None:
        self.task = task
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        _workers.add(self)

    @property
    def pid(self) -> int | None:
        """Process id of the running worker; None before the first request and after a timeout."""
        return self._process.pid if self._process else None

    def ask(self, request: dict[str, Any], deadline: float) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Args:
            request: JSON values.
            deadline: seconds for the work itself; starting the process and waiting for other threads come on
                top.

        Raises:
            WorkerTimeout: no answer in time.
            WorkerDied: the process ended.
            errors.EnvironmentError: the process cannot be started, or lacks a package.
        """
        line = json.dumps({**request, "deadline": deadline}).encode() + b"\n"
        with self._lock:
            answered = False
            try:
                if self._process is None or self._process.poll() is not None:
                    self.stop()
                    self._start()
                answer: dict[str, Any] = json.loads(self._exchange(line, deadline))
                answered = True
                return answer
            finally:
                if not answered:  # after an interrupt too: a late answer must not meet the next request
                    self.stop()

    def stop(self) -> None:
        """End the process and its session, and reap it. No error if there is none."""
        process, self._process, self._buffer = self._process, None, b""
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        process.wait()

    def _start(self) -> None:
        if os.name != "posix" or not sys.executable:
            raise errors.EnvironmentError(
                f"the worker for '{self.task}' needs a POSIX system and a Python executable",
                hint="run on Linux or macOS (on Windows: in WSL)",
            )
        command = [sys.executable, "-I", str(Path(__file__).with_name("worker_main.py")), self.task, *self._folders()]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={k: os.environ[k] for k in _KEPT if k in os.environ} | {"LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"},
            cwd="/",
            bufsize=0,
            start_new_session=True,  # Ctrl-C goes to the training alone, and the whole session can be ended
        )
        for pipe in (self._process.stdin, self._process.stdout):
            os.set_blocking(pipe.fileno(), False)  # type: ignore[union-attr]
        try:
            hello = json.loads(self._exchange(b"", STARTUP))
        except (WorkerTimeout, WorkerDied) as e:
            raise errors.EnvironmentError(
                f"the worker for '{self.task}' did not start: {e}", hint=f"run: {' '.join(command)}"
            ) from e
        if not hello["ready"]:
            raise errors.EnvironmentError(
                f"the worker for '{self.task}' lacks a package: {hello['error']}",
                hint=f"install it: pip install {_INSTALL[self.task]}",
            )

    def _folders(self) -> list[str]:
        """Where this interpreter finds the task's packages, for the clean one that ignores PYTHONPATH."""
        specs = [importlib.util.find_spec(name) for name in _PACKAGES[self.task]]
        return sorted({str(Path(s.origin).parent.parent) for s in specs if s is not None and s.origin})

    def _exchange(self, line: bytes, seconds: float) -> bytes:
        """Write `line`, read one line."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise WorkerDied("the worker is not running")
        source, sink = process.stdout.fileno(), process.stdin.fileno()
        end, rest = time.monotonic() + seconds, memoryview(line)
        while b"\n" not in self._buffer:
            left = end - time.monotonic()
            ready = select.select([source], [sink] if rest else [], [], max(left, 0)) if left > 0 else ([], [], [])
            if not ready[0] and not ready[1]:
                raise WorkerTimeout(f"no answer after {seconds:g} s")
            try:
                if ready[1]:
                    rest = rest[os.write(sink, rest) :]
                if ready[0]:
                    part = os.read(source, 1 << 16)
                    if not part:
                        raise WorkerDied(f"the worker for '{self.task}' ended")
                    self._buffer += part
            except BlockingIOError:
                continue
            except BrokenPipeError as e:
                raise WorkerDied(f"the worker for '{self.task}' ended") from e
        answer, _, self._buffer = self._buffer.partition(b"\n")
        return answer

    def _forget(self) -> None:
        """In a forked child: drop the parent's worker without ending it."""
        process, self._process, self._buffer, self._lock = self._process, None, b"", threading.Lock()
        if process is not None:
            process.returncode = 0  # not a child of this process: nothing to wait for
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def _stop_all() -> None:
    for worker in list(_workers):
        worker.stop()


def _forget_all() -> None:
    for worker in list(_workers):
        worker._forget()


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
