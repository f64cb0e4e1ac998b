"""Token rows: equal to TRL's own preparation, masks that cover exactly the answer, packing that loses nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import runs
from aligntune.algorithms.base import Schema
from aligntune.core.config import DatasetConfig
from aligntune.data import prepare_dataset, render
from aligntune.data.manager import Prepared

LONG = "a long answer that goes on " * 6
ANSWERS = ["yes", "no, sir", "", LONG, "1+1=2", "ünï 漢"]


@pytest.fixture(scope="module", params=["chat", "plain"])
def tokenizer(request: Any, tiny_model: Path, tiny_model_plain: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model if request.param == "chat" else tiny_model_plain)


def rendered(folder: Path, rows: list[dict[str, Any]], schema: Schema, tokenizer: Any, **keys: Any) -> Prepared:
    path = runs.write_rows(folder / "rows.jsonl", rows)
    prepared = prepare_dataset(DatasetConfig(name=str(path)), schema)
    return render(prepared, schema, tokenizer, **{"max_length": 90, "keep_tokens": "cut", **keys})


def by_trl(kind: str, dataset: Any, tokenizer: Any, model: Path, **arguments: Any) -> Any:
    import trl

    own = {"max_length": 90, "use_cpu": True, "bf16": False, "report_to": "none", "output_dir": "unused", **arguments}
    args = getattr(trl, f"{kind}Config")(**own)
    trainer = getattr(trl, f"{kind}Trainer")(str(model), args=args, train_dataset=dataset, processing_class=tokenizer)
    return trainer.train_dataset


def columns(made: Any, *names: str) -> list[Any]:
    return [list(made[name]) for name in names]


PAIR_ROWS = [{"prompt": f"Say {i}", "completion": text or "-"} for i, text in enumerate(ANSWERS)]
CHAT_ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"Say {i}"},
            {"role": "assistant", "content": text or "-"},
            {"role": "user", "content": "Again"},
            {"role": "assistant", "content": "No."},
        ]
    }
    for i, text in enumerate(ANSWERS)
]
SFT_CASES = [
    ("prompt_completion", PAIR_ROWS, None, {"completion_only_loss": True}),
    ("prompt_completion", PAIR_ROWS, "all", {"completion_only_loss": False}),
    ("messages", CHAT_ROWS, "all", {}),
    ("messages", CHAT_ROWS, "assistant", {"assistant_only_loss": True}),
    ("text", [{"text": text or "-"} for text in ANSWERS], None, {}),
]


@pytest.mark.parametrize(("schema", "rows", "loss_on", "arguments"), SFT_CASES)
def test_sft_rows_are_those_of_trl(
    tmp_path: Path, tokenizer: Any, tiny_model: Path, schema: str, rows: list[Any], loss_on: Any, arguments: Any
) -> None:
    if loss_on == "assistant" and not tokenizer.chat_template:
        pytest.skip("needs a chat template")
    ours = rendered(tmp_path, rows, Schema(schema), tokenizer, loss_on=loss_on)
    theirs = by_trl("SFT", ours.dataset, tokenizer, tiny_model, **arguments)
    assert len(ours.tokens) == len(theirs)
    assert columns(ours.tokens, "input_ids", "labels") == columns(theirs, "input_ids", "labels")
    assert max(map(len, ours.tokens["input_ids"])) == 90


def test_pairs_are_those_of_trl(tmp_path: Path, tokenizer: Any, tiny_model: Path) -> None:
    rows = [{"prompt": f"Say {i}", "chosen": text or "-", "rejected": "never"} for i, text in enumerate(ANSWERS)]
    ours = rendered(tmp_path, rows, Schema.PREFERENCE, tokenizer)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    assert columns(ours.tokens, *names) == columns(by_trl("DPO", ours.dataset, tokenizer, tiny_model), *names)


def test_single_answers_are_those_of_trl_with_the_baseline(tmp_path: Path, tokenizer: Any, tiny_model: Path) -> None:
    from aligntune.core.pretokenised import taking_tokens

    rows = [{"prompt": f"Say {i}", "completion": text or "-", "label": i % 2 == 0} for i, text in enumerate(ANSWERS)]
    ours = rendered(tmp_path, rows, Schema.UNPAIRED, tokenizer)
    names = ("prompt_ids", "completion_ids", "label", "KL_completion_ids")
    theirs = by_trl("KTO", ours.dataset, tokenizer, tiny_model, per_device_train_batch_size=2)
    base = type("Base", (), {"_prepare_dataset": lambda *a: pytest.fail("not taken"), "calculate_KL": True})
    made = taking_tokens(base)()._prepare_dataset(
        ours.tokens, None, SimpleNamespace(per_device_train_batch_size=2), "train"
    )
    assert columns(made, *names) == columns(theirs, *names)


def test_other_rows_and_packing_go_to_the_library() -> None:
    from datasets import Dataset

    from aligntune.core.pretokenised import taking_tokens

    base = type("Base", (), {"_prepare_dataset": lambda self, *a, **k: "the library's"})
    trainer = taking_tokens(base)()
    tokens, text = Dataset.from_dict({"input_ids": [[1]], "labels": [[1]]}), Dataset.from_dict({"text": ["a"]})
    assert trainer._prepare_dataset(text, None, None, False, None, "train") == "the library's"
    assert trainer._prepare_dataset(tokens, None, None, True, None, "train") == "the library's"
    assert trainer._prepare_dataset(tokens, None, None, False, None, "train") is tokens
    assert taking_tokens(base).__name__ == "Base"


words = st.text(alphabet="abc xyz.12", min_size=1, max_size=40).filter(str.strip)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(words, words), min_size=1, max_size=5))
def test_masks_cover_exactly_the_answer(tmp_path: Path, tokenizer: Any, pairs: list[tuple[str, str]]) -> None:
    """What is trained on, decoded, is the answer and the end mark; what is masked is the prompt as generation has it."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    rows = [{"prompt": p, "completion": c} for p, c in pairs]
    made = rendered(tmp_path, rows, Schema.PROMPT_COMPLETION, tokenizer, max_length=4000).tokens
    collate = DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id)
    batch = collate([made[i] for i in range(len(made))])
    for (prompt, answer), ids, labels, seen in zip(
        pairs, batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True
    ):
        ids, labels = ids[seen.bool()].tolist(), labels[seen.bool()].tolist()
        begin = next(i for i, label in enumerate(labels) if label != -100)
        assert labels[begin:] == ids[begin:]
        assert set(labels[:begin]) <= {-100}
        said = tokenizer.decode(ids[begin:])
        assert said.startswith(answer)
        assert said[len(answer) :].strip() in (tokenizer.eos_token, "<|im_end|>")
        assert prompt in tokenizer.decode(ids[:begin])
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(2, 90), min_size=1, max_size=12), limit=st.integers(90, 120))
def test_packing_keeps_every_token_once(lengths: list[int], limit: int) -> None:
    """TRL's packing of our token rows (32-bit ids), as `task.packing` uses it, and its collator after it."""
    from datasets import Dataset, Features, List, Value
    from trl.data_utils import pack_dataset
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    start, rows = 1, []
    for length in lengths:  # every token of every row is another one
        rows.append(list(range(start, start + length)))
        start += length
    labels = [[-100, *row[1:]] for row in rows]
    features = Features({name: List(Value("int32")) for name in ("input_ids", "labels")})
    made = pack_dataset(Dataset.from_dict({"input_ids": rows, "labels": labels}, features=features), limit, "bfd", {})
    assert sorted(token for row in made["input_ids"] for token in row) == list(range(1, start))
    assert max(map(len, made["input_ids"])) <= limit
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    batch = collate([made[i] for i in range(len(made))])
    ids, positions = batch["input_ids"][0].tolist(), batch["position_ids"][0].tolist()
    assert sorted(ids) == list(range(1, start))
    begins = [i for i, position in enumerate(positions) if position == 0]
    found = [ids[a:b] for a, b in zip(begins, [*begins[1:], len(ids)], strict=True)]
    assert sorted(found) == rows
    assert all(batch["labels"][0][i] == -100 for i in begins)


