"""The quickstart from end to end in its short form, once: stages, figures that can be recomputed, report, recipes."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest

from aligntune.errors import ConfigurationError
from aligntune.quickstart.problems import FILES
from aligntune.quickstart.story import Clock, run_quickstart
from aligntune.utils.logging import configure


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("quick start") / "it's here"  # a space and a quote in the path
    lines: list[str] = []
    data, text = run_quickstart(out, fast=True, seed=0, say=lines.append)
    return {"out": out, "data": data, "text": text, "lines": lines}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_stages_come_in_order_with_their_parents(told: dict[str, Any]) -> None:
    stages = told["data"]["stages"]
    assert [(s["name"], s["parent"]) for s in stages] == [
        ("base", None), ("sft", "base"), ("grpo", "sft"), ("dpo", "sft"),
    ]  # fmt: skip
    assert told["data"]["problems"] == 500
    assert len(told["lines"]) == 9
    assert all("left)" in line for line in told["lines"])


def test_each_accuracy_is_what_the_stored_answers_say(told: dict[str, Any]) -> None:
    gold = {row["prompt"][-1]["content"]: row["answer"] for row in read(told["out"] / "data" / FILES["test"])}
    for stage in told["data"]["stages"]:
        folder = next((told["out"] / "scores").glob(f"*-{stage['name']}"))
        items = read(folder / "items" / "sums.jsonl")
        assert len(items) == 500
        graded = [float(item["rewards/math_correctness"]) for item in items]
        assert stage["accuracy"]["value"] == pytest.approx(sum(graded) / 500)
        assert stage["accuracy"]["low"] <= stage["accuracy"]["value"] < stage["accuracy"]["high"]
        plain = 0  # answers that end in one clean line, which need no grader to be read
        for item, grade in zip(items, graded, strict=True):
            if found := re.fullmatch(r"(?:[^#]*\n)?#### (\d+)", item["output"].strip()):
                plain += 1
                assert grade == (found[1] == gold[item["prompt"][-1]["content"]])
        assert plain == 0 if stage["name"] == "base" else plain > 300


def test_sft_teaches_and_grpo_improves_on_it(told: dict[str, Any]) -> None:
    by_name = {s["name"]: s for s in told["data"]["stages"]}
    assert by_name["sft"]["difference"]["low"] > 0.2
    assert by_name["grpo"]["difference"]["low"] > 0.05
    assert by_name["grpo"]["mean_reward"] > by_name["sft"]["mean_reward"] + 0.05


def test_pairs_rank_a_right_answer_above_a_wrong_one_and_do_not_leak(told: dict[str, Any]) -> None:
    train, held_out = (read(told["out"] / name / "pairs.jsonl") for name in ("pairs", "held_out_pairs"))
    assert told["data"]["preference"]["pairs"] == len(held_out) > 30
    assert all(p["chosen_score"] >= 1 and p["rejected_score"] <= 0.1 for p in train + held_out)
    seen = {p["prompt"][-1]["content"] for p in train}
    assert not seen & {p["prompt"][-1]["content"] for p in held_out}


def test_the_report_stands_alone(told: dict[str, Any]) -> None:
    page = (told["out"] / "report.html").read_text(encoding="utf-8")
    for name in ("Base", "SFT", "GRPO", "DPO"):
        assert name in page
    assert not re.findall(r"(?:src|href)=[\"']https?://", page)
    assert "<script" not in page
    assert str(told["out"] / "report.html") in told["text"]


def test_the_report_opens_in_a_browser(told: dict[str, Any], tmp_path: Path) -> None:
    from test_report_browser import BROWSER, chromium

    if BROWSER is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    picture = tmp_path / "page.png"
    chromium(tmp_path, told["out"] / "report.html", f"--screenshot={picture}", "--window-size=1200,3000")
    assert picture.stat().st_size > 50_000  # an empty page of this size takes a tenth


def test_each_recipe_can_be_run_alone(told: dict[str, Any], cli: Any, tmp_path: Path) -> None:
    for name in ("sft", "grpo", "dpo"):
        file = told["out"] / "recipes" / f"{name}.yaml"
        assert cli("train", file, f"output_dir={json.dumps(str(tmp_path / name))}", "--dry-run").code == 0
    ran = cli(
        "train", told["out"] / "recipes" / "dpo.yaml", f"output_dir={json.dumps(str(tmp_path / 'dpo'))}", "--json"
    )
    assert ran.code == 0, ran.err
    assert (tmp_path / "dpo" / "model.safetensors").read_bytes() == (
        told["out"] / "dpo" / "model.safetensors"
    ).read_bytes()  # the same run, bit for bit


def test_it_is_a_run_of_stages(told: dict[str, Any]) -> None:
    from aligntune.stages import make_plan

    plan = make_plan(told["out"] / "recipes" / "stages.yaml")
    assert plan.names == [
        "sft", "pairs", "held_out_pairs", "grpo", "dpo", "scores", "ranking", "own_ranking", "report",
    ]  # fmt: skip
    assert [stage.folder for stage in plan.stages] == [told["out"] / name for name in plan.names]
    assert plan["sft"].kind.config["train"]["max_steps"] == 80  # as --fast has it
    assert plan["grpo"].kind.config["model"]["name_or_path"] == str(told["out"] / "sft")
    assert plan.dependents("pairs") == {"pairs", "dpo", "scores", "ranking", "report"}
    for name in plan.names:
        assert json.loads((told["out"] / name / "stage.json").read_bytes())["status"] == "finished"


def test_the_words_of_a_command_go_to_its_log(tmp_path: Path) -> None:
    from aligntune.quickstart.story import _errors_to

    logger = logging.getLogger("aligntune")
    before = logger.level, list(logger.handlers)
    with _errors_to(tmp_path / "stage.log"):
        configure("debug")
        os.write(2, b"loss 1.5\n")
    assert (tmp_path / "stage.log").read_bytes() == b"loss 1.5\n"
    assert (logger.level, logger.handlers) == before


def test_run_finds_nothing_left_to_do(told: dict[str, Any], cli: Any) -> None:
    ran = cli("run", told["out"] / "recipes" / "stages.yaml", "--json")
    assert ran.code == 0, ran.err
    assert {stage["status"] for stage in ran.json["stages"] if stage["kind"] != "report"} == {"skipped"}


@pytest.mark.slow
def test_other_processes_give_the_same_bytes(told: dict[str, Any], tmp_path: Path) -> None:
    """`aligntune run` starts a process for each command, the quickstart runs all in its own."""
    from aligntune.stages import run_stages

    result = run_stages(told["out"] / "recipes" / "stages.yaml", [f"output_dir={tmp_path / 'again'}"])
    for name in ("sft", "grpo", "dpo"):
        again = Path(result[name].results["model"]) / "model.safetensors"
        assert again.read_bytes() == (told["out"] / name / "model.safetensors").read_bytes()
    for name in ("pairs", "held_out_pairs"):
        assert Path(result[name].results["data"]).read_bytes() == (told["out"] / name / "pairs.jsonl").read_bytes()
    accuracy = {s["name"]: s["accuracy"]["value"] for s in told["data"]["stages"]}
    numbers = json.loads((Path(result["scores"].folder) / "tables.json").read_bytes())["values"]
    again = {r["model"]: r["value"] for r in numbers if r["name"] == "rewards/math_correctness"}
    assert again == pytest.approx(accuracy)


def test_a_quickstart_that_is_stopped_goes_on_by_run(tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from aligntune.quickstart import story

    def stopped(arguments: Any, log: Path) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(story, "run_here", stopped)
    with pytest.raises(KeyboardInterrupt, match=r"stage sft was stopped; go on with: aligntune run .*stages.yaml"):
        run_quickstart(tmp_path / "q", fast=True, say=lambda line: None)
    with pytest.raises(ConfigurationError, match="holds a quickstart already") as refused:
        run_quickstart(tmp_path / "q", fast=True)
    assert f"aligntune run {tmp_path / 'q' / 'recipes' / 'stages.yaml'}" in refused.value.hint
    ran = cli("run", tmp_path / "q" / "recipes" / "stages.yaml", "--dry-run", "--json")
    assert ran.code == 0, ran.err
    assert all(stage["to_do"] for stage in ran.json["stages"])


def test_a_second_quickstart_does_not_overwrite_the_first(told: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="holds a quickstart already"):
        run_quickstart(told["out"], fast=True)


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigurationError, match="is a file, not a folder"):
        run_quickstart(tmp_path / "file", fast=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_the_clock_learns_from_what_a_step_took() -> None:
    lines: list[str] = []
    clock = Clock({"a": 0.0, "b": 100.0}, lines.append)
    clock.begin("a", "first")
    clock.begin("b", "second")
    assert lines == ["first  (about 100 s left)", "second  (about 100 s left)"]
