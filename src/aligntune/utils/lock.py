"""One run per folder: a lock that the system lets go of when its process ends, however that ended.

`.run.lock` inside a run folder is locked by the system (POSIX record lock) while its run goes on, and says who holds
it. A lock of a dead process of this machine is free at once. A file that names another machine is refused even where
the system gives the lock, because not every shared disk carries locks between machines.

>>> lock = RunLock("out/sft")
>>> lock.acquire()
>>> RunLock("out/sft").acquire()            # in another process
ConfigurationError: output_dir out/sft is in use by process 4711 on this machine

Source: POSIX fcntl locks, which are per process: a forked child holds none. On Windows, where there is no `fcntl`, only
the manifest's process decides. It does not lock anything against people.
"""

from __future__ import annotations

import errno
import json
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from aligntune.errors import ConfigurationError
from aligntune.utils.files import disk_errors
from aligntune.utils.logging import get_logger

log = get_logger(__name__)
NAME = ".run.lock"
_BUSY = (errno.EACCES, errno.EAGAIN)
_HELD: dict[tuple[int, str], int] = {}
"""Locked files by process (a forked child inherits this, and no lock): closing any other handle of such a file would
give its lock away."""


class RunLock:
    """The lock of one run folder.

    Args:
        folder: the folder; `acquire` needs it to exist.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.path = self.folder / NAME
        self._key = os.getpid(), os.path.realpath(self.path)

    def check(self) -> None:
        """Raise what `acquire` would raise, and take nothing."""
        if self._key in _HELD or not self.path.exists():
            return
        with disk_errors(self.folder):
            handle = os.open(self.path, os.O_RDWR)
        try:
            self._take(handle)
        finally:
            os.close(handle)

    def acquire(self) -> str | None:
        """Take the lock for this process.

        Returns:
            a sentence about the dead process whose lock was taken over, if there was one.

        Raises:
            ConfigurationError: another process has it, or one on another machine had it last.
        """
        if self._key in _HELD:
            return None
        while True:
            with disk_errors(self.folder):
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            with ExitStack() as unless_held:
                unless_held.callback(os.close, handle)
                before = self._take(handle)
                if not self._stands(handle):
                    continue  # its holder removed the file while we waited
                with disk_errors(self.folder):
                    os.ftruncate(handle, 0)
                    os.pwrite(handle, json.dumps({"host": platform.node(), "pid": os.getpid()}).encode(), 0)
                unless_held.pop_all()
                break
        _HELD[self._key] = handle
        if not before:
            return None
        return f"the folder was left locked by process {before.get('pid')}, which is gone; this run takes it over"

    def release(self) -> None:
        """Give the lock back; nothing happens where it is not held."""
        handle = _HELD.pop(self._key, None)
        if handle is None:
            return
        try:
            os.ftruncate(handle, 0)
            self.path.unlink(missing_ok=True)
        except OSError:  # a disk that is full or gone: the closed handle frees the lock all the same
            pass
        finally:
            os.close(handle)

    def _stands(self, handle: int) -> bool:
        """Whether the open file is the one that has the name."""
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _take(self, handle: int) -> dict[str, Any]:
        """Lock an open file; what it says about its last holder, empty if it was released."""
        before = _read(handle)
        here = before.get("host") in (None, platform.node())
        if not _lock(handle):
            where = "this machine" if here else f"the machine {before['host']}"
            raise ConfigurationError(
                f"output_dir {self.folder} is in use by process {before.get('pid', '?')} on {where}",
                hint="wait for it, stop it, or set output_dir to another folder",
                context={"path": str(self.folder), **before},
            )
        if not here:
            raise ConfigurationError(
                f"output_dir {self.folder} was last used by process {before.get('pid')} on the machine "
                f"{before['host']}, and nobody here can tell whether it still runs",
                hint=f"if it does not, remove {self.path}; else wait for it, or set output_dir to another folder",
                context={"path": str(self.folder), **before},
            )
        return before


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes off a folder while the block runs; it is made where it is not there.

    Raises:
        ConfigurationError: another process has it, or it cannot be written.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = RunLock(folder)
    if took := lock.acquire():
        log.info("%s", took)
    try:
        yield
    finally:
        lock.release()


def _read(handle: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(handle, 4096, 0) or b"{}")
    except ValueError:  # cut short by a full disk: the system's lock still decides
        return {}
    return found if isinstance(found, dict) else {}


def _lock(handle: int) -> bool:
    """Lock the file if nobody has it; True as well where the disk knows no locks."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _BUSY
    return True
