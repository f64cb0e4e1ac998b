"""`aligntune check`: each classic mistake is planted and caught by name, and clean rows raise no alarm."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import helpers
import runs
from aligntune.core import versions
from aligntune.core.config import load_config
from aligntune.core.config.reading import set_key
from aligntune.errors import ConfigurationError
from aligntune.preflight import Report, arithmetic, check, memory, rows, settings, templates, tokens, trained
from aligntune.preflight.subject import Subject

WORDS = [
    "amber",
    "brook",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "heron",
    "inlet",
    "jetty",
    "kayak",
    "lagoon",
    "meadow",
    "nectar",
    "orchid",
    "pebble",
]
NO_END = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
UNMARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COUNTING = "{% for m in messages %}<|im_start|>{{ loop.index }} of {{ messages | length }}\n{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
END_OUTSIDE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}<|im_end|>{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
OTHER_END = UNMARKED.replace("<|im_end|>", "<|im_start|>")


def sentence(seed: int, count: int = 16) -> str:
    """Words in an order of their own."""
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def pairs(count: int = 40) -> list[dict[str, Any]]:
    """Preference pairs whose longer side is the chosen one as often as not."""
    return [
        {
            "prompt": f"Say {sentence(i, 4)}",
            "chosen": sentence(1000 + i, 5 + i % 2),
            "rejected": sentence(2000 + i, 6 - i % 2),
        }
        for i in range(count)
    ]


def chats(count: int = 24) -> list[dict[str, Any]]:
    """Conversations of two turns."""
    return [
        {
            "messages": [
                {"role": r, "content": sentence(10 * i + k, 3)}
                for k, r in enumerate(("user", "assistant", "user", "assistant"))
            ]
        }
        for i in range(count)
    ]


LABELLED = [{"text": sentence(i, 6), "label": ("yes", "no")[i % 2]} for i in range(40)]
SUMS = [{"prompt": f"What is {i} + {i + 3}?", "answer": str(2 * i + 3)} for i in range(24)]
KINDS = {
    "sft": runs.SFT_ROWS,
    "chat": chats(),
    "text": [{"text": sentence(i)} for i in range(24)],
    "dpo": pairs(),
    "kto": [
        {"prompt": r["prompt"], "completion": r[s], "label": s == "chosen"}
        for r in pairs()
        for s in ("chosen", "rejected")
    ],
    "grpo": SUMS,
    "labels": LABELLED,
}
TASKS = {
    "sft": "instruction_following",
    "chat": "chat_completion",
    "text": "text_generation",
    "labels": "text_classification",
}


def config(folder: Path, model: Path, kind: str, data: list[dict[str, Any]] | None = None, **changes: Any) -> Any:
    """A resolved configuration over rows that are written to `folder`; `changes` has `__` for the dot."""
    file = runs.write_rows(folder / "rows.jsonl", KINDS[kind] if data is None else data)
    raw: dict[str, Any] = {
        "model": {"name_or_path": str(model), "max_seq_length": 128},
        "train": {"max_steps": 20, "per_device_batch_size": 4},
        "output_dir": str(folder / "out"),
    }
    if kind in TASKS:
        raw |= {"task": {"name": TASKS[kind]}, "dataset": {"name": str(file)}}
    else:
        raw |= {"algo": {"name": kind}, "datasets": [{"name": str(file)}]}
    if kind == "grpo":
        raw["algo"]["num_generations"] = 4
        raw["rewards"] = ["math_correctness"]
        raw["generation"] = {"max_prompt_length": 96, "max_completion_length": 32}
    for key, value in changes.items():
        set_key(raw, key.replace("__", "."), value)
    return load_config(raw)


def held_out(folder: Path, data: list[dict[str, Any]]) -> str:
    return str(runs.write_rows(folder / "test.jsonl", data))


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALIGNTUNE_CACHE", str(tmp_path / "cache"))


# ---- clean rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KINDS))
def test_clean_rows_raise_no_alarm(kind: str, tmp_path: Path, tiny_model: Path) -> None:
    made = config(tmp_path, tiny_model, kind)
    report = check(made)
    assert report.with_status("fail") == []
    assert [v.name for v in report.with_status("warn")] == []
    assert report.exit_code(strict=True) == 0
    names = [v.name for v in report.verdicts]
    assert len(names) == len(set(names))
    json.dumps(report.to_dict())
    assert report.rows


def test_a_clean_held_out_set_raises_no_alarm(tmp_path: Path, tiny_model: Path) -> None:
    other = held_out(tmp_path, [{"prompt": sentence(900 + i), "completion": "Yes."} for i in range(20)])
    report = check(config(tmp_path, tiny_model, "sft", evaluation__dataset=other))
    assert report.named("train-in-eval").status == "pass"


# ---- planted mistakes --------------------------------------------------------------------------------------------

PAIRS, CHATS, SFT = pairs(), chats(), runs.SFT_ROWS
LONG = [{"prompt": "word " * 60, "completion": "x"}]
PLANTED: dict[str, tuple[str, str, Any, dict[str, Any]]] = {
    # name of the plant: (verdict, kind, rows or None, changes)
    "answers without an end": ("terminator", "sft", None, {"model__chat_template": NO_END}),
    "the end outside the marks": ("terminator", "chat", None, {"model__chat_template": END_OUTSIDE}),
    "no end in pairs": ("terminator", "dpo", None, {"model__chat_template": NO_END}),
    "generation stops elsewhere": ("stop-token", "grpo", None, {"model__chat_template": OTHER_END}),
    "another template than the model's": ("chat-template", "sft", None, {"model__chat_template": UNMARKED}),
    "no generation marks": ("generation-marks", "chat", None, {"model__chat_template": UNMARKED.replace("role", "role")}),
    "not append-only": ("append-only", "chat", None, {"model__chat_template": COUNTING}),
    "prompts fill the limit": ("prompt-truncated", "sft", SFT + LONG * 20, {"model__max_seq_length": 48}),
    "long prompts to answer": ("prompt-truncated", "grpo", SUMS + [{"prompt": "w " * 200, "answer": "1"}] * 9, {}),
    "answers are cut": ("answer-truncated", "sft", None, {"model__max_seq_length": 32}),
    "whole texts are cut": ("answer-truncated", "text", None, {"model__max_seq_length": 32}),
    "pairs are cut": ("answer-truncated", "dpo", None, {"model__max_seq_length": 48}),
    "nothing left to train": ("masked-rows", "sft", SFT + LONG * 20, {"model__max_seq_length": 48}),
    "the same answer twice": ("equal-answers", "dpo", [*PAIRS, *({**r, "rejected": r["chosen"]} for r in PAIRS[:5])], {}),
    "the same but for case": ("equal-answers", "dpo", [*PAIRS, *({**r, "rejected": r["chosen"].upper()} for r in PAIRS[:5])], {}),
    "an empty answer": ("equal-answers", "dpo", [*PAIRS, {**PAIRS[0], "chosen": ""}], {}),
    "chosen is longer": ("length-bias", "dpo", [{**r, "chosen": r["chosen"] + " and more of it"} for r in PAIRS], {}),
    "rows stand twice": ("duplicates", "sft", SFT + SFT[:6], {}),
    "a text with two labels": ("duplicates", "labels", [*LABELLED, {"text": LABELLED[0]["text"], "label": "no"}], {}),
    "rows cannot be used": ("rows-left-out", "sft", [*SFT, {"prompt": "x", "completion": ""}], {}),
    "labels out of the list": ("labels", "labels", [*LABELLED, {"text": "odd one", "label": "maybe"}], {"task__labels": ["yes", "no"]}),
    "a label number too high": ("labels", "labels", [{"text": r["text"], "label": i % 4} for i, r in enumerate(LABELLED)], {"task__labels": ["a", "b", "c"]}),
    "a class without rows": ("classes", "labels", None, {"task__labels": ["yes", "no", "maybe"]}),
    "too high a rate": ("learning-rate", "sft", None, {"train__learning_rate": 0.1}),
    "too low a rate with LoRA": ("learning-rate", "dpo", None, {"train__learning_rate": 1e-8, "model__peft": {"r": 2}}),
    "warm-up is longer than the run": ("warm-up", "sft", None, {"train__warmup_steps": 20}),
    "warm-up longer than the epochs": ("warm-up", "sft", None, {"train__max_steps": None, "train__num_epochs": 2, "train__warmup_steps": 12}),
    "fewer rows than a step": ("batch", "sft", None, {"train__per_device_batch_size": 32}),
    "fewer prompts than a generation": ("batch", "grpo", SUMS[:1], {"train__per_device_batch_size": 8}),
    "the wrong gold column": ("gold-reward", "grpo", [{"prompt": r["prompt"], "answer": "see the book"} for r in SUMS], {"rewards": ["exact_integer.py:score"]}),
    "junk is paid": ("junk-reward", "grpo", None, {"rewards": ["generous.py:score"]}),
    "junk is paid more": ("reward-order", "grpo", None, {"rewards": [{"type": "math_correctness", "weight": -1.0}]}),
    "a component is constant": ("constant-reward", "grpo", None, {"rewards": ["math_correctness", "constant.py:score"]}),
    "a reward that lacks its column": ("rewards", "grpo", None, {"rewards": ["wanting.py:score"]}),
}  # fmt: skip
FILES = {
    "exact_integer.py": "from aligntune.rewards import reward\n@reward('exact_integer', range=(0, 1))\n"
    "def score(text: str, reference: str) -> float:\n    return float(text.strip() == reference and reference.isdigit())\n",
    "generous.py": "from aligntune.rewards import reward\n@reward('generous', range=(0, 1))\n"
    "def score(text: str, reference: str) -> float:\n    return 1.0 if reference in text else 0.5\n",
    "constant.py": "def score(text: str) -> float:\n    return 0.25\n",
    "wanting.py": "def score(text: str, absent: str) -> float:\n    return 0.0\n",
}


@pytest.mark.parametrize("plant", list(PLANTED))
def test_each_mistake_is_caught_by_name(
    plant: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, kind, data, changes = PLANTED[plant]
    for file, text in FILES.items():
        (tmp_path / file).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    report = check(config(tmp_path, tiny_model, kind, data, **changes))
    verdict = report.named(name)
    assert verdict.status in ("warn", "fail"), verdict
    assert verdict.reason
    assert verdict.fix
    assert report.exit_code(strict=True) == 1


@pytest.mark.parametrize(
    ("way", "change"),
    [
        ("exact", lambda t: t),
        ("normalised", lambda t: t.upper().replace(" ", "  ") + "!"),
        ("grams", lambda t: "Something else first, then: " + " ".join(t.split()[1:15])),
    ],
)
def test_held_out_rows_among_the_training_rows(
    way: str, change: Callable[[str], str], tmp_path: Path, tiny_model: Path
) -> None:
    train = [{"prompt": sentence(i, 20), "completion": "Yes."} for i in range(30)]
    test = [{"prompt": sentence(500 + i, 20), "completion": "Yes."} for i in range(10)]
    test[3]["prompt"] = change(train[7]["prompt"])
    made = config(
        tmp_path, tiny_model, "sft", train, evaluation__dataset=held_out(tmp_path, test), model__max_seq_length=256
    )
    verdict = check(made).named("train-in-eval")
    assert verdict.status == ("warn" if way == "grams" else "fail")
    assert verdict.data[way] == [3]
    assert verdict.data["pairs"] == [[3, 7]]
    assert "held-out row 4 = training row 8" in verdict.evidence[0]


def test_a_class_that_is_evaluated_and_never_trained(tmp_path: Path, tiny_model: Path) -> None:
    test = held_out(tmp_path, [{"text": "new words", "label": "maybe"}, {"text": "more words", "label": "yes"}])
    verdict = check(config(tmp_path, tiny_model, "labels", evaluation__dataset=test)).named("classes")
    assert verdict.status == "fail"
    assert verdict.data == {"not_trained": ["maybe"], "not_evaluated": ["no"], "without_rows": []}


def test_a_prompt_that_is_read_in_other_tokens_than_in_its_row(tmp_path: Path, tiny_model: Path) -> None:
    other = UNMARKED.replace(
        "{% if add_generation_prompt %}<|im_start|>assistant", "{% if add_generation_prompt %}<|im_start|>bot"
    )
    assert other != UNMARKED
    for kind in ("sft", "dpo"):
        clean = check(config(tmp_path, tiny_model, kind)).named("prompt-boundary")
        verdict = check(config(tmp_path, tiny_model, kind, model__chat_template=other)).named("prompt-boundary")
        assert (clean.status, verdict.status) == ("pass", "warn")
        assert verdict.data["rows"]
        assert verdict.fix


def test_kept_tokens_that_are_not_the_library_s(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligntune.data import rendering

    made = rendering.tokenise

    def wrong(*args: Any, **keys: Any) -> Any:
        columns = made(*args, **keys)
        columns["labels"][3] = [-100, *columns["labels"][3][:-1]]
        return columns

    assert check(config(tmp_path, tiny_model, "sft")).named("same-tokens").status == "pass"
    monkeypatch.setattr(rendering, "tokenise", wrong)
    verdict = check(config(tmp_path, tiny_model, "sft")).named("same-tokens")
    assert verdict.status == "fail"
    assert verdict.data["rows"] == [3]


def test_no_chat_template(tmp_path: Path, tiny_model_plain: Path) -> None:
    assert check(config(tmp_path, tiny_model_plain, "sft")).named("chat-template").status == "warn"
    assert check(config(tmp_path, tiny_model_plain, "chat")).named("chat-template").status == "fail"


def bos_model(folder: Path) -> Path:
    """A tiny model whose tokenizer puts a BOS token before each text."""
    from tokenizers import processors

    helpers.save_tiny_model(folder, chat=False)
    tokenizer = helpers.byte_tokenizer(chat=False)
    tokenizer.add_special_tokens({"bos_token": "<|im_start|>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(folder)
    return folder


def test_two_bos_tokens(tmp_path: Path) -> None:
    model = bos_model(tmp_path / "model")
    clean = check(config(tmp_path, model, "text"))
    assert clean.named("double-bos").status == "pass"
    twice = [{"text": "<|im_start|>" + sentence(i)} for i in range(20)]
    verdict = check(config(tmp_path, model, "text", twice)).named("double-bos")
    assert verdict.status == "fail"
    assert verdict.data["rows"] == list(range(20))


def test_a_padding_token_that_hides_eos(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EOS pads, and a collator that masks by token number takes the end of every answer out of the loss."""
    import trl.trainer.sft_trainer as library
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    model = helpers.save_tiny_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(model)
    made = config(tmp_path, model, "text")
    clean = check(made).named("padding-token")
    assert clean.status == "pass"
    assert "masking goes by position" in clean.reason

    def collator(pad_token_id: int, **_: Any) -> Any:
        inner = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        return lambda rows: inner([{"input_ids": row["input_ids"]} for row in rows])

    monkeypatch.setattr(library, "DataCollatorForLanguageModeling", collator)
    report = check(made)
    assert report.named("padding-token").status == "fail"
    assert report.named("terminator").status == "fail"


