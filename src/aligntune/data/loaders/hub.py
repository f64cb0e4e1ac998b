"""Data sets of the Hugging Face hub, through `datasets.load_dataset`.

`subset`, `split` (slices too) and `revision` are passed on as they are; the library's cache and offline mode
(`HF_HOME`, `HF_HUB_OFFLINE`) hold. Failures come back as one sentence each.

>>> HFLoader().load("openai/gsm8k", subset="main", split="test[:100]")

Code in a data set's repository is never run (the library dropped that in version 4).
"""

from __future__ import annotations

from typing import Any

from aligntune import errors
from aligntune.core.config import DatasetConfig
from aligntune.data.loaders.base import BaseLoader, Placed, refuse_unused_keys, whole_split
from aligntune.data.rows import BadRows, ReadAgain, Rows, check_columns, class_names
from aligntune.data.spool import BLOCK
from aligntune.errors import ValidationError

HELD = 10_000
"""Rows of a library's data set that are held in memory; more are read from its files as they are gone through."""


def library_rows(data: Any, where: str) -> Rows:
    """The rows of a `datasets.Dataset`."""
    names = class_names(data.features)
    if len(data) <= HELD:
        return Rows(data.to_list(), source=where, class_names=names)

    def read() -> Placed:
        number = 0
        for block in data.with_format("arrow").iter(BLOCK):
            for row in block.to_pylist():
                number += 1
                yield f"{where}, row {number}", row

    return Rows(ReadAgain(read, len(data), list(data.column_names), where), source=where, class_names=names)


class HFLoader(BaseLoader):
    """Reads hub ids.

    Args:
        cache_dir: where downloads are kept; None takes the library's own folder (`HF_DATASETS_CACHE`).
    """

    def __init__(self, cache_dir: str | None = None) -> None:
        self.cache_dir = cache_dir

    def read(self, source: DatasetConfig) -> Rows:
        data = self._open(source)
        where = f"{source.name}[{source.subset}]" if source.subset else source.name
        if source.columns is not None:
            check_columns(source.columns, data.column_names, where)
            data = data.select_columns(source.columns)
        return library_rows(data, f"{where}, split {source.split}")

    def stream(self, source: DatasetConfig, bad: BadRows) -> Placed:
        whole_split(source)
        for number, row in enumerate(self._open(source, streaming=True), start=1):
            yield f"{source.name}, split {source.split}, row {number}", row

    def identity(self, source: DatasetConfig) -> Any:
        """The library's fingerprint, which names the files and their version at the hub."""
        return self._open(source)._fingerprint

    def _open(self, source: DatasetConfig, **more: Any) -> Any:
        """The library's data set; see `BaseLoader.read`.

        Raises:
            ValidationError: no such data set, subset or split.
            errors.EnvironmentError: the hub cannot be reached and the data are not in the cache.
        """
        import datasets

        refuse_unused_keys(source, (), hub=True)
        name = source.name
        try:
            return datasets.load_dataset(
                name, source.subset, split=source.split, revision=source.revision, cache_dir=self.cache_dir, **more
            )
        except datasets.exceptions.DatasetNotFoundError as error:
            raise ValidationError(
                f"the hub has no data set '{name}' that you may read: {error}",
                hint="check the name; for a gated set accept its terms and log in (`hf auth login`); "
                "a local path starts with ./ or /",
            ) from error
        except ConnectionError as error:
            # datasets raises it both offline (HF_HUB_OFFLINE) and when the network fails.
            raise errors.EnvironmentError(
                f"data set '{name}' is not in the local cache and the hub cannot be reached ({error})",
                hint="run once while online with HF_HUB_OFFLINE unset, which caches it, or name a local file or folder",
            ) from error
        except (ValueError, FileNotFoundError, datasets.exceptions.DatasetGenerationError) as error:
            # ValueError: unknown subset or split, or a subset that must be named; the library
            # lists what there is.
            detail = " ".join(str(error).split())
            raise ValidationError(
                f"data set '{name}' (subset {source.subset}, split {source.split}) cannot be loaded: {detail}",
                hint="set `subset` and `split` to ones that the data set has",
            ) from error
