"""Formats, schemas, templates, mappings, draws and mixtures: what each row becomes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aligntune.algorithms.base import Schema
from aligntune.core.config import DatasetConfig
from aligntune.data import PRESETS, Prepared, prepare_dataset
from aligntune.data.messages import parse_dialogue, plain_conversation, plain_prompt, to_tools
from aligntune.data.mixing import mix
from aligntune.data.templates import PromptTemplate
from aligntune.errors import ConfigurationError, ValidationError

USER = {"role": "user", "content": "2+2?"}
ANSWER = {"role": "assistant", "content": "4"}
SYSTEM = {"role": "system", "content": "Be brief."}


class Prepare:
    """Rows to a file to `prepare_dataset`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, rows: list[dict], schema: str, *, seed: int = 0, name: str = "rows", **keys: Any) -> Prepared:
        return prepare_dataset(self.source(rows, name=name, **keys), Schema(schema), seed=seed)

    def source(self, rows: list[dict], name: str = "rows", draw: str = "", **keys: Any) -> DatasetConfig:
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return DatasetConfig(name=f"{path}{draw}", **keys)


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    return Prepare(tmp_path)


PAIR = {"prompt": [USER], "completion": [ANSWER]}


@pytest.mark.parametrize(
    ("row", "format_name"),
    [
        ({"instruction": "2+2?", "input": "", "output": "4"}, "alpaca"),
        ({"instruction": "2+2?", "output": "4"}, "alpaca"),
        ({"prompt": "2+2?", "completion": "4"}, "prompt_completion"),
        ({"question": "2+2?", "answer": 4}, "prompt_completion"),
        ({"prompt": [USER], "completion": [ANSWER]}, "prompt_completion"),
        ({"prompt": USER, "completion": "4"}, "prompt_completion"),
        ({"messages": [USER, ANSWER]}, "messages"),
        ({"messages": json.dumps([USER, ANSWER])}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "2+2?"}]}, ANSWER]}, "messages"),
        ({"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}, "sharegpt"),
        ({"conversations": [USER, ANSWER]}, "sharegpt"),
    ],
)
def test_every_answered_format_serves_three_schemas(prepare: Prepare, row: dict, format_name: str) -> None:
    paired = prepare([row], "prompt_completion")
    assert (paired.dataset[0], paired.format) == (PAIR, format_name)
    assert any(f"format {format_name} (detected)" in note for note in paired.notes)
    assert prepare([row], "messages").dataset[0] == {"messages": [USER, ANSWER]}
    prompted = prepare([row], "prompt").dataset[0]
    assert prompted["prompt"] == [USER]
    assert prompted["reference"] == "4"


def test_alpaca_input_follows_the_instruction(prepare: Prepare) -> None:
    row = {"instruction": "Add.", "input": "1 and 2", "output": "3", "system": "Be brief."}
    assert prepare([row], "prompt_completion").dataset[0]["prompt"] == [
        SYSTEM,
        {"role": "user", "content": "Add.\n\n1 and 2"},
    ]


def test_the_last_assistant_turn_is_the_completion(prepare: Prepare) -> None:
    turns = [USER, ANSWER, {"role": "user", "content": "3+3?"}, {"role": "assistant", "content": "6"}, USER]
    prepared = prepare([{"messages": turns}], "prompt_completion")
    assert prepared.dataset[0] == {"prompt": turns[:3], "completion": [turns[3]]}
    assert any("1 conversations have several assistant turns" in note for note in prepared.notes)
    assert prepare([{"messages": turns}], "messages").dataset[0] == {"messages": turns}
    assert prepare([{"messages": turns}], "prompt").dataset[0]["reference"] == "6"


def test_text(prepare: Prepare) -> None:
    assert prepare([{"text": "a", "id": 1}], "text").dataset[:] == {"text": ["a"]}
    assert "Columns not used: id." in prepare([{"text": "a", "id": 1}], "text").notes
    made = prepare([{"a": "x", "b": 2}], "text", prompt_template="{{ a }}={{ b }}")
    assert made.dataset[:] == {"text": ["x=2"]}
    with pytest.raises(ConfigurationError, match="system_prompt has no meaning"):
        prepare([{"text": "a"}], "text", system_prompt="x")


