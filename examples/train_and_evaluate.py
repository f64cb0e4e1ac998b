"""Training that measures itself: SFT with tasks before, during and after it, and the two ends compared item by item.

    python examples/train_and_evaluate.py                              # Qwen2.5 0.5B on Alpaca; needs a GPU and the hub
    python examples/train_and_evaluate.py --model path/to/model --data rows.jsonl --max-steps 20 --every 10

Rows have `instruction`, `input` (may be empty) and `output`. The best evaluation keeps its checkpoint.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from aligntune import create_sft_trainer
from aligntune.eval import EvalResult, compare


def main(argv: Sequence[str] | None = None) -> list[Any]:
    """Train; return the comparisons of the trained model with the starting one, one for each metric."""
    parser = argparse.ArgumentParser(description="Fine-tune, and measure on the way.")
    parser.add_argument("--model", default="Qwen/Qwen2.5-0.5B-Instruct", help="a folder or a hub id")
    parser.add_argument("--data", default="yahma/alpaca-cleaned", help="a file or a hub id")
    parser.add_argument("--output", default="runs/example-evaluated")
    parser.add_argument("--max-steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=50, help="steps between evaluations")
    parser.add_argument("--max-samples", type=int, default=100)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    options = parser.parse_args(argv)

    answers = {
        "name": "answers",
        "kind": "generation",
        "dataset": {"name": options.data, "split": "train[90%:]", "format": "alpaca"},
        "metrics": ["rougeL", "chrf"],
        "max_samples": options.max_samples,
        "max_new_tokens": options.max_new_tokens,
    }
    trainer = create_sft_trainer(
        model_name=options.model,
        dataset_name=options.data,
        data_format="alpaca",
        split="train[:90%]",
        output_dir=options.output,
        max_steps=options.max_steps,
        batch_size=2,
        gradient_accumulation_steps=8,
        learning_rate=2e-5,
        evaluation__tasks=[answers],
        evaluation__every=options.every,
        evaluation__at_start=True,
        train__best_metric="eval/answers/rougeL",
        train__keep_best="checkpoint",
    )
    result = trainer.train()
    if result.best:
        print(f"best: {result.best['metric']} {result.best['value']:.4f} at step {result.best['step']}")
    before, after = (EvalResult.load(f"{options.output}/evaluation{part}") for part in ("/before", ""))
    found = compare(after, before)
    for comparison in found:
        print(comparison)
    return found


if __name__ == "__main__":
    main()
