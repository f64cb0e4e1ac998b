"""The shipped base model: its record is true, its tokenizer and chat template do what training needs."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from aligntune.quickstart import BASE_MODEL
from aligntune.quickstart.problems import Problem, worked


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(BASE_MODEL)


def test_record_names_the_weights_that_are_shipped() -> None:
    record = json.loads((BASE_MODEL / "TRAINING.json").read_text(encoding="utf-8"))
    weights = (BASE_MODEL / "model.safetensors").read_bytes()
    assert record["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert 500_000 <= record["parameters"] <= 2_000_000
    assert record["training_cpu_seconds"] > 0
    assert record["greedy_accuracy"]["chat"] < 0.1 < record["greedy_accuracy"]["direct"]


def test_model_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in BASE_MODEL.iterdir()) <= 5_000_000


def test_every_text_survives_the_tokenizer(tokenizer: Any) -> None:
    for text in ("12+34=?", "so 46 71\n#### 71", "  two  spaces ", "Grüße, 世界 🙂", "\t"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_roles_are_single_tokens_and_pad_is_not_eos(tokenizer: Any) -> None:
    ids = tokenizer("<|system|><|user|><|assistant|><|end|><|pad|>")["input_ids"]
    assert len(set(ids)) == 5
    assert tokenizer.pad_token_id == ids[4] != tokenizer.eos_token_id == ids[3]
    assert tokenizer.bos_token_id is None


def test_template_marks_exactly_the_answer_for_the_loss(tokenizer: Any) -> None:
    problem = Problem((12, 34, 25))
    messages = [{"role": "user", "content": problem.question}, {"role": "assistant", "content": worked(problem)}]
    out = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    marked = [i for i, m in zip(out["input_ids"], out["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(marked) == worked(problem) + "<|end|>"


def test_generation_prompt_is_a_prefix_of_the_answered_chat(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Add."},
        {"role": "user", "content": "1+2+3=?"},
        {"role": "assistant", "content": "#### 6"},
        {"role": "user", "content": "4+5+6=?"},
    ]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    full = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": "#### 15"}], tokenize=False)
    assert full == prompt + "#### 15<|end|>"
    assert prompt == "<|system|>Add.<|user|>1+2+3=?<|assistant|>#### 6<|end|><|user|>4+5+6=?<|assistant|>"
