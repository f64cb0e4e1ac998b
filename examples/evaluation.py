"""Evaluation on its own: a mathematics task and a text task, two models on the same questions, with intervals.

    python examples/evaluation.py                                      # Qwen2.5 0.5B and 1.5B; needs a GPU and the hub
    python examples/evaluation.py --models a/folder b/folder --maths maths.jsonl --texts texts.jsonl --max-samples 50

Mathematics rows have `question` and `answer`, text rows `instruction` and `output`. The second model is compared with
the first, question by question.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from aligntune.eval import EvalRunner, compare
from aligntune.eval.config import build_eval_config


def main(argv: Sequence[str] | None = None) -> list[Any]:
    """Measure two models; return the comparisons, one for each metric."""
    parser = argparse.ArgumentParser(description="Measure two models on the same questions.")
    parser.add_argument("--models", nargs=2, default=["Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"])
    parser.add_argument("--maths", help="a file; without it GSM8K, from the hub")
    parser.add_argument("--texts", default="yahma/alpaca-cleaned", help="a file or a hub id")
    parser.add_argument("--max-samples", type=int, default=200)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    options = parser.parse_args(argv)

    maths = {"name": options.maths, "column_mapping": {"prompt": "question"}} if options.maths else None
    shared = {"max_samples": options.max_samples, "max_new_tokens": options.max_new_tokens}
    tasks: list[dict[str, Any]] = [
        {"name": "maths", "kind": "exact_match", "dataset": maths} if maths else {"use": "gsm8k", "name": "maths"},
        {
            "name": "texts",
            "kind": "generation",
            "dataset": {"name": options.texts, "format": "alpaca"},
            "metrics": ["rougeL", "bleu", "chrf"],
        },
    ]
    results = []
    for model in options.models:
        config = build_eval_config({"model": {"name_or_path": model}, "tasks": [{**task, **shared} for task in tasks]})
        results.append(EvalRunner(config).run())
        print(results[-1])
    found = compare(results[1], results[0])
    for comparison in found:
        print(comparison)
    return found


if __name__ == "__main__":
    main()
