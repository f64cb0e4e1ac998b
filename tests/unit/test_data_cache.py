"""The data cache: a hit equals a miss, other settings are other keys, damage is found, several processes agree."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import runs
from aligntune.algorithms.base import Schema
from aligntune.core.config import CacheConfig, DatasetConfig
from aligntune.data import DatasetCache, prepare_dataset
from aligntune.data import cache as module
from aligntune.data.manager import Prepared
from aligntune.errors import ConfigurationError, ValidationError

ROWS = [{"prompt": f"Say {i}", "completion": f"It is {i}.", "extra": [i, {"a": "x"}]} for i in range(7)]


def prepared_of(folder: Path, rows: list[dict[str, Any]] = ROWS, **keys: Any) -> Prepared:
    path = runs.write_rows(folder / "rows.jsonl", rows)
    return prepare_dataset(DatasetConfig(name=str(path), **keys), Schema.PROMPT)


def same(a: Prepared, b: Prepared) -> bool:
    plain = [dataclasses.replace(p, dataset=None, tokens=None) for p in (a, b)]
    rows = [(p.dataset.features, p.dataset[:], p.tokens and p.tokens[:]) for p in (a, b)]
    return plain[0] == plain[1] and rows[0] == rows[1]


def test_a_hit_equals_a_miss_and_the_rows_themselves(tmp_path: Path) -> None:
    cache = DatasetCache(tmp_path / "cache")
    built = prepared_of(tmp_path)
    miss, was_there = cache.fetch({"a": 1}, lambda: built)
    hit, is_there = cache.fetch({"a": 1}, lambda: pytest.fail("built again"))
    assert (was_there, is_there) == (False, True)
    assert same(built, miss)
    assert same(miss, hit)
    assert hit.dataset.cache_files == []
    assert hit.dataset._fingerprint == miss.dataset._fingerprint


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.fixed_dictionaries({"prompt": st.text(min_size=1, max_size=8).filter(str.strip), "x": values}),
        min_size=1,
        max_size=6,
    )
)
def test_whatever_the_rows_hold_they_come_back(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    from aligntune.data.storage import to_dataset

    built = Prepared(
        to_dataset(rows), "prompt", ["n"], "s", "h", ["a"], [{"place": "p", "reason": "r", "row": rows[0]}]
    )
    cache = DatasetCache(tmp_path / "cache")
    parts = {"rows": json.dumps(rows)}
    made = [cache.fetch(parts, lambda: built)[0] for _ in range(2)]
    assert same(built, made[0])
    assert same(made[0], made[1])


def test_everything_that_rows_depend_on_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    key = module.cache_key({"a": 1})
    assert key == module.cache_key({"a": 1})
    assert key != module.cache_key({"a": 2})
    monkeypatch.setattr(module, "code_version", lambda: "other")
    changed = module.cache_key({"a": 1})
    assert changed != key
    monkeypatch.setattr(module, "library_versions", lambda: {"datasets": "0"})
    assert module.cache_key({"a": 1}) not in (key, changed)


@pytest.mark.parametrize("name", ["rows.arrow", "prepared.json", "skipped.jsonl", "entry.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_found_and_mended(tmp_path: Path, name: str, damage: str) -> None:
    cache = DatasetCache(tmp_path / "cache")
    built = prepared_of(tmp_path, [*ROWS, {"prompt": None, "completion": "x"}])
    cache.fetch({}, lambda: built)
    path = cache.entries / module.cache_key({}) / name
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(data[:10] + bytes([data[10] ^ 255]) + data[11:])
    again, hit = cache.fetch({}, lambda: built)
    assert not hit
    assert "is damaged" in again.notes[-1]
    assert again.dataset[:] == built.dataset[:]
    assert cache.fetch({}, lambda: pytest.fail("built again"))[1]


def test_the_size_limit_evicts_what_was_unused_for_longest(tmp_path: Path) -> None:
    built = prepared_of(tmp_path)
    cache = DatasetCache(tmp_path / "cache")
    cache.fetch({"n": 0}, lambda: built)
    size = cache.list()[0]["bytes"]
    cache.max_bytes = int(size * 3.5)
    for n in (1, 2):
        cache.fetch({"n": n}, lambda: built)
    old = time.time() - 1000
    for n in (0, 1, 2):
        os.utime(cache.entries / module.cache_key({"n": n}) / "entry.json", (old + n, old + n))
    cache.fetch({"n": 0}, lambda: pytest.fail("built again"))  # used now, so 1 is the oldest
    cache.fetch({"n": 3}, lambda: built)
    assert {e["key"] for e in cache.list()} == {module.cache_key({"n": n}) for n in (0, 2, 3)}


def test_an_entry_over_the_limit_is_used_and_not_kept(tmp_path: Path) -> None:
    cache = DatasetCache(tmp_path / "cache", max_gb=1e-9)
    made, hit = cache.fetch({}, lambda: prepared_of(tmp_path))
    assert not hit
    assert len(made.dataset[:]["prompt"]) == 7
    assert "more than cache.max_gb" in made.notes[-1]
    assert cache.list() == []


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    made, hit = DatasetCache(tmp_path / "cache").fetch({}, lambda: prepared_of(tmp_path))
    assert not hit
    assert "cannot be written" in made.notes[-1]


def test_a_fault_in_building_leaves_nothing(tmp_path: Path) -> None:
    cache = DatasetCache(tmp_path / "cache")

    def fail() -> Prepared:
        raise ValidationError("no rows", hint="none")

    with pytest.raises(ValidationError, match="no rows"):
        cache.fetch({}, fail)
    assert cache.list() == []


def test_clear_and_keys(tmp_path: Path) -> None:
    cache = DatasetCache(tmp_path / "cache")
    for n in range(3):
        cache.fetch({"n": n}, lambda: prepared_of(tmp_path))
    key = cache.list()[0]["key"]
    assert cache.clear(key[:20]) == [key]
    with pytest.raises(ValidationError, match="0 entries of the data cache begin with"):
        cache.clear(key[:20])
    with pytest.raises(ConfigurationError, match="is no key"):
        module.check_key("../..")
    assert len(cache.clear()) == 2
    assert cache.list() == []


def test_the_configuration_switches_it_off() -> None:
    assert DatasetCache.of(CacheConfig(enabled=False)) is None
    cache = DatasetCache.of(CacheConfig(dir="/tmp/x", max_gb=2.0))
    assert cache is not None
    assert (cache.root, cache.max_bytes) == (Path("/tmp/x"), 2_000_000_000)


CHILD = """
import sys, time
from pathlib import Path
from aligntune.algorithms.base import Schema
from aligntune.core.config import DatasetConfig
from aligntune.data import DatasetCache, prepare_dataset

