"""The loop of a process that forks a child for each job that comes over a socket.

A job is one message of JSON with descriptors beside it. The last descriptor is a pipe on which the child's end is
told: its exit status in one byte, 128 + n for signal n. The answer is the child's process id, and a descriptor of
the process where the system has such.

Standard library only, because it runs in clean interpreters. Source: the fork server of Python's multiprocessing.
"""

from __future__ import annotations

import array
import contextlib
import gc
import json
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

MAX_JOB = 2_000_000
Spawn = Callable[[dict[str, Any], list[int]], int]


def serve(descriptor: int, spawn: Spawn) -> None:
    """Serve jobs until the socket closes.

    Args:
        descriptor: the socket's.
        spawn: forks the child of a job and its descriptors, and returns its process id.
    """
    control = socket.socket(fileno=descriptor)
    watched: dict[int, int] = {}

    def reap(*_: Any) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            pipe = watched.pop(pid, None)
            if pipe is not None:
                code = os.waitstatus_to_exitcode(status)
                _tell(pipe, code if code >= 0 else 128 - code)

    gc.collect()
    gc.freeze()
    control.send(b"{}")
    signal.signal(signal.SIGCHLD, reap)
    while True:
        data, handles = _next(control)
        if not data:
            return
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        carried: list[int] = []
        try:
            child = spawn(json.loads(data), handles)
            watched[child] = handles.pop()
            carried = [os.pidfd_open(child)] if hasattr(os, "pidfd_open") else []
            answer: dict[str, Any] = {"pid": child}
        except OSError as error:
            answer = {"error": str(error)}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", carried))] if carried else []
        try:
            control.sendmsg([json.dumps(answer).encode()], rights)
        except OSError:
            return
        for handle in [*handles, *carried]:
            os.close(handle)


def close_all_but(keep: list[int]) -> None:
    """Close every descriptor of this process that is not in `keep`."""
    last = -1
    for handle in [*sorted(set(keep)), 1 << 16]:
        if handle > last + 1:  # `os.closerange(0, 0)` would close them all
            os.closerange(last + 1, handle)
        last = handle


def _tell(pipe: int, status: int) -> None:
    with contextlib.suppress(OSError):  # nobody waits any more
        os.write(pipe, bytes([status & 0xFF]))
    os.close(pipe)


def _next(control: socket.socket) -> tuple[bytes, list[int]]:
    """The next message: its length in four bytes, then the bytes; the descriptors come with the length."""
    head, ancillary, _, _ = control.recvmsg(4, socket.CMSG_SPACE(8 * 4), getattr(socket, "MSG_CMSG_CLOEXEC", 0))
    handles: list[int] = []
    for _, kind, raw in ancillary:
        if kind == socket.SCM_RIGHTS:
            values = array.array("i")
            values.frombytes(raw[: len(raw) - len(raw) % values.itemsize])
            handles += values
    length = int.from_bytes(head, "big")
    if len(head) < 4 or length > MAX_JOB:
        return b"", handles
    data = b""
    while len(data) < length:
        part = control.recv(length - len(data))
        if not part:
            return b"", handles
        data += part
    return data, handles
