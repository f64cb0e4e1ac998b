"""Take rights away from the present process: limits, capabilities, landlock, seccomp. Nothing can give them back.

The zygote's child calls these after its fork and before it reads the program. Only the standard library, by `ctypes`
and raw system calls, because this runs in a clean interpreter without packages. Linux on x86_64 and aarch64; the
aarch64 table is the kernel's generic one and has not been run.

Sources: landlock(7), seccomp(2), capabilities(7), the system call tables of Linux 6.12. The filter is a list of what is
refused, so a future system call is allowed until it is listed; landlock and the missing capabilities stand behind it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
from collections.abc import Sequence
from functools import lru_cache

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 22, 24, 36, 38
SECCOMP_MODE_FILTER = 2
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
CLONE_THREAD = 0x00010000
ARCH = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine to (column of the table, AUDIT_ARCH constant)."""

# Name: number on x86_64, number on aarch64; None where the machine has no such call.
DENIED: dict[str, tuple[int | None, int | None]] = {
    # sockets: none is needed, the program talks through a pair that it inherits, with read and write
    "socket": (41, 198), "connect": (42, 203), "accept": (43, 202), "sendto": (44, 206), "recvfrom": (45, 207),
    "sendmsg": (46, 211), "recvmsg": (47, 212), "bind": (49, 200), "listen": (50, 201), "socketpair": (53, 199),
    "accept4": (288, 242), "recvmmsg": (299, 243), "sendmmsg": (307, 269),
    # other processes: signals, memory, priorities
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "kcmp": (312, 272), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "setpriority": (141, 140), "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
    # new processes and programs
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    # namespaces, mounts, machine
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "sethostname": (170, 161), "setdomainname": (171, 162), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "acct": (163, 89), "quotactl": (179, 60), "syslog": (103, 116),
    "iopl": (172, None), "ioperm": (173, None), "personality": (135, 92), "fanotify_init": (300, 262),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "seccomp": (317, 277), "prctl": (157, 167),
    # rights
    "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143), "setgroups": (116, 159),
    "setresuid": (117, 147), "setresgid": (119, 149), "capset": (126, 91), "setrlimit": (160, 164),
    # files: nothing is made, changed or removed, and no memory that outlives the process
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "unlink": (87, None), "unlinkat": (263, 35),
    "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276), "link": (86, None), "linkat": (265, 37),
    "symlink": (88, None), "symlinkat": (266, 36), "truncate": (76, 45), "ftruncate": (77, 46), "mkdir": (83, None),
    "mkdirat": (258, 34), "rmdir": (84, None), "mknod": (133, None), "mknodat": (259, 33), "creat": (85, None),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "utimensat": (280, 88), "setxattr": (188, 5),
    "lsetxattr": (189, 6), "fsetxattr": (190, 7), "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195),
    "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192), "msgget": (68, 186),
    "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181),
}  # fmt: skip
CLONE, CLONE3, PRLIMIT, FCNTL, IOCTL = (56, 220), (435, 435), (302, 261), (72, 25), (16, 29)
FCNTL_DENIED = (8, 10, 15)
"""F_SETOWN, F_SETSIG, F_SETOWN_EX: they aim a signal at another process."""
IOCTL_DENIED = (0x8901, 0x8902, 0x5412)
"""FIOSETOWN, SIOCSPGRP: the same; TIOCSTI: type into a terminal."""

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def check(result: int, what: str) -> int:
    """The result of a C call.

    Raises:
        OSError: it is negative.
    """
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def prctl(option: int, value: int = 0, pointer: object = 0) -> None:
    """`prctl(2)`."""
    arguments = [ctypes.c_ulong(value), pointer if pointer else ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)]
    check(libc.prctl(ctypes.c_int(option), *arguments), f"prctl {option}")


def limit(*, cpu: int, memory: int, files: int, stack: int = 64 << 20, reserves: bool = False) -> None:
    """Hard limits of this process: CPU seconds, bytes of address space, open files; no files written, no core.

    Args:
        stack: bytes of the main stack, and of each thread's where it asks for none.
        reserves: the process maps far more address space than it uses: limit what it can write to (RLIMIT_DATA) alone.
    """
    for kind, value in (
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, resource.RLIM_INFINITY if reserves else memory),
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_NOFILE, files),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_STACK, stack),
    ):
        hard = resource.getrlimit(kind)[1]
        wanted = (
            value if hard == resource.RLIM_INFINITY else hard if value == resource.RLIM_INFINITY else min(value, hard)
        )
        resource.setrlimit(kind, (wanted, wanted))


def drop_capabilities() -> None:
    """Give up every capability for good; a root user is then an ordinary owner of root's files."""
    for number in range(64):
        try:
            prctl(PR_CAPBSET_DROP, number)
        except OSError:  # not ours to drop (no CAP_SETPCAP), or past the last one
            break
    header = struct.pack("=Ii", 0x20080522, 0)
    empty = struct.pack("=6I", *([0] * 6))
    check(libc.capset(header, empty), "capset")


def landlock(readable: Sequence[str], executable: Sequence[str] = ()) -> None:
    """Allow reading below `readable` and nothing else of the file system; no TCP; no signals out.

    Args:
        readable: files and folders.
        executable: files that may be executed and read; nothing else can be.

    Raises:
        OSError: the kernel has no landlock.
    """
    restrict(ruleset(readable, executable))