def test_padding_on_the_left(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import trl.trainer.sft_trainer as library

    pad = library.pad
    monkeypatch.setattr(library, "pad", lambda *args, **kw: pad(*args, **{**kw, "padding_side": "left"}))
    uneven = [{"text": sentence(i, 3 + i % 5)} for i in range(20)]
    assert check(config(tmp_path, tiny_model, "text", uneven)).named("padding-side").status == "fail"


def test_what_cannot_be_read_is_a_failing_verdict(tmp_path: Path, tiny_model: Path) -> None:
    made = config(tmp_path, tiny_model, "sft")
    gone = dataclasses.replace(made, dataset=dataclasses.replace(made.dataset, name=str(tmp_path / "none.jsonl")))
    report = check(gone)
    assert report.named("rows").status == "fail"
    assert "none.jsonl" in report.named("rows").reason
    assert report.exit_code() == 1
    lost = dataclasses.replace(made, model=dataclasses.replace(made.model, name_or_path=str(tmp_path / "no-model")))
    assert check(lost).named("tokenizer").status == "fail"


# ---- the parts ---------------------------------------------------------------------------------------------------


def test_rows_as_trained_are_those_of_the_training_library(tmp_path: Path, tiny_model: Path) -> None:
    """Ids and labels of the real run's trainer, built around the real model, are the ones shown."""
    from aligntune.core.backend_factory import create_trainer
    from aligntune.core.callbacks import Progress, StopRequest

    made = config(tmp_path, tiny_model, "chat")
    trainer = create_trainer(made)
    hf = trainer._build(StopRequest(), Progress(""))
    shown = trained.collate(Subject(made), [0, 3, 5]).rows
    for row in shown:
        theirs = hf.train_dataset[row.row]
        assert row.ids == theirs["input_ids"]
        assert row.trained == [label != -100 for label in theirs["labels"]]
        assert "".join(row.tokens) == trainer.tokenizer.decode(row.ids)


def test_a_sample_of_many_rows_holds_the_longest(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aligntune.preflight.subject.ALL_ROWS", 40)
    data = [{"text": sentence(i, 4)} for i in range(200)]
    data[111]["text"] = sentence(7, 60)
    subject = Subject(config(tmp_path, tiny_model, "text", data))
    assert subject.sample.drawn == 20
    assert 20 < len(subject.sample.rows) <= 40
    assert len(set(subject.sample.rows)) == len(subject.sample.rows)
    assert 111 in subject.sample.rows
    report = check(config(tmp_path, tiny_model, "text", data))
    assert report.named("answer-truncated").data["rows"] == [111]
    assert {row.row for row in report.rows} >= {111}


def test_rows_that_rendering_loses_keep_their_numbers(tmp_path: Path, tiny_model: Path) -> None:
    data = chats(12)
    for i in (2, 9):
        data[i]["messages"] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "skip"}]
    marked = helpers.CHAT_TEMPLATE.replace(
        "{%- if message['role'] == 'assistant' -%}",
        "{%- if message['role'] == 'assistant' and message['content'] != 'skip' -%}",
    )
    report = check(config(tmp_path, tiny_model, "chat", data, model__chat_template=marked))
    assert report.named("masked-rows").status == "warn"
    assert report.named("masked-rows").data["rows"] == [2, 9]


