"""The report: numbers as text, charts with gaps, honest verdicts, escaped model text, one self-contained file."""

from __future__ import annotations

import json
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import reporting
from aligntune.core.held_out import HeldOut, held_out_row
from aligntune.errors import ConfigurationError, ValidationError
from aligntune.eval import stats
from aligntune.report import Answer, Interval, Sample, Stage, build_report, build_story
from aligntune.report import numbers as n
from aligntune.report.beside import answers_beside
from aligntune.report.curves import charts, smooth, table
from aligntune.report.page import MOST_BYTES, TEMPLATES, message_text
from aligntune.report.read import read_run
from aligntune.report.rewards import reward_block, rewards_beside
from aligntune.report.run_page import over_time, rollout_groups, tiles
from aligntune.report.story import verdicts
from aligntune.report.svg import HEIGHT, LEFT, RIGHT, WIDTH, Series, line_chart, runs
from aligntune.utils.run_folder import RunFolder

ATTACK = "</pre></svg><script>document.title='taken'</script><img src=x onerror=alert(1)>\"'&\ud800"


class Outline(HTMLParser):
    """Tags with attributes, and that every opened element is closed in order."""

    VOID = ("meta", "link", "br", "img")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def make_run(path: Path, rows: list[dict[str, Any]], finished: bool = True, **manifest: Any) -> RunFolder:
    run = RunFolder.claim(path)
    run.write_config({"train": {"seed": 3}})
    run.update_manifest({"backend": "trl", "algorithm": "grpo", "seeds": {"seed": 3}, **manifest})
    for row in rows:
        run.append_metrics(row)
    if finished:
        run.mark_finished({"training_time": 75.0, "peak_memory": 1.5e9})
    return run


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.5, "0.5"), (1.23456, "1.23"), (-0.01234, "−0.0123"), (12345.6, "12,346"), (1e-5, "1e-5"),
        (1.24e-5, "1.2e-5"), (3e7, "3e7"), (2_500_000, "2.5e6"), (999.6, "1,000"), (math.nan, "not a number"),
        (-math.inf, "−infinite"),
    ],
)  # fmt: skip
def test_compact(value: float, text: str) -> None:
    assert n.compact(value) == text


def test_other_number_texts() -> None:
    assert (n.percent(0.6241), n.points(0.128), n.points(-0.02), n.points(-0.0001)) == ("62.4%", "+12.8", "−2.0", "0.0")
    assert (n.whole_points(0.1), n.whole_points(0.125), n.whole_percent(0.4)) == ("+10", "+12.5", "40%")
    assert [n.seconds(v) for v in (4.23, 41.4, 59.7, 200, 7500)] == [
        "4.2 s",
        "41 s",
        "1 min 00 s",
        "3 min 20 s",
        "2 h 05 min",
    ]
    assert [n.size(v) for v in (912e6, 2_147_483_648, 12e9, 10)] == ["912 MB", "2.1 GB", "12 GB", "10 bytes"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.5, 1.0]),
        (0.41, 0.97, [0.4, 0.6, 0.8, 1.0]),
        (1e-5, 9e-5, [0.0, 5e-5, 1e-4]),
        (-0.03, 0.04, [-0.05, 0.0, 0.05]),
        (2.0, 2.0, [0.0, 2.0, 4.0]),
        (0.0, 0.0, [0.0, 0.5, 1.0]),
    ],
)
def test_ticks_are_round_and_cover_the_range(low: float, high: float, expected: list[float]) -> None:
    assert n.ticks(low, high, 3) == expected


def test_a_missing_or_infinite_value_breaks_the_line() -> None:
    points = [(1.0, 1.0), (2.0, None), (3.0, 2.0), (4.0, 3.0), (5.0, math.nan), (6.0, 4.0)]
    assert runs(points) == [[(1.0, 1.0)], [(3.0, 2.0), (4.0, 3.0)], [(6.0, 4.0)]]
    svg = str(line_chart("t", [Series("a", points)], describe="d"))
    path = re.search(r'<path class="line s1" d="([^"]+)"', svg).group(1)
    assert path.count("M") == 3
    assert path.count("L") == 1
    assert path.count("h0.01") == 2  # lone points stay visible
    assert "nan" not in svg


