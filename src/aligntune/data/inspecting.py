"""What a source holds, before anything is trained on it: rows, columns, formats, lengths, classes, examples.

>>> inspect_source(DatasetConfig(name="train.csv"))["columns"][0]
{'name': 'text', 'types': {'text': 6020}, 'empty': 0, 'distinct': 6016, 'shortest': 12, 'median': 45, 'longest': 433}

Lengths are characters of texts and items of lists. A column is a class column where it has at most `CLASSES` different
values, each of two rows on average. Formats are those that `aligntune.data.formats` would detect for each kind of run.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from aligntune.algorithms.base import Schema
from aligntune.core.config import DatasetConfig
from aligntune.data.formats import make_plan
from aligntune.data.manager import DataManager, preset_of
from aligntune.data.rows import Rows
from aligntune.errors import AlignTuneError

CLASSES = 200
SHOWN = 300
"""Characters of an example's values."""
KINDS = {str: "text", bool: "truth value", int: "number", float: "number", list: "list", dict: "object", tuple: "list"}


def inspect_source(source: DatasetConfig, *, examples: int = 2, cache_dir: str | None = None) -> dict[str, Any]:
    """Describe one source.

    Args:
        source: as in a configuration.
        examples: how many first rows to show.
        cache_dir: where downloads are kept.

    Returns:
        `source`, `rows`, `skipped`, `notes`, `columns` (name, types, empty, distinct, shortest, median, longest),
        `formats` (schema: format and columns, or why none fits), `classes` (column: label: rows), `examples`.

    Raises:
        ValidationError, ConfigurationError, EnvironmentError: the source cannot be read.
    """
    manager = DataManager(Schema.TEXT, cache_dir=cache_dir)
    preset, resolved, notes = preset_of(source)
    rows = manager.load(resolved).held()
    columns = rows.columns
    described = [_column(rows, name) for name in columns]
    formats: dict[str, Any] = {}
    for schema in Schema:
        try:
            plan = make_plan(columns, resolved, schema, preset)
        except AlignTuneError as error:
            formats[schema.value] = {"format": None, "why": error.message}
        else:
            formats[schema.value] = {"format": plan.format, "note": plan.note}
    return {
        "source": rows.source,
        "rows": len(rows),
        "skipped": rows.skipped,
        "notes": [*notes, *manager.resolver.notes, *rows.notes],
        "columns": described,
        "formats": formats,
        "classes": {name: found for name in columns if (found := _classes(rows, name))},
        "examples": [{k: _shown(v) for k, v in row.items()} for row in rows.rows[:examples]],
    }


def _column(rows: Rows, name: str) -> dict[str, Any]:
    values = [row.get(name) for row in rows.rows]
    held = [value for value in values if value is not None and value != "" and value == value]
    lengths = sorted(len(value) for value in held if isinstance(value, (str, list)))
    described: dict[str, Any] = {
        "name": name,
        "types": dict(Counter(KINDS.get(type(value), type(value).__name__) for value in held)),
        "empty": len(values) - len(held),
        "distinct": len({_key(value) for value in held}),
    }
    if lengths:
        described |= {"shortest": lengths[0], "median": lengths[len(lengths) // 2], "longest": lengths[-1]}
    return described


def _classes(rows: Rows, name: str) -> dict[str, int] | None:
    """Rows of each value, the most frequent first, where the column looks like one of labels."""
    names = rows.class_names.get(name)
    values = [row.get(name) for row in rows.rows if row.get(name) not in (None, "")]
    if not values or not all(isinstance(value, (str, int, bool)) for value in values):
        return None
    counts = Counter(names[v] if names and isinstance(v, int) and 0 <= v < len(names) else str(v) for v in values)
    few = 2 <= len(counts) <= CLASSES and len(values) >= 2 * len(counts)
    return dict(counts.most_common()) if few and max(map(len, counts)) <= 100 else None


def _key(value: Any) -> Any:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _shown(value: Any) -> Any:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN else text[:SHOWN] + " ..."
