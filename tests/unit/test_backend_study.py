"""The backend study: its page shows what was measured, and its file is sound."""

from __future__ import annotations

import importlib.util
import json
import runpy
from pathlib import Path

import pytest

import runs

REPO = Path(__file__).resolve().parents[2]
RESULT = REPO / "benchmarks" / "results" / "backend_study.json"
needs_unsloth = pytest.mark.skipif(importlib.util.find_spec("unsloth") is None, reason="unsloth is not installed")


def test_the_page_shows_the_results() -> None:
    script = runpy.run_path(str(REPO / "scripts" / "backend_study_tables.py"))
    assert script["page"]() == (REPO / "docs" / "backend_study.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["dpo", "grpo"])
def test_every_arm_and_seed_is_in_the_results(name: str) -> None:
    found = json.loads(RESULT.read_bytes())[name]
    arms = {(run["arm"], run["seed"]) for run in found["runs"] if run["status"] == "finished"}
    assert found["arms"] == ["backend=trl", "backend=unsloth"]
    assert len(arms) == 6
    rows = {row["value"]: row for row in found["rows"]}
    assert rows["eval/sums/reward"]["margin"] == 0.05
    assert rows["step_time"]["kind"] == "ratio"


@pytest.mark.parametrize("name", ["dpo", "grpo"])
def test_a_trl_run_is_the_same_with_and_without_unsloth(name: str) -> None:
    found = json.loads(RESULT.read_bytes())["isolation"][name]
    assert found["losses_equal"]
    assert found["weights_equal"]
    assert found["fingerprint_equal"]
    assert found["installed"]["losses"] == found["hidden"]["losses"]
    assert found["installed"]["replaced"] == 0


@needs_unsloth
def test_its_file_is_checked_whole(tiny_model: Path, tmp_path: Path) -> None:
    from aligntune.stages import make_plan
    from aligntune.stages.estimate import estimates

    pairs = runs.write_rows(tmp_path / "pairs.jsonl", runs.PAIRS)
    rows = runs.write_rows(tmp_path / "rows.jsonl", [{"prompt": "1+1=?", "answer": "2"}])
    data = {"model": tiny_model, "pairs": pairs, "held_out": pairs, "prompts": rows, "problems": rows}
    overrides = [*(f"values.{key}={path}" for key, path in data.items()), f"output_dir={tmp_path / 'out'}"]
    plan = make_plan(REPO / "examples" / "backend_study.yaml", overrides)
    assert plan.names == ["dpo", "grpo", "report"]
    assert [row.steps for row in estimates(plan)[:2]] == [40 * 2 * 3, 30 * 2 * 3]
    for name in ("dpo", "grpo"):
        assert [arm.name for arm in plan[name].kind.runs().arms] == ["backend=trl", "backend=unsloth"]
