"""What every loader is: something that reads one source into rows.

    class TOMLLoader(FileLoader):
        suffixes = (".toml",)

        def iterate(self, path, read, bad):
            ...
            yield f"{path.name}:{line}", row

and one line in `aligntune.data.loaders.directory`. Loaders neither map columns nor detect formats.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

from aligntune import errors
from aligntune.core.config import DatasetConfig, ReadConfig
from aligntune.data.rows import BadRows, ReadAgain, Rows, split_of_name, take_split
from aligntune.errors import ConfigurationError, ValidationError

if TYPE_CHECKING:
    import datasets

Placed = Iterator[tuple[str, dict[str, Any]]]
"""Rows, each with its place."""
MEGABYTE = 1_000_000
LARGE = 8 * MEGABYTE
"""Bytes of a file above which its rows are not held in memory."""
TEXT_KEYS = ("encoding",)
FOLDER_KEYS = ("pattern", "recursive", "types")


class BaseLoader(ABC):
    """Reads one source. Subclasses give `read`, and `stream` where rows can come one by one."""

    suffixes: ClassVar[tuple[str, ...]] = ()
    """File name endings that belong to this loader (lower case; `.gz` may follow)."""
    options: ClassVar[tuple[str, ...]] = ()
    """The keys of `DatasetConfig.read` that mean something to this loader."""

    @abstractmethod
    def read(self, source: DatasetConfig) -> Rows:
        """The rows of the split that `source` asks for.

        Raises:
            ValidationError: the source cannot be read, or holds no such split.
        """

    def stream(self, source: DatasetConfig, bad: BadRows) -> Placed:
        """The rows one by one, with bounded memory.

        Raises:
            ConfigurationError: this kind of source cannot be streamed.
        """
        raise ConfigurationError(
            f"{source.name} cannot be streamed: {type(self).__name__} reads it whole", hint="remove streaming"
        )

    def identity(self, source: DatasetConfig) -> Any:
        """What tells this content from any other, as plain values."""
        raise NotImplementedError

    def load(self, name: str | Path, **options: Any) -> datasets.Dataset:
        """The source as a data set with the columns that it has.

        Args:
            name: a path, or a hub id for `HFLoader`.
            options: other fields of `DatasetConfig` (`split`, `subset`, `revision`).
        """
        from aligntune.data.storage import to_dataset

        return to_dataset(self.read(DatasetConfig(name=str(name), **options)).rows)


class FileLoader(BaseLoader):
    """A loader of single files. Subclasses give `suffixes` and `iterate`."""

    @abstractmethod
    def iterate(self, path: Path, read: ReadConfig, bad: BadRows) -> Placed:
        """The rows of one file, each with its place, in file order; rows that cannot be read go to `bad`."""

    def read_file(self, path: Path, read: ReadConfig | None = None, bad: BadRows | None = None) -> Rows:
        """All rows of one file; those of a large file stay there, and are read as they are gone through."""
        bad, read = bad if bad is not None else BadRows(), read or ReadConfig()
        if self.by_row(path) and large(path):
            first: list[BadRows] = [bad]  # the first time through tells of the rows that cannot be read

            def again() -> Placed:
                return self.iterate(path, read, first.pop() if first else BadRows(skip=True))

            return Rows(ReadAgain.of(again, path.name), path.name, None, self.notes(path, read))
        placed = list(self.iterate(path, read, bad))
        return Rows([row for _, row in placed], path.name, [place for place, _ in placed], self.notes(path, read))

    def by_row(self, path: Path) -> bool:
        """Whether `iterate` holds one row at a time rather than the file."""
        return False

    def notes(self, path: Path, read: ReadConfig | None) -> list[str]:
        """Sentences about how this file is read."""
        return []

    def read(self, source: DatasetConfig) -> Rows:
        refuse_unused_keys(source, self.options)
        path = Path(source.name).expanduser()
        bad = BadRows(source.on_bad_row == "skip")
        rows = self.read_file(path, source.read, bad)
        rows.skipped = bad.rows
        return take_split(rows, source.split, known=known_splits(path.name, source.split))

    def stream(self, source: DatasetConfig, bad: BadRows) -> Placed:
        refuse_unused_keys(source, self.options)
        path = Path(source.name).expanduser()
        take_split(Rows([], path.name), whole_split(source), known=known_splits(path.name, source.split))
        return self.iterate(path, source.read, bad)

    def identity(self, source: DatasetConfig) -> Any:
        return file_identity(Path(source.name).expanduser())


def large(path: Path) -> bool:
    """Whether a file is better read twice than held in memory."""
    with readable(path):
        size = path.stat().st_size
    return size * (8 if path.suffix.lower() in (".gz", ".parquet") else 1) > LARGE


def file_identity(path: Path) -> dict[str, str]:
    """A file's name and the SHA-256 of its bytes.

    Raises:
        errors.EnvironmentError: no permission, or a fault of the disk.
    """
    with readable(path), open(path, "rb") as file:
        return {"name": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def known_splits(name: str, split: str) -> tuple[str, ...]:
    """The splits that a file answers to: `train`, the one that its name carries, and the user's word for that."""
    own = split_of_name(name)
    return tuple(dict.fromkeys(("train", own or "train", split_alias(split, own))))


