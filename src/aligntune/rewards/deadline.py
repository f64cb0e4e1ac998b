"""A deadline for user code: the call runs in a daemon thread, and the caller stops waiting in time.

    guard = Guard()
    guard.call(lambda: slow(text), deadline=2.0)      # DeadlineExceeded after 2 s

What it can and cannot do: a thread cannot be killed, so a call that overran goes on in the background until
it returns or the process ends (daemon threads do not keep it alive). Waiting stops on time wherever Python
can switch threads: in Python loops, sleeps, file and network access, and library calls that release the
interpreter lock. One C call that holds the lock for its whole time (a backtracking regular expression, a
power of huge integers) cannot be interrupted from the same process; the built-in rewards run such work in a
separate process (`aligntune.grading.worker`).
"""

from __future__ import annotations

import contextvars
import os
import queue
import threading
from collections.abc import Callable
from typing import Any

MAX_ABANDONED = 4
"""Overrun calls that may still be running before no more are started: each takes processor time from the
training."""


class DeadlineExceeded(Exception):
    """A call took longer than its deadline."""


class _Job:
    def __init__(self, fn: Callable[[], Any], context: contextvars.Context | None = None) -> None:
        self.fn = fn
        self.context = contextvars.copy_context() if context is None else context
        self.done = threading.Event()
        self.value: Any = None
        self.error: BaseException | None = None


class _Thread(threading.Thread):
    """Runs jobs one after the other until it is told to stop."""

    def __init__(self) -> None:
        super().__init__(name="aligntune-reward", daemon=True)
        self.jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()

    def run(self) -> None:
        while (job := self.jobs.get()) is not None:
            try:
                job.value = job.context.run(job.fn)
            except BaseException as e:  # handed to the caller, whatever it is: this thread has nobody else to tell
                job.error = e
            job.done.set()


def started(fn: Callable[[], Any]) -> Callable[[], Any]:
    """Begin `fn` in a thread of its own; what is returned waits for it, and gives its value or raises what it raised.

    The thread does not keep the process alive.
    """
    job, thread = _Job(fn), _Thread()
    thread.jobs.put(job)
    thread.jobs.put(None)
    thread.start()

    def wait() -> Any:
        job.done.wait()
        if job.error is not None:
            raise job.error
        return job.value

    return wait


class Guard:
    """One waiting thread, replaced when a call overruns. Use one guard per reward; calls come one at a time.

    Args:
        context: the context that every call runs in, which keeps what a call has set; None takes a copy of the caller's
            for each.
    """

    def __init__(self, context: contextvars.Context | None = None) -> None:
        self._context = context
        self._thread: _Thread | None = None
        self._abandoned: list[_Thread] = []
        self._pid = os.getpid()

    def call(self, fn: Callable[[], Any], deadline: float) -> Any:
        """Run `fn` and return its value, or raise what it raised.

        Args:
            deadline: seconds to wait.

        Raises:
            DeadlineExceeded: it did not return in time, or too many earlier calls are still running.
        """
        if self._pid != os.getpid():  # threads do not survive a fork
            self._thread, self._abandoned, self._pid = None, [], os.getpid()
        self._abandoned = [t for t in self._abandoned if t.is_alive()]
        if len(self._abandoned) >= MAX_ABANDONED:
            raise DeadlineExceeded(f"{len(self._abandoned)} earlier calls overran their deadline and are still running")
        if self._thread is None:
            self._thread = _Thread()
            self._thread.start()
        job = _Job(fn, self._context)
        self._thread.jobs.put(job)
        if not job.done.wait(deadline):
            self._thread.jobs.put(None)  # the thread ends as soon as the overrun call returns
            self._abandoned.append(self._thread)
            self._thread = None
            raise DeadlineExceeded(f"no result after {deadline:g} s")
        if job.error is not None:
            raise job.error
        return job.value

    def __del__(self) -> None:
        if self._thread is not None and self._pid == os.getpid():
            self._thread.jobs.put(None)
