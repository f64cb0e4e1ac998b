"""The notebooks in examples/notebooks hold no outputs, and run from top to bottom at small size.

The cell with the tag `parameters` is followed by smaller values, as papermill would do it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from docs_blocks import REPO, play

NOTEBOOKS = sorted((REPO / "examples/notebooks").glob("*.ipynb"))
SMALL = {
    "sft_dpo_evaluation": {"steps": 40, "rows": 2000, "held_out": 60},
    "reward_audit_grpo": {"steps": 3, "sft_steps": 40, "rows": 2000},
}


def cells(path: Path) -> list[dict[str, Any]]:
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_clean(path: Path) -> None:
    for cell in cells(path):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        compile("".join(cell["source"]), path.name, "exec")
    names = {node.partition(" = ")[0] for node in "".join(cells(path)[0]["source"]).splitlines()}
    assert set(SMALL[path.stem]) <= names


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aligntune.rewards import list_rewards
    from aligntune.rewards.base import REWARDS

    assert list_rewards()  # the registry is filled when it is first read
    monkeypatch.setattr(REWARDS, "_entries", dict(REWARDS._entries))
    monkeypatch.chdir(tmp_path)
    module = ModuleType("notebook")
    monkeypatch.setitem(sys.modules, "notebook", module)
    space: dict[str, Any] = vars(module)
    for cell in cells(path):
        play("".join(cell["source"]), space)
        if "parameters" in cell["metadata"].get("tags", []):
            space.update(SMALL[path.stem])
    if path.stem == "sft_dpo_evaluation":
        after, before = space["results"]["sft"].metric("sums"), space["results"]["base"].metric("sums")
        assert after.value > before.value + 0.1
        assert (tmp_path / "comparison.html").is_file()
    else:
        assert not space["first"].passed
        assert space["second"].passed
        found = space["report"].components
        assert set(found) == {"final_line", "math_correctness", "total"}
        assert 0 < found["math_correctness"].mean < 1  # of the sampled answers, trained on or not
        assert len(space["rewards_by_step"]) >= 3
