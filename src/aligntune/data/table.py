"""Rows to Arrow columns, block by block, on disk once they outgrow memory.

Rows come as Python objects of some kilobytes each; as Arrow they take what their text takes. `RowTable` takes rows one
by one, turns each `BLOCK` of them into Arrow, and has a `Spool` write them to a file when they are many.

    rows -> block of 1000 -> Arrow -> file of one Arrow stream -> mapped `datasets.Dataset`

Arrow gives each column one type and fills absent keys of nested objects with nulls. A column whose values do not share
a shape is therefore stored as JSON (`datasets.Json`), which gives back what went in; numbers of one column that are
partly whole become floats, as Arrow has them. That is known only after the last row, so a block whose own columns came
out otherwise is converted at the end.

>>> table = RowTable()
>>> table.extend([{"kwargs": {"n": 1}}, {"kwargs": {"word": "x"}}])
>>> table.dataset()[1]
{'kwargs': {'word': 'x'}}

What it does not do: keep the difference between a key that is absent from a row and one that is null.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from aligntune.data.spool import BLOCK, Spool
from aligntune.errors import ValidationError

if TYPE_CHECKING:
    import datasets

MIXED = "mixed"
"""The shape of a column whose values share none."""
SCALARS = {"str": "string", "int": "int64", "float": "float64", "bool": "bool_"}


class Mixed(Exception):
    """The values of a column have no common shape."""


class RowTable:
    """Rows that are added one by one, kept as Arrow; see the module.

    Args:
        hashed: compute `content_hash` on the way.
    """

    def __init__(self, *, hashed: bool = False) -> None:
        self._names: dict[str, bool] = {}
        self._rows: list[dict[str, Any]] = []
        self._count = 0
        self._digest = hashlib.sha256() if hashed else None
        self._shapes: dict[str, Any] = {}
        self._endless: dict[str, str] = {}
        self._spools: list[tuple[list[str], Spool]] = []

    def __len__(self) -> int:
        return self._count

    @property
    def names(self) -> dict[str, bool]:
        """Every key of any row, in order of first appearance; True where a row has a value for it."""
        if self._rows:
            self._flush()
        return self._names

    def extend(self, rows: Iterable[dict[str, Any]]) -> None:
        """Rows, which may lack keys; an absent value is None."""
        for row in rows:
            self.add(row)

    def add(self, row: dict[str, Any]) -> None:
        """One row."""
        if self._digest is not None:
            self._digest.update(row_line(row))
        self._rows.append(row)
        self._count += 1
        if len(self._rows) >= BLOCK:
            self._flush()

    def content_hash(self) -> str:
        """SHA-256 over the rows in order, as JSON with sorted keys; of a table that is `hashed`."""
        assert self._digest is not None
        return self._digest.hexdigest()

    def _flush(self) -> None:
        import pyarrow as pa
        from datasets import Features, Json

        names = list(dict.fromkeys(key for row in self._rows for key in row)) or list(self._names)
        if not names:
            return  # these rows wait for one that has a key
        rows, self._rows = self._rows, []
        arrays, texts = {}, []
        for name in names:
            values = [row.get(name) for row in rows]
            self._names[name] = self._names.get(name, False) or any(value is not None for value in values)
            arrays[name], plain = self._column(name, values)
            if not plain:
                texts.append(name)
        table = pa.table(arrays)
        features = Features({**Features.from_arrow_schema(table.schema), **{name: Json() for name in texts}})
        if not self._spools or self._spools[-1][1].schema != features.arrow_schema:
            self._spools.append((texts, Spool(Features({name: features[name] for name in names}))))
        spool = self._spools[-1][1]
        spool.add(pa.table([_of_type(arrays[n], spool.schema.field(n).type) for n in names], schema=spool.schema))

    def _column(self, name: str, values: list[Any]) -> tuple[Any, bool]:
        """An Arrow array of a block's values, and whether they are themselves rather than JSON."""
        import pyarrow as pa

        known = self._shapes.get(name)
        try:
            shape = shape_of(values, exact=True)
            array = pa.array(values)
            self._shapes[name] = MIXED if known == MIXED else merge(known, shape)
            return array, True
        except (Mixed, pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
            pass  # JSON says it, for this block at least
        try:
            self._shapes[name] = MIXED if known == MIXED else merge(known, shape_of(values))
        except Mixed:
            self._shapes[name] = MIXED
        texts = []
        for value in values:
            try:
                texts.append(None if value is None else _encode(name, value))
            except ValidationError as error:
                self._endless.setdefault(name, error.message)
                texts.append(json.dumps(value, ensure_ascii=False, default=str))
        return pa.array(texts, pa.string()), False

    def dataset(self, columns: Sequence[str] | None = None) -> datasets.Dataset:
        """All rows in order.

        Args:
            columns: names and order; None takes all.

        Raises:
            ValidationError: a nested value is not a number (NaN) or infinite, which JSON cannot say.
        """
        from datasets import Dataset

        found = self.names
        names = list(found) if columns is None else list(columns)
        if not self._spools or not names:
            return Dataset.from_dict({name: [] for name in names})
        while True:
            features = self._features(names)
            if len(self._spools) == 1 and self._spools[0][1].schema == features.arrow_schema:
                return self._spools[0][1].dataset()
            made = Spool(features)
            again = next((name for name in self._convert(made) if name), None)
            if again is None:
                break
            self._shapes[again] = MIXED
            made.discard()
        for _, spool in self._spools:
            spool.discard()
        return made.dataset()

    def _features(self, names: list[str]) -> Any:
        """The features of the whole, by what every block came out as."""
        import pyarrow as pa
        from datasets import Features, Json

        types: dict[str, Any] = {}
        for name in names:
            texts = any(name in texts for texts, _ in self._spools)
            plain = [
                s.schema.field(name).type for texts, s in self._spools if name in s.schema.names and name not in texts
            ]
            shape = self._shapes.get(name)
            found = None if shape == MIXED else _type_of(shape)
            if shape != MIXED and not texts and plain and all(kind == plain[0] for kind in plain):
                found = plain[0]  # Arrow's own, with its order of an object's keys
            elif found is None and shape != MIXED and plain and not texts:
                try:
                    merged = pa.unify_schemas(
                        [pa.schema([(name, kind)]) for kind in plain], promote_options="permissive"
                    )
                    found = merged.field(name).type
                except (pa.ArrowTypeError, pa.ArrowInvalid):
                    found = None
            if found is None and name in self._endless:
                raise ValidationError(self._endless[name], hint="write null in its place")
            types[name] = found
        described = Features.from_arrow_schema(pa.schema([(n, t) for n, t in types.items() if t is not None]))
        return Features({name: described[name] if types[name] is not None else Json() for name in names})

    def _convert(self, made: Spool) -> Iterator[str | None]:
        """Add every block to the whole; yields the name of a column that has to be JSON after all, and then ends."""
        import pyarrow as pa

        for texts, spool in self._spools:
            table = spool.table()
            for start in range(0, len(table), BLOCK):
                block, arrays = table.slice(start, BLOCK), []
                for field in made.schema:
                    try:
                        column = block.column(field.name) if field.name in block.schema.names else None
                        arrays.append(_converted(column, field, len(block), field.name in texts))
                    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
                        yield field.name
                        return
                made.add(pa.table(arrays, schema=made.schema))


def _of_type(array: Any, kind: Any) -> Any:
    """A block's array with the type of its feature, which for JSON is an extension of text."""
    import pyarrow as pa

    if array.type == kind:
        return array
    return pa.ExtensionArray.from_storage(kind, array) if isinstance(kind, pa.BaseExtensionType) else array.cast(kind)


def _converted(column: Any, field: Any, count: int, text: bool) -> Any:
    """A block's column as the whole has it.

    Args:
        column: None where the block has none.
        field: of the whole.
        count: rows of the block.
        text: the block has it as JSON.
    """
    import pyarrow as pa

    kind = field.type
    storage = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    if column is None:
        return _of_type(pa.nulls(count, storage), kind)
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    if array.type == kind:
        return array
    if storage is not kind:
        texts = [None if value is None else _encode(field.name, value) for value in array.to_pylist()]
        return _of_type(pa.array(texts, storage), kind)
    if text:
        stored = array.storage.to_pylist() if isinstance(array, pa.ExtensionArray) else array.to_pylist()
        return pa.array([None if value is None else json.loads(value) for value in stored], kind)
    try:
        return array.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):  # the order of an object's keys
        return pa.array(array.to_pylist(), kind)


