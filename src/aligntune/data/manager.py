"""The data pipeline of a run: sources in, one data set in the schema's canonical columns out.

    source -> loader -> rows -> plan (format, columns) -> draw -> canonical rows -> mixture -> Prepared

>>> prepared = prepare_dataset(DatasetConfig(name="train.jsonl", preset="gsm8k"), Schema.PROMPT, seed=42)
>>> prepared.dataset.column_names
['prompt', 'question', 'answer', 'reference']

Rows that lack what the schema needs are left out, counted and named in `notes`; a row that cannot be read at
all stops the run with its file and line, or is kept apart (`on_bad_row: skip`). Fitting rows to a tokenizer is
`aligntune.data.render`.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from aligntune.algorithms.base import Schema
from aligntune.core.config import DatasetConfig
from aligntune.data.examples import Example, canonical, lookup, reference_text, split_last_answer, unpaired
from aligntune.data.filters import RowFilter
from aligntune.data.formats import FORMATS, Plan, make_plan
from aligntune.data.labels import Labels, declared_labels
from aligntune.data.loaders.base import BaseLoader
from aligntune.data.messages import RowFault, RowProblem, spoken
from aligntune.data.mixing import mixed_rows
from aligntune.data.objects import as_sources, known_schema, one_source
from aligntune.data.presets import Preset, get_preset, preset_of_hub_id
from aligntune.data.resolver import LoaderResolver
from aligntune.data.rows import BadRows, Rows
from aligntune.data.table import RowTable
from aligntune.errors import ConfigurationError, ValidationError

if TYPE_CHECKING:
    import datasets

RESERVED = (
    "text",
    "prompts",
    "completion",
    "completions",
    "completion_ids",
    "trainer_state",
    "log_extra",
    "log_metric",
    "environments",
    "environment",
    "image",
    "images",
)
"""Names that rewards and TRL's GRPOTrainer use otherwise; a row's column of that name gets `source_` before it."""


LABELLED = (Schema.CLASSIFICATION, Schema.TOKENS)
"""Schemas whose rows carry labels of a fixed list."""


@dataclass(frozen=True)
class Prepared:
    """Rows ready for a trainer.

    Args:
        dataset: the canonical columns of the schema.
        format: the source's format, detected or given; several sources' are joined by " + ".
        notes: one sentence each: what was detected, mapped and left out, and how many.
        source: the source in words.
        content_hash: SHA-256 over the rows as `prepare_dataset` made them.
        class_names: the labels that every source declares, in its order; None where one declares none.
        skipped: rows that were left out or could not be read, each with `place`, `reason` and `row`.
        tokens: the rows as the trainer gets them, where they are tokenised already (`aligntune.data.tokenised`).
    """

    dataset: datasets.Dataset
    format: str
    notes: list[str]
    source: str
    content_hash: str
    class_names: list[str] | None = None
    skipped: Sequence[dict[str, Any]] = field(default_factory=list)
    tokens: Any = None


@dataclass
class _Part:
    """The canonical rows of one source."""

    rows: RowTable
    format: str
    source: str
    notes: list[str]
    class_names: list[str] | None = None
    skipped: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class _Tally:
    """What was left out and why, with the first places."""

    reasons: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, reason: str, place: str, row: Any = None) -> None:
        self.rows.append({"place": place, "reason": reason, "row": row})
        self.reasons[reason] += 1
        if len(self.places.setdefault(reason, [])) < 3:
            self.places[reason].append(place)

    def notes(self, seen: int) -> list[str]:
        notes = []
        for reason, count in self.reasons.most_common():
            places = ", ".join([*self.places[reason], *(["..."] if count > 3 else [])])
            notes.append(f"Left out {count} of {seen} rows: {reason} ({places}).")
        return notes


def unreadable_note(bad: list[dict[str, Any]], seen: int) -> list[str]:
    """The sentence about rows that could not be read."""
    if not bad:
        return []
    told = "; ".join(f"{row['place']}: {row['reason']}" for row in bad[:3]) + ("; ..." if len(bad) > 3 else "")
    return [f"Skipped {len(bad)} of {seen} rows that cannot be read ({told})."]


class _Kept:
    """The canonical rows of a source as they are made, in file order.

    Args:
        source: in words, for the names of pairs.
        drawn: they come in random order, and so wait for the last.
        apart: pairs become two rows each.
    """

    def __init__(self, source: str, *, drawn: bool, apart: bool) -> None:
        self.source, self.pairs, self._count = source, 0, 0
        self._apart = apart
        self._waiting: list[tuple[int, dict[str, Any]]] | None = [] if drawn else None
        self._table = RowTable(hashed=True)

    def __len__(self) -> int:
        return self._count

    def add(self, index: int, row: dict[str, Any]) -> None:
        """Row `index` of the source."""
        self._count += 1
        if self._waiting is not None:
            self._waiting.append((index, row))
        else:
            self._put(row, self._count - 1)

    def _put(self, row: dict[str, Any], number: int) -> None:
        pair = self._apart and "chosen" in row
        self.pairs += pair
        self._table.extend(unpaired([row], self.source, number) if pair else [row])

    def table(self) -> RowTable:
        """All of them."""
        for number, (_, row) in enumerate(sorted(self._waiting or [], key=lambda item: item[0])):
            self._put(row, number)
        self._waiting = None
        return self._table


class DataManager:
    """Prepares sources for one schema.

    Args:
        schema: what the algorithm trains on.
        seed: of sampling and mixing.
        cache_dir: where hub and other downloads are kept; None takes the usual folders.
        labels: what CLASSIFICATION and TOKENS rows may be labelled with; None takes every label.
        first: read no more than so many rows of each source, from its beginning; None reads all.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        seed: int = 42,
        cache_dir: str | None = None,
        labels: Labels | None = None,
        first: int | None = None,
    ) -> None:
        self.schema = known_schema(schema)
        self.seed = seed
        self.labels = labels
        self.first = first
        self.resolver = LoaderResolver(cache_dir)

    def prepare(self, source: DatasetConfig | list[DatasetConfig]) -> Prepared:
        """See `prepare_dataset`."""
        sources = checked_sources(as_sources(source))
        parts = [self._part(one) for one in sources]
        if len(parts) == 1:
            rows, notes = parts[0].rows, parts[0].notes
        else:
            rows, mixed = mixed_rows(
                [p.rows for p in parts], [s.weight for s in sources], [p.source for p in parts], self.seed
            )
            notes = [note for part in parts for note in part.notes] + [mixed]
        return Prepared(
            dataset=rows.dataset(_column_order(rows.names)),
            format=" + ".join(dict.fromkeys(part.format for part in parts)),
            notes=notes,
            source="; ".join(part.source for part in parts),
            content_hash=rows.content_hash(),
            class_names=declared_labels([part.class_names for part in parts]),
            skipped=[row for part in parts for row in part.skipped],
        )

    def load(self, source: DatasetConfig) -> Rows:
        """The rows of one source as they are, after split and slice, before any format."""
        loader, source, _ = self.resolver.resolve(one_source(source))
        return read_columns(loader, source)

    def identity(self, source: DatasetConfig | list[DatasetConfig]) -> list[Any]:
        """What tells the content of each source from any other."""
        found = []
        for one in checked_sources(source):
            _, one, _ = preset_of(one)
            loader, one, _ = self.resolver.resolve(one)
            found.append([type(loader).__name__, loader.identity(one)])
        return found

    def _part(self, source: DatasetConfig) -> _Part:
        preset, source, notes = preset_of(source)
        loader, source, count = self.resolver.resolve(source)
        rows = read_columns(loader, source) if self.first is None else first_rows(loader, source, self.first)
        notes += self.resolver.notes
        if not rows.rows and rows.skipped:
            raise ValidationError(
                f"none of the {len(rows.skipped)} rows of {rows.source} can be read: "
                f"{rows.skipped[0]['place']}: {rows.skipped[0]['reason']}",
                hint="set `on_bad_row: error` to see the first in full",
            )
        if not rows.rows:
            raise ValidationError(f"{rows.source} holds no rows", hint="check the file, the split and the slice")
        plan = make_plan(rows.columns, source, self.schema, preset)
        notes = [*notes, *rows.notes, f"{rows.source}: {plan.note}"]
        if self.schema in LABELLED:
            rows = rows.with_class_names(set(plan.fields.columns.values()))
        done, more, skipped = self._convert(rows, plan, count, source)
        return _Part(done, plan.format, rows.source, [*notes, *more], _class_names(rows, plan), skipped)

    def _convert(
        self, rows: Rows, plan: Plan, count: int | None, source: DatasetConfig
    ) -> tuple[RowTable, list[str], list[dict[str, Any]]]:
        """Canonical rows in file order, `count` of them drawn with the seed (None: all), notes, and what is missing."""
        tally, facts = _Tally(), Counter[str]()
        bad, kept_by = BadRows(source.on_bad_row == "skip"), RowFilter(source.filter)
        columns = rows.columns
        kept = _Kept(rows.source, drawn=count is not None, apart=self.schema is Schema.UNPAIRED)
        seen = 0
        for index, raw in rows.walk(None if count is None else _draw(len(rows), self.seed), count or 1):
            if count is not None and len(kept) == count:
                break
            seen += 1
            row = {name: raw.get(name) for name in columns} if len(raw) < len(columns) else raw
            try:
                made = self.one(row, plan, facts)
                kept_by.check(made)
                kept.add(index, made)
            except RowProblem as problem:
                tally.add(str(problem), rows.place(index), row)
            except (RowFault, ValidationError) as error:
                bad.take(rows.place(index), placed(rows.place(index), error), row)
        notes = tally.notes(seen) + unreadable_note(rows.skipped + bad.rows, seen + len(rows.skipped))
        if not len(kept):
            raise ValidationError(
                f"none of the {seen} rows of {rows.source} can be used as '{self.schema.value}': {notes[0]}",
                hint="check `format` and `column_mapping`" + (", and `filter`" if kept_by.active else ""),
            )
        notes += _facts(facts, plan, columns, self.schema)
        if count is not None:
            drawn = f"{len(kept)} of {len(rows)} rows with seed {self.seed}"
            notes.append(f"Drew {drawn}." if len(kept) == count else f"Drew {drawn}; {count} were asked for.")
        table = kept.table()
        if kept.pairs:
            notes.append(
                f"{kept.pairs} pairs are taken apart: each chosen answer is desirable, each rejected one is not."
            )
        return table, notes, rows.skipped + bad.rows + tally.rows

    def one(self, row: dict[str, Any], plan: Plan, facts: Counter[str]) -> dict[str, Any]:
        """The canonical row of a source's row; `facts` counts what is worth a note.

        Raises:
            RowProblem: it lacks something.
            RowFault, ValidationError: it cannot be read.
        """
        example = FORMATS[plan.format].read(row, plan.fields, self.schema)
        made = canonical(example, self.schema)
        if self.labels is not None:
            for label in [made["label"]] if "label" in made else made["tags"]:
                self.labels.id(label)
        facts["own_system"] += example.own_system
        facts["several_answers"] += example.several_answers
        if self.schema is not Schema.PROMPT:
            return made
        return {**made, **_reward_columns(row, example, plan, facts)}


