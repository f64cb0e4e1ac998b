"""Generation: order, batch invariance, templates, seeds, limits, and that nothing of the caller's is changed."""

from __future__ import annotations

import pytest

from aligntune.errors import ConfigurationError, ValidationError
from aligntune.eval.generation import encode_prompts, evaluating, generate_answers, generate_texts

PROMPTS = ["Once upon a time", "Tom", "The little dog ran to the park and", "A"]


@pytest.fixture(scope="module")
def story(stories260k):
    return _load(stories260k)


@pytest.fixture(scope="module")
def tiny(tiny_model):
    return _load(tiny_model)


def _load(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def _plain_loop(model, ids, new):
    """Greedy decoding of one sequence without cache or padding: the reference."""
    import torch

    with torch.no_grad():
        for _ in range(new):
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids


def test_greedy_equals_a_plain_loop_in_every_batch_size(story):
    model, tokenizer = story
    want = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        new = _plain_loop(model, ids, 12)[len(ids) :]
        want.append(tokenizer.decode(new, skip_special_tokens=True))
    for batch_size in (1, 3, 8):
        got = generate_texts(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=batch_size)
        assert [row[0] for row in got] == want


def test_sampling_is_decided_by_its_seed_and_leaves_the_callers_generator_alone(tiny):
    import torch

    model, tokenizer = tiny
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    options = {"max_new_tokens": 8, "temperature": 1.0, "num_samples": 3, "batch_size": 4}
    a = generate_texts(model, tokenizer, ["x", "yy"], seed=1, **options)
    assert torch.equal(before, torch.random.get_rng_state())
    assert [len(row) for row in a] == [3, 3]
    assert generate_texts(model, tokenizer, ["x", "yy"], seed=1, **options) == a
    assert generate_texts(model, tokenizer, ["x", "yy"], seed=2, **options) != a
    generate_texts(model, tokenizer, ["x"], max_new_tokens=2, temperature=1.0)
    assert not torch.equal(before, torch.random.get_rng_state())


def test_settings_of_the_model_files_do_not_leak_in(tiny):
    model, tokenizer = tiny
    plain = generate_texts(model, tokenizer, PROMPTS, max_new_tokens=10)
    saved = model.generation_config
    model.generation_config = type(saved)(
        do_sample=True, top_k=2, repetition_penalty=5.0, no_repeat_ngram_size=1, min_p=0.5, pad_token_id=0
    )
    try:
        assert generate_texts(model, tokenizer, PROMPTS, max_new_tokens=10) == plain
    finally:
        model.generation_config = saved


def test_modes_gradients_and_tokenizer_come_back(tiny):
    import torch

    model, tokenizer = tiny
    model.train()
    model.model.layers[0].eval()
    tokenizer.padding_side = "right"
    generate_texts(model, tokenizer, ["x", "yyy"], max_new_tokens=2)
    assert model.training
    assert not model.model.layers[0].training
    assert tokenizer.padding_side == "right"

    def fail():
        with evaluating(model):
            assert not torch.is_grad_enabled()
            assert not model.training
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert torch.is_grad_enabled()
    assert model.training
    model.eval()


def test_conversations_use_the_template_and_plain_text_without_one(tiny):
    _, tokenizer = tiny
    ask = [{"role": "user", "content": "2+2?"}]
    text = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(encode_prompts(tokenizer, [ask])[0]) == text
    begun = [*ask, {"role": "assistant", "content": "It is"}]
    assert tokenizer.decode(encode_prompts(tokenizer, [begun])[0]).endswith("assistant\nIt is")
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        assert tokenizer.decode(encode_prompts(tokenizer, [ask])[0]) == "2+2?\n"
    finally:
        tokenizer.chat_template = template


def test_answers_tell_their_length_and_whether_they_ended(tiny):
    import torch

    model, tokenizer = tiny
    [[cut]] = generate_answers(model, tokenizer, ["x"], max_new_tokens=5)
    assert (cut.tokens, cut.finished) == (5, False)
    # The token that comes second, made an end token of the model: answers stop behind it, and its text is cut.
    second = _plain_loop(model, tokenizer("x")["input_ids"], 2)[-1]
    saved = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [second]
    try:
        with torch.no_grad():
            [[ended], [_]] = generate_answers(model, tokenizer, ["x", "abc"], max_new_tokens=9)
    finally:
        model.generation_config.eos_token_id = saved
    assert ended.finished
    assert ended.tokens <= 2


def test_answers_end_where_the_context_ends_whatever_the_batch(tiny, caplog):
    model, tokenizer = tiny
    saved, model.config.max_position_embeddings = model.config.max_position_embeddings, 16
    try:
        prompts = ["a" * 12, "b", "c" * 13]
        with caplog.at_level("WARNING", logger="aligntune"):
            rows = generate_answers(model, tokenizer, prompts, max_new_tokens=8)
        assert [row[0].tokens for row in rows] == [4, 8, 3]
        assert "2 of 3 prompts leave less than max_new_tokens=8" in caplog.text
        with pytest.raises(ValidationError, match="prompt 1 has 16 tokens, and the model's context has 16"):
            generate_texts(model, tokenizer, ["a", "a" * 16], max_new_tokens=1)
    finally:
        model.config.max_position_embeddings = saved


def test_nothing_asked_nothing_done(tiny):
    model, tokenizer = tiny
    assert generate_texts(model, tokenizer, [], max_new_tokens=1) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 1, "num_samples": 2}, "2 equal answers"),
        ({"max_new_tokens": 1, "temperature": -1.0}, "temperature -1.0"),
        ({"max_new_tokens": 1, "top_p": 0.0}, "top_p 0.0"),
        ({"max_new_tokens": 1, "batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_out_of_range_are_refused(tiny, options, message):
    with pytest.raises(ConfigurationError, match=message):
        generate_texts(*tiny, ["x"], **options)


def test_bad_prompts_are_refused(tiny):
    with pytest.raises(ValidationError, match="mix strings and conversations"):
        generate_texts(*tiny, ["x", [{"role": "user", "content": "x"}]], max_new_tokens=1)
    with pytest.raises(ValidationError, match="prompt 1 has no tokens"):
        generate_texts(*tiny, ["x", ""], max_new_tokens=1)