def _type_of(shape: Any) -> Any:
    """The Arrow type of a shape; None where Arrow has to see values (times, decimals)."""
    import pyarrow as pa

    if shape is None:
        return pa.null()
    if isinstance(shape, str):
        return getattr(pa, SCALARS[shape])() if shape in SCALARS else None
    if shape[0] == "list":
        inner = _type_of(shape[1])
        return None if inner is None else pa.list_(inner)
    fields = {key: _type_of(item) for key, item in shape[1].items()}
    return None if None in fields.values() else pa.struct(list(fields.items()))


def _encode(name: str, value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError as error:
        raise ValidationError(f"column '{name}' holds {error}", hint="write null in its place") from error


def shape_of(values: Iterable[Any], *, exact: bool = False) -> Any:
    """The shape that values share.

    Args:
        values: of one column; None fits any.
        exact: whole numbers and fractions do not share one.

    Raises:
        Mixed: there is none.
    """
    shape: Any = None
    for value in values:
        shape = merge(shape, _shape(value, exact), exact)
    return shape


def _shape(value: Any, exact: bool) -> Any:
    """None, the name of a scalar type, or ("list", shape of items), or ("dict", {key: shape})."""
    if value is None:
        return None
    if isinstance(value, dict):
        if not value:
            raise Mixed  # Arrow has no object without fields
        return ("dict", {str(key): _shape(item, exact) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        shape: Any = None
        for item in value:
            shape = merge(shape, _shape(item, exact), exact)
        return ("list", shape)
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        raise Mixed
    return type(value).__name__


def merge(a: Any, b: Any, exact: bool = False) -> Any:
    """The shape that holds both.

    Raises:
        Mixed: there is none.
    """
    if a == b or b is None:
        return a
    if a is None:
        return b
    if not exact and (a, b) in (("int", "float"), ("float", "int")):
        return "float"
    if isinstance(a, str) or isinstance(b, str) or a[0] != b[0]:
        raise Mixed
    if a[0] == "list":
        return ("list", merge(a[1], b[1], exact))
    if a[1].keys() != b[1].keys():
        raise Mixed
    return ("dict", {key: merge(a[1][key], b[1][key], exact) for key in a[1]})


def row_line(row: dict[str, Any]) -> bytes:
    """A row as the line of JSON that its hash is of."""
    text = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
    return text.encode("utf-8", "surrogatepass") + b"\n"