def placed(place: str, error: Exception) -> ValidationError:
    """The fault of one row with its place in front."""
    if isinstance(error, ValidationError):
        return ValidationError(f"{place}: {error.message}", hint=error.hint)
    hint = "mend or remove this row, set another `format`, or `on_bad_row: skip`"
    return ValidationError(f"{place}: {error}", hint=hint)


def checked_sources(source: DatasetConfig | list[DatasetConfig]) -> list[DatasetConfig]:
    """The sources as a list.

    Raises:
        ConfigurationError: there is none, or a weight has nothing to weigh against.
    """
    sources = source if isinstance(source, list) else [source]
    if not sources:
        raise ConfigurationError("no data set is given", hint="set `dataset` (SFT) or `datasets` (RL)")
    if len(sources) == 1 and sources[0].weight != 1:
        raise ConfigurationError(
            f"weight {sources[0].weight:g} has no effect: '{sources[0].name}' is the only source",
            hint="remove weight, or add the sources to mix with",
        )
    return sources


def read_columns(loader: BaseLoader, source: DatasetConfig) -> Rows:
    """The rows of a resolved source, with the columns that it asks for."""
    rows = loader.read(source)
    return rows if source.columns is None or not rows.rows else rows.with_columns(source.columns)


def first_rows(loader: BaseLoader, source: DatasetConfig, count: int) -> Rows:
    """The first rows of a resolved source, read as a stream; a note says whether there are more."""
    bad = BadRows(source.on_bad_row == "skip")
    placed = list(itertools.islice(loader.stream(source, bad), count + 1))
    more, placed = len(placed) > count, placed[:count]
    note = f"The first {count} rows were looked at; there are more." if more else f"It has {len(placed)} rows."
    rows = Rows([row for _, row in placed], source.name, [place for place, _ in placed], [note], skipped=bad.rows)
    return rows if source.columns is None or not placed else rows.with_columns(source.columns)


