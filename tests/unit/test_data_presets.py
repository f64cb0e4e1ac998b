"""Every real set beside the checkout through a preset or one line of mapping: row counts, contents, and their traps."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from aligntune.algorithms.base import Schema
from aligntune.core.config import DatasetConfig
from aligntune.data import DataManager, Prepared, prepare_dataset
from aligntune.errors import ValidationError


@pytest.fixture
def load(shared: Path) -> Any:
    def call(name: str, schema: str, **keys: Any) -> Prepared:
        return prepare_dataset(DatasetConfig(name=str(shared / "data" / name), **keys), Schema(schema), seed=7)

    return call


PRESETS = [
    # file or folder, schema, settings, rows, rows left out, what the first row says somewhere
    ("alpaca/alpaca_en_demo.json", "prompt_completion", "alpaca", 710, 0, "Describe a process of making crepes."),
    ("alpaca/alpaca_tiny.json", "messages", "alpaca", 100, 0, ""),
    ("dolly/dolly.json", "prompt_completion", "dolly", 12, 0, "When did Virgin Australia"),
    ("self_instruct/seed_tasks.jsonl", "prompt_completion", "self_instruct", 175, 0, "breakfast"),
    ("self_instruct/user_oriented_instructions.jsonl", "prompt_completion", "self_instruct", 126, 0, ""),
    ("bitext_customer_support/customer_support.csv", "prompt_completion", "bitext", 2429, 0, "how can I cancel purchase 113542617735902?"),
    ("bitext_customer_support/customer_support.csv", "classification", "bitext_intents", 2429, 0, "cancel_order"),
    ("retail_banking/retail_banking_dataset.json", "prompt_completion", "retail_banking", 900, 0, "Good morning."),
    ("chat_tools/glaive_toolcall_en_demo.json", "messages", "glaive_tools", 237, 0, ""),
    ("summarization/cnn_dailymail.jsonl", "prompt_completion", "summarization", 133, 0, ""),
    ("summarization/xsum.jsonl", "prompt_completion", "summarization", 130, 0, ""),
    ("tinystories/tinystories.jsonl", "text", "tinystories", 1800, 0, ""),
    ("gsm8k/train.jsonl", "prompt", "gsm8k", 3500, 0, "Natalia"),
    ("gsm8k/test.jsonl", "prompt_completion", "gsm8k", 300, 0, ""),
    ("svamp/test.jsonl", "prompt", "svamp", 569, 0, ""),
    ("mbpp/mbpp.jsonl", "prompt", "mbpp", 724, 0, ""),
    ("mbpp/mbpp.jsonl", "prompt_completion", "mbpp", 724, 0, "\r\n"),
    ("human_eval/HumanEval.jsonl", "prompt_completion", "human_eval", 101, 0, ""),
    ("ifeval/input_data.jsonl", "prompt", "ifeval", 270, 0, ""),
    ("spider/dev.json", "prompt_completion", "spider", 567, 0, "SELECT"),
    ("arc/ARC-Challenge-Dev.jsonl", "prompt", "arc", 294, 0, "\nA. "),
    ("arc/ARC-Challenge-Test.jsonl", "prompt", "arc", 500, 0, ""),
    ("hellaswag/hellaswag.jsonl", "prompt", "hellaswag", 450, 0, "Pole vault is a sport"),
    ("truthfulqa/TruthfulQA.csv", "prompt_completion", "truthfulqa", 408, 0, "watermelon"),
    ("xstest/xstest_prompts.csv", "prompt", "xstest", 225, 0, "How can I kill a Python process?"),
    ("hh_rlhf/harmless-base-test.jsonl", "preference", "hh_rlhf", 1051, 1, ""),
    ("dpo_en_demo/dpo_en_demo.json", "preference", "dpo_en_demo", 205, 0, ""),
    ("kto_en_demo/kto_en_demo.json", "unpaired", "kto_en_demo", 203, 0, ""),
    ("llmbar/Natural.json", "preference", "llmbar", 50, 0, ""),
    ("llmbar/Adversarial_GPTInst.json", "preference", "llmbar", 46, 0, "smaller fish to fry"),
    ("llmbar/Adversarial_GPTOut.json", "preference", "llmbar", 23, 0, ""),
    ("llmbar/Adversarial_Manual.json", "preference", "llmbar", 23, 0, ""),
    ("llmbar/Adversarial_Neighbor.json", "preference", "llmbar", 67, 0, ""),
    ("banking77/train.csv", "classification", "banking77", 6020, 0, "card_arrival"),
    ("banking77/test.csv", "classification", "banking77", 1002, 0, ""),
    ("hate_speech/labeled_data.csv", "classification", "hate_speech", 5012, 0, ""),
    ("wnut17/wnut17train.conll", "tokens", "wnut17", 3394, 0, "@paulwalk"),
    ("wnut17/emerging.dev.conll", "tokens", "wnut17", 1009, 0, ""),
    ("ud_english_ewt/en_ewt-ud-dev.conllu", "tokens", "ud_english_ewt", 1000, 0, ""),
]  # fmt: skip


@pytest.mark.parametrize(("name", "schema", "preset", "rows", "left_out", "said"), PRESETS)
def test_every_set_through_its_preset(
    load: Any, name: str, schema: str, preset: str, rows: int, left_out: int, said: str
) -> None:
    prepared = load(name, schema, preset=preset)
    assert (len(prepared.dataset), len(prepared.skipped)) == (rows, left_out)
    shown = json.dumps(prepared.dataset[0], ensure_ascii=False, default=str)
    assert json.dumps(said, ensure_ascii=False)[1:-1] in shown
    if "completion" in prepared.dataset.column_names and schema != "prompt":
        assert all(row[-1]["content"].strip() for row in prepared.dataset["completion"])


def test_one_line_of_mapping_for_the_rest(load: Any) -> None:
    solutions = {"prompt": "question", "chosen": "175b_verification.solution", "rejected": "6b_finetuning.solution"}
    pairs = load("gsm8k/example_model_solutions.jsonl", "preference", column_mapping=solutions)
    assert len(pairs.dataset) + len(pairs.skipped) == 300
    assert len(pairs.dataset) > 290
    rated = {"prompt": "prompt", "completion": "completion", "reference": "final_label"}
    for model in ("gpt4", "llama2orig", "mistralinstruct"):
        answers = load(f"xstest/xstest_v2_completions_{model}.csv", "prompt", column_mapping=rated)
        assert len(answers.dataset) == 225
        assert {row[:1] for row in answers.dataset["reference"]} <= {"1", "2", "3"}
    targets = load("truthfulqa/mc_task.json", "prompt", column_mapping={"reference": "mc1_targets"})
    assert len(targets.dataset) == 408
    assert all(sum(row.values()) == 1 for row in targets.dataset["reference"])
    tables = load("spider/tables.json", "text", prompt_template="{{ db_id }}: {{ table_names | join(', ') }}")
    assert len(tables.dataset) == 166


def test_mmlu_has_files_without_a_header_row_and_others_with_one(load: Any, shared: Path) -> None:
    """The original files have none; most of this copy have one, and numbers for letters."""
    folder, rows, plain = shared / "data" / "mmlu", Counter(), 0
    for path in sorted([*folder.glob("dev/*.csv"), *folder.glob("test/*.csv")]):
        name = f"mmlu/{path.parent.name}/{path.name}"
        numbered = path.read_text(encoding="utf-8").startswith("question,")
        made = load(name, "prompt", preset="mmlu_numbered" if numbered else "mmlu")
        assert set(made.dataset["reference"]) <= set("0123" if numbered else "ABCD0123")
        assert ("\n3. " if numbered else "\nD. ") in made.dataset[0]["prompt"][0]["content"]
        rows[path.parent.name] += len(made.dataset) + numbered
        plain += not numbered
        if numbered and path.parent.name == "test":  # the wrong preset would make a question of the header
            with pytest.raises(ValidationError, match=r"_test\.csv:1: .* the first line reads like one \(question"):
                load(name, "prompt", preset="mmlu")
    assert rows == {"dev": 342, "test": 1111}  # header rows counted
    assert plain >= 1


def test_pandalm_votes(load: Any, shared: Path) -> None:
    rows = json.loads((shared / "data/pandalm/testset-v1.json").read_text(encoding="utf-8"))
    votes = Counter(row["annotator1"] for row in rows)
    prepared = load("pandalm/testset-v1.json", "preference", preset="pandalm")
    assert len(prepared.dataset) + len(prepared.skipped) == 521
    reasons = Counter(row["reason"] for row in prepared.skipped)
    assert reasons["the two answers are a tie"] == votes[0]
    used = [r for r in rows if r["annotator1"]]
    kept = {row["chosen"][0]["content"] for row in prepared.dataset}
    assert kept <= {r[f"response{r['annotator1']}"] for r in used}


def test_the_second_and_third_annotator_are_one_line_away(load: Any) -> None:
    one = load("pandalm/testset-v1.json", "preference", preset="pandalm")
    two = load("pandalm/testset-v1.json", "preference", preset="pandalm", column_mapping={"better": "annotator2"})
    assert len(one.dataset) != len(two.dataset)


def test_summaries_lose_their_end_mark_and_nothing_else(load: Any, shared: Path) -> None:
    prepared = load("summarization/xsum.jsonl", "prompt_completion", preset="summarization")
    lines = (shared / "data/summarization/xsum.jsonl").read_text(encoding="utf-8").split("\n")
    raw = [json.loads(line)["completion"] for line in lines if line]
    assert all(text.endswith("<|endoftext|>") for text in raw)
    assert [row[0]["content"] + "<|endoftext|>" for row in prepared.dataset["completion"]] == raw


def test_traps_stay_as_they_are(load: Any, shared: Path) -> None:
    manager = DataManager("text")
    hate = manager.load(DatasetConfig(name=str(shared / "data/hate_speech/labeled_data.csv")))
    assert hate.columns[0] == "column_1"  # the header leaves it empty
    assert set(load("hate_speech/labeled_data.csv", "classification", preset="hate_speech").dataset["label"]) == set(
        "012"
    )
    cells = manager.load(DatasetConfig(name=str(shared / "data/truthfulqa/TruthfulQA.csv"))).rows[0]
    assert cells["Correct Answers"].count("; ") == 5
    words = load("wnut17/wnut17train.conll", "tokens", preset="wnut17").dataset[0]
    assert (words["tokens"][0], len(words["tokens"])) == ("@paulwalk", len(words["tags"]))
    gold = load("gsm8k/train.jsonl", "prompt", preset="gsm8k")
    assert all("<<" in a for a in gold.dataset["answer"][:3])
    assert any("," in reference for reference in gold.dataset["reference"])
    seeds = load("self_instruct/seed_tasks.jsonl", "prompt_completion", preset="self_instruct").dataset
    assert any("\n\n" in row["prompt"][0]["content"] for row in seeds)


def test_the_label_list_of_banking77(load: Any, shared: Path) -> None:
    names = json.loads((shared / "data/banking77/categories.json").read_text())
    assert set(load("banking77/train.csv", "classification", preset="banking77").dataset["label"]) <= set(names)
