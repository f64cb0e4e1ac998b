"""The data pipeline of a run: sources in, one data set in the schema's canonical columns out.

    source -> loader -> rows -> plan (format, columns) -> draw -> canonical rows -> mixture -> Prepared

>>> prepared = prepare_dataset(DatasetConfig(name="train.jsonl", preset="gsm8k"), Schema.PROMPT, seed=42)
>>> prepared.dataset.column_names
['prompt', 'question', 'answer', 'reference']

Rows that lack what the schema needs are left out, counted and named in `notes`; a row that cannot be read at
all stops the run with its file and line. Fitting rows to a tokenizer is `aligntune.data.render`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aligntune.algorithms.base import Schema
from aligntune.core.config import DatasetConfig
from aligntune.data.examples import Example, canonical, lookup, reference_text, split_last_answer, unpaired
from aligntune.data.formats import FORMATS, Plan, make_plan
from aligntune.data.labels import Labels, declared_labels
from aligntune.data.messages import RowFault, RowProblem, spoken
from aligntune.data.mixing import mix
from aligntune.data.presets import Preset, get_preset, preset_of_hub_id
from aligntune.data.resolver import LoaderResolver
from aligntune.data.rows import Rows
from aligntune.data.storage import content_hash, to_dataset
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
    """

    dataset: datasets.Dataset
    format: str
    notes: list[str]
    source: str
    content_hash: str
    class_names: list[str] | None = None


@dataclass
class _Part:
    """The canonical rows of one source."""

    rows: list[dict[str, Any]]
    format: str
    source: str
    notes: list[str]
    class_names: list[str] | None = None


@dataclass
class _Tally:
    """What was left out and why, with the first places."""

    reasons: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, place: str) -> None:
        self.reasons[reason] += 1
        if len(self.places.setdefault(reason, [])) < 3:
            self.places[reason].append(place)

    def notes(self, seen: int) -> list[str]:
        notes = []
        for reason, count in self.reasons.most_common():
            places = ", ".join([*self.places[reason], *(["..."] if count > 3 else [])])
            notes.append(f"Left out {count} of {seen} rows: {reason} ({places}).")
        return notes


class DataManager:
    """Prepares sources for one schema.

    Args:
        schema: what the algorithm trains on.
        seed: of sampling and mixing.
        cache_dir: where hub downloads are kept; None takes the library's folder.
        labels: what CLASSIFICATION and TOKENS rows may be labelled with; None takes every label.
    """

    def __init__(
        self, schema: Schema, *, seed: int = 42, cache_dir: str | None = None, labels: Labels | None = None
    ) -> None:
        self.schema = Schema(schema)
        self.seed = seed
        self.labels = labels
        self.resolver = LoaderResolver(cache_dir)

    def prepare(self, source: DatasetConfig | list[DatasetConfig]) -> Prepared:
        """See `prepare_dataset`."""
        sources = source if isinstance(source, list) else [source]
        if not sources:
            raise ConfigurationError("no data set is given", hint="set `dataset` (SFT) or `datasets` (RL)")
        if len(sources) == 1 and sources[0].weight != 1:
            raise ConfigurationError(
                f"weight {sources[0].weight:g} has no effect: '{sources[0].name}' is the only source",
                hint="remove weight, or add the sources to mix with",
            )
        parts = [self._part(one) for one in sources]
        if len(parts) == 1:
            rows, notes = parts[0].rows, parts[0].notes
        else:
            rows, mixed = mix(
                [p.rows for p in parts], [s.weight for s in sources], [p.source for p in parts], self.seed
            )
            notes = [note for part in parts for note in part.notes] + [mixed]
        return Prepared(
            dataset=to_dataset(rows, _column_order(rows, self.schema)),
            format=" + ".join(dict.fromkeys(part.format for part in parts)),
            notes=notes,
            source="; ".join(part.source for part in parts),
            content_hash=content_hash(rows),
            class_names=declared_labels([part.class_names for part in parts]),
        )

    def load(self, source: DatasetConfig) -> Rows:
        """The rows of one source as they are, after split and slice, before any format."""
        loader, source, _ = self.resolver.resolve(source)
        return loader.read(source)

    def _part(self, source: DatasetConfig) -> _Part:
        preset, source, notes = _preset_of(source)
        loader, source, count = self.resolver.resolve(source)
        rows = loader.read(source)
        if not rows.rows:
            raise ValidationError(f"{rows.source} holds no rows", hint="check the file, the split and the slice")
        plan = make_plan(rows.columns, source, self.schema, preset)
        notes = [*notes, *rows.notes, f"{rows.source}: {plan.note}"]
        if self.schema in LABELLED:
            rows = rows.with_class_names(set(plan.fields.columns.values()))
        done, more = self._convert(rows, plan, count)
        if self.schema is Schema.UNPAIRED and "chosen" in done[0]:
            more.append(
                f"{len(done)} pairs are taken apart: each chosen answer is desirable, each rejected one is not."
            )
            done = unpaired(done, rows.source)
        return _Part(done, plan.format, rows.source, [*notes, *more], _class_names(rows, plan))

    def _convert(self, rows: Rows, plan: Plan, count: int | None) -> tuple[list[dict[str, Any]], list[str]]:
        """Canonical rows in file order, `count` of them drawn with the seed (None: all), and notes."""
        tally, facts = _Tally(), Counter[str]()
        columns = rows.columns
        kept: list[tuple[int, dict[str, Any]]] = []
        seen = 0
        for index in _draw(len(rows), count, self.seed):
            if count is not None and len(kept) == count:
                break
            seen += 1
            raw = rows.rows[index]
            row = {name: raw.get(name) for name in columns} if len(raw) < len(columns) else raw
            try:
                kept.append((index, self._one(row, plan, facts)))
            except RowProblem as problem:
                tally.add(str(problem), rows.place(index))
            except RowFault as fault:
                raise ValidationError(
                    f"{rows.place(index)}: {fault}", hint="mend or remove this row, or set another `format`"
                ) from fault
            except ValidationError as error:
                raise ValidationError(f"{rows.place(index)}: {error.message}", hint=error.hint) from error
        notes = tally.notes(seen)
        if not kept:
            raise ValidationError(
                f"none of the {seen} rows of {rows.source} can be used as '{self.schema.value}': {notes[0]}",
                hint="check `format` and `column_mapping`",
            )
        notes += _facts(facts, plan, columns, self.schema)
        if count is not None:
            drawn = f"{len(kept)} of {len(rows)} rows with seed {self.seed}"
            notes.append(f"Drew {drawn}." if len(kept) == count else f"Drew {drawn}; {count} were asked for.")
        return [row for _, row in sorted(kept, key=lambda item: item[0])], notes

    def _one(self, row: dict[str, Any], plan: Plan, facts: Counter[str]) -> dict[str, Any]:
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