def ruleset(readable: Sequence[str], executable: Sequence[str] = ()) -> int:
    """A descriptor of the rules of `landlock`, for `restrict`: one can serve many children.

    Raises:
        OSError: the kernel has no landlock.
    """
    version = check(libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1), "landlock")
    files = (1 << 13) - 1
    for since, bit in ((2, 13), (3, 14), (5, 15)):
        files |= (1 << bit) if version >= since else 0
    net = 3 if version >= 4 else 0
    scoped = 3 if version >= 6 else 0
    attributes = struct.pack("=QQQ", files, net, scoped)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = check(libc.syscall(LANDLOCK_CREATE, attributes, ctypes.c_size_t(size), 0), "landlock_create_ruleset")
    for path in [*readable, *executable]:
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        rights = (1 << 2) | ((1 << 3) if os.path.isdir(path) else 0)  # read a file; list a folder
        rights |= 1 if path in executable else 0
        rule = struct.pack("=Qi", rights, handle)
        check(libc.syscall(LANDLOCK_ADD, rules, 1, rule, 0), f"landlock_add_rule {path}")
        os.close(handle)
    return rules


def restrict(rules: int) -> None:
    """Put the rules of `ruleset` on this process, and close them.

    Raises:
        OSError: the kernel refuses.
    """
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    check(libc.syscall(LANDLOCK_RESTRICT, rules, 0), "landlock_restrict_self")
    os.close(rules)


def seccomp(allow: tuple[str, ...] = ()) -> None:
    """Install the filter of system calls.

    Args:
        allow: names of the table that are let through all the same.

    Raises:
        OSError: the machine is neither x86_64 nor aarch64, or the kernel has no seccomp.
    """
    program = build(platform.machine(), allow)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    code = ctypes.create_string_buffer(program)
    head = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(head))


@lru_cache(maxsize=8)
def build(machine: str, allow: tuple[str, ...] = ()) -> bytes:
    """The filter of a machine, as classic BPF instructions of 8 bytes; built once, before children are forked.

    Raises:
        OSError: there is no table for the machine.
    """
    if machine not in ARCH:
        raise OSError(38, f"no system call table for {machine}")
    column, arch = ARCH[machine]
    program = _Program()
    program.load(4)
    program.unless(arch, KILL)
    program.load(0)
    if column == 0:
        program.at_least(0x40000000, KILL)  # the x32 interface has numbers of its own
    program.without_flag(CLONE[column], 0, CLONE_THREAD, EPERM)
    program.argument_not(PRLIMIT[column], 0, 0, EPERM)
    program.argument_in(FCNTL[column], 1, FCNTL_DENIED, EPERM)
    program.argument_in(IOCTL[column], 1, IOCTL_DENIED, EPERM)
    denied = {numbers[column]: EPERM for name, numbers in DENIED.items() if name not in allow}
    denied[CLONE3[column]] = ENOSYS  # its flags are in memory; the C library then calls clone
    program.search({number: action for number, action in denied.items() if number is not None})
    return program.code


class _Program:
    """A classic BPF program over `struct seccomp_data`; the accumulator holds the call's number between its parts."""

    def __init__(self) -> None:
        self.code = b""

    def _add(self, code: int, yes: int, no: int, value: int) -> None:
        self.code += struct.pack("=HBBI", code, yes, no, value)

    def load(self, offset: int) -> None:
        self._add(0x20, 0, 0, offset)

    def returns(self, action: int) -> None:
        self._add(0x06, 0, 0, action)

    def equal(self, value: int, action: int) -> None:
        """Return `action` where the accumulator is `value`."""
        self._add(0x15, 0, 1, value)
        self.returns(action)

    def search(self, actions: dict[int, int]) -> None:
        """Return the action of the accumulator, else allow it, by halving.

        The kernel walks a new filter for every call there is, which makes a list of 120 comparisons cost a millisecond.
        """
        starts = {0: ALLOW}
        for number, action in sorted(actions.items()):
            starts[number] = action
            starts.setdefault(number + 1, actions.get(number + 1, ALLOW))
        self.code += _halved(sorted(starts.items()))

    def unless(self, value: int, action: int) -> None:
        self._add(0x15, 1, 0, value)
        self.returns(action)

    def at_least(self, value: int, action: int) -> None:
        self._add(0x35, 0, 1, value)
        self.returns(action)

    def without_flag(self, call: int, argument: int, flag: int, action: int) -> None:
        """Return `action` for `call` where the argument lacks the flag, else allow it."""
        self._add(0x15, 0, 4, call)
        self.load(16 + 8 * argument)
        self._add(0x45, 1, 0, flag)
        self.returns(action)
        self.returns(ALLOW)

    def argument_not(self, call: int, argument: int, value: int, action: int) -> None:
        """Return `action` for `call` where the argument is not `value`, else allow it."""
        self._add(0x15, 0, 4, call)
        self.load(16 + 8 * argument)
        self._add(0x15, 1, 0, value)
        self.returns(action)
        self.returns(ALLOW)

    def argument_in(self, call: int, argument: int, values: tuple[int, ...], action: int) -> None:
        """Return `action` for `call` where the argument is one of `values`, else allow it."""
        self._add(0x15, 0, 2 + 2 * len(values), call)
        self.load(16 + 8 * argument)
        for value in values:
            self.equal(value, action)
        self.returns(ALLOW)


def _halved(starts: list[tuple[int, int]]) -> bytes:
    """Instructions that return the action of the last start which is not above the accumulator."""
    if len(starts) == 1:
        return struct.pack("=HBBI", 0x06, 0, 0, starts[0][1])
    half = len(starts) // 2
    below, above = _halved(starts[:half]), _halved(starts[half:])
    return struct.pack("=HBBI", 0x35, len(below) // 8, 0, starts[half][0]) + below + above
