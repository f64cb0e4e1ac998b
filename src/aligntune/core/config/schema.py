"""The JSON schema of a run's file, for editors and for reading: every key with its type, default and meaning.

The types and limits are pydantic's; added here are what it cannot see: the algorithms and tasks as alternatives told
apart by `name`, the descriptions that a class inherits, the short forms (`rewards: [length]`), and `base`.

>>> run_schema()["$defs"]["grpo"]["properties"]["beta"]["default"]
0.04

It describes the shape of a file. How sections fit together is checked by `load_config`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from aligntune.algorithms.base import AlgorithmParams, algorithm_names, get_algorithm, get_task, task_names
from aligntune.core.config.base import field_docs
from aligntune.core.config.root import RLConfig, RunConfig, SFTConfig

SHORT_FORMS = {"DatasetConfig": "the value of `name`", "RewardConfig": "the value of `type`"}
"""Sections for which a plain string may stand, and what it means."""

OWN: list[dict[str, Any]] = [
    {"type": "string", "pattern": ":", "description": "`file.py:Class` of your own"},
    {
        "type": "object",
        "properties": {"name": {"type": "string", "pattern": ":", "description": "`file.py:Class` of your own"}},
        "required": ["name"],
    },
]
"""An algorithm or task in a user's file, whose parameters nobody knows here."""


def run_schema() -> dict[str, Any]:
    """A JSON schema (draft 2020-12) that a supervised or a reinforcement run's file satisfies."""
    kinds: list[tuple[type[RunConfig], str]] = [(SFTConfig, "task"), (RLConfig, "algo")]
    defs: dict[str, Any] = {}
    for cls, chooser in kinds:
        built = _section_schema(cls)
        defs |= built.pop("$defs", {})
        names = task_names() if chooser == "task" else algorithm_names()
        described = built["properties"][chooser]["description"]
        alternatives = [{"enum": names}, *({"$ref": f"#/$defs/{name}"} for name in names), *OWN]
        built["properties"][chooser] = {"description": described, "anyOf": alternatives}
        built["properties"]["base"] = {
            "type": "string",
            "description": "A file, relative to this one, whose settings hold where this file says nothing.",
        }
        built["anyOf"] = [{"required": built.pop("required")}, {"required": ["base"]}]
        defs[cls.__name__] = built
        for name in names:
            defs[name] = _algorithm_schema(get_task(name) if chooser == "task" else get_algorithm(name))
    defs.pop("AlgorithmParams", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "AlignTune run",
        "description": "A file with `task` is a supervised run, one with `algo` preference or policy optimisation.",
        "anyOf": [{"$ref": "#/$defs/SFTConfig"}, {"$ref": "#/$defs/RLConfig"}],
        "$defs": {name: _short_forms(definition) for name, definition in sorted(defs.items())},
    }


def _algorithm_schema(cls: type[AlgorithmParams]) -> dict[str, Any]:
    """The parameters of one algorithm or task, with its `name`."""
    built = _section_schema(cls)
    name = {"const": cls.key, "description": f"{(cls.__doc__ or '').splitlines()[0]}"}
    built["properties"] = {"name": name, **built.get("properties", {})}
    built["required"] = ["name", *built.get("required", [])]
    return {"title": cls.key, **{k: v for k, v in built.items() if k != "title"}}


def _section_schema(cls: type) -> dict[str, Any]:
    """pydantic's schema of a section and of those inside it, with inherited descriptions and every default."""
    built = TypeAdapter(cls).json_schema()
    for owner, definition in [(cls, built), *((c, built["$defs"][c.__name__]) for c in _inner(cls))]:
        docs = field_docs(owner)
        for field in dataclasses.fields(owner):
            shown = definition["properties"].get(field.name)
            if shown is None:
                continue
            shown.pop("title", None)  # pydantic's is the key in other words
            if field.name in docs:
                shown["description"] = " ".join(docs[field.name].split())
            default = field.default
            if isinstance(default, FieldInfo) and default.default_factory is not None:
                made = default.default_factory()  # type: ignore[call-arg]
                if isinstance(made, (list, dict)):
                    shown["default"] = made
    return built


def _inner(cls: type) -> list[type]:
    """The sections that stand in a section's fields, at any depth, once each."""
    from aligntune.core.config import sections

    names = TypeAdapter(cls).json_schema().get("$defs", {})
    return [getattr(sections, name) for name in names if hasattr(sections, name)]


def _short_forms(node: Any) -> Any:
    """Allow a plain string wherever a data set or a reward stands, and a single entry where a list of them does."""
    if isinstance(node, list):
        return [_short_forms(item) for item in node]
    if not isinstance(node, dict):
        return node
    name = str(node.get("$ref", "")).rpartition("/")[2]
    if name in SHORT_FORMS:
        rest = {k: v for k, v in node.items() if k != "$ref"}
        return {"anyOf": [{"type": "string", "description": SHORT_FORMS[name]}, {"$ref": node["$ref"]}], **rest}
    done = {key: _short_forms(value) for key, value in node.items()}
    if node.get("type") == "array" and str(node.get("items", {}).get("$ref", "")).endswith(tuple(SHORT_FORMS)):
        outer = {k: done.pop(k) for k in ("title", "description", "default") if k in done}
        return {**outer, "anyOf": [done["items"], done]}
    return done