def split_alias(split: str, own: str | None) -> str:
    """The user's word for the split that a file is named after: `dev` for `dev.jsonl`, whose split is `validation`."""
    from aligntune.data.rows import split_base

    base = split_base(split)
    return base if own is not None and split_of_name(base) == own else "train"


def whole_split(source: DatasetConfig) -> str:
    """The split of a stream.

    Raises:
        ConfigurationError: it is a slice, which a stream cannot count.
    """
    if any(mark in source.split for mark in "[(+"):
        raise ConfigurationError(
            f"split '{source.split}' is a slice, and a stream does not know how long it is",
            hint="name the whole split, or remove streaming",
        )
    return source.split


def refuse_unused_keys(source: DatasetConfig, options: tuple[str, ...], *, hub: bool = False) -> None:
    """Refuse keys that mean nothing to this kind of source.

    Raises:
        ConfigurationError: names the first.
    """
    default = ReadConfig()
    for key in vars(default):
        if key not in options and not key.startswith("_") and getattr(source.read, key) != getattr(default, key):
            raise ConfigurationError(
                f"'read.{key}' has no meaning for the source '{source.name}'", hint=f"remove read.{key}"
            )
    for key in () if hub else ("subset", "revision"):
        if getattr(source, key) is not None:
            raise ConfigurationError(
                f"'{key}' has no meaning for the local source '{source.name}'",
                hint=f"remove {key}; it is for hub ids",
            )


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn faults of the disk and of archives into one message.

    Raises:
        ValidationError: the archive is damaged or cut off.
        errors.EnvironmentError: no permission, or a fault of the disk.
    """
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValidationError(f"{path}: damaged gzip archive ({error})", hint="fetch or pack the file again") from error
    except OSError as error:
        raise errors.EnvironmentError(
            f"{path}: cannot be read ({error.strerror or error})", hint="check its permissions, and links to it"
        ) from error


def open_bytes(path: Path) -> IO[bytes]:
    """The file's content as a stream, unpacked when its name ends in `.gz`; use it inside `readable`."""
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else open(path, "rb", buffering=1 << 20)  # type: ignore[return-value]


def read_bytes(path: Path) -> bytes:
    """The file's content, unpacked when its name ends in `.gz`.

    Raises:
        ValidationError, errors.EnvironmentError: see `readable`.
    """
    with readable(path), open_bytes(path) as file:
        return file.read()


def codec(path: Path, encoding: str) -> str:
    """Python's name of the codec, one that drops a byte order mark for UTF-8.

    Raises:
        ConfigurationError: there is none of this name.
    """
    import codecs

    try:
        name = codecs.lookup(encoding).name
        "".encode(name)  # a codec of bytes, such as `zlib`, is no encoding of text
    except (LookupError, TypeError) as error:
        raise ConfigurationError(
            f"read.encoding: there is no text encoding '{encoding}' (for {path})", hint="utf-8, latin-1, utf-16, cp1252"
        ) from error
    return "utf-8-sig" if name == "utf-8" else name


def decode(path: Path, data: bytes, encoding: str = "utf-8") -> str:
    """The text of a file (a byte order mark is dropped).

    Raises:
        ValidationError: a byte is not of this encoding; the message names the line.
        ConfigurationError: there is no such encoding.
    """
    name = codec(path, encoding)
    try:
        return data.decode(name)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        shown = "UTF-8" if name == "utf-8-sig" else encoding
        raise not_text(path, line, data[error.start], shown) from error


def not_text(path: Path, line: int, byte: int, shown: str) -> ValidationError:
    """A byte that is not of the encoding."""
    return ValidationError(
        f"{path}:{line}: byte 0x{byte:02x} is not {shown}",
        hint="save the file as UTF-8, or set read.encoding to what it is",
        context={"path": str(path), "line": line},
    )


def text_lines(path: Path, read: ReadConfig, *, newline: str) -> Iterator[str]:
    """Lines of a text file with their ends, each at most `read.max_line_mb` long.

    Args:
        path: the file.
        read: encoding and limit.
        newline: what ends a line, as for `open`.

    Raises:
        ValidationError: a byte is not of the encoding, a line is too long, or the archive is damaged.
    """
    limit = int(read.max_line_mb * MEGABYTE)
    with readable(path), open_bytes(path) as file:
        lines = io.TextIOWrapper(file, encoding=codec(path, read.encoding), newline=newline)
        number = 0
        while True:
            number += 1
            try:
                line = lines.readline(limit + 1)
            except UnicodeError as error:
                decode(path, read_bytes(path), read.encoding)  # finds the line
                raise ValidationError(f"{path}: not {read.encoding} ({error})", hint="set read.encoding") from error
            if not line:
                return
            if len(line) > limit and not line.endswith("\n"):
                raise too_long(path, number, read)
            yield line


def too_long(path: Path, line: int, read: ReadConfig) -> ValidationError:
    """A line over the limit."""
    return ValidationError(
        f"{path}:{line}: the line is longer than read.max_line_mb = {read.max_line_mb:g} MB",
        hint="mend the file, or raise read.max_line_mb",
        context={"path": str(path), "line": line},
    )
