"""PPO raises the mean reward of a small real model, for every seed, with both kinds of value model.

The start is the quickstart's: its base model, briefly taught to answer sums in a mixture of two ways, of which one earns
more. With `ALIGNTUNE_RECORD=1` in the environment the numbers go to `benchmarks/results/learning_ppo.json`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import runs

pytestmark = pytest.mark.slow

SEEDS = (0, 1, 2)
MARGIN = 0.1
"""Least rise of the mean reward, from the first five rollouts to the last five."""
STEPS = 40
SETTINGS = {"num_ppo_epochs": 2, "kl_coef": 0.01, "value_learning_rate": 1e-3}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The quickstart's data, and its base model after a short supervised training."""
    from aligntune.core.backend_factory import create_trainer
    from aligntune.quickstart import BASE_MODEL
    from aligntune.quickstart.problems import write_datasets

    folder = tmp_path_factory.mktemp("start")
    data = write_datasets(folder / "data")
    create_trainer(
        {
            "task": "instruction_following",
            "model": {"name_or_path": str(BASE_MODEL), "max_seq_length": 64},
            "dataset": str(data["sft"]),
            "train": {"learning_rate": 1e-3, "per_device_batch_size": 64, "max_steps": 120, "seed": 0},
            "output_dir": str(folder / "sft"),
        }
    ).train()
    return {"model": folder / "sft", "prompts": data["rl"]}


@pytest.fixture(scope="module")
def numbers() -> Any:
    """What the tests measure, written down at the end if asked for."""
    found: dict[str, dict[str, Any]] = {}
    yield found
    if os.environ.get("ALIGNTUNE_RECORD"):
        folder = Path(__file__).parents[2] / "benchmarks"
        sys.path.insert(0, str(folder))
        import machine

        stated = {"machine": machine.describe(), "steps": STEPS, "margin": MARGIN, "settings": SETTINGS, "runs": found}
        (folder / "results" / "learning_ppo.json").write_text(json.dumps(stated, indent=1) + "\n")


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize(("kind", "seed"), [*(("separate", s) for s in SEEDS), *(("shared", s) for s in SEEDS)])
def test_the_mean_reward_rises(kind: str, seed: int, start: dict[str, Path], numbers: Any, tmp_path: Path) -> None:
    from aligntune.core.backend_factory import create_trainer

    run = create_trainer(
        {
            "algo": {"name": "ppo", "value_model": kind, **SETTINGS},
            "model": {"name_or_path": str(start["model"]), "max_seq_length": 64},
            "datasets": [str(start["prompts"])],
            "rewards": [{"type": "math_correctness"}, {"type": "answer_format", "weight": 0.1}],
            "train": {"learning_rate": 3e-4, "per_device_batch_size": 64, "max_steps": STEPS, "seed": seed},
            "generation": {"max_prompt_length": 34, "max_completion_length": 30},
            "logging": {"steps": 1, "rollouts": False},
            "output_dir": str(tmp_path / "out"),
        }
    )
    result = run.train()
    logged = {key: runs.logged(run.config.output_dir, key) for key in ("reward", "kl", "ppo/approx_kl")}
    before, after = mean(logged["reward"][:5]), mean(logged["reward"][-5:])
    numbers.setdefault(kind, {})[str(seed)] = {
        "before": round(before, 4),
        "after": round(after, 4),
        "kl": round(mean(logged["kl"][-5:]), 4),
        "approx_kl": round(mean(logged["ppo/approx_kl"]), 5),
        "seconds": round(result.training_time, 1),
    }
    assert len(logged["reward"]) == STEPS / SETTINGS["num_ppo_epochs"]
    assert after - before > MARGIN
