"""CSV, TSV and Parquet files.

CSV cells stay text: `007` keeps its zeros and `NA` stays the word. The header names the columns; a row with
another number of cells is refused with its line. The delimiter is the one that the header uses most among `,`
`;` tab `|`, unless `read.delimiter` says. Files without a header row: `read: {header: [text, label]}`.

>>> CSVLoader().load("intents.csv")[0]
{'text': 'I am still waiting on my card?', 'category': 'card_arrival'}
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from aligntune.core.config import ReadConfig
from aligntune.data.loaders.base import MEGABYTE, TEXT_KEYS, FileLoader, Placed, large, readable, text_lines
from aligntune.data.rows import BadRows, ReadAgain, Rows, class_names
from aligntune.errors import ValidationError

BATCH = 1000
"""Rows of a Parquet file read at once."""


class CSVLoader(FileLoader):
    """Reads `.csv` and `.tsv`, each also with `.gz` after it."""

    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".tsv")
    options: ClassVar[tuple[str, ...]] = (*TEXT_KEYS, "delimiter", "header", "max_line_mb")

    def iterate(self, path: Path, read: ReadConfig, bad: BadRows) -> Placed:
        delimiter = read.delimiter or _delimiter(path, read)
        # The limit on a cell belongs to the csv module as a whole, so it is put back.
        limit = csv.field_size_limit(max(int(read.max_line_mb * MEGABYTE), 131072))
        try:
            yield from _parse(path, read, delimiter, bad)
        finally:
            csv.field_size_limit(limit)

    def by_row(self, path: Path) -> bool:
        return True

    def notes(self, path: Path, read: ReadConfig | None) -> list[str]:
        read = read or ReadConfig()
        delimiter = read.delimiter or _delimiter(path, read)
        return (
            []
            if delimiter == ("\t" if _is_tsv(path) else ",")
            else [f"{path.name}: cells are separated by {delimiter!r}."]
        )


def _is_tsv(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(".tsv")


def _delimiter(path: Path, read: ReadConfig) -> str:
    first = next(text_lines(path, read, newline=""), "")
    return "\t" if _is_tsv(path) else max(",;\t|", key=first.count)


def _parse(path: Path, read: ReadConfig, delimiter: str, bad: BadRows) -> Placed:
    reader = csv.reader(text_lines(path, read, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = list(read.header) if isinstance(read.header, list) else None
    start = 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            line, start = start, reader.line_num + 1
            broken = _fault(path, line, f"not CSV ({error})", "mend the quotes of this row")
            if "unexpected end of data" in str(error):  # an open quote: where its row ends, nobody knows
                raise broken from error
            bad.take(f"{path.name}:{line}", broken)
            continue
        if cells is None:
            return
        line, start = start, reader.line_num + 1
        if not cells:
            continue
        if header is None:
            header = _header(path, cells) if read.header else [f"column_{i}" for i in range(1, len(cells) + 1)]
            if read.header:
                continue
        if line == 1 and isinstance(read.header, list):
            _refuse_header(path, cells, header)
        fault = _wrong(path, line, cells, header, named=isinstance(read.header, list))
        if fault is None:
            yield f"{path.name}:{line}", dict(zip(header, cells, strict=True))
        else:
            bad.take(f"{path.name}:{line}", fault, cells)


def _refuse_header(path: Path, cells: list[str], names: list[str]) -> None:
    """Refuse names for a file that has a header row, which would become a row of data."""
    same = [name for name, cell in zip(names, cells, strict=False) if cell.strip().casefold() == name.casefold()]
    if len(same) > 1 or (same and len(names) == 1):
        raise _fault(
            path,
            1,
            f"read.header names the columns of a file without a header row, and the first line reads like one "
            f"({', '.join(cells[:8])})",
            "remove read.header (or the preset that sets it) for this file",
        )


def _wrong(path: Path, line: int, cells: list[str], header: list[str], *, named: bool) -> ValidationError | None:
    if len(cells) != len(header):
        whose = "read.header" if named else "the header"
        what = f"{len(cells)} cells, {whose} has {len(header)}"
        return _fault(path, line, what, "quote cells that hold the delimiter, or mend this row")
    if any("\0" in cell for cell in cells):
        return _fault(path, line, "a NUL character", "remove it, or set read.encoding (UTF-16 text has such bytes)")
    return None


def _fault(path: Path, line: int, what: str, hint: str) -> ValidationError:
    return ValidationError(f"{path}:{line}: {what}", hint=hint, context={"path": str(path), "line": line})


def _header(path: Path, cells: list[str]) -> list[str]:
    names = [name.strip() or f"column_{i}" for i, name in enumerate(cells, start=1)]
    if any("\0" in name for name in names):
        raise _fault(path, 1, "a NUL character", "remove it, or set read.encoding (UTF-16 text has such bytes)")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValidationError(
            f"{path}:1: column '{twice[0]}' stands twice in the header",
            hint="rename one of the two, or set `read: {header: [...]}` where the first line is a row",
        )
    return names


class ParquetLoader(FileLoader):
    """Reads `.parquet`."""

    suffixes: ClassVar[tuple[str, ...]] = (".parquet",)

    def iterate(self, path: Path, read: ReadConfig, bad: BadRows) -> Placed:
        number = 0
        for batch in _batches(path):
            for row in batch:
                number += 1
                yield f"{path.name}, row {number}", row

    def read_file(self, path: Path, read: ReadConfig | None = None, bad: BadRows | None = None) -> Rows:
        if large(path):
            rows = ReadAgain.of(lambda: self.iterate(path, ReadConfig(), BadRows()), path.name)
            return Rows(rows, source=path.name, class_names=_declared(path))
        return Rows([row for batch in _batches(path) for row in batch], path.name, class_names=_declared(path))


def _batches(path: Path) -> Iterator[list[dict[str, Any]]]:
    import pyarrow
    from pyarrow import parquet

    with readable(path):
        handle = open(path, "rb")  # noqa: SIM115 - closed below; its faults are the disk's, those that follow the format's
    try:
        with handle, parquet.ParquetFile(handle) as file:
            for batch in file.iter_batches(batch_size=BATCH):
                yield batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValidationError(f"{path}: not Parquet ({error})", hint="fetch or write the file again") from error


def _declared(path: Path) -> dict[str, list[str]]:
    """The label names that the `datasets` library writes beside a table."""
    from pyarrow import parquet

    stored = (parquet.read_schema(path).metadata or {}).get(b"huggingface")
    if stored is None:
        return {}
    from datasets import Features

    return class_names(Features.from_dict(json.loads(stored)["info"]["features"]))
