"""What is checked: the configuration with its tokenizer and its rows, read once; no weights are loaded.

>>> subject = Subject(config)
>>> subject.train.dataset.num_rows, subject.tokenizer.eos_token
(3500, '<|im_end|>')

What cannot be read becomes a failing verdict in `faults`, and the checks that need it are skipped.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

from aligntune.algorithms.base import Schema
from aligntune.core.config.root import RunConfig
from aligntune.errors import AlignTuneError, ValidationError
from aligntune.preflight.verdict import Verdict
from aligntune.utils.logging import quiet_libraries

T = TypeVar("T")
LABELLED = (Schema.CLASSIFICATION, Schema.TOKENS)
ALL_ROWS = 4000
"""Up to so many rows are tokenised, all of them; of more, half this number is drawn, and as many longest ones added."""

STREAM_ROWS = 10_000
"""Rows of a stream that are read unless another number is asked for."""


class Subject:
    """A configuration, and what it trains on.

    Args:
        config: a resolved configuration.
        tokenizer, train, evaluation: what is loaded already (`aligntune.data.Prepared`); None reads it.
        stream_rows: so many rows of a stream are read, from its beginning.

    Attributes:
        faults: a failing verdict for each thing that could not be read.
        masked: numbers of sampled rows in which nothing would be trained, once `fitted` was asked for.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        tokenizer: Any = None,
        train: Any = None,
        evaluation: Any = None,
        stream_rows: int = STREAM_ROWS,
    ) -> None:
        self.config = config
        self.stream_rows = stream_rows
        self.faults: list[Verdict] = []
        self.masked: list[int] = []
        self._columns: dict[str, list[str]] = {}
        self._given = {"tokenizer": tokenizer, "train": train, "evaluation": evaluation}

    @property
    def schema(self) -> Schema:
        """The form of the rows that the algorithm takes."""
        return Schema(self.config.algorithm.data)

    @property
    def loss_on(self) -> Any:
        """Which tokens are trained (`train_on`); None for the algorithm's own rule."""
        return getattr(self.config.algorithm, "train_on", None)

    @property
    def limit(self) -> int:
        """Most tokens of a row, or of a prompt in policy optimisation."""
        if self.schema is Schema.PROMPT:
            return int(self.config.generation.max_prompt_length)  # type: ignore[attr-defined]
        return int(self.config.model.max_seq_length)

    @property
    def limit_key(self) -> str:
        """The key that sets `limit`."""
        return "generation.max_prompt_length" if self.schema is Schema.PROMPT else "model.max_seq_length"

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer as training gets it; None where it cannot be loaded."""
        if self._given["tokenizer"] is not None:
            return self._given["tokenizer"]
        return self._try("tokenizer", "template", self._load_tokenizer)

    def _load_tokenizer(self) -> Any:
        from aligntune.utils.classifier_loader import ClassifierLoader
        from aligntune.utils.model_loader import ModelLoader

        config = self.config
        if config.algorithm.head == "causal_lm":
            return ModelLoader(config.model, training=True, seed=config.train.seed).load_tokenizer()
        head = config.algorithm.head
        loader = ClassifierLoader(
            config.model,
            head=head,
            labels=["a", "b"],
            new_head=True,
            training=True,
            seed=0,
            gradient_checkpointing=False,
        )
        return loader.load_tokenizer()

    @cached_property
    def own_template(self) -> str | None:
        """The chat template that the model came with, whatever `model.chat_template` says."""
        from transformers import AutoTokenizer

        from aligntune.utils.model_source import find_source

        if self.tokenizer is None or self.config.model.chat_template is None:
            return getattr(self.tokenizer, "chat_template", None)
        source = find_source(self.config.model.name_or_path, self.config.model.revision)
        found = AutoTokenizer.from_pretrained(
            source.tokenizer,
            revision=self.config.model.revision,
            trust_remote_code=self.config.model.trust_remote_code,
        )
        template: str | None = found.chat_template
        return template

    @cached_property
    def train(self) -> Any:
        """The usable training rows, before they are fitted to the tokenizer; None where they cannot be read."""
        if self._given["train"] is not None:
            return self._given["train"]
        return self._try("rows", "data", lambda: self._read(self.config.sources))

    @property
    def streamed(self) -> bool:
        """Whether the training rows are a stream, of which only the beginning is looked at."""
        return any(source.streaming for source in self.config.sources)

    @cached_property
    def evaluation(self) -> Any:
        """The usable held-out rows; None where there are none, or they cannot be read."""
        if self._given["evaluation"] is not None or self.config.evaluation.dataset is None:
            return self._given["evaluation"]
        return self._try("held-out-rows", "data", lambda: self._read(self.config.evaluation.dataset))

    def _read(self, source: Any) -> Any:
        from aligntune.core.rows import refuse_stream
        from aligntune.data import prepare_dataset
        from aligntune.data.streaming import refuse_whole

        first = None
        listed = source if isinstance(source, list) else [source]
        if any(one.streaming for one in listed):
            refuse_stream(self.config, listed, training=source is not self.config.evaluation.dataset)
            refuse_whole(listed[0], self.schema)
            first = self.stream_rows
        with quiet_libraries():
            return prepare_dataset(
                source, self.schema, seed=self.config.train.seed, cache_dir=self.config.cache.dir, first=first
            )

    def _try(self, name: str, group: str, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except AlignTuneError as error:
            self.faults.append(Verdict(name, group, "fail", error.message, fix=error.hint or ""))
            return None

    # ---- rows to tokenise ------------------------------------------------------------------------------------

    @cached_property
    def sample(self) -> Sample:
        """The rows that are tokenised: all of a small set, else some drawn by the run's seed and the longest ones."""
        rows = self.train.dataset
        if len(rows) <= ALL_ROWS:
            return Sample(list(range(len(rows))), len(rows), True)
        drawn = sorted(random.Random(self.config.train.seed).sample(range(len(rows)), ALL_ROWS // 2))
        sizes = [sum(map(len, parts)) for parts in zip(*self.columns(CONTENT), strict=True)]
        longest = sorted(range(len(rows)), key=lambda i: -sizes[i])[: ALL_ROWS // 2]
        return Sample(drawn + [i for i in longest if i not in set(drawn)], len(drawn), False)

    @cached_property
    def fitted(self) -> Any:
        """The sample's rows, fitted to the tokenizer and not cut (`Prepared`); None where none can be.

        Rows in which nothing would be trained at any length are left out, and their numbers are in `masked`.
        """
        wanted = list(self.sample.rows)
        made = self._try("masked-rows", "rows", lambda: self._render(wanted))
        if made is None or len(made.dataset) == len(wanted):
            return made
        kept = self._trainable(wanted)
        self.masked = sorted(set(wanted) - set(kept))
        drawn = sum(i in set(kept) for i in wanted[: self.sample.drawn])
        self.sample = Sample(kept, drawn, self.sample.whole)
        return self._render(kept)

    def _render(self, numbers: list[int]) -> Any:
        from aligntune.data import render

        part = replace(self.train, dataset=self.train.dataset.select(numbers), notes=[])
        with quiet_libraries():
            return render(part, self.schema, self.tokenizer, max_length=None, loss_on=self.loss_on)

    def _trainable(self, numbers: list[int]) -> list[int]:
        """Those of the rows that rendering keeps, found by halves."""
        try:
            kept = len(self._render(numbers).dataset)
        except ValidationError:
            return []
        if kept == len(numbers):
            return numbers
        middle = len(numbers) // 2
        return self._trainable(numbers[:middle]) + self._trainable(numbers[middle:])

    def columns(self, names: tuple[str, ...]) -> list[list[str]]:
        """Those of the named columns that the training rows have, as texts; each is read once."""
        rows = self.train.dataset
        for name in names:
            if name in rows.column_names and name not in self._columns:
                self._columns[name] = [said(value) for value in rows[name]]
        return [self._columns[name] for name in names if name in self._columns]

    def text(self, index: int) -> str:
        """A training row on one line, for messages."""
        row = self.train.dataset[index]
        names = ("prompt", "text", "messages", "completion", "chosen", "tokens")
        if "input_ids" in row and not set(names) & set(row):
            return (
                str(self.tokenizer.decode(row["input_ids"])) if self.tokenizer is not None else said(row["input_ids"])
            )
        return " | ".join(said(row[name]) for name in names if name in row)


class Sample:
    """Numbers of the rows that are tokenised.

    Args:
        rows: numbers in the training rows.
        drawn: how many of the first of them are a fair sample; those after it are the longest rows.
        whole: whether these are all rows.
    """

    def __init__(self, rows: list[int], drawn: int, whole: bool) -> None:
        self.rows, self.drawn, self.whole = rows, drawn, whole

    @property
    def words(self) -> str:
        """What a share is a share of."""
        return "rows" if self.whole else f"a sample of {self.drawn} rows"


def said(value: Any) -> str:
    """A cell of a prepared row as text: message lists as "role: content" joined by spaces."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return " ".join(part for m in value for part in (str(m.get("content") or ""), _calls(m)) if part)
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def _calls(message: dict[str, Any]) -> str:
    """The tool calls of a message as JSON text; empty where it has none."""
    return json.dumps(message["tool_calls"], default=str) if message.get("tool_calls") else ""


CONTENT = ("prompt", "completion", "chosen", "rejected", "messages", "text", "tokens", "input_ids")
"""Columns of prepared rows that hold what is read."""


def columns_of_text(rows: Any, names: tuple[str, ...] = CONTENT) -> list[list[str]]:
    """The content columns of prepared rows as texts, a list for each column, in the order of `names`."""
    return [[said(value) for value in rows[name]] for name in names if name in rows.column_names]


def characters(rows: Any) -> list[int]:
    """Characters of each prepared row."""
    return [sum(map(len, parts)) for parts in zip(*columns_of_text(rows), strict=True)]


def fingerprint(text: str) -> str:
    """The first 12 hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]
