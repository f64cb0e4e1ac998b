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

import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

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


class ReadAgain(Sequence[dict[str, Any]]):
    """Rows of a large source, which are read from it each time that they are gone through.

    Asked for a row by its number they are read into memory, once.

    Args:
        read: the rows, each with its place, from the beginning.
        count: how many they are.
        columns: every key of any row, in order of first appearance.
        source: in words, for messages.
    """

    def __init__(
        self, read: Callable[[], Iterator[tuple[str, dict[str, Any]]]], count: int, columns: list[str], source: str
    ) -> None:
        self.read, self.size, self.columns, self.source = read, count, columns, source
        self._kept: list[tuple[str, dict[str, Any]]] | None = None
        self._at: tuple[int, str] = (-1, "")

    @classmethod
    def of(cls, read: Callable[[], Iterator[tuple[str, dict[str, Any]]]], source: str) -> ReadAgain:
        """The rows, gone through once to see how many they are and which columns they have."""
        names: dict[str, None] = {}
        seen: set[tuple[str, ...]] = set()
        count = 0
        for _, row in read():
            count += 1
            keys = tuple(row)
            if keys not in seen:
                seen.add(keys)
                names.update(dict.fromkeys(keys))
        return cls(read, count, list(names), source)

    def __len__(self) -> int:
        return self.size

    def _placed(self) -> Iterator[tuple[str, dict[str, Any]]]:
        if self._kept is not None:
            yield from self._kept
            return
        number = -1
        for number, (place, row) in enumerate(self.read()):
            if number == self.size:
                break
            self._at = (number, place)
            yield place, row
        if number != self.size - 1:
            raise ValidationError(
                f"{self.source} changed while it was read: it had {self.size} rows",
                hint="start again when the file is complete",
            )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (row for _, row in self._placed())

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            if index.start in (None, 0) and index.step in (None, 1) and index.stop is not None and index.stop >= 0:
                return list(itertools.islice(self, index.stop))
            return [row for _, row in self._all()[index]]
        return self._all()[index][1]

    def _all(self) -> list[tuple[str, dict[str, Any]]]:
        if self._kept is None:
            self._kept = list(self._placed())
        return self._kept

    def hold(self) -> None:
        """Read them into memory."""
        self._all()

    def place(self, index: int) -> str:
        """Where row `index` stands."""
        return self._at[1] if self._at[0] == index else self._all()[index][0]

    def selected(self, indices: list[int]) -> ReadAgain | None:
        """The rows at numbers that rise; None where these do not."""
        if any(b <= a for a, b in itertools.pairwise(indices)) or self._kept is not None:
            return None

        def read() -> Iterator[tuple[str, dict[str, Any]]]:
            wanted = iter(indices)
            number = next(wanted, None)
            for i, placed in enumerate(self._placed()):
                if number is None:
                    break
                if i == number:
                    yield placed
                    number = next(wanted, None)

        return ReadAgain(read, len(indices), self.columns, self.source)

    def drawn(self, order: Sequence[int], at_once: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Rows at numbers in any order, `at_once` of them in memory; with their numbers."""
        for start in range(0, len(order), at_once):
            numbers = order[start : start + at_once]
            part = self.selected(sorted(numbers))
            found = dict(
                zip(sorted(numbers), part._placed() if part else (self._all()[i] for i in sorted(numbers)), strict=True)
            )
            for index in numbers:
                place, row = found[index]
                self._at = (index, place)
                yield index, row

    def changed(self, change: Callable[[dict[str, Any]], dict[str, Any]], columns: list[str]) -> ReadAgain:
        """The rows, each as `change` gives it back."""
        return ReadAgain(
            lambda: ((place, change(row)) for place, row in self._placed()), self.size, columns, self.source
        )


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

    rows: Sequence[dict[str, Any]]
    source: str
    places: Sequence[str] | None = None
    notes: list[str] = field(default_factory=list)
    class_names: dict[str, list[str]] = field(default_factory=dict)
    skipped: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def place(self, index: int) -> str:
        """Where row `index` (from 0) stands."""
        if isinstance(self.rows, ReadAgain):
            return self.rows.place(index)
        return self.places[index] if self.places is not None else f"{self.source}, row {index + 1}"

    @property
    def columns(self) -> list[str]:
        """Every key of any row, in order of first appearance."""
        if isinstance(self.rows, ReadAgain):
            return self.rows.columns
        names: dict[str, None] = {}
        seen: set[tuple[str, ...]] = set()
        for row in self.rows:
            keys = tuple(row)
            if keys not in seen:  # most rows have the columns of the row before
                seen.add(keys)
                names.update(dict.fromkeys(keys))
        return list(names)

    def held(self) -> Rows:
        """These rows in memory, for what goes through them many times."""
        if isinstance(self.rows, ReadAgain):
            self.rows.hold()
        return self

    def walk(self, order: Sequence[int] | None = None, at_once: int = 1) -> Iterator[tuple[int, dict[str, Any]]]:
        """Rows with their numbers; `place` of the one that came last costs nothing.

        Args:
            order: numbers of rows; None goes through all in file order.
            at_once: so many of them are asked for together, where a large source is read again for them.
        """
        if order is None:
            yield from enumerate(self.rows)
        elif isinstance(self.rows, ReadAgain):
            yield from self.rows.drawn(order, at_once)
        else:
            for index in order:
                yield index, self.rows[index]

    def select(self, indices: Iterable[int]) -> Rows:
        """The rows at `indices`, each keeping its place."""
        chosen = list(indices)
        fewer = self.rows.selected(chosen) if isinstance(self.rows, ReadAgain) else None
        if fewer is not None:
            return Rows(fewer, self.source, None, list(self.notes), self.class_names, self.skipped)
        places = [self.place(i) for i in chosen]
        return Rows(
            [self.rows[i] for i in chosen], self.source, places, list(self.notes), self.class_names, self.skipped
        )

    def with_class_names(self, columns: Collection[str]) -> Rows:
        """The rows with names for the numbers in those of `columns` that declare them; a number below 0 is none."""
        named = {column: names for column, names in self.class_names.items() if column in columns}
        if not named:
            return self

        def change(row: dict[str, Any]) -> dict[str, Any]:
            return {**row, **{c: _named(row.get(c), names) for c, names in named.items()}}

        rows = self._changed(change, list(dict.fromkeys([*self.columns, *named])))
        return Rows(rows, self.source, self.places, self.notes, self.class_names, self.skipped)

    def _changed(
        self, change: Callable[[dict[str, Any]], dict[str, Any]], columns: list[str]
    ) -> Sequence[dict[str, Any]]:
        if isinstance(self.rows, ReadAgain):
            return self.rows.changed(change, columns)
        return [change(row) for row in self.rows]

    def with_columns(self, columns: Sequence[str]) -> Rows:
        """The rows with these columns alone.

        Raises:
            ValidationError: no row has one of them.
        """
        found = self.columns
        check_columns(columns, found, self.source)
        rows = self._changed(lambda row: {name: row[name] for name in columns if name in row}, list(columns))
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
