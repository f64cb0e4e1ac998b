"""CSV, TSV and Parquet files.

CSV cells stay text: `007` keeps its zeros and `NA` stays the word. The header names the columns; a row with
another number of cells is refused with its line. The delimiter is the one that the header uses most among `,`
`;` tab `|`.

>>> CSVLoader().load("intents.csv")[0]
{'text': 'I am still waiting on my card?', 'category': 'card_arrival'}

Files without a header row are not handled here: every value of the first row would become a name.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import ClassVar

from aligntune.data.loaders.base import FileLoader, decode, read_bytes
from aligntune.data.rows import Rows, class_names
from aligntune.errors import ValidationError


class CSVLoader(FileLoader):
    """Reads `.csv` and `.tsv`, each also with `.gz` after it."""

    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".tsv")

    def read_file(self, path: Path) -> Rows:
        text = decode(path, read_bytes(path))
        first = text.split("\n", 1)[0]
        tab = path.name.lower().removesuffix(".gz").endswith(".tsv")
        delimiter = "\t" if tab else max(",;\t|", key=first.count)
        # The limit on a cell belongs to the csv module as a whole, so it is put back.
        limit = csv.field_size_limit(max(len(text), 131072))
        try:
            rows, places = _parse(path, text, delimiter)
        finally:
            csv.field_size_limit(limit)
        usual = "\t" if tab else ","
        notes = [] if delimiter == usual else [f"{path.name}: cells are separated by {delimiter!r}."]
        return Rows(rows, source=path.name, places=places, notes=notes)


def _parse(path: Path, text: str, delimiter: str) -> tuple[list[dict[str, str]], list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[dict[str, str]] = []
    places: list[str] = []
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            line, start = start, reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = _header(path, cells)
            elif len(cells) != len(header):
                raise ValidationError(
                    f"{path}:{line}: {len(cells)} cells, the header has {len(header)}",
                    hint="quote cells that hold the delimiter, or mend this row",
                    context={"path": str(path), "line": line},
                )
            else:
                rows.append(dict(zip(header, cells, strict=True)))
                places.append(f"{path.name}:{line}")
    except csv.Error as error:
        raise ValidationError(
            f"{path}:{start}: not CSV ({error})",
            hint="mend the quotes of this row",
            context={"path": str(path), "line": start},
        ) from error
    return rows, places


def _header(path: Path, cells: list[str]) -> list[str]:
    names = [name.strip() or f"column_{i}" for i, name in enumerate(cells, start=1)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValidationError(f"{path}:1: column '{twice[0]}' stands twice in the header", hint="rename one of the two")
    return names


class ParquetLoader(FileLoader):
    """Reads `.parquet`."""

    suffixes: ClassVar[tuple[str, ...]] = (".parquet",)

    def read_file(self, path: Path) -> Rows:
        import pyarrow
        from pyarrow import parquet

        try:
            table = parquet.ParquetFile(path).read()
        except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
            raise ValidationError(f"{path}: not Parquet ({error})", hint="fetch or write the file again") from error
        return Rows(table.to_pylist(), source=path.name, class_names=_declared(table.schema.metadata or {}))


def _declared(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """The label names that the `datasets` library writes beside a table."""
    stored = metadata.get(b"huggingface")
    if stored is None:
        return {}
    from datasets import Features

    return class_names(Features.from_dict(json.loads(stored)["info"]["features"]))
