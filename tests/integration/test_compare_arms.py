"""Comparisons of real runs whose outcome is known: an algorithm with itself, and a rate that learns against none."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import runs
from aligntune.compare.analysis import Comparison, analyse
from aligntune.compare.execution import begin, run_all, write
from aligntune.compare.plan import make_plan

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
