"""Likelihood: equal to a plain loop, the masks of TRL's trainers, batch invariance, truncation."""

from __future__ import annotations

import pytest

from aligntune.errors import ValidationError
from aligntune.eval.likelihood import completion_nll, encode_row, sequence_logprobs

ASK = [{"role": "user", "content": "2+2?"}]
SAY = [{"role": "assistant", "content": "four"}]
TALK = [*ASK, *SAY, {"role": "user", "content": "sure?"}, {"role": "assistant", "content": "yes"}]


@pytest.fixture(scope="module")
def tiny(tiny_model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(tiny_model).eval(), AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def without_template(tiny):
    tokenizer = tiny[1]
    saved, tokenizer.chat_template = tokenizer.chat_template, None
    yield
    tokenizer.chat_template = saved


def _reference(model, ids, counted):
    """One sequence, no padding, in fp64 sums."""
    import torch

    with torch.no_grad():
        logps = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    terms = [-float(logps[i - 1, ids[i]]) for i in range(1, len(ids)) if counted[i]]
    return sum(terms), len(terms)


def _shown(tokenizer, row, mask="answers"):
    encoded = encode_row(tokenizer, row, mask)
    return tokenizer.decode([i for i, flag in zip(encoded.ids, encoded.counted, strict=True) if flag])


ROWS = [
    {"text": "hello there"},
    {"prompt": "2+2=", "completion": "4"},
    {"prompt": ASK, "completion": SAY},
    {"messages": TALK},
    {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]},
]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_sums_equal_a_plain_loop_in_every_batch_size(tiny, batch_size):
    model, tokenizer = tiny
    got = completion_nll(model, tokenizer, ROWS, batch_size)
    for (nll, tokens), row in zip(got, ROWS, strict=True):
        encoded = encode_row(tokenizer, row)
        want, count = _reference(model, encoded.ids, encoded.counted)
        assert tokens == count
        assert nll == pytest.approx(want, abs=1e-4)


def test_what_counts(tiny):
    _, tokenizer = tiny
    end = "<|im_end|>"
    assert _shown(tokenizer, {"text": "hello"}) == f"hello{end}"
    assert _shown(tokenizer, {"text": f"hello{end}"}) == f"hello{end}"
    assert _shown(tokenizer, {"prompt": "2+2=", "completion": "4"}) == f"4{end}"
    assert _shown(tokenizer, {"prompt": ASK, "completion": SAY}) == f"four{end}\n"
    assert _shown(tokenizer, {"messages": TALK}) == f"four{end}yes{end}"
    whole = _shown(tokenizer, {"messages": TALK}, "all")
    assert whole.startswith("<|im_start|>user\n2+2?")
    assert _shown(tokenizer, {"prompt": "2+2=", "completion": "4"}, "all") == f"2+2=4{end}"
    assert _shown(
        tokenizer, {"input_ids": [40, 41, 42], "completion_mask": [0, 1, 1], "assistant_masks": [1, 1, 0]}
    ) == (tokenizer.decode([41]))


def test_assistant_turns_are_found_without_generation_markers(tiny):
    _, tokenizer = tiny
    saved = tokenizer.chat_template
    tokenizer.chat_template = saved.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    try:
        assert _shown(tokenizer, {"messages": TALK}) == "four<|im_end|>\nyes<|im_end|>\n"
        tokenizer.chat_template = "{{ messages | length }}" + tokenizer.chat_template
        with pytest.raises(ValidationError, match="renders message 1 differently"):
            encode_row(tokenizer, {"messages": TALK})
    finally:
        tokenizer.chat_template = saved


@pytest.mark.usefixtures("without_template")
def test_conversations_without_a_template_become_the_text_of_training(tiny):
    _, tokenizer = tiny
    encoded = encode_row(tokenizer, {"prompt": ASK, "completion": SAY})
    assert tokenizer.decode(encoded.ids) == "2+2?\nfour<|im_end|>"
    assert _shown(tokenizer, {"prompt": ASK, "completion": SAY}) == "four<|im_end|>"


def test_masks_equal_those_of_the_trl_trainer(tiny):
    """The rows that TRL's SFTTrainer tokenizes for itself hold the same ids and count the same tokens."""
    import tempfile

    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = tiny
    cases = [
        ({"prompt": "2+2=", "completion": "4"}, {}),
        ({"prompt": ASK, "completion": SAY}, {}),
        ({"messages": TALK}, {"assistant_only_loss": True}),
        ({"text": "hello"}, {}),
    ]
    for row, options in cases:
        with tempfile.TemporaryDirectory() as folder:
            args = SFTConfig(output_dir=folder, bf16=False, use_cpu=True, report_to=[], **options)
            trainer = SFTTrainer(
                model=model, args=args, train_dataset=Dataset.from_list([row]), processing_class=tokenizer
            )
            theirs = trainer.train_dataset[0]
        ours = encode_row(tokenizer, row)
        assert ours.ids == theirs["input_ids"]
        assert ours.counted == [label != -100 for label in theirs["labels"]]
        assert encode_row(tokenizer, theirs) == ours


def test_rows_are_cut_at_their_end_and_empty_ones_are_told_as_such(tiny):
    model, tokenizer = tiny
    row = {"prompt": "2+2=", "completion": "four"}
    [(_, whole)] = completion_nll(model, tokenizer, [row])
    [(_, part)] = completion_nll(model, tokenizer, [row], max_length=6)
    assert (whole, part) == (5, 2)
    assert completion_nll(model, tokenizer, [row], max_length=4) == [(0.0, 0)]


def test_sequence_logprobs_are_the_negative_sums(tiny):
    model, tokenizer = tiny
    pairs = [("2+2=", "4"), ("a", "longer")]
    rows = [{"prompt": p, "completion": c} for p, c in pairs]
    nlls = completion_nll(model, tokenizer, rows)
    assert sequence_logprobs(model, tokenizer, pairs) == [(-nll, n) for nll, n in nlls]


def test_unknown_rows_are_refused(tiny):
    with pytest.raises(ValidationError, match="has the columns question, answer"):
        encode_row(tiny[1], {"question": "x", "answer": "y"})
    with pytest.raises(ValidationError, match="mixes a text and a conversation"):
        encode_row(tiny[1], {"prompt": "x", "completion": SAY})


def test_a_trained_model_predicts_stories_better_than_noise(stories260k):
    """The converted story model reaches the per-token loss that its authors report for it (1.30)."""
    import math

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(stories260k)
    tokenizer = AutoTokenizer.from_pretrained(stories260k)
    story = (
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she "
        "saw a big, red ball. She wanted to play with it, but it was too high."
    )
    [(nll, tokens)] = completion_nll(model, tokenizer, [{"text": story}], mask="all")
    assert tokens > 50
    assert nll / tokens < 1.3 < math.log(512)