LEFT, RIGHT = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2+2?", "chosen": "good", "rejected": "bad"},
        {"question": "2+2?", "chosen": [LEFT], "rejected": [RIGHT]},
        {"prompt": [USER], "chosen": LEFT, "rejected": RIGHT},
        {"chosen": [USER, LEFT], "rejected": [USER, RIGHT]},
        {"prompt": "2+2?", "chosen": [USER, LEFT], "rejected": [USER, RIGHT]},
        {"chosen": "\n\nHuman: 2+2?\n\nAssistant: good", "rejected": "\n\nHuman: 2+2?\n\nAssistant: bad"},
        {
            "conversations": [{"from": "human", "value": "2+2?"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        {"chosen": "2+2? good", "rejected": "2+2? bad"},
    ],
)
def test_preference_in_all_its_spellings(prepare: Prepare, row: dict) -> None:
    prepared = prepare([row], "preference")
    assert prepared.dataset[0] == {"prompt": [USER], "chosen": [LEFT], "rejected": [RIGHT]}
    prompted = prepare([row], "prompt").dataset[0]
    assert prompted["prompt"] == [USER]
    assert "reference" not in prompted


def test_rows_without_what_a_preference_needs_are_counted(prepare: Prepare) -> None:
    good = {"prompt": "2+2?", "chosen": "good", "rejected": "bad"}
    rows = [
        good,
        {**good, "chosen": ""},
        {**good, "rejected": None},
        {**good, "rejected": "good"},
        {**good, "prompt": " "},
        {**good, "chosen": [USER]},
    ]
    prepared = prepare(rows, "preference")
    assert len(prepared.dataset) == 1
    assert sum("Left out 1 of 6 rows" in note for note in prepared.notes) == 5
    assert any("chosen and rejected are the same (rows.jsonl:4)" in note for note in prepared.notes)
    with pytest.raises(ValidationError, match=r"none of the 1 rows .* share no beginning"):
        prepare([{"chosen": "yes", "rejected": "no"}], "preference")


def test_dialogues_join_turns_of_one_speaker() -> None:
    text = "\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nd\n\nAssistant: e\n\nHuman:"
    assert [(m["role"], m["content"]) for m in parse_dialogue(text)] == [
        ("user", "a\n\nb"),
        ("assistant", "c\n\nd\n\ne"),
        ("user", ""),
    ]


def test_prompt_keeps_every_column_and_the_gold(prepare: Prepare) -> None:
    rows = [
        {"prompt": "p", "solution": 3.0, "tests": ["a"], "text": "t", "meta": {"k": 1}},
        {"prompt": "q", "solution": None, "tests": [], "meta": {"other": "x"}},
    ]
    prepared = prepare(rows, "prompt")
    assert prepared.dataset[0] == {
        "prompt": [{"role": "user", "content": "p"}],
        "solution": 3.0,
        "tests": ["a"],
        "source_text": "t",
        "meta": {"k": 1},
        "reference": "3",
    }
    assert prepared.dataset[1]["reference"] is None
    assert prepared.dataset[1]["meta"] == {"other": "x"}
    assert any("text to source_text" in note for note in prepared.notes)


def test_mapping_names_columns_for_prompts_gold_and_rewards(prepare: Prepare) -> None:
    row = {"task": "p", "out": [{"x": "gold"}], "t": ["a"]}
    mapping = {"prompt": "task", "reference": "out.0.x", "tests": "t"}
    made = prepare([row], "prompt", column_mapping=mapping).dataset[0]
    assert made["prompt"][0]["content"] == "p"
    assert (made["reference"], made["tests"], made["t"]) == ("gold", ["a"], ["a"])
    nested = prepare([row], "prompt_completion", column_mapping={"prompt": "task", "completion": "out.0.x"})
    assert nested.dataset[0]["completion"] == [{"role": "assistant", "content": "gold"}]


def test_the_gsm8k_preset_takes_what_follows_the_mark(prepare: Prepare) -> None:
    rows = [{"question": "q", "answer": "It is 1,000.\n#### 1,000"}, {"question": "q", "answer": "no mark"}]
    prepared = prepare(rows, "prompt", preset="gsm8k")
    assert prepared.dataset["reference"][:] == ["1,000"]
    assert any("has no '####'" in note and "rows.jsonl:2" in note for note in prepared.notes)
    assert prepare(rows, "prompt_completion", preset="gsm8k").dataset["completion"][0][0]["content"].endswith("1,000")


def test_presets_and_their_contradictions(prepare: Prepare) -> None:
    assert {"alpaca", "gsm8k", "hh_rlhf"} <= set(PRESETS)
    with pytest.raises(ConfigurationError, match="unknown preset 'gsm8'") as caught:
        prepare([{"text": "a"}], "text", preset="gsm8")
    assert "did you mean 'gsm8k'?" in caught.value.hint
    with pytest.raises(ConfigurationError, match=r"keep one of the two|format says"):
        prepare([{"text": "a"}], "messages", preset="alpaca", format="messages")


def test_templates(prepare: Prepare) -> None:
    rows = [{"q": "a", "n": 1, "answer": "x"}, {"q": "b", "n": None, "answer": "y"}]
    prepared = prepare(rows, "prompt_completion", prompt_template="{{ q }}{% if n %}!{% endif %}\n")
    assert [p[0]["content"] for p in prepared.dataset["prompt"]] == ["a!\n", "b\n"]
    # A null that would be printed as "None" is a problem of the row instead.
    printed = prepare(rows, "prompt_completion", prompt_template="{{ q }} {{ n }}")
    assert len(printed.dataset) == 1
    assert any("prints is null (rows.jsonl:2)" in note for note in printed.notes)
    with pytest.raises(ValidationError, match=r"rows\.jsonl:1: .*needs 'qq'.*columns found: q, n, answer"):
        prepare(rows, "prompt_completion", prompt_template="{{ qq }}")
    with pytest.raises(ConfigurationError, match="prompt_template, line 2"):
        prepare(rows, "prompt_completion", prompt_template="a\n{% if %}")
    with pytest.raises(ConfigurationError, match="no place in format 'messages'"):
        prepare([{"messages": [USER, ANSWER]}], "messages", prompt_template="{{ q }}", format="messages")


def test_templates_cannot_leave_the_sandbox() -> None:
    with pytest.raises(ValidationError, match="prompt_template fails"):
        PromptTemplate("{{ x.__class__.__mro__[1].__subclasses__() }}").render({"x": 1})
    with pytest.raises(ValidationError, match="prompt_template fails"):
        PromptTemplate("{{ x.append(1) }}").render({"x": []})


def test_system_prompt_stands_before_each_conversation(prepare: Prepare) -> None:
    rows = [{"messages": [USER, ANSWER]}, {"messages": [{"role": "system", "content": "own"}, USER, ANSWER]}]
    prepared = prepare(rows, "messages", system_prompt="Be brief.")
    assert [row["messages"][0]["content"] for row in prepared.dataset] == ["Be brief.", "own"]
    assert any("1 rows keep the system message of their own" in note for note in prepared.notes)
    pair = prepare([{"prompt": "2+2?", "chosen": "a", "rejected": "b"}], "preference", system_prompt="Be brief.")
    assert pair.dataset[0]["prompt"] == [SYSTEM, USER]


def test_tool_calls_of_sharegpt(prepare: Prepare) -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "weather?"},
            {"from": "function_call", "value": '{"name": "get", "arguments": {"q": 1}}'},
            {"from": "observation", "value": "sun"},
            {"from": "gpt", "value": "Sunny."},
        ],
        "tools": '[{"name": "get", "parameters": {}}]',
    }
    made = prepare([row, {**row, "tools": "[]"}], "messages").dataset
    call = {"type": "function", "function": {"name": "get", "arguments": {"q": 1}}}
    assert made[0]["messages"][1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert made[0]["messages"][2] == {"role": "tool", "content": "sun"}
    assert json.loads(made[0]["tools"]) == [{"type": "function", "function": {"name": "get", "parameters": {}}}]
    assert made[1]["tools"] is None
    assert to_tools([]) is None


def test_rows_that_cannot_be_read_stop_with_their_place(prepare: Prepare) -> None:
    good = {"messages": [USER, ANSWER]}
    for bad, message in [
        ({"messages": [{"role": "martian", "content": "x"}]}, "unknown role 'martian'"),
        ({"messages": ["x"]}, "a message must be an object"),
        ({"messages": 3}, "expected text or a list of messages, found int"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "images are not supported"),
    ]:
        with pytest.raises(ValidationError, match=rf"rows\.jsonl:2: {message}|rows\.jsonl:2: .*{message}"):
            prepare([good, bad], "messages")


def test_rows_that_lack_something_are_counted_and_named(prepare: Prepare) -> None:
    rows = [
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "completion": ""},
        {"prompt": "a"},
        {"prompt": None, "completion": "b"},
    ]
    prepared = prepare(rows, "prompt_completion")
    assert len(prepared.dataset) == 1
    notes = [note for note in prepared.notes if note.startswith("Left out")]
    assert notes == [
        "Left out 2 of 4 rows: the completion is empty or null (rows.jsonl:2, rows.jsonl:3).",
        "Left out 1 of 4 rows: the prompt is null (rows.jsonl:4).",
    ]
    with pytest.raises(ValidationError, match=r"none of the 1 rows .* no assistant turn"):
        prepare([{"messages": [USER]}], "messages")


