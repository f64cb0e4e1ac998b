"""`aligntune diagnose resume`: an exact configuration, one whose reward draws, and a checkpoint that forgets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import runs
from conftest import Ran

DRAWS = """
import os

def drawn(text: str) -> float:
    return int.from_bytes(os.urandom(2), "big") / 65536
"""


def config(kind: str, model: Path, folder: Path, **changes: Any) -> Path:
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(runs.plain(kind, model, folder, **changes)))
    return file


def test_an_exact_configuration(cli: Callable[..., Ran], tiny_model: Path, tmp_path: Path) -> None:
    ran = cli("diagnose", "resume", config("sft", tiny_model, tmp_path), "--json")
    assert ran.code == 0, ran.err
    assert ran.json == {
        "steps": 6, "stopped_at": 3, "differences": [], "repeatable": None, "folder": None, "exact": True,
    }  # fmt: skip
    assert not (tmp_path / "out").exists()
    ran = cli("diagnose", "resume", tmp_path / "none.yaml")
    assert ran.code == 2
    assert "Traceback" not in ran.err


def test_a_state_that_a_checkpoint_forgets_is_named(
    cli: Callable[..., Ran], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aligntune.core.durable.take_window", lambda hf, window: None)
    ran = cli("diagnose", "resume", config("sft", tiny_model, tmp_path))
    assert ran.code == 1, ran.err
    assert "not exact: 6 steps straight, against 3, a checkpoint, and the rest differ" in ran.out
    assert "metrics.jsonl: loss of step 4 is" in ran.out
    assert "two straight runs are equal" in ran.out


@pytest.mark.slow
def test_a_reward_that_draws_is_told_from_a_bad_resume(
    cli: Callable[..., Ran], tiny_model: Path, tmp_path: Path
) -> None:
    assert cli("diagnose", "resume", config("grpo", tiny_model, tmp_path)).code == 0
    (tmp_path / "draws.py").write_text(DRAWS)
    file = config("grpo", tiny_model, tmp_path, rewards=[{"type": f"{tmp_path / 'draws.py'}:drawn"}])
    ran = cli("diagnose", "resume", file, "--json")
    assert ran.code == 1
    assert ran.json["repeatable"] is False
