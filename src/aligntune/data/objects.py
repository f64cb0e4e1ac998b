"""Rows in memory as a source: written once into the cache under their hash, and named by that file.

    create_sft_trainer(model_name="gpt2", dataset=[{"prompt": "2+2?", "completion": "4"}])

A list of mappings becomes JSON Lines, which keeps mixed and nested values; a `datasets.Dataset` or a pandas `DataFrame`
becomes Parquet, which keeps types and label names. So a run names its rows like any other, in its resolved
configuration too, and can be resumed, or be trained in a process of its own. These files stay until
`aligntune data cache clear`; the size limit does not touch them.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aligntune.algorithms.base import Schema
from aligntune.core.config import DatasetConfig
from aligntune.data.places import cache_folder
from aligntune.errors import ConfigurationError, ValidationError
from aligntune.registry import nearest


def as_sources(source: Any, cache_dir: str | None = None) -> DatasetConfig | list[DatasetConfig]:
    """Whatever stands for one source or several, as configurations of sources.

    Raises:
        ValidationError: rows in memory that cannot be written down.
    """
    if isinstance(source, DatasetConfig):
        return source
    if isinstance(source, (str, Path, Mapping)):
        return one_source(source)
    if isinstance(source, list) and all(isinstance(item, DatasetConfig) for item in source):
        return source
    return DatasetConfig(name=str(materialise(source, cache_dir)))


def one_source(source: Any) -> DatasetConfig:
    """A source by its name, by a mapping of its keys, or as it is.

    Raises:
        ConfigurationError: it is none of these.
    """
    from aligntune.core.config.io import parse_section

    if isinstance(source, DatasetConfig):
        return source
    return parse_section(DatasetConfig, {"name": str(source)} if isinstance(source, (str, Path)) else source, "source")


def known_schema(schema: Any) -> Schema:
    """A schema by its name.

    Raises:
        ConfigurationError: there is none of that name.
    """
    if str(schema) not in tuple(Schema):
        raise ConfigurationError(f"there is no schema '{schema}'", hint=nearest(str(schema), tuple(Schema)))
    return Schema(schema)


def is_object(value: Any) -> bool:
    """Whether a value holds rows itself, and is no name or configuration of a source."""
    if isinstance(value, (str, Path, DatasetConfig, Mapping)):
        return False
    if isinstance(value, Sequence):
        return not all(isinstance(item, Mapping) and "name" in item for item in value) or not value
    return hasattr(value, "to_parquet")


def materialise(rows: Any, cache_dir: str | None = None) -> Path:
    """Write rows into the cache.

    Args:
        rows: a sequence of mappings, a `datasets.Dataset`, or a pandas `DataFrame`.
        cache_dir: the cache's folder; None takes the usual one.

    Returns:
        The file, called by the hash of its content.

    Raises:
        ValidationError: no rows, or a value that has no form in a file.
    """
    data, ending = _encoded(rows)
    path = cache_folder(cache_dir) / "objects" / f"{hashlib.sha256(data).hexdigest()[:24]}{ending}"
    if not path.is_file():
        from aligntune.utils.files import write_atomic

        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    return path


def _encoded(rows: Any) -> tuple[bytes, str]:
    if hasattr(rows, "to_parquet"):
        if not len(rows):
            raise ValidationError("the data set in memory holds no rows", hint="give at least one row")
        buffer = io.BytesIO()
        if hasattr(rows, "column_names"):  # a `datasets.Dataset`
            rows.to_parquet(buffer)
        else:
            rows.to_parquet(buffer, index=False)
        return buffer.getvalue(), ".parquet"
    if not isinstance(rows, Sequence) or isinstance(rows, (str, bytes)):
        raise ValidationError(
            f"rows in memory cannot be {type(rows).__name__}",
            hint="give a list of dictionaries, a datasets.Dataset or a pandas DataFrame",
        )
    lines = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping) or not all(isinstance(key, str) for key in row):
            raise ValidationError(f"row {number} in memory is no dictionary with text keys", hint="{'prompt': ...}")
        try:
            lines.append(json.dumps(dict(row), ensure_ascii=False, allow_nan=False).encode())
        except (TypeError, ValueError) as error:  # UnicodeEncodeError is one too
            raise ValidationError(
                f"row {number} in memory cannot be written down: {error}", hint="use text, numbers, lists and null"
            ) from error
    if not lines:
        raise ValidationError("the data set in memory holds no rows", hint="give at least one row")
    return b"\n".join(lines) + b"\n", ".jsonl"
