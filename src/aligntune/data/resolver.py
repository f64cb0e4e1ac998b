"""From the `name` of a source to the loader that reads it.

The order: an http(s) address (fetched once), an existing folder, an existing file by its ending, then a hub id. What
looks like a path and is not there is an error that names the nearest file, never a hub look-up.

>>> LoaderResolver().resolve(DatasetConfig(name="data/train.jsonl#500"))
(<JSONLoader>, DatasetConfig(name='data/train.jsonl', ...), 500)
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from aligntune.core.config import DatasetConfig
from aligntune.data.download import download, is_url
from aligntune.data.loaders.base import BaseLoader
from aligntune.data.loaders.directory import KINDS, DirectoryLoader, loader_for
from aligntune.data.loaders.hub import HFLoader
from aligntune.data.objects import one_source
from aligntune.errors import ConfigurationError, ValidationError
from aligntune.registry import nearest

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
"""`name` or `owner/name`, as the hub allows."""


class LoaderResolver:
    """Chooses the loader of a source.

    Args:
        cache_dir: where downloads are kept, those of the hub too; None takes the usual folders.

    Attributes:
        notes: sentences about the source that was resolved last.
    """

    def __init__(self, cache_dir: str | None = None) -> None:
        self.cache_dir = cache_dir
        self.notes: list[str] = []

    def resolve(self, source: DatasetConfig) -> tuple[BaseLoader, DatasetConfig, int | None]:
        """The loader, the source without its `#N`, and how many rows to draw (None: all).

        Raises:
            ValidationError: a path that does not exist, or a file of no known kind.
            ConfigurationError: `#N` and `max_samples` disagree, or the name is neither path nor hub id.
        """
        source, count = sample_size(one_source(source))
        self.notes = []
        if is_url(source.name):
            file, self.notes = download(source.name, self.cache_dir)
            source = dataclasses.replace(source, name=str(file))
        path = Path(source.name).expanduser()
        if path.is_dir():
            return DirectoryLoader(), source, count
        if path.is_file():
            loader = loader_for(path)
            if loader is None:
                known = ", ".join(s for kind in KINDS.values() for s in kind.suffixes)
                raise ValidationError(
                    f"{path}: no loader for this kind of file",
                    hint=f"known endings: {known} (each also with .gz)",
                )
            return loader, source, count
        if _present(path):
            raise ValidationError(
                f"{path} is neither a file nor a folder", hint="a link in a circle, a pipe or a device holds no rows"
            )
        if _looks_like_path(source.name):
            raise ValidationError(f"no such file or folder: {path}", hint=_nearest_file(path))
        if not HUB_ID.fullmatch(source.name):
            raise ConfigurationError(
                f"'{source.name}' is neither an existing path nor a hub id",
                hint="a hub id reads `owner/name`",
            )
        return HFLoader(self.cache_dir), source, count


def sample_size(source: DatasetConfig) -> tuple[DatasetConfig, int | None]:
    """The source without its `#N`, and how many rows to draw; None for all.

    Raises:
        ConfigurationError: `#N` is 0, or `max_samples` says another number.
    """
    match = re.fullmatch(r"(.+)#(\d+)", source.name)
    if match is None or Path(source.name).exists():
        return source, source.max_samples
    count = int(match[2])
    if count == 0:
        raise ConfigurationError(f"'{source.name}' draws no row", hint="write a positive number after #")
    if source.max_samples not in (None, count):
        raise ConfigurationError(
            f"'{source.name}' draws {count} rows and max_samples says {source.max_samples}",
            hint="keep one of the two",
        )
    return dataclasses.replace(source, name=match[1]), count


def _present(path: Path) -> bool:
    try:
        path.lstat()
    except (OSError, ValueError):
        return False
    return True


def _looks_like_path(name: str) -> bool:
    return (
        name.startswith((".", "/", "~"))
        or "\\" in name
        or name.count("/") > 1
        or name.endswith("/")
        or loader_for(Path(name)) is not None
    )


def _nearest_file(path: Path) -> str:
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    names = [entry.name for entry in parent.iterdir() if not entry.name.startswith(".")]
    return f"in {parent}: " + nearest(path.name, names) if names else f"the folder {parent} is empty"
