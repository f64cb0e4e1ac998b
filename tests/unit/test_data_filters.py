"""Filters, splits, inspection, presets of a user's own: what stays, what goes, and what is said about it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import runs
from aligntune.algorithms.base import Schema
from aligntune.core.config import DatasetConfig, FilterConfig
from aligntune.data import inspect_source, prepare_dataset, split_rows
from aligntune.data.filters import RowFilter, row_text
from aligntune.data.messages import RowProblem
from aligntune.data.mixing import mix, mixed_rows
from aligntune.data.presets import PRESETS, get_preset
from aligntune.data.table import RowTable
from aligntune.errors import AlignTuneError, ConfigurationError, ValidationError

ENGLISH = "The weather in the mountains was cold and the people stayed inside their houses all day long."
GERMAN = "Das Wetter in den Bergen war kalt und die Leute blieben den ganzen Tag in ihren Häusern."


def texts(folder: Path, rows: list[str], **keys: Any) -> Any:
    path = runs.write_rows(folder / "rows.jsonl", [{"text": row} for row in rows])
    return prepare_dataset(DatasetConfig(name=str(path), **keys), Schema.TEXT)


def test_length(tmp_path: Path) -> None:
    made = texts(tmp_path, ["a", "abc", "abcdef"], filter={"min_chars": 2, "max_chars": 5})
    assert list(made.dataset["text"]) == ["abc"]
    assert "Left out 1 of 3 rows: shorter than filter.min_chars = 2 characters (rows.jsonl:1)." in made.notes
    assert "Left out 1 of 3 rows: longer than filter.max_chars = 5 characters (rows.jsonl:3)." in made.notes
    assert [row["place"] for row in made.skipped] == ["rows.jsonl:1", "rows.jsonl:3"]


def test_the_length_of_a_row_is_prompt_and_answers() -> None:
    pair = {
        "prompt": [{"role": "user", "content": "ab"}],
        "chosen": [{"role": "assistant", "content": "c"}],
        "rejected": None,
    }
    assert row_text(pair) == "ab\nc"
    assert row_text({"tokens": ["a", "b"], "tags": ["O", "O"]}) == "a b"


def test_exact_duplicates(tmp_path: Path) -> None:
    made = texts(tmp_path, ["A  b", "a b", "a c", "a\nb"], filter={"deduplicate": "exact"})
    assert list(made.dataset["text"]) == ["A  b", "a c"]
    assert any(note.startswith("Left out 2 of 4 rows: a duplicate of an earlier row") for note in made.notes)


def test_near_duplicates(tmp_path: Path) -> None:
    base = [f"word{i}" for i in range(100)]
    near = [*base[:50], "other", *base[51:]]  # 95 of 101 triples in common: 0.94
    half = [*base[:50], *(f"new{i}" for i in range(50))]  # 48 of 148: 0.32
    rows = [" ".join(words) for words in (base, near, half)] + ["two words", "two  Words"]
    made = texts(tmp_path, rows, filter={"deduplicate": "near"})
    assert list(made.dataset["text"]) == [rows[0], rows[2], rows[3]]
    lower = texts(tmp_path, rows, filter={"deduplicate": "near", "near_threshold": 0.2})
    assert list(lower.dataset["text"]) == [rows[0], rows[3]]
    assert list(texts(tmp_path, rows, filter={"deduplicate": "exact"}).dataset["text"]) == rows[:4]


def test_languages(tmp_path: Path) -> None:
    made = texts(tmp_path, [ENGLISH, GERMAN], filter={"languages": ["de"]})
    assert list(made.dataset["text"]) == [GERMAN]
    assert len(texts(tmp_path, [ENGLISH, GERMAN], filter={"languages": ["en", "de"]}).dataset) == 2


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"near_threshold": 0.5}, "filter.near_threshold has no effect"),
        ({"languages": ["xx"]}, "'xx' is no language"),
        ({"min_chars": 5, "max_chars": 4}, "is more than"),
    ],
)
def test_filters_without_sense(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        RowFilter(FilterConfig(**keys))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(AlignTuneError, match="datasketch") as caught:
        RowFilter(FilterConfig(deduplicate="near"))
    assert "pip install 'aligntune[data]'" in caught.value.hint


def test_a_filter_comes_before_the_draw(tmp_path: Path) -> None:
    rows = ["x" * (1 + i % 4) for i in range(40)]
    assert len(texts(tmp_path, rows, filter={"min_chars": 4}, max_samples=9).dataset) == 9


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30))
def test_the_filter_that_does_nothing_lets_everything_pass(rows: list[str]) -> None:
    exact, none = RowFilter(FilterConfig(deduplicate="exact")), RowFilter(FilterConfig())
    kept = []
    for row in rows:
        none.check({"text": row})
        try:
            exact.check({"text": row})
            kept.append(row)
        except RowProblem:
            pass
    assert kept == list(dict.fromkeys(rows))


# ---- splits and mixtures ----------------------------------------------------------------------------------------

labelled = st.lists(st.sampled_from(["a", "a", "a", "b", "b", "c"]), min_size=4, max_size=60)


@given(
    labels=labelled,
    share=st.floats(0.1, 0.9),
    seed=st.integers(0, 99),
    how=st.sampled_from(["", "stratify", "balance"]),
)
def test_a_split_is_a_permutation(labels: list[str], share: float, seed: int, how: str) -> None:
    keys = {how: True} if how else {}
    try:
        parts = split_rows(labels, test=share, seed=seed, **keys)
    except AlignTuneError:
        return
    assert sorted(parts.train + parts.test + parts.left_out) == list(range(len(labels)))
    assert parts == split_rows(labels, test=share, seed=seed, **keys)
    assert parts.train == sorted(parts.train)
    if how != "balance":
        assert not parts.left_out
    if how:
        held = Counter(labels[i] for i in parts.test)
        for label, size in Counter(labels).items():
            if size > 1:
                assert abs(held[label] - share * size) <= 1.51 or held[label] == 1
                assert 1 <= held[label] < size
    if how == "balance":
        assert len(set(Counter(labels[i] for i in parts.train).values())) <= 1


@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_mixing_whole_sources_is_a_permutation(sizes: list[int], seed: int) -> None:
    parts = [RowTable() for _ in sizes]
    for i, (part, size) in enumerate(zip(parts, sizes, strict=True)):
        part.extend({"row": f"{i}-{j}"} for j in range(size))
    mixed, _ = mixed_rows(parts, [1.0] * len(parts), ["x"] * len(parts), seed)
    assert sorted(mixed.dataset()["row"]) == sorted(f"{i}-{j}" for i, size in enumerate(sizes) for j in range(size))
    order, _ = mix(sizes, [1.0] * len(parts), ["x"] * len(parts), seed)
    assert list(mixed.dataset()["row"]) == [f"{i}-{j}" for i, j in order]


def test_stratified_and_balanced_by_hand() -> None:
    labels = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    held = Counter(labels[i] for i in split_rows(labels, test=0.1, seed=1, stratify=True).test)
    assert held == {"a": 6, "b": 3, "c": 1}
    parts = split_rows(labels, test=20, seed=1, balance=True)
    assert Counter(labels[i] for i in parts.train) == {"a": 8, "b": 8, "c": 8}
    assert parts.report(labels)[0] == {"label": "a", "rows": 60, "train": 8, "test": 12, "left_out": 40}
    assert split_rows(labels, test=0.2, seed=1).test != split_rows(labels, test=0.2, seed=2).test
    with pytest.raises(ConfigurationError, match="leaves one part of 100 rows empty"):
        split_rows(labels, test=100)
    with pytest.raises(ValidationError, match="the class 'c' has 1 rows"):
        split_rows(["a"] * 9 + ["c"], test=9, seed=0, balance=True)


def test_split_on_the_command_line(cli: Any, tmp_path: Path) -> None:
    rows = [{"text": f"t {i}", "label": "ab"[i % 3 == 0], "nested": {"x": [i]}} for i in range(30)]
    path = runs.write_rows(tmp_path / "rows.jsonl", rows)
    call = ("data", "split", path, "--by", "label", "--test", "0.2", "--stratify", "--out", tmp_path / "out")
    report = cli(*call, "--json").json
    parts = [
        [json.loads(line) for line in (tmp_path / "out" / f"{part}.jsonl").read_text().splitlines()]
        for part in ("train", "test")
    ]
    assert sorted((r["text"] for part in parts for r in part), key=lambda t: int(t[2:])) == [r["text"] for r in rows]
    assert {json.dumps(r) for part in parts for r in part} == {json.dumps(r) for r in rows}
    assert report["classes"] == [
        {"label": "a", "rows": 20, "train": 16, "test": 4, "left_out": 0},
        {"label": "b", "rows": 10, "train": 8, "test": 2, "left_out": 0},
    ]
    again = cli(*call)
    assert again.code == 2
    assert "is there already" in again.err
    assert cli("data", "split", path, "--balance", "--out", tmp_path / "x").code == 2
    assert "no column 'labl'" in cli("data", "split", path, "--by", "labl", "--out", tmp_path / "x").err
    assert "a  " in cli("data", "split", path, "--by", "label", "--balance", "--out", tmp_path / "y").out


# ---- inspection and presets -------------------------------------------------------------------------------------


def test_inspection(cli: Any, tmp_path: Path) -> None:
    rows = [{"question": f"Q{i}", "answer": "yes" if i % 2 else "no", "n": i, "tags": [1] * i} for i in range(6)]
    path = runs.write_rows(tmp_path / "rows.jsonl", [*rows, {"question": None, "answer": "no", "n": 1.5}])
    found = inspect_source(DatasetConfig(name=str(path)))
    assert found["rows"] == 7
    columns = {column["name"]: column for column in found["columns"]}
    assert columns["question"] == {
        "name": "question", "types": {"text": 6}, "empty": 1, "distinct": 6, "shortest": 2, "median": 2, "longest": 2
    }  # fmt: skip
    assert columns["tags"]["longest"] == 5
    assert found["formats"]["prompt_completion"]["format"] == "prompt_completion"
    assert found["formats"]["preference"]["format"] is None
    assert found["classes"]["answer"] == {"no": 4, "yes": 3}
    shown = cli("data", "inspect", path, "columns=[question, answer]")
    assert shown.code == 0
    assert "7 rows, 2 columns" in shown.out
    assert "classes of 'answer' (2): no 4, yes 3" in shown.out
    assert cli("data", "inspect", path, "--json").json["rows"] == 7
    assert cli("data", "inspect", tmp_path / "none.jsonl").code == 2
    assert cli("data", "inspect", path, "splitt=x").code == 2
    assert "gsm8k" in cli("data", "presets").out


def test_a_preset_of_ones_own(tmp_path: Path) -> None:
    path = runs.write_rows(tmp_path / "rows.jsonl", [{"q": "2+2?", "a": "so #### 4", "x": 1}])
    file = tmp_path / "presets.yaml"
    file.write_text(
        "sums:\n  format: prompt_completion\n  column_mapping: {prompt: q, completion: a}\n  reference_after: '####'\n"
    )
    source = DatasetConfig(name=str(path), preset=f"{file}:sums")
    made = prepare_dataset(source, Schema.PROMPT).dataset[0]
    assert (made["prompt"][0]["content"], made["reference"]) == ("2+2?", "4")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x: {format: text}\n", "no preset 'sums'"),
        ("sums: 3\n", "is no mapping"),
        ("sums: {formt: text}\n", "has no key 'formt'"),
        ("sums: {format: txt}\n", "unknown format 'txt'"),
        ("sums: {column_mapping: {a: b}}\n", "needs `format`"),
        ("sums: {format: text, column_mapping: [a]}\n", "must be a mapping of texts"),
        ("sums: {format: text, hub_ids: a}\n", "must be a list of texts"),
        ("sums: [\n", "presets.yaml"),
    ],
)
def test_presets_with_faults(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "presets.yaml").write_text(text)
    with pytest.raises(AlignTuneError, match=said):
        get_preset(f"{tmp_path / 'presets.yaml'}:sums")


def test_every_preset_names_columns_that_its_format_has() -> None:
    from aligntune.data.formats import FORMATS

    for name, preset in PRESETS.items():
        roles = FORMATS[preset.format].roles
        assert all(role in roles or role == "reference" for role in preset.column_mapping), name
        assert preset.prompt_template is None or FORMATS[preset.format].templated, name
    ids = [hub_id for preset in PRESETS.values() for hub_id in preset.hub_ids]
    assert len(ids) == len(set(ids))


# ---- the formats that are not met elsewhere ---------------------------------------------------------------------


def one(folder: Path, row: dict[str, Any], schema: str, **keys: Any) -> dict[str, Any]:
    path = runs.write_rows(folder / "one.jsonl", [row])
    made: dict[str, Any] = prepare_dataset(DatasetConfig(name=str(path), **keys), Schema(schema)).dataset[0]
    return made


def test_ranked_answers(tmp_path: Path) -> None:
    row = {"input": "p", "output_1": "a", "output_2": "b", "label": 2}
    made = one(tmp_path, row, "preference")
    assert (made["chosen"][0]["content"], made["rejected"][0]["content"]) == ("b", "a")
    made = one(tmp_path, {**row, "label": "1"}, "preference")
    assert made["chosen"][0]["content"] == "a"
    with pytest.raises(ValidationError, match="a tie"):
        one(tmp_path, {**row, "label": 0}, "preference")


def test_steps(tmp_path: Path) -> None:
    row = {"prompt": "p", "completions": ["one", "two"], "labels": [True, False]}
    made = one(tmp_path, row, "unpaired")
    assert (made["completion"], made["label"]) == ([{"role": "assistant", "content": "one\ntwo"}], False)
    assert one(tmp_path, {**row, "labels": [1, 1]}, "unpaired")["label"] is True


def test_verl_rows(tmp_path: Path) -> None:
    from datasets import Dataset

    row = {
        "data_source": "gsm8k",
        "prompt": [{"role": "user", "content": "2+2?"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "4"},
        "extra_info": {"index": 0, "split": "train"},
    }
    Dataset.from_list([row]).to_parquet(tmp_path / "verl.parquet")
    prepared = prepare_dataset(str(tmp_path / "verl.parquet"), Schema.PROMPT)
    assert prepared.format == "verl"
    assert prepared.dataset[0]["reference"] == "4"
    assert prepared.dataset[0]["extra_info"] == {"index": 0, "split": "train"}


def test_implicit_prompts_of_messages_and_texts(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}]
    row = {
        "chosen": [*turns, {"role": "assistant", "content": "a"}],
        "rejected": [*turns, {"role": "assistant", "content": "b"}],
    }
    assert one(tmp_path, row, "preference")["prompt"] == turns
    made = one(tmp_path, {"chosen": "Say it: yes", "rejected": "Say it: no"}, "preference")
    assert (made["prompt"][0]["content"], made["chosen"][0]["content"]) == ("Say it:", "yes")


def test_groups_stay_in_one_part() -> None:
    groups = [f"g{i // 3}" for i in range(60)] + ["big"] * 40
    parts = split_rows([""] * 100, test=0.2, seed=3, groups=groups)
    held, trained = ({groups[i] for i in part} for part in (parts.test, parts.train))
    assert not held & trained
    assert len(parts.test) == 18  # whole groups of three, at most 20 rows
    assert "big" in trained
    assert sorted(parts.train + parts.test) == list(range(100))
    assert parts == split_rows([""] * 100, test=0.2, seed=3, groups=groups)
    with pytest.raises(ConfigurationError, match="by group and by class"):
        split_rows([""] * 100, test=0.2, stratify=True, groups=groups)
    with pytest.raises(ValidationError, match="no group is as small"):
        split_rows([""] * 9, test=2, groups=["a"] * 9)
