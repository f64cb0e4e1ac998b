"""Evaluations of the small models on real data, with intervals: the numbers of docs/evaluation.md.

    python benchmarks/eval_numbers.py [--out benchmarks/results/eval_numbers.json]

The quickstart's base model and the 260k-parameter story model on TinyStories, ARC, HellaSwag and SVAMP, by the tasks of
the library; then a small encoder that is trained from scratch on 30 classes of banking77, by `banking77`. A few minutes
on one core. It needs the folder with data and models (`--shared`, by default `../shared`), and the tests' helpers.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "integration")]


def measure(model: str, name: str, tasks: list[dict[str, Any]]) -> dict[str, Any]:
    """Task to metric to value, interval and number of items."""
    from aligntune.eval import EvalRunner
    from aligntune.eval.config import build_eval_config

    started = time.process_time()
    result = EvalRunner(build_eval_config({"model": {"name_or_path": model}, "tasks": tasks})).run()
    found: dict[str, Any] = {}
    for task in result.tasks.values():
        found[task.name] = {
            m.name: {"value": m.value, "low": m.low, "high": m.high, "n": m.n, "method": m.method}
            for m in task.metrics.values()
        }
        for metric in task.metrics.values():
            print(name, task.name, metric, flush=True)
    return {"tasks": found, "processor_seconds": round(time.process_time() - started, 1)}


def language_tasks(data: Path) -> list[dict[str, Any]]:
    """Library tasks on the files."""
    return [
        {"use": "tinystories", "dataset": str(data / "tinystories/tinystories.jsonl"), "max_samples": 300,
         "batch_size": 16},
        {"use": "arc", "dataset": str(data / "arc/ARC-Challenge-Dev.jsonl"), "batch_size": 32},
        {"use": "hellaswag", "dataset": str(data / "hellaswag/hellaswag.jsonl"), "batch_size": 32},
        {"use": "svamp", "dataset": str(data / "svamp/test.jsonl"), "max_new_tokens": 32, "batch_size": 64,
         "truncate_prompts": True},
    ]  # fmt: skip


def classifier(shared: Path, folder: Path) -> str:
    """The encoder of the learning proof, trained on banking77's first classes; its folder."""
    import test_learning_classification as proof

    from aligntune.core.backend_factory import create_trainer

    train, _ = proof.banking(shared, folder)
    model = proof.save_encoder(folder / "encoder", [row["text"] for row in train], seed=0)
    trainer = create_trainer({
        "task": "text_classification",
        "model": {"name_or_path": str(model), "max_seq_length": 96},
        "dataset": str(folder / "train.jsonl"),
        "train": {
            "num_epochs": 16, "per_device_batch_size": 64, "learning_rate": 4e-3, "warmup_ratio": 0.1,
            "weight_decay": 0.1, "seed": 0,
        },
        "output_dir": str(folder / "run"),
    })  # fmt: skip
    return str(trainer.train().model_path)


def main() -> None:
    """Measure, print, write."""
    import helpers
    from aligntune.quickstart import BASE_MODEL

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--only", choices=["language", "banking77"], help="The rest stays as the result file has it.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "eval_numbers.json")
    a = parser.parse_args()
    known = json.loads(a.out.read_text()) if a.only and a.out.exists() else {}
    result: dict[str, Any] = {**known, "machine": machine.describe()}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        listed = [("quickstart base", BASE_MODEL)] if a.only != "banking77" else []
        stories = helpers.convert_stories260k(a.shared / "models/stories260K", folder / "stories260K")
        for name, path in [*listed, *([("stories260K", stories)] if listed else [])]:
            result[name] = measure(str(path), name, language_tasks(a.shared / "data"))
            a.out.write_text(json.dumps(result, indent=2) + "\n")
        if a.only == "language":
            return
        trained = classifier(a.shared, folder)
        test = {"use": "banking77", "dataset": str(folder / "test.jsonl"), "batch_size": 64}
        result["banking77 encoder"] = measure(trained, "banking77 encoder", [test])
    a.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
