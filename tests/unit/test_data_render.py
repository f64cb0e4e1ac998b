"""Rendering: the rows that TRL keeps, the counts that it does not report, and the refusals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from aligntune.algorithms.base import Schema
from aligntune.data import Prepared, render
from aligntune.data.storage import to_dataset
from aligntune.data.tokens import Tokens, common_prefix
from aligntune.errors import ValidationError
from helpers import byte_tokenizer

NO_GENERATION = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
ASSISTANT_MARKED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}|{% endif %}{% endfor %}"
)


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def prepared(rows: list[dict]) -> Prepared:
    return Prepared(to_dataset(rows), "given", ["first"], "rows.jsonl", "0" * 64)


def words_tokenizer(*, bos: bool = False) -> Any:
    """A WordLevel tokenizer without a chat template; `bos` puts <s> before each text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<s>", "</s>", "<unk>", "a", "b", "c", "User", "Assistant", ":"]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def lengths(limit: int, count: int = 150) -> list[int]:
    """Lengths below, around and above a limit, more of them than are always tokenised."""
    return [(7 * i) % (2 * limit) + 1 for i in range(count)]


# Uneven texts, some not ASCII, so that neither the first rows nor the quick bound decide everything.
PAIRS = [
    {"prompt": [user(("é" if i % 5 == 0 else "p") * n)], "completion": [assistant("c" * ((3 * n) % 40 + 1))]}
    for i, n in enumerate(lengths(90))
]
TEXTS = [{"text": "t" * n} for n in lengths(60)]
CHATS = [{"messages": [user("q" * n), assistant("a" * (n % 9 + 1)), user("r"), assistant("b")]} for n in lengths(60)]
PREFERENCES = [
    {"prompt": [user("p" * n)], "chosen": [assistant("c" * (n % 31 + 1))], "rejected": [assistant("r" * (n % 17 + 1))]}
    for n in lengths(90)
]


def trl_sft(dataset: Any, tokenizer: Any, limit: int, *, assistant_only: bool = False) -> list[list[int]]:
    """The labels that TRL's SFTTrainer makes of a data set, without a model."""
    from trl import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    me = SimpleNamespace(
        _tokenizer=tokenizer, chat_template=None, completion_only_loss="prompt" in dataset.column_names
    )
    args = SFTConfig(
        output_dir="unused",
        max_length=limit,
        bf16=False,
        use_cpu=True,
        report_to=[],
        assistant_only_loss=assistant_only,
    )
    return SFTTrainer._prepare_dataset(me, dataset, tokenizer, args, False, None, "train")["labels"][:]


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize(
    ("rows", "schema", "limit"),
    [(PAIRS, "prompt_completion", 100), (TEXTS, "text", 60), (CHATS, "messages", 120)],
    ids=["pairs", "texts", "chats"],
)
def test_sft_rows_and_counts_are_those_of_trl(rows: list[dict], schema: str, limit: int, chat: bool) -> None:
    tokenizer = byte_tokenizer(chat=chat)
    rendered = render(prepared(rows), Schema(schema), tokenizer, max_length=limit)
    whole = render(prepared(rows), Schema(schema), tokenizer, max_length=None)
    assert len(whole.dataset) == len(rows)
    before, after = trl_sft(whole.dataset, tokenizer, None), trl_sft(rendered.dataset, tokenizer, limit)
    # TRL, given every row, keeps as many as we hand over, and drops none of ours.
    assert after == trl_sft(whole.dataset, tokenizer, limit)
    assert len(after) == len(rendered.dataset)
    lost = len(rows) - len(after)
    long = sum(len(labels) > limit for labels in before)
    assert long > 0
    notes = " ".join(rendered.notes)
    assert (f"Left out {lost} of {len(rows)} rows" in notes) == (lost > 0)
    assert f"{long - lost} of {len(rows)} rows are longer than model.max_seq_length = {limit}" in notes
    assert f"(longest: {max(map(len, before))})" in notes