def _class_names(rows: Rows, plan: Plan) -> list[str] | None:
    """The labels that the source declares for its label column, in its order."""
    column = plan.fields.columns.get("label") or plan.fields.columns.get("tags")
    return rows.class_names.get(column) if column else None


def _reward_columns(row: dict[str, Any], example: Example, plan: Plan, facts: Counter[str]) -> dict[str, Any]:
    """Every column of the row, the mapped names, and the gold answer."""
    columns = {
        (f"source_{name}" if name in RESERVED else name): value for name, value in row.items() if name != "prompt"
    }
    columns.update({name: lookup(row, column) for name, column in plan.extra.items()})
    reference = _reference(row, example, plan)
    facts["with_reference"] += reference is not None
    columns["reference"] = reference
    return columns


def _reference(row: dict[str, Any], example: Example, plan: Plan) -> Any:
    if plan.reference is not None:
        return reference_text(lookup(row, plan.reference))
    _, completion = split_last_answer(example)
    if completion is None:
        return None
    text = spoken(completion[-1])
    if plan.reference_after is None:
        return text
    _before, mark, gold = text.rpartition(plan.reference_after)
    if not mark or not gold.strip():
        raise RowProblem(f"the answer has no '{plan.reference_after}' with the gold answer after it")
    return gold.strip()


