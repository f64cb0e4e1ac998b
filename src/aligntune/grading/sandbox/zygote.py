"""A clean interpreter that forks one locked process for each program. Run as `python -I -S zygote.py FD LEVEL`.

It is started by exec with an empty environment and never sees tests, tokens or the package: what a child can find in
its memory is the standard library. Jobs come over a socket, each with the descriptors that the child may use; the
answer is a descriptor of the child's process (pidfd), by which the caller ends it.

Order in the child: namespaces (level `full`), session, descriptors, capabilities, limits, landlock, seccomp, and only
then is the program compiled. See `lockdown` for each.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import os
import platform
import signal
import socket
import sys
import sysconfig
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lockdown  # type: ignore[import-not-found]
import server  # type: ignore[import-not-found]
import wire  # type: ignore[import-not-found]

sys.path.pop(0)

WARM = (
    "abc base64 bisect cmath collections copy csv dataclasses datetime decimal enum fractions functools hashlib heapq "
    "io itertools math numbers operator queue random re statistics string struct textwrap time typing unicodedata"
)
CLONE_NEW = {"NS": 0x00020000, "UTS": 0x04000000, "IPC": 0x08000000, "USER": 0x10000000, "PID": 0x20000000}
CLONE_NEW["NET"] = 0x40000000
READABLE = (
    "/dev/null",
    "/dev/urandom",
    "/dev/zero",
    "/usr/share/zoneinfo",
    "/etc/localtime",
    "/lib",
    "/lib64",
    "/usr/lib",
)
EXEC = ("execve",)
"""What the filter lets an interpreter of another language through, which landlock holds to itself."""
CHANGING = (list, dict, set)
"""Arguments that a function may change in place."""
LOAD_LIMIT = 256 << 20
"""Address space beyond what the zygote has, before the job's own limit is added."""


def readable_paths() -> list[str]:
    """What a child may read: the standard library and the system's shared libraries."""
    paths = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), *READABLE}
    libraries = sysconfig.get_config_var("LIBDIR")
    return [p for p in [*paths, libraries] if p and os.path.exists(p)]


def enter_namespaces() -> None:
    """Namespaces of its own for user, process ids, network, mounts, messages and host name.

    Raises:
        OSError: this system does not allow them.
    """
    uid, gid = os.getuid(), os.getgid()
    flags = 0
    for flag in CLONE_NEW.values():
        flags |= flag
    lockdown.check(lockdown.libc.unshare(ctypes.c_int(flags)), "unshare")
    for path, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{path}", "w") as out:
            out.write(text)


def lock(level: str, job: dict[str, Any], keep: list[int], readable: list[str], rules: int | None) -> None:
    """Take everything from the present process that the level takes.

    Args:
        rules: the zygote's landlock rules for `readable`; None where there are none.
    """
    os.setsid()
    with contextlib.suppress(OSError):
        lockdown.prctl(lockdown.PR_SET_PDEATHSIG, signal.SIGKILL)
    server.close_all_but(keep if rules is None else [*keep, rules])
    os.environ.clear()
    os.chdir("/")
    os.umask(0o777)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    if level == "full":  # those of its own user namespace; at `strong` the zygote has none to give
        lockdown.drop_capabilities()
    with open("/proc/self/statm") if os.path.exists("/proc/self/statm") else contextlib.nullcontext() as file:
        used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") if file else LOAD_LIMIT
    runs = job["mode"] == "exec"  # an interpreter takes this process's place, and maps memory of its own
    small = {"files": 64, "stack": 8 << 20, "reserves": job["reserves"]} if runs else {"files": 32}
    lockdown.limit(cpu=job["cpu"], memory=used + job["memory"], **small)
    if level == "weak":
        return
    if runs:
        if rules is not None:
            os.close(rules)
        lockdown.landlock([*readable, *job["readable"]], job["executable"])
    else:
        lockdown.restrict(lockdown.ruleset(readable) if rules is None else rules)
    lockdown.seccomp(EXEC if runs else ())


