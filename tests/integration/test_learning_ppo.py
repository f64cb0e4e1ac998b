"""PPO raises the mean reward of a small real model, for every seed, with both kinds of value model.

The start is the quickstart's: its base model, briefly taught to answer sums in a mixture of two ways, of which one earns
more. With `ALIGNTUNE_RECORD=1` in the environment the numbers go to `benchmarks/results/learning_ppo.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import learning
import runs

pytestmark = pytest.mark.slow

SEEDS = (0, 1, 2)
MARGIN = 0.1
"""Least rise of the mean reward, from the first five rollouts to the last five."""
STEPS = 40
SETTINGS = {"num_ppo_epochs": 2, "kl_coef": 0.01, "value_learning_rate": 1e-3}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The taught model and its data."""
    return learning.taught_start(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def numbers() -> Any:
    """What the tests measure, written down at the end if asked for."""
    yield from learning.recorded("ppo", steps=STEPS, margin=MARGIN, settings=SETTINGS)


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
    before, after = learning.mean(logged["reward"][:5]), learning.mean(logged["reward"][-5:])
    numbers.setdefault(kind, {})[str(seed)] = {
        "before": round(before, 4),
        "after": round(after, 4),
        "kl": round(learning.mean(logged["kl"][-5:]), 4),
        "approx_kl": round(learning.mean(logged["ppo/approx_kl"]), 5),
        "seconds": round(result.training_time, 1),
    }
    assert len(logged["reward"]) == STEPS / SETTINGS["num_ppo_epochs"]
    assert after - before > MARGIN
