"""The models that other tests stand on: does the conversion compute what the reference computed?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_stories260k_matches_the_reference(shared: Path, stories260k: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reference = json.loads((shared / "models/stories260K/reference_logits.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(stories260k, dtype=torch.float32)
    tokens = torch.tensor([reference["tokens"]])
    with torch.no_grad():
        out = model(tokens, labels=tokens)
    values, indices = out.logits[0].topk(5)
    assert indices.tolist() == [[i for i, _ in row] for row in reference["top5"]]
    expected = torch.tensor([[v for _, v in row] for row in reference["top5"]])
    torch.testing.assert_close(values, expected, atol=1e-3, rtol=0)
    assert int(out.logits[0, -1].argmax()) == reference["next_greedy_token"]
    assert float(out.loss) == pytest.approx(reference["mean_nll_nats"], abs=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(stories260k)
    text = tokenizer.decode(reference["tokens"], skip_special_tokens=True)
    assert text.startswith("Once upon a time")
    assert tokenizer(text).input_ids == reference["tokens"]
    assert tokenizer.decode(tokenizer("a 7 \U0001f600\n").input_ids, skip_special_tokens=True) == "a 7 \U0001f600\n"


def test_tiny_models(tiny_model: Path, tiny_model_plain: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer("Größe 7\n").input_ids) == "Größe 7\n"
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n"
    encoded = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    ids = [i for i, m in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(ids) == "yo<|im_end|>"
    prompt = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    assert text.startswith(prompt)
    assert AutoTokenizer.from_pretrained(tiny_model_plain).chat_template is None
    assert AutoModelForCausalLM.from_pretrained(tiny_model).num_parameters() < 40_000
