"""Every key of a source, of its `read` and `filter`, and of `cache`: it changes what comes out, or is refused where it
would do nothing. The walk is over the classes' fields, so a new key without a case fails here."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

import runs
from aligntune.algorithms.base import Schema
from aligntune.core.config import CacheConfig, DatasetConfig, FilterConfig, ReadConfig
from aligntune.data import DatasetCache, prepare_dataset
from aligntune.errors import AlignTuneError, ConfigurationError

PAIRS = [{"prompt": f"Question {i}", "completion": f"Answer {i}"} for i in range(20)]
TWICE = [{"prompt": "one two three four five six seven eight nine ten", "completion": "a b c d e f"}] * 2 + [
    {"prompt": "one two three four five six seven eight nine eleven", "completion": "a b c d e g"}
]
TONGUES = [
    {"prompt": "What is the weather like in the mountains today?", "completion": "It is cold and it rains all day."},
    {"prompt": "Wie ist das Wetter heute in den Bergen?", "completion": "Es ist kalt und es regnet den ganzen Tag."},
]


def files(folder: Path) -> dict[str, Path]:
    """The files that the cases read."""
    made = {
        "pairs": runs.write_rows(folder / "pairs.jsonl", PAIRS),
        "twice": runs.write_rows(folder / "twice.jsonl", TWICE),
        "tongues": runs.write_rows(folder / "tongues.jsonl", TONGUES),
        "other": runs.write_rows(folder / "other.jsonl", [{"question": f"Q {i}", "reply": f"R {i}"} for i in range(9)]),
        "gsm": runs.write_rows(folder / "gsm.jsonl", [{"question": "2 + 2?", "answer": "It is 4.\n#### 4"}]),
        "three": runs.write_rows(
            folder / "three.jsonl", [{"prompt": "p", "completion": "c", "instruction": "i", "output": "o"}]
        ),
    }
    texts = {
        "csv": "prompt;completion\na,b;c\n",
        "bare.csv": "p1,c1\np2,c2\n",
        "nested.json": json.dumps({"data": {"items": PAIRS}}),
        "broken.jsonl": json.dumps(PAIRS[0]) + "\noops\n",
    }
    for name, text in texts.items():
        made[name] = folder / (name if "." in name else f"semi.{name}")
        made[name].write_text(text, encoding="utf-8")
    made["latin"] = folder / "latin.csv"
    made["latin"].write_bytes("prompt,completion\ncafé,thé\n".encode("latin-1"))
    made["gz"] = folder / "rows.jsonl.gz"
    made["gz"].write_bytes(gzip.compress((json.dumps(PAIRS[0]) + "\n").encode()))
    made["folder"] = folder / "folder"
    (made["folder"] / "deep").mkdir(parents=True)
    runs.write_rows(made["folder"] / "a.jsonl", PAIRS[:3])
    runs.write_rows(made["folder"] / "deep" / "b.jsonl", PAIRS[3:5])
    (made["folder"] / "c.csv").write_text("prompt,completion\nx,y\n", encoding="utf-8")
    return made


# key -> (file, the settings that it is compared with, the settings with it)
EFFECTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "name": ("pairs", {}, {"name": "twice"}),
    "split": ("pairs", {}, {"split": "train[:5]"}),
    "preset": ("gsm", {}, {"preset": "gsm8k"}),
    "format": ("three", {"format": "alpaca"}, {"format": "prompt_completion"}),
    "column_mapping": ("other", {}, {"column_mapping": {"prompt": "question", "completion": "reply"}}),
    "columns": ("three", {"format": "prompt"}, {"format": "prompt", "columns": ["prompt", "output"]}),
    "prompt_template": ("pairs", {}, {"prompt_template": "Please: {{ prompt }}"}),
    "system_prompt": ("pairs", {}, {"system_prompt": "Be brief."}),
    "max_samples": ("pairs", {}, {"max_samples": 4}),
    "on_bad_row": ("broken.jsonl", {}, {"on_bad_row": "skip"}),
    "read.delimiter": ("csv", {}, {"read": {"delimiter": ","}}),
    "read.header": ("bare.csv", {}, {"read": {"header": ["prompt", "completion"]}}),
    "read.encoding": ("latin", {}, {"read": {"encoding": "latin-1"}}),
    "read.max_line_mb": ("pairs", {}, {"read": {"max_line_mb": 1e-5}}),
    "read.rows_at": ("nested.json", {}, {"read": {"rows_at": "data.items"}}),
    "read.pattern": ("folder", {}, {"read": {"pattern": "*.csv"}}),
    "read.recursive": ("folder", {}, {"read": {"recursive": False}}),
    "read.types": ("folder", {}, {"read": {"types": ["csv"]}}),
    "filter.min_chars": ("pairs", {}, {"filter": {"min_chars": 11}}),
    "filter.max_chars": ("pairs", {}, {"filter": {"max_chars": 10}}),
    "filter.deduplicate": ("twice", {}, {"filter": {"deduplicate": "exact"}}),
    "filter.near_threshold": (
        "twice",
        {"filter": {"deduplicate": "near", "near_threshold": 0.95}},
        {"filter": {"deduplicate": "near", "near_threshold": 0.4}},
    ),
    "filter.languages": ("tongues", {}, {"filter": {"languages": ["de"]}}),
}
ELSEWHERE = {
    "subset": "test_a_hub_source_is_asked_for_by_all_its_keys",
    "revision": "test_a_hub_source_is_asked_for_by_all_its_keys",
    "weight": "test_weights_change_the_mixture",
    "streaming": "tests/unit/test_data_sources.py, test_training_on_a_stream_equals_training_on_the_rows_in_order",
    "cache.dir": "test_every_key_of_the_cache",
    "cache.enabled": "test_every_key_of_the_cache",
    "cache.max_gb": "test_every_key_of_the_cache",
}
"""Keys whose effect is shown by a test of its own."""


def keys() -> set[str]:
    sections = {"": DatasetConfig, "read.": ReadConfig, "filter.": FilterConfig, "cache.": CacheConfig}
    found = {f"{prefix}{field.name}" for prefix, cls in sections.items() for field in dataclasses.fields(cls)}
    return {key for key in found if not key.rpartition(".")[2].startswith("_")} - {"read", "filter"}


def test_every_key_has_a_case() -> None:
    assert keys() == set(EFFECTS) | set(ELSEWHERE)


def source(made: dict[str, Path], name: str, values: dict[str, Any]) -> DatasetConfig:
    values = dict(values)
    parts: dict[str, Any] = {"read": ReadConfig, "filter": FilterConfig}
    for part, cls in parts.items():
        if part in values:
            values[part] = cls(**values[part])
    return DatasetConfig(**{**values, "name": str(made[values.get("name", name)])})


def outcome(config: DatasetConfig) -> Any:
    """The rows, or what is said in their place."""
    try:
        return prepare_dataset(config, Schema.PROMPT).dataset.to_list()
    except AlignTuneError as error:
        return error.message


@pytest.mark.parametrize("key", list(EFFECTS))
def test_a_key_changes_the_rows(key: str, tmp_path: Path) -> None:
    if key in ("filter.near_threshold", "filter.languages"):
        pytest.importorskip("datasketch" if "near" in key else "py3langid")
    made = files(tmp_path)
    name, without, having = EFFECTS[key]
    before, after = outcome(source(made, name, without)), outcome(source(made, name, having))
    assert before != after
    assert isinstance(after, list) != (key in ("read.max_line_mb", "read.delimiter")), after


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("pairs", {"subset": "main"}, "'subset' has no meaning"),
        ("pairs", {"revision": "v1"}, "'revision' has no meaning"),
        ("pairs", {"weight": 2.0}, "weight 2 has no effect"),
        ("pairs", {"read": {"delimiter": ";"}}, "'read.delimiter' has no meaning"),
        ("pairs", {"read": {"header": ["a"]}}, "'read.header' has no meaning"),
        ("pairs", {"read": {"pattern": "*"}}, "'read.pattern' has no meaning"),
        ("pairs", {"read": {"recursive": False}}, "'read.recursive' has no meaning"),
        ("pairs", {"read": {"types": ["csv"]}}, "'read.types' has no meaning"),
        ("pairs", {"read": {"rows_at": "a"}}, "'read.rows_at' has no meaning"),
        ("latin", {"read": {"rows_at": "a"}}, "'read.rows_at' has no meaning"),
        ("pairs", {"filter": {"near_threshold": 0.5}}, "filter.near_threshold has no effect"),
        (
            "pairs",
            {"column_mapping": {"prompt": "prompt"}, "prompt_template": "x {{ prompt }}"},
            "column_mapping.prompt has no",
        ),
    ],
)
def test_a_key_that_would_do_nothing_is_refused(name: str, values: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        prepare_dataset(source(files(tmp_path), name, values), Schema.PROMPT)
    assert said in str(caught.value)


def test_a_hub_source_is_asked_for_by_all_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: dict[str, Any] = {}

    def load(name: str, subset: str | None, **more: Any) -> Any:
        asked.update(more, name=name, subset=subset)
        return datasets.Dataset.from_list(PAIRS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    config = DatasetConfig(name="owner/name", subset="main", revision="v2", split="test[:3]")
    made = prepare_dataset(config, Schema.PROMPT_COMPLETION, cache_dir="/somewhere")
    assert len(made.dataset) == len(PAIRS)
    wanted = {"name": "owner/name", "subset": "main", "revision": "v2", "split": "test[:3]", "cache_dir": "/somewhere"}
    assert {key: asked[key] for key in wanted} == wanted


def test_weights_change_the_mixture(tmp_path: Path) -> None:
    made = files(tmp_path)
    both = [source(made, "pairs", {}), source(made, "pairs", {})]
    shares = [source(made, "pairs", {"weight": 3.0}), source(made, "pairs", {"weight": 1.0})]
    counts = [len(prepare_dataset(one, Schema.PROMPT_COMPLETION).dataset) for one in (both, shares)]
    assert counts == [40, 26]


def test_every_key_of_the_cache(tmp_path: Path) -> None:
    made = files(tmp_path)
    rows = prepare_dataset(source(made, "pairs", {}), Schema.PROMPT_COMPLETION)
    assert DatasetCache.of(CacheConfig(enabled=False)) is None
    here = DatasetCache.of(CacheConfig(dir=str(tmp_path / "here")))
    assert here is not None
    here.fetch({"a": 1}, lambda: rows)
    assert (tmp_path / "here" / "prepared").is_dir()
    assert len(here.list()) == 1
    small = DatasetCache.of(CacheConfig(dir=str(tmp_path / "here"), max_gb=1e-9))
    assert small is not None
    small.fetch({"a": 2}, lambda: rows)
    assert small.list() == []
