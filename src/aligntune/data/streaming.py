"""A source as a stream: rows are read, converted and tokenised as the trainer asks for them, in file order.

>>> stream = open_stream(DatasetConfig(name="huge.jsonl.gz", streaming=True), Schema.TEXT, tokenizer, max_length=1024)
>>> next(iter(stream.tokens))
{'input_ids': [...], 'labels': [...]}

Memory is that of `BATCH` rows, whatever the length of the source. The columns are those of the first `PEEK` rows. What
needs all rows at once is refused: slices, draws, duplicates, mixtures. Rows that lack something are left out and kept
with their place in `skipped`, which grows as the stream is read, beyond `KEPT` of them in a temporary file. Every epoch
reads the source again, in the same order; shuffle the file beforehand (`shuf`), because nothing here does.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

from aligntune.algorithms.base import Schema
from aligntune.core.config import DatasetConfig
from aligntune.data.filters import RowFilter
from aligntune.data.formats import Plan, make_plan
from aligntune.data.loaders.base import BaseLoader
from aligntune.data.manager import DataManager, Prepared, placed, preset_of
from aligntune.data.messages import RowFault, RowProblem
from aligntune.data.presets import preset_of_hub_id
from aligntune.data.resolver import sample_size
from aligntune.data.rows import BadRows, Rows, check_columns
from aligntune.data.storage import to_dataset
from aligntune.data.table import row_line
from aligntune.data.tokenised import Count, LossOn, TokenTable, tokenise
from aligntune.data.tokens import Tokens, fit_to_template, plain_rows
from aligntune.errors import ConfigurationError, ValidationError

STREAMED = (Schema.TEXT, Schema.MESSAGES, Schema.PROMPT_COMPLETION, Schema.PREFERENCE)
PEEK = 1000
"""Rows whose columns stand for those of the stream."""
BATCH = 100
"""Rows tokenised at once."""
KEPT = 1000
"""Rows left out that are held in memory."""


class LeftOut(Sequence[dict[str, Any]]):
    """Rows that were left out: the first `KEPT` in memory, the others in a temporary file as JSON."""

    def __init__(self) -> None:
        self._first: list[dict[str, Any]] = []
        self._file: Any = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def extend(self, rows: Sequence[dict[str, Any]]) -> None:
        """More of them."""
        space = KEPT - len(self._first)
        self._first += rows[:space]
        self._count += len(rows)
        if len(rows) > space:
            self._file = self._file or tempfile.TemporaryFile("w+b")  # noqa: SIM115 - closed with this object
            self._file.seek(0, os.SEEK_END)
            self._file.writelines(row_line(row) for row in rows[space:])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self._first
        if self._file is not None:
            self._file.flush()
            self._file.seek(0)
            for line in self._file:
                yield json.loads(line.decode("utf-8", "surrogatepass"))

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, int) and 0 <= index < len(self._first):
            return self._first[index]
        return list(self)[index]


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
        self.skipped = LeftOut()
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
                self.skipped.extend(bad.rows)
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
    refuse_whole(source, schema)
    manager = DataManager(schema, cache_dir=cache_dir)
    preset, source, notes = preset_of(source)
    loader, source, _ = manager.resolver.resolve(source)
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


def refuse_whole(source: DatasetConfig, schema: Schema) -> None:
    """Refuse to stream what needs all rows at once.

    Raises:
        ConfigurationError: names the key.
    """
    if schema not in STREAMED:
        why = ": how many are desirable is known only from all of them" if schema is Schema.UNPAIRED else ""
        raise ConfigurationError(f"'{schema.value}' rows cannot be streamed{why}", hint="remove streaming")
    if source.filter.deduplicate != "none":
        raise ConfigurationError(
            "filter.deduplicate remembers every row, and a stream has bounded memory",
            hint="deduplicate the file first (`aligntune data split` writes one), or remove streaming",
        )
    if sample_size(source)[1] is not None:
        raise ConfigurationError(
            "max_samples (or #N) draws from all rows, and a stream does not know how many it has",
            hint="set train.max_steps, or remove streaming",
        )


def write_first(source: DatasetConfig, count: int, path: Path, cache_dir: str | None = None) -> DatasetConfig:
    """Write the first rows of a stream to a JSON Lines file; returns the source of that file, which is read whole."""
    name = source.preset or preset_of_hub_id(source.name)
    preset, source, _ = preset_of(source)
    loader, source, _ = DataManager(Schema.TEXT, cache_dir=cache_dir).resolver.resolve(source)
    bad = BadRows(source.on_bad_row == "skip")
    with open(path, "wb") as file:
        file.writelines(row_line(row) for _, row in itertools.islice(loader.stream(source, bad), count))
    plain = DatasetConfig(name=str(path))
    keys = ("split", "subset", "revision", "read", "streaming")
    return replace(
        source, name=plain.name, preset=name if preset else None, **{key: getattr(plain, key) for key in keys}
    )
