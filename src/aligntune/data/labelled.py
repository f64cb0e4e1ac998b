"""Readers of labelled rows: a text with a label, or tokens with a tag each.

>>> read_labelled({"text": "Where is my card?", "category": 3}, Fields({"text": "text", "label": "category"}), schema)
Example(text='Where is my card?', label='3', ...)

Labels become text: names as they are, whole numbers and truth values as JSON writes them. Lists of tokens and tags may
also stand in a cell of text (CSV): as a JSON or Python list, or separated by spaces. Several labels for one text are
not handled.
"""

from __future__ import annotations

import ast
import json
from typing import Any

from aligntune.algorithms.base import Schema
from aligntune.data.examples import Example, Fields, read_text
from aligntune.data.messages import RowFault, RowProblem


def read_labelled(row: dict[str, Any], fields: Fields, schema: Schema) -> Example:
    """A text (or what the template makes) and its label."""
    example = read_text(row, fields, schema)
    if not str(example.text).strip():
        raise RowProblem("the text is empty or null")
    example.label = _label(fields.get(row, "label"), "label")
    return example


def read_tokens(row: dict[str, Any], fields: Fields, schema: Schema) -> Example:
    """Tokens and as many tags."""
    tokens, tags = _list(fields.get(row, "tokens"), "tokens"), _list(fields.get(row, "tags"), "tags")
    if len(tokens) != len(tags):
        raise RowFault(f"{len(tokens)} tokens and {len(tags)} tags")
    if not tokens:
        raise RowProblem("there are no tokens")
    for i, token in enumerate(tokens, start=1):
        if not isinstance(token, (str, int, float)) or isinstance(token, bool) or not str(token).strip():
            raise RowFault(f"token {i} is {token!r}, not text")
    return Example(tokens=[str(token) for token in tokens], tags=[_label(tag, "tag of a token") for tag in tags])


def _label(value: Any, name: str) -> str:
    if value is None or (isinstance(value, str) and not value.strip()) or value != value:  # NaN differs from itself
        raise RowProblem(f"the {name} is empty or null")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not value.is_integer():
        raise RowFault(f"the {name} is {value}: a class is a name or a whole number")
    if isinstance(value, (int, float)):
        return str(int(value))
    if not isinstance(value, str):
        raise RowFault(f"the {name} is {type(value).__name__}: one name or number is wanted, not several")
    return value.strip()


def _list(value: Any, name: str) -> list[Any]:
    if value is None:
        raise RowProblem(f"the {name} are null")
    if isinstance(value, str):
        return _from_cell(value, name)
    if not isinstance(value, (list, tuple)):
        raise RowFault(f"'{name}' must be a list, found {type(value).__name__}")
    return list(value)


def _from_cell(text: str, name: str) -> list[Any]:
    stripped = text.strip()
    if not stripped.startswith("["):
        return stripped.split()
    for parse, fault in ((json.loads, ValueError), (ast.literal_eval, (ValueError, SyntaxError))):
        try:
            found = parse(stripped)
        except fault:
            continue
        if isinstance(found, list):
            return found
    # A token of its own may be a bracket, as in "[ 3 ]".
    if not stripped.endswith("]") or stripped.startswith("[ "):
        return stripped.split()
    raise RowFault(f"'{name}' looks like a list and cannot be read as one")
