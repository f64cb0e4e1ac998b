"""Real files of public data sets through presets, detection or one mapping line: counts and contents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aligntune.algorithms.base import Schema
from aligntune.core.config import DatasetConfig
from aligntune.data import Prepared, prepare_dataset


@pytest.fixture
def load(shared: Path) -> Any:
    def call(name: str, schema: str, **keys: Any) -> Prepared:
        return prepare_dataset(DatasetConfig(name=str(shared / "data" / name), **keys), Schema(schema), seed=7)

    return call


@pytest.mark.parametrize(
    ("name", "schema", "keys", "rows"),
    [
        ("alpaca/alpaca_en_demo.json", "prompt_completion", {"preset": "alpaca"}, 710),
        ("alpaca/alpaca_tiny.json", "text", {}, 100),
        ("gsm8k/train.jsonl", "prompt", {"preset": "gsm8k"}, 3500),
        ("gsm8k", "prompt_completion", {"preset": "gsm8k", "split": "test"}, 300),
        ("gsm8k/example_model_solutions.jsonl", "prompt", {}, 300),
        ("hh_rlhf/harmless-base-test.jsonl", "preference", {"preset": "hh_rlhf"}, 1051),
        ("hh_rlhf/harmless-base-test.jsonl", "prompt", {}, 1051),
        ("dpo_en_demo/dpo_en_demo.json", "preference", {}, 205),
        ("kto_en_demo/kto_en_demo.json", "messages", {}, 203),
        ("chat_tools/glaive_toolcall_en_demo.json", "messages", {}, 237),
        ("chat_tools/glaive_toolcall_en_demo.json", "prompt_completion", {}, 237),
        (
            "retail_banking/retail_banking_dataset.json",
            "prompt_completion",
            {"column_mapping": {"prompt": "rol1", "completion": "rol2"}},
            900,
        ),
        (
            "bitext_customer_support/customer_support.csv",
            "prompt_completion",
            {"column_mapping": {"prompt": "instruction", "completion": "response"}},
            2429,
        ),
        ("dolly/dolly.json", "messages", {"column_mapping": {"input": "context", "output": "response"}}, 12),
        (
            "self_instruct/seed_tasks.jsonl",
            "prompt_completion",
            {
                "prompt_template": "{{ instruction }}{% if instances[0].input %}\n{{ instances[0].input }}{% endif %}",
                "column_mapping": {"completion": "instances.0.output"},
            },
            175,
        ),
        ("summarization/xsum.jsonl", "prompt_completion", {}, 130),
        ("mbpp/mbpp.jsonl", "prompt", {"column_mapping": {"prompt": "text", "reference": "code"}}, 724),
        ("human_eval/HumanEval.jsonl", "prompt", {}, 101),
        ("ifeval/input_data.jsonl", "prompt", {}, 270),
        ("truthfulqa/mc_task.json", "prompt", {}, 408),
        (
            "truthfulqa/TruthfulQA.csv",
            "preference",
            {"column_mapping": {"prompt": "Question", "chosen": "Best Answer", "rejected": "Incorrect Answers"}},
            408,
        ),
        ("xstest/xstest_v2_completions_gpt4.csv", "prompt_completion", {}, 225),
        ("hate_speech/labeled_data.csv", "text", {"column_mapping": {"text": "tweet"}}, 5012),
        ("banking77/train.csv", "text", {}, 6020),
        ("tinystories/tinystories.jsonl", "text", {}, 1800),
    ],
)
def test_every_row_arrives(load: Any, name: str, schema: str, keys: dict, rows: int) -> None:
    assert len(load(name, schema, **keys).dataset) == rows


def test_gsm8k_references(load: Any) -> None:
    prepared = load("gsm8k/train.jsonl", "prompt", preset="gsm8k")
    assert prepared.dataset.column_names == ["prompt", "question", "answer", "reference"]
    assert prepared.dataset[0]["reference"] == "72"
    assert all(row["answer"].endswith(f"#### {row['reference']}") for row in prepared.dataset)
    assert prepared.dataset[0]["prompt"][0]["content"].startswith("Natalia sold clips")


def test_hh_rlhf_dialogues_are_whole(load: Any, shared: Path) -> None:
    import json

    prepared = load("hh_rlhf/harmless-base-test.jsonl", "preference", preset="hh_rlhf")
    assert [n for n in prepared.notes if n.startswith("Left out")] == [
        "Left out 1 of 1052 rows: 'chosen' has no answer of the assistant after the prompt (harmless-base-test.jsonl:260)."
    ]
    lines = (shared / "data/hh_rlhf/harmless-base-test.jsonl").read_text(encoding="utf-8").split("\n")
    raw = [json.loads(line) for i, line in enumerate(lines, 1) if line and i != 260]
    for row, source in zip(prepared.dataset, raw, strict=True):
        assert row["prompt"][0]["role"] == "user"
        assert row["prompt"][-1]["role"] == "user"
        for side in ("chosen", "rejected"):
            said = "".join(m["content"] for m in [*row["prompt"], *row[side]])
            spoken = source[side].replace("\n\nHuman:", "").replace("\n\nAssistant:", "")
            assert "".join(said.split()) == "".join(spoken.split())


def test_tool_rows_keep_calls_and_tools(load: Any) -> None:
    prepared = load("chat_tools/glaive_toolcall_en_demo.json", "messages")
    roles = {m["role"] for row in prepared.dataset for m in row["messages"]}
    assert roles == {"user", "assistant", "tool"}
    assert sum(row["tools"] is None for row in prepared.dataset) == 84
    assert all("tool_calls" not in m or m["tool_calls"] for row in prepared.dataset for m in row["messages"])


def test_nested_and_spelled_values_survive(load: Any) -> None:
    kwargs = load("ifeval/input_data.jsonl", "prompt").dataset[0]["kwargs"]
    assert set(kwargs[0]) == {"prompt_to_repeat"}
    targets = load("truthfulqa/mc_task.json", "prompt").dataset[0]["mc1_targets"]
    assert sorted(set(targets.values())) == [0, 1]
    code = load("mbpp/mbpp.jsonl", "prompt", column_mapping={"prompt": "text"}).dataset[0]["code"]
    assert "\r\n" in code


def test_svamp_through_a_template(load: Any) -> None:
    prepared = load(
        "svamp/test.jsonl",
        "prompt",
        prompt_template="{{ Body }} {{ Question }}",
        column_mapping={"reference": "Answer"},
        max_samples=50,
    )
    assert len(prepared.dataset) == 50
    assert all(row["reference"] == str(int(row["Answer"])) for row in prepared.dataset)
    assert all(row["prompt"][0]["content"].endswith(row["Question"]) for row in prepared.dataset)


def test_alpaca_and_gsm8k_mixed_by_weight(shared: Path) -> None:
    sources = [
        DatasetConfig(name=str(shared / "data/alpaca/alpaca_en_demo.json"), weight=0.25),
        DatasetConfig(name=str(shared / "data/gsm8k/train.jsonl"), preset="gsm8k", weight=0.75),
    ]
    prepared = prepare_dataset(sources, Schema.PROMPT_COMPLETION, seed=0)
    assert len(prepared.dataset) == 710 + 2130
    assert "710 of 710 rows from alpaca_en_demo.json; 2130 of 3500 rows from train.jsonl" in prepared.notes[-1]