def test_lengths_and_notes_are_those_of_counting_alone(tmp_path: Path, tokenizer: Any) -> None:
    for schema, rows, loss_on, _ in SFT_CASES:
        if loss_on == "assistant" and not tokenizer.chat_template:
            continue
        kept = rendered(tmp_path, rows, Schema(schema), tokenizer, loss_on=loss_on)
        counted = rendered(tmp_path, rows, Schema(schema), tokenizer, loss_on=loss_on, keep_tokens=None)
        assert kept.notes == counted.notes
        assert kept.dataset[:] == counted.dataset[:]
        assert counted.tokens is None


def test_rows_that_come_as_tokens(tmp_path: Path, tokenizer: Any) -> None:
    rows = [
        {"input_ids": [3, 4, 5, 6], "labels": [-100, -100, 5, 6]},
        {"input_ids": [7, 8, 9], "completion_mask": [0, 1, 1]},
        {"input_ids": [7, 8]},
        {"input_ids": list(range(3, 20)), "labels": [-100] * 16 + [19]},
    ]
    made = rendered(tmp_path, rows, Schema.TEXT, tokenizer, max_length=12)
    assert list(made.tokens["input_ids"]) == [[3, 4, 5, 6], [7, 8, 9], [7, 8]]
    assert list(made.tokens["labels"]) == [[-100, -100, 5, 6], [-100, 8, 9], [7, 8]]
    assert any("Left out 1 of 4 rows" in note for note in made.notes)
    with pytest.raises(Exception, match="is not in the vocabulary"):
        rendered(tmp_path, [{"input_ids": [3, 10**6]}], Schema.TEXT, tokenizer)


def test_training_on_token_rows_equals_training_on_text(tiny_model_plain: Path, tmp_path: Path) -> None:
    """A run on rows tokenised beforehand has the losses of the run on their text."""
    from transformers import AutoTokenizer

    from aligntune.core.backend_factory import create_sft_trainer

    texts = [f"text {i} and {i * i}" for i in range(8)]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_plain)
    ids = [tokenizer(text + tokenizer.eos_token)["input_ids"] for text in texts]
    losses = []
    for name, rows in (("text", [{"text": t} for t in texts]), ("ids", [{"input_ids": row} for row in ids])):
        trainer = create_sft_trainer(
            model_name=str(tiny_model_plain),
            dataset=rows,
            task_type="text_generation",
            output_dir=str(tmp_path / name),
            max_steps=2,
            logging__steps=1,
        )
        trainer.train()
        losses.append(runs.logged(tmp_path / name, "loss"))
    assert losses[0] == losses[1]