def test_common_words_are_found_at_any_place_and_instructions_do_not_count() -> None:
    header = "answer the following question with one number and explain every single step of it"
    train = [f"{header} {sentence(i, 30)}" for i in range(20)]
    test = [f"{header} {sentence(100 + i, 30)}" for i in range(10)]
    assert rows.common_words(train, test) == {}
    test[4] = " ".join(["zebra", *train[11].split()[18:31], "zebra"])
    assert rows.common_words(train, test) == {4: 11}
    test[5] = " ".join(train[11].split()[20:32])  # twelve words prove nothing
    assert rows.common_words(train, test) == {4: 11}


def test_length_bias_is_a_binomial_test() -> None:
    assert rows.length_bias([2] * 9 + [1], [1] * 9 + [2]).data["p"] == pytest.approx(2 * 11 / 2**10)
    assert rows.length_bias([2] * 9 + [1], [1] * 9 + [2]).status == "pass"  # 9 of 10 could be chance at 1%
    assert rows.length_bias([2] * 18 + [1] * 2, [1] * 18 + [2] * 2).status == "warn"
    assert rows.length_bias([2] * 550 + [1] * 450, [1] * 550 + [2] * 450).status == "pass"  # certain, and small
    assert rows.length_bias([5, 5], [5, 5]).status == "pass"


