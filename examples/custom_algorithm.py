"""An algorithm of your own in one file: GRPO whose advantages are ranks within the group, so that no outlier dominates.

    python examples/custom_algorithm.py                                # Qwen2.5 0.5B on GSM8K; needs a GPU and the hub
    python examples/custom_algorithm.py --model path/to/model --data questions.jsonl --max-steps 20 --backend unsloth
    aligntune train grpo.yaml algo.name=examples/custom_algorithm.py:Ranked algo.spread=2

A_i = spread * (worse_i - better_i) / (G - 1), with the numbers of the group's G answers that are worse and better than
answer i: the best has `spread`, the worst -spread, equal ones the same. Nothing here belongs to one backend.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import PositiveFloat

from aligntune import create_rl_trainer
from aligntune.algorithms import GRPO, Plugin, Schema, algorithm


@algorithm("ranked", trainer="trl:GRPOTrainer", args="trl:GRPOConfig", data=Schema.PROMPT)
class Ranked(GRPO):
    """GRPO that learns from the order of the answers alone."""

    inert: ClassVar[dict[str, str]] = {**GRPO.inert, "algo.scale_rewards": "ranks have one scale"}

    spread: PositiveFloat = 1.0
    """Advantage of an answer that is better than all others of its group (ours)."""

    def plugin(self, config: Any) -> Plugin:
        """What the trainer of either backend calls."""
        return Ranks(self.spread)


class Ranks(Plugin):
    """The advantages."""

    def __init__(self, spread: float) -> None:
        self.spread = spread

    def advantages(self, rewards: Any, out: dict[str, Any]) -> Any:
        """(B,) for the completions of this process, from the (N, F) rewards of all."""
        if not self.training:
            return None
        groups = self.total(rewards).view(-1, self.trainer.num_generations)
        mine, other = groups.unsqueeze(2), groups.unsqueeze(1)
        ranks = ((mine > other).float() - (mine < other).float()).sum(2) / (groups.shape[1] - 1)
        return self.local(self.spread * ranks.flatten())


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train; return the metrics of the last logged step."""
    parser = argparse.ArgumentParser(description="Train with an algorithm of your own.")
    parser.add_argument("--model", default="Qwen/Qwen2.5-0.5B-Instruct", help="a folder or a hub id")
    parser.add_argument("--data", default="openai/gsm8k", help="a file or a hub id")
    parser.add_argument("--output", default="runs/example-algorithm")
    parser.add_argument("--backend", default="trl", choices=["trl", "unsloth"])
    parser.add_argument("--max-steps", type=int, default=100)
    parser.add_argument("--max-completion-length", type=int, default=256)
    options = parser.parse_args(argv)

    trainer = create_rl_trainer(
        algorithm="ranked",
        spread=1.5,
        model_name=options.model,
        dataset_name=options.data,
        data_format="prompt",
        column_mapping={"prompt": "question"},
        backend=options.backend,
        output_dir=options.output,
        max_steps=options.max_steps,
        batch_size=8,
        num_generations=8,
        max_completion_length=options.max_completion_length,
        rewards=[{"type": "length", "params": {"min_length": 5, "max_length": 100}}],
        logging_steps=1,
    )
    trainer.train()
    metrics = trainer.state.metrics
    print(f"mean reward of the last step {metrics['reward']:.3f}")
    return metrics


if __name__ == "__main__":
    main()