def _facts(facts: Counter[str], plan: Plan, columns: list[str], schema: Schema) -> list[str]:
    notes = []
    if facts["own_system"]:
        notes.append(
            f"{facts['own_system']} rows keep the system message of their own; system_prompt stands in the others."
        )
    if facts["several_answers"] and schema is Schema.PROMPT_COMPLETION:
        notes.append(
            f"{facts['several_answers']} conversations have several assistant turns; only the last one is the "
            "completion (the task chat_completion trains on all of them)."
        )
    if facts["several_answers"] and schema is Schema.UNPAIRED:
        notes.append(
            f"{facts['several_answers']} conversations have several assistant turns; the label is of the last one."
        )
    if schema is Schema.PROMPT:
        renamed = [name for name in columns if name in RESERVED]
        if renamed:
            notes.append(
                "Columns renamed because rewards and TRL use their names: "
                + ", ".join(f"{name} to source_{name}" for name in renamed)
                + "."
            )
        return notes
    used = {column.split(".")[0] for column in plan.fields.columns.values()} | set(plan.fields.columns.values())
    if plan.fields.template:
        used |= plan.fields.template.variables
    unused = [name for name in columns if name not in used]
    if unused:
        notes.append(f"Columns not used: {', '.join(unused)}.")
    return notes


