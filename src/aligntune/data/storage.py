"""Rows to a `datasets.Dataset`, without loss where columns mix types or nest unevenly.

Arrow gives each column one type and fills absent keys of nested objects with nulls. A column whose values do
not share a type is therefore stored as JSON (`datasets.Json`), which gives back exactly what went in.

>>> to_dataset([{"kwargs": {"n": 1}}, {"kwargs": {"word": "x"}}])[1]
{'kwargs': {'word': 'x'}}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets


def to_dataset(rows: list[dict[str, Any]], columns: list[str] | None = None) -> datasets.Dataset:
    """An in-memory data set.

    Args:
        rows: may lack keys; an absent value is None.
        columns: names and order; None takes every key of any row.
    """
    from datasets import Dataset

    if columns is None:
        columns = list(dict.fromkeys(key for row in rows for key in row))
    return Dataset.from_dict({name: [row.get(name) for row in rows] for name in columns}, on_mixed_types="use_json")


def content_hash(rows: Iterable[dict[str, Any]]) -> str:
    """SHA-256 over the rows in order, as JSON with sorted keys."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode())
        digest.update(b"\n")
    return digest.hexdigest()
