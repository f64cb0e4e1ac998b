"""A source as a stream: rows are read, converted and tokenised as the trainer asks for them, in file order.

>>> stream = open_stream(DatasetConfig(name="huge.jsonl.gz", streaming=True), Schema.TEXT, tokenizer, max_length=1024)
>>> next(iter(stream.tokens))
{'input_ids': [...], 'labels': [...]}

Memory is that of `BATCH` rows, whatever the length of the source. The columns are those of the first `PEEK` rows. What
needs all rows at once is refused: slices, draws, duplicates, mixtures. Rows that lack something are left out and kept
with their place in `skipped`, which grows as the stream is read. Every epoch reads the source again, in the same order;
shuffle the file beforehand (`shuf`), because nothing here does.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from aligntune.algorithms.base import Schema
from aligntune.core.config import DatasetConfig
from aligntune.data.filters import RowFilter
from aligntune.data.formats import Plan, make_plan
from aligntune.data.loaders.base import BaseLoader
from aligntune.data.manager import DataManager, Prepared, placed, preset_of
from aligntune.data.messages import RowFault, RowProblem
from aligntune.data.rows import BadRows, Rows, check_columns
from aligntune.data.storage import to_dataset
from aligntune.data.tokenised import Count, LossOn, TokenTable, tokenise
from aligntune.data.tokens import Tokens, fit_to_template, plain_rows
from aligntune.errors import ConfigurationError, ValidationError

STREAMED = (Schema.TEXT, Schema.MESSAGES, Schema.PROMPT_COMPLETION, Schema.PREFERENCE)
PEEK = 1000
"""Rows whose columns stand for those of the stream."""
BATCH = 100
"""Rows tokenised at once."""


class Stream:
    """The rows of one source, again and again.

    Args:
        loader, source: as the resolver gives them.
        plan: how its rows are read.
        manager: converts them.
        tokens: the tokenizer as the trainer uses it.
        max_length: most tokens a row.
        loss_on: see `render`.
    """

    def __init__(
        self,
        loader: BaseLoader,
        source: DatasetConfig,
        plan: Plan,
        columns: list[str],
        manager: DataManager,
        tokens: Tokens,
        max_length: int,
        loss_on: LossOn | None,
    ) -> None:
        self.loader, self.source, self.plan, self.columns = loader, source, plan, columns
        self.manager, self.tokens, self.max_length, self.loss_on = manager, tokens, max_length, loss_on
        self.skipped: list[dict[str, Any]] = []
        self._told = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        start, seen = 0, False
        rows = self._canonical()
        while batch := list(itertools.islice(rows, BATCH)):
            made = self._tokenised(batch, start)
            start += len(batch)
            names = list(made)
            for values in zip(*made.values(), strict=True):
                seen = True
                yield dict(zip(names, values, strict=True))
        if not seen:
            raise ValidationError(
                f"no row of {self.source.name} can be trained on", hint="check `format`, `filter` and the length limit"
            )

    def _canonical(self) -> Iterator[dict[str, Any]]:
        bad, kept_by = BadRows(self.source.on_bad_row == "skip"), RowFilter(self.source.filter)
        facts: Counter[str] = Counter()
        known = set(self.columns)
        for number, (place, raw) in enumerate(self.loader.stream(self.source, bad), start=1):
            row = {name: raw.get(name) for name in self.columns}
            if self.source.columns is None and not known.issuperset(raw):
                row |= raw
            try:
                made = self.manager.one(row, self.plan, facts)
                kept_by.check(made)
            except RowProblem as problem:
                bad.rows.append({"place": place, "reason": str(problem), "row": row})
            except (RowFault, ValidationError) as error:
                bad.take(place, placed(place, error), row)
            else:
                yield made
            self._remember(number, bad)
        self._remember(1 << 62, bad)

    def _remember(self, number: int, bad: BadRows) -> None:
        """Keep what was left out, once for each row whatever the number of epochs."""
        if bad.rows:
            if number > self._told:
                self.skipped += bad.rows
            bad.rows.clear()
        self._told = max(self._told, number)

    def _tokenised(self, rows: list[dict[str, Any]], start: int) -> dict[str, list[Any]]:
        dataset, schema = to_dataset(rows), self.manager.schema
        if "input_ids" in dataset.column_names:
            return {name: [row[name][: self.max_length] for row in rows] for name in ("input_ids", "labels")}
        if self.tokens.template is None:
            if schema is not Schema.TEXT:
                dataset, _ = plain_rows(dataset, schema)
        else:
            dataset, _ = fit_to_template(dataset, self.tokens.template)
        count = Count()
        return tokenise(dataset[:], start, schema, self.tokens, self.max_length, count, self.loss_on, cut=True)


def open_stream(
    source: DatasetConfig,
    schema: Schema,
    tokenizer: Any,
    *,
    max_length: int,
    loss_on: LossOn | None = None,
    cache_dir: str | None = None,
) -> Prepared:
    """A source as a stream of token rows.

    Args:
        source: one file, folder or hub data set.
        schema: TEXT, MESSAGES, PROMPT_COMPLETION or PREFERENCE.
        tokenizer: a Transformers tokenizer.
        max_length: most tokens a row.
        loss_on: see `render`.
        cache_dir: where downloads are kept.

    Returns:
        A `Prepared` whose `dataset` and `tokens` are one `datasets.IterableDataset`; its hash names the source.

    Raises:
        ConfigurationError: the settings need all rows at once, or the source cannot be streamed.
        ValidationError: the first rows cannot be read, or have not the columns that are needed.
    """
    from datasets import IterableDataset

    schema = Schema(schema)
    if schema not in STREAMED:
        why = ": how many are desirable is known only from all of them" if schema is Schema.UNPAIRED else ""
        raise ConfigurationError(f"'{schema.value}' rows cannot be streamed{why}", hint="remove streaming")
    if source.filter.deduplicate != "none":
        raise ConfigurationError(
            "filter.deduplicate remembers every row, and a stream has bounded memory",
            hint="deduplicate the file first (`aligntune data split` writes one), or remove streaming",
        )
    manager = DataManager(schema, cache_dir=cache_dir)
    preset, source, notes = preset_of(source)
    loader, source, count = manager.resolver.resolve(source)
    if count is not None:
        raise ConfigurationError(
            "max_samples (or #N) draws from all rows, and a stream does not know how many it has",
            hint="set train.max_steps, or remove streaming",
        )
    first = Rows([row for _, row in itertools.islice(loader.stream(source, BadRows(skip=True)), PEEK)], source.name)
    if not first.rows:
        raise ValidationError(f"{source.name} holds no rows that can be read", hint="check the file and the split")
    if source.columns is not None:
        check_columns(source.columns, first.columns, source.name)
        first = first.with_columns(source.columns)
    plan = make_plan(first.columns, source, schema, preset)
    tokens = Tokens(tokenizer, text=schema is Schema.TEXT, training_template=loss_on == "assistant")
    if tokens.plain:
        tokens.require_eos()
    stream = Stream(loader, source, plan, first.columns, manager, tokens, max_length, loss_on)
    dataset = IterableDataset.from_generator(stream.__iter__, features=TokenTable.features(schema))
    identity = json.dumps([manager.identity(source), source.name], default=str)
    return Prepared(
        dataset=dataset,
        format=plan.format,
        notes=[*notes, *manager.resolver.notes, f"{source.name}: {plan.note}", "Rows are streamed in file order."],
        source=source.name,
        content_hash=hashlib.sha256(identity.encode()).hexdigest(),
        skipped=stream.skipped,
        tokens=dataset,
    )
