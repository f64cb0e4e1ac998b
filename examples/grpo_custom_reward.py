"""Group relative policy optimisation with a reward of your own, named as `file.py:function`.

    python examples/grpo_custom_reward.py                              # Qwen2.5 0.5B on GSM8K; needs a GPU and the hub
    python examples/grpo_custom_reward.py --model path/to/model --data questions.jsonl --max-steps 20

Rows have `question`; every other column is at the disposal of the rewards, by its name.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from aligntune import create_rl_trainer


def digits(text: str) -> float:
    """Share of the characters that are digits, from 0 to 1."""
    return sum(c.isdigit() for c in text) / max(len(text), 1)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train; return the metrics of the last logged step, `reward` among them."""
    parser = argparse.ArgumentParser(description="Reinforce a behaviour with a reward function.")
    parser.add_argument("--model", default="Qwen/Qwen2.5-0.5B-Instruct", help="a folder or a hub id")
    parser.add_argument("--data", default="openai/gsm8k", help="a file or a hub id")
    parser.add_argument("--output", default="runs/example-grpo")
    parser.add_argument("--max-steps", type=int, default=100)
    parser.add_argument("--max-completion-length", type=int, default=256)
    options = parser.parse_args(argv)

    trainer = create_rl_trainer(
        algorithm="grpo",
        model_name=options.model,
        dataset_name=options.data,
        data_format="prompt",
        column_mapping={"prompt": "question"},
        backend="trl",
        output_dir=options.output,
        max_steps=options.max_steps,
        batch_size=8,
        num_generations=8,
        max_completion_length=options.max_completion_length,
        learning_rate=1e-6,
        rewards=[
            {"type": "length", "weight": 0.5, "params": {"min_length": 5, "max_length": 100}},
            {"type": f"{Path(__file__).resolve()}:digits", "weight": 1.0},
        ],
        logging_steps=1,
    )
    trainer.train()
    metrics = trainer.state.metrics
    print(f"mean reward of the last step {metrics['reward']:.3f}")
    return metrics


if __name__ == "__main__":
    main()
