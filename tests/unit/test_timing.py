"""Timings: each second once, the inner phase before the outer one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import runs
from aligntune.core import timing


def test_an_inner_phase_takes_its_time_from_the_outer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(timing.time, "monotonic", lambda: clock[0])

    def wait(seconds: float) -> None:
        clock[0] += seconds

    found = timing.Timings()

    def outer() -> str:
        wait(1)
        found.measure("inner", lambda: wait(10))
        wait(2)
        with pytest.raises(ValueError, match="no"):
            found.measure("inner", lambda: int("no"))
        return "done"

    assert found.measure("outer", outer) == "done"
    wait(100)
    assert found.rounded() == {"outer": 3.0, "inner": 10.0}


def test_a_run_writes_its_timings(tiny_model: Path, tmp_path: Path) -> None:
    rows = runs.write_rows(tmp_path / "held.jsonl", runs.SFT_ROWS[:4])
    changes: dict[str, Any] = {"evaluation__dataset": {"name": str(rows)}, "train__save_steps": 2}
    result = runs.trainer("sft", tiny_model, tmp_path, **changes).train()
    stored = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert set(stored["timings"]) == {"start_up", "data", "model", "training", "evaluation", "saving"}
    assert 0 < sum(stored["timings"].values()) < 600
    assert stored["summary"]["peak_gpu_memory"] is None
    assert result.peak_gpu_memory is None
    assert result["peak_gpu_memory"] is None
