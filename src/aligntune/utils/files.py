"""Safe file writing: atomic replacement, line files that survive a torn last line, and disk faults in our
words.

Source: write to a temporary name in the same folder, fsync, rename, fsync the folder (the order that POSIX
needs for a replacement that is whole after a crash).

>>> write_atomic(Path("run/manifest.json"), b"{}")     # never a half-written manifest.json
>>> append_line(Path("run/metrics.jsonl"), {"step": 1, "loss": 2.5})
>>> read_lines(Path("run/metrics.jsonl"))
[{'step': 1, 'loss': 2.5}]

It does not lock: two processes that write to one folder are the run folder's concern.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from aligntune.errors import ConfigurationError, ValidationError

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
# safetensors and torch report a full disk in their own exception classes, with the system's text inside.
_CUT_TEXTS = ("inline_container.cc", "iostream error", "pytorchstreamwriter failed")
"""What torch says of a file that the disk took a part of; it does not pass the system's reason on."""
_FULL_TEXTS = ("no space left on device", "disk quota exceeded", "os error 28", "os error 122")


class disk_errors:
    """Turn a full disk or a missing write permission into a ConfigurationError that names the folder.

    Wrap it around every write of a run, also around a library's (`model.save_pretrained`). Other exceptions
    pass unchanged.

    Args:
        folder: what the message names.

    Raises:
        ConfigurationError: the disk is full, the quota is used up, or writing is not permitted.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def __enter__(self) -> disk_errors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, ConfigurationError):
            return
        code = error.errno if isinstance(error, OSError) else None
        if code in _FULL or any(text in str(error).lower() for text in _FULL_TEXTS):
            raise ConfigurationError(
                f"no space left on the disk that holds {self.folder}",
                hint="free some space there, or set output_dir to a folder on another disk",
                context={"path": str(self.folder)},
            ) from error
        if isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _CUT_TEXTS):
            raise ConfigurationError(
                f"no space left on the disk that holds {self.folder}, or it fails: it took only a part of a file",
                hint="free some space there, or set output_dir to a folder on another disk",
                context={"path": str(self.folder)},
            ) from error
        if code in _DENIED:
            raise ConfigurationError(
                f"no permission to write in {self.folder}",
                hint="set output_dir to a folder that you may write to",
                context={"path": str(self.folder)},
            ) from error


def sync_folder(folder: Path) -> None:
    """Make what was renamed in a folder outlast a crash of the machine."""
    if os.name == "nt":  # Windows cannot open a folder; its rename is durable enough
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Replace `path` by `data`, so that a reader sees the old or the new content and never a part.

    Args:
        path: the file.
        data: its content, or parts of it that are made as they are written.

    Raises:
        ConfigurationError: the disk is full, writing is not permitted, or `path` is a folder or a device; what was
            there stays.
    """
    if path.exists() and not path.is_file():  # a device would be replaced by a file where one may do that
        raise ConfigurationError(f"{path} is no file that can be replaced", hint="give the name of a file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path.parent):
        try:
            with open(temporary, "wb") as file:
                file.writelines([data] if isinstance(data, bytes) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def jsonable(value: Any) -> Any:
    """`value` in the types that JSON has: NaN and infinities as "NaN", "Infinity", "-Infinity"; others by
    `str`.

    NumPy and torch scalars become Python numbers, paths and enumerations their text, sets sorted lists.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((jsonable(item) for item in value), key=str)
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return jsonable(value.item())
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    return str(value)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically (`write_atomic`, `jsonable`)."""
    text = json.dumps(jsonable(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(path, (text + "\n").encode("utf-8", "surrogatepass"))


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append one JSON line in one write call; it reaches the operating system before this returns.

    Raises:
        ConfigurationError: the disk is full or writing is not permitted.
    """
    line = (json.dumps(jsonable(row), ensure_ascii=True, allow_nan=False) + "\n").encode()
    with disk_errors(path.parent), open(path, "ab", buffering=0) as file:
        written = file.write(line)
        if written != len(line):  # a nearly full disk takes a part
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; none if there is no file. A torn last line (a killed process) is left
    out.

    Raises:
        ValidationError: a line other than the last is not a JSON object.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    last = len(lines) - 1  # what follows the last newline: empty, or torn
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == last:
                break
            raise _bad_line(path, number, str(error)) from error
        if not isinstance(row, dict):
            raise _bad_line(path, number, f"it holds a {type(row).__name__}")
        rows.append(row)
    return rows


def _bad_line(path: Path, number: int, why: str) -> ValidationError:
    return ValidationError(
        f"{path}:{number + 1}: not a JSON object ({why})",
        hint="remove the line, or the file if it is not one that a run has written",
        context={"path": str(path), "line": number + 1},
    )


def number(value: Any) -> float | None:
    """A stored metric as a float, `"NaN"` and `"Infinity"` included; None if it is not a number."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return float(value)
    return _NON_FINITE.get(value) if isinstance(value, str) else None


def sync_file(path: Path) -> None:
    """Put what was appended to a file on the disk; nothing happens where there is no file."""
    if path.exists():
        with disk_errors(path.parent), open(path, "rb") as file:
            os.fsync(file.fileno())


def rewrite_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Replace a JSON-lines file by `rows`, atomically."""
    write_atomic(path, ((json.dumps(jsonable(row), allow_nan=False) + "\n").encode() for row in rows))
