"""The package's side of the sandbox's two interpreters: starting them, handing them jobs, ending what they forked.

    server = Server("grader.py", [], ["-I"])
    child = server.submit(job, [channel, result])
    child.status(seconds=1.0)                     # exit status, or None while it runs
    child.end()

See `server` for the other side of the socket. It knows nothing of programs and tests.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aligntune import errors

STARTUP = 30.0
"""Seconds that an interpreter may take to start: some hundredths when idle."""


class Server:
    """One of the two interpreters, and the socket to it."""

    def __init__(self, script: str, arguments: list[str], options: list[str]) -> None:
        self.command = [sys.executable, *options, str(Path(__file__).with_name(script))]
        self.arguments = arguments
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._owner = 0

    def submit(self, job: dict[str, Any], handles: Sequence[int]) -> Child:
        """Start a job; the descriptors stay the caller's to close.

        Raises:
            errors.EnvironmentError: the interpreter does not start, or cannot fork.
        """
        data = json.dumps(job).encode("utf-8", "surrogatepass")
        reading, writing = os.pipe()
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, reading)
            try:
                with self._lock:
                    answer, carried = self._ask(data, [*handles, writing])
            finally:
                os.close(writing)
            if "error" in answer:
                raise errors.EnvironmentError(
                    f"the sandbox cannot start a process: {answer['error']}",
                    hint="free memory, or raise the limit of processes (ulimit -u)",
                )
            undo.pop_all()  # the child owns it now
        return Child(answer["pid"], carried[0] if carried else None, reading)

    def _ask(self, data: bytes, handles: list[int]) -> tuple[dict[str, Any], list[int]]:
        for attempt in (1, 2):
            if self._process is None or self._process.poll() is not None or self._owner != os.getpid():
                self._start()
            assert self._socket is not None
            try:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", handles))]
                self._socket.sendmsg([len(data).to_bytes(4, "big")], rights)
                self._socket.sendall(data)
                return self._answer()
            except (OSError, EOFError) as error:
                self.stop()
                if attempt == 2:
                    raise errors.EnvironmentError(
                        f"the sandbox's process ended: {error}", hint=f"run: {' '.join(self.command)} 0"
                    ) from error
        raise AssertionError

    def _answer(self) -> tuple[dict[str, Any], list[int]]:
        assert self._socket is not None
        data, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(4))
        if not data:
            raise EOFError("no answer")
        carried: list[int] = []
        for _, kind, raw in ancillary:
            if kind == socket.SCM_RIGHTS:
                values = array.array("i")
                values.frombytes(raw)
                carried += values
        return json.loads(data), carried

    def _start(self) -> None:
        if os.name != "posix":
            raise errors.EnvironmentError("the code sandbox needs Linux or macOS", hint="on Windows, run in WSL")
        if self._owner == os.getpid():
            self.stop()
        ours, theirs = socket.socketpair()
        ours.settimeout(STARTUP)
        command = [*self.command, str(theirs.fileno()), *self.arguments]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"LC_ALL": "C.UTF-8"},
            cwd="/",
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        self._socket, self._owner = ours, os.getpid()
        try:
            hello = ours.recv(100)
        except TimeoutError:
            hello = b""
        if not hello:
            self.stop()
            raise errors.EnvironmentError("the sandbox's interpreter did not start", hint=f"run: {' '.join(command)}")

    def stop(self) -> None:
        """End the interpreter and reap it."""
        process, self._process = self._process, None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.wait()


class Child:
    """A process that a server forked: it is ended here, and its status comes over a pipe."""

    def __init__(self, pid: int, pidfd: int | None, status: int) -> None:
        self.pid, self._pidfd, self._status = pid, pidfd, status

    def status(self, seconds: float) -> int | None:
        """Exit status (128 + n for signal n), waited for so long; None while it runs."""
        if not select.select([self._status], [], [], max(seconds, 0.0))[0]:
            return None
        data = os.read(self._status, 1)
        return data[0] if data else 255

    def end(self) -> None:
        """Kill it, whatever it does, and close what belongs to it."""
        with contextlib.suppress(ProcessLookupError):
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            else:
                os.kill(self.pid, signal.SIGKILL)
        for handle in (self._pidfd, self._status):
            if handle is not None:
                os.close(handle)
