"""Rows as a loader read them, and the slice of a split that a user asked for.

A row is a plain dict, as its file spelled it: no column is forced to one type, because real JSON Lines mix
`3` and `"3"`, leave keys out and nest. `Rows.place(i)` says where a row came from, so that a message can name
it.

>>> rows = Rows([{"text": "a"}, {"text": "b"}], source="a.jsonl", places=["a.jsonl:1", "a.jsonl:3"])
>>> take_split(rows, "train[:1]").rows
[{'text': 'a'}]

Slices mean what they mean in the `datasets` library, which parses them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aligntune.errors import ConfigurationError, ValidationError

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split, and the words in a file name that stand for it (the rule of the `datasets` library)."""


@dataclass
class Rows:
    """Rows of one source.

    Args:
        rows: one dict per row; keys may differ from row to row.
        source: the source in words, for messages.
        places: where each row stands ("file.jsonl:12"); None says "row 12 of <source>", counting from 1.
        notes: sentences for the user about how the source was read.
        class_names: the labels of columns that hold their numbers, where the source declares them.
    """

    rows: list[dict[str, Any]]
    source: str
    places: Sequence[str] | None = None
    notes: list[str] = field(default_factory=list)
    class_names: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def place(self, index: int) -> str:
        """Where row `index` (from 0) stands."""
        return self.places[index] if self.places is not None else f"{self.source}, row {index + 1}"

    @property
    def columns(self) -> list[str]:
        """Every key of any row, in order of first appearance."""
        names: dict[str, None] = {}
        for row in self.rows:
            names.update(dict.fromkeys(row))
        return list(names)

    def select(self, indices: Iterable[int]) -> Rows:
        """The rows at `indices`, each keeping its place."""
        chosen = list(indices)
        places = [self.place(i) for i in chosen]
        return Rows([self.rows[i] for i in chosen], self.source, places, list(self.notes), self.class_names)

    def with_class_names(self, columns: Collection[str]) -> Rows:
        """The rows with names for the numbers in those of `columns` that declare them; a number below 0 is none."""
        named = {column: names for column, names in self.class_names.items() if column in columns}
        if not named:
            return self
        rows = [{**row, **{c: _named(row.get(c), names) for c, names in named.items()}} for row in self.rows]
        return Rows(rows, self.source, self.places, self.notes, self.class_names)


def _named(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    return names[value] if 0 <= value < len(names) else None


def class_names(features: Any) -> dict[str, list[str]]:
    """The names of the `ClassLabel` columns (or lists of them) of a `datasets` library's features."""
    found = {}
    for column, feature in (features or {}).items():
        inner = getattr(feature, "feature", feature)
        if names := getattr(inner, "names", None):
            found[column] = [str(name) for name in names]
    return found


def split_base(split: str) -> str:
    """The split's name without slices: `train` for `train[:10%]+train[90%:]`.

    Raises:
        ConfigurationError: the slices are of several splits (one source has one split here).
    """
    names = {re.split(r"[\[(]", part.strip(), maxsplit=1)[0] for part in split.split("+")}
    if len(names) != 1 or not next(iter(names)):
        raise ConfigurationError(
            f"split '{split}' names several splits or none",
            hint="write one split a source, such as `split: train[:10%]`",
        )
    return names.pop()


def take_split(rows: Rows, split: str, *, known: Sequence[str] = ("train",)) -> Rows:
    """The part of `rows` that `split` asks for.

    Args:
        split: `train`, or slices of it: `train[:10%]`, `train[100:200]`, `train[:5]+train[-5:]`.
        known: names that these rows answer to.

    Raises:
        ValidationError: the split is not there.
        ConfigurationError: the slice cannot be read.
    """
    base = split_base(split)
    if base not in known:
        raise ValidationError(
            f"{rows.source} has no split '{base}'",
            hint=f"set split to one of: {', '.join(known)} (a file's rows are its split `train`)",
        )
    if split == base:
        return rows
    from datasets import ReadInstruction

    try:
        parts = ReadInstruction.from_spec(split).to_absolute({base: len(rows)})
    except (ValueError, AssertionError) as error:
        raise ConfigurationError(
            f"cannot read the slice of split '{split}': {error}",
            hint="write it as `train[:10%]` or `train[100:200]`",
        ) from error
    indices = [i for part in parts for i in range(part.from_, part.to)]
    if not indices:
        raise ValidationError(
            f"split '{split}' of {rows.source} holds no row of its {len(rows)}",
            hint="take a slice inside the data",
        )
    return rows.select(indices)


def split_of_name(path: str) -> str | None:
    """The split that a file's relative path names, or None: `test` for `data/test-00000-of-00001.parquet`."""
    words = re.split(r"[^a-z]+", path.lower())
    return next((split for split, aliases in SPLIT_NAMES.items() if any(w in aliases for w in words)), None)
