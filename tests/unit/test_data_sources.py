"""Where rows come from: options of files and folders, an address, memory, and streams."""

from __future__ import annotations

import gzip
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import runs
from aligntune import errors
from aligntune.algorithms.base import Schema
from aligntune.core.backend_factory import create_rl_trainer, create_sft_trainer
from aligntune.core.config import DatasetConfig
from aligntune.data import DataManager, materialise, open_stream, prepare_dataset
from aligntune.data.download import download
from aligntune.data.objects import is_object
from aligntune.errors import ConfigurationError, ValidationError


def read(path: Path, **keys: Any) -> list[dict[str, Any]]:
    return DataManager("text").load(DatasetConfig(name=str(path), **keys)).rows


# ---- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "options", "rows"),
    [
        (b"a|b\n1|2\n", {"delimiter": "|"}, [{"a": "1", "b": "2"}]),
        (b"a,x|b\n1|2\n", {"delimiter": "|"}, [{"a,x": "1", "b": "2"}]),
        (b"1,2\n3,4\n", {"header": ["x", "y"]}, [{"x": "1", "y": "2"}, {"x": "3", "y": "4"}]),
        (b"1,2\n", {"header": False}, [{"column_1": "1", "column_2": "2"}]),
        ("a\né\n".encode("latin-1"), {"encoding": "latin-1"}, [{"a": "é"}]),
        ("a\né\n".encode("utf-16"), {"encoding": "utf-16"}, [{"a": "é"}]),
        (b'a,b\r\n"x\r\ny, z","say ""hi"""\r\n', {}, [{"a": "x\r\ny, z", "b": 'say "hi"'}]),
        (b"a\rb\rc\r", {}, [{"a": "b"}, {"a": "c"}]),
    ],
)
def test_csv_options(tmp_path: Path, content: bytes, options: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    assert read(tmp_path / "a.csv", read=options) == rows
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(content))
    assert read(tmp_path / "a.csv.gz", read=options) == rows


def test_rows_inside_a_document_and_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"meta": {"n": 2}, "out": {"rows": [{"a": 1}, {"a": 2}]}}))
    assert read(tmp_path / "a.json", read={"rows_at": "out.rows"}) == [{"a": 1}, {"a": 2}]
    (tmp_path / "a.jsonl").write_bytes('{"a": "é\u2028"}\n{"a": "b"}\n'.encode("utf-16"))
    assert read(tmp_path / "a.jsonl", read={"encoding": "utf-16"}) == [{"a": "é\u2028"}, {"a": "b"}]


def test_column_selection(tmp_path: Path) -> None:
    from datasets import Dataset

    rows = [{"text": "a", "x": 1, "y": [1]}, {"text": "b", "y": [2]}]
    path = runs.write_rows(tmp_path / "a.jsonl", rows)
    assert read(path, columns=["y", "text"]) == [{"y": [1], "text": "a"}, {"y": [2], "text": "b"}]
    prepared = prepare_dataset(DatasetConfig(name=str(path), columns=["text"]), Schema.TEXT)
    assert not any("not used" in note for note in prepared.notes)
    Dataset.from_list([{"a": 1, "b": 2}]).to_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", columns=["b"]) == [{"b": 2}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name, row in {"a.jsonl": {"text": "a"}, "sub/b.jsonl": {"text": "b"}, "sub/old.jsonl": {"text": "old"}}.items():
        runs.write_rows(tmp_path / name, [row])
    (tmp_path / "c.csv").write_text("text\nc\n")
    (tmp_path / "README.md").write_text("# About")
    return tmp_path


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ({}, ["a", "c", "b", "old"]),
        ({"recursive": False}, ["a", "c"]),
        ({"types": ["csv"]}, ["c"]),
        ({"types": ["text"]}, ["# About"]),
        ({"pattern": "**/*.jsonl"}, ["a", "b", "old"]),
        ({"pattern": "sub/b*"}, ["b"]),
        ({"types": ["json", "csv"], "recursive": False}, ["a", "c"]),
    ],
)
def test_folder_options(folder: Path, options: dict[str, Any], texts: list[str]) -> None:
    assert [row["text"] for row in read(folder, read=options)] == texts


