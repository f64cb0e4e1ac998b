"""docs/algorithms.md: a section for every algorithm and task, and examples that load."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from aligntune.algorithms.base import algorithm_names, get_algorithm, get_task, task_names
from aligntune.core.config import load_config

PAGE = Path(__file__).resolve().parents[2] / "docs" / "algorithms.md"
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("name", [*algorithm_names(), *task_names()])
def test_every_algorithm_has_a_section(name: str) -> None:
    section = re.search(rf"^### `?{name}`?\n(.*?)(?=^### |^## |\Z)", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert section, name
    assert len(section[1].split()) > 40
    if name in algorithm_names():
        assert re.search(r"\d{4}\.\d{4,5}", section[1]), f"{name} names no paper"


@pytest.mark.parametrize("text", EXAMPLES, ids=[str(i) for i in range(len(EXAMPLES))])
def test_every_example_loads(text: str, tmp_path: Path) -> None:
    raw = yaml.safe_load(text)
    if "model" in raw:
        load_config(raw)


def test_every_algorithm_has_an_example() -> None:
    shown = set()
    for text in EXAMPLES:
        raw = yaml.safe_load(text)
        value = raw.get("algo") or raw.get("task")
        shown.add(value if isinstance(value, str) else value["name"])
    assert shown >= {*algorithm_names(), *task_names()}


def test_every_algorithm_names_its_paper_in_its_module() -> None:
    for name in algorithm_names():
        module = __import__(get_algorithm(name).__module__, fromlist=["x"])
        assert re.search(r"arXiv:\d{4}\.\d{4,5}", module.__doc__ or ""), name
    assert all(get_task(name).__doc__ for name in task_names())
