"""An evaluation task of your own in one file: does an answer keep to the number of sentences that was asked for?

    python examples/custom_task.py                                     # Qwen2.5 0.5B; needs the hub
    python examples/custom_task.py --model path/to/model --data rows.jsonl --max-samples 20

Rows have `prompt` and `sentences`, a number. An evaluation's file names the kind by its place, and so does a run that
measures it while it trains (`evaluation.tasks`):

    tasks: [{name: brief, kind: examples/custom_task.py:Sentences, dataset: rows.jsonl}]
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from aligntune.data import materialise
from aligntune.eval import GENERATION, EvalKind, EvalRunner, Metric, answers
from aligntune.eval.config import build_eval_config

QUESTIONS = ["What is rain?", "Why do cats purr?", "What is a loan?", "How do bees make honey?"]


def count_sentences(text: str) -> int:
    """Parts of a text that end in a full stop, a question mark or an exclamation mark; a rest without one counts."""
    return len([part for part in re.split(r"[.!?]+(?:\s|$)", text.strip()) if part.strip()])


class KeepsCount(Metric):
    """1 where an answer has as many sentences as its row asks for."""

    name = "keeps_count"
    requires = ("output", "sentences")

    def score(self, item: Mapping[str, Any]) -> float:
        """Of one answer."""
        return float(count_sentences(item["output"]) == item["sentences"])


class Sentences(EvalKind):
    """Generated answers with a number of sentences that the row asks for."""

    options: ClassVar[frozenset[str]] = GENERATION

    def items(self, rows: Any, ids: Any, settings: Any, subject: Any) -> list[dict[str, Any]]:
        """The answers, each with what its score needs beside it."""
        asked = {i: int(row["sentences"]) for i, row in zip(ids, rows, strict=True)}
        return [{**item, "sentences": asked[item["id"]]} for item in answers(rows, ids, settings, subject)]

    def metrics(self, settings: Any, items: Any) -> list[Metric]:
        """The first is the headline."""
        return [KeepsCount()]


def main(argv: Sequence[str] | None = None) -> Any:
    """Measure a model; return the `EvalResult`."""
    parser = argparse.ArgumentParser(description="Measure a model with a task of your own.")
    parser.add_argument("--model", default="Qwen/Qwen2.5-0.5B-Instruct", help="a folder or a hub id")
    parser.add_argument("--data", help="a file or a hub id; without it, a few questions")
    parser.add_argument("--max-samples", type=int, default=100)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    options = parser.parse_args(argv)

    rows = [
        {"prompt": f"{question} Answer in {n} sentences.", "sentences": n} for question in QUESTIONS for n in (1, 2)
    ]
    task = {
        "name": "brief",
        "kind": f"{Path(__file__).resolve()}:Sentences",
        "dataset": {"name": options.data or str(materialise(rows)), "format": "prompt"},
        "max_samples": options.max_samples,
        "max_new_tokens": options.max_new_tokens,
    }
    config = build_eval_config({"model": {"name_or_path": options.model}, "tasks": [task]})
    result = EvalRunner(config).run()
    print(result.tasks["brief"].headline)
    return result


if __name__ == "__main__":
    main()
