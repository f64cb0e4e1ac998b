"""Labelled rows to token ids and label numbers, with every cut row counted.

| schema | columns added |
|---|---|
| CLASSIFICATION | `input_ids`; `labels`, the number of the row's label |
| TOKENS | `input_ids`; `labels`, one for each id: the tag's number on the first sub-token of a word, -100 elsewhere; |
|        | `positions`, for each word the index of its first sub-token, -1 where it has none |

>>> encoded = encode(prepared, Schema.TOKENS, tokenizer, labels, max_length=128)
>>> encoded.notes[-1]
'2 of 900 rows are longer than model.max_seq_length = 128 tokens and are cut there (longest: 164); 41 tags are cut off.'

Labelling the first sub-token only is the rule of BERT's paper (Devlin et al. 2019, section 5.3). Words are joined by
single spaces and found again by their character offsets, which works with every fast tokenizer, whether or not it can
take words one by one. A word whose characters the tokenizer drops has no token; it is counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from aligntune.algorithms.base import Schema
from aligntune.data.labels import Labels
from aligntune.data.manager import Prepared
from aligntune.data.table import RowTable
from aligntune.errors import ValidationError

IGNORED = -100
"""Label number that the loss leaves out (PyTorch's `cross_entropy`)."""
CHUNK = 1000
"""Rows tokenised at once; it bounds memory."""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One text or sentence.

    Args:
        ids: token ids, special tokens included, cut to the limit.
        length: how many there would be without the limit.
        positions: for each word the index of its first sub-token; -1 where it was cut off or has none.
        cut: words that the limit cut off.
    """

    ids: list[int]
    length: int
    positions: list[int] = dataclasses.field(default_factory=list)
    cut: int = 0


def encode_texts(tokenizer: Any, texts: Sequence[str], limit: int) -> list[Encoded]:
    """Tokens of each text, with the tokenizer's special tokens."""
    ids = tokenizer(list(texts), verbose=False)["input_ids"]
    long = [i for i, row in enumerate(ids) if len(row) > limit]
    lengths = [len(row) for row in ids]
    if long:
        shorter = tokenizer([texts[i] for i in long], truncation=True, max_length=limit, verbose=False)["input_ids"]
        for i, row in zip(long, shorter, strict=True):
            ids[i] = row
    return [Encoded(row, length) for row, length in zip(ids, lengths, strict=True)]


def encode_words(tokenizer: Any, sentences: Sequence[Sequence[str]], limit: int) -> list[Encoded]:
    """Tokens of each sentence of words, and where each word begins among them.

    Raises:
        ValidationError: the tokenizer gives no character offsets.
    """
    if not tokenizer.is_fast:
        raise ValidationError(
            f"{type(tokenizer).__name__} gives no character offsets, by which words are found among the tokens",
            hint="use a model with a fast tokenizer (a tokenizer.json)",
        )
    texts = [" ".join(words) for words in sentences]
    made = tokenizer(texts, return_offsets_mapping=True, verbose=False)
    encoded = []
    for text, words, ids, offsets in zip(texts, sentences, made["input_ids"], made["offset_mapping"], strict=True):
        positions, cut = _first_tokens(words, offsets), 0
        if len(ids) > limit:
            whole, length = positions, len(ids)
            less = tokenizer(text, truncation=True, max_length=limit, return_offsets_mapping=True, verbose=False)
            positions = _first_tokens(words, less["offset_mapping"])
            cut = sum(a >= 0 > b for a, b in zip(whole, positions, strict=True))
            encoded.append(Encoded(less["input_ids"], length, positions, cut))
        else:
            encoded.append(Encoded(ids, len(ids), positions))
    return encoded


def _first_tokens(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """For each word, of those joined by spaces, the first token that has a character of it; -1 for none."""
    positions, token, start = [], 0, 0
    for word in words:
        end = start + len(word)
        # Special tokens have the empty span (0, 0); a token may begin with the space before its word.
        while token < len(offsets) and (offsets[token][1] <= start or offsets[token][0] == offsets[token][1]):
            token += 1
        found = token < len(offsets) and offsets[token][0] < end
        positions.append(token if found else -1)
        token += found  # a token belongs to one word
        start = end + 1
    return positions


def encode(
    prepared: Prepared, schema: Schema, tokenizer: Any, labels: Labels, *, max_length: int, cut_by: str = ""
) -> Prepared:
    """Tokenise labelled rows; see the module's table for the columns.

    Args:
        prepared: what `prepare_dataset` made for the same schema, with these labels.
        tokenizer: a Transformers tokenizer; for TOKENS a fast one.
        labels: the label list.
        max_length: most tokens a row.
        cut_by: what sets that limit, for the notes; empty says `model.max_seq_length`.

    Raises:
        ValidationError: no row has a token, or a label is not in the list.
    """
    words = Schema(schema) is Schema.TOKENS
    rows, tally = RowTable(), _Tally()
    source = prepared.dataset
    for start in range(0, len(source), CHUNK):
        batch = list(source.select(range(start, min(start + CHUNK, len(source)))))
        made = (
            encode_words(tokenizer, [row["tokens"] for row in batch], max_length)
            if words
            else encode_texts(tokenizer, [row["text"] for row in batch], max_length)
        )
        for row, encoded in zip(batch, made, strict=True):
            numbers = _numbers(row, encoded, labels) if words else labels.id(row["label"])
            tally.add(encoded, words)
            if encoded.ids and numbers != [IGNORED] * len(encoded.ids):
                extra = {"positions": encoded.positions} if words else {}
                rows.add({**row, "input_ids": encoded.ids, "labels": numbers, **extra})
    if not len(rows):
        raise ValidationError(
            f"none of the {len(source)} rows of {prepared.source} has a token with a label",
            hint="check the data and the tokenizer, or raise model.max_seq_length",
        )
    notes = [*prepared.notes, *tally.notes(len(source), len(rows), cut_by or f"model.max_seq_length = {max_length}")]
    return dataclasses.replace(prepared, dataset=rows.dataset(), notes=notes)


def _numbers(row: dict[str, Any], encoded: Encoded, labels: Labels) -> list[int]:
    numbers = [IGNORED] * len(encoded.ids)
    for tag, position in zip(row["tags"], encoded.positions, strict=True):
        if position >= 0:
            numbers[position] = labels.id(tag)
    return numbers


@dataclasses.dataclass
class _Tally:
    """What the limit and the tokenizer took away."""

    rows: int = 0
    longest: int = 0
    cut_words: int = 0
    lost_words: int = 0

    def add(self, encoded: Encoded, words: bool) -> None:
        self.rows += encoded.length > len(encoded.ids)
        self.longest = max(self.longest, encoded.length)
        self.cut_words += encoded.cut
        self.lost_words += encoded.positions.count(-1) - encoded.cut if words else 0

    def notes(self, total: int, kept: int, limit: str) -> list[str]:
        notes = []
        if self.rows:
            tags = f"; {self.cut_words} tags are cut off" if self.cut_words else ""
            notes.append(
                f"{self.rows} of {total} rows are longer than {limit} tokens and are cut there "
                f"(longest: {self.longest}){tags}."
            )
        if self.lost_words:
            notes.append(f"{self.lost_words} words have no token in this tokenizer; their tags are not trained on.")
        if kept < total:
            notes.append(f"Left out {total - kept} of {total} rows without a token that has a label.")
        return notes
