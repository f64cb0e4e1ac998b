"""Comparisons of real runs whose outcome is known: an algorithm with itself, and a rate that learns against none."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import runs
from aligntune.compare.analysis import Comparison, analyse
from aligntune.compare.execution import begin, run_all, write
from aligntune.compare.plan import make_plan
from aligntune.utils.run_folder import read_manifest

pytestmark = pytest.mark.slow


def here(file: Path, printed: Path, begun: bool) -> dict[str, Any]:
    """A run in this process, in the place of a fresh one."""
    from aligntune.core.backend_factory import create_trainer

    started = time.monotonic()
    create_trainer(file).train()
    return {"code": 0, "seconds": time.monotonic() - started}


def compared(
    kind: str, axes: dict[str, list[Any]], seeds: int, model: Path, folder: Path, held: list[Any], **changes: Any
) -> Comparison:
    """The arms of `axes` on a small run with held-out rows."""
    rows = runs.write_rows(folder / "held.jsonl", held)
    evaluation = {"dataset": {"name": str(rows)}, "max_new_tokens": 12}
    raw = runs.plain(kind, model, folder, evaluation=evaluation, **changes)
    plan = make_plan(raw, axes=axes, seeds=seeds, output_dir=folder / "out")
    begin(plan, resume=False)
    found = analyse(run_all(plan, here), [arm.name for arm in plan.arms], margin=0.02)
    write(plan, found)
    assert found.failed == []
    return found


def test_an_algorithm_is_equivalent_to_itself(tiny_model: Path, tmp_path: Path) -> None:
    held = [{"prompt": f"Tell {i}"} for i in range(12)]
    found = compared("grpo", {"algo.beta": [0.1, 0.1]}, 3, tiny_model, tmp_path, held, train__max_steps=3)
    other = found.arms[1]
    for value in ("eval_reward", "final_loss", "reward"):
        assert found.row(other, value).change == 0.0
    assert found.row(other, "eval_reward").verdict == "equivalent within 0.02"
    assert not any("different" in r.verdict for r in found.rows if r.kind == "difference")


def test_a_rate_that_learns_is_different_from_one_that_does_not(tiny_model: Path, tmp_path: Path) -> None:
    held = [{"prompt": f"Tell {i}", "completion": f"It is {i % 3}."} for i in range(12)]
    axes = {"train.learning_rate": [1e-6, 1e-2]}
    found = compared("sft", axes, 4, tiny_model, tmp_path, held, train__max_steps=12)
    row = found.row(found.arms[1], "eval_nll")
    assert row.verdict.startswith("different"), row
    assert row.change < -0.5
    assert row.better is True


def test_a_comparison_that_was_killed_goes_on_from_the_checkpoint_of_its_run(tiny_model: Path, tmp_path: Path) -> None:
    """Two equal arms, the first one cut: what was logged before the checkpoint stays, and both end the same."""
    raw = runs.plain("sft", tiny_model, tmp_path, train__max_steps=60, train__save_steps=5)
    for key in ("output_dir", "logging"):
        del raw[key]
    del raw["train"]["seed"]
    (tmp_path / "run.yaml").write_text(json.dumps(raw))
    line = [sys.executable, "-m", "aligntune", "compare", str(tmp_path / "run.yaml"), "train.weight_decay=[0.1,0.1]"]
    line += ["--seeds", "1,", "--output-dir", str(tmp_path / "out"), "--json"]
    first, second = (tmp_path / "out" / f"train.weight_decay=0.1{name}" / "seed-1" for name in ("", "-2"))
    started = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 240
    while not (first / "checkpoint-5").is_dir() and started.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    started.send_signal(signal.SIGKILL)
    started.wait()
    before: dict[str, Any] = {}
    while before.get("status") is None or _alive(before):  # its run ends with it, a moment later
        assert time.monotonic() < end
        time.sleep(0.05)
        before = read_manifest(first) or {}
    assert before["status"] == "running"
    kept = (first / "metrics.jsonl").read_text().splitlines()[:5]
    assert not second.exists()
    again = subprocess.run([*line, "--resume"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert len((read_manifest(first) or {})["attempts"]) == 1
    rows = (first / "metrics.jsonl").read_text().splitlines()
    assert rows[:5] == kept  # with their times: these steps were not made again
    assert [json.loads(row)["step"] for row in rows if "loss" in json.loads(row)] == list(range(1, 61))
    found = json.loads(again.stdout)
    change = {row["value"]: row["change"] for row in found["rows"]}
    assert change["final_loss"] == 0.0
    assert change["loss"] == 0.0


def _alive(manifest: dict[str, Any]) -> bool:
    import psutil

    return bool(psutil.pid_exists(manifest["process"]["pid"]))
