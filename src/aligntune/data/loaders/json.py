"""JSON and JSON Lines, plain or gzipped, parsed line by line so that a fault names its file and line.

`.jsonl` and `.ndjson` hold one object a line (blank lines are skipped). `.json` holds a list of objects, an
object `{"data": [...]}`, an object of splits `{"train": [...], "test": [...]}`, or, as many published files
do, JSON Lines.

>>> JSONLoader().load("rows.jsonl")          # {"a": 1} and {"a": "x", "b": []}: a mixed column is stored as JSON
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from aligntune.core.config import DatasetConfig
from aligntune.data.loaders.base import FileLoader, decode, read_bytes, refuse_hub_keys
from aligntune.data.rows import SPLIT_NAMES, Rows, split_base, take_split
from aligntune.errors import ValidationError

HALF_PAIR = "\\ud"
"""How JSON spells a surrogate, in lower case; only texts that hold it are looked at twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; Python's parser would keep the last of two values of one key without a word."""
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key '{next(k for k in keys if keys.count(k) > 1)}' stands twice in one object")
    return row


DECODER = json.JSONDecoder(object_pairs_hook=_unique)


class JSONLoader(FileLoader):
    """Reads `.json`, `.jsonl` and `.ndjson`, each also with `.gz` after it."""

    suffixes: ClassVar[tuple[str, ...]] = (".json", ".jsonl", ".ndjson")

    def read(self, source: DatasetConfig) -> Rows:
        path = Path(source.name).expanduser()
        if _is_lines(path):
            return super().read(source)
        text = decode(path, read_bytes(path))
        splits = _splits_of(_parse_document(path, text))
        if splits is None:
            return super().read(source)
        refuse_hub_keys(source)
        base = split_base(source.split)
        rows = Rows(_objects(path, splits.get(base, [])), source=path.name)
        return take_split(rows, source.split, known=tuple(splits))

    def read_file(self, path: Path) -> Rows:
        text = decode(path, read_bytes(path))
        if _is_lines(path):
            return _parse_lines(path, text)
        document = _parse_document(path, text)
        if document is None:
            return _parse_lines(path, text)
        if isinstance(document, dict) and isinstance(document.get("data"), list):
            document = document["data"]
        if not isinstance(document, list):
            found = ", ".join(list(document)[:8]) if isinstance(document, dict) else type(document).__name__
            raise ValidationError(
                f"{path}: no list of rows at the top (found: {found})",
                hint='write a list of objects, {"data": [...]}, or one object a line in a .jsonl file',
            )
        rows = _objects(path, document)
        for index, row in enumerate(rows if HALF_PAIR in text.lower() else []):
            _check_text(f"{path}, row {index + 1}", row)
        return Rows(rows, source=path.name)


def _is_lines(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson"))


def _parse_lines(path: Path, text: str) -> Rows:
    rows: list[dict[str, Any]] = []
    places: list[str] = []
    # Only "\n" ends a line: str.splitlines would also cut at U+2028, which JSON strings may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = DECODER.decode(line)
        except (ValueError, RecursionError) as error:  # a ValueError of its own: a number of thousands of digits
            detail = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            if isinstance(error, json.JSONDecodeError):
                detail = f"{error.msg}, column {error.colno}"
            raise ValidationError(
                f"{path}:{number}: not JSON ({detail})",
                hint="each line must be one JSON object; mend or remove this line",
                context={"path": str(path), "line": number},
            ) from error
        if not isinstance(row, dict):
            raise ValidationError(
                f"{path}:{number}: a row must be an object, this is {_kind(row)}",
                hint='write it as {"column": value}',
            )
        if HALF_PAIR in line.lower():
            _check_text(f"{path}:{number}", row)
        rows.append(row)
        places.append(f"{path.name}:{number}")
    return Rows(rows, source=path.name, places=places)


def _parse_document(path: Path, text: str) -> Any:
    """The parsed document, or None where the file is JSON Lines under the name `.json`."""
    try:
        return DECODER.decode(text) if text.strip() else []
    except ValueError as error:
        if not isinstance(error, json.JSONDecodeError):
            raise ValidationError(
                f"{path}: not JSON ({error})", hint="mend the file: shorten the number, or rename the key"
            ) from error
        # "Extra data" after a whole first value that fills its line is what JSON Lines look like to
        # a JSON parser.
        if error.msg == "Extra data" and "\n" in text[: error.pos]:
            return None
        raise ValidationError(
            f"{path}:{error.lineno}: not JSON ({error.msg}, column {error.colno})",
            hint="mend the file; JSON Lines belong in a .jsonl file",
            context={"path": str(path), "line": error.lineno},
        ) from error
    except RecursionError as error:
        raise ValidationError(f"{path}: JSON nested too deeply", hint="flatten the rows") from error


def _splits_of(document: Any) -> dict[str, list[Any]] | None:
    names = [name for aliases in SPLIT_NAMES.values() for name in aliases]
    if isinstance(document, dict) and document and all(k in names and isinstance(v, list) for k, v in document.items()):
        return document
    return None


def _objects(path: Path, rows: list[Any]) -> list[dict[str, Any]]:
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValidationError(
                f"{path}, row {index + 1}: a row must be an object, this is {_kind(row)}",
                hint='write it as {"column": value}',
            )
    return rows


def _check_text(place: str, row: dict[str, Any]) -> None:
    """Refuse half of a surrogate pair, which JSON can spell (\\ud83d alone) and no UTF-8 text can hold."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValidationError(
            f"{place}: half of a surrogate pair (\\u{ord(error.object[error.start]):x})",
            hint="mend or remove this text",
        ) from error


def _kind(value: Any) -> str:
    names = {str: "text", list: "a list", int: "a number", float: "a number", bool: "a truth value"}
    return names.get(type(value), "null")
