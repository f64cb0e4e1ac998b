"""The audit of a run that really trained: columns, attribution, rescoring and the report, by the shell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runs
from aligntune.rewards.audit.attribution import attribute
from aligntune.rewards.audit.table import read
from aligntune.utils.rollouts import read_rollouts

CLOSE = '''
def close(text: str, reference: str) -> float:
    """Share of the reference's characters that the text has in the same place."""
    return sum(a == b for a, b in zip(text, reference)) / max(len(reference), 1)
'''


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps of GRPO with two rewards, one of which reads a column."""
    folder = tmp_path_factory.mktemp("audited")
    (folder / "close.py").write_text(CLOSE)
    trainer = runs.trainer(
        "grpo", tiny_model, folder, train__max_steps=3,
        rewards=[{"type": f"{folder / 'share.py'}:share_of_a"}, {"type": f"{folder / 'close.py'}:close", "weight": 0.5}],
    )  # fmt: skip
    trainer.train()
    return folder / "out"


def test_the_parts_add_up_to_the_advantages_that_were_trained_on(run: Path) -> None:
    rollouts = read(run)
    assert rollouts.notes == []  # every column is there
    assert set(rollouts.components) == {"share_of_a", "close"}
    assert rollouts.weight["close"][0] == 0.5
    found = attribute(rollouts)
    scored = ~np.isnan(found.advantage)
    assert scored.sum() == len(rollouts) > 0
    assert found.parts["share_of_a"] + found.parts["close"] == pytest.approx(found.advantage, abs=1e-5)
    assert found.residual == pytest.approx(np.zeros(len(rollouts)), abs=1e-5)


def test_the_shell_audits_and_rescores_the_run(run: Path, cli: Any) -> None:
    said = cli("rewards", "audit", str(run), "--json").json
    shares = [c["share"] for c in said["components"] if c["name"] != "total"]
    assert sum(shares) == pytest.approx(1.0, abs=1e-4)
    assert said["facts"]["rows"] == read_rollouts(run).num_rows
    again = cli("rewards", "rescore", str(run), "--reward", "f1", "--json").json
    assert again["rows"] == said["facts"]["rows"]
    assert Path(again["file"]).is_file()
    same = cli("rewards", "rescore", str(run), "--rewards", str(run / "config.resolved.yaml"), "--json").json
    assert same["rank_correlation"]["overall"]["spearman"] == pytest.approx(1.0)
    assert (same["sign_flips"], same["groups_died"], same["groups_woke"]) == (0.0, 0, 0)
