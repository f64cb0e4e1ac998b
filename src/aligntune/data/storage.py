"""Rows to a `datasets.Dataset`, without loss where columns mix types or nest unevenly (see `aligntune.data.table`).

>>> to_dataset([{"kwargs": {"n": 1}}, {"kwargs": {"word": "x"}}])[1]
{'kwargs': {'word': 'x'}}
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from aligntune.data.table import RowTable, row_line

if TYPE_CHECKING:
    import datasets


def to_dataset(rows: Iterable[dict[str, Any]], columns: list[str] | None = None) -> datasets.Dataset:
    """A data set of rows.

    Args:
        rows: may lack keys; an absent value is None.
        columns: names and order; None takes every key of any row.

    Raises:
        ValidationError: a nested value is not a number (NaN) or infinite, which JSON cannot say.
    """
    table = RowTable()
    table.extend(rows)
    return table.dataset(columns)


def content_hash(rows: Iterable[dict[str, Any]]) -> str:
    """SHA-256 over the rows in order, as JSON with sorted keys."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row_line(row))
    return digest.hexdigest()