def preset_of(source: DatasetConfig) -> tuple[Preset | None, DatasetConfig, list[str]]:
    """The preset that was named or belongs to the hub id, and the source with what the preset knows about it."""
    name = source.preset or preset_of_hub_id(source.name.split("#")[0])
    if name is None:
        return None, source, []
    preset = get_preset(name)
    if source.preset is None and source.format not in (None, preset.format):
        return None, source, [f"preset {name} (it lists {source.name}) is not used: format says '{source.format}'."]
    if source.format not in (None, preset.format):
        raise ConfigurationError(
            f"preset '{name}' is format '{preset.format}' and format says '{source.format}'",
            hint="keep one of the two",
        )
    notes = [f"preset {name}{'' if source.preset else f' (it lists {source.name})'}."]
    at_hub = source.name.split("#")[0] in preset.hub_ids
    if at_hub and source.subset is None and preset.subset is not None:
        source = replace(source, subset=preset.subset)
        notes.append(f"subset {preset.subset} (the preset's).")
    if at_hub and preset.split is not None and source.split == "train":
        source = replace(source, split=preset.split)
        notes.append(f"split {preset.split} (the preset's).")
    if preset.prompt_template is not None and source.prompt_template is None:
        mapped = "prompt" in (source.column_mapping or {})
        source = source if mapped else replace(source, prompt_template=preset.prompt_template)
    if preset.header is not None and source.read.header is True:
        source = replace(source, read=replace(source.read, header=list(preset.header)))
        notes.append(f"columns {', '.join(preset.header)} (the preset's; the files have no header row).")
    return preset, source, notes


def _draw(total: int, seed: int) -> list[int]:
    """Row numbers in the order in which they are tried; a smaller draw is a beginning of a larger one."""
    order = list(range(total))
    random.Random(seed).shuffle(order)
    return order


def _column_order(names: dict[str, bool]) -> list[str]:
    """Columns that hold something: an optional column that is null in every row is left out."""
    return [name for name, held in names.items() if held or name not in ("tools", "reference", "pair")]


def prepare_dataset(
    source: Any,
    schema: Schema,
    *,
    seed: int = 42,
    cache_dir: str | None = None,
    labels: Labels | None = None,
    first: int | None = None,
) -> Prepared:
    """Load, convert, draw and mix.

    Canonical columns: TEXT `text`; MESSAGES `messages` [, `tools`]; PROMPT_COMPLETION `prompt`, `completion`
    [, `tools`]; PREFERENCE `prompt`, `chosen`, `rejected` [, `tools`]; UNPAIRED `prompt`, `completion`, `label`
    [, `tools`] and `pair` where pairs were taken apart; PROMPT `prompt`, every column of the row, and `reference`
    where rows have a gold answer. Prompts, completions and answers are message lists;
    `tools` is JSON text.

    Args:
        source: one source, or several to mix by weight (`aligntune.data.mixing`): `DatasetConfig`s, names, or rows in
            memory (a list of mappings, a `datasets.Dataset`, a pandas `DataFrame`).
        schema: what the algorithm trains on.
        seed: of sampling and mixing.
        cache_dir: where hub downloads are kept; None takes the library's folder.
        labels: what CLASSIFICATION and TOKENS rows may be labelled with; None takes every label.
        first: read no more than so many rows of each source, from its beginning; None reads all.

    Raises:
        ValidationError: the data cannot be read, are empty, or lack a column.
        ConfigurationError: settings contradict each other, or name something unknown.
        errors.EnvironmentError: hub data are neither cached nor reachable.
    """
    manager = DataManager(schema, seed=seed, cache_dir=cache_dir, labels=labels, first=first)
    return manager.prepare(as_sources(source, cache_dir))
