"""Rows as trained: what the training library's own preparation and collator make of our rows, token by token.

The training library's trainer is built as the run would build it, around a stand-in model of a few parameters (a Llama
of width 8 with the tokenizer's vocabulary) and a few of the run's rows. Its own preparation and its own collator then
say what is trained. Nothing of masking is written here a second time.

>>> rows = trained_rows(subject, [0, 1])
>>> [t for t, on in zip(rows[0].tokens, rows[0].trained) if on]
['It', ' is', ' 4', '.', '<|im_end|>']

Prompts of policy optimisation have no labels before they are answered: their tokens are those that the policy reads.
Joined rows (packing, padding-free) are shown apart.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aligntune.algorithms.base import Schema
from aligntune.core.config.root import RunConfig
from aligntune.data.tokens import Tokens
from aligntune.errors import AlignTuneError
from aligntune.preflight.settings import replace_fields
from aligntune.preflight.subject import LABELLED, Subject
from aligntune.utils.logging import quiet_libraries

IGNORED = -100
MARK = "preflight_row"
"""Column with a row's number, which the libraries carry along."""
COLLATED = ("trl:SFTTrainer", "trl:DPOTrainer", "trl:KTOTrainer")
"""Trainers whose preparation and collator are asked."""


@dataclass(frozen=True)
class TrainedRow:
    """One sequence as the loss sees it.

    Attributes:
        row: its number in the training rows, from 0.
        part: "row", or "chosen", "rejected", "prompt".
        ids: token ids after truncation, without padding.
        trained: for each id whether it is in the loss.
        tokens: the text of each id.
        note: what else is worth knowing, as the label.
    """

    row: int
    part: str
    ids: list[int]
    trained: list[bool]
    tokens: list[str] = field(repr=False)
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Batch:
    """What the library made of some rows.

    Attributes:
        rows: every sequence of the rows that it kept.
        kept: numbers of the rows that it kept.
        asked: numbers of the rows that it was given.
        padded: padded sequences as they leave the collator: (ids, attention, trained) for each.
    """

    rows: list[TrainedRow]
    kept: list[int]
    asked: list[int]
    padded: list[tuple[list[int], list[int], list[bool]]]


def can_collate(config: RunConfig) -> bool:
    """Whether the run's own collator can be asked before training."""
    params = config.algorithm
    return params.trainer in COLLATED and not params.driver and params.data is not Schema.PROMPT


def collate(subject: Subject, positions: Sequence[int]) -> Batch:
    """The library's preparation and collation of some rows of `subject.fitted`.

    Args:
        subject: with fitted rows.
        positions: numbers in the sample (`subject.sample.rows`).

    Raises:
        AlignTuneError, ValueError, RuntimeError: what the library refuses.
    """
    numbers = [subject.sample.rows[i] for i in positions]
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        rows = subject.fitted.dataset.select(list(positions)).add_column(MARK, numbers)
        hf = _stand_in(subject, rows, Path(folder))
        prepared = [hf.train_dataset[i] for i in range(len(hf.train_dataset))]
        kept = [int(one[MARK]) for one in prepared]
        batch = hf.data_collator(prepared) if prepared else {}
    return _read(batch, kept, numbers, subject)


def _stand_in(subject: Subject, rows: Any, folder: Path) -> Any:
    """The run's trainer (the library's object) over a model of a few parameters."""
    from aligntune.core.backend_factory import create_trainer
    from aligntune.core.callbacks import Progress
    from aligntune.core.stopping import StopRequest
    from aligntune.utils.model_loader import Loaded

    config = stand_in_config(subject.config, folder)
    trainer = create_trainer(config)
    trainer._ready()
    trainer._loaded = Loaded(_small_model(subject.tokenizer, folder), subject.tokenizer, str(folder))
    # What an algorithm arranges is the order and the number of rows, which a sample need not have.
    trainer._train_data = replace(subject.fitted, dataset=rows)
    return trainer._build(StopRequest(), Progress(""))


def stand_in_config(config: RunConfig, folder: Path) -> RunConfig:
    """The configuration with what has to do with weights, joining of rows and services left out."""
    name = "algo" if config.kind == "rl" else "task"
    params = replace_fields(
        config.algorithm, packing=False, padding_free=False, reference=None, precompute_ref_log_probs=False
    )
    model = dataclasses.replace(
        config.model, name_or_path=str(folder), revision=None, peft=None, quantization=None, device="cpu",
        precision="fp32", attn_implementation=None,
    )  # fmt: skip
    return dataclasses.replace(
        config,
        **{name: params},
        model=model,
        backend="trl",
        isolation="auto",
        output_dir=str(folder / "run"),
        train=dataclasses.replace(config.train, gradient_checkpointing=False, optimizer="adamw_torch", max_steps=1),
        logging=dataclasses.replace(config.logging, report_to=[]),
        evaluation=dataclasses.replace(config.evaluation, dataset=None, every=None),
    )