def test_folder_options_that_leave_nothing(folder: Path) -> None:
    with pytest.raises(ValidationError, match=r"matches read.pattern '\*\.xml'"):
        read(folder, read={"pattern": "*.xml"})
    with pytest.raises(ValidationError, match=r"no file of read\.types"):
        read(folder, read={"types": ["parquet"]})
    with pytest.raises(ConfigurationError, match=r"'read\.pattern' has no meaning"):
        read(folder / "a.jsonl", read={"pattern": "*"})


# ---- an address -------------------------------------------------------------------------------------------------


class Site(http.server.BaseHTTPRequestHandler):
    content, tag, asked = b'{"text": "a"}\n', '"1"', []

    def do_GET(self) -> None:
        type(self).asked.append(self.headers.get("If-None-Match"))
        if self.path.endswith("gone.jsonl"):
            self.send_error(404)
        elif self.headers.get("If-None-Match") == self.tag:
            self.send_response(304)
            self.end_headers()
        else:
            self.send_response(200)
            self.send_header("ETag", self.tag)
            self.send_header("Content-Length", str(len(self.content) + 5 * self.path.endswith("cut.jsonl")))
            self.end_headers()
            self.wfile.write(self.content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(key, raising=False)
    Site.content, Site.tag, Site.asked = b'{"text": "a"}\n', '"1"', []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_address_is_fetched_once(site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, cache = f"{site}/data/rows.jsonl?x=1", str(tmp_path)
    prepared = prepare_dataset(DatasetConfig(name=url), Schema.TEXT, cache_dir=cache)
    assert list(prepared.dataset["text"]) == ["a"]
    assert any("fetched, 14 bytes" in note for note in prepared.notes)
    file, notes = download(url, cache)
    assert "unchanged since" in notes[0]
    assert Site.asked == [None, '"1"']
    Site.content, Site.tag = b'{"text": "new"}\n', '"2"'
    assert download(url, cache)[0].read_bytes() == Site.content
    file.write_bytes(b"damaged")  # is fetched whole again
    assert download(url, cache)[0].read_bytes() == Site.content
    assert Site.asked[-1] is None
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(Site.asked)
    assert "offline" in download(url, cache)[1][0]
    assert len(Site.asked) == asked


def test_addresses_that_give_nothing(site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="the server answers 404"):
        download(f"{site}/gone.jsonl", str(tmp_path))
    with pytest.raises(errors.EnvironmentError, match="cannot be reached"):
        download(f"{site}/cut.jsonl", str(tmp_path))
    assert not list(tmp_path.rglob("*.jsonl")) + list(tmp_path.rglob(".part-*"))
    with pytest.raises(errors.EnvironmentError, match="cannot be reached"):
        download("http://127.0.0.1:9/rows.jsonl", str(tmp_path))
    with pytest.raises(ValidationError, match="names no file"):
        download(site + "/", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with pytest.raises(errors.EnvironmentError, match="stay offline"):
        download(f"{site}/rows.jsonl", str(tmp_path))


def test_a_server_that_is_gone_leaves_what_was_fetched(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{site}/rows.jsonl"
    download(url, str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: (_ for _ in ()).throw(TimeoutError("timed out")))
    assert "cannot be reached (timed out); the file of" in download(url, str(tmp_path))[1][0]


# ---- memory -----------------------------------------------------------------------------------------------------


def test_rows_in_memory(tmp_path: Path) -> None:
    import pandas as pd
    from datasets import ClassLabel, Dataset, Features, Value

    rows = [{"text": "a", "x": 1}, {"text": "é", "x": "mixed"}]
    file = materialise(rows, str(tmp_path))
    assert [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] == rows
    assert materialise(rows, str(tmp_path)) == file
    assert list(prepare_dataset(rows, Schema.TEXT, cache_dir=str(tmp_path)).dataset["text"]) == ["a", "é"]
    frame = pd.DataFrame({"text": ["a", "b"]}, index=[7, 9])
    assert prepare_dataset(frame, Schema.TEXT, cache_dir=str(tmp_path)).dataset[:] == {"text": ["a", "b"]}
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    labelled = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    prepared = prepare_dataset(labelled, Schema.CLASSIFICATION, cache_dir=str(tmp_path))
    assert prepared.class_names == ["no", "yes"]
    assert list(prepared.dataset["label"]) == ["yes", "no"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "holds no rows"),
        ([1], "row 1 in memory is no dictionary"),
        ([{1: "a"}], "text keys"),
        ([{"a": {1, 2}}], "row 1 in memory cannot be written down"),
        ([{"a": float("nan")}], "cannot be written down"),
        ([{"a": "\ud83d"}], "cannot be written down"),
        (7, "cannot be int"),
    ],
)
def test_rows_in_memory_that_have_no_form(tmp_path: Path, rows: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        materialise(rows, str(tmp_path))
    assert not list(tmp_path.rglob("*.*"))


def test_the_factories_take_rows_in_memory(tiny_model: Path, tmp_path: Path) -> None:
    trainer = create_sft_trainer(model_name=str(tiny_model), dataset=runs.SFT_ROWS, eval_dataset=runs.SFT_ROWS[:3])
    assert trainer.config.dataset.name.endswith(".jsonl")
    assert len(trainer._train_rows().dataset) == 24
    assert len(trainer._eval_rows().dataset) == 3
    pairs = create_rl_trainer(model_name=str(tiny_model), algorithm="dpo", dataset=runs.PAIRS)
    assert len(pairs._train_rows().dataset) == 24
    with pytest.raises(ConfigurationError, match="both dataset and dataset_name"):
        create_sft_trainer(model_name="x", dataset=runs.SFT_ROWS, dataset_name="y")
    assert not is_object("name.jsonl")
    assert not is_object({"name": "a.jsonl"})


# ---- streams ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def test_a_stream_has_the_rows_of_the_file(tmp_path: Path, tokenizer: Any) -> None:
    from aligntune.data import render

    rows = [{"prompt": f"Say {i}", "completion": f"It is {i}." * (i % 9)} for i in range(250)]
    path = runs.write_rows(tmp_path / "rows.jsonl", rows)
    source = DatasetConfig(name=str(path), streaming=True)
    whole = render(
        prepare_dataset(str(path), Schema.PROMPT_COMPLETION),
        Schema.PROMPT_COMPLETION,
        tokenizer,
        max_length=60,
        keep_tokens="cut",
    )
    stream = open_stream(source, Schema.PROMPT_COMPLETION, tokenizer, max_length=60)
    for _ in range(2):  # two epochs
        made = list(stream.tokens)
        assert [row["input_ids"] for row in made] == list(whole.tokens["input_ids"])
        assert [row["labels"] for row in made] == list(whole.tokens["labels"])
    assert len(stream.skipped) == sum(not row["completion"] for row in rows)
    assert stream.skipped[0]["place"] == "rows.jsonl:1"


@pytest.mark.parametrize("kind", ["csv", "parquet", "folder", "gz"])
def test_every_kind_of_file_streams(tmp_path: Path, tokenizer: Any, kind: str) -> None:
    from datasets import Dataset

    rows = [{"text": f"row {i}"} for i in range(5)]
    name = tmp_path / {"csv": "a.csv", "parquet": "a.parquet", "gz": "a.jsonl.gz", "folder": "rows"}[kind]
    if kind == "parquet":
        Dataset.from_list(rows).to_parquet(name)
    elif kind == "csv":
        name.write_text("text\n" + "".join(f"row {i}\n" for i in range(5)))
    elif kind == "gz":
        name.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))
    else:
        name.mkdir()
        runs.write_rows(name / "a.jsonl", rows[:2])
        runs.write_rows(name / "b.jsonl", rows[2:])
    stream = open_stream(DatasetConfig(name=str(name), streaming=True), Schema.TEXT, tokenizer, max_length=60)
    assert [tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in stream.tokens] == [
        r["text"] for r in rows
    ]


def test_a_stream_reads_no_further_than_it_is_asked(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"text": f"row {i}"} for i in range(5000)]
    path = runs.write_rows(tmp_path / "rows.jsonl", rows)
    with open(path, "a", encoding="utf-8") as file:
        file.write("no row\n")
    stream = open_stream(DatasetConfig(name=str(path), streaming=True), Schema.TEXT, tokenizer, max_length=60)
    found = iter(stream.tokens)
    assert len([next(found) for _ in range(3000)]) == 3000
    with pytest.raises(ValidationError, match=r"rows\.jsonl:5001: not JSON"):
        list(found)
    skipping = DatasetConfig(name=str(path), streaming=True, on_bad_row="skip")
    stream = open_stream(skipping, Schema.TEXT, tokenizer, max_length=60)
    assert len(list(stream.tokens)) == 5000
    assert [row["place"] for row in stream.skipped] == ["rows.jsonl:5001"]


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_training_on_a_stream_equals_training_on_the_rows_in_order(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    """With as many rows in a step as there are, their order does not matter, so the losses are the same."""
    losses = []
    for streaming in (False, True):
        raw = runs.plain(kind, tiny_model, tmp_path, train__per_device_batch_size=24, train__max_steps=2)
        data = raw["dataset"] if kind == "sft" else raw["datasets"][0]
        named = {"name": data} if isinstance(data, str) else dict(data)
        if kind == "sft":
            raw["dataset"] = {**named, "streaming": streaming}
        else:
            raw["datasets"] = [{**named, "streaming": streaming}]
        raw["output_dir"] = str(tmp_path / f"out-{streaming}")
        create = create_sft_trainer if kind == "sft" else create_rl_trainer
        create(raw).train()
        losses.append(runs.logged(raw["output_dir"]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert not (tmp_path / "out-True" / "skipped_rows.jsonl").exists()
    manifest = json.loads((tmp_path / "out-True" / "manifest.json").read_text())
    assert "streamed in file order" in json.dumps(manifest)


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("grpo", {}, "does not know how many it has"),
        ("kto", {}, "cannot be streamed: how many are desirable"),
        ("sft", {"train__max_steps": None}, "set train.max_steps"),
        ("sft", {"task__packing": True}, "task.packing sorts rows by length"),
        ("sft", {"train__dataloader_workers": 1}, "dataloader_workers"),
        ("sft", {"@split": "train[:5]"}, "is a slice"),
        ("sft", {"@max_samples": 5}, "max_samples"),
        ("sft", {"@filter": {"deduplicate": "exact"}}, "filter.deduplicate remembers every row"),
        ("dpo", {"algo__precompute_ref_log_probs": True}, "goes through all rows before"),
    ],
)
def test_where_a_stream_cannot_be_used(
    kind: str, changes: dict[str, Any], said: str, tiny_model: Path, tmp_path: Path
) -> None:
    from aligntune.core.config.reading import set_key

    raw = runs.plain(kind, tiny_model, tmp_path)
    data = "dataset" if kind == "sft" else "datasets.0"
    if kind == "sft" and isinstance(raw["dataset"], str):
        raw["dataset"] = {"name": raw["dataset"]}
    for key, value in {"@streaming": True, **changes}.items():
        set_key(raw, key.replace("@", f"{data}.").replace("__", "."), value)
    create = create_sft_trainer if kind == "sft" else create_rl_trainer
    with pytest.raises(ConfigurationError, match=said):
        create(raw)._train_rows()


def test_held_out_rows_are_not_streamed(tiny_model: Path, tmp_path: Path) -> None:
    raw = runs.plain("sft", tiny_model, tmp_path)
    held = str(runs.write_rows(tmp_path / "held.jsonl", runs.SFT_ROWS))
    raw["evaluation"] = {"dataset": {"name": held, "streaming": True}}
    with pytest.raises(ConfigurationError, match="held-out rows are read whole"):
        create_sft_trainer(raw)._eval_rows()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_run_writes_the_rows_that_it_skipped(streaming: bool, tiny_model: Path, tmp_path: Path) -> None:
    raw = runs.plain("sft", tiny_model, tmp_path, train__max_steps=8)
    path = tmp_path / "sft.jsonl"
    path.write_text(path.read_text() + 'oops\n{"prompt": "a", "completion": ""}\n')
    raw["dataset"] = {"name": str(path), "on_bad_row": "skip", "streaming": streaming}
    create_sft_trainer(raw).train()
    lines = (Path(raw["output_dir"]) / "skipped_rows.jsonl").read_text().splitlines()
    assert [(r["data"], r["place"]) for r in map(json.loads, lines)] == [
        ("training", "sft.jsonl:25"),
        ("training", "sft.jsonl:26"),
    ]
