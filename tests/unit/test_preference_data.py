"""Rows for preference algorithms: pairs, single answers with a label, pairs taken apart, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import runs
from aligntune.algorithms.base import Schema
from aligntune.core.config import DatasetConfig
from aligntune.data import prepare_dataset, render
from aligntune.errors import ConfigurationError, ValidationError


def prepare(rows: list[dict[str, Any]], folder: Path, schema: Schema, **source: Any) -> Any:
    file = runs.write_rows(folder / "rows.jsonl", rows)
    return prepare_dataset(DatasetConfig(name=str(file), **source), schema, seed=1)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize("label", [True, 1, "true", "1", " True ", 1.0])
def test_labels_are_truth_values_numbers_or_text(label: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "a?", "completion": "b", "label": label}, {"prompt": "c?", "completion": "d", "label": False}]
    made = prepare(rows[:1], tmp_path, Schema.UNPAIRED)
    assert made.dataset[0] == {"prompt": user("a?"), "completion": assistant("b"), "label": True}
    assert made.format == "unpaired"


@pytest.mark.parametrize("label", ["good", 2, 0.5, ["x"]])
def test_another_label_stops_with_its_line(label: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "a?", "completion": "b", "label": True}, {"prompt": "a?", "completion": "b", "label": label}]
    with pytest.raises(ValidationError, match=r"rows\.jsonl.*2.*label must be true or false") as caught:
        prepare(rows, tmp_path, Schema.UNPAIRED)
    assert caught.value.hint


def test_a_null_label_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "a?", "completion": "b", "label": True}, {"prompt": "a?", "completion": "b", "label": None}]
    made = prepare(rows, tmp_path, Schema.UNPAIRED)
    assert len(made.dataset) == 1
    assert any("Left out 1 of 2 rows: the label is null" in note for note in made.notes)


def test_conversations_with_a_label(tmp_path: Path) -> None:
    rows = [{"messages": [*user("a?"), *assistant("b"), *user("c?"), *assistant("d")], "label": False}]
    made = prepare(rows, tmp_path, Schema.UNPAIRED)
    assert made.format == "unpaired_messages"
    assert made.dataset[0] == {
        "prompt": [*user("a?"), *assistant("b"), *user("c?")],
        "completion": assistant("d"),
        "label": False,
    }
    assert any("the label is of the last one" in note for note in made.notes)


def test_pairs_are_taken_apart_with_a_note(tmp_path: Path) -> None:
    rows = [{"prompt": "a?", "chosen": "yes", "rejected": "no"}, {"prompt": "b?", "chosen": "yes", "rejected": "yes"}]
    made = prepare(rows, tmp_path, Schema.UNPAIRED)
    assert made.format == "preference"
    assert made.dataset["completion"][:] == [assistant("yes"), assistant("no")]
    assert made.dataset["label"][:] == [True, False]
    assert len(set(made.dataset["pair"])) == 1
    assert any("1 pairs are taken apart" in note for note in made.notes)
    assert any("Left out 1 of 2 rows: chosen and rejected are the same" in note for note in made.notes)


def test_rows_with_a_label_are_refused_by_algorithms_of_pairs(tmp_path: Path) -> None:
    rows = [{"prompt": "a?", "completion": "b", "label": True}]
    with pytest.raises(ValidationError, match="single answers with a label") as caught:
        prepare(rows, tmp_path, Schema.PREFERENCE)
    assert "algo: kto" in caught.value.hint


def test_missing_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="prompt, completion") as caught:
        prepare([{"prompt": "a?", "completion": "b"}], tmp_path, Schema.UNPAIRED)
    assert "label" in caught.value.hint
    with pytest.raises(ValidationError, match="columns found: prompt, chosen") as caught:
        prepare([{"prompt": "a?", "chosen": "b"}], tmp_path, Schema.PREFERENCE)
    assert "rejected" in caught.value.hint
    with pytest.raises(ConfigurationError, match="format 'text'"):
        prepare([{"prompt": "a?", "completion": "b", "label": 1}], tmp_path, Schema.UNPAIRED, format="text")


def test_a_label_column_is_still_ignored_by_supervised_tasks(tmp_path: Path) -> None:
    made = prepare([{"prompt": "a?", "completion": "b", "label": 1}], tmp_path, Schema.PROMPT_COMPLETION)
    assert made.format == "prompt_completion"
    assert made.dataset.column_names == ["prompt", "completion"]


def test_two_sources_keep_their_pairs_apart(tmp_path: Path) -> None:
    files = [runs.write_rows(tmp_path / f"{i}.jsonl", runs.PAIRS[:3]) for i in range(2)]
    made = prepare_dataset([DatasetConfig(name=str(f)) for f in files], Schema.UNPAIRED, seed=1)
    counts = {pair: made.dataset["pair"][:].count(pair) for pair in made.dataset["pair"]}
    assert len(counts) == 6
    assert set(counts.values()) == {2}


@pytest.mark.parametrize("chat", [True, False])
def test_labels_survive_the_tokenizer(chat: bool, tmp_path: Path) -> None:
    import helpers

    rows = [{"prompt": f"q{i}" + "x" * 80 * (i == 2), "completion": "b", "label": i % 2 == 0} for i in range(4)]
    made = prepare(rows, tmp_path, Schema.UNPAIRED)
    fitted = render(made, Schema.UNPAIRED, helpers.byte_tokenizer(chat=chat), max_length=60)
    assert fitted.dataset["label"][:] == [True, False, False]
    assert any("Left out 1 of 4 rows" in note for note in fitted.notes)
    assert isinstance(fitted.dataset["completion"][0], list if chat else str)


def test_the_real_kto_file(shared: Path) -> None:
    file = shared / "data" / "kto_en_demo" / "kto_en_demo.json"
    rows = json.loads(file.read_text(encoding="utf-8"))
    made = prepare_dataset(DatasetConfig(name=str(file)), Schema.UNPAIRED, seed=1)
    assert len(made.dataset) == len(rows)
    assert sum(made.dataset["label"]) == sum(row["label"] for row in rows)
    assert all(answer[0]["role"] == "assistant" for answer in made.dataset["completion"])


def test_the_real_dpo_file_as_pairs_and_as_labels(shared: Path) -> None:
    file = shared / "data" / "dpo_en_demo" / "dpo_en_demo.json"
    pairs = prepare_dataset(DatasetConfig(name=str(file)), Schema.PREFERENCE, seed=1)
    single = prepare_dataset(DatasetConfig(name=str(file)), Schema.UNPAIRED, seed=1)
    assert len(single.dataset) == 2 * len(pairs.dataset)
    assert sum(single.dataset["label"]) == len(pairs.dataset)
