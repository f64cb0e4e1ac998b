"""JSON in a text, and whether it fits a JSON Schema.

    find_json('Here: ```json {"a": 1} ```')                                   # '{"a": 1}'
    fits('{"a": 1}', {"type": "object", "required": ["b"]}).valid             # False

The schema is checked once, when it is first seen; references that lead out of it are refused, and nothing is ever
fetched. Values are validated in a worker process, which builds each validator once and is ended at the deadline: a
schema may hold a regular expression that backtracks for ever, or references that branch.

Source: JSON Schema (draft 2020-12 where the schema names none), by the package jsonschema, an extra. `format` is an
annotation and is not checked, as the specification has it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from aligntune import errors
from aligntune.errors import ValidationError
from aligntune.grading.extract import strip_reasoning
from aligntune.grading.worker import Worker, WorkerDied, WorkerTimeout

DEADLINE = 5.0
"""Seconds for one value, as for the other graders."""
_worker = Worker("schema")


@dataclass(frozen=True)
class Fit:
    """A verdict.

    Attributes:
        valid: whether the value fits.
        why: `valid`, `invalid`, `timeout` or `crash`.
    """

    valid: bool
    why: str


def parse_json(text: str) -> Any:
    """The value of a JSON text, as the standard has it: no NaN, no infinity, no key twice in an object.

    Raises:
        ValueError: it is none, or nested too deep.
    """

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
    except RecursionError as e:
        raise ValueError("it is nested too deep") from e


def find_json(text: str, where: str = "any") -> str | None:
    """The JSON of a text after its thought: the whole of it, or its only fenced block; None where there is none.

    Args:
        where: `whole`, `fenced`, or `any` of both.
    """
    body = strip_reasoning(text).strip()
    if where in ("whole", "any") and body[:1] and body[0] in '{["-0123456789tfn' and _is_json(body):
        return body
    if where == "whole":
        return None
    parts = body.split("```")
    if len(parts) != 3:
        return None
    block = re.sub(r"\A(?i:json)\b", "", parts[1]).strip()
    return block if _is_json(block) else None


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


def equal(a: Any, b: Any) -> bool:
    """Whether two JSON values are equal: 1 and 1.0 are, 1 and true are not."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(v, b[k]) for k, v in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return (type(a) is type(b) and a == b) or (isinstance(a, (int, float)) and isinstance(b, (int, float)) and a == b)


def fits(value: str, schema: Any, deadline: float = DEADLINE) -> Fit:
    """Whether a JSON text fits a schema.

    Args:
        value: JSON.
        schema: a mapping, a boolean, or JSON of one.
        deadline: seconds for the validation.

    Raises:
        ValidationError: the schema is none, or refers to something outside it.
        errors.EnvironmentError: jsonschema is not installed.
    """
    text = check_schema(schema)
    try:
        result = _worker.ask({"schema": text, "value": value}, deadline)
    except WorkerTimeout:
        return Fit(False, "timeout")
    except WorkerDied:
        return Fit(False, "crash")
    if "refused" in result:
        raise ValidationError(f"the schema cannot be used: {result['refused']}", hint="correct the schema")
    return Fit(result["valid"], "valid" if result["valid"] else "invalid")


def check_schema(schema: Any) -> str:
    """The schema as JSON, once it is known to be one.

    Raises:
        ValidationError: it is none, or refers to something outside it.
        errors.EnvironmentError: jsonschema is not installed.
    """
    if isinstance(schema, str):
        return _checked(schema)
    try:
        return _checked(json.dumps(schema, sort_keys=True))
    except (TypeError, ValueError) as e:
        raise ValidationError(f"the schema is no JSON: {e}", hint="give a mapping, or JSON text") from e


@lru_cache(maxsize=512)
def _checked(text: str) -> str:
    try:
        from jsonschema import SchemaError, validators
    except ImportError as e:
        raise errors.EnvironmentError(
            "checking JSON against a schema needs the package jsonschema, which is not installed",
            hint="run: pip install 'aligntune[rewards]'",
        ) from e
    try:
        schema = parse_json(text)
    except ValueError as e:
        raise ValidationError(f"the schema is no JSON: {e}", hint="give a mapping, or JSON text") from e
    if not isinstance(schema, (dict, bool)):
        raise ValidationError(f"the schema is {type(schema).__name__}", hint="give a mapping, or JSON text of one")
    inside = {value for key, value in _members(schema) if key in ("$id", "id")}
    for key, value in _members(schema):
        if key in ("$ref", "$dynamicRef", "$recursiveRef") and not value.startswith("#") and value not in inside:
            raise ValidationError(
                f"the schema refers to {value}, which is outside it", hint="write the definition under $defs"
            )
    try:
        validators.validator_for(schema, default=validators.Draft202012Validator).check_schema(schema)
    except SchemaError as e:
        raise ValidationError(
            f"this is no JSON Schema: {e.message}", hint="correct the schema; json-schema.org describes the language"
        ) from e
    return text


def _members(node: Any) -> Iterator[tuple[str, str]]:
    """The members of all objects whose value is a text."""
    stack = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            yield from ((k, v) for k, v in item.items() if isinstance(v, str))
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
