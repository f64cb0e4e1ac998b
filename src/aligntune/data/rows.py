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
from aligntune.registry import nearest

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split, and the words in a file name that stand for it (the rule of the `datasets` library)."""


@dataclass
class BadRows:
    """What to do with rows that cannot be read: stop at the first, or keep them apart with their place and reason.

    Args:
        skip: keep them apart (`on_bad_row: skip`).
    """

    skip: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)

    def take(self, place: str, error: ValidationError, content: Any = None) -> None:
        """One such row, as far as it could be read (`content`).

        Raises:
            ValidationError: `error`, unless rows are to be skipped.
        """
        if not self.skip:
            raise error
        _, found, reason = error.message.partition(f"{place}: ")
        self.rows.append({"place": place, "reason": reason if found else error.message, "row": content})


@dataclass
class Rows:
    """Rows of one source.

    Args:
        rows: one dict per row; keys may differ from row to row.
        source: the source in words, for messages.
        places: where each row stands ("file.jsonl:12"); None says "row 12 of <source>", counting from 1.
        notes: sentences for the user about how the source was read.
        class_names: the labels of columns that hold their numbers, where the source declares them.
        skipped: rows that could not be read, as `BadRows` keeps them.
    """

    rows: list[dict[str, Any]]
    source: str
    places: Sequence[str] | None = None
    notes: list[str] = field(default_factory=list)
    class_names: dict[str, list[str]] = field(default_factory=dict)
    skipped: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def place(self, index: int) -> str:
        """Where row `index` (from 0) stands."""
        return self.places[index] if self.places is not None else f"{self.source}, row {index + 1}"

    @property
    def columns(self) -> list[str]:
        """Every key of any row, in order of first appearance."""
        names: dict[str, None] = {}
        seen: set[tuple[str, ...]] = set()
        for row in self.rows:
            keys = tuple(row)
            if keys not in seen:  # most rows have the columns of the row before
                seen.add(keys)
                names.update(dict.fromkeys(keys))
        return list(names)

    def select(self, indices: Iterable[int]) -> Rows:
        """The rows at `indices`, each keeping its place."""
        chosen = list(indices)
        places = [self.place(i) for i in chosen]
        return Rows(
            [self.rows[i] for i in chosen], self.source, places, list(self.notes), self.class_names, self.skipped
        )

    def with_class_names(self, columns: Collection[str]) -> Rows:
        """The rows with names for the numbers in those of `columns` that declare them; a number below 0 is none."""
        named = {column: names for column, names in self.class_names.items() if column in columns}
        if not named:
            return self
        rows = [{**row, **{c: _named(row.get(c), names) for c, names in named.items()}} for row in self.rows]
        return Rows(rows, self.source, self.places, self.notes, self.class_names, self.skipped)

    def with_columns(self, columns: Sequence[str]) -> Rows:
        """The rows with these columns alone.

        Raises:
            ValidationError: no row has one of them.
        """
        found = self.columns
        check_columns(columns, found, self.source)
        rows = [{name: row[name] for name in columns if name in row} for row in self.rows]
        return Rows(rows, self.source, self.places, self.notes, self.class_names, self.skipped)


def check_columns(wanted: Sequence[str], found: Sequence[str], source: str) -> None:
    """Refuse columns to read (`columns`) that a source does not have.

    Raises:
        ValidationError: names the first, and the columns that there are.
    """
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValidationError(
            f"{source} has no column '{missing[0]}' to read; columns found: {', '.join(found)}",
            hint="correct `columns`: " + nearest(missing[0], found),
        )


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