def test_columns_that_do_not_fit_are_refused_with_what_was_found(prepare: Prepare) -> None:
    with pytest.raises(ValidationError, match="columns found: a, b") as caught:
        prepare([{"a": 1, "b": 2}], "prompt_completion")
    assert "column_mapping: {prompt: a, completion: b}" in caught.value.hint
    with pytest.raises(ValidationError, match="holds 'text' rows, which have no 'prompt_completion'"):
        prepare([{"text": "a"}], "prompt_completion")
    with pytest.raises(ValidationError, match=r"column 'questoin'.* columns found: question, answer") as caught:
        prepare([{"question": "a", "answer": "b"}], "prompt", column_mapping={"prompt": "questoin"})
    assert "did you mean 'question'?" in caught.value.hint
    with pytest.raises(ValidationError, match="format 'alpaca' needs the column 'output'; columns found: instruction"):
        prepare([{"instruction": "a"}], "prompt_completion", format="alpaca")
    with pytest.raises(ConfigurationError, match="format 'text' has no 'messages' rows"):
        prepare([{"text": "a"}], "messages", format="text")
    with pytest.raises(ConfigurationError, match="column_mapping names 'promt'") as caught:
        prepare([{"prompt": "a", "completion": "b"}], "prompt_completion", column_mapping={"promt": "prompt"})
    assert "did you mean 'prompt'?" in caught.value.hint


