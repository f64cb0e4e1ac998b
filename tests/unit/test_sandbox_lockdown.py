"""The filter of system calls: its numbers against the kernel's own tables, and what it answers on each machine."""

from __future__ import annotations

import platform
import re
import struct
from pathlib import Path

import pytest

from aligntune.grading.sandbox import SafeCodeExecutor, SandboxUnavailable, executor, lockdown

HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"),
    "aarch64": ("/usr/include/asm-generic/unistd.h",),
}
OTHERS = {
    "clone": lockdown.CLONE, "clone3": lockdown.CLONE3, "prlimit64": lockdown.PRLIMIT, "fcntl": lockdown.FCNTL,
    "ioctl": lockdown.IOCTL,
}  # fmt: skip
NEEDED = {
    "read": (0, 63),
    "write": (1, 64),
    "openat": (257, 56),
    "mmap": (9, 222),
    "exit_group": (231, 94),
    "futex": (202, 98),
}


def table(machine: str) -> dict[str, int]:
    path = next((Path(p) for p in HEADERS[machine] if Path(p).exists()), None)
    if path is None:
        pytest.skip(f"no kernel headers for {machine} on this machine")
    text = path.read_text()
    found = {name: int(n) for name, n in re.findall(r"#define __NR(?:3264)?_([a-z0-9_]+)\s+([0-9]+)", text)}
    return found


@pytest.mark.parametrize("machine", list(lockdown.ARCH))
def test_numbers_are_the_kernels_own(machine: str) -> None:
    known, column = table(machine), lockdown.ARCH[machine][0]
    checked = 0
    for name, numbers in {**lockdown.DENIED, **OTHERS}.items():
        name = {"umount2": "umount2", "prlimit64": "prlimit64"}.get(name, name)
        if numbers[column] is None:
            assert name not in known, name
        elif name in known:  # a header may be older than a call
            assert known[name] == numbers[column], name
            checked += 1
    assert checked > 110
    assert {name: n[column] for name, n in NEEDED.items()} == {name: known[name] for name in NEEDED}


def answer(program: bytes, number: int, arch: int, arguments: tuple[int, ...] = ()) -> int:
    """What a filter returns for a call: an interpreter of the few BPF instructions that are used."""
    data = struct.pack("<iIQ6Q", number, arch, 0, *[*arguments, *[0] * 6][:6])
    at, held = 0, 0
    while True:
        code, yes, no, value = struct.unpack_from("<HBBI", program, 8 * at)
        at += 1
        if code == 0x20:
            (held,) = struct.unpack_from("<I", data, value)
        elif code == 0x06:
            return value
        else:
            holds = {0x15: held == value, 0x35: held >= value, 0x45: bool(held & value)}[code]
            at += yes if holds else no


@pytest.mark.parametrize("machine", list(lockdown.ARCH))
def test_the_filter_answers_each_call_as_meant(machine: str) -> None:
    column, arch = lockdown.ARCH[machine]
    program = lockdown.build(machine)
    for name, numbers in lockdown.DENIED.items():
        if numbers[column] is not None:
            assert answer(program, numbers[column], arch) == lockdown.EPERM, name
    for name, needed in NEEDED.items():
        assert answer(program, needed[column], arch) == lockdown.ALLOW, name
    listed = {n[column] for n in lockdown.DENIED.values()} | {n[column] for n in OTHERS.values()}
    assert {answer(program, number, arch) for number in range(600) if number not in listed} == {lockdown.ALLOW}
    assert answer(program, NEEDED["read"][column], 0x1234) == lockdown.KILL
    thread = 0x3D0F00
    assert answer(program, lockdown.CLONE[column], arch, (thread,)) == lockdown.ALLOW
    assert answer(program, lockdown.CLONE[column], arch, (17,)) == lockdown.EPERM
    assert answer(program, lockdown.CLONE3[column], arch) == lockdown.ENOSYS
    assert answer(program, lockdown.PRLIMIT[column], arch, (0,)) == lockdown.ALLOW
    assert answer(program, lockdown.PRLIMIT[column], arch, (4711,)) == lockdown.EPERM
    assert answer(program, lockdown.FCNTL[column], arch, (3, 8)) == lockdown.EPERM
    assert answer(program, lockdown.FCNTL[column], arch, (3, 1)) == lockdown.ALLOW
    for request in lockdown.IOCTL_DENIED:
        assert answer(program, lockdown.IOCTL[column], arch, (0, request)) == lockdown.EPERM
    if machine == "x86_64":
        assert answer(program, 0x40000000 + 59, arch) == lockdown.KILL
    opened = lockdown.build(machine, allow=("execve",))
    assert answer(opened, lockdown.DENIED["execve"][column] or 0, arch) == lockdown.ALLOW
    assert answer(opened, lockdown.DENIED["execveat"][column] or 0, arch) == lockdown.EPERM


def test_other_machines_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuple(lockdown.ARCH) == executor.MACHINES
    with pytest.raises(OSError, match="no system call table for riscv64"):
        lockdown.build("riscv64")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(SandboxUnavailable, match="no system call table for riscv64") as caught:
        _ = SafeCodeExecutor().level
    assert "require='weak'" in caught.value.hint