def test_a_chart_scales_its_points_into_the_frame() -> None:
    svg = str(line_chart("t", [Series("a", [(10, 0.0), (20, 1.0)])], describe="d"))
    numbers = [float(v) for v in re.findall(r"[ML]([\d.]+) [\d.]+", svg)]
    assert numbers == [LEFT, WIDTH - RIGHT]
    heights = [float(v) for v in re.findall(r"[ML][\d.]+ ([\d.]+)", svg)]
    assert 0 < heights[1] < heights[0] < HEIGHT
    assert '<text class="tick" x="41" y=' in svg  # y labels left of the axis


def test_a_narrow_range_is_widened_so_that_noise_looks_small() -> None:
    svg = str(line_chart("t", [Series("a", [(1, 5.549), (2, 5.551)])], describe="d"))
    labels = [float(v) for v in re.findall(r'text-anchor="end">([\d.]+)<', svg)]
    assert labels == [5.4, 5.5, 5.6, 5.7]


def test_the_step_axis_has_whole_numbers() -> None:
    svg = str(line_chart("t", [Series("a", [(1, 0.0), (3, 1.0)])], describe="d"))
    assert re.findall(r'text-anchor="middle">([^<]+)<', svg) == ["1", "2"]


def test_charts_speak_to_screen_readers_and_escape_their_labels() -> None:
    svg = str(line_chart("<Loss>", [Series("<b>", [(1, 1.0)], dots=True)], describe="from 1 to 2 & back"))
    assert 'role="img"' in svg
    assert "<title>&lt;Loss&gt;</title><desc>from 1 to 2 &amp; back</desc>" in svg
    assert "<b>" not in svg


def test_smoothing_is_a_moving_mean_within_stretches() -> None:
    flat = [(float(i), 2.0) for i in range(40)]
    assert [y for _, y in smooth(flat)] == [2.0] * 40
    ramp = smooth([(float(i), float(i)) for i in range(48)])
    assert ramp[24] == (24.0, 24.0)
    assert ramp[0] == (0.0, 1.0)  # mean of 0, 1, 2
    broken = smooth([(float(i), None if i == 20 else 1.0) for i in range(40)])
    assert [y for _, y in broken].count(None) == 1
    assert smooth(flat[:29]) == []


def test_metrics_are_read_with_gaps_and_without_mixing_training_and_held_out(tmp_path: Path) -> None:
    rows = [
        {"step": 1, "loss": 3.0, "kl": 0.1},
        {"step": 2, "loss": 2.0},
        {"step": 2, "eval_nll": 2.5},
        {"step": 3, "loss": math.nan, "kl": 0.3},
        {"step": 4, "loss": 1.0, "kl": 0.2, "name": "text"},
    ]
    make_run(tmp_path / "r", rows)
    run = read_run(tmp_path / "r")
    assert run.values("loss") == [(1, 3.0), (2, 2.0), (3, None), (4, 1.0)]
    assert run.values("kl") == [(1, 0.1), (2, None), (3, 0.3), (4, 0.2)]
    assert run.values("eval_nll") == [(2, 2.5)]
    assert run.values("absent") == []
    assert (run.not_finite("loss"), run.not_finite("kl")) == (1, 0)
    assert run.metric_names() == ["loss", "kl", "eval_nll"]
    assert dict(table(run))["loss"] == ["3", "1", "1", "3", "3 and 1 not finite"]
    loss = charts(run)[0]
    assert (loss.title, loss.first, loss.last) == ("Loss", "3", "1")
    assert [label for _, label in loss.legend] == ["training", "held out"]
    assert loss.notes == ["1 training value is not finite and left out"]


def test_a_step_that_was_logged_again_counts_once(tmp_path: Path) -> None:
    make_run(tmp_path / "r", [{"step": 2, "loss": 9.0}, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}])
    assert read_run(tmp_path / "r").values("loss") == [(1, 3.0), (2, 2.0)]


