"""Sampled completions on disk: Parquet parts under `rollouts/`, written in batches and read back as one
table.

Parquet because it compresses the repeated prompts of a group and can be read by column; the column names are
the caller's.

>>> writer = RolloutWriter(Path("run/rollouts"))
>>> writer.append([{"step": 1, "prompt": "1 + 1 =", "completion": " 2", "reward": 1.0}])
>>> writer.flush()
>>> read_rollouts("run").column("reward").to_pylist()
[1.0]

It does not decide what a row holds, and does not store token tensors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune.errors import ValidationError
from aligntune.utils.files import disk_errors, jsonable

if TYPE_CHECKING:
    import pyarrow

ROWS_PER_PART = 2048
"""Rows kept in memory before a part is written: some megabytes at most, and few enough files for a long
run.
"""


class RolloutWriter:
    """Buffers rows and writes them as `part-00000.parquet`, `part-00001.parquet` and so on.

    Args:
        folder: the `rollouts` folder; made at the first write. Numbering goes on after the parts in it.
        rows_per_part: rows that make a part.
        rank: number of the process in a distributed run; parts of those after the first carry it in their name.
    """

    def __init__(self, folder: Path, rows_per_part: int = ROWS_PER_PART, rank: int = 0) -> None:
        self._suffix = f"-r{rank}" if rank else ""
        self.folder = folder
        self.rows_per_part = rows_per_part
        self._rows: list[Mapping[str, Any]] = []

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take rows; write a part when enough have come together."""
        self._rows.extend(rows)
        if len(self._rows) >= self.rows_per_part:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered as one part, atomically. Nothing happens where nothing is buffered.

        Raises:
            ConfigurationError: the disk is full or writing is not permitted.
        """
        if not self._rows:
            return
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            numbers = [int(part.stem[5:].partition("-")[0]) for part in parts(self.folder)]
            name = f"part-{max(numbers, default=-1) + 1:05d}{self._suffix}.parquet"
            _write_part(self.folder / name, _table(self._rows))
        self._rows = []


def parts(folder: Path) -> list[Path]:
    """The parts of a `rollouts` folder in the order in which they were written."""
    return sorted(folder.glob("part-[0-9]*.parquet"))


@contextmanager
def _whole(part: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ValidationError(
            f"{part} cannot be read: {error}", hint="move it out of the folder; the other parts do not need it"
        ) from error


def read_part(part: Path, columns: list[str] | None = None, step: int | None = None) -> pyarrow.Table:
    """The rows of one part.

    Args:
        part: the file.
        columns: names; None takes all.
        step: the rows of this step alone.

    Raises:
        ValidationError: the file is damaged.
    """
    import pyarrow.parquet as pq

    with _whole(part):
        return pq.read_table(part, columns=columns, filters=None if step is None else [("step", "=", step)])


def part_columns(part: Path) -> list[str]:
    """The names of a part's columns.

    Raises:
        ValidationError: the file is damaged.
    """
    import pyarrow.parquet as pq

    with _whole(part):
        return list(pq.read_schema(part).names)


def read_rollouts(run_dir: str | os.PathLike[str]) -> pyarrow.Table:
    """All rollouts of a run as one table, in the order of sampling; no rows and no columns if there are none.

    A column that some parts lack is null there.
    """
    import pyarrow as pa

    tables = [read_part(part) for part in parts(Path(run_dir) / "rollouts")]
    return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})


def rewind_rollouts(folder: Path, step: int) -> None:
    """Drop the rows whose `step` is above `step`; a part that keeps none is removed."""
    found = parts(folder)
    if not found:
        return
    import pyarrow.compute as pc

    for part in found:
        table = read_part(part)
        if "step" not in table.column_names:
            continue
        kept = table.filter(pc.less_equal(table["step"], step))
        if kept.num_rows == 0:
            part.unlink()
        elif kept.num_rows < table.num_rows:
            _write_part(part, kept)


def _write_part(path: Path, table: pyarrow.Table) -> None:
    import pyarrow.parquet as pq

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, temporary, compression="zstd")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _table(rows: Sequence[Mapping[str, Any]]) -> pyarrow.Table:
    import pyarrow as pa

    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def _column(values: list[Any]) -> pyarrow.Array:
    """One Arrow column: booleans, numbers or text as they are; anything else, or a mixture, as JSON text."""
    import pyarrow as pa

    kinds = {_kind(value) for value in values if value is not None}
    if kinds <= {"bool"}:
        return pa.array(values)
    if kinds <= {"int"}:
        return pa.array(values, type=pa.int64())
    if kinds <= {"int", "float"}:
        return pa.array([None if value is None else float(value) for value in values], type=pa.float64())
    texts = [value if value is None or isinstance(value, str) else json.dumps(jsonable(value)) for value in values]
    # A lone surrogate, which a byte-level tokenizer can decode to, has no UTF-8 form: it is kept as its
    # escape.
    return pa.array(
        [t if t is None else t.encode("utf-8", "backslashreplace").decode() for t in texts], type=pa.string()
    )


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if -(2**63) <= value < 2**63 else "other"
    if isinstance(value, float):
        return "float"
    return "text" if isinstance(value, str) else "other"
