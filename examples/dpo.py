"""Direct preference optimisation with LoRA through the factory.

    python examples/dpo.py                                             # Qwen3 0.6B on HH-RLHF; needs a GPU and the hub
    python examples/dpo.py --model path/to/model --data pairs.jsonl --eval-split "train[90%:]" --max-steps 20

Rows have `chosen` and `rejected`, and `prompt` unless both conversations contain it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from aligntune import create_rl_trainer


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train, then return the share of held-out pairs in which the chosen answer gained more, and the margin."""
    parser = argparse.ArgumentParser(description="Align a model with preferences.")
    parser.add_argument("--model", default="Qwen/Qwen3-0.6B", help="a folder or a hub id")
    parser.add_argument("--data", default="Anthropic/hh-rlhf", help="a file or a hub id")
    parser.add_argument("--eval-split", default="test")
    parser.add_argument("--output", default="runs/example-dpo")
    parser.add_argument("--max-steps", type=int, default=100)
    options = parser.parse_args(argv)

    trainer = create_rl_trainer(
        algorithm="dpo",
        model_name=options.model,
        dataset_name=options.data,
        data_format="preference",
        eval_dataset_name=options.data,
        eval_split=options.eval_split,
        evaluation__dataset__max_samples=200,
        backend="trl",
        output_dir=options.output,
        max_steps=options.max_steps,
        batch_size=2,
        gradient_accumulation_steps=8,
        learning_rate=5e-6,
        beta=0.1,
        lora_r=16,
        lora_alpha=32,
    )
    trainer.train()
    metrics = trainer.evaluate()
    print(f"preference accuracy {metrics['eval_rewards/accuracies']:.3f}")
    print(f"mean margin {metrics['eval_rewards/margins']:.3f}")
    return metrics


if __name__ == "__main__":
    main()
