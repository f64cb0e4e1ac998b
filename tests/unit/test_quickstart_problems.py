"""The quickstart's problems: right answers, splits that never meet, files that keep their schema."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from pathlib import Path

import pytest

from aligntune.quickstart import problems


def test_examples_in_the_docstring_hold() -> None:
    assert doctest.testmod(problems).failed == 0


def test_running_sums_end_in_the_answer() -> None:
    for problem in problems.sample("sft", 200, seed=3):
        assert problem.running_sums[-1] == problem.answer == sum(problem.numbers)
        assert len(problem.running_sums) == len(problem.numbers) - 1
        assert all(problems.LOWEST <= n <= problems.HIGHEST for n in problem.numbers)


def test_splits_cover_every_bucket_once() -> None:
    buckets = [b for split in problems.SPLITS.values() for b in split]
    assert sorted(buckets) == list(range(100))


def test_split_does_not_depend_on_the_order_of_the_numbers() -> None:
    assert problems.split_of((12, 34, 25)) == problems.split_of((34, 25, 12))


def test_a_published_split_stays() -> None:
    # The base model's text was drawn with this hash: another one would let test problems into it.
    assert [problems.split_of(n) for n in ((12, 34, 25), (2, 3, 4), (99, 98, 97, 96))] == [
        "base",
        "pairs_test",
        "sft",
    ]


def test_no_problem_is_in_two_splits_under_any_seed() -> None:
    keys = {
        split: {tuple(sorted(p.numbers)) for seed in (0, 1) for p in problems.sample(split, 400, seed)}
        for split in problems.SPLITS
    }
    names = list(keys)
    for i, one in enumerate(names):
        assert len(keys[one]) > 400
        for other in names[i + 1 :]:
            assert not keys[one] & keys[other]


def test_sample_is_a_function_of_the_seed() -> None:
    assert problems.sample("test", 20, 0) == problems.sample("test", 20, 0)
    assert problems.sample("test", 20, 0) != problems.sample("test", 20, 1)


def test_sample_refuses_what_it_cannot_give(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError, match="unknown split 'dev'"):
        problems.sample("dev", 1, 0)
    with pytest.raises(ValueError, match="at least 0"):
        problems.sample("test", -1, 0)
    monkeypatch.setattr(problems, "HIGHEST", 4)
    with pytest.raises(ValueError, match="does not hold 500"):
        problems.sample("test", 500, 0)


def test_supervised_rows_mix_the_ways_as_asked() -> None:
    sample = problems.sample("sft", 1000, seed=0)
    answers = [row["completion"][0]["content"] for row in problems.supervised_rows(sample, 0, worked_share=0.3)]
    shown = [a for a in answers if "\n" in a]
    assert 250 < len(shown) < 350
    assert all(a.split("\n")[-1] == f"#### {p.answer}" for a, p in zip(answers, sample, strict=True))
    assert {a[: len(a) - len(a.lstrip(" =->*soadget"))] for a in shown} == set(problems.OPENINGS)


def test_write_datasets_writes_every_file_with_its_columns(tmp_path: Path) -> None:
    paths = problems.write_datasets(tmp_path / "new", seed=5, sizes=dict.fromkeys(problems.FILES, 7))
    for split, path in paths.items():
        rows = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
        assert path == tmp_path / "new" / problems.FILES[split]
        assert len(rows) == 7
        assert list(rows[0]) == (["prompt", "completion"] if split == "sft" else ["prompt", "answer"])
        numbers = [int(n) for n in rows[0]["prompt"][0]["content"].removesuffix("=?").split("+")]
        assert problems.split_of(tuple(numbers)) == split
        if split != "sft":
            assert rows[0]["answer"] == str(sum(numbers))
    with pytest.raises(KeyError, match="unknown split 'base'"):
        problems.write_datasets(tmp_path, sizes={"base": 1})


def test_default_sizes_hold_enough_test_problems() -> None:
    assert problems.SIZES["test"] >= 500
    assert set(problems.SIZES) == set(problems.FILES) == set(problems.SPLITS) - {"base"}


def test_the_data_are_the_same_in_another_process(tmp_path: Path) -> None:
    code = (
        "import sys; from aligntune.quickstart import problems as p; "
        "p.write_datasets(sys.argv[1], 2, dict.fromkeys(p.FILES, 5)); "
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=True)
    problems.write_datasets(tmp_path / "b", 2, dict.fromkeys(problems.FILES, 5))
    for name in problems.FILES.values():
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
