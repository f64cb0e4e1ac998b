"""Rows as Arrow, block by block: what goes in comes out, in whichever blocks, in memory or on disk; large files are read
again rather than held, and give the rows that they give in memory."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import runs
from aligntune.algorithms.base import Schema
from aligntune.core.config import DatasetConfig
from aligntune.data import prepare_dataset, spool, table
from aligntune.data.loaders import base, hub
from aligntune.data.rows import ReadAgain
from aligntune.data.spool import Spool, spooling_in
from aligntune.data.storage import content_hash, to_dataset
from aligntune.data.table import RowTable
from aligntune.errors import ValidationError

scalars = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(-9, 9) | st.text(max_size=4)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=5,
)
rows_of_any = st.lists(
    st.fixed_dictionaries({"n": st.integers(0, 9)}, optional={"x": values, "y": values}), max_size=12
)


def in_blocks(rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, block: int, memory: int) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(table, "BLOCK", block)
        patch.setattr(spool, "MEMORY", memory)
        made = RowTable(hashed=True)
        made.extend(rows)
        return made.dataset(), made.content_hash()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=rows_of_any, block=st.integers(1, 5), memory=st.sampled_from([0, 200, 1 << 20]))
def test_blocks_and_files_change_nothing(
    monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]], block: int, memory: int
) -> None:
    whole, (parts, digest) = to_dataset(rows), in_blocks(rows, monkeypatch, block, memory)
    assert parts.features == whole.features
    assert parts[:] == whole[:]
    assert digest == content_hash(rows)


def test_a_column_that_turns_out_mixed_keeps_what_went_in(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, Any]] = [
        {"a": 1, "b": 1, "c": {"x": 1, "y": "t"}, "d": None, "t": datetime.date(2020, 1, 2)},
        {"a": 2.5, "b": "3", "c": {"y": "u", "x": 2}, "d": [], "t": None},
        {"a": 3, "b": None, "c": {"y": "v", "x": 3}, "d": [1.5], "t": datetime.date(2021, 1, 2)},
    ]
    for block in (1, 2, 3):
        made, _ = in_blocks(rows, monkeypatch, block, 0)
        assert made["a"][:] == [1.0, 2.5, 3.0]
        assert made["b"][:] == [1, "3", None]
        assert made["c"][:] == [{"x": 1, "y": "t"}, {"x": 2, "y": "u"}, {"x": 3, "y": "v"}]
        assert made["d"][:] == [None, [], [1.5]]
        assert made["t"][0] == datetime.date(2020, 1, 2)


def test_no_number_is_no_json_in_whichever_block(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"a": {"n": float("nan")}}, {"a": "x"}]
    for block in (1, 2):
        with pytest.raises(ValidationError, match="column 'a' holds"):
            in_blocks(rows, monkeypatch, block, 1 << 20)


def test_rows_on_disk_leave_no_file_or_the_one_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    rows = [{"text": f"row {i}"} for i in range(10)]
    made, _ = in_blocks(rows, monkeypatch, 3, 0)
    assert list((tmp_path / "temporary").iterdir()) == []
    assert made["text"][:] == [row["text"] for row in rows]
    assert Spool.file_of(made) is None
    with spooling_in(tmp_path):
        kept, _ = in_blocks(rows, monkeypatch, 3, 0)
    file = Spool.file_of(kept)
    assert file is not None
    assert file.parent == tmp_path
    assert Spool.file_of(kept.select([1, 0])) is None
    monkeypatch.setattr(table, "BLOCK", 2)
    monkeypatch.setattr(spool, "MEMORY", 0)
    broken = RowTable()
    broken.extend(rows)
    del broken
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_full_disk_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool.tempfile, "mkstemp", lambda **_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(spool.errors.EnvironmentError, match="No space left") as caught:
        in_blocks([{"a": 1}], monkeypatch, 1, 0)
    assert "cache.dir" in str(caught.value.hint)


LINES = [{"prompt": f"Say {i}", "completion": f"It is {i}.", "n": i} for i in range(60)]


def sources(folder: Path) -> dict[str, DatasetConfig]:
    import pyarrow as pa
    from pyarrow import parquet

    lines = runs.write_rows(folder / "rows.jsonl", LINES)
    with open(folder / "rows.csv", "w", encoding="utf-8") as file:
        file.write("prompt,completion,n\n" + "".join(f"{r['prompt']},{r['completion']},{r['n']}\n" for r in LINES))
    parquet.write_table(pa.Table.from_pylist(LINES), folder / "rows.parquet")
    (folder / "both").mkdir()
    for name in ("rows.jsonl", "rows.parquet"):
        (folder / "both" / name).write_bytes((folder / name).read_bytes())
    bad = folder / "bad.jsonl"
    bad.write_text(lines.read_text() + "no row\n" + json.dumps({"prompt": "x", "completion": 3.5}) + "\n")
    names = ("rows.jsonl", "rows.csv", "rows.parquet", "both")
    return {
        **{name: DatasetConfig(name=str(folder / name)) for name in names},
        "slice": DatasetConfig(name=str(lines), split="train[10:20]+train[50%:]"),
        "backwards": DatasetConfig(name=str(lines), split="train[50:]+train[:5]"),
        "columns": DatasetConfig(name=str(lines), columns=["prompt", "completion"]),
        "drawn": DatasetConfig(name=f"{lines}#7"),
        "most": DatasetConfig(name=str(lines), max_samples=59),
        "bad": DatasetConfig(name=str(bad), on_bad_row="skip"),
    }


@pytest.mark.parametrize("schema", [Schema.PROMPT, Schema.PROMPT_COMPLETION])
def test_large_files_give_what_small_ones_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schema: Schema) -> None:
    found = sources(tmp_path)
    small = {name: prepare_dataset(source, schema) for name, source in found.items()}
    opened: Counter[str] = Counter()
    read = ReadAgain._placed

    def counted(self: ReadAgain) -> Any:
        opened[self.source] += 1
        return read(self)

    monkeypatch.setattr(ReadAgain, "_placed", counted)
    monkeypatch.setattr(base, "LARGE", 0)
    for name, source in found.items():
        again = prepare_dataset(source, schema)
        assert again.notes == small[name].notes, name
        assert again.skipped == small[name].skipped
        assert again.content_hash == small[name].content_hash
        assert again.dataset[:] == small[name].dataset[:]
    assert {"rows.jsonl", "rows.csv", "rows.parquet", "bad.jsonl"} <= set(opened)


def test_a_saved_data_set_gives_the_same_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to_dataset([{**row, "k": [{"a": 1}]} for row in LINES]).save_to_disk(str(tmp_path / "saved"))
    source = DatasetConfig(name=str(tmp_path / "saved"), split="train[5:]")
    small = prepare_dataset(source, Schema.PROMPT)
    monkeypatch.setattr(hub, "HELD", 1)
    assert prepare_dataset(source, Schema.PROMPT).dataset[:] == small.dataset[:]


def test_a_file_that_grows_meanwhile_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "LARGE", 0)
    path = runs.write_rows(tmp_path / "rows.jsonl", LINES)
    rows = base_rows(path)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(LINES[0]) + "\n")
    with pytest.raises(ValidationError, match="changed while it was read"):
        list(rows.rows)


def base_rows(path: Path) -> Any:
    from aligntune.data.loaders.json import JSONLoader

    return JSONLoader().read(DatasetConfig(name=str(path)))


def test_a_row_by_its_number_and_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = runs.write_rows(tmp_path / "rows.jsonl", LINES)
    monkeypatch.setattr(base, "LARGE", 0)
    rows = base_rows(path)
    assert isinstance(rows.rows, ReadAgain)
    assert [row["n"] for row in rows.rows[:3]] == [0, 1, 2]
    assert [(i, row["n"], rows.place(i)) for i, row in rows.walk([5, 2], 2)] == [
        (5, 5, "rows.jsonl:6"),
        (2, 2, "rows.jsonl:3"),
    ]
    assert rows.rows[-1]["n"] == 59
    assert [row["n"] for row in rows.rows[4:9:2]] == [4, 6, 8]
    assert rows.place(10) == "rows.jsonl:11"
