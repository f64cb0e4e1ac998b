"""Stages for real, at tiny size: two stages with a kill and a resume; and, slow, the example files end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import runs
from aligntune.errors import ConfigurationError
from aligntune.stages import run_stages


def two_stages(model: Path, folder: Path, steps: int = 2) -> dict[str, Any]:
    rows = runs.write_rows(folder / "rows.jsonl", runs.SFT_ROWS)
    config = runs.plain("sft", model, folder, train__max_steps=steps, train__save_steps=1)
    del config["output_dir"]
    config["dataset"] = {"name": "${stages.split.train}"}
    return {
        "output_dir": str(folder / "stages"),
        "stages": [
            {"name": "split", "kind": "split", "config": {"dataset": str(rows), "test": 6}},
            {"name": "sft", "kind": "train", "config": config},
        ],
    }


def test_two_stages_are_made_reported_and_kept(tiny_model: Path, tmp_path: Path) -> None:
    raw = two_stages(tiny_model, tmp_path)
    result = run_stages(raw)
    out = tmp_path / "stages"
    assert result["split"].numbers == {"train rows": 18, "test rows": 6}
    assert result["sft"].numbers["total_steps"] == 2
    assert (result["sft"].memory or 0) > 50_000_000
    assert json.loads((out / "02-sft" / "manifest.json").read_bytes())["status"] == "finished"
    assert len(runs.logged(out / "02-sft")) == 2
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "train rows 18" in page
    assert "total steps 2" in page
    weights = (out / "02-sft" / "model.safetensors").stat().st_mtime_ns
    assert {stage.status for stage in run_stages(raw).stages.values()} == {"skipped"}
    assert (out / "02-sft" / "model.safetensors").stat().st_mtime_ns == weights
    raw["stages"][1]["config"]["train"]["max_steps"] = 3
    with pytest.raises(ConfigurationError, match=r"train\.max_steps: 2 -> 3"):
        run_stages(raw)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_losses(tiny_model: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    steps = 400
    run_stages(two_stages(tiny_model, whole, steps))
    raw = two_stages(tiny_model, cut, steps)
    raw["stages"][1]["config"]["train"]["save_steps"] = 20
    file = cut / "stages.yaml"
    file.write_text(yaml.safe_dump(raw))
    line = [sys.executable, "-m", "aligntune", "run", str(file)]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not any((cut / "stages" / "02-sft").glob("checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "go on with: aligntune run" in said
    assert json.loads((cut / "stages" / "02-sft" / "stage.json").read_bytes())["status"] == "interrupted"
    result = run_stages(file)
    assert result["split"].status == "skipped"
    assert runs.logged(cut / "stages" / "02-sft") == runs.logged(whole / "stages" / "02-sft")


@pytest.mark.slow
def test_advisory_assistant(repo: Path, shared: Path, stories260k: Path, tmp_path: Path) -> None:
    small = ["sft_steps=6", "dpo_steps=3", "prompts=8", "test=6", "max_new_tokens=24", "max_length=256"]
    overrides = [
        f"values.data={shared / 'data' / 'bitext_customer_support' / 'customer_support.csv'}",
        f"values.model={stories260k}",
        f"output_dir={tmp_path / 'out'}",
        *(f"values.{item}" for item in small),
    ]
    result = run_stages(repo / "examples" / "advisory_assistant.yaml", overrides)
    split = result["split"].numbers
    assert split["train rows"] + split["test rows"] + split["left_out rows"] == 2429
    assert split["train rows"] % 27 == 0  # as many rows of each of 27 intents
    assert 0 < result["pairs"].numbers["pairs"] <= 8
    assert result["dpo"].numbers["total_steps"] == 3
    tables = json.loads((Path(result["scores"].folder) / "tables.json").read_bytes())
    assert tables["models"] == ["base", "sft", "dpo"]
    assert {row["task"] for row in tables["values"]} == {"zero_shot", "two_shot"}
    assert {row["model"] for row in tables["differences"]} == {"sft", "dpo"}
    assert {(row["model"], row["against"]) for row in tables["steps"]} == {("dpo", "sft")}
    assert sum(row["n"] for row in tables["classes"] if (row["model"], row["task"]) == ("base", "zero_shot")) == 6
    page = Path(result.report or "").read_text(encoding="utf-8")
    assert "differences to base" in page
    assert "by intent" in page


@pytest.mark.slow
def test_banking_assistant(repo: Path, shared: Path, stories260k: Path, tmp_path: Path) -> None:
    small = ["sft_steps=4", "test=5", "max_new_tokens=16", "max_length=256"]
    overrides = [
        f"values.data={shared / 'data' / 'retail_banking' / 'retail_banking_dataset.json'}",
        f"values.model={stories260k}",
        f"output_dir={tmp_path / 'out'}",
        *(f"values.{item}" for item in small),
    ]
    result = run_stages(repo / "examples" / "banking_assistant.yaml", overrides)
    tables = json.loads((Path(result["scores"].folder) / "tables.json").read_bytes())
    names = {row["name"] for row in tables["values"] if row["task"] == "form_two_shot"}
    assert {"reward", "rewards/whole_sentence", "rewards/no_loops"} <= names
    parts = [Path(result["split"].results[part]).read_text().splitlines() for part in ("train", "test")]
    questions = [{json.loads(line)["rol1"] for line in part} for part in parts]
    assert not questions[0] & questions[1]


@pytest.mark.parametrize("name", ["advisory_assistant", "banking_assistant"])
def test_examples_are_checked_whole(repo: Path, tmp_path: Path, name: str) -> None:
    from aligntune.stages import make_plan

    data = tmp_path / "rows.csv"
    data.write_text("a,b\n1,2\n")
    plan = make_plan(repo / "examples" / f"{name}.yaml", [f"values.data={data}", f"output_dir={tmp_path / 'out'}"])
    assert plan.names[0] == "split"
    assert plan.names[-1] == "report"
    with pytest.raises(ConfigurationError, match=r"values\.data has no value"):
        make_plan(repo / "examples" / f"{name}.yaml")
