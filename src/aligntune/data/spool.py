"""Arrow tables of one schema, one after the other, in a file once they are large, mapped in the end.

    <folder>/aligntune-xxxx.arrow     one Arrow stream, with the features of the data set in its metadata

>>> spool = Spool(features)
>>> spool.add(table)
>>> spool.dataset().num_rows
1000

A mapped file takes no memory that the system could not have back. What it does not do: change the type of a column
(`aligntune.data.table`).
"""

from __future__ import annotations

import json
import mmap
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune import errors

if TYPE_CHECKING:
    import datasets

BLOCK = 1000
"""Rows turned into Arrow at once."""
MEMORY = 32 << 20
"""Bytes of blocks that stay in memory; more go to a file."""
GIVEN_BACK = 16 * BLOCK
"""Rows after which `in_order` gives pages back."""
METADATA = b"aligntune"
"""Key of the features in the metadata of an Arrow file."""

_FOLDER: ContextVar[Path | None] = ContextVar("folder of spools", default=None)


@contextmanager
def spooling_in(folder: Path) -> Iterator[None]:
    """Write the spools of this block into a folder, where they stay, so that `Spool.file_of` has something to give."""
    token = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(token)


class Spool:
    """Arrow tables of one schema, one after the other.

    Args:
        features: of the data set that they are.
    """

    def __init__(self, features: Any) -> None:
        self.features = features
        described = {METADATA: json.dumps({"features": features.to_dict()}).encode()}
        self.schema = features.arrow_schema.with_metadata(described)
        self._tables: list[Any] = []
        self._bytes = 0
        self._file: Path | None = None
        self._sink: Any = None
        self._writer: Any = None

    def add(self, table: Any) -> None:
        """The next rows, with the columns of the schema.

        Raises:
            errors.EnvironmentError: the file cannot be written.
        """
        table = table.replace_schema_metadata(self.schema.metadata)
        if self._writer is not None:
            self._write([table])
            return
        self._tables.append(table)
        self._bytes += table.nbytes
        if self._bytes > MEMORY:
            tables, self._tables = self._tables, []
            self._open()
            self._write(tables)

    def _open(self) -> None:
        import pyarrow as pa

        folder = _FOLDER.get()
        with _writable(folder):
            handle, name = tempfile.mkstemp(suffix=".arrow", prefix="aligntune-", dir=folder)
            self._file = Path(name)
            self._sink = open(handle, "wb")  # noqa: SIM115 - closed in `_mapped`, or with this object
            self._writer = pa.ipc.new_stream(self._sink, self.schema)

    def _write(self, tables: Sequence[Any]) -> None:
        with _writable(self._file):
            for table in tables:
                self._writer.write_table(table, max_chunksize=BLOCK)

    def table(self) -> Any:
        """All rows as one Arrow table, mapped from the file where there is one."""
        return self._mapped()[0]

    def _mapped(self) -> tuple[Any, mmap.mmap | None]:
        import pyarrow as pa

        if self._file is None:
            return (pa.concat_tables(self._tables) if self._tables else self.schema.empty_table()), None
        if self._sink is not None:
            with _writable(self._file):
                self._writer.close()
                self._sink.close()
            self._sink = None
        return map_table(self._file)

    def dataset(self) -> datasets.Dataset:
        """All rows as a data set; its file is gone from the folder at once, unless `spooling_in` keeps it."""
        table, pages = self._mapped()
        made = as_dataset(table, self.features)
        made._pages = pages  # type: ignore[attr-defined]
        if self._file is not None:
            if _FOLDER.get() is None:
                self.discard()
            else:
                made._spool = self._file  # type: ignore[attr-defined]
        return made

    def discard(self) -> None:
        """Take the file away; what is mapped stays mapped."""
        if self._file is not None:
            if self._sink is not None:
                self._sink.close()
                self._sink = None
            self._file.unlink(missing_ok=True)

    def __del__(self) -> None:
        if getattr(self, "_sink", None) is not None:  # a failure came before the last row
            self.discard()

    @staticmethod
    def file_of(dataset: datasets.Dataset) -> Path | None:
        """The file that holds exactly the rows of a data set, if a spool wrote one and it is still there."""
        path: Path | None = getattr(dataset, "_spool", None)
        return path if path is not None and path.is_file() and dataset._indices is None else None


def map_table(path: Path) -> tuple[Any, mmap.mmap]:
    """The Arrow stream of a file as a table that is mapped, and the mapping."""
    import pyarrow as pa

    with open(path, "rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return pa.ipc.open_stream(pa.py_buffer(pages)).read_all(), pages


def in_order(dataset: datasets.Dataset, size: int = BLOCK) -> Iterator[tuple[int, dict[str, list[Any]]]]:
    """A data set's rows in blocks, each with the number of its first row.

    Pages of a spool's file that were gone through are given back on the way: the system would take them itself when it
    needs them, but till then they count as this process's.
    """
    pages = getattr(dataset, "_pages", None)
    since = 0
    for start in range(0, len(dataset), size):
        yield start, dataset[start : start + size]
        since += size
        if pages is not None and since >= GIVEN_BACK and hasattr(mmap, "MADV_DONTNEED"):
            pages.madvise(mmap.MADV_DONTNEED)
            since = 0


@contextmanager
def _writable(place: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.EnvironmentError(
            f"prepared rows cannot be written to {place or tempfile.gettempdir()} ({error.strerror or error})",
            hint="make room there, or set cache.dir (without a cache, TMPDIR) to another disk",
        ) from error


def as_dataset(table: Any, features: Any, fingerprint: str | None = None) -> datasets.Dataset:
    """An Arrow table as a data set that the library takes for one without files."""
    from datasets import Dataset, DatasetInfo
    from datasets.fingerprint import generate_random_fingerprint
    from datasets.table import InMemoryTable

    table = table.replace_schema_metadata(features.arrow_schema.metadata)
    # Without a fingerprint the library hashes the whole table to make one.
    made = fingerprint or generate_random_fingerprint()
    return Dataset(InMemoryTable(table), info=DatasetInfo(features=features), fingerprint=made)


def only(dataset: datasets.Dataset, names: list[str]) -> datasets.Dataset:
    """The data set with these columns in this order; itself, where it has them so."""
    if dataset.column_names == names:
        return dataset
    fewer = dataset.select_columns(names)
    fewer._pages = getattr(dataset, "_pages", None)  # type: ignore[attr-defined]
    return fewer
