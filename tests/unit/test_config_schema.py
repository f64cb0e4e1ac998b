"""The JSON schema agrees with the configuration: every key, default and description, and what it accepts."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aligntune.algorithms.base import algorithm_names, get_algorithm, get_task, task_names
from aligntune.core.config import RLConfig, SFTConfig, sections
from aligntune.core.config.base import field_docs
from aligntune.core.config.io import _default
from aligntune.core.config.schema import run_schema

SCHEMA = run_schema()
SECTIONS = [getattr(sections, n) for n in SCHEMA["$defs"] if hasattr(sections, n)]
OWNERS = {c.__name__: c for c in [*SECTIONS, RLConfig, SFTConfig]}
OWNERS |= {n: get_task(n) for n in task_names()} | {n: get_algorithm(n) for n in algorithm_names()}


@pytest.mark.parametrize("name", OWNERS)
def test_every_field_is_there_with_its_meaning_and_default(name: str) -> None:
    definition, owner = SCHEMA["$defs"][name], OWNERS[name]
    assert definition["additionalProperties"] is False
    extra = {"base"} if owner in (RLConfig, SFTConfig) else {"name"} if name == getattr(owner, "key", None) else set()
    assert set(definition["properties"]) == {f.name for f in dataclasses.fields(owner)} | extra
    for field in dataclasses.fields(owner):
        shown = definition["properties"][field.name]
        assert shown["description"] == " ".join(field_docs(owner)[field.name].split())
        if field.name in definition.get("required", []) or "$ref" in shown or field.name in ("algo", "task"):
            continue
        default = _default(field)
        if default is not dataclasses.MISSING and not dataclasses.is_dataclass(default):
            required = {key for option in definition.get("anyOf", []) for key in option.get("required", [])}
            assert field.name in required or shown["default"] == default


def test_every_reference_resolves() -> None:
    def refs(node: Any) -> list[str]:
        if isinstance(node, list):
            return [r for item in node for r in refs(item)]
        if isinstance(node, dict):
            own = [node["$ref"]] if "$ref" in node else []
            return own + [r for value in node.values() for r in refs(value)]
        return []

    assert {r.rpartition("/")[2] for r in refs(SCHEMA)} == set(SCHEMA["$defs"])


def test_algorithms_are_alternatives_told_apart_by_name() -> None:
    alternatives = SCHEMA["$defs"]["RLConfig"]["properties"]["algo"]["anyOf"]
    assert alternatives[0] == {"enum": algorithm_names()}
    assert [option["type"] for option in alternatives[-2:]] == ["string", "object"]  # `file.py:Class`, two forms
    for option, name in zip(alternatives[1:-2], algorithm_names(), strict=True):
        definition = SCHEMA["$defs"][option["$ref"].rpartition("/")[2]]
        assert definition["properties"]["name"]["const"] == name
        assert "name" in definition["required"]


def test_limits_reach_the_schema() -> None:
    grpo = SCHEMA["$defs"]["grpo"]["properties"]
    assert grpo["num_generations"]["minimum"] == 2
    assert grpo["beta"]["minimum"] == 0
    assert "dapo" in grpo["loss_type"]["enum"]


def test_inherited_parameters_keep_their_text() -> None:
    assert "best-fit" in SCHEMA["$defs"]["chat_completion"]["properties"]["packing"]["description"]


def test_a_string_may_stand_for_a_data_set_or_a_reward() -> None:
    rl = SCHEMA["$defs"]["RLConfig"]["properties"]
    assert {"type": "string", "description": "the value of `type`"} in rl["rewards"]["anyOf"][0]["anyOf"]
    assert rl["datasets"]["anyOf"][1]["minItems"] == 1
    dataset = SCHEMA["$defs"]["SFTConfig"]["properties"]["dataset"]["anyOf"]
    assert dataset[0]["type"] == "string"


def test_the_reference_page_is_fresh(repo: Path) -> None:
    script = repo / "scripts" / "configuration_tables.py"
    done = subprocess.run([sys.executable, script, "--check"], check=False)
    assert done.returncode == 0, (
        "docs/configuration.md or docs/algorithms.md is out of date: run scripts/configuration_tables.py"
    )
