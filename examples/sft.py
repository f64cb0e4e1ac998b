"""Supervised fine-tuning through the factory: instructions in, a model folder out.

    python examples/sft.py                                             # Qwen2.5 0.5B on Alpaca; needs a GPU and the hub
    python examples/sft.py --model path/to/model --data rows.jsonl --max-steps 20

Rows have `instruction`, `input` (may be empty) and `output`. `backend="unsloth"` is the only change for Unsloth.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from aligntune import create_sft_trainer


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train, then return the held-out loss and perplexity per token."""
    parser = argparse.ArgumentParser(description="Fine-tune a model on instructions.")
    parser.add_argument("--model", default="Qwen/Qwen2.5-0.5B-Instruct", help="a folder or a hub id")
    parser.add_argument("--data", default="yahma/alpaca-cleaned", help="a file or a hub id")
    parser.add_argument("--output", default="runs/example-sft")
    parser.add_argument("--max-steps", type=int, default=100)
    options = parser.parse_args(argv)

    trainer = create_sft_trainer(
        model_name=options.model,
        dataset_name=options.data,
        data_format="alpaca",
        split="train[:95%]",
        eval_dataset_name=options.data,
        eval_split="train[95%:]",
        task_type="instruction_following",
        backend="trl",
        output_dir=options.output,
        max_steps=options.max_steps,
        batch_size=2,
        gradient_accumulation_steps=8,
        learning_rate=2e-5,
    )
    result = trainer.train()
    print(f"{result['total_steps']} steps, loss {result['final_loss']:.3f}, model in {result['model_path']}")
    metrics = trainer.evaluate()
    print(f"held-out loss per token {metrics['eval_nll']:.3f}, perplexity {metrics['eval_perplexity']:.2f}")
    print(trainer.generate(["Name three primary colours."])[0])
    return metrics


if __name__ == "__main__":
    main()
