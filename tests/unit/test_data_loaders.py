"""Loaders: every kind of source to rows, slices and draws, and one clear message for each kind of bad input."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from aligntune import errors
from aligntune.core.config import DatasetConfig
from aligntune.data import CSVLoader, DataManager, DirectoryLoader, HFLoader, JSONLoader, LoaderResolver, ParquetLoader
from aligntune.data.rows import split_of_name
from aligntune.errors import ConfigurationError, ValidationError

ROWS = [{"text": f"row {i}"} for i in range(20)]


def read(path: Path, **keys: object) -> list[dict]:
    return DataManager("text").load(DatasetConfig(name=str(path), **keys)).rows


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", lines(ROWS).encode()),
        ("a.ndjson", b"\xef\xbb\xbf" + lines(ROWS).replace("\n", "\r\n\r\n").encode()),
        ("a.jsonl.gz", gzip.compress(lines(ROWS).encode(), mtime=0)),
        ("a.json", json.dumps(ROWS, indent=1).encode()),
        ("b.json", json.dumps({"data": ROWS}).encode()),
        ("c.json", lines(ROWS).encode()),
        ("d.json", json.dumps({"train": ROWS, "test": ROWS[:2]}).encode()),
        ("a.json.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0)),
        ("a.csv", ("text\r\n" + "".join(f"row {i}\r\n" for i in range(20))).encode()),
        ("a.csv.gz", gzip.compress(("text\n" + "".join(f"row {i}\n" for i in range(20))).encode(), mtime=0)),
        ("a.tsv", ("text\n" + "".join(f"row {i}\n" for i in range(20))).encode()),
    ],
)
def test_every_spelling_of_a_file_gives_the_same_rows(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) == ROWS
    assert read(tmp_path / name, split="train[5:8]") == ROWS[5:8]
    assert read(tmp_path / name, split="train[:10%]+train[-1:]") == [*ROWS[:2], ROWS[-1]]


def test_splits_inside_one_json_file(tmp_path: Path) -> None:
    path = tmp_path / "all.json"
    path.write_text(json.dumps({"train": ROWS, "test": ROWS[:2]}))
    assert read(path, split="test") == ROWS[:2]
    with pytest.raises(ValidationError, match="no split 'validation'") as caught:
        read(path, split="validation")
    assert "train, test" in caught.value.hint


def test_parquet_and_the_loaders_by_themselves(tmp_path: Path) -> None:
    from datasets import Dataset

    path = tmp_path / "a.parquet"
    Dataset.from_list(ROWS).to_parquet(path)
    assert read(path, split="train[:3]") == ROWS[:3]
    assert ParquetLoader().load(path, split="train[19:]")[0] == ROWS[19]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValidationError, match="not Parquet"):
        read(tmp_path / "bad.parquet")


def test_rows_of_mixed_kinds_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": {"x": 1}}, {"a": 2.5, "b": {"y": "u"}, "c": [1, "two"]}, {"a": "3"}, {"b": None}]
    path = tmp_path / "mixed.jsonl"
    path.write_text(lines(rows))
    loaded = JSONLoader().load(path)
    assert loaded["a"][:] == [1, 2.5, "3", None]
    assert loaded["b"][:] == [{"x": 1}, {"y": "u"}, None, None]
    assert loaded["c"][:] == [None, [1, "two"], None, None]


def test_line_separators_inside_json_strings_do_not_end_a_row(tmp_path: Path) -> None:
    path = tmp_path / "u.jsonl"
    path.write_text(lines([{"text": "a\u2028b\x85c"}]), encoding="utf-8")
    assert read(path) == [{"text": "a\u2028b\x85c"}]


def test_csv_keeps_cells_as_text_and_names_blank_headers(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b',id,label\r\n0,007,NA\r\n1,,"two\nlines, quoted"\r\n')
    assert CSVLoader().read(DatasetConfig(name=str(path))).rows == [
        {"column_1": "0", "id": "007", "label": "NA"},
        {"column_1": "1", "id": "", "label": "two\nlines, quoted"},
    ]
    path.write_text("a;b\n1;2,5\n")
    table = CSVLoader().read(DatasetConfig(name=str(path)))
    assert table.rows == [{"a": "1", "b": "2,5"}]
    assert table.notes == ["a.csv: cells are separated by ';'."]
    path.write_text("a\n" + "x" * 200_000 + "\n")
    assert len(read(path)[0]["a"]) == 200_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", b'{"a": 1}\n\n[1]\n', r"a\.jsonl:3: a row must be an object, this is a list"),
        ("a.jsonl", b'{"a": 1}\n"x"\n', r"a\.jsonl:2: .*this is text"),
        ("a.jsonl", b'{"a": "\xff"}\n', r"a\.jsonl:1: byte 0xff is not UTF-8"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9], "damaged gzip archive"),
        ("a.jsonl.gz", b"plain", "damaged gzip archive"),
        ("a.json", b'[{"a": 1},\n{"a" 2}]', r"a\.json:2: not JSON"),
        ("a.json", b'{"rows": 3}', r"no list of rows at the top \(found: rows\)"),
        ("a.json", b'["x"]', "row 1: a row must be an object, this is text"),
        ("a.jsonl", b"[" * 100_000, "nested too deeply"),
        ("a.jsonl", b'{"a": "\\ud83d"}\n', "half of a surrogate pair"),
        ("a.json", b'[{"a": "\\ud83d"}]', "row 1: half of a surrogate pair"),
        ("a.jsonl", b'{"a": 1}\n{"a": 1, "b": 2, "a": 3}\n', r"a\.jsonl:2: not JSON \(the key 'a' stands twice"),
        ("a.json", b'[{"b": {"a": 1, "a": 3}}]', r"a\.json: not JSON \(the key 'a' stands twice"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", r"a\.csv:3: 3 cells, the header has 2"),
        ("a.csv", b'a,b\n1,"2\n', r"a\.csv:2: not CSV"),
        ("a.csv", b"a,a\n1,2\n", "'a' stands twice"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValidationError, match=message) as caught:
        read(tmp_path / name)
    assert caught.value.hint


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(lines(ROWS))
    with pytest.raises(ValidationError, match="no such file or folder") as caught:
        read(tmp_path / "trian.jsonl")
    assert "did you mean 'train.jsonl'?" in caught.value.hint
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(ValidationError, match="no loader") as caught:
        read(tmp_path / "a.xlsx")
    assert ".jsonl" in caught.value.hint


def test_splits_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(lines(ROWS))
    with pytest.raises(ValidationError, match="no split 'test'"):
        read(path, split="test")
    with pytest.raises(ConfigurationError, match="cannot read the slice"):
        read(path, split="train[:x]")
    with pytest.raises(ConfigurationError, match="several splits"):
        read(path, split="train+test")
    with pytest.raises(ValidationError, match="holds no row"):
        read(path, split="train[50:]")
    with pytest.raises(ConfigurationError, match="'subset' has no meaning"):
        read(path, subset="main")
    (tmp_path / "dev.jsonl").write_text(lines(ROWS[:2]))
    assert read(tmp_path / "dev.jsonl", split="dev") == read(tmp_path / "dev.jsonl", split="validation[:2]") == ROWS[:2]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("data/test-00000-of-00002.parquet", "test"),
        ("emerging.dev.conll", "validation"),
        ("valid/a.csv", "validation"),
        ("example_model_solutions.jsonl", None),
        ("constrained.json", None),
    ],
)
def test_split_words_in_file_names(name: str, split: str | None) -> None:
    assert split_of_name(name) == split


def test_a_folder_of_data_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.jsonl").write_text(lines(ROWS[:3]))
    (tmp_path / "sub" / "b.csv").write_text("text\nrow 3\n")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / ".hidden.jsonl").write_text("{")
    table = DirectoryLoader().read(DatasetConfig(name=str(tmp_path)))
    assert table.rows == ROWS[:4]
    assert [table.place(0), table.place(3)] == ["a.jsonl:1", "b.csv:2"]
    assert any("left out 1 files" in note and "README.md" in note for note in table.notes)
    with pytest.raises(ValidationError, match="no split 'test'"):
        read(tmp_path, split="test")


def test_a_folder_with_splits(tmp_path: Path) -> None:
    (tmp_path / "train-00000.jsonl").write_text(lines(ROWS[:3]))
    (tmp_path / "train-00001.jsonl").write_text(lines(ROWS[3:5]))
    (tmp_path / "dev.jsonl").write_text(lines(ROWS[9:]))
    (tmp_path / "other.jsonl").write_text(lines(ROWS[:1]))
    assert read(tmp_path) == ROWS[:5]
    assert read(tmp_path, split="train[3:]") == ROWS[3:5]
    assert read(tmp_path, split="validation") == read(tmp_path, split="dev") == ROWS[9:]
    with pytest.raises(ValidationError, match="carry: train, validation"):
        read(tmp_path, split="test")


def test_a_folder_of_texts_gives_one_row_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A\n")
    (tmp_path / "b.txt").write_text("b\n")
    assert [row["text"] for row in read(tmp_path)] == ["# A\n", "b\n"]
    assert read(tmp_path / "b.txt")[0]["text"] == "b\n"
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.png").write_bytes(b"")
    with pytest.raises(ValidationError, match="holds no data file"):
        read(tmp_path / "sub")


def test_a_saved_data_set(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:2])}).save_to_disk(tmp_path / "d")
    assert read(tmp_path / "d", split="test") == ROWS[:2]
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "e")
    assert read(tmp_path / "e") == ROWS


def test_the_name_decides_the_loader(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(lines(ROWS))
    resolve = LoaderResolver().resolve
    assert isinstance(resolve(DatasetConfig(name=str(path)))[0], JSONLoader)
    assert isinstance(resolve(DatasetConfig(name=str(tmp_path)))[0], DirectoryLoader)
    loader, source, count = resolve(DatasetConfig(name="openai/gsm8k#500"))
    assert (type(loader), source.name, count) == (HFLoader, "openai/gsm8k", 500)
    assert resolve(DatasetConfig(name=f"{path}#7", max_samples=7))[2] == 7
    with pytest.raises(ConfigurationError, match="draws 7 rows and max_samples says 8"):
        resolve(DatasetConfig(name=f"{path}#7", max_samples=8))
    with pytest.raises(ConfigurationError, match="draws no row"):
        resolve(DatasetConfig(name=f"{path}#0"))
    with pytest.raises(ConfigurationError, match="neither an existing path nor a hub id"):
        resolve(DatasetConfig(name="what is this"))
    with pytest.raises(ValidationError, match="no such file"):
        resolve(DatasetConfig(name="./nowhere"))


def test_the_hub_offline_and_its_refusals(tmp_path: Path) -> None:
    with pytest.raises(errors.EnvironmentError, match=re.escape("'openai/gsm8k' is not in the local cache")) as caught:
        HFLoader(str(tmp_path)).read(DatasetConfig(name="openai/gsm8k", subset="main"))
    assert "HF_HUB_OFFLINE" in caught.value.hint
    # A local folder goes through the same load_dataset call, with real slices and refusals of the library.
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "train.jsonl").write_text(lines(ROWS))
    repo, loader = str(tmp_path / "repo"), HFLoader(str(tmp_path / "cache"))
    assert loader.read(DatasetConfig(name=repo, split="train[:10%]")).rows == ROWS[:2]
    for keys in ({"split": "tst"}, {"subset": "nope"}, {"split": "train[:x]"}):
        with pytest.raises(ValidationError, match="cannot be loaded"):
            loader.read(DatasetConfig(name=repo, **keys))


def test_hub_keys_reach_the_library_and_a_known_id_brings_its_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    seen: dict = {}

    def load(name: str, subset: str | None, **keys: object) -> datasets.Dataset:
        seen.update(name=name, subset=subset, **keys)
        return datasets.Dataset.from_list([{"question": "1+1?", "answer": "It is 2.\n#### 2"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = DatasetConfig(name="openai/gsm8k", split="test[:1]", revision="abc")
    prepared = DataManager("prompt", seed=1, cache_dir="/c").prepare(source)
    assert seen == {
        "name": "openai/gsm8k", "subset": "main", "split": "test[:1]", "revision": "abc", "cache_dir": "/c",
    }  # fmt: skip
    assert prepared.dataset[0]["reference"] == "2"
    assert prepared.notes[:2] == ["preset gsm8k (it lists openai/gsm8k).", "subset main (the preset's)."]

    def missing(*args: object, **keys: object) -> None:
        raise datasets.exceptions.DatasetNotFoundError("gated")

    monkeypatch.setattr(datasets, "load_dataset", missing)
    with pytest.raises(ValidationError, match="the hub has no data set"):
        HFLoader().read(source)


def test_importing_the_package_imports_no_library() -> None:
    import subprocess
    import sys

    code = (
        "import aligntune.data, sys; print([m for m in ('datasets', 'pyarrow', 'torch', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