def test_each_algorithm_gets_its_own_charts(tmp_path: Path) -> None:
    grpo = {
        "loss": 0.0, "reward": 0.5, "reward_std": 0.2, "kl": 0.01, "entropy": 1.0, "completions/mean_length": 9.0,
        "grad_norm": 1.0, "learning_rate": 1e-5, "rewards/format/mean": 0.9, "rewards/maths/mean": 0.1,
        "rewards/total/mean": 0.5, "rewards/maths/std": 0.3,
    }  # fmt: skip
    make_run(tmp_path / "g", [{"step": s, **grpo} for s in (1, 2)])
    drawn = {chart.title: chart for chart in charts(read_run(tmp_path / "g"))}
    assert list(drawn) == [
        "Loss", "Reward", "Reward components", "Spread of rewards", "KL divergence", "Entropy", "Completion length",
        "Gradient norm", "Learning rate",
    ]  # fmt: skip
    assert [label for _, label in drawn["Reward components"].legend] == ["format", "maths"]
    dpo = {
        "loss": 0.7,
        "rewards/accuracies": 0.5,
        "rewards/chosen": 0.1,
        "rewards/rejected": 0.0,
        "rewards/margins": 0.1,
    }
    make_run(tmp_path / "d", [{"step": 1, **dpo}, {"step": 1, "eval_rewards/accuracies": 0.75}])
    drawn = {chart.title: chart for chart in charts(read_run(tmp_path / "d"))}
    assert list(drawn) == ["Loss", "Preference accuracy", "Implicit rewards", "Margin"]
    assert drawn["Preference accuracy"].last == "50%"


def test_too_many_components_are_counted_not_dropped_in_silence(tmp_path: Path) -> None:
    make_run(tmp_path / "r", [{"step": 1, **{f"rewards/r{i}/mean": 0.1 * i for i in range(9)}}])
    (chart,) = charts(read_run(tmp_path / "r"))
    assert len(chart.legend) == 6
    assert chart.notes == ["3 more are in the table of numbers"]


def test_tiles_show_key_numbers_with_their_beginning(tmp_path: Path) -> None:
    rows = [
        {"step": 1, "reward": 0.2, "loss": 0.1},
        {"step": 9, "reward": 0.8, "loss": 0.0},
        {"step": 9, "eval_reward": 0.7},
    ]
    run = make_run(tmp_path / "r", rows)
    for high in (0.9, 0.8):
        run.append_evaluations(
            [held_out_row(HeldOut.of({"eval_reward": stats.Interval(0.7, 0.6, high, 9, "t")}), 9, "prompt")]
        )
    found = tiles(read_run(tmp_path / "r"))
    assert [tile.interval for tile in found] == ["0.6 to 0.8", "", "", "", ""]
    assert "95% interval 0.6 to 0.8" in build_report(tmp_path / "r").read_text()
    shown = {tile.label: (tile.value, tile.before) for tile in found}
    assert shown == {
        "Reward, held out": ("0.7", ""),
        "Reward, training": ("0.8", "0.2"),
        "Steps": ("9", ""),
        "Training time": ("1 min 15 s", ""),
        "Peak memory": ("1.5 GB", ""),
    }


