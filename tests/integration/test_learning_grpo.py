"""Every group algorithm raises the mean reward of a small real model on held-out problems, for every seed.

The start is the quickstart's: its base model, briefly taught to answer sums in a mixture of two ways. Reinforcement finds
the way that earns more. The settings are those of the quickstart's own recipe, with half its batch. The reward is measured
on the same problems before and after, sampled as in training: a mean over the few prompts of a step says too little. With `ALIGNTUNE_RECORD=1` in the environment the numbers go to
`benchmarks/results/learning_grpo.json`. To prove another algorithm, add a row to `CASES`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import learning
import runs

pytestmark = pytest.mark.slow

CASES: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr_grpo": {},
    "dapo": {},
    "gspo": {"train": {"per_device_batch_size": 32, "max_steps": 120}},
    "cispo": {},
    "rloo": {},
    "reinforce_pp": {},
}
"""Algorithm to what differs from the run below. GSPO makes four updates of each generation, so it takes smaller ones."""
SEEDS = (0, 1, 2)
MARGIN = 0.1
"""Least rise of the mean reward on the held-out problems (it is at most 1.1)."""
HELD_OUT = 300
"""Problems; the standard error of a mean over them is below 0.03."""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The taught model and its data."""
    return learning.taught_start(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def numbers() -> Any:
    """What the tests measure, written down at the end if asked for."""
    yield from learning.recorded("grpo", margin=MARGIN)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_mean_reward_rises(name: str, seed: int, start: dict[str, Path], numbers: Any, tmp_path: Path) -> None:
    from aligntune.core.backend_factory import create_trainer

    own = CASES[name]
    train = {
        "learning_rate": 1e-4, "lr_scheduler": "constant_with_warmup", "warmup_steps": 10,
        "per_device_batch_size": 64, "max_steps": 60, "seed": seed, **own.get("train", {}),
    }  # fmt: skip
    run = create_trainer(
        {
            "algo": {"name": name, "num_generations": 8, **own.get("algo", {})},
            "model": {"name_or_path": str(start["model"]), "max_seq_length": 64},
            "datasets": [str(start["prompts"])],
            "rewards": [{"type": "math_correctness"}, {"type": "answer_format", "weight": 0.1}],
            "train": train,
            "generation": {"max_prompt_length": 34, "max_completion_length": 30},
            "evaluation": {
                "dataset": {"name": str(start["test"]), "max_samples": HELD_OUT}, "temperature": 1.0, "batch_size": 100,
            },
            "logging": {"steps": 1, "rollouts": False, "samples": 0},
            "output_dir": str(tmp_path / "out"),
        }
    )  # fmt: skip
    before = run.evaluate()["eval_reward"]
    result = run.train()
    after = result["eval_reward"]
    numbers.setdefault(name, {})[str(seed)] = {
        "before": round(before, 4),
        "after": round(after, 4),
        "generations": len(runs.logged(run.config.output_dir, "reward")),
        "steps": result.total_steps,
        "seconds": round(result.training_time, 1),
    }
    assert after - before > MARGIN
