"""Rows as a trainer gets them: token ids and labels, made in batches, equal to what TRL 1.14 makes of the same rows.

| schema | columns |
|---|---|
| TEXT, MESSAGES, PROMPT_COMPLETION | `input_ids`; `labels`, -100 where nothing is learnt |
| PREFERENCE | `prompt_ids`, `chosen_ids`, `rejected_ids` |
| UNPAIRED | `prompt_ids`, `completion_ids`, `label` |

TRL tokenises row by row inside its trainers, in each run anew; a batch of texts through the same tokenizer gives the
same ids faster, and they can be kept (`aligntune.data.cache`). The prompt of a pair ends where the tokens of the prompt
alone and of the whole row part, as in TRL.

>>> tokenise(batch, 0, Schema.TEXT, tokens, 4, Count(), None, cut=True)
{'input_ids': [[5, 6, 7, 2]], 'labels': [[5, 6, 7, 2]]}
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from aligntune.algorithms.base import Schema
from aligntune.data.spool import Spool
from aligntune.data.tokens import Tokens, common_prefix

if TYPE_CHECKING:
    import datasets

LossOn = Literal["completion", "assistant", "all"]
IGNORED = -100
"""The label of a token that the loss leaves out (PyTorch's `cross_entropy`)."""
Columns = dict[str, list[Any]]


@dataclass
class Count:
    """Lengths of the rows that were tokenised.

    Args:
        keep: numbers of the rows that stay.
        truncated: rows cut at the limit, with something left.
        lost: rows with nothing left to train on, or prompts over their limit.
        longest, shortest: tokens of the longest row and of the shortest lost one.
    """

    keep: list[int] = field(default_factory=list)
    truncated: int = 0
    lost: int = 0
    cut_off: int = 0
    longest: int = 0
    shortest: int | None = None

    def add(self, index: int, length: int, limit: int | None, *, needed: int) -> bool:
        """One row of `length` tokens, the first trained of which is number `needed` (from 1); whether it stays."""
        self.longest = max(self.longest, length)
        kept = length if limit is None else min(length, limit)
        if needed > kept:
            self.lost += 1
            self.cut_off += needed <= length
            self.shortest = needed if self.shortest is None else min(self.shortest, needed)
            return False
        self.keep.append(index)
        self.truncated += kept < length
        return True


class TokenTable:
    """Columns of token rows, kept as Arrow, on disk once they are many (`aligntune.data.spool.Spool`)."""

    def __init__(self) -> None:
        self._spool: Spool | None = None

    def add(self, columns: Columns) -> None:
        """The rows of one batch."""
        import pyarrow as pa
        from datasets import Features, List, Value

        if self._spool is None:
            kinds = {name: Value("bool") if name == "label" else List(Value("int32")) for name in columns}
            self._spool = Spool(Features(kinds))
        schema = self._spool.schema
        self._spool.add(pa.table([pa.array(columns[f.name], f.type) for f in schema], schema=schema))

    @staticmethod
    def features(schema: Schema) -> Any:
        """The columns of a schema's token rows, as the `datasets` library describes them."""
        from datasets import Features, List, Value

        names = ("prompt_ids", "chosen_ids", "rejected_ids") if schema is Schema.PREFERENCE else ("input_ids", "labels")
        return Features({name: List(Value("int32")) for name in names})

    def dataset(self) -> datasets.Dataset:
        """All rows in order.

        Raises:
            ValueError: no batch was added.
        """
        if self._spool is None:
            raise ValueError("no batch was added")
        return self._spool.dataset()


def tokenise(
    batch: dict[str, list[Any]],
    start: int,
    schema: Schema,
    tokens: Tokens,
    limit: int | None,
    count: Count,
    loss_on: LossOn | None,
    *,
    cut: bool,
) -> Columns:
    """The token rows of a batch; `count` learns which of its rows stay and which are cut.

    Args:
        batch: columns of rendered rows.
        start: number of its first row in the data set.
        schema: of the rows.
        tokens: the tokenizer as the trainer uses it.
        limit: most tokens a row; None for no limit.
        count: is added to.
        loss_on: see `render`.
        cut: cut SFT rows at the limit. Pairs are cut by the trainer's collator.
    """
    if schema is Schema.PREFERENCE:
        return _preference(batch, start, tokens, limit, count)
    if schema is Schema.UNPAIRED:
        return _unpaired(batch, start, tokens, limit, count)
    if schema is Schema.PROMPT_COMPLETION and loss_on != "all":
        ids, prompts = _wholes_and_prompts(batch, start, tokens)
        begins = [common_prefix(p, whole) for p, whole in zip(prompts, ids, strict=True)]
        labels = [[IGNORED] * b + whole[b:] for b, whole in zip(begins, ids, strict=True)]
    elif schema is Schema.MESSAGES and loss_on == "assistant":
        ids, masks = tokens.assistant_masks(batch["messages"], batch.get("tools"), start)
        begins = [mask.index(1) if 1 in mask else len(mask) for mask in masks]
        labels = [[t if m else IGNORED for t, m in zip(*pair, strict=True)] for pair in zip(ids, masks, strict=True)]
    else:
        values = batch["text"] if "text" in batch else batch.get("messages")
        texts = tokens.texts(values or joined(batch, "completion"), batch.get("tools"), start=start, closed=True)
        ids = labels = tokens.ids(texts)
        begins = [0] * len(ids)
    kept = []
    for i, (begin, row) in enumerate(zip(begins, ids, strict=True)):
        # The first token has no token before it to be predicted from, so training needs a second.
        if count.add(start + i, len(row), limit, needed=max(begin + 1, 2)):
            kept.append(i)
    end = limit if cut else None
    return {"input_ids": [ids[i][:end] for i in kept], "labels": [labels[i][:end] for i in kept]}


def _preference(batch: Columns, start: int, tokens: Tokens, limit: int | None, count: Count) -> Columns:
    left, prompts = _wholes_and_prompts(batch, start, tokens, "chosen")
    right = tokens.ids(tokens.texts(joined(batch, "rejected"), batch.get("tools"), start=start, closed=True))
    made: Columns = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": []}
    for i, (prompt, a, b) in enumerate(zip(prompts, left, right, strict=True)):
        begin = min(common_prefix(prompt, a), common_prefix(prompt, b))
        if count.add(start + i, max(len(a), len(b)), limit, needed=begin + 1):
            made["prompt_ids"].append(prompt[:begin])
            made["chosen_ids"].append(a[begin:])
            made["rejected_ids"].append(b[begin:])
    return made


def _unpaired(batch: Columns, start: int, tokens: Tokens, limit: int | None, count: Count) -> Columns:
    ids, prompts = _wholes_and_prompts(batch, start, tokens)
    made: Columns = {"prompt_ids": [], "completion_ids": [], "label": []}
    for i, (prompt, whole) in enumerate(zip(prompts, ids, strict=True)):
        begin = common_prefix(prompt, whole)
        if count.add(start + i, len(whole), limit, needed=max(begin + 1, 2)):
            made["prompt_ids"].append(prompt[:begin])
            made["completion_ids"].append(whole[begin:])
            made["label"].append(batch["label"][i])
    return made


def _wholes_and_prompts(
    batch: Columns, start: int, tokens: Tokens, answer: str = "completion"
) -> tuple[list[list[int]], list[list[int]]]:
    tools = batch.get("tools")
    wholes = tokens.ids(tokens.texts(joined(batch, answer), tools, start=start, closed=True))
    return wholes, tokens.ids(tokens.texts(batch["prompt"], tools, start=start, prompt=True))


def joined(batch: dict[str, list[Any]], answer: str) -> list[Any]:
    """Prompt and answer of each row as one text or message list."""
    return [prompt + reply for prompt, reply in zip(batch["prompt"], batch[answer], strict=True)]
