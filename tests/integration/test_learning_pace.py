"""Counterfactual GRPO and PACE with single completions raise the reward on held-out problems, for every seed.

The start is the quickstart's: its base model, briefly taught to answer sums in a mixture of two ways. Reinforcement finds
the way that earns more. The reward is measured on problems that no training saw, with greedy answers, before and after,
because PACE chooses its own prompts. With `ALIGNTUNE_RECORD=1` in the environment the numbers go to
`benchmarks/results/learning_pace.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import learning
import runs

pytestmark = pytest.mark.slow

CASES = {
    "counterfactual_grpo": {"name": "counterfactual_grpo", "num_generations": 8},
    "pace": {"name": "pace"},
    "pace in the order of the data": {"name": "pace", "curriculum": False},
}
SEEDS = (0, 1, 2)
MARGIN = 0.1
"""Least rise of the mean reward on the held-out problems; the highest possible reward is 1.1."""
STEPS = 40
HELD_OUT = 200


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The taught model and its data."""
    return learning.taught_start(tmp_path_factory.mktemp("start"), test=HELD_OUT)


@pytest.fixture(scope="module")
def numbers() -> Any:
    """What the tests measure, written down at the end if asked for."""
    yield from learning.recorded("pace", steps=STEPS, held_out=HELD_OUT, margin=MARGIN)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_reward_rises(case: str, seed: int, start: dict[str, Path], numbers: Any, tmp_path: Path) -> None:
    from aligntune.core.backend_factory import create_trainer

    run = create_trainer(
        {
            "algo": CASES[case],
            "model": {"name_or_path": str(start["model"]), "max_seq_length": 64},
            "datasets": [str(start["prompts"])],
            "rewards": [{"type": "math_correctness"}, {"type": "answer_format", "weight": 0.1}],
            "train": {"learning_rate": 3e-4, "per_device_batch_size": 64, "max_steps": STEPS, "seed": seed},
            "generation": {"max_prompt_length": 34, "max_completion_length": 30},
            "evaluation": {"batch_size": 100, "max_new_tokens": 30},
            "logging": {"steps": 1, "rollouts": False},
            "output_dir": str(tmp_path / "out"),
        }
    )
    before = run.evaluate(start["test"])["eval_reward"]
    result = run.train()
    after = run.evaluate(start["test"])["eval_reward"]
    out = run.config.output_dir
    found = {
        "before": round(before, 4),
        "after": round(after, 4),
        "sampled_first_5": round(learning.mean(runs.logged(out, "reward")[:5]), 4),
        "sampled_last_5": round(learning.mean(runs.logged(out, "reward")[-5:]), 4),
        "seconds": round(result.training_time, 1),
    }
    keys = ("counterfactual/spans", "counterfactual/positive") if "pace" not in case else ("pace/value", "pace/drift")
    found |= {key: round(learning.mean(runs.logged(out, key)), 4) for key in keys}
    numbers.setdefault(case, {})[str(seed)] = found
    print(case, seed, found)
    assert len(runs.logged(out, "reward")) == STEPS
    assert after - before > MARGIN
