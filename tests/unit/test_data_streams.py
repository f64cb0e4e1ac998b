"""Streams have the memory of a batch, a check looks at their beginning alone, and rows that come as tokens can be held
out."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import runs
from aligntune.algorithms.base import Schema
from aligntune.core.backend_factory import create_sft_trainer
from aligntune.core.config import DatasetConfig, load_config
from aligntune.data import open_stream, streaming
from aligntune.data.loaders.json import JSONLoader
from aligntune.data.rows import BadRows
from aligntune.errors import ConfigurationError, ValidationError
from aligntune.preflight import check


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


class Row(dict[str, Any]):
    """A row whose life can be followed."""

    __hash__ = object.__hash__  # type: ignore[assignment]


@pytest.mark.parametrize("length", [1000, 8000])
def test_a_longer_stream_holds_no_more_rows(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """Rows that are alive at once, in a stream of which every second row is left out."""
    path = runs.write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}])
    alive: weakref.WeakSet[Row] = weakref.WeakSet()
    most = 0

    def endless(self: JSONLoader, source: DatasetConfig, bad: BadRows) -> Iterator[tuple[str, dict[str, Any]]]:
        nonlocal most
        for i in range(length):
            row = Row(prompt=f"Say {i}", completion=f"{i}" * (i % 2))
            alive.add(row)
            most = max(most, len(alive))
            yield f"rows.jsonl:{i + 1}", row

    monkeypatch.setattr(JSONLoader, "stream", endless)
    monkeypatch.setattr(streaming, "KEPT", 50)
    stream = open_stream(
        DatasetConfig(name=str(path), streaming=True), Schema.PROMPT_COMPLETION, tokenizer, max_length=60
    )
    assert sum(1 for _ in stream.tokens) == length // 2
    assert most <= streaming.PEEK + 2 * streaming.BATCH
    assert len(stream.skipped) == length // 2
    places = [row["place"] for row in stream.skipped]
    assert places == [f"rows.jsonl:{i + 1}" for i in range(0, length, 2)]
    assert stream.skipped[-1]["row"] == {"prompt": f"Say {length - 2}", "completion": ""}
    assert [row["place"] for row in stream.skipped[49:51]] == places[49:51]


def streamed(tmp_path: Path, tiny_model: Path, rows: int = 300, **changes: Any) -> dict[str, Any]:
    raw = runs.plain("sft", tiny_model, tmp_path, **changes)
    made = [{"prompt": f"Say {i}", "completion": f"It is {i}."} for i in range(rows)]
    path = runs.write_rows(tmp_path / "long.jsonl", made)
    with open(path, "a", encoding="utf-8") as file:
        file.write("no row\n")
    raw["dataset"] = {"name": str(path), "streaming": True}
    return raw


def test_a_check_reads_the_beginning_of_a_stream(tmp_path: Path, tiny_model: Path) -> None:
    config = load_config(streamed(tmp_path, tiny_model))
    report = check(config, stream_rows=100)
    found = {v.name: v for v in report.verdicts}
    assert found["stream"].reason.startswith("the first 100 rows of the stream were looked at")
    assert found["masked-rows"].status == found["terminator"].status == "pass"
    assert "100 rows" in found["rows-left-out"].reason
    assert found["batch"].data["rows"] is None
    whole = check(config, stream_rows=1000)
    assert [(v.name, v.status) for v in whole.with_status("fail")] == [("rows", "fail")]
    assert "long.jsonl:301: not JSON" in whole.with_status("fail")[0].reason


def test_a_check_says_where_a_stream_cannot_be_used(tmp_path: Path, tiny_model: Path) -> None:
    raw = streamed(tmp_path, tiny_model, train__max_steps=None)
    failed = check(load_config(raw)).with_status("fail")
    assert [v.name for v in failed] == ["rows"]
    assert "set train.max_steps" in failed[0].reason
    raw = streamed(tmp_path, tiny_model)
    raw["dataset"]["filter"] = {"deduplicate": "exact"}
    assert "remembers every row" in check(load_config(raw)).with_status("fail")[0].reason


def test_rows_of_a_stream_on_the_command_line(
    cli: Any, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(streamed(tmp_path, tiny_model)))
    ran = cli("check", "run.yaml", "--stream-rows", "7")
    assert ran.code == 0
    assert "the first 7 rows of the stream" in " ".join(ran.out.split())
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(runs.plain("sft", tiny_model, tmp_path)))
    ran = cli("check", "plain.yaml", "--stream-rows", "7")
    assert ran.code == 2
    assert "--stream-rows is for streams" in ran.err


def test_a_smoke_run_of_a_stream_takes_the_longest_of_its_first_rows(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligntune.preflight import smoke_run

    monkeypatch.setattr(smoke_run, "STREAM_ROWS", 100)
    raw = streamed(tmp_path, tiny_model)
    path = Path(raw["dataset"]["name"])
    lines = path.read_text().splitlines(keepends=True)
    lines[60] = json.dumps({"prompt": "the longest", "completion": "of all " * 9}) + "\n"
    path.write_text("".join(lines))
    seen = []
    longest = smoke_run._longest_first
    monkeypatch.setattr(smoke_run, "_longest_first", lambda t: (longest(t), seen.append(t._train_data.dataset))[0])
    found, _ = smoke_run.smoke(load_config(raw))
    assert {v.status for v in found} == {"pass"}, found
    assert "of all of all" in str(seen[0][0])


# ---- rows that come as tokens -----------------------------------------------------------------------------------


def tokens_of(tokenizer: Any, count: int, path: Path) -> tuple[Path, Path]:
    """The same texts as text, and as token ids with no loss on the first two."""
    texts = [f"The number {i} is here." for i in range(count)]
    ids = tokenizer([text + tokenizer.eos_token for text in texts])["input_ids"]
    rows = [{"input_ids": row, "labels": [-100, -100, *row[2:]]} for row in ids]
    return (
        runs.write_rows(path / "texts.jsonl", [{"text": text} for text in texts]),
        runs.write_rows(path / "tokens.jsonl", rows),
    )


def test_rows_that_come_as_tokens_can_be_held_out(tmp_path: Path, tiny_model: Path, tokenizer: Any) -> None:
    texts, tokens = tokens_of(tokenizer, 12, tmp_path)
    raw = runs.plain("sft", tiny_model, tmp_path, task={"name": "text_generation"})
    raw["dataset"] = str(texts)
    raw["evaluation"] = {"dataset": str(tokens)}
    made = create_sft_trainer({**raw, "output_dir": str(tmp_path / "a")}).train()
    ids = [json.loads(line) for line in tokens.read_text().splitlines()]
    assert made.metrics["eval_tokens"] == sum(len(row["input_ids"]) - 2 for row in ids)
    trainer = create_sft_trainer({**raw, "output_dir": str(tmp_path / "b")})
    assert trainer.evaluate()["eval_nll"] == pytest.approx(reference(trainer.model, ids), rel=1e-5)


def reference(model: Any, rows: list[dict[str, list[int]]]) -> float:
    import torch

    total = count = 0.0
    for row in rows:
        with torch.no_grad():
            logps = model(torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
        for i, label in enumerate(row["labels"][1:]):
            if label != -100:
                total, count = total - float(logps[i, label]), count + 1
    return total / count


def test_tokens_of_another_vocabulary_are_told_of(tmp_path: Path, tiny_model: Path) -> None:
    raw = runs.plain("sft", tiny_model, tmp_path, task={"name": "text_generation"})
    raw["dataset"] = str(runs.write_rows(tmp_path / "a.jsonl", [{"text": "some text"}] * 8))
    held = runs.write_rows(tmp_path / "b.jsonl", [{"input_ids": [1, 10**6]}])
    raw["evaluation"] = {"dataset": str(held)}
    with pytest.raises(ValidationError, match="not in the vocabulary"):
        create_sft_trainer(raw).evaluate()


@pytest.mark.parametrize("kind", ["sft", "dpo", "grpo"])
def test_where_tokens_cannot_be_held_out(kind: str, tmp_path: Path, tiny_model: Path) -> None:
    raw = runs.plain(kind, tiny_model, tmp_path)
    held = runs.write_rows(tmp_path / "held.jsonl", [{"input_ids": [1, 2, 3]}])
    raw["evaluation"] = {"dataset": str(held)}
    from aligntune.core.backend_factory import create_trainer

    with pytest.raises((ConfigurationError, ValidationError), match=r"evaluation\.dataset|tokenized"):
        create_trainer(raw)._eval_rows()
