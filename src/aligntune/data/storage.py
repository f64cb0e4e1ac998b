"""Rows to a `datasets.Dataset`, without loss where columns mix types or nest unevenly.

Arrow gives each column one type and fills absent keys of nested objects with nulls. A column whose values do not share
a shape is therefore stored as JSON (`datasets.Json`), which gives back what went in; numbers of one column that are
partly whole become floats, as Arrow has them.

>>> to_dataset([{"kwargs": {"n": 1}}, {"kwargs": {"word": "x"}}])[1]
{'kwargs': {'word': 'x'}}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from aligntune.errors import ValidationError

if TYPE_CHECKING:
    import datasets


class _Mixed(Exception):
    """The values of a column have no common shape."""


def to_dataset(rows: list[dict[str, Any]], columns: list[str] | None = None) -> datasets.Dataset:
    """An in-memory data set.

    Args:
        rows: may lack keys; an absent value is None.
        columns: names and order; None takes every key of any row.

    Raises:
        ValidationError: a nested value is not a number (NaN) or infinite, which JSON cannot say.
    """
    from datasets import Dataset, Features, Json, concatenate_datasets

    if columns is None:
        columns = list(dict.fromkeys(key for row in rows for key in row))
    plain: dict[str, list[Any]] = {}
    mixed: dict[str, list[str | None]] = {}
    for name in columns:
        values = [row.get(name) for row in rows]
        if _share_a_shape(values):
            plain[name] = values
        else:
            # Encoded here: `datasets` would store the text "3" unquoted and give back the number 3.
            mixed[name] = [None if value is None else _encode(name, value) for value in values]
    parts = [Dataset.from_dict(plain)] if plain or not mixed else []
    if mixed:
        parts.append(Dataset.from_dict(mixed, features=Features({name: Json() for name in mixed})))
    return concatenate_datasets(parts, axis=1).select_columns(columns) if len(parts) == 2 else parts[0]


def _encode(name: str, value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError as error:
        raise ValidationError(f"column '{name}' holds {error}", hint="write null in its place") from error


def _share_a_shape(values: list[Any]) -> bool:
    shape: Any = None
    try:
        for value in values:
            shape = _merge(shape, _shape(value))
    except _Mixed:
        return False
    return True


def _shape(value: Any) -> Any:
    """None, the name of a scalar type, or ("list", shape of items), or ("dict", {key: shape})."""
    if value is None:
        return None
    if isinstance(value, dict):
        if not value:
            raise _Mixed  # Arrow has no object without fields
        return ("dict", {str(key): _shape(item) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        shape: Any = None
        for item in value:
            shape = _merge(shape, _shape(item))
        return ("list", shape)
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        raise _Mixed
    return type(value).__name__


def _merge(a: Any, b: Any) -> Any:
    if a == b or b is None:
        return a
    if a is None:
        return b
    if (a, b) in (("int", "float"), ("float", "int")):
        return "float"
    if isinstance(a, str) or isinstance(b, str) or a[0] != b[0]:
        raise _Mixed
    if a[0] == "list":
        return ("list", _merge(a[1], b[1]))
    if a[1].keys() != b[1].keys():
        raise _Mixed
    return ("dict", {key: _merge(a[1][key], b[1][key]) for key in a[1]})


def content_hash(rows: Iterable[dict[str, Any]]) -> str:
    """SHA-256 over the rows in order, as JSON with sorted keys."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass"))
        digest.update(b"\n")
    return digest.hexdigest()