def test_samples_are_paired_and_rollouts_picked(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", [{"step": 1, "loss": 1.0}], finished=False)
    user = [{"role": "user", "content": "1 + 1?"}]
    run.append_samples([{"step": 5, "prompt": user, "answer": "3"}, {"step": 9, "prompt": user, "answer": "2"}])
    run.append_samples([{"step": 9, "prompt": "new", "answer": "x"}])
    run.append_rollouts(
        [
            {"step": s, "prompt": "p", "completion": f"c{i}", "reward": float(i), "reward/own": 0.5}
            for s in (1, 2, 3)
            for i in range(5)
        ]
    )
    run.mark_finished()
    data = read_run(run.path)
    pair, single = over_time(data)
    assert (pair.prompt, pair.answers) == ("1 + 1?", [("Step 5", "3"), ("Step 9", "2")])
    assert single.answers == [("Step 9", "x")]
    groups = rollout_groups(data)
    assert [step for step, _ in groups] == [1, 2, 3]
    assert [row["completion"] for row in groups[0][1]] == ["c4", "c2", "c0"]
    assert groups[0][1][0]["components"] == [("own", 0.5)]


def check_self_contained(page: str) -> Outline:
    outline = Outline(page)
    names = [tag for tag, _ in outline.tags]
    assert not {"script", "img", "iframe", "object", "embed", "base", "form"} & set(names)
    for tag, attributes in outline.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith("#") or value == "data:,", (tag, value)
    assert "url(" not in page
    assert "@import" not in page
    policy = next(a["content"] for tag, a in outline.tags if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    ids = [a["id"] for _, a in outline.tags if "id" in a]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for tag, a in outline.tags if tag == "a"]
    assert set(targets) <= set(ids)
    return outline


def test_a_run_report_is_self_contained_and_escapes_everything(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "r<b>",
        [{"step": 1, "loss": 1.0, f"rewards/{ATTACK[:20]}/mean": 1.0, f"own{ATTACK[:30]}": 2.0}],
        finished=False,
        notes=[ATTACK],
        command=["aligntune", ATTACK],
        packages={ATTACK[:25]: "1"},
        model={"path": ATTACK},
    )
    run.append_samples(
        [{"step": 1, "prompt": ATTACK, "answer": ATTACK}, {"step": 2, "prompt": ATTACK, "answer": ATTACK}]
    )
    run.append_rollouts([{"step": 1, "prompt": ATTACK, "completion": ATTACK, "reward": 1.0}])
    run.mark_failed(RuntimeError(ATTACK))
    path = build_report(run.path)
    assert path == run.path / "report.html"
    page = path.read_text(encoding="utf-8")
    outline = check_self_contained(page)
    text = "".join(outline.text)
    assert text.count("<script>document.title='taken'</script>") >= 6
    assert "This run failed. RuntimeError: </pre>" in text
    assert "grpo" in text
    assert "seed: 3" in text


@pytest.mark.parametrize(
    ("status", "words"), [("running", "still going on, or was killed"), ("interrupted", "stopped by the user")]
)
def test_an_unfinished_run_has_a_report_that_says_so(tmp_path: Path, status: str, words: str) -> None:
    run = make_run(tmp_path / "r", [{"step": 1, "loss": 1.0}], finished=False)
    if status == "interrupted":
        run.mark_interrupted()
    with open(run.path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 2, "los')
    assert words in build_report(run.path).read_text(encoding="utf-8")


def test_a_run_without_metrics_and_an_empty_folder(tmp_path: Path) -> None:
    run = RunFolder.claim(tmp_path / "r")
    check_self_contained(build_report(run.path, tmp_path / "own.html").read_text(encoding="utf-8"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValidationError, match="is not a run folder"):
        build_report(tmp_path / "empty")


def test_a_report_that_cannot_be_written_is_our_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "r", [])
    monkeypatch.setattr("aligntune.utils.files.os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(ConfigurationError, match="no space left"):
        build_report(run.path)


def test_where_a_report_may_be_written(tmp_path: Path) -> None:
    """Missing folders are made; a folder, a device or a place below a file is refused, and stays as it is."""
    run = make_run(tmp_path / "r", [{"step": 1, "loss": 1.0}]).path
    out = tmp_path / "new" / "folder" / "r.html"
    assert build_report(run, out) == out
    assert out.is_file()
    for place, said in ((tmp_path, "is no file that can be replaced"), (out / "below.html", "r.html is a file")):
        with pytest.raises(ConfigurationError, match=said):
            build_report(run, place)
    with pytest.raises(ConfigurationError, match="is no file that can be replaced"):
        build_report(run, os.devnull)
    assert not os.path.isfile(os.devnull)


def test_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [{"step": s, "loss": 1 / s, "kl": 0.1} for s in (1, 2)])
    make_run(tmp_path / "b", [{"step": s, "loss": 2 / s} for s in (1, 2, 4)] + [{"step": 4, "eval_reward": 0.5}])
    path = build_report([tmp_path / "a", tmp_path / "b"])
    assert path == tmp_path / "comparison.html"
    outline = check_self_contained(path.read_text(encoding="utf-8"))
    labels = [a["aria-label"] for tag, a in outline.tags if tag == "svg" and "aria-label" in a]
    assert labels == [
        "Loss: a from 1 to 0.5; b from 2 to 0.5",
        "Reward, held out: b from 0.5 to 0.5",
        "KL divergence: a from 0.1 to 0.1",
    ]
    text = " ".join(" ".join(outline.text).split())
    assert "a and b" in text
    legends = re.findall(r'line s(\d)"[^/]*/></svg>(\w+)<', path.read_text(encoding="utf-8"))
    assert legends == [("1", "a"), ("2", "b"), ("2", "b"), ("1", "a")]  # a run keeps its colour
    assert "Reward, held out – 0.5" in text
    assert "Steps 2 4" in text
    assert build_report([tmp_path / "a"]) == tmp_path / "a" / "report.html"
    with pytest.raises(ValidationError, match="at least one run folder"):
        build_report([])


def stages(run: Path | None = None) -> list[Stage]:
    return [
        Stage("Base", accuracy=Interval(0.12, 0.1, 0.15), mean_reward=0.1),
        Stage("SFT", run, "Learns the format.", Interval(0.53, 0.49, 0.57), Interval(0.41, 0.37, 0.45), "Base", 0.58,
              Interval(0.51, 0.46, 0.56), 46.0, 9.1e8),
        Stage("GRPO", accuracy=Interval(0.4, 0.36, 0.44), difference=Interval(-0.13, -0.17, -0.09), parent="SFT"),
        Stage("DPO", accuracy=Interval(0.54, 0.5, 0.58), difference=Interval(0.01, -0.02, 0.04), parent="SFT",
              preference_accuracy=Interval(0.7, 0.66, 0.74)),
    ]  # fmt: skip


def test_verdicts_follow_the_interval() -> None:
    assert verdicts(stages()) == [
        ("up", "SFT is 41.0 points more accurate than Base (95% interval +37.0 to +45.0)."),
        ("down", "GRPO is 13.0 points less accurate than SFT (95% interval −17.0 to −9.0)."),
        ("flat", "No clear difference in accuracy between DPO and SFT (95% interval −2.0 to +4.0)."),
        ("up", "DPO prefers the better answer in 70.0% of held-out pairs (95% interval 66.0% to 74.0%), SFT in 51.0%."),
    ]


def test_a_story_shows_its_table_answers_curves_and_environment(tmp_path: Path) -> None:
    run = make_run(tmp_path / "sft", [{"step": s, "loss": 1 / s} for s in range(1, 5)], packages={"torch": "2.13.0"})
    samples = [
        Sample("1 + 1?", [Answer("Base", ATTACK, False), Answer("SFT", "#### 2", True), Answer("DPO", "?")], "2")
    ]
    out = build_story(
        "A <story>",
        stages(run.path),
        tmp_path / "story.html",
        lead="What was done.",
        samples=samples,
        measured_on="600 held-out problems",
        facts_of={"Command": "aligntune quickstart"},
    )
    page = out.read_text(encoding="utf-8")
    outline = check_self_contained(page)
    text = " ".join(" ".join(outline.text).split())
    for expected in (
        "A <story>", "What was done.", "Measured on 600 held-out problems.", "SFT 53.0% 49.0% to 57.0%",
        "+41.0 +37.0 to +45.0, vs Base 0.58 51.0% 46.0% to 56.0% 46 s 910 MB", "Base 12.0% 10.0% to 15.0% – 0.10 – – –",
        "Right answer: 2", "Base ✗ wrong", "SFT ✓ right", "Learns the format.", "aligntune quickstart", "torch 2.13.0",
    ):  # fmt: skip
        assert expected in text, expected
    svgs = [a["aria-label"] for tag, a in outline.tags if tag == "svg" and "aria-label" in a]
    assert svgs[0] == "Accuracy by stage: Base 12.0%, SFT 53.0%, GRPO 40.0%, DPO 54.0%"
    assert svgs[1].startswith("Paired difference in points: SFT vs Base +41.0 points")
    assert svgs[2] == "Loss: training from 1 to 0.25"
    assert len(page) < 200_000


def test_a_story_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="at least one stage"):
        build_story("t", [], tmp_path / "s.html")
    with pytest.raises(ValidationError, match="two stages have the name 'A'"):
        build_story("t", [Stage("A"), Stage("A")], tmp_path / "s.html")
    with pytest.raises(ValidationError, match="difference to 'X', which is no stage"):
        build_story("t", [Stage("A", difference=Interval(0, 0, 0), parent="X")], tmp_path / "s.html")
    assert Interval(1.0, 0.8, 0.9999999999999999).high < 1.0
    with pytest.raises(ValidationError, match="does not contain"):
        Interval(0.5, 0.6, 0.7)
    assert list(tmp_path.iterdir()) == []
    check_self_contained(build_story("t", [Stage("A")], tmp_path / "s.html").read_text(encoding="utf-8"))


def test_messages_become_text() -> None:
    assert message_text([{"role": "user", "content": "hi"}]) == "hi"
    assert message_text([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]) == "system: s\nuser: u"
    assert (message_text(None), message_text("x"), message_text([1])) == ("", "x", "[1]")


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_lines_have_the_contrast_that_wcag_asks_for(scheme: int) -> None:
    css = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", blocks[scheme]))

    def contrast(front: str, back: str) -> float:
        high, low = sorted((luminance(colours[front]), luminance(colours[back])), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for back in ("page", "card", "code"):
        assert min(contrast("ink", back), contrast("soft", back)) >= 4.5, back
    assert min(contrast("accent", "page"), contrast("bad", "card")) >= 4.5
    for kind in ("good", "bad", "flat"):
        assert contrast(kind, f"{kind}-back") >= 4.5, kind
    for i in range(1, 7):
        assert contrast(f"c{i}", "card") >= 3.0, i


def test_the_report_package_is_lazy() -> None:
    import subprocess
    import sys

    code = "import sys, aligntune.report as r, json; dir(r); print(json.dumps([m for m in ('jinja2', 'torch', 'yaml') if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_health_events_have_their_section_and_are_no_notes(tmp_path: Path) -> None:
    from aligntune.utils.files import append_line
    from aligntune.utils.health import Event

    event = Event(80, "grad_norm", "warning", "the gradient <b> is large", "lower train.learning_rate", 9.0, 1.0)
    watched = {"config": {"health": {"enabled": True}}, "notes": ["drew 4 rows", str(event)]}
    run = make_run(tmp_path / "a", [{"step": 1, "loss": 1.0}], **watched)
    quiet = build_report(run.path).read_text(encoding="utf-8")
    assert "The health rules found nothing to tell." in quiet
    for _ in range(55):
        append_line(run.path / "events.jsonl", {**event.to_dict(), "action": "warn"})
    page = build_report(run.path).read_text(encoding="utf-8")
    assert "55 events to look at." in page
    assert "5 more are in events.jsonl." in page
    assert page.count("the gradient &lt;b&gt; is large") == 50
    assert "<li>drew 4 rows</li>" in page
    assert f"<li>{str(event).partition('<')[0]}" not in page


def test_the_manifest_stands_in_the_report_without_what_is_elsewhere(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", [{"step": 1, "loss": 1.0}], packages={"trl": "1.0"}, timings={"training": 12.5})
    page = build_report(run.path).read_text(encoding="utf-8")
    shown = page[page.index("Show the manifest") :]
    assert "&#34;training&#34;: 12.5" in shown[: shown.index("</pre>")]
    assert "packages" not in shown[: shown.index("</pre>")]
    both = build_report([run.path, make_run(tmp_path / "b", [{"step": 1, "loss": 1.0}]).path])
    assert both.read_text(encoding="utf-8").count("Show the manifest") == 2


def test_sampled_completions_are_shown_along_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", [{"step": 1, "loss": 1.0}], finished=False)
    for step in range(1, 102):
        rows = [{"step": step, "prompt": "p", "completion": f"{step}-{i}", "reward": i / 7} for i in range(8)]
        run.append_rollouts(rows)
        if step % 10 == 0:
            run.flush()  # a part of its own
    run.flush()
    groups = rollout_groups(read_run(run.path))
    assert [step for step, _ in groups] == [1, 26, 51, 76, 101]
    assert [row["completion"] for row in groups[2][1]] == ["51-7", "51-3", "51-0"]


# ---- several runs: rewards and answers beside each other -------------------------------------------------------


def sampled_run(path: Path, seed: int, *, prompts: int = 0, text: str = "", rate: float = 1e-3) -> Path:
    """A run with two rewards over 12 steps, of 3 prompts with 4 answers each; `prompts` chooses which."""
    run = RunFolder.claim(path)
    run.write_config({"model": {"name": "m"}, "train": {"seed": seed, "learning_rate": rate}})
    run.update_manifest({"algorithm": "grpo", "seeds": {"seed": seed}})
    for step in range(1, 13):
        run.append_metrics({"step": step, "reward": step / 12})
        run.append_rollouts(
            [
                {
                    "step": step, "group": g, "prompt": f"{prompts + 3 * step + g}?", "completion": f"{seed}-{k}{text}",
                    "reward": k / 4 + 0.1 * (step % 2), "reward/right": k / 4, "reward/form": float(step % 2 == k % 2),
                    "weight/right": 1.0, "weight/form": 0.1, "tokens": 3,
                }
                for g in range(3) for k in range(4)
            ]
        )  # fmt: skip
    run.append_samples(
        [
            {"step": s, "prompt": p, "answer": f"{seed} at {s}{text}"}
            for s in (0, 6, 12)
            for p in ("both", f"own {seed}")
        ]
    )
    run.mark_finished()
    return run.path


def test_answers_to_the_same_prompt_of_the_same_step_stand_beside_each_other(tmp_path: Path) -> None:
    runs = {name: read_run(sampled_run(tmp_path / name, i)) for i, name in enumerate("ab")}
    found = answers_beside(runs, {"a": 0, "b": 1})
    assert [(one.step, one.common, len(one.prompts)) for one in found.steps] == [
        (1, 3, 2), (4, 3, 2), (7, 3, 2), (9, 3, 2), (12, 3, 2)
    ]  # fmt: skip
    item = found.steps[0].prompts[0]
    assert (item.prompt, [(side.label, side.colour, side.about) for side in item.sides]) == (
        "3?", [("a", 0, "4 answers, mean reward 0.475"), ("b", 1, "4 answers, mean reward 0.475")]
    )  # fmt: skip
    assert [(one.head, one.text, one.under) for one in item.sides[1].answers] == [
        ("best: reward 0.85", "1-3", "right 0.75, form 1"), ("worst: reward 0.1", "1-0", "right 0, form 0")
    ]  # fmt: skip
    assert [(one.prompt, [side.label for side in one.sides]) for one in found.samples] == [
        ("both", ["a", "b"]), ("own 0", ["a"]), ("own 1", ["b"])
    ]  # fmt: skip
    assert [one.text for one in found.samples[0].sides[1].answers] == ["1 at 0", "1 at 6", "1 at 12"]
    assert [(own.label, len(own.steps)) for own in found.own] == [("a", 5), ("b", 5)]
    assert not found.unmatched


def test_runs_without_a_prompt_in_common_say_so_and_show_their_own(tmp_path: Path) -> None:
    runs = {name: read_run(sampled_run(tmp_path / name, i, prompts=1000 * i)) for i, name in enumerate("ab")}
    found = answers_beside(runs, {"a": 0, "b": 1})
    assert (found.steps, found.unmatched, len(found.own)) == ([], True, 2)
    third = read_run(sampled_run(tmp_path / "c", 1, prompts=1000))  # has the prompts of b alone
    found = answers_beside({**runs, "c": third}, {"a": 0, "b": 1, "c": 2})
    assert [side.label for side in found.steps[0].prompts[0].sides] == ["b", "c"]
    page = " ".join(build_report([tmp_path / "a", tmp_path / "b"]).read_text(encoding="utf-8").split())
    assert "No prompt was sampled by two runs at the same step" in page
    assert "Sampled in training by b" in page


def test_the_answers_of_several_runs_keep_to_their_bytes(tmp_path: Path) -> None:
    runs = {name: read_run(sampled_run(tmp_path / name, i, text="<&>" * 100)) for i, name in enumerate("ab")}
    found = answers_beside(runs, {"a": 0, "b": 1})
    everything = found.within(10**7)
    assert (everything.left_out, everything.steps, everything.own) == (0, found.steps, found.own)
    some = found.within(40_000)
    assert [one.step for one in some.steps] == [9, 12]  # the newest first
    assert some.samples == some.own == []
    assert some.left_out == 40 - sum(len(one.prompts) for one in some.steps) + 3
    nothing = found.within(0)
    assert (bool(nothing), nothing.left_out) == (True, 43)
    assert not answers_beside({}, {})


def test_rewards_of_several_runs_share_a_table_and_charts(tmp_path: Path) -> None:
    for i in range(3):  # two seeds of one configuration, and another
        sampled_run(tmp_path / f"r-s{i}", i, rate=1e-3 if i < 2 else 1e-4)
    make_run(tmp_path / "sft", [{"step": 1, "loss": 1.0}])
    folders = {name: tmp_path / name for name in ("r-s0", "r-s2", "sft", "r-s1")}
    found = rewards_beside(folders, [("r, 2 seeds", ["r-s0", "r-s1"]), ("r-s2", ["r-s2"]), ("sft", ["sft"])])
    assert found.labels == ["r-s0", "r-s2", "r-s1"]
    own = reward_block(tmp_path / "r-s2")
    assert [name for name, _ in found.rows] == ["right", "form"]
    assert [cells[1] for _, cells in found.rows] == [(row[1], row[2]) for row in own.rows]
    assert [(chart.title, chart.legend) for chart in found.charts] == [
        (name, [(1, "r, 2 seeds"), (2, "r-s2")]) for name in ("right", "form")
    ]
    assert rewards_beside({"sft": tmp_path / "sft"}, [("sft", ["sft"])]) is None
    page = build_report([tmp_path / name for name in folders]).read_text(encoding="utf-8")
    check_self_contained(page)
    assert re.search(r"Rewards of r-s2: \w+ findings? of the audit", page)


def test_many_runs_with_hostile_texts_keep_to_the_size_of_a_page(tmp_path: Path) -> None:
    folders = [sampled_run(tmp_path / f"r{i}", i, text=ATTACK * 40) for i in range(9)]
    for i in range(2):
        reporting.result(f"m{i}", 0.4 + 0.1 * i, i, n=900, text="<&>" * 500).save(tmp_path / f"e{i}")
    path = build_report([*folders, tmp_path / "e0", tmp_path / "e1"])
    assert path.stat().st_size <= MOST_BYTES
    page = path.read_text(encoding="utf-8")
    assert re.search(r"\d+ more are left out to keep this page small", page)
    assert "<img" not in page


@pytest.mark.parametrize("file", ["metrics.jsonl", "events.jsonl", "evaluations.jsonl"])
def test_rows_that_lack_what_such_a_row_holds_are_left_out(tmp_path: Path, file: str) -> None:
    rows = [{"step": 1, "time": 1.0, "loss": 2.0}, {"step": 2, "time": 2.0, "loss": 1.5}]
    whole = build_report(make_run(tmp_path / "whole", rows).path).read_text()
    for i, line in enumerate(('{"step": "x"}', "{}", '{"step": null}', '{"step": [], "task": 4, "metrics": 3}')):
        run = make_run(tmp_path / str(i) / "whole", rows)
        with open(run.path / file, "a") as out:
            out.write(line + "\n")
        assert build_report(run.path).read_text().count("<figure") == whole.count("<figure"), line
