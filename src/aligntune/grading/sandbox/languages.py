"""Programs in another language than Python: which interpreter runs them, and what it may read.

    runner = find("perl")                  # Runner(command=("/usr/bin/perl", "-e"), ...)
    find("javascript", "/opt/node/bin/node")

The locked process (`lockdown`) takes the interpreter's place by `execve`, with the program's text as its last argument
and nothing of it on disk. What was taken away stays away: landlock and seccomp survive `execve`, and landlock lets the
process execute the interpreter and the dynamic loader alone, so that no other program of the system can be started. No
language may start a process, so a shell program has its builtins and nothing else; standard input is descriptor 0,
since there is no /dev/stdin. Node reserves much more address space than it uses, so RLIMIT_DATA limits its memory.

Source: execve(2), landlock(7), and the manuals of the interpreters. It judges whole output (`run_script`): functions of
these languages cannot be called from tests. An interpreter that is a script (a version manager's shim) is refused.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aligntune import errors

Language = Literal["python", "javascript", "perl", "bash", "sh", "ruby", "lua", "php"]
MAX_ARGUMENT = 120_000
"""Bytes of a program's text: Linux passes no argument of more than 131,072."""
LOADERS = (
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/ld-linux-aarch64.so.1",
    "/lib/ld-musl-x86_64.so.1",
    "/lib/ld-musl-aarch64.so.1",
)


@dataclass(frozen=True)
class _Known:
    """How a language's programs are run.

    Attributes:
        commands: names of its interpreter, the first that is installed is taken.
        arguments: what stands before the program's text.
        readable: folders of its library beyond /usr/lib and /lib.
        reserves: it maps far more address space than it uses.
        marks: what a fenced block of it is marked with.
        hello: a program that writes the line `ready`.
    """

    commands: tuple[str, ...]
    arguments: tuple[str, ...]
    readable: tuple[str, ...]
    marks: tuple[str, ...]
    hello: str
    reserves: bool = False


KNOWN: dict[str, _Known] = {
    "javascript": _Known(
        ("node", "nodejs"),
        ("-e",),
        ("/usr/share/nodejs", "/etc/ssl/openssl.cnf"),
        ("javascript", "js", "node"),
        "console.log('ready')",
        reserves=True,
    ),
    "perl": _Known(("perl",), ("-e",), ("/usr/share/perl", "/usr/share/perl5"), ("perl", "pl"), 'print "ready\\n"'),
    "bash": _Known(("bash",), ("--norc", "--noprofile", "-c"), (), ("bash", "sh", "shell"), "echo ready"),
    "sh": _Known(("sh",), ("-c",), (), ("sh", "bash", "shell"), "echo ready"),
    "ruby": _Known(("ruby",), ("-e",), ("/usr/share/rubygems-integration",), ("ruby", "rb"), "puts 'ready'"),
    "lua": _Known(("lua", "lua5.4", "lua5.3", "luajit"), ("-e",), ("/usr/share/lua",), ("lua",), "print('ready')"),
    "php": _Known(("php",), ("-n", "-r"), ("/usr/share/php",), ("php",), "echo 'ready', \"\\n\";"),
}
PYTHON_MARKS = ("python", "py", "python3")


@dataclass(frozen=True)
class Runner:
    """An interpreter that was found.

    Attributes:
        language: a key of `KNOWN`.
        command: its absolute path, links resolved, and the arguments before the program's text.
        readable: what it may read beyond the zygote's own list.
    """

    language: str
    command: tuple[str, ...]
    readable: tuple[str, ...]

    def job(self, program: str) -> dict[str, Any]:
        """What the zygote is told."""
        loaders = [path for path in LOADERS if os.path.exists(path)]
        return {
            "argv": [*self.command, program],
            "readable": list(self.readable),
            "executable": [self.command[0], *loaders],
            "reserves": KNOWN[self.language].reserves,
        }


def marks(language: str) -> tuple[str, ...]:
    """What a fenced block of the language is marked with.

    Raises:
        errors.ConfigurationError: an unknown language.
    """
    return PYTHON_MARKS if language == "python" else _known(language).marks


def find(language: str, interpreter: str | None = None) -> Runner:
    """The interpreter of a language.

    Args:
        language: a key of `KNOWN`.
        interpreter: its absolute path; None takes the first that PATH has.

    Raises:
        errors.ConfigurationError: an unknown language, or a path that is not absolute.
        errors.EnvironmentError: it is not installed, or is no program but a script.
    """
    known = _known(language)
    if interpreter is not None and not os.path.isabs(interpreter):
        raise errors.ConfigurationError(
            f"the interpreter {interpreter!r} is no absolute path",
            hint=f"write interpreter: /usr/bin/{known.commands[0]}",
        )
    found = interpreter or next((path for name in known.commands if (path := shutil.which(name))), None)
    if found is None or not os.access(found, os.X_OK) or os.path.isdir(found):
        raise errors.EnvironmentError(
            f"there is no interpreter for {language}: {found or ', '.join(known.commands)} is not installed",
            hint=f"install it, or name it by its absolute path: interpreter: /opt/bin/{known.commands[0]}",
        )
    path = os.path.realpath(found)
    with open(path, "rb") as file:
        program = file.read(4) == b"\x7fELF"
    if not program:
        raise errors.EnvironmentError(
            f"{found} is a script, not the interpreter of {language} itself",
            hint="name the program that it starts by its absolute path: interpreter: ...",
        )
    beside = Path(path).parent.parent / "lib"  # of an interpreter that is installed in a folder of its own
    own = [str(beside)] if beside.is_dir() and str(beside) not in ("/usr/lib", "/lib") else []
    readable = [path, "/etc/ld.so.cache", *known.readable, *own]
    return Runner(language, (path, *known.arguments), tuple(p for p in readable if os.path.exists(p)))


def _known(language: str) -> _Known:
    if language not in KNOWN:
        raise errors.ConfigurationError(f"no language {language!r}", hint=f"one of python, {', '.join(KNOWN)}")
    return KNOWN[language]