def test_arithmetic(tmp_path: Path, tiny_model: Path) -> None:
    made = config(
        tmp_path, tiny_model, "sft", train__gradient_accumulation_steps=2, train__max_steps=None, train__num_epochs=2
    )
    found = arithmetic.counts(made, rows=27, world=1)
    assert (found.sequences, found.steps_per_epoch, found.total_steps, found.left_over) == (8, 4, 8, 3)
    assert arithmetic.counts(made, rows=27, world=2).steps_per_epoch == 2
    group = config(tmp_path, tiny_model, "grpo", train__gradient_accumulation_steps=2, algo__num_iterations=2)
    found = arithmetic.counts(group, rows=24, world=1)
    assert (found.sequences, found.prompts, found.steps_per_epoch) == (8, 2.0, 24)  # 12 generations of 2 prompts, twice
    with pytest.raises(
        ConfigurationError, match=r"per_device_batch_size to 8 or 12, or algo.num_generations to 2 or 5"
    ):
        config(tmp_path, tiny_model, "grpo", train__per_device_batch_size=10)
    with pytest.raises(ConfigurationError, match=r"per_device_batch_size to 2 or 4, or algo.num_generations to 3 or 6"):
        config(tmp_path, tiny_model, "grpo", train__per_device_batch_size=3, algo__steps_per_generation=2)
    lines = arithmetic.batch(group, 24, 10.0).evidence
    assert "train.per_device_batch_size is per_device_train_batch_size=4 on trl" in lines


