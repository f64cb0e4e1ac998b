"""Online DPO, SPIN and distillation on the Unsloth backend, with the real package, against TRL's first losses."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import helpers
import runs

INSTALLED = importlib.util.find_spec("unsloth") is not None
CASES: dict[str, dict[str, Any]] = {
    "online_dpo": {"generation": {"max_prompt_length": 32, "max_completion_length": 8}},
    "spin": {"algo__rounds": 2, "generation": {"max_completion_length": 8}},
    "gkd": {"algo__lmbda": 0.5, "generation": {"max_completion_length": 8}, "train__max_steps": 3},
}
REWARD = '''
def codes(text: str) -> float:
    """A number that nearly every pair differs in."""
    return sum(ord(c) % 7 for c in text) / 10
'''
SCRIPT = """
    import runs
    from pathlib import Path
    result = {}
    for name, changes in given["cases"].items():
        for peft in (None, {"r": 4}):
            folder = Path(given["folder"]) / f"{name}-{peft is not None}"
            kind = name.partition("+")[0]
            trainer = runs.trainer(kind, given["model"], folder, backend="unsloth", model__peft=peft, **changes)
            trained = trainer.train()
            out = Path(trainer.config.output_dir)
            result[folder.name] = {
                "losses": runs.logged(out), "steps": trained.total_steps,
                "files": sorted(str(f.relative_to(out)) for f in out.rglob("*")),
                "evaluated": trainer.evaluate(folder / f"{kind}.jsonl"),
            }
"""


def settings(name: str, folder: Path, teacher: Path, reward_model: Path) -> dict[str, Any]:
    """What a case sets beyond the small run of `runs.plain`."""
    common = {"train__max_steps": 2, "train__save_steps": 2, **CASES[name.partition("+")[0]]}
    if name == "gkd":
        common["algo__teacher"] = str(teacher)
    if name == "online_dpo":
        common["rewards"] = [{"type": f"{folder}/codes.py:codes"}]
    if name == "online_dpo+model":
        common["rewards"] = [{"type": "reward_model", "params": {"path": str(reward_model)}}]
    return common


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("online-cases")
    (folder / "codes.py").write_text(REWARD, encoding="utf-8")
    teacher = helpers.save_tiny_model(folder / "teacher", seed=5)
    reward_model = helpers.save_tiny_reward_model(folder / "reward-model")
    return {n: settings(n, folder, teacher, reward_model) for n in (*CASES, "online_dpo+model")}


@pytest.fixture(scope="module")
def on_unsloth(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, cases: dict[str, Any]) -> Any:
    """All runs, whole and LoRA, in one Unsloth process."""
    if not INSTALLED:
        pytest.skip("unsloth is not installed (see `aligntune info` for the command)")
    given = {"cases": cases, "model": str(tiny_model), "folder": str(tmp_path_factory.mktemp("online-unsloth"))}
    head = f"import json, sys\nsys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
    script = f"{head}given = json.loads({json.dumps(given)!r})\n{textwrap.dedent(SCRIPT)}\n"
    script += "print('\\n@@' + json.dumps(result))\n"
    env = {
        k: v for k, v in os.environ.items() if not k.startswith(("PURE_TRL", "TRL_ONLY", "DISABLE_UNSLOTH", "UNSLOTH"))
    }
    working = tmp_path_factory.mktemp("cwd")
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=working, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.rpartition("@@")[2])


@pytest.mark.parametrize("peft", [None, {"r": 4}])
@pytest.mark.parametrize("name", [*CASES, "online_dpo+model"])
def test_both_backends_begin_alike_train_and_save(
    name: str, peft: Any, on_unsloth: Any, tiny_model: Path, tmp_path: Path, cases: dict[str, Any]
) -> None:
    theirs = on_unsloth[f"{name}-{peft is not None}"]
    kind = name.partition("+")[0]
    ours = runs.trainer(kind, tiny_model, tmp_path, model__peft=peft, **cases[name])
    ours.train()
    losses = runs.logged(tmp_path / "out")
    assert theirs["losses"][0] == pytest.approx(losses[0], abs=1e-5)
    assert theirs["steps"] == len(theirs["losses"]) == len(losses)
    weights = "adapter_model.safetensors" if peft else "model.safetensors"
    assert weights in theirs["files"]
    checkpoint = "round-1/checkpoint-2" if kind == "spin" else "checkpoint-2"
    assert f"{checkpoint}/{weights}" in theirs["files"]
    measured = {"online_dpo": "eval_reward", "spin": "eval_nll", "gkd": "eval_divergence"}[kind]
    assert measured in theirs["evaluated"]