@pytest.mark.parametrize("chat", [True, False])
def test_dpo_rows_are_those_of_trl(chat: bool) -> None:
    from trl import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    tokenizer, limit = byte_tokenizer(chat=chat), 80
    rendered = render(prepared(PREFERENCES), Schema.PREFERENCE, tokenizer, max_length=limit)
    whole = render(prepared(PREFERENCES), Schema.PREFERENCE, tokenizer, max_length=None)
    me = SimpleNamespace(_tokenizer=tokenizer)
    args = DPOConfig(output_dir="unused", max_length=limit, bf16=False, use_cpu=True, report_to=[])
    columns = ["prompt_ids", "chosen_ids", "rejected_ids"]
    kept = DPOTrainer._prepare_dataset(me, whole.dataset, tokenizer, args, "train").select_columns(columns)
    ours = DPOTrainer._prepare_dataset(me, rendered.dataset, tokenizer, args, "train").select_columns(columns)
    assert ours[:] == kept[:]
    assert len(ours) == len(rendered.dataset) < len(PREFERENCES)
    cut = sum(len(r["prompt_ids"]) + max(len(r["chosen_ids"]), len(r["rejected_ids"])) > limit for r in kept)
    assert f"{cut} of {len(PREFERENCES)} rows are longer" in rendered.notes[-1]


def test_the_quick_bound_changes_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    for schema, rows, limit in (
        ("prompt_completion", PAIRS, 100),
        ("text", TEXTS, 60),
        ("preference", PREFERENCES, 80),
    ):
        quick = render(prepared(rows), Schema(schema), byte_tokenizer(), max_length=limit)
        with monkeypatch.context() as patch:
            patch.setattr(Tokens, "surely_within", lambda self, text, limit: False)
            slow = render(prepared(rows), Schema(schema), byte_tokenizer(), max_length=limit)
        assert (quick.notes, quick.dataset[:]) == (slow.notes, slow.dataset[:])


def test_bos_counts_towards_the_limit() -> None:
    rows = [{"text": "a b"}, {"text": "a b c"}]
    plain = render(prepared(rows), Schema.TEXT, words_tokenizer(), max_length=4)
    assert plain.notes == ["first"]
    begun = render(prepared(rows), Schema.TEXT, words_tokenizer(bos=True), max_length=4)
    assert (
        begun.notes[-1] == "1 of 2 rows are longer than model.max_seq_length = 4 tokens and are cut there (longest: 5)."
    )


def test_long_prompts_are_left_out_of_policy_data() -> None:
    rows = [{"prompt": [user("x" * n)], "reference": str(n)} for n in lengths(60)]
    tokenizer = byte_tokenizer()
    limit = 70
    kept = render(prepared(rows), Schema.PROMPT, tokenizer, max_length=None, max_prompt_length=limit)
    sizes = [len(tokenizer.apply_chat_template(r["prompt"], add_generation_prompt=True)["input_ids"]) for r in rows]
    assert kept.dataset["reference"][:] == [
        r["reference"] for r, size in zip(rows, sizes, strict=True) if size <= limit
    ]
    lost = sum(size > limit for size in sizes)
    assert kept.notes[-1] == (
        f"Left out {lost} of 150 prompts of more than generation.max_prompt_length = 70 tokens (longest: {max(sizes)})."
    )
    with pytest.raises(ValidationError, match="all 150 prompts") as caught:
        render(prepared(rows), Schema.PROMPT, tokenizer, max_length=None, max_prompt_length=2)
    assert f"generation.max_prompt_length to {min(sizes)} or more" in caught.value.hint


def test_message_lists_stay_with_a_template_and_become_text_without() -> None:
    row = {"prompt": [user("2+2?")], "completion": [assistant("4")], "tools": None}
    kept = render(prepared([row]), Schema.PROMPT_COMPLETION, byte_tokenizer(), max_length=99)
    assert kept.dataset[0]["prompt"] == [user("2+2?")]
    plain = render(prepared([row]), Schema.PROMPT_COMPLETION, byte_tokenizer(chat=False), max_length=99)
    assert plain.dataset[:] == {"prompt": ["2+2?\n"], "completion": ["4"]}
    assert "no chat template" in plain.notes[1]
    prompts = prepared([{"prompt": [user("a"), assistant("b"), user("c")], "level": 3}])
    text = render(prompts, Schema.PROMPT, byte_tokenizer(chat=False), max_length=None)
    assert text.dataset[:] == {"prompt": ["User: a\n\nAssistant: b\n\nUser: c\n\nAssistant:"], "level": [3]}
    pair = {"prompt": [user("a"), assistant("b"), user("c")], "chosen": [assistant("d")], "rejected": [assistant("e")]}
    text = render(prepared([pair]), Schema.PREFERENCE, byte_tokenizer(chat=False), max_length=99)
    assert (text.dataset[0]["chosen"], text.dataset[0]["rejected"]) == (" d", " e")
    chat = render(
        prepared([{"messages": [user("a"), assistant("b")]}]), Schema.MESSAGES, byte_tokenizer(chat=False), max_length=9
    )
    assert chat.dataset[:] == {"text": ["a\nb"]}


