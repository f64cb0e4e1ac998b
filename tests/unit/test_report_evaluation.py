"""The report's evaluation: what is drawn, what is said of differences, which items come first, how large a page gets."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

import reporting
from aligntune.errors import ValidationError
from aligntune.eval.in_training import evaluation_rows
from aligntune.eval.metrics.base import MeanMetric
from aligntune.eval.result import EvalResult
from aligntune.report import build_report
from aligntune.report.confusion import confusion_of
from aligntune.report.curves import seed_groups, side_by_side
from aligntune.report.evaluation import evaluation_block, label_results
from aligntune.report.items import LONGEST_TEXT, browser
from aligntune.report.page import MOST_BYTES
from aligntune.report.read import read_run
from aligntune.report.svg import MOST_POINTS, Series, line_chart, thin
from aligntune.utils.run_folder import RunFolder


@pytest.fixture(scope="module")
def two() -> tuple[EvalResult, EvalResult]:
    return reporting.result("base", 0.4, 1), reporting.result("runs/sft", 0.7, 2)


def test_values_differences_and_verdicts(two: tuple[EvalResult, EvalResult]) -> None:
    block = evaluation_block([("base", two[0]), ("sft", two[1])])
    assert block is not None
    sums = block.tasks[0]
    name, cells = sums.rows[0]
    assert (name, [c.value for c in cells]) == ("accuracy", ["37.5%", "78.5%"])
    assert cells[0].interval == "31.1% to 44.4%"
    stories = dict(block.tasks[2].rows)
    assert stories["perplexity"][0].interval.count(" to ") == 1
    assert [kind for kind, _ in block.verdicts] == ["up", "up", "up"]  # a lower likelihood loss is better
    assert "sums: accuracy of sft is 41.0 points higher than that of base, which is better" in block.verdicts[0][1]
    assert "lower than that of base, which is better" in block.verdicts[2][1]
    assert "sums, base 37.5%" in str(block.headlines)
    assert "stories" not in str(block.differences)  # not a share: it would have another scale
    back = evaluation_block([("sft", two[1]), ("base", two[0])])
    assert [kind for kind, _ in back.verdicts] == ["down", "down", "down"]
    same = evaluation_block([("a", two[0]), ("b", two[0])])
    assert {kind for kind, _ in same.verdicts} == {"flat"}
    assert evaluation_block([]) is None


def test_changed_items_come_first_then_wrong_ones(two: tuple[EvalResult, EvalResult]) -> None:
    found = browser([("base", two[0].tasks["sums"]), ("sft", two[1].tasks["sums"])], 10**7)
    kinds = [entry.kind for entry in found.entries]
    assert list(dict.fromkeys(kinds)) == ["worse", "better", "wrong", "right"]
    assert dict(found.counts) == {kind: kinds.count(kind) for kind in set(kinds)}
    first = found.entries[0]
    assert [(label, score) for label, _, score in first.answers] == [("base", "1"), ("sft", "0")]
    alone = browser([("sft", two[1].tasks["sums"])], 10**7)
    assert list(dict.fromkeys(e.kind for e in alone.entries)) == ["wrong", "right"]
    assert browser([("base", two[0].tasks["stories"])], 10**7) is None  # items without text


def test_scores_that_are_no_grades_are_sorted_by_direction() -> None:
    items = [{"id": str(i), "prompt": f"p{i}", "output": "o", "loss": v} for i, v in enumerate((0.5, 2.0, None, 1.0))]
    metric = MeanMetric("loss", higher_is_better=False)
    found = browser([("m", reporting.task("t", "own", items, [metric]))], 10**6)
    assert [(e.kind, e.title) for e in found.entries] == [
        ("unscored", "p2"), ("scored", "p1"), ("scored", "p3"), ("scored", "p0")
    ]  # fmt: skip
    assert found.entries[0].answers[0][2] == "no score"


def test_several_samples_are_one_entry_and_long_texts_are_cut() -> None:
    items = [{"id": "a", "sample": k, "prompt": "x" * 5000, "output": "y", "correct": float(k == 0)} for k in range(4)]
    found = browser([("m", reporting.task("t", "own", items, [MeanMetric("correct")]))], 10**6)
    (entry,) = found.entries
    assert entry.answers[0][2] == "0.25, the first of 4 answers"
    assert entry.prompt.endswith("… (1,000 more characters)")
    assert len(entry.prompt) < LONGEST_TEXT + 40


def test_the_budget_of_items_holds_for_hostile_text() -> None:
    big = reporting.result("m", 0.5, 1, n=300, text="<&>" * 300)
    found = browser([("m", big.tasks["sums"])], 200_000)
    assert 0 < len(found.entries) < 100
    assert found.left_out == 300 - len(found.entries)


def test_a_page_of_a_large_evaluation_keeps_to_its_limit(tmp_path: Path) -> None:
    for i in range(2):
        reporting.result(f"m{i}", 0.4 + 0.1 * i, i, n=1500, text="<&>" * 500).save(tmp_path / f"e{i}")
    run = RunFolder.claim(tmp_path / "r")
    for step in range(20_000):
        run.append_metrics({"step": step, "loss": math.sin(step), "reward": math.cos(step), "kl": float(step % 17)})
    page = build_report([run.path, tmp_path / "e0", tmp_path / "e1"])
    assert page == run.path / "report.html"
    assert page.stat().st_size <= MOST_BYTES
    assert "more items are left out" in page.read_text(encoding="utf-8")


def test_long_lines_are_thinned_without_losing_their_peaks() -> None:
    run = [(float(i), 100.0 if i == 7777 else math.sin(i)) for i in range(20_000)]
    kept = thin(run)
    assert len(kept) <= MOST_POINTS + 4
    assert (kept[0], kept[-1]) == (run[0], run[-1])
    assert run[7777] in kept
    assert kept == sorted(kept)
    assert thin(run[:50]) == run[:50]


def test_confusion_counts() -> None:
    pairs = [("a", "a"), ("a", "b"), ("a", "b"), ("b", "b"), ("c", "a")]
    made = confusion_of([{"reference": g, "prediction": p} for g, p in pairs])
    assert made.labels == ["a", "b", "c"]
    assert made.rows == [("a", [1, 2, 0], 3), ("b", [0, 1, 0], 1), ("c", [1, 0, 0], 1)]
    assert made.mistakes == [("a", "b", 2), ("c", "a", 1)]
    assert (made.shade(0, 3), made.shade(1, 90), made.shade(3, 3)) == (0, 1, 9)
    tags = confusion_of([{"tags": ["O", "B-x", "O"], "predicted_tags": ["O", "O", "B-x"]}])
    assert (tags.n, tags.mistakes) == (2, [("B-x", "O", 1), ("O", "B-x", 1)])
    many = confusion_of([{"reference": f"l{i % 30}", "prediction": f"l{(i * 7) % 30}"} for i in range(90)])
    assert (many.rows, many.names) == ([], 30)
    assert confusion_of([{"reference": f"{i}", "prediction": f"{i + 1}"} for i in range(5)]) is None  # free answers
    assert confusion_of([{"output": "x"}]) is None


def test_the_script_is_the_only_one_that_the_policy_allows(two: tuple[EvalResult, EvalResult], tmp_path: Path) -> None:
    two[0].save(tmp_path / "e0")
    page = build_report(tmp_path / "e0").read_text(encoding="utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page).group(1)
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert policy.replace("&#39;", "'").endswith(f"script-src 'sha256-{digest}'")
    assert policy.startswith("default-src")
    assert "<img" not in page
    assert "&lt;script&gt;document.title=" in page
    assert page.count("</style>") == 1
    assert not re.search(r'\s(?:src|href)="(?!#|data:,)', page)
    assert not re.search(r"<[a-z][^>]*\son[a-z]+=", page)


def test_a_run_shows_its_own_evaluation_with_the_start_beside_it(
    two: tuple[EvalResult, EvalResult], tmp_path: Path
) -> None:
    run = RunFolder.claim(tmp_path / "r")
    for step, share in ((0, 0.4), (5, 0.6)):
        run.append_evaluations(evaluation_rows(reporting.result("m", share, step), step))
    two[1].save(run.path / "evaluation")
    two[0].save(run.path / "evaluation" / "before")
    for step, share in ((0, 0.0), (3, None), (5, 1.0)):
        mark = {} if share is None else {"share": share}
        run.append_samples([{"step": step, **mark, "prompt": "p", "answer": f"a{step}", "reference": "r"}])
    run.mark_finished()
    page = build_report(run.path).read_text(encoding="utf-8")
    for expected in (
        "accuracy of trained model is 41.0 points higher than that of starting model", 'class="band s1"',
        "Step 0, 0% of training", "Step 3</figcaption>", "Step 5, 100% of training", "Calibration: ",
    ):  # fmt: skip
        assert expected in page, expected
    (run.path / "evaluation" / "results.json").write_text("{", encoding="utf-8")
    assert "is not an evaluation result" in build_report(run.path).read_text(encoding="utf-8")


def test_folders_of_both_kinds_and_names_of_models(two: tuple[EvalResult, EvalResult], tmp_path: Path) -> None:
    two[0].save(tmp_path / "e0")
    two[1].save(tmp_path / "e1")
    assert build_report(tmp_path / "e0") == tmp_path / "e0" / "report.html"
    both = build_report([tmp_path / "e0", tmp_path / "e1"])
    assert both == tmp_path / "comparison.html"
    assert "<title>base and sft</title>" in both.read_text(encoding="utf-8")
    same = EvalResult("a/m", two[0].tasks), EvalResult("b/m", two[1].tasks), EvalResult("a/m", two[1].tasks)
    paths = [Path("x"), Path("y"), Path("z")]
    assert [n for n, _ in label_results(list(zip(paths[:2], same[:2], strict=True)))] == ["a/m", "b/m"]
    assert [n for n, _ in label_results(list(zip(paths, same, strict=True)))] == ["x", "y", "z"]
    with pytest.raises(ValidationError, match="is not a run folder"):
        build_report([tmp_path / "e0", tmp_path])


def seeded(path: Path, seed: int, values: list[float], **train: Any) -> None:
    run = RunFolder.claim(path)
    run.write_config({"model": {"name_or_path": "m"}, "train": {"seed": seed, **train}, "output_dir": str(path)})
    for step, value in enumerate(values, start=1):
        run.append_metrics({"step": step, "loss": value})
    run.mark_finished()


def test_runs_that_differ_in_their_seed_are_one_line_with_a_band(tmp_path: Path) -> None:
    seeded(tmp_path / "sft-1", 1, [3.0, 2.0, 1.0])
    seeded(tmp_path / "sft-2", 2, [5.0, 4.0])
    seeded(tmp_path / "other", 1, [1.0, 1.0], learning_rate=0.1)
    runs = {name: read_run(tmp_path / name) for name in ("sft-1", "sft-2", "other")}
    groups = seed_groups(runs)
    assert {name: len(found) for name, found in groups.items()} == {"sft, 2 seeds": 2, "other": 1}
    (chart,) = side_by_side(groups)
    assert (chart.first, chart.last) == ("4", "3")  # the mean, at the steps that both have
    assert [label for _, label in chart.legend] == ["sft, 2 seeds", "other"]
    assert str(chart.svg).count("<polygon") == 1
    page = build_report([tmp_path / name for name in runs]).read_text(encoding="utf-8")
    assert "sft, 2 seeds: sft-1, sft-2" in page


def test_a_band_is_in_the_charts_range_and_skips_what_is_not_finite() -> None:
    line = Series("a", [(0, 1.0), (1, 2.0)], band=[(0, -3.0, 5.0), (1, 1.0, 6.0), (2, math.nan, 1.0)])
    svg = str(line_chart("t", [line], describe="d"))
    corners = re.search(r'points="([^"]+)"', svg).group(1).split()
    assert len(corners) == 4
    assert all(float(v) >= 0 for corner in corners for v in corner.split(","))
    assert "nan" not in svg


def test_the_command_takes_several_folders(
    two: tuple[EvalResult, EvalResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from aligntune.cli.main import main

    two[0].save(tmp_path / "e0")
    two[1].save(tmp_path / "e1")
    out = tmp_path / "own.html"
    assert main(["report", str(tmp_path / "e0"), str(tmp_path / "e1"), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(out)}
    assert out.exists()
    assert main(["report"]) == 2
    assert main(["report", str(tmp_path / "none")]) == 2