def _preset_of(source: DatasetConfig) -> tuple[Preset | None, DatasetConfig, list[str]]:
    """The preset that was named or belongs to the hub id, and the source with the preset's subset."""
    import dataclasses

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
        source = dataclasses.replace(source, subset=preset.subset)
        notes.append(f"subset {preset.subset} (the preset's).")
    return preset, source, notes


def _draw(total: int, count: int | None, seed: int) -> Iterator[int]:
    """Row numbers in the order in which they are tried; a smaller draw is a beginning of a larger one."""
    order = list(range(total))
    if count is not None:
        random.Random(seed).shuffle(order)
    yield from order


def _column_order(rows: list[dict[str, Any]], schema: Schema) -> list[str]:
    """Columns that hold something: an optional column that is null in every row is left out."""
    optional = {"tools", "reference", "pair"}
    names = dict.fromkeys(name for row in rows for name in row)
    return [n for n in names if n not in optional or any(row.get(n) is not None for row in rows)]


def prepare_dataset(
    source: DatasetConfig | list[DatasetConfig],
    schema: Schema,
    *,
    seed: int,
    cache_dir: str | None = None,
    labels: Labels | None = None,
) -> Prepared:
    """Load, convert, draw and mix.

    Canonical columns: TEXT `text`; MESSAGES `messages` [, `tools`]; PROMPT_COMPLETION `prompt`, `completion`
    [, `tools`]; PREFERENCE `prompt`, `chosen`, `rejected` [, `tools`]; UNPAIRED `prompt`, `completion`, `label`
    [, `tools`] and `pair` where pairs were taken apart; PROMPT `prompt`, every column of the row, and `reference`
    where rows have a gold answer. Prompts, completions and answers are message lists;
    `tools` is JSON text.

    Args:
        source: one source, or several to mix by weight (`aligntune.data.mixing`).
        schema: what the algorithm trains on.
        seed: of sampling and mixing.
        cache_dir: where hub downloads are kept; None takes the library's folder.
        labels: what CLASSIFICATION and TOKENS rows may be labelled with; None takes every label.

    Raises:
        ValidationError: the data cannot be read, are empty, or lack a column.
        ConfigurationError: settings contradict each other, or name something unknown.
        errors.EnvironmentError: hub data are neither cached nor reachable.
    """
    return DataManager(schema, seed=seed, cache_dir=cache_dir, labels=labels).prepare(source)