def test_steps_are_those_of_the_training_library(tmp_path: Path, tiny_model: Path) -> None:
    """The predicted steps of an epoch are the ones that a run takes."""
    changes = {"train__max_steps": None, "train__num_epochs": 1, "train__gradient_accumulation_steps": 2}
    for kind in ("sft", "grpo"):
        folder = tmp_path / kind
        folder.mkdir()
        data = KINDS[kind][:11]
        made = (
            config(folder, tiny_model, kind, data, generation__max_completion_length=4, **changes)
            if kind == "grpo"
            else config(folder, tiny_model, kind, data, **changes)
        )
        from aligntune.core.backend_factory import create_trainer

        assert create_trainer(made).train().total_steps == arithmetic.counts(made, 11).total_steps


def test_sources_of_values(tmp_path: Path, tiny_model: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("train: {max_steps: 5, seed: 7}\nmodel: {name_or_path: m}\n")
    file = tmp_path / "run.yaml"
    file.write_text("base: base.yaml\ntask: chat_completion\ndataset: rows.jsonl\ntrain: {max_steps: 6}\n")
    overrides = ["train.learning_rate=1e-5"]
    made = load_config(file, overrides=overrides)
    listed = {row["key"]: row for row in settings.sources(str(file), overrides, made)}
    assert listed["train.max_steps"] == {"key": "train.max_steps", "value": 6, "source": str(file)}
    assert listed["train.seed"]["source"] == str(base)
    assert listed["train.learning_rate"] == {"key": "train.learning_rate", "value": 1e-5, "source": "override"}
    assert listed["dataset.name"]["source"] == str(file)
    assert listed["task.name"] == {"key": "task.name", "value": "chat_completion", "source": str(file)}
    assert listed["train.max_grad_norm"]["source"] == "default (Transformers)"
    assert "train.num_epochs" not in listed  # max_steps decides, so it has no effect


def test_tested_versions_are_the_constraints(repo: Path) -> None:
    pins = dict(line.split("==") for line in (repo / "constraints.txt").read_text().splitlines() if "==" in line)
    first = versions.TESTED[0]
    assert {name: pins[name] for name in ("torch", "trl", "transformers")} == {
        k: first[k] for k in ("torch", "trl", "transformers")
    }
    assert f"unsloth=={first['unsloth']}" in (repo / "Makefile").read_text()


def test_untested_versions_are_told(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed", lambda name: "9.9.9")
    verdict = settings.versions(config(tmp_path, tiny_model, "sft"))
    assert verdict.status == "warn"
    assert "trl 9.9.9" in verdict.evidence[0]


def test_disk(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = config(tmp_path, tiny_model, "sft", train__save_steps=5, train__save_total_limit=2)
    monkeypatch.setattr(settings.shutil, "disk_usage", lambda _: SimpleNamespace(free=1200))
    assert settings.disk(made, 100, 25).status == "pass"  # 100 + 3 x (100 + 25 x 8) = 1000
    assert settings.disk(made, 100, 25).data["needed"] == 1000
    assert settings.disk(made, 200, 25).status == "fail"
    assert settings.disk(made, None, None).status == "skip"


def test_memory_that_does_not_fit(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = config(tmp_path, tiny_model, "sft")
    shape, why = memory.shape(made)
    assert why == ""
    verdict = memory.memory(made, shape, why)
    assert verdict.status == "pass"
    monkeypatch.setattr(memory, "capacity", lambda _: (1_000_000, "a small GPU"))
    verdict = memory.memory(made, shape, why)
    assert verdict.status == "fail"
    assert verdict.fix
    monkeypatch.setattr(memory, "capacity", lambda _: (None, "an unknown device"))
    assert "is not known" in memory.memory(made, shape, why).reason
    assert memory.memory(made, None, "no config.json").status == "skip"


@pytest.mark.parametrize("kind", ["sft", "dpo", "grpo"])
def test_parts_of_memory(kind: str, tmp_path: Path, tiny_model: Path) -> None:
    from aligntune.utils.memory import Setting, estimate, read_shape

    shape = read_shape(str(tiny_model))
    # 259 x 32 embeddings (tied), 2 layers of 32 x (32 + 16 + 16 + 32) + 3 x 32 x 64 + 2 norms of 32, one norm
    assert shape.parameters == 259 * 32 + 2 * (32 * 96 + 3 * 32 * 64 + 64) + 32
    assert (shape.queries, shape.keys, shape.inner, shape.vocabulary) == (32, 16, 64, 259)
    made = config(tmp_path, tiny_model, kind, **({} if kind == "sft" else {"model__peft": {"r": 4}}))
    setting = memory.setting_of(made, shape, device="cuda", precision="bf16")
    said = estimate(shape, setting)
    if kind == "sft":
        assert (said.weights, said.gradients, said.optimizer) == (
            4 * shape.parameters,
            4 * shape.parameters,
            8 * shape.parameters,
        )
        assert said.logits == 4 * 4 * (4 * 128) * 259
        assert estimate(shape, dataclasses.replace(setting, device="cpu")).logits == said.logits + 8 * 4 * 128 * 259
    if kind == "dpo":
        trained = 4 * 2 * ((32 + 32) * 2 + (32 + 16) * 2 + (32 + 64) * 3)
        assert shape.adapters(made.model.peft) == trained
        assert said.weights == 2 * shape.parameters + 4 * trained
        assert setting.batch == 8
        assert said.reference == 0  # the adapter is switched off
    if kind == "grpo":
        assert setting.generated == 4
        assert said.cache == 2 * 2 * 16 * 2 * 4 * (96 + 32)
    full = estimate(shape, Setting(batch=1, length=8, reference=True))
    assert full.reference == full.weights
    less = estimate(shape, Setting(batch=8, length=64, checkpointing=True))
    assert less.activations < estimate(shape, Setting(batch=8, length=64)).activations


def test_activations_are_what_autograd_keeps(tmp_path: Path) -> None:
    """Bytes that autograd saves for one more layer, against the formula."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from aligntune.utils.memory import _layer, shape_of

    def saved(layers: int) -> int:
        made = LlamaConfig(
            vocab_size=64, hidden_size=96, intermediate_size=256, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(made).train()
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        seen: dict[int, int] = {}

        def pack(tensor: Any) -> Any:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        ids = torch.arange(64).repeat(4, 4) % 64
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            kept = model(input_ids=ids, labels=ids)  # noqa: F841 - alive, so that no storage is used twice
        return sum(seen.values())

    made = LlamaConfig(
        vocab_size=64, hidden_size=96, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    shape = shape_of(AutoModelForCausalLM.from_config(made))
    assert saved(3) - saved(2) == pytest.approx(4 * 256 * _layer(shape, 4, True), rel=0.02)


def test_template_names(tiny_model: Path) -> None:
    import trl

    folder = Path(trl.__file__).parent / "chat_templates"
    assert templates.known_name((folder / "qwen3.jinja").read_text()) == "qwen3"
    assert templates.known_name("{{ nothing }}") is None


def test_tokens_of_several_bytes_are_decoded_together() -> None:
    tokenizer = helpers.byte_tokenizer()
    ids = tokenizer("é a", add_special_tokens=False)["input_ids"]
    assert trained.decode(tokenizer, ids) == ["", "é", " ", "a"]


def test_terminators_of_each_turn_count() -> None:
    row = trained.TrainedRow(0, "row", [1, 9, 1, 9], [True, True, False, True], ["a", "<e>", "b", "<e>"])
    assert tokens._ended(row, {9})
    assert not tokens._ended(dataclasses.replace(row, trained=[True, False, False, True]), {9})
    assert tokens._ended(
        dataclasses.replace(row, ids=[1, 9, 2, 1], trained=[True] * 3 + [False], tokens=["a", "<e>", "\n", "b"]), {9}
    )


def test_reports_count_and_decide() -> None:
    from aligntune.preflight import Verdict

    report = Report([Verdict("a", "data", "warn", "x"), Verdict("b", "data", "pass", "y")])
    assert (report.exit_code(), report.exit_code(strict=True)) == (0, 1)
    report.add([Verdict("c", "data", "fail", "z")])
    assert report.exit_code() == 1
    assert report.to_dict()["counts"] == {"pass": 1, "warn": 1, "fail": 1, "skip": 0}
    with pytest.raises(KeyError):
        report.named("d")


# ---- real rows, with a real tokenizer and a real template --------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2_chat(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2's tokenizer with Qwen2.5's chat template, on an untrained model."""
    import trl
    from transformers import GPT2TokenizerFast, LlamaConfig, LlamaForCausalLM

    source, folder = shared / "models" / "gpt2-tokenizer", tmp_path_factory.mktemp("models") / "gpt2-chat"
    tokenizer = GPT2TokenizerFast(vocab=str(source / "vocab.json"), merges=str(source / "merges.txt"))
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    )
    template = Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja"
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    made = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(made).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SLOW = pytest.mark.slow
LENGTHS = {"answer-truncated", "prompt-truncated", "masked-rows"}
REAL: list[Any] = [
    ("alpaca/alpaca_en_demo.json", {"task": "instruction_following"}, {}, {"duplicates"}),
    ("dolly/dolly.json", {"task": "instruction_following"}, {"column_mapping": {"prompt": "instruction", "completion": "response"}}, LENGTHS),
    pytest.param("gsm8k/train.jsonl", {"task": "instruction_following", "test": "gsm8k/test.jsonl"}, {}, {"train-in-eval"}, marks=SLOW),
    pytest.param("chat_tools/glaive_toolcall_en_demo.json", {"task": "chat_completion"}, {}, {"duplicates", *LENGTHS}, marks=SLOW),
    pytest.param("hh_rlhf/harmless-base-test.jsonl", {"algo": "dpo"}, {}, {"rows-left-out", "memory"}, marks=SLOW),
    pytest.param("kto_en_demo/kto_en_demo.json", {"algo": "kto"}, {}, {"duplicates", "memory", *LENGTHS}, marks=SLOW),
    pytest.param("gsm8k/train.jsonl", {"algo": {"name": "grpo", "num_generations": 4}, "rewards": ["math_correctness"]}, {"preset": "gsm8k"}, {"memory"}, marks=SLOW),
    pytest.param("banking77/train.csv", {"task": "text_classification", "test": "banking77/test.csv"}, {}, {"duplicates", "train-in-eval"}, marks=SLOW),
]  # fmt: skip
"""Data file, run, data settings, and the warnings that these rows deserve."""


@pytest.mark.parametrize(("file", "run", "source", "deserved"), REAL)
def test_real_rows_raise_no_false_alarm(
    file: str,
    run: dict[str, Any],
    source: dict[str, Any],
    deserved: set[str],
    shared: Path,
    gpt2_chat: Path,
    tmp_path: Path,
) -> None:
    raw = dict(run)
    test, data = raw.pop("test", None), {"name": str(shared / "data" / file), **source}
    raw |= {"dataset": data} if "task" in raw else {"datasets": [data]}
    raw |= {"evaluation": {"dataset": str(shared / "data" / test)}} if test else {}
    raw |= {"model": {"name_or_path": str(gpt2_chat)}, "train": {"max_steps": 50}, "output_dir": str(tmp_path / "out")}
    report = check(load_config(raw))
    assert report.with_status("fail") == []
    assert {v.name for v in report.with_status("warn")} <= deserved
    assert all(v.data["name"] == "qwen2_5" for v in report.verdicts if v.name == "chat-template")


def test_every_algorithm_can_be_checked(tmp_path: Path, tiny_model: Path) -> None:
    """No algorithm's settings, data or trainer break a check of clean rows."""
    from aligntune.algorithms.base import Schema, algorithm_names, get_algorithm

    rows_of = {Schema.PREFERENCE: "dpo", Schema.UNPAIRED: "kto", Schema.PROMPT: "grpo", Schema.PROMPT_COMPLETION: "sft"}
    for name in algorithm_names():
        algorithm = get_algorithm(name)
        kind = rows_of[algorithm.data]
        folder = tmp_path / name
        folder.mkdir()
        raw: dict[str, Any] = {
            "algo": {"name": name},
            "model": {"name_or_path": str(tiny_model), "max_seq_length": 160},
            "datasets": [{"name": str(runs.write_rows(folder / "rows.jsonl", KINDS[kind]))}],
            "train": {"max_steps": 8, "per_device_batch_size": 8},
            "output_dir": str(folder / "out"),
        }
        if algorithm.uses_rewards:
            raw["rewards"] = ["math_correctness"]
        if kind == "grpo" or name in ("gkd", "spin"):
            raw["generation"] = {"max_completion_length": 32}
        if kind == "grpo":
            raw["generation"]["max_prompt_length"] = 96
        if name == "meta_es":
            raw["evaluation"] = {
                "dataset": held_out(folder, [{"prompt": f"What is {i} - 1?", "answer": str(i - 1)} for i in range(9)])
            }
        if name == "gkd":
            raw["algo"]["teacher"] = str(tiny_model)
        report = check(load_config(raw))
        assert report.with_status("fail") == [], name
        assert {v.name for v in report.with_status("warn")} <= {"learning-rate"}, name