def build():
    Path(sys.argv[3]).open("a").write("built\\n")
    time.sleep(0.5)
    return prepare_dataset(DatasetConfig(name=sys.argv[2]), Schema.PROMPT)

prepared, hit = DatasetCache(sys.argv[1]).fetch({}, build)
print(prepared.content_hash, len(prepared.dataset))
"""


def test_several_processes_build_an_entry_once(tmp_path: Path) -> None:
    rows = runs.write_rows(tmp_path / "rows.jsonl", ROWS)
    call = [sys.executable, "-c", CHILD, str(tmp_path / "cache"), str(rows), str(tmp_path / "log")]
    started = [subprocess.Popen(call, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {child.communicate(timeout=120)[0] for child in started}
    assert len(said) == 1
    assert (tmp_path / "log").read_text() == "built\n"
    assert not list((tmp_path / "cache" / "prepared").glob(".part-*"))


# ---- in a run ---------------------------------------------------------------------------------------------------


def made_rows(raw: dict[str, Any]) -> Prepared:
    """The rows of a run, with those that its trainer gets as `tokens`."""
    from aligntune.core.backend_factory import create_trainer

    trainer = create_trainer(raw)
    rows = trainer._train_rows()
    assert trainer._tokens[0] is rows.dataset
    return dataclasses.replace(rows, tokens=trainer._tokens[1])


@pytest.mark.parametrize("kind", ["sft", "dpo", "kto", "grpo"])
def test_a_second_run_tokenises_nothing(
    kind: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = runs.plain(kind, tiny_model, tmp_path)
    raw["cache"] = {"dir": str(tmp_path / "cache")}
    first = made_rows(raw)
    monkeypatch.setattr("aligntune.data.tokens.Tokens.ids", lambda *a: pytest.fail("tokenised again"))
    second = made_rows(raw)
    assert first.dataset[:] == second.dataset[:]
    assert (first.tokens and first.tokens[:]) == (second.tokens and second.tokens[:])
    assert second.notes[:-1] == first.notes
    assert "come from the data cache" in second.notes[-1]


def test_rows_in_another_place_are_not_trained_as_the_old_ones(tiny_model: Path, tmp_path: Path) -> None:
    from aligntune.core.backend_factory import create_trainer
    from aligntune.core.callbacks import Progress, StopRequest

    trainer = create_trainer(runs.plain("sft", tiny_model, tmp_path))
    rows = trainer._train_rows()
    trainer._train_data = dataclasses.replace(rows, dataset=rows.dataset.select([5, 3]))
    made = trainer._build(StopRequest(), Progress("x")).train_dataset
    wanted = trainer._tokens[1].select([5, 3])
    assert list(made["input_ids"]) == list(wanted["input_ids"])


def test_what_changes_the_rows_of_a_run_changes_its_entry(
    tiny_model: Path, tiny_model_plain: Path, tmp_path: Path
) -> None:
    raw = runs.plain("sft", tiny_model, tmp_path)
    cache = DatasetCache(tmp_path / "cache")
    raw["cache"] = {"dir": str(cache.root)}
    name = raw["dataset"] if isinstance(raw["dataset"], str) else raw["dataset"]["name"]
    changes: list[dict[str, Any]] = [
        {},
        {"dataset": {"name": name, "system_prompt": "Be brief."}},
        {"dataset": {"name": name, "max_samples": 5}},
        {"dataset": {"name": name, "max_samples": 5}, "train": {**raw["train"], "seed": 99}},
        {"model": {**raw["model"], "max_seq_length": 40}},
        {"model": {**raw["model"], "name_or_path": str(tiny_model_plain)}},
        {"task": {"name": "instruction_following", "train_on": "all"}},
        {"task": {"name": "instruction_following", "packing": True}},
        {"task": {"name": "chat_completion", "train_on": "all"}},
    ]
    for count, change in enumerate(changes, start=1):
        made_rows({**raw, **change})
        assert len(cache.list()) == count, change
    made_rows({**raw, "train": {**raw["train"], "learning_rate": 0.5}})  # nothing to do with rows
    assert len(cache.list()) == len(changes)
    Path(name).write_text(Path(name).read_text() + json.dumps(runs.SFT_ROWS[0]) + "\n")
    made_rows(raw)
    assert len(cache.list()) == len(changes) + 1


def test_cli(cli: Any, tmp_path: Path) -> None:
    cache = DatasetCache(tmp_path)
    cache.fetch({}, lambda: prepared_of(tmp_path))
    listed = cli("data", "cache", "list", "--dir", tmp_path, "--json")
    assert (listed.code, listed.json["entries"][0]["rows"]) == (0, 7)
    assert "rows.jsonl" in cli("data", "cache", "list", "--dir", tmp_path).out
    assert cli("data", "cache", "clear", "zz", "--dir", tmp_path).code == 2
    assert cli("data", "cache", "clear", "--dir", tmp_path, "--json").json["removed"] == [
        listed.json["entries"][0]["key"]
    ]


def test_a_folder_that_another_process_moves_meanwhile_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen where several runs prepare rows at once: listed, and in its place under another name when it is looked at."""
    cache = DatasetCache(tmp_path / "cache")
    cache.entries.mkdir(parents=True)
    monkeypatch.setattr(type(cache.entries), "glob", lambda self, pattern: iter([self / ".part-gone"]))
    cache._evict()
    assert cache._size(cache.entries / "gone") == 0
