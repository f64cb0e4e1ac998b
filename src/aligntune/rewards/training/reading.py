"""From data sources to a `RewardModelDataset`, through the data layer that every run uses.

>>> read_pairs([DatasetConfig(name="pairs.jsonl")], seed=0)
RewardModelDataset(0 texts, 1052 pairs, 1052 prompts)

Answers to be scored come from one of three places: the column that `answers` names (a text, or a list of texts), the
completion of the row's format, or both answers of a preference row. Only with `answers` do rewards see the other
columns, because then no column is the answer's own; a gold answer that only repeats the answer is never handed on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from aligntune.algorithms.base import Schema
from aligntune.core.config.sections import DatasetConfig
from aligntune.data.manager import RESERVED, DataManager, prepare_dataset
from aligntune.data.presets import get_preset, preset_of_hub_id
from aligntune.errors import ValidationError
from aligntune.registry import nearest
from aligntune.rewards.adapters import completion_text
from aligntune.rewards.composite import CompositeReward
from aligntune.rewards.training.dataset import RewardModelDataset


def read_pairs(sources: Sequence[DatasetConfig], *, seed: int, cache_dir: str | None = None) -> RewardModelDataset:
    """Preference pairs of any source and format that the data layer reads.

    Raises:
        ValidationError: the data cannot be read, or hold no pairs.
    """
    prepared = prepare_dataset(list(sources), Schema.PREFERENCE, seed=seed, cache_dir=cache_dir)
    return RewardModelDataset.from_pairs(
        list(prepared.dataset), notes=prepared.notes, source=prepared.source, content_hash=prepared.content_hash
    )


def read_answers(
    sources: Sequence[DatasetConfig],
    rewards: CompositeReward | None,
    *,
    answers: str | None = None,
    human: str | None = None,
    seed: int,
    cache_dir: str | None = None,
) -> RewardModelDataset:
    """Answers scored by `rewards`.

    Args:
        sources: what to read.
        rewards: what scores; None takes people's scores (`human`).
        answers: the column with a row's answer or list of answers; None takes those of the format.
        human: the column of a person's score, or of a list of them; needs `answers`.
        seed: of sampling and mixing.
        cache_dir: of hub downloads.

    Raises:
        ValidationError: the data cannot be read, or lack a column.
    """
    manager = DataManager(Schema.PREFERENCE, seed=seed, cache_dir=cache_dir)
    if answers is not None:
        schema = Schema.PROMPT
    elif all(_has_pairs(manager, source) for source in sources):
        schema = Schema.PREFERENCE
    else:
        schema = Schema.PROMPT_COMPLETION
    prepared = prepare_dataset(list(sources), schema, seed=seed, cache_dir=cache_dir)
    table, notes = list(prepared.dataset), list(prepared.notes)
    if schema is Schema.PROMPT and answers is not None:
        rows = _rows_of_column(table, answers, human, prepared.source)
        notes.append(f"answers from the column '{answers}': {len(rows)} in {len(table)} rows.")
    else:
        sides = ("chosen", "rejected") if schema is Schema.PREFERENCE else ("completion",)
        rows = [
            {"prompt": row["prompt"], "text": completion_text(row[side]), "row": f"{i}/{side}"}
            for i, row in enumerate(table)
            for side in sides
        ]
    about = {"notes": notes, "source": prepared.source, "content_hash": prepared.content_hash}
    return RewardModelDataset.label(rows, rewards, human=human, **about)


def _has_pairs(manager: DataManager, source: DatasetConfig) -> bool:
    preset = source.preset or preset_of_hub_id(source.name.split("#")[0])
    if source.format is not None or preset is not None:
        return (source.format or (get_preset(preset).format if preset else None)) == "preference"
    plain = dataclasses.replace(source, weight=1.0)
    loader, plain, _ = manager.resolver.resolve(plain)
    columns = {*loader.read(plain).columns, *(source.column_mapping or {})}
    return {"chosen", "rejected"} <= columns


def _rows_of_column(table: list[dict[str, Any]], answers: str, human: str | None, source: str) -> list[dict[str, Any]]:
    """One row for each answer, with the other columns beside it."""
    names = list(table[0])
    column, marks = _column(answers, names, source), None if human is None else _column(human, names, source)
    rows = []
    for i, row in enumerate(table):
        texts = row[column] if isinstance(row[column], list) else [row[column]]
        given = row[marks] if marks is not None else None
        scores = given if isinstance(given, list) else [given] * len(texts)
        if len(scores) != len(texts):
            raise ValidationError(
                f"row {i} of {source} has {len(texts)} answers and {len(scores)} values of '{human}'",
                hint="give one value for each answer",
            )
        if (odd := next((s for s in scores if not (s is None or _number(s))), None)) is not None:
            raise ValidationError(
                f"row {i} of {source}: '{human}' holds {odd!r}, not a number", hint="give people's scores as numbers"
            )
        others = {name: value for name, value in row.items() if name not in (column, marks)}
        for j, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValidationError(
                    f"row {i} of {source}: '{answers}' holds {type(text).__name__}, not text",
                    hint="name a column of texts, or of lists of texts",
                )
            made = {**others, "text": text, "row": f"{i}/{j}"}
            rows.append({**made, **({human: scores[j]} if human is not None else {})})
    if all(row.get("reference") in (None, row["text"]) for row in rows):
        # The data layer takes a row's completion for its gold answer, and here that is the answer to be judged.
        for row in rows:
            row.pop("reference", None)
    return rows


def _number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def _column(name: str, names: list[str], source: str) -> str:
    found = f"source_{name}" if name in RESERVED and f"source_{name}" in names else name
    if found not in names:
        raise ValidationError(f"{source} has no column '{name}'", hint=nearest(name, names))
    return found


def read_validation(
    source: DatasetConfig,
    rewards: CompositeReward | None,
    *,
    answers: str | None = None,
    human: str | None = None,
    seed: int,
) -> RewardModelDataset:
    """What a validation measures: the data's own pairs, answers scored by `rewards`, or both.

    Args:
        source: pairs, or answers.
        rewards: teachers, and independent scorers with weight 0; None where only pairs are measured.
        answers: the column with a row's answer or list of answers; not used where the rows are pairs.
        human: the column of people's scores; needs `answers`.
        seed: of the draw.

    Raises:
        ValidationError: the data cannot be read, or are answers that nothing scores.
    """
    manager = DataManager(Schema.PREFERENCE, seed=seed)
    paired = _has_pairs(manager, source) and human is None
    if not paired:
        if rewards is None and human is None:
            raise ValidationError(
                f"{source.name} holds no pairs, and nothing scores its answers", hint="give --reward, or pairs"
            )
        return read_answers([source], rewards, answers=answers, human=human, seed=seed)
    given = read_pairs([source], seed=seed)
    able = [c for c in rewards.components if not set(c.reward.columns) - {"prompt"}] if rewards is not None else []
    notes = [
        f"reward '{c.name}' reads columns that pairs do not have, and is not compared with."
        for c in (rewards.components if rewards is not None else [])
        if c not in able
    ]
    if able:
        # The pairs are the data's own, so no total is used: independent scorers alone count as well as teachers do.
        weights = None if any(c.weight for c in able) else [1.0] * len(able)
        scored = read_answers([source], CompositeReward(able, weights), seed=seed)
        return given._with(texts=scored.texts, notes=[*given.notes, *notes])
    return given._with(notes=[*given.notes, *notes])