def _small_model(tokenizer: Any, folder: Path) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    made = LlamaConfig(
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(made).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder)


def _read(batch: Any, kept: list[int], asked: list[int], subject: Subject) -> Batch:
    """The tensors of a batch as rows; which keys hold the mask depends on the library's collator."""
    if not kept:
        return Batch([], [], asked, [])
    ids, attention = batch["input_ids"].tolist(), batch["attention_mask"].tolist()
    if "labels" in batch:
        trained = [[label != IGNORED for label in row] for row in batch["labels"].tolist()]
    else:
        trained = [[bool(m) for m in row] for row in batch["completion_mask"].tolist()]
    parts = ["chosen"] * len(kept) + ["rejected"] * len(kept) if len(ids) == 2 * len(kept) else ["row"] * len(ids)
    notes = [""] * len(ids)
    if subject.schema is Schema.UNPAIRED and "label" in batch:
        notes = ["desirable" if good else "undesirable" for good in _plain(batch["label"])]
    rows, numbers = [], kept * (2 if parts[0] == "chosen" else 1)
    for i, number in enumerate(numbers):
        real = [k for k, on in enumerate(attention[i]) if on]
        row_ids = [ids[i][k] for k in real]
        tokens = decode(subject.tokenizer, row_ids)
        rows.append(TrainedRow(number, parts[i], row_ids, [trained[i][k] for k in real], tokens, notes[i]))
    padded = [(ids[i], attention[i], trained[i]) for i in range(len(ids))]
    return Batch(rows, kept, asked, padded)


def _plain(values: Any) -> list[Any]:
    return values.tolist() if hasattr(values, "tolist") else list(values)


def decode(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token; special tokens by their names.

    A character of several tokens comes whole with the last of them, and the others are empty.
    """
    pieces: list[str] = []
    waiting: list[int] = []
    for number in ids:
        waiting.append(int(number))
        text = tokenizer.decode(waiting, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if text.endswith("�") and len(waiting) < 4:
            pieces.append("")
            continue
        if len(waiting) == 1 and text and not text.startswith(" "):
            raw = tokenizer.convert_ids_to_tokens(int(number))
            text = f" {text}" if isinstance(raw, str) and raw.startswith("▁") else text
        pieces.append(text)
        waiting = []
    if waiting:
        pieces[-1] = tokenizer.decode(waiting, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return pieces


def prompts(subject: Subject, positions: Sequence[int]) -> list[TrainedRow]:
    """Prompts of policy optimisation as the policy reads them."""
    tokens = Tokens(subject.tokenizer)
    chosen = subject.fitted.dataset.select(list(positions))
    ids = tokens.ids(tokens.texts(list(chosen["prompt"]), None, start=0, prompt=True))
    numbers = [subject.sample.rows[i] for i in positions]
    return [
        TrainedRow(n, "prompt", row, [False] * len(row), decode(subject.tokenizer, row), "the policy answers here")
        for n, row in zip(numbers, ids, strict=True)
    ]


def labelled(subject: Subject, positions: Sequence[int]) -> list[TrainedRow]:
    """Labelled rows: texts with their label, or words with their tags, in the tokenizer's tokens."""
    from aligntune.data.encoding import encode_texts, encode_words

    rows = subject.train.dataset.select([subject.sample.rows[i] for i in positions])
    words = subject.schema is Schema.TOKENS
    limit = subject.limit
    encoded = (
        encode_words(subject.tokenizer, rows["tokens"], limit)
        if words
        else encode_texts(subject.tokenizer, rows["text"], limit)
    )
    made = []
    for position, one, row in zip(positions, encoded, rows, strict=True):
        on = [i in set(one.positions) for i in range(len(one.ids))] if words else [False] * len(one.ids)
        note = f"tags: {' '.join(row['tags'])}" if words else f"label: {row['label']}"
        number = subject.sample.rows[position]
        made.append(TrainedRow(number, "row", one.ids, on, decode(subject.tokenizer, one.ids), note))
    return made


def shown(subject: Subject, positions: Sequence[int]) -> list[TrainedRow]:
    """Some rows as trained, whatever the run trains on; empty where the library cannot be asked."""
    if subject.schema in LABELLED:
        return labelled(subject, positions)
    if subject.schema is Schema.PROMPT:
        return prompts(subject, positions)
    return collate(subject, positions).rows if can_collate(subject.config) else []


__all__ = ["AlignTuneError", "Batch", "TrainedRow", "can_collate", "collate", "decode", "labelled", "prompts", "shown"]