def test_empty_sources_are_refused(prepare: Prepare, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="holds no rows"):
        prepare([], "text")
    (tmp_path / "empty.json").write_text("")
    with pytest.raises(ValidationError, match="holds no rows"):
        prepare_dataset(DatasetConfig(name=str(tmp_path / "empty.json")), Schema.TEXT, seed=0)
    with pytest.raises(ConfigurationError, match="no data set is given"):
        prepare_dataset([], Schema.TEXT, seed=0)


def test_draws_follow_the_seed_and_keep_file_order(prepare: Prepare) -> None:
    rows = [{"text": str(i)} for i in range(100)]
    first = prepare(rows, "text", seed=1, max_samples=10).dataset["text"][:]
    assert prepare(rows, "text", seed=1, draw="#10").dataset["text"][:] == first
    assert prepare(rows, "text", seed=2, max_samples=10).dataset["text"][:] != first
    assert len(set(first)) == 10
    assert sorted(first, key=int) == first
    assert set(first) < set(prepare(rows, "text", seed=1, max_samples=20).dataset["text"][:])
    short = prepare(rows[:3], "text", max_samples=10)
    assert len(short.dataset) == 3
    assert short.notes[-1] == "Drew 3 of 3 rows with seed 0; 10 were asked for."


def test_draws_replace_rows_that_cannot_be_used(prepare: Prepare) -> None:
    rows = [{"text": str(i) if i % 2 else ""} for i in range(100)]
    prepared = prepare(rows, "text", max_samples=50)
    assert len(prepared.dataset) == 50
    assert any(note.startswith("Left out") for note in prepared.notes)


