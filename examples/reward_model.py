"""A reward model from preference pairs: trained, validated on pairs that it has not seen, and rewarded by GRPO.

    python examples/reward_model.py                                   # Qwen2.5 0.5B on HH-RLHF; needs a GPU and the hub
    python examples/reward_model.py --model path/to/model --pairs pairs.jsonl --prompts prompts.jsonl --max-steps 20

Pairs have `prompt`, `chosen` and `rejected`; rows of the prompts have `instruction`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from aligntune import create_rl_trainer
from aligntune.core.config import DatasetConfig
from aligntune.rewards.training import RewardModelTrainer, RewardModelValidator


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the status of the validation, the share of pairs ranked right, and GRPO's reward at its last step."""
    parser = argparse.ArgumentParser(description="Learn a reward from preferences, and follow it.")
    parser.add_argument("--model", default="Qwen/Qwen2.5-0.5B-Instruct", help="a folder or a hub id")
    parser.add_argument("--pairs", default="Anthropic/hh-rlhf", help="a file or a hub id")
    parser.add_argument("--held-out", default="test", help="the split of the pairs that validates")
    parser.add_argument("--prompts", default="yahma/alpaca-cleaned", help="a file or a hub id")
    parser.add_argument("--output", default="runs/example-reward")
    parser.add_argument("--max-steps", type=int, default=100)
    parser.add_argument("--max-completion-length", type=int, default=128)
    options = parser.parse_args(argv)

    reward_model = f"{options.output}/model"
    RewardModelTrainer(
        {
            "objective": "bradley_terry",
            "model": {"name_or_path": options.model, "max_seq_length": 512},
            "datasets": [{"name": options.pairs, "split": "train[:80%]"}],
            "train": {"max_steps": options.max_steps, "per_device_batch_size": 8, "learning_rate": 1e-5},
            "output_dir": reward_model,
        }
    ).train()

    held_out = DatasetConfig(name=options.pairs, split=options.held_out, max_samples=500)
    report = RewardModelValidator(reward_model).validate(held_out)
    print(report.verdict)

    trainer = create_rl_trainer(
        algorithm="grpo",
        model_name=options.model,
        dataset_name=options.prompts,
        data_format="prompt",
        column_mapping={"prompt": "instruction"},
        output_dir=f"{options.output}/policy",
        max_steps=options.max_steps,
        batch_size=8,
        num_generations=8,
        max_completion_length=options.max_completion_length,
        reward_model_name=reward_model,
        rewards=[{"type": "repetition", "weight": 0}],  # logged beside it, never trained on
        logging_steps=1,
    )
    trainer.train()
    reward = trainer.state.metrics["reward"]
    print(f"reward of the last step {reward:.3f}")
    return {"status": report.status, "pair_accuracy": report.values["pair_accuracy"].estimate, "reward": reward}


if __name__ == "__main__":
    main()
