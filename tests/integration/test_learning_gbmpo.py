"""GBMPO and neural mirror GRPO raise the mean reward of a small real model, for every seed.

The start is the quickstart's: its base model, briefly taught to answer sums in a mixture of two ways. Reinforcement finds
the way that earns more. With `ALIGNTUNE_RECORD=1` in the environment the numbers go to
`benchmarks/results/learning_gbmpo.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import learning
import runs

pytestmark = pytest.mark.slow

CASES = {
    "gbmpo prob_l2": {"name": "gbmpo"},
    "gbmpo l2_kl": {"name": "gbmpo", "divergence": "l2_kl"},
    "gbmpo generalized_kl": {"name": "gbmpo", "divergence": "generalized_kl"},
    "neural_mirror": {"name": "neural_mirror"},
}
SEEDS = (0, 1, 2)
MARGIN = 0.1
"""Least rise of the mean reward, from the first five steps to the last five."""
STEPS = 40


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The taught model and its data."""
    return learning.taught_start(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def numbers() -> Any:
    """What the tests measure, written down at the end if asked for."""
    yield from learning.recorded("gbmpo", steps=STEPS, margin=MARGIN)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_mean_reward_rises(case: str, seed: int, start: dict[str, Path], numbers: Any, tmp_path: Path) -> None:
    from aligntune.core.backend_factory import create_trainer

    run = create_trainer(
        {
            "algo": {**CASES[case], "num_generations": 8},
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
    rewards, divergence = (runs.logged(run.config.output_dir, key) for key in ("reward", "divergence"))
    before, after = learning.mean(rewards[:5]), learning.mean(rewards[-5:])
    numbers.setdefault(case, {})[str(seed)] = {
        "before": round(before, 4),
        "after": round(after, 4),
        "divergence": round(learning.mean(divergence[-5:]), 6),
        "kl": round(learning.mean(runs.logged(run.config.output_dir, "kl")[-5:]), 4),
        "seconds": round(result.training_time, 1),
    }
    assert len(rewards) == STEPS
    assert divergence[0] == 0 < divergence[-1]
    assert after - before > MARGIN
