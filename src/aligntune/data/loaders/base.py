"""What every loader is: something that reads one source into rows.

    class TOMLLoader(BaseLoader):
        suffixes = (".toml",)

        def read_file(self, path):
            ...
            return Rows(rows, source=path.name)

and one line in `aligntune.data.resolver.LOADERS`. Loaders neither map columns nor detect formats.
"""

from __future__ import annotations

import gzip
import zlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from aligntune import errors
from aligntune.core.config import DatasetConfig
from aligntune.data.rows import Rows, split_of_name, take_split
from aligntune.errors import ConfigurationError, ValidationError

if TYPE_CHECKING:
    import datasets


class BaseLoader(ABC):
    """Reads one source. Subclasses give `read`."""

    suffixes: ClassVar[tuple[str, ...]] = ()
    """File name endings that belong to this loader (lower case; `.gz` may follow)."""

    @abstractmethod
    def read(self, source: DatasetConfig) -> Rows:
        """The rows of the split that `source` asks for.

        Raises:
            ValidationError: the source cannot be read, or holds no such split.
        """

    def load(self, name: str | Path, **options: Any) -> datasets.Dataset:
        """The source as a data set with the columns that it has.

        Args:
            name: a path, or a hub id for `HFLoader`.
            options: other fields of `DatasetConfig` (`split`, `subset`, `revision`).
        """
        from aligntune.data.storage import to_dataset

        return to_dataset(self.read(DatasetConfig(name=str(name), **options)).rows)


class FileLoader(BaseLoader):
    """A loader of single files. Subclasses give `suffixes` and `read_file`."""

    @abstractmethod
    def read_file(self, path: Path) -> Rows:
        """All rows of one file."""

    def read(self, source: DatasetConfig) -> Rows:
        refuse_hub_keys(source)
        path = Path(source.name).expanduser()
        own = split_of_name(path.name)
        known = tuple(dict.fromkeys(("train", own or "train", split_alias(source.split, own))))
        return take_split(self.read_file(path), source.split, known=known)


def split_alias(split: str, own: str | None) -> str:
    """The user's word for the split that a file is named after: `dev` for `dev.jsonl`, whose split is `validation`."""
    from aligntune.data.rows import split_base

    base = split_base(split)
    return base if own is not None and split_of_name(base) == own else "train"


def refuse_hub_keys(source: DatasetConfig) -> None:
    """`subset` and `revision` mean something at the hub only.

    Raises:
        ConfigurationError: one is set for a local source.
    """
    for key in ("subset", "revision"):
        if getattr(source, key) is not None:
            raise ConfigurationError(
                f"'{key}' has no meaning for the local source '{source.name}'",
                hint=f"remove {key}; it is for hub ids",
            )


def read_bytes(path: Path) -> bytes:
    """The file's content, unpacked when its name ends in `.gz`.

    Raises:
        ValidationError: the archive is damaged or cut off.
        errors.EnvironmentError: no permission, or a fault of the disk.
    """
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix.lower() == ".gz" else data
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValidationError(f"{path}: damaged gzip archive ({error})", hint="fetch or pack the file again") from error
    except OSError as error:
        raise errors.EnvironmentError(
            f"{path}: cannot be read ({error.strerror})", hint="check its permissions"
        ) from error


def decode(path: Path, data: bytes) -> str:
    """UTF-8 text (a byte order mark is dropped).

    Raises:
        ValidationError: a byte is not UTF-8; the message names the line.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValidationError(
            f"{path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8", hint="save the file as UTF-8"
        ) from error