def test_the_hash_names_the_content(prepare: Prepare) -> None:
    one = prepare([{"text": "a"}], "text")
    assert one.content_hash == prepare([{"text": "a", "id": 3}], "text", name="other").content_hash
    assert one.content_hash != prepare([{"text": "b"}], "text").content_hash
    assert len(one.content_hash) == 64


def test_equal_weights_join_sources_whole(prepare: Prepare) -> None:
    sources = [
        prepare.source([{"text": f"a{i}"} for i in range(30)], name="a"),
        prepare.source([{"text": f"b{i}"} for i in range(5)], name="b"),
    ]
    joined = prepare_dataset(sources, Schema.TEXT, seed=3)
    texts = joined.dataset["text"][:]
    assert sorted(texts) == sorted([f"a{i}" for i in range(30)] + [f"b{i}" for i in range(5)])
    assert texts != sorted(texts)
    assert "30 of 30 rows from a.jsonl; 5 of 5 rows from b.jsonl" in joined.notes[-1]
    assert prepare_dataset(sources, Schema.TEXT, seed=3).content_hash == joined.content_hash
    assert prepare_dataset(sources, Schema.TEXT, seed=4).content_hash != joined.content_hash


@pytest.mark.parametrize(
    ("sizes", "weights", "counts"),
    [((90, 90), (2, 1), (90, 45)), ((30, 300), (0.3, 0.7), (30, 70)), ((10, 10, 10), (1, 1, 2), (5, 5, 10))],
)
def test_weights_are_shares_without_repeats(sizes: tuple, weights: tuple, counts: tuple) -> None:
    order, note = mix(list(sizes), list(weights), [f"s{i}" for i in range(len(sizes))], seed=0)
    assert tuple(sum(part == p for part, _ in order) for p in range(len(sizes))) == counts
    assert len(set(order)) == len(order)
    assert all(0 <= row < sizes[part] for part, row in order)
    assert f"{counts[0]} of {sizes[0]} rows from s0" in note


def test_mixed_sources_of_several_formats(prepare: Prepare) -> None:
    sources = [
        prepare.source([{"question": "a", "answer": "1", "level": 3}], name="a"),
        prepare.source([{"instruction": "b", "output": "2", "level": "x"}], name="b"),
    ]
    made = prepare_dataset(sources, Schema.PROMPT, seed=0)
    assert made.format == "prompt_completion + alpaca"
    assert {row["reference"]: row["level"] for row in made.dataset} == {"1": 3, "2": "x"}


def test_a_weight_without_a_second_source_is_refused(prepare: Prepare) -> None:
    with pytest.raises(ConfigurationError, match=r"weight 0\.5 has no effect"):
        prepare([{"text": "a"}], "text", weight=0.5)


def test_plain_text_forms() -> None:
    assert plain_prompt([USER]) == "2+2?\n"
    assert plain_prompt([SYSTEM, USER]) == "Be brief.\n\n2+2?\n"
    assert plain_prompt([{"role": "user", "content": "TLDR: "}]) == "TLDR: "
    assert plain_conversation([USER, ANSWER]) == "2+2?\n4"
    assert plain_prompt([USER, ANSWER, USER]) == "User: 2+2?\n\nAssistant: 4\n\nUser: 2+2?\n\nAssistant:"
    assert plain_conversation([USER, ANSWER, USER, ANSWER]) == (
        "User: 2+2?\n\nAssistant: 4\n\nUser: 2+2?\n\nAssistant: 4"
    )
