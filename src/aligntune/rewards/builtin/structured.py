"""Rewards for output that a program reads: `json_schema`, `tool_call`.

    schema = {"type": "object", "required": ["city"]}
    get_reward_function("json_schema", schema=schema).compute('{"city": "Rome"}')                       # 1.0
    call = '{"name": "weather", "arguments": {"city": "Rome"}}'
    get_reward_function("tool_call").compute(f"<tool_call>{call}</tool_call>", reference=call)          # 1.0

Source: JSON Schema (package jsonschema, the extra `rewards`); the forms of calls are those of Hermes and Qwen
(`<tool_call>`), Llama (`parameters`) and OpenAI (`function`). The calls are never carried out.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import PositiveFloat

from aligntune.errors import ValidationError
from aligntune.grading.extract import strip_reasoning
from aligntune.grading.schema import DEADLINE, check_schema, equal, find_json, fits, parse_json
from aligntune.rewards.base import count, reward

Call = tuple[str, dict[str, Any]]
MAX_CALLS = 64
"""Calls in one text, and in one gold value; more are no answer."""


def _check_schema(params: dict[str, Any]) -> None:
    if "schema" in params:
        check_schema(params["schema"])


@reward("json_schema", kind="verifiable", check=_check_schema)
def json_schema(
    text: str, schema: Any, *, where: Literal["any", "whole", "fenced"] = "any", deadline: PositiveFloat = DEADLINE
) -> float:
    """1 if the text after its thought is JSON that fits the schema, else 0.

    JSON as the standard has it: no NaN, no key twice. References out of the schema are refused.

    Args:
        schema: a JSON Schema as a mapping or as JSON text, as a parameter or as a column.
        where: the JSON is the `whole` text, its only `fenced` block, or `any` of both.
        deadline: seconds for one text; one that takes longer scores 0, counted as `timeout`.

    >>> get_reward_function("json_schema", schema={"required": ["city"]}).compute('{"city": "Rome"}')
    1.0
    """
    check_schema(schema)
    value = find_json(text, where)
    if value is None:
        count("no_json")
        return 0.0
    fit = fits(value, schema, deadline)
    if fit.why in ("timeout", "crash"):
        count(fit.why)
    return float(fit.valid)


@reward("tool_call", kind="verifiable")
def tool_call(
    text: str,
    reference: Any = None,
    tools: Any = None,
    *,
    partial: bool = False,
    ordered: bool = False,
    deadline: PositiveFloat = DEADLINE,
) -> float | None:
    """1 if the text makes the gold calls, with arguments that fit their tools' schemas, else 0.

    Without gold calls, 1 if it makes a call and every one fits a tool. A gold value of `[]` asks for no call. A row
    with neither is None, counted as `no_reference`.

    Args:
        reference: the gold call or calls, as mappings with `name` and `arguments`, or JSON of them.
        tools: definitions with `name` and `parameters` (a JSON Schema), or OpenAI's with `function`, or JSON of them.
        partial: the share of names and arguments that are right, averaged over the calls (the longer side counts),
            instead of all or nothing. A call that does not fit its tool counts as none.
        ordered: the calls must come in the gold order.
        deadline: seconds for validating one call.

    >>> get_reward_function("tool_call").compute(
    ...     '{"name": "now", "arguments": {}}', reference=[{"name": "now", "arguments": {}}]
    ... )
    1.0
    """
    gold = None if reference is None else _read_calls(_value(reference, "reference"))
    known = None if tools is None else _read_tools(_value(tools, "tools"))
    if reference is not None and gold is None:
        raise ValidationError("the gold calls cannot be read", hint='write {"name": ..., "arguments": {...}}')
    if gold is None and known is None:
        count("no_reference")
        return None
    made = find_calls(text)
    if made is None:
        count("no_call")
        made = []
    fit = [known is None or _fits(call, known, deadline) for call in made]
    if gold is None:
        return float(bool(made) and all(fit))
    if not gold:
        return float(not made)
    shares = _match([call for call, ok in zip(made, fit, strict=True) if ok], gold, ordered)
    total = sum(shares) / max(len(gold), len(made))
    return total if partial else float(total == 1.0)


def find_calls(text: str) -> list[Call] | None:
    """The calls of a text after its thought: its `<tool_call>` parts, or JSON; None where it makes none, or one of them
    cannot be read."""
    body = strip_reasoning(text)
    if "<tool_call>" in body:
        parts = [part.partition("</tool_call>") for part in body.split("<tool_call>")[1:]]
        if len(parts) > MAX_CALLS or not all(closed for _, closed, _ in parts):
            return None
        found: list[Call] = []
        for content, _, _ in parts:
            calls = _read_calls(_parsed(content.strip()))
            if not calls:
                return None
            found.extend(calls)
        return found
    value = find_json(body)
    return (_read_calls(_parsed(value)) or None) if value is not None else None


def _parsed(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return None


def _value(value: Any, column: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except ValueError as e:
        raise ValidationError(f"the column {column} is no JSON: {e}", hint="give a mapping, or JSON of one") from e


def _read_calls(value: Any) -> list[Call] | None:
    """Calls of one mapping or a list; None where it is neither."""
    items = value if isinstance(value, list) else [value]
    found: list[Call] = []
    for item in items:
        if isinstance(item, dict) and isinstance(item.get("function"), dict):
            item = item["function"]
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            return None
        arguments = item.get("arguments", item.get("parameters", {}))
        arguments = _parsed(arguments) if isinstance(arguments, str) else arguments
        if not isinstance(arguments, dict):
            return None
        found.append((item["name"], arguments))
    return found if len(found) <= MAX_CALLS else None


def _read_tools(value: Any) -> dict[str, Any]:
    items = value if isinstance(value, list) else [value]
    found = {}
    for item in items:
        item = item.get("function", item) if isinstance(item, dict) else {}
        if not isinstance(item.get("name"), str):
            raise ValidationError("a tool has no name", hint='write {"name": ..., "parameters": {...}}')
        found[item["name"]] = item.get("parameters") or {"type": "object"}
    return found


def _fits(call: Call, known: dict[str, Any], deadline: float) -> bool:
    if call[0] not in known:
        return False
    try:
        arguments = json.dumps(call[1])
    except RecursionError:  # nested deeper than any tool asks for
        return False
    fit = fits(arguments, known[call[0]], deadline)
    if fit.why in ("timeout", "crash"):
        count(fit.why)
    return fit.valid


def _match(made: list[Call], gold: list[Call], ordered: bool) -> list[float]:
    """The share that is right of each gold call, each call of the text used once, the best match first."""
    if ordered:
        return [_share(a, b) for a, b in zip(made, gold, strict=False)]
    pairs = sorted(((_share(a, b), i, j) for i, a in enumerate(made) for j, b in enumerate(gold)), key=lambda p: -p[0])
    used_i: set[int] = set()
    used_j: set[int] = set()
    found = []
    for share, i, j in pairs:
        if i not in used_i and j not in used_j:
            used_i.add(i)
            used_j.add(j)
            found.append(share)
    return found


def _share(made: Call, gold: Call) -> float:
    """0 for another name; else (1 + equal arguments) / (1 + arguments of either)."""
    if made[0] != gold[0]:
        return 0.0
    names = made[1].keys() | gold[1].keys()
    right = sum(n in made[1] and n in gold[1] and equal(made[1][n], gold[1][n]) for n in names)
    return (1 + right) / (1 + len(names))
