"""JSON and JSON Lines, plain or gzipped, parsed line by line so that a fault names its file and line.

`.jsonl` and `.ndjson` hold one object a line (blank lines are skipped). `.json` holds a list of objects, an
object `{"data": [...]}`, an object of splits `{"train": [...], "test": [...]}`, or, as many published files
do, JSON Lines. `read.rows_at` names the list inside any other document.

>>> JSONLoader().load("rows.jsonl")          # {"a": 1} and {"a": "x", "b": []}: a mixed column is stored as JSON
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from aligntune.core.config import DatasetConfig, ReadConfig
from aligntune.data.examples import lookup
from aligntune.data.loaders.base import (
    MEGABYTE,
    TEXT_KEYS,
    FileLoader,
    Placed,
    codec,
    decode,
    not_text,
    open_bytes,
    read_bytes,
    readable,
    refuse_unused_keys,
    text_lines,
    too_long,
)
from aligntune.data.rows import SPLIT_NAMES, BadRows, Rows, split_base, take_split
from aligntune.errors import ConfigurationError, ValidationError

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
    options: ClassVar[tuple[str, ...]] = (*TEXT_KEYS, "max_line_mb", "rows_at")

    def read(self, source: DatasetConfig) -> Rows:
        path = Path(source.name).expanduser()
        if _is_lines(path) or source.read.rows_at:
            return super().read(source)
        text = decode(path, read_bytes(path), source.read.encoding)
        splits = _splits_of(_parse_document(path, text))
        if splits is None:
            return super().read(source)
        refuse_unused_keys(source, self.options)
        base, bad = split_base(source.split), BadRows(source.on_bad_row == "skip")
        placed = list(_objects(path, splits.get(base, []), text, bad))
        rows = Rows([row for _, row in placed], path.name, [place for place, _ in placed], skipped=bad.rows)
        return take_split(rows, source.split, known=tuple(splits))

    def iterate(self, path: Path, read: ReadConfig, bad: BadRows) -> Placed:
        if _is_lines(path):
            if read.rows_at:
                raise ConfigurationError(
                    f"'read.rows_at' has no meaning for the JSON Lines of '{path}'", hint="remove read.rows_at"
                )
            return _parse_lines(path, read, bad)
        return self._document(path, read, bad)

    def by_row(self, path: Path) -> bool:
        return _is_lines(path)

    def _document(self, path: Path, read: ReadConfig, bad: BadRows) -> Placed:
        text = decode(path, read_bytes(path), read.encoding)
        document = _parse_document(path, text)
        if document is None:
            yield from _parse_lines(path, read, bad)
            return
        if read.rows_at:
            document = lookup({"": document} if isinstance(document, list) else document, read.rows_at)
        elif isinstance(document, dict) and isinstance(document.get("data"), list):
            document = document["data"]
        if not isinstance(document, list):
            found = ", ".join(list(document)[:8]) if isinstance(document, dict) else _kind(document)
            where = f"at '{read.rows_at}'" if read.rows_at else "at the top"
            raise ValidationError(
                f"{path}: no list of rows {where} (found: {found})",
                hint='write a list of objects, {"data": [...]}, or one object a line in a .jsonl file; or set '
                "read.rows_at to the path of the list",
            )
        yield from _objects(path, document, text, bad)


def _is_lines(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson"))


def _parse_lines(path: Path, read: ReadConfig, bad: BadRows) -> Placed:
    name = path.name
    for number, line in _lines(path, read, bad):
        try:
            row = DECODER.decode(line)
        except (ValueError, RecursionError) as error:  # a ValueError of its own: a number of thousands of digits
            bad.take(f"{name}:{number}", _not_json(path, number, error), line.strip())
            continue
        fault = None
        if not isinstance(row, dict):
            fault = ValidationError(
                f"{path}:{number}: a row must be an object, this is {_kind(row)}", hint='write it as {"column": value}'
            )
        elif HALF_PAIR in line.lower():
            fault = _text_fault(f"{path}:{number}", row)
        if fault is None:
            yield f"{name}:{number}", row
        else:
            bad.take(f"{name}:{number}", fault, line.strip())


def _lines(path: Path, read: ReadConfig, bad: BadRows) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers. UTF-8 is decoded line by line, so that one bad line is one row."""
    if codec(path, read.encoding) != "utf-8-sig":
        # Only "\n" ends a line: str.splitlines would also cut at U+2028, which JSON strings may hold.
        for number, line in enumerate(text_lines(path, read, newline="\n"), start=1):
            if line.strip():
                yield number, line
        return
    limit = int(read.max_line_mb * MEGABYTE)
    with readable(path), open_bytes(path) as file:
        number = 0
        while raw := file.readline(limit + 1):
            number += 1
            if len(raw) > limit and not raw.endswith(b"\n"):
                fault = too_long(path, number, read)
                while len(raw) > limit and not raw.endswith(b"\n"):
                    raw = file.readline(limit + 1)
                bad.take(f"{path.name}:{number}", fault)
                continue
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            try:
                line = raw.decode()
            except UnicodeDecodeError as error:
                fault = not_text(path, number, raw[error.start], "UTF-8")
                bad.take(f"{path.name}:{number}", fault, raw.decode("utf-8", "backslashreplace").strip())
                continue
            if not line.isspace():
                yield number, line


def _not_json(path: Path, number: int, error: Exception) -> ValidationError:
    detail = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    if isinstance(error, json.JSONDecodeError):
        detail = f"{error.msg}, column {error.colno}"
    return ValidationError(
        f"{path}:{number}: not JSON ({detail})",
        hint="each line must be one JSON object; mend or remove this line, or set `on_bad_row: skip`",
        context={"path": str(path), "line": number},
    )


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


def _objects(path: Path, rows: list[Any], text: str, bad: BadRows) -> Placed:
    halves = HALF_PAIR in text.lower()
    for index, row in enumerate(rows, start=1):
        place, fault = f"{path.name}, row {index}", None
        if not isinstance(row, dict):
            fault = ValidationError(
                f"{path}, row {index}: a row must be an object, this is {_kind(row)}",
                hint='write it as {"column": value}',
            )
        elif halves:
            fault = _text_fault(f"{path}, row {index}", row)
        if fault is None:
            yield place, row
        else:
            bad.take(place, fault, None if isinstance(row, dict) else row)


def _text_fault(place: str, row: dict[str, Any]) -> ValidationError | None:
    """Half of a surrogate pair, which JSON can spell (\\ud83d alone) and no UTF-8 text can hold."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return ValidationError(
            f"{place}: half of a surrogate pair (\\u{ord(error.object[error.start]):x})",
            hint="mend or remove this text",
        )
    return None


def _kind(value: Any) -> str:
    names = {str: "text", list: "a list", int: "a number", float: "a number", bool: "a truth value"}
    return names.get(type(value), "null")