def test_nothing_left_to_train_on_is_an_error_with_the_key() -> None:
    tokenizer = byte_tokenizer()
    rows = [{"prompt": [user("x" * 50)], "completion": [assistant("y")]}] * 3
    size = len(tokenizer.apply_chat_template(rows[0]["prompt"], add_generation_prompt=True)["input_ids"])
    with pytest.raises(ValidationError, match=r"none of the 3 rows .* model.max_seq_length = 20") as caught:
        render(prepared(rows), Schema.PROMPT_COMPLETION, tokenizer, max_length=20)
    assert caught.value.hint == f"set model.max_seq_length to {size + 1} or more"
    # The hint is exact: one token fewer still trains nothing.
    with pytest.raises(ValidationError):
        render(prepared(rows), Schema.PROMPT_COMPLETION, tokenizer, max_length=size)
    assert len(render(prepared(rows), Schema.PROMPT_COMPLETION, tokenizer, max_length=size + 1).dataset) == 3
    tokenizer.chat_template = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ValidationError, match="every label is masked"):
        render(prepared(rows), Schema.PROMPT_COMPLETION, tokenizer, max_length=99)


def test_assistant_masks() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = ASSISTANT_MARKED
    rows = [{"messages": [user("q" * 10), assistant("abc")]}, {"messages": [user("q" * 40), assistant("abc")]}]
    rendered = render(prepared(rows), Schema.MESSAGES, tokenizer, max_length=13, loss_on="assistant")
    assert rendered.dataset["messages"][0][0] == user("q" * 10)
    assert len(rendered.dataset) == 1
    assert trl_sft(rendered.dataset, tokenizer, 13, assistant_only=True) == [[-100] * 11 + tokenizer("ab")["input_ids"]]
    tokenizer.chat_template = NO_GENERATION
    with pytest.raises(ValidationError, match="does not mark the assistant's text"):
        render(prepared(rows), Schema.MESSAGES, tokenizer, max_length=13, loss_on="assistant")
    with pytest.raises(ValidationError, match="needs a chat template"):
        render(prepared(rows), Schema.MESSAGES, byte_tokenizer(chat=False), max_length=13, loss_on="assistant")


def test_a_template_that_refuses_a_row_names_it() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ m['content'] }}{% endfor %}"
    )
    rows = [
        {"messages": [user("a"), assistant("b")]},
        {"messages": [{"role": "system", "content": "s"}, assistant("b")]},
    ]
    with pytest.raises(ValidationError, match=r"refuses row 2 \(roles: system, assistant\): no system role"):
        render(prepared(rows), Schema.MESSAGES, tokenizer, max_length=99)


def test_tool_calls_are_spelled_out_for_templates_without_tools() -> None:
    call = {"type": "function", "function": {"name": "get", "arguments": {"q": 1}}}
    turns = [
        user("weather?"),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "sun"},
        assistant("Sunny."),
    ]
    rows = [{"messages": turns, "tools": '[{"type": "function", "function": {"name": "get"}}]'}]
    tokenizer = byte_tokenizer()
    rendered = render(prepared(rows), Schema.MESSAGES, tokenizer, max_length=500)
    assert rendered.dataset[0] == {
        "messages": [
            user("weather?"),
            assistant('{"name": "get", "arguments": {"q": 1}}'),
            user("sun"),
            assistant("Sunny."),
        ]
    }
    assert sum("no tools" in note or "knows no tools" in note for note in rendered.notes) == 2
    tokenizer.chat_template = (
        "{{ tools | length if tools else 0 }}{% for m in messages %}{{ m['role'] }}{% if m.tool_calls %}"
        "{{ m.tool_calls[0].function.arguments.q }}{% endif %}{{ m['content'] }}<|im_end|>{% endfor %}"
    )
    kept = render(prepared(rows), Schema.MESSAGES, tokenizer, max_length=500)
    assert kept.dataset[0]["messages"] == turns
    ids = [token for token in trl_sft(kept.dataset, tokenizer, 500)[0] if token != -100]
    assert (
        tokenizer.decode(ids) == "1userweather?<|im_end|>assistant1<|im_end|>toolsun<|im_end|>assistantSunny.<|im_end|>"
    )


def test_a_tokenizer_without_eos_is_refused() -> None:
    tokenizer = words_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValidationError, match="no EOS token"):
        render(prepared([{"text": "a b"}]), Schema.TEXT, tokenizer, max_length=9)


def test_common_prefix() -> None:
    assert common_prefix([1, 2, 3], [1, 2, 4, 5]) == 2
    assert common_prefix([1, 2], [1, 2, 4]) == 2
    assert common_prefix([], [1]) == 0