def spawn(level: str, job: dict[str, Any], handles: list[int], readable: list[str], rules: int | None) -> int:
    """Fork the child of one job; its process id. The child never returns."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        if level == "full":
            enter_namespaces()
            inner = os.fork()
            if inner:
                server.close_all_but([0, 1, 2])
                with contextlib.suppress(OSError):
                    lockdown.prctl(lockdown.PR_SET_PDEATHSIG, signal.SIGKILL)
                _, ended = os.waitpid(inner, 0)
                code = os.waitstatus_to_exitcode(ended)
                os._exit(code if code >= 0 else 128 - code)
        status = run(level, job, handles, readable, rules)
    finally:
        os._exit(status)


def run(level: str, job: dict[str, Any], handles: list[int], readable: list[str], rules: int | None) -> int:
    """The child: lock, then serve calls, run as a script, become an interpreter, or parse. Returns the exit status."""
    source = str(job["source"])
    keep = [0, 1, 2]
    channel = handles[0]
    if job["mode"] in ("script", "exec"):
        os.dup2(handles[0], 0)
        os.dup2(handles[1], 1)
    else:
        keep.append(channel)
    if job["mode"] == "probe":
        lock(level, job, keep, readable, rules)
        wire.send(channel, probe(int(job["parent"])))
        return 0
    lock(level, job, keep, readable, rules)
    if job["mode"] == "exec":
        os.execve(job["argv"][0], job["argv"], {"LC_ALL": "C.UTF-8"})  # noqa: S606 (no shell: as meant)
    if job["mode"] == "script":
        return run_script(source)
    return serve(source, channel, job["mode"] == "parse")


def run_script(source: str) -> int:
    """The program as `__main__`; 0, its own exit status, or 1 after an exception."""
    space = {"__name__": "__main__", "__builtins__": builtins}
    try:
        exec(compile(source, "program.py", "exec"), space)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        return finish(status & 0xFF)
    except MemoryError:
        return 71
    except BaseException:  # whatever a program raises ends it with status 1, as in an interpreter of its own
        return finish(1)
    return finish(0)


def finish(status: int) -> int:
    """The status, once standard output is written."""
    try:
        sys.stdout.flush()
    except BaseException:  # the program may have put anything in its place
        return status or 1
    return status


def serve(source: str, channel: int, parse_only: bool) -> int:
    """Load the program and answer calls of its functions until the channel closes."""
    send, receive, pack, unpack = wire.send, wire.receive, wire.pack, wire.unpack
    space = {"__name__": "program", "__builtins__": builtins}
    try:
        code = compile(source, "program.py", "exec")
        if not parse_only:
            exec(code, space)
    except BaseException as error:  # a program that does not load is an answer, not an end of this process
        send(channel, {"error": type(error).__name__, "text": brief(error)})
        return 0
    send(channel, {"ok": True})
    objects: list[object] = []

    def keep(value: object) -> int:
        objects.append(value)
        return len(objects) - 1

    while not parse_only:
        try:
            request = receive(channel)
        except (EOFError, OSError):
            return 0
        try:
            target: Any = objects[request["o"]] if "o" in request else space[request["f"]]
            arguments = unpack(request["a"], 0, objects.__getitem__)
            if request["op"] == "get":
                reply = {"value": pack(getattr(target, arguments[0]), 0, keep)}
            elif request["op"] == "set":
                setattr(target, *arguments)
                reply = {"value": None}
            else:
                before = [pack(value, 0, keep) for value in arguments]
                result = pack(target(*arguments, **unpack(request["k"], 0, objects.__getitem__)), 0, keep)
                after = [pack(value, 0, keep) for value in arguments]
                changed = {str(i): v for i, v in enumerate(after) if v != before[i] and type(arguments[i]) in CHANGING}
                reply = {"value": result, "changed": changed}
        except BaseException as error:  # what the program raises is the test's to judge
            reply = {"error": type(error).__name__, "text": brief(error)}
        send(channel, reply)
    return 0


def brief(error: BaseException) -> str:
    """The first 200 characters of a message, whatever its own `__str__` does."""
    try:
        return str(error)[:200].encode("utf-8", "replace").decode()
    except BaseException:  # an exception's own `__str__` may raise
        return ""


def probe(parent: int) -> dict[str, str]:
    """Try hostile acts; the name of each with what came of it, `denied` or `allowed`."""

    def attempt(act: Any) -> str:
        try:
            act()
        except (OSError, MemoryError):
            return "denied"
        return "allowed"

    return {
        "open a socket": attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()),
        "read /etc/passwd": attempt(lambda: os.close(os.open("/etc/passwd", os.O_RDONLY))),
        "read the parent's environment": attempt(lambda: os.close(os.open(f"/proc/{parent}/environ", os.O_RDONLY))),
        "write a file": attempt(lambda: os.close(os.open(f"/tmp/.probe-{parent}", os.O_CREAT | os.O_WRONLY))),
        "start a process": attempt(lambda: os._exit(0) if os.fork() == 0 else os.wait()),
        "signal the parent": attempt(lambda: os.kill(parent, 0)),
        "see the parent": "denied" if os.getpid() == 1 else "allowed",
    }


def main() -> None:
    """Serve jobs until the socket closes."""
    level = sys.argv[2]
    for name in WARM.split():
        __import__(name)
    if sys.platform == "linux":
        lockdown.prctl(lockdown.PR_SET_CHILD_SUBREAPER, 1)
    readable, rules = readable_paths(), None
    if level != "weak":
        with contextlib.suppress(OSError):  # the children meet the same error, and the level counts as not there
            if level == "strong":
                lockdown.drop_capabilities()
            rules = lockdown.ruleset(readable)
            for allow in ((), EXEC):
                lockdown.build(platform.machine(), allow)
    server.serve(int(sys.argv[1]), lambda job, handles: spawn(level, job, handles, readable, rules))


if __name__ == "__main__":
    main()
